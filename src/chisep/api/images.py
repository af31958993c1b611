"""Read paths, nibabel images and arrays of one grid, and check the units of their values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.types import Grid, Maps

ImageLike = str | Path | NDArray[Any] | nib.spatialimages.SpatialImage
"""A path of a NIfTI file, a nibabel image, or an array (then give `voxel_mm`)."""


class Images:
    """Reads images that share the grid of the first one, and wraps results with its affine."""

    def __init__(self, reference: ImageLike, voxel_mm: Sequence[float] | None) -> None:
        self._voxel_mm = voxel_mm
        self._reference = self._read(reference, "field")

    def _read(self, image: ImageLike, name: str, ndim: int = 3) -> nifti.Image:
        if isinstance(image, str | Path):
            return nifti.load(image, ndim=ndim)
        if isinstance(image, np.ndarray):
            if self._voxel_mm is None:
                raise InputError(
                    name,
                    found="an array without a voxel size",
                    expected="voxel_mm=(…, …, …)",
                    fix="Give the voxel edges in mm.",
                )
            image = nib.Nifti1Image(image.astype(np.float32), np.diag([*self._voxel_mm, 1.0]))
        return nifti.from_nibabel(image, source=name, ndim=ndim)

    def _same_grid(self, image: nifti.Image) -> nifti.Image:
        nifti.require_same_grid(self._reference, image)
        return image

    def grid(self, b0_direction: Sequence[float] | None) -> Grid:
        """Grid of the first image; B0 from its affine if no direction is given."""
        return nifti.grid_of(self._reference, b0_direction)

    def volume(self, image: ImageLike, name: str) -> Tensor:
        """Values of a 3-D image."""
        return torch.from_numpy(self._same_grid(self._read(image, name)).data)

    def mask(self, image: ImageLike) -> Tensor:
        """Voxels above 0.5."""
        read = self._same_grid(self._read(image, "mask"))
        return torch.from_numpy(nifti.checked_mask(read.data > 0.5, read.affine, read.source).data)

    def magnitude(self, image: ImageLike) -> Tensor:
        """Root of the sum of squares over the echoes, if there is more than one."""
        echoes = (
            len(image.shape) == 4 if not isinstance(image, str | Path) else nifti.number_of_axes(image) == 4
        )
        read = self._same_grid(self._read(image, "magnitude", ndim=4 if echoes else 3))
        return torch.from_numpy(np.sqrt(np.square(read.data).sum(-1)) if echoes else read.data)

    def wrap(self, volume: Tensor) -> nib.Nifti1Image:
        """Make an image with the affine of the first one."""
        return nifti.to_nibabel(volume.numpy(), self._reference.affine)


def question_units(maps: Maps) -> None:
    """Warn of values that are implausible in their unit."""
    field_size = _typical(maps.field_ppm, maps)
    if field_size > 2:
        warnings.warn(
            f"the field is typically {field_size:.3g} ppm in the mask: is it in Hz or radians, or not yet "
            "free of background? chisep expects the local field in ppm",
            ChisepWarning,
            stacklevel=3,
        )
    if maps.chi_ppm is not None and _typical(maps.chi_ppm, maps) > 2:
        warnings.warn(
            "the susceptibility map is typically above 2 ppm in the mask: is it in ppb?",
            ChisepWarning,
            stacklevel=3,
        )
    # R2* of a brain is about 20 1/s at 3 T, R2' a few 1/s.
    for name, rate, lowest in (("R2'", maps.r2prime_hz, 0.3), ("R2*", maps.r2star_hz, 1.0)):
        if rate is None:
            continue
        if _typical(rate, maps) < lowest:
            warnings.warn(
                f"{name} is typically below {lowest:g} 1/s in the mask: is it in 1/ms? chisep expects 1/s",
                ChisepWarning,
                stacklevel=3,
            )
        negative = int(torch.count_nonzero(rate[maps.mask] < 0))
        if negative:
            warnings.warn(
                f"{name} is negative in {negative} voxels of the mask; the sources stay 0 at least",
                ChisepWarning,
                stacklevel=3,
            )


def _typical(volume: Tensor, maps: Maps) -> float:
    """Root mean square within the mask."""
    return float(volume[maps.mask].square().mean().sqrt())
