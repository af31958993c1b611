"""Definitions of the benchmark's worlds and of its labels, as it publishes them.

Acquisitions and D_r: `scripts/gen_chisep.py` of github.com/QSMxT/QSM-CI; labels: `DSEG_LABELS` of its scorer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chisep.errors import unknown_name
from chisep.simulation import labelmap

Maker = Literal["chisep", "qsm-forward"]
"""Simulator of a world."""

SPHERES_HZ_PER_PPM_T = 107.84
"""D_r,pos over B0 by static dephasing of spheres (Yablonskiy and Haacke 1994, 10.1002/mrm.1910320610)."""
CYLINDERS_HZ_PER_PPM_T = 133.77
"""D_r,neg over B0 of cylinders across B0; times sin² of the angle to B0."""
ISOTROPIC_NEG_HZ_PER_PPM = 700.8
"""D_r,neg of the benchmark's isotropic worlds."""
MEAN_SIN2 = 2 / 3
"""Mean of sin² over all directions."""


@dataclass(frozen=True)
class Definition:
    """A world of the benchmark.

    Parameters
    ----------
    name
        As in the tables.
    b0_t
        Field strength in T.
    te_s
        Echo times in s.
    snr
        Largest magnitude of the first echo over the SD of the noise; inf without noise.
    dr_pos_hz_per_ppm
        D_r,pos.
    dr_neg_hz_per_ppm
        D_r,neg in white matter, of fibres across B0 where it depends on the angle.
    sin2
        Whether it does.
    separates
        Whether it is for χ-separation, else for the stages from phase to χ.
    """

    name: str
    b0_t: float
    te_s: tuple[float, ...]
    snr: float
    dr_pos_hz_per_ppm: float
    dr_neg_hz_per_ppm: float
    sin2: bool
    separates: bool = True

    @property
    def mean_dr_neg_hz_per_ppm(self) -> float:
        """D_r,neg as a mean over directions."""
        return self.dr_neg_hz_per_ppm * (MEAN_SIN2 if self.sin2 else 1.0)


_TE_7T = (0.004, 0.012, 0.020, 0.028)
_TE_3T = tuple(0.003 + 0.004 * echo for echo in range(6))
_TE_MC = tuple(0.003 + 0.006 * echo for echo in range(8))


def _static_dephasing(name: str, b0_t: float, te_s: tuple[float, ...], *, isotropic: bool) -> Definition:
    neg = ISOTROPIC_NEG_HZ_PER_PPM if isotropic else CYLINDERS_HZ_PER_PPM_T * b0_t
    return Definition(name, b0_t, te_s, math.inf, SPHERES_HZ_PER_PPM_T * b0_t, neg, not isotropic)


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        one.name: one
        for one in (
            Definition(
                "mc", 7.0, _TE_MC, 100.0, 320.0, 320.0 * CYLINDERS_HZ_PER_PPM_T / SPHERES_HZ_PER_PPM_T, True
            ),
            _static_dephasing("3t-iso", 3.0, _TE_3T, isotropic=True),
            _static_dephasing("3t-aniso", 3.0, _TE_3T, isotropic=False),
            _static_dephasing("7t-iso", 7.0, _TE_7T, isotropic=True),
            _static_dephasing("7t-aniso", 7.0, _TE_7T, isotropic=False),
            Definition("7t-field", 7.0, _TE_7T, 100.0, 320.0, 397.0, True, separates=False),
        )
    }
)
"""Worlds by name."""


