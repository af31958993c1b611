"""Planes through a volume in radiological convention.

Volumes are shown in the anatomical axes closest to their affine: the patient's right is at the left of
coronal and axial planes, the face is at the left of sagittal planes. Nothing is resampled, so the planes of
an oblique volume follow its own voxel axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from chisep.report.figures.style import MaskArray
from chisep.types import Affine

SIDES = (("A", "P"), ("R", "L"), ("R", "L"))
"""Left and right end of the sagittal, the coronal and the axial plane."""

MARGIN_MM = 8.0
"""Space around the brain."""


@dataclass(frozen=True, eq=False)
class View:
    """Orientation of a grid and, in RAS+ axes, its voxel edges, the field of view and the plane positions.

    Parameters
    ----------
    orientation
        As `nibabel.io_orientation` gives it.
    voxel_mm
        Voxel edges in mm.
    box
        Field of view in voxels.
    index
        Position of the sagittal, the coronal and the axial plane.
    """

    orientation: NDArray[Any]
    voxel_mm: tuple[float, ...]
    box: tuple[slice, ...]
    index: tuple[int, ...]

    def plane(self, volume: NDArray[Any], axis: int) -> NDArray[Any]:
        """Plane across an axis, rows from top to bottom and columns from left to right of the picture."""
        turned = nib.apply_orientation(volume, self.orientation)
        part: list[slice | int] = list(self.box)
        part[axis] = self.index[axis]
        # Superior (or anterior) is up; right (or anterior) is left: both axes run against the picture's.
        picture: NDArray[Any] = turned[tuple(part)][::-1, ::-1].T
        return picture

    def size_mm(self, axis: int) -> tuple[float, float]:
        """Width and height of the plane across an axis."""
        edges = [(s.stop - s.start) * mm for s, mm in zip(self.box, self.voxel_mm, strict=True)]
        del edges[axis]
        return edges[0], edges[1]


def view_of(
    shape: tuple[int, ...], affine: Affine, mask: MaskArray | None, position: Sequence[int] | None = None
) -> View:
    """Field of view around the mask, planes through its centre of mass.

    Parameters
    ----------
    shape
        Of the volume.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Region to show; None or an empty one shows the whole volume.
    position
        Voxel (i, j, k) that the planes pass through instead of the centre.
    """
    orientation = nib.io_orientation(affine)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    axes = []
    for axis, (n, edge) in enumerate(zip(shape, edges, strict=True)):
        first, last, centre = _extent(mask, axis, n)
        if position is not None:
            centre = float(position[axis])
        target, flip = orientation[axis]
        if flip < 0:
            first, last, centre = n - 1 - last, n - 1 - first, n - 1 - centre
        cut, margin = math.floor(centre + 0.5), math.ceil(MARGIN_MM / edge)
        low, high = max(min(first - margin, cut), 0), min(max(last + margin, cut), n - 1)
        axes.append((int(target), float(edge), slice(low, high + 1), cut))
    _, voxel_mm, box, index = zip(*sorted(axes, key=lambda entry: entry[0]), strict=True)
    return View(orientation, voxel_mm, box, index)


def centre_of_mass(mask: MaskArray) -> list[int] | None:
    """Voxel at the centre of mass of a mask; None if it is empty."""
    return [round(_extent(mask, axis, n)[2]) for axis, n in enumerate(mask.shape)] if mask.any() else None


def _extent(mask: MaskArray | None, axis: int, length: int) -> tuple[int, int, float]:
    """First index, last index and mean index of a mask along an axis; of the whole axis without a mask."""
    if mask is None or not mask.any():
        return 0, length - 1, (length - 1) / 2
    counts = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
    inside = np.flatnonzero(counts)
    return int(inside[0]), int(inside[-1]), float(counts @ np.arange(length) / counts.sum())
