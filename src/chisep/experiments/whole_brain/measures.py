"""Errors over the true brain: by depth below its surface, in cortex and deep brain, and over their σ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from chisep import metrics
from chisep.experiments.common.scores import finite
from chisep.experiments.common.session_maps import MapReader
from chisep.preprocessing.morphology import depth_mm
from chisep.simulation import labelmap
from chisep.training.conformal import SIGMAS

MapArray = Float[np.ndarray, "i j k"]
"""A map on the grid of the scan."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""

MAPS: Mapping[str, str] = {
    "chi_pos": "desc-paramagnetic_Chimap",
    "chi_neg": "desc-diamagnetic_Chimap",
    "chi": "desc-total_Chimap",
    "qsm": "desc-qsm_Chimap",
}
"""Evaluated susceptibility maps → their BIDS name."""
SIGMAS_OF: Mapping[str, str] = {
    "chi_pos": "desc-paramagnetic_stat-std_Chimap",
    "chi_neg": "desc-diamagnetic_stat-std_Chimap",
    "qsm": "desc-qsm_stat-std_Chimap",
}
"""Maps with a predicted uncertainty → its BIDS name."""
FIELD, R2PRIME = "desc-local_fieldmap", "R2primemap"
BRAIN, VALID_FIELD = "desc-brain_mask", "desc-eroded_mask"

WHOLE, VALID, CORTEX, DEEP, DEEP_GREY = "whole brain", "valid-field mask", "cortex", "deep brain", "deep grey"
_DEPTHS_MM = (0.0, 1.0, 2.0, 3.0, 4.0, 5.5, 7.0, 10.0, math.inf)
_DEEP_MM = 10.0
_DEEP_GREY = (
    *(*labelmap.THALAMUS, *labelmap.PULVINAR, *labelmap.CAUDATE, *labelmap.PUTAMEN, *labelmap.PALLIDUM),
    *(*labelmap.PALLIDUM_INTERNUM, *labelmap.NIGRA, *labelmap.RED_NUCLEUS, *labelmap.SUBTHALAMIC),
    *labelmap.DENTATE,
)
_FIFTHS = 5
_FEWEST_VOXELS = 20
_DIGITS = 4


def _depth_name(low_mm: float, high_mm: float) -> str:
    return f"{low_mm:g}–{high_mm:g} mm" if math.isfinite(high_mm) else f"> {low_mm:g} mm"


BY_DEPTH = tuple(_depth_name(low, high) for low, high in pairwise(_DEPTHS_MM))
"""Names of the zones by depth: above the first and up to the second number."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Truth of a simulated session.

    Parameters
    ----------
    maps
        χ_pos, χ_neg and χ in ppm by the names of `MAPS`, the local field in ppm and R2' in 1/s.
    zones
        Parts of the true brain by name.
    depth_mm
        Distance from each voxel to the nearest one outside the true brain.
    """

    maps: Mapping[str, MapArray]
    zones: Mapping[str, MaskArray]
    depth_mm: MapArray

    @property
    def brain(self) -> MaskArray:
        """The true brain mask."""
        return self.zones[WHOLE]

    def facts(self) -> dict[str, Any]:
        """Share of the brain (%) and mean depth (mm) of every zone; None for an empty one."""
        voxels = np.count_nonzero(self.brain)
        return {
            zone: {
                "share_percent": rounded(100 * np.count_nonzero(mask) / voxels),
                "mean_depth_mm": rounded(float(self.depth_mm[mask].mean())) if mask.any() else None,
            }
            for zone, mask in self.zones.items()
        }


def read_truth(read: MapReader) -> Truth:
    """Read the truth of a session and divide its brain into zones."""
    brain, labels = read.true_mask(BRAIN), read.true("dseg").round().astype(np.int32)
    depth = depth_mm(torch.from_numpy(brain), read.grid).numpy()
    zones = {
        WHOLE: brain,
        **{
            name: brain & (depth > low) & (depth <= high)
            for name, (low, high) in zip(BY_DEPTH, pairwise(_DEPTHS_MM), strict=True)
        },
        CORTEX: brain & np.isin(labels, labelmap.CEREBRAL_CORTEX),
        DEEP: brain & (depth > _DEEP_MM),
        DEEP_GREY: brain & np.isin(labels, _DEEP_GREY),
    }
    chi = {name: read.true(MAPS[name]) for name in ("chi_pos", "chi_neg", "chi")}
    return Truth(
        {**chi, "qsm": chi["chi"], FIELD: read.true(FIELD), R2PRIME: read.true(R2PRIME)}, zones, depth
    )


