"""Morphology of masks in mm: distance, closing, largest connected component."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.types import Grid, MaskVolume, Volume

_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]


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
        # The nearest voxel outside lies in the bounding box or next to it.
        lines = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(max(int(at[0]) - 1, 0), int(at[-1]) + 2) for at in lines)
        distance[box] = ndimage.distance_transform_edt(mask[box], sampling=grid.voxel_mm)
    return distance


def closing(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological closing with a ball."""
    if not mask.any():
        return mask
    grown = distance_inside(~mask, grid) <= radius_mm
    return mask | (distance_inside(grown, grid) > radius_mm)


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
