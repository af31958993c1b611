"""Head orientation and motion between scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage

from chisep.simulation.tissue import Tissue
from chisep.types import Affine, Volume

ORIENTATION_TILTS_DEG = (
    (0.0, 0.0, 0.0),
    (30.0, 0.0, 0.0),
    (0.0, 30.0, 0.0),
    (-30.0, 0.0, 0.0),
    (0.0, -30.0, 0.0),
    (21.0, -21.0, 0.0),
)
"""Rotation of the head about the scanner's x, y and z axis, in degrees, in up to six scans: the range
of volunteers in a head coil. The first three determine χ; all six do so with two thirds of their noise.
"""

Point = Float[np.ndarray, "3"]
"""World coordinates of a point in mm."""
Rotation = Float[np.ndarray, "3 3"]
"""Rotation matrix in world axes."""

_MARGIN_MM = 12.0
"""Skull and scalp around the brain that the field of view of a turned slab has at least."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a head lies in a scan, and the grid of that scan.

    Parameters
    ----------
    transform
        World mm of a point of the head in the first scan to its world mm in this one, shape (4, 4).
    affine
        Voxel index of this scan to world mm, shape (4, 4).
    shape
        Its number of voxels.
    """

    transform: Affine
    affine: Affine
    shape: tuple[int, int, int]

    def finer(self, factor: int) -> Pose:
        """Return the same field of view with voxels that are smaller by a factor."""
        affine = self.affine.copy()
        affine[:3, :3] /= factor
        affine[:3, 3] -= affine[:3, :3].sum(1) * (factor - 1) / 2
        i, j, k = (n * factor for n in self.shape)
        return Pose(self.transform, affine, (i, j, k))

    def seen(self, volume: Volume, affine: Affine, *, order: int = 3) -> Volume:
        """Resample a volume of the head in its first position to this scan; beyond its edge the last value.

        Parameters
        ----------
        volume
            On the grid of the head, shape (a, b, c).
        affine
            Its voxel index to world mm, shape (4, 4).
        order
            Of the spline.
        """
        return _pulled(
            volume, np.linalg.inv(affine) @ np.linalg.inv(self.transform) @ self.affine, self.shape, order
        )

    def here(self, volume: Volume, affine: Affine) -> Volume:
        """Resample a volume that stays with the scanner, such as a coil; arguments as of `seen`."""
        return _pulled(volume, np.linalg.inv(affine) @ self.affine, self.shape, 1)


def _pulled(volume: Volume, back: Affine, shape: tuple[int, int, int], order: int) -> Volume:
    image = ndimage.affine_transform(
        volume.numpy(), back[:3, :3], back[:3, 3], output_shape=shape, order=order, mode="nearest"
    )
    return torch.from_numpy(image)


def random_pose(
    tissue: Tissue,
    tilt_deg: Sequence[float],
    shift_sd_mm: float,
    turn_sd_deg: float,
    slab_sd_deg: float,
    rng: np.random.Generator,
) -> Pose:
    """Draw head position and slab of one scan.

    Parameters
    ----------
    tissue
        The head in its first position, on the voxels of the scan.
    tilt_deg
        Intended rotation of the head about the scanner's x, y and z axis.
    shift_sd_mm, turn_sd_deg
        SD of the shift along, and of the further rotation about, each axis.
    slab_sd_deg
        SD of the rotation of the slab about each axis.
    rng
        Draws all of them.

    Returns
    -------
    Pose
        Its field of view follows the brain, and is enlarged where the tilted brain needs it.
    """
    shift_mm, turn_deg, slab_deg = (
        sd * rng.standard_normal(3) for sd in (shift_sd_mm, turn_sd_deg, slab_sd_deg)
    )
    centre = brain_centre_mm(tissue)
    transform = np.eye(4)
    transform[:3, :3] = rotation(turn_deg.tolist()) @ rotation(tilt_deg)
    transform[:3, 3] = centre + shift_mm - transform[:3, :3] @ centre
    first = tissue.grid.matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation(slab_deg.tolist()) @ first[:3, :3]
    middle = (np.asarray(tissue.grid.shape) - 1) / 2
    from_brain = first[:3, :3] @ middle + first[:3, 3] - centre
    about = centre + shift_mm + rotation(slab_deg.tolist()) @ from_brain
    brain = tissue.mask.nonzero().double().numpy() @ first[:3, :3].T + first[:3, 3]
    moved_brain = brain @ transform[:3, :3].T + transform[:3, 3]
    reach = np.abs((moved_brain - about) @ np.linalg.inv(affine[:3, :3]).T).max(0)
    margin = _MARGIN_MM / np.asarray(tissue.grid.voxel_mm)
    needed = [math.ceil(2 * (r + m)) for r, m in zip(reach, margin, strict=True)]
    i, j, k = (max(n, own) for n, own in zip(needed, tissue.grid.shape, strict=True))
    affine[:3, 3] = about - affine[:3, :3] @ ((np.asarray((i, j, k)) - 1) / 2)
    return Pose(transform, affine, (i, j, k))


def rotation(angles_deg: Sequence[float]) -> Rotation:
    """Rotation matrix about the world's x, then y, then z axis by angles in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(angles_deg, dtype=np.float64))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[a, b], [a, b]] = np.cos(angle)
        step[b, a], step[a, b] = np.sin(angle), -np.sin(angle)
        matrix = step @ matrix
    return matrix


