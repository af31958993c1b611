"""Morphology of masks in mm: distance, closing, largest connected component."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.types import Grid, MaskVolume, Volume

_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]
_LARGEST_REACH = 16
"""Radius in voxels up to which a ball is swept over a mask; beyond, the distance transform is faster."""


def depth_mm(mask: MaskVolume, grid: Grid) -> Volume:
    """Distance transform of a mask: from each voxel to the nearest voxel outside.

    Parameters
    ----------
    mask
        Shape (i, j, k); everything beyond the edge of the volume is outside.
    grid
        Voxel size.

    Returns
    -------
    Volume
        In mm, 0 outside the mask, shape (i, j, k), on the device of the mask.
    """
    depth = distance_inside(np.pad(mask.cpu().numpy(), 1), grid)
    return torch.from_numpy(depth[1:-1, 1:-1, 1:-1].astype(np.float32)).to(mask.device)


def distance_inside(mask: _Inside, grid: Grid) -> _Image:
    """Distance transform in mm to the nearest voxel outside the mask; beyond the volume counts as inside."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    distance = np.zeros(mask.shape)
    if mask.any():
        box = _box_around(mask)
        distance[box] = ndimage.distance_transform_edt(mask[box], sampling=grid.voxel_mm)
    return distance


def dilated(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological dilation with a ball: voxels at most a radius away from the mask."""
    reach = [int(min(radius_mm / edge, _LARGEST_REACH + 1)) for edge in grid.voxel_mm]
    if max(reach) > _LARGEST_REACH:
        near: _Inside = distance_inside(~mask, grid) <= radius_mm
        return near
    grown = np.zeros_like(mask)
    if mask.any():
        box = _box_around(mask, reach)
        grown[box] = _swept(mask[box], radius_mm, reach, grid)
    return grown


def eroded(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological erosion with a ball: voxels more than a radius inside; beyond the volume is inside."""
    kept = mask.copy()
    if mask.any():
        box = _box_around(mask)
        kept[box] = ~dilated(~mask[box], radius_mm, grid)
    return kept


def _box_around(mask: _Inside, margin: Sequence[int] = (1, 1, 1)) -> tuple[slice, ...]:
    """Bounding box with a margin; with one voxel it contains the nearest voxels outside."""
    lines = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(
        slice(max(int(at[0]) - more, 0), int(at[-1]) + 1 + more)
        for at, more in zip(lines, margin, strict=True)
    )


def _swept(mask: _Inside, radius_mm: float, reach: Sequence[int], grid: Grid) -> _Inside:
    """Union of the copies of a mask at all offsets in a ball.

    Within a border of zeros as wide as the ball, an offset in voxels is a shift of the flat array.
    """
    i_mm, j_mm, k_mm = grid.voxel_mm
    padded = np.pad(mask, [(n, n) for n in reach])
    _, rows, columns = padded.shape
    shifts: dict[int, list[int]] = {}
    for i, j in itertools.product(range(-reach[0], reach[0] + 1), range(-reach[1], reach[1] + 1)):
        square_mm2 = (i * i_mm) ** 2 + (j * j_mm) ** 2
        height = sum(math.sqrt(square_mm2 + (k * k_mm) ** 2) <= radius_mm for k in range(reach[2] + 1)) - 1
        shifts.setdefault(height, []).append((i * rows + j) * columns)
    start = padded.ravel()
    line, swept = start.copy(), np.zeros_like(start)
    for k in range(reach[2] + 1):
        if k:
            line[k:] |= start[:-k]
            line[:-k] |= start[k:]
        for shift in shifts.get(k, ()):
            to, source = (swept[shift:], line) if shift >= 0 else (swept, line[-shift:])
            to[: len(source)] |= source[: len(to)]
    inner = tuple(slice(n, n + size) for n, size in zip(reach, mask.shape, strict=True))
    return np.asarray(swept.reshape(padded.shape)[inner])


def closing(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological closing with a ball."""
    closed: _Inside = mask | eroded(dilated(mask, radius_mm, grid), radius_mm, grid)
    return closed


def closed_and_filled(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological closing with a ball, then hole filling."""
    return np.asarray(ndimage.binary_fill_holes(closing(mask, radius_mm, grid)))


def largest_component(mask: _Inside) -> _Inside:
    """Largest connected component of a mask; face neighbours are connected."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: _Inside = mask & (parts == int(np.argmax(sizes)))
    return largest
