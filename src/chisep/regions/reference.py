"""Reference of a susceptibility map: the mean of a region, which is subtracted from it.

A field determines χ up to a constant, since the dipole kernel has none (k = 0). A reference makes maps of
several scans or methods comparable; the consensus on QSM asks to state it (Bilgic 2024, 10.1002/mrm.30006).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.errors import InputError
from chisep.regions.labels import LabelArray

ReferenceRegion = Literal["none", "csf", "brain"]
"""Region of a reference by its name."""
VENTRICLES = (4, 43, 14, 15)
"""FreeSurfer numbers of the lateral, third and fourth ventricles, which contain CSF."""
FEWEST_VOXELS = 10
"""Minimum number of voxels of a reference region."""
_BLOCK_VOXELS = 5
"""Edge of the blocks whose means count as independent, since errors of neighbours are correlated."""

_Volume = Float[np.ndarray, "i j k"]
_Mask = Bool[np.ndarray, "i j k"]


@dataclass(frozen=True)
class Reference:
    """Mean of χ in a region.

    Parameters
    ----------
    region
        Description of the region.
    value_ppm
        Mean of χ in it.
    sigma_ppm
        Standard error of the mean, from the means of blocks of 5 × 5 × 5 voxels.
    sd_ppm
        Standard deviation of its voxels.
    voxels
        Their number.
    """

    region: str
    value_ppm: float
    sigma_ppm: float
    sd_ppm: float
    voxels: int

    def facts(self) -> dict[str, Any]:
        """Fields of the sidecar and the record."""
        return {
            "ReferenceRegion": self.region,
            "ReferencePpb": round(1000 * self.value_ppm, 3),
            "ReferenceSigmaPpb": round(1000 * self.sigma_ppm, 3),
            "ReferenceSdPpb": round(1000 * self.sd_ppm, 3),
            "ReferenceVoxels": self.voxels,
        }


def no_reference_facts() -> dict[str, Any]:
    """Fields of the sidecar and the record of a map from which nothing is subtracted."""
    return {"ReferenceRegion": "none"}


def reference_of(chi_ppm: _Volume, region: _Mask, name: str) -> Reference:
    """Mean of χ in a region, with its standard error.

    Parameters
    ----------
    chi_ppm
        Susceptibility in ppm, shape (i, j, k).
    region
        True in the region where χ is known, shape (i, j, k).
    name
        Description of the region.

    Raises
    ------
    InputError
        If the region has fewer than 10 voxels.
    """
    values = chi_ppm[region].astype(np.float64)
    if values.size < FEWEST_VOXELS:
        raise InputError(
            "--reference",
            found=f"{values.size} voxels of the region ({name}) in which χ is known",
            expected=f"{FEWEST_VOXELS} voxels or more",
            fix="Choose brain, or give a mask of the region (--reference FILE).",
        )
    _, block = np.unique(np.argwhere(region) // _BLOCK_VOXELS, axis=0, return_inverse=True)
    size = np.bincount(block.ravel())
    means = np.bincount(block.ravel(), values) / size
    value, share = float(values.mean()), size / size.sum()
    sigma = float(np.sqrt((share**2 * (means - value) ** 2).sum()))  # of a mean of independent blocks
    return Reference(name, value, sigma, float(values.std()), values.size)


def ventricles(labels: LabelArray, known: _Mask) -> _Mask:
    """Ventricular CSF: lateral, third and fourth ventricles, eroded by one voxel.

    Parameters
    ----------
    labels
        FreeSurfer numbers, shape (i, j, k).
    known
        Voxels in which χ is known, shape (i, j, k).
    """
    return np.asarray(known & ndimage.binary_erosion(np.isin(labels, VENTRICLES)))


def defined(chi_ppm: _Volume) -> _Mask:
    """Mask of a map that is 0 outside; zeros enclosed by other values are inside.

    Parameters
    ----------
    chi_ppm
        Susceptibility in ppm, shape (i, j, k).
    """
    return np.asarray(ndimage.binary_fill_holes(chi_ppm != 0))


def referenced(chi_ppm: _Volume, value_ppm: float, inside: _Mask) -> _Volume:
    """Subtract a reference where a map is defined; it stays 0 outside.

    Parameters
    ----------
    chi_ppm
        Susceptibility in ppm, 0 outside the brain, shape (i, j, k).
    value_ppm
        Value to subtract.
    inside
        Where the map is defined, shape (i, j, k).
    """
    return np.where(inside, chi_ppm - np.float32(value_ppm), np.float32(0)).astype(np.float32)