def rigid(shift_mm: Sequence[float], angles_deg: Sequence[float], centre_mm: Sequence[float]) -> Affine:
    """Rigid transform of world coordinates: a rotation about a centre, then a shift; shape (4, 4)."""
    transform = np.eye(4)
    transform[:3, :3] = rotation(angles_deg)
    centre = np.asarray(centre_mm, dtype=np.float64)
    transform[:3, 3] = centre - transform[:3, :3] @ centre + np.asarray(shift_mm, dtype=np.float64)
    return transform


def random_rigid(tissue: Tissue, shift_sd_mm: float, angle_sd_deg: float, rng: np.random.Generator) -> Affine:
    """Draw a rigid transform about the centre of the brain; both standard deviations are per axis."""
    shift_mm, angles_deg = shift_sd_mm * rng.standard_normal(3), angle_sd_deg * rng.standard_normal(3)
    return rigid(shift_mm.tolist(), angles_deg.tolist(), brain_centre_mm(tissue).tolist())


def brain_centre_mm(tissue: Tissue) -> Point:
    """World coordinates of the centre of the brain mask."""
    affine = tissue.grid.matrix()
    index = tissue.mask.nonzero().double().mean(0).numpy()
    return np.asarray(affine[:3, :3] @ index + affine[:3, 3])


def moved(volume: Volume, affine: Affine, transform: Affine) -> Volume:
    """Resample a volume after a rigid motion of its content, on the same grid.

    Parameters
    ----------
    volume
        Before the motion.
    affine
        Voxel index to world mm, shape (4, 4).
    transform
        World coordinates in mm before the motion to those after it, shape (4, 4).

    Returns
    -------
    Volume
        By cubic splines; values beyond the volume are those of its border.
    """
    if np.array_equal(transform, np.eye(4)):
        return volume
    back = np.linalg.inv(affine) @ np.linalg.inv(transform) @ affine
    image = ndimage.affine_transform(volume.numpy(), back[:3, :3], back[:3, 3], order=3, mode="nearest")
    return torch.from_numpy(image)


def reoriented(tissue: Tissue, tilt_deg: Sequence[float]) -> Tissue:
    """Rotate the head relative to B0; voxels stay, only the B0 direction of the grid changes.

    Parameters
    ----------
    tissue
        In the head orientation of the first scan, whose affine it keeps.
    tilt_deg
        Rotation of the head about the scanner's x, y and z axis in degrees, in this order.

    Returns
    -------
    Tissue
        As seen after registration to the first scan.
    """
    return turned(tissue, rotation(tilt_deg))


def turned(tissue: Tissue, matrix: Rotation) -> Tissue:
    """Rotate the head relative to B0 as `reoriented`, by a rotation matrix in world axes."""
    affine = tissue.grid.matrix()
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = np.linalg.solve(axes, matrix.T @ np.array([0.0, 0.0, 1.0]))
    return replace(tissue, grid=replace(tissue.grid, b0_direction=(float(i), float(j), float(k))))