def rounded(value: float) -> float | None:
    """Round to four significant digits; None for NaN and infinity."""
    return finite(float(f"{value:.{_DIGITS}g}"))


def errors_of(
    made: Mapping[str, MapArray], truth: Truth, zones: Mapping[str, MaskArray]
) -> dict[str, dict[str, float | None]]:
    """NRMSE in % of every map in every zone; a voxel without a value counts as 0.

    Parameters
    ----------
    made
        Maps in ppm by the names of `MAPS`, 0 where there is no value.
    truth
        Of the session.
    zones
        Masks by name.
    """
    return {
        name: {
            zone: rounded(metrics.nrmse_percent(values, truth.maps[name], mask))
            for zone, mask in zones.items()
        }
        for name, values in made.items()
    }


def interval_coverage(
    made: Mapping[str, MapArray],
    sigmas: Mapping[str, MapArray],
    truth: Truth,
    zones: Mapping[str, MaskArray],
) -> dict[str, dict[str, float | None]]:
    """Coverage of the 90 % prediction intervals in every zone, in %, over the voxels that have one.

    Parameters
    ----------
    made, sigmas
        Maps and their predicted uncertainty in ppm by the names of `MAPS`.
    truth
        Of the session.
    zones
        Masks by name.
    """
    found = {}
    for name, sigma in sigmas.items():
        known, error = sigma > 0, made[name] - truth.maps[name]
        if name == "qsm":  # the mean of χ is not determined by a field
            error = error - error[known & truth.brain].mean()
        inside = np.abs(error) <= SIGMAS * sigma
        found[name] = {
            zone: rounded(100 * float(inside[mask & known].mean())) if (mask & known).any() else None
            for zone, mask in zones.items()
        }
    return found


def error_by_depth(error: MapArray, known: MaskArray, truth: Truth) -> dict[str, float | None]:
    """RMS of an error in every zone of the brain, over its known voxels; None where these are few.

    Parameters
    ----------
    error
        In any unit.
    known
        Where there is a value.
    truth
        Of the session.
    """
    found = {}
    for zone, mask in truth.zones.items():
        values = error[mask & known]
        found[zone] = rounded(_rms(values)) if values.size >= _FEWEST_VOXELS else None
    return found


def error_over_sigma(error: MapArray, sigma: MapArray, known: MaskArray, truth: Truth) -> dict[str, Any]:
    """Compare an error with its standard deviation, in the whole brain and in fifths by depth.

    Parameters
    ----------
    error, sigma
        In the same unit; voxels of σ = 0 are left out.
    known
        Where there is a value.
    truth
        Of the session.

    Returns
    -------
    dict
        `rms`, `sigma` (RMS) and `ratio` (RMS of error/σ, 1 where σ is right); `fifths` has the same for equal
        numbers of voxels, from the surface, each with the depth in mm that it reaches to.
    """
    known = known & truth.brain & (sigma > 0)
    if np.count_nonzero(known) < _FIFTHS * _FEWEST_VOXELS:
        return {**_ratio(error[known], sigma[known]), "fifths": []}
    depth = truth.depth_mm[known]
    order = np.argsort(depth, kind="stable")
    fifths = [
        {"to_mm": rounded(float(depth[part].max())), **_ratio(error[known][part], sigma[known][part])}
        for part in np.array_split(order, _FIFTHS)
    ]
    return {**_ratio(error[known], sigma[known]), "fifths": fifths}


def _ratio(error: NDArray[Any], sigma: NDArray[Any]) -> dict[str, float | None]:
    if not error.size:
        return {"rms": None, "sigma": None, "ratio": None}
    return {"rms": rounded(_rms(error)), "sigma": rounded(_rms(sigma)), "ratio": rounded(_rms(error / sigma))}


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
