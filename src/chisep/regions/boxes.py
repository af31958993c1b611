"""Boxes of voxels around a mask, in which work is done instead of on the whole grid."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
from jaxtyping import Bool

from chisep.types import Affine

Box = tuple[slice, slice, slice]
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""


def box_around(mask: MaskArray, affine: Affine, margin_mm: float = 0.0) -> Box:
    """Smallest box of a mask with a margin, within the grid.

    Parameters
    ----------
    mask
        Not empty, shape (i, j, k).
    affine
        Voxel index to mm, shape (4, 4).
    margin_mm
        Space around the mask, in whole voxels.
    """
    parts = []
    for axis, edge in enumerate(np.linalg.norm(affine[:3, :3], axis=0)):
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        margin = math.ceil(margin_mm / edge)
        parts.append(
            slice(max(int(inside[0]) - margin, 0), min(int(inside[-1]) + margin + 1, mask.shape[axis]))
        )
    i, j, k = parts
    return i, j, k


def with_corner(affine: Affine, box: tuple[slice, ...]) -> Affine:
    """Affine of a box of voxels."""
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, [part.start for part in box])
    return moved
