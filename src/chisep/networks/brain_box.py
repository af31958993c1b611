"""The part of a volume that networks see: the brain, in the axes that they know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from nibabel.orientations import io_orientation
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from chisep.types import Grid, MaskVolume

_UPRIGHT_DEG = 2.0
"""Angle between B0 and the third axis up to which a head is not turned: turning costs resolution."""


class BrainBox:
    """The box around a brain, with its axes as near to right, anterior, superior as they can be.

    Networks know the head, and B0, from one side only; files hold their axes in any order and direction.

    Parameters
    ----------
    mask
        Brain, not empty, shape (i, j, k).
    grid
        Of the mask; its axes are taken as they are if it has no affine.
    b0_along_z
        Whether the head is turned besides until B0 is along the third axis, by cubic interpolation.

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
        turns = np.array([[0, 1], [1, 1], [2, 1]]) if grid.affine is None else io_orientation(grid.affine)
        # Axis a of the file goes to axis `to[a]` of the box; `order` is the other way round.
        to = [int(axis) for axis in turns[:, 0]]
        self._order = tuple(to.index(axis) for axis in range(3))
        self._flips = [to[axis] - 3 for axis in range(3) if turns[axis, 1] < 0]
        self._turn: _Turn | None = None
        self._straight_mask = self.mask = self.cut(mask)
        b0 = self._reordered(
            [b * sign for b, sign in zip(grid.b0_direction, turns[:, 1].tolist(), strict=True)]
        )
        self.grid = _grid_of(self.mask, self._reordered(grid.voxel_mm), b0)
        if b0_along_z and math.degrees(math.acos(min(1.0, abs(b0[2])))) > _UPRIGHT_DEG:
            self._turn = _Turn(self.mask, self.grid)
            self.mask = self.cut(mask)
            self.grid = _grid_of(self.mask, self.grid.voxel_mm, (0.0, 0.0, math.copysign(1.0, b0[2])))

    def _reordered(self, values: Sequence[float]) -> tuple[float, float, float]:
        i, j, k = (float(values[axis]) for axis in self._order)
        return i, j, k

    def cut(self, volume: Tensor) -> Tensor:
        """Part of a volume (i, j, k) that is in the box, in the axes of the box."""
        box = volume[self._span].permute(self._order).flip(self._flips).contiguous()
        return box if self._turn is None else self._turn.there(box)

    def restore(self, box: Tensor) -> Tensor:
        """Put (channel, …) in the box back into a volume of zeros, (channel, i, j, k)."""
        if self._turn is not None:
            box = torch.stack([self._turn.back(channel) for channel in box]) * self._straight_mask
        whole = box.new_zeros((box.shape[0], *self._shape))
        back = [self._order.index(axis) + 1 for axis in range(3)]
        whole[(slice(None), *self._span)] = box.flip(self._flips).permute(0, *back)
        return whole


class _Turn:
    """The shortest rotation that brings B0 to the third axis.

    Parameters
    ----------
    mask
        Brain in the box, which the turned box is to hold.
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
        # Of voxel indices: millimetres are turned, and voxels keep their edges.
        self._matrix = rotation * edges[None, :] / edges[:, None]
        index = mask.nonzero().cpu().numpy() @ self._matrix.T
        self._low = np.floor(index.min(0)).astype(int) - 1
        self._shape = mask.shape
        self._turned_shape = tuple((np.ceil(index.max(0)).astype(int) + 2 - self._low).tolist())

    def there(self, box: Tensor) -> Tensor:
        """Turn a volume of the box; masks by their nearest voxel."""
        inverse = np.linalg.inv(self._matrix)
        return _resampled(box, inverse, inverse @ self._low, self._turned_shape)

    def back(self, turned: Tensor) -> Tensor:
        """Turn a volume back to the box."""
        return _resampled(turned, self._matrix, -self._low, tuple(self._shape))


def _resampled(volume: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    values = volume.cpu().numpy()
    if volume.dtype == torch.bool:
        values = ndimage.affine_transform(values.astype(np.uint8), matrix, offset, shape, order=0)
        return torch.from_numpy(values > 0).to(volume.device)
    moved = ndimage.affine_transform(values, matrix, offset, shape, order=3)
    # Splines overshoot: sources and rates stay what they are, 0 or more.
    if values.min() >= 0:
        np.maximum(moved, 0, out=moved)
    return torch.from_numpy(moved.astype(values.dtype, copy=False)).to(volume.device)


def _grid_of(mask: Tensor, voxel_mm: Sequence[float], b0: Sequence[float]) -> Grid:
    i, j, k = (int(n) for n in mask.shape)
    x, y, z = voxel_mm
    b0_i, b0_j, b0_k = b0
    return Grid((i, j, k), (x, y, z), (b0_i, b0_j, b0_k))
