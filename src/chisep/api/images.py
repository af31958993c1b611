"""Read paths, nibabel images and arrays of one grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.placement import SCANNER
from chisep.types import Grid

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

    def notes(self, *, b0_given: bool) -> list[str]:
        """Say what is to be known of where the first image lies."""
        return nifti.place_notes(self._reference, b0_given=b0_given)

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
        place = self._reference.place
        code = place.code if place and place.problem else SCANNER
        return nifti.to_nibabel(volume.numpy(), self._reference.affine, code)
