"""Head orientation and motion between scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    affine = tissue.grid.matrix()
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = np.linalg.solve(axes, rotation(tilt_deg).T @ np.array([0.0, 0.0, 1.0]))
    return replace(tissue, grid=replace(tissue.grid, b0_direction=(float(i), float(j), float(k))))
