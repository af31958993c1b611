"""Cropping and reorientation of a volume to the brain, as networks expect it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from nibabel.orientations import io_orientation
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from chisep.types import Grid, Maps, MaskVolume, Sources, Susceptibility

_Record = TypeVar("_Record", Maps, Sources, Susceptibility)
_UPRIGHT_DEG = 2.0
"""Largest angle between B0 and the third axis without a rotation: interpolation costs resolution."""


class BrainBox:
    """Crop a volume to the brain, with axes as close to right, anterior, superior as possible.

    Networks are trained on one head orientation and B0 direction; files have axes in any order and direction.

    Parameters
    ----------
    mask
        Brain, not empty, shape (i, j, k).
    grid
        Of the mask; its axes are taken as they are if it has no affine.
    b0_along_z
        Whether the head is also rotated until B0 is along the third axis, by cubic interpolation.

    Attributes
    ----------
    mask
        Brain in the box.
    grid
        Of the box, without affine.
    """

    def __init__(self, mask: MaskVolume, grid: Grid, *, b0_along_z: bool = False) -> None:
        self._shape = mask.shape
        inside = mask.nonzero()
        first, last = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        self._span = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        orientation = (
            np.array([[0, 1], [1, 1], [2, 1]]) if grid.affine is None else io_orientation(grid.affine)
        )
        # Axis a of the file goes to axis `to[a]` of the box; `order` is the other way round.
        to = [int(axis) for axis in orientation[:, 0]]
        self._order = tuple(to.index(axis) for axis in range(3))
        self._flips = [to[axis] - 3 for axis in range(3) if orientation[axis, 1] < 0]
        self._rotation: _B0Rotation | None = None
        self._straight_mask = self.mask = self.cut(mask)
        b0 = self._reordered(
            [b * sign for b, sign in zip(grid.b0_direction, orientation[:, 1].tolist(), strict=True)]
        )
        self.grid = _grid_of(self.mask, self._reordered(grid.voxel_mm), b0)
        if b0_along_z and math.degrees(math.acos(min(1.0, abs(b0[2])))) > _UPRIGHT_DEG:
            self._rotation = _B0Rotation(self.mask, self.grid)
            self.mask = self.cut(mask)
            self.grid = _grid_of(self.mask, self.grid.voxel_mm, (0.0, 0.0, math.copysign(1.0, b0[2])))

    def _reordered(self, values: Sequence[float]) -> tuple[float, float, float]:
        i, j, k = (float(values[axis]) for axis in self._order)
        return i, j, k

    def cut(self, volume: Tensor) -> Tensor:
        """Crop a volume (i, j, k) to the box, in the axes of the box."""
        box = volume[self._span].permute(self._order).flip(self._flips).contiguous()
        return box if self._rotation is None else self._rotation.apply(box)

    def restore(self, box: Tensor) -> Tensor:
        """Put (channel, …) in the box back into a volume of zeros, (channel, i, j, k)."""
        if self._rotation is not None:
            box = torch.stack([self._rotation.invert(channel) for channel in box]) * self._straight_mask
        whole = box.new_zeros((box.shape[0], *self._shape))
        back = [self._order.index(axis) + 1 for axis in range(3)]
        whole[(slice(None), *self._span)] = box.flip(self._flips).permute(0, *back)
        return whole

    def cut_record(self, record: _Record) -> _Record:
        """Crop every volume of a record; maps get the grid of the box."""
        changes: dict[str, Any] = {name: self.cut(volume) for name, volume in _volumes(record)}
        if isinstance(record, Maps):
            changes["grid"] = self.grid
        return replace(record, **changes)

    def restore_record(self, record: _Record) -> _Record:
        """Put every volume of a record back into a volume of zeros."""
        changes: dict[str, Any] = {n: self.restore(volume[None])[0] for n, volume in _volumes(record)}
        return replace(record, **changes)


def _volumes(record: Maps | Sources | Susceptibility) -> list[tuple[str, Tensor]]:
    values = ((field.name, getattr(record, field.name)) for field in fields(record))
    return [(name, value) for name, value in values if isinstance(value, Tensor)]


class _B0Rotation:
    """Shortest rotation that brings B0 to the third axis.

    Parameters
    ----------
    mask
        Brain in the box; the rotated box contains it.
    grid
        Of the box.
    """

    def __init__(self, mask: MaskVolume, grid: Grid) -> None:
        edges = np.asarray(grid.voxel_mm)
        b0 = np.asarray(grid.b0_direction)
        up = np.array([0.0, 0.0, math.copysign(1.0, b0[2])])
        axis = np.cross(b0, up)
        angle = math.atan2(float(np.linalg.norm(axis)), float(b0 @ up))
        rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
        # In voxel indices: the rotation is in mm, and voxels keep their edges.
        self._matrix = rotation * edges[None, :] / edges[:, None]
        index = mask.nonzero().cpu().numpy() @ self._matrix.T
        self._low = np.floor(index.min(0)).astype(int) - 1
        self._shape = mask.shape
        self._rotated_shape = tuple((np.ceil(index.max(0)).astype(int) + 2 - self._low).tolist())

    def apply(self, box: Tensor) -> Tensor:
        """Rotate a volume of the box; masks by nearest-neighbour interpolation."""
        inverse = np.linalg.inv(self._matrix)
        return _resampled(box, inverse, inverse @ self._low, self._rotated_shape)

    def invert(self, rotated: Tensor) -> Tensor:
        """Rotate a volume back to the box."""
        return _resampled(rotated, self._matrix, -self._low, tuple(self._shape))


def _resampled(volume: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    values = volume.cpu().numpy()
    if volume.dtype == torch.bool:
        values = ndimage.affine_transform(values.astype(np.uint8), matrix, offset, shape, order=0)
        return torch.from_numpy(values > 0).to(volume.device)
    moved = ndimage.affine_transform(values, matrix, offset, shape, order=3)
    # Splines overshoot, but sources and relaxation rate maps are not negative.
    if values.min() >= 0:
        np.maximum(moved, 0, out=moved)
    return torch.from_numpy(moved.astype(values.dtype, copy=False)).to(volume.device)


def _grid_of(mask: Tensor, voxel_mm: Sequence[float], b0: Sequence[float]) -> Grid:
    i, j, k = (int(n) for n in mask.shape)
    x, y, z = voxel_mm
    b0_i, b0_j, b0_k = b0
    return Grid((i, j, k), (x, y, z), (b0_i, b0_j, b0_k))