def definition(name: str) -> Definition:
    """Look up a world.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    if name not in DEFINITIONS:
        raise unknown_name("world", name, DEFINITIONS, "chisep reproduce qsm-ci --help")
    return DEFINITIONS[name]


WHITE, GREY, FLUID = 8, 9, 10
TISSUES: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {
        1: labelmap.CAUDATE,
        2: (*labelmap.PALLIDUM, *labelmap.PALLIDUM_INTERNUM),
        3: labelmap.PUTAMEN,
        4: labelmap.RED_NUCLEUS,
        5: labelmap.DENTATE,
        6: (*labelmap.NIGRA, *labelmap.SUBTHALAMIC),
        7: (*labelmap.THALAMUS, *labelmap.PULVINAR),
        WHITE: (*labelmap.WHITE_MATTER, labelmap.BRAIN_STEM, *labelmap.VENTRAL_DC, 85),
        GREY: (*labelmap.CEREBRAL_CORTEX, *labelmap.CEREBELLAR_CORTEX, 17, 53, 18, 54, 26, 58),
        11: (labelmap.VEIN,),
        16: (labelmap.PINEAL,),
    }
)
"""Labels of the benchmark and those of the digital phantoms that they cover; the rest of the mask is CSF."""

TRACTS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {
        1: (252, labelmap.CALLOSUM_BODY, 254),
        2: (labelmap.CALLOSUM_SPLENIUM,),
        3: (labelmap.CALLOSUM_GENU,),
        4: labelmap.CAPSULE_ANTERIOR,
        5: labelmap.THALAMIC_RADIATION,
        6: labelmap.CORONA_RADIATA,
        9: labelmap.CAPSULE_POSTERIOR,
        10: labelmap.LONGITUDINAL,
    }
)
"""Tracts of the benchmark's table of anisotropy that the phantoms have; 11 is the rest of white matter."""
REST_OF_WHITE = 11

Labels = NDArray[np.int16]


def tissues_of(labels: Labels, mask: NDArray[np.bool_]) -> Labels:
    """Labels of the benchmark from those of a digital phantom, 0 outside the mask."""
    found = np.full(labels.shape, FLUID, np.int16)
    for number, covered in TISSUES.items():
        found[np.isin(labels, covered)] = number
    return np.where(mask, found, 0).astype(np.int16)


def tracts_of(labels: Labels, tissues: Labels) -> Labels:
    """White-matter tracts from labels of a digital phantom, 0 outside of white matter."""
    found = np.full(labels.shape, REST_OF_WHITE, np.int16)
    for number, covered in TRACTS.items():
        found[np.isin(labels, covered)] = number
    return np.where(tissues == WHITE, found, 0).astype(np.int16)


@dataclass(frozen=True)
class Published:
    """A row of the benchmark's table: xSIM and MSPE in % of χ_pos and χ_neg; MSPE is None where not known."""

    method: str
    xsim: tuple[float, float]
    mspe: tuple[float | None, float | None] = (None, None)


PUBLISHED: Mapping[str, tuple[Published, ...]] = MappingProxyType(
    {
        "mc": (
            Published("HC-ChiSep", (0.904, 0.887), (0.50, 0.90)),
            Published("r2star-qsm", (0.813, 0.740), (4.6, 1.1)),
            Published("null (closed form)", (0.772, 0.628), (4.2, 19)),
            Published("chi-sepnet", (0.719, 0.363), (3.2, 6.5)),
        ),
        "3t-iso": (
            Published("HC-ChiSep", (0.476, 0.756)),
            Published("r2star-qsm", (0.680, 0.745), (3.6, 17.4)),
            Published("null (closed form)", (0.639, 0.345)),
            Published("chi-sepnet", (0.730, 0.476), (3.4, 2.2)),
        ),
        "3t-aniso": (
            Published("HC-ChiSep", (0.559, 0.777)),
            Published("r2star-qsm", (0.677, 0.733), (3.6, 16.3)),
            Published("null (closed form)", (0.602, 0.318)),
            Published("chi-sepnet", (0.692, 0.471), (3.5, 2.7)),
        ),
        "7t-aniso": (
            Published("HC-ChiSep", (0.751, 0.848), (0.07, 10.4)),
            Published("r2star-qsm", (0.675, 0.731)),
            Published("null (closed form)", (0.602, 0.318), (21.9, 17.8)),
            Published("chi-sepnet", (0.439, 0.133)),
        ),
    }
)
"""Rows of the benchmark's table (September 2026) that read no labels, by world."""
