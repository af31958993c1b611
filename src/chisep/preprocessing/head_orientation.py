"""Head orientations: rigid registration of one to another, B0 as the head sees it, maps on one grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from chisep.preprocessing.registration import MovingEchoes, RegistrationConfig, Rigid, register
from chisep.preprocessing.resampling import resample_to
from chisep.types import Affine, Echoes, Grid, MaskVolume, Volume

_STEP_DEG = 25.0
_SURE_CONTRAST, _BETTER_BY = 0.8, 0.1
"""Shared contrast from which a mirror image is not tried, and by how much it has to be better."""
_CONTINUED_VOXELS = 8
"""Splines of order 5 ring by 0.43 from voxel to voxel."""
_KNOWN = 0.5


@dataclass(frozen=True)
class PoseConfig(RegistrationConfig):
    """Settings of the registration of one head orientation to another."""

    smoothing_mm: tuple[float, ...] = (8.0, 4.0)
    """SD in mm of the Gaussian that smooths both images, coarse to fine; the last level, half the edge of a
    cube as large as a voxel, is added automatically."""
    max_shift_mm: float = 80.0
    """Largest shift of the brain's centre that is accepted."""
    max_rotation_deg: float = 70.0
    """Largest rotation that is accepted."""


@dataclass(frozen=True, eq=False)
class HeadPose:
    """Where the head lies in one scan, relative to the reference.

    Parameters
    ----------
    rigid
        Motion from the reference to the scan; not `found` if the registration failed.
    mirrored
        Whether the mirror image of the scan fits: its left and right are exchanged.
    """

    rigid: Rigid
    mirrored: bool = False


def find_pose(
    moving: MovingEchoes,
    moving_affine: Affine,
    moving_mask: MaskVolume,
    fixed: Echoes,
    fixed_affine: Affine,
    mask: MaskVolume,
    config: PoseConfig | None = None,
    *,
    length_scale: float = 1.0,
) -> HeadPose:
    """Rigid registration of two head orientations that may lie far from each other.

    Parameters
    ----------
    moving, moving_affine, moving_mask
        Echoes (magnitude) of the scan, shape (echo, a, b, c), its voxel index to world mm, its brain mask.
    fixed, fixed_affine, mask
        The same of the reference, of shape (echo, i, j, k).
    config
        Settings; defaults where None.
    length_scale
        Length of the head relative to an adult's.

    Returns
    -------
    HeadPose
        First estimates are the centre of both masks with rotations of −25°, 0° and 25° about each axis.
    """
    config = config or PoseConfig()
    there, here = _centre_mm(moving_mask, moving_affine), _centre_mm(mask, fixed_affine)

    def registered(affine: Affine) -> Rigid:
        return register(
            moving,
            affine,
            fixed,
            fixed_affine,
            mask=mask,
            config=config,
            length_scale=length_scale,
            starts=_starts(here, there),
        )

    found = registered(moving_affine)
    if found.found and found.contrast >= _SURE_CONTRAST:
        return HeadPose(found)
    other = registered(_mirrored(moving_affine, moving_mask))
    own = found.contrast if found.found else 0.0
    return HeadPose(found, mirrored=other.found and other.contrast > own + _BETTER_BY)


def b0_in_reference(scan: Grid, transform: Affine, reference: Grid) -> tuple[float, float, float]:
    """Direction of B0 in voxel axes of the reference, as a head sees it that lies otherwise in a scan.

    Parameters
    ----------
    scan
        Grid of the scan, with B0 in its voxel axes.
    transform
        World mm of the head in the reference to world mm in the scan, shape (4, 4).
    reference
        Grid of the reference.
    """
    world = _axes(scan) @ np.asarray(scan.b0_direction)
    i, j, k = np.linalg.solve(_axes(reference), transform[:3, :3].T @ world)
    length = float(np.sqrt(i**2 + j**2 + k**2))
    return float(i) / length, float(j) / length, float(k) / length


def to_reference(
    volume: Volume,
    mask: MaskVolume,
    scan: Grid,
    reference: Grid,
    transform: Affine,
    *,
    linear: bool = False,
) -> tuple[Volume, MaskVolume]:
    """Resample a map that is known in a mask only to the grid of the reference.

    Parameters
    ----------
    volume, mask
        The map and where it is known, shape scan.shape.
    scan, reference
        Grids of the map and of the result.
    transform
        World mm of the reference to world mm of the scan, shape (4, 4).
    linear
        Linear interpolation, for maps that must not overshoot; splines of order 5 if False.

    Returns
    -------
    tuple of Volume and MaskVolume
        The map, 0 where it is not known, and where it is known, shape reference.shape. Beyond its mask the
        map is continued by the nearest known value first, so that the edge does not ring.
    """
    filled = continued(volume.cpu().numpy(), mask.cpu().numpy())
    affine = scan.matrix()
    found = resample_to(
        torch.from_numpy(filled)[None],
        affine,
        reference,
        transform=transform,
        interpolation="linear" if linear else "quintic",
    )[0]
    part = resample_to(
        mask.cpu().float()[None], affine, reference, transform=transform, interpolation="linear"
    )[0]
    known = part > _KNOWN
    return found * known, known


def noise_gain(scan: Grid, reference: Grid, transform: Affine, known: MaskVolume) -> float:
    """SD of white noise after the interpolation of `to_reference`, over that before: what splines remove.

    Parameters
    ----------
    scan, reference, transform
        As of `to_reference`.
    known
        Where it is measured, shape reference.shape.
    """
    noise = np.random.default_rng(0).standard_normal(scan.shape, dtype=np.float32)
    moved = resample_to(
        torch.from_numpy(noise)[None],
        scan.matrix(),
        reference,
        transform=transform,
        interpolation="quintic",
    )[0]
    return float(moved[known].std())


def angle_deg(transform: Affine) -> float:
    """Angle of a rigid transform about its axis, in degrees."""
    return float(np.degrees(Rotation.from_matrix(transform[:3, :3]).magnitude()))


def continued(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Continue a map beyond its mask by the nearest value, within a few voxels; 0 farther away.

    Parameters
    ----------
    volume, mask
        The map and where it is known, of one shape.
    """
    if mask.all() or not mask.any():
        return np.ascontiguousarray(volume)
    near = ndimage.binary_dilation(mask, iterations=_CONTINUED_VOXELS)
    where = np.nonzero(near)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in where)
    nearest = ndimage.distance_transform_edt(~mask[box], return_distances=False, return_indices=True)
    filled = np.zeros_like(volume)
    filled[box] = volume[box][tuple(nearest)]
    return filled


def _axes(grid: Grid) -> np.ndarray:
    matrix = grid.matrix()[:3, :3]
    return np.asarray(matrix / np.linalg.norm(matrix, axis=0))


def _centre_mm(mask: MaskVolume, affine: Affine) -> np.ndarray:
    index = mask.nonzero().double().mean(0).cpu().numpy()
    return np.asarray(affine[:3, :3] @ index + affine[:3, 3])


def _mirrored(affine: Affine, mask: MaskVolume) -> Affine:
    """Affine of a scan whose left and right are exchanged, about the centre of its mask.

    The voxel axis that is next to left-right is turned round, not world x: in a slab that is turned, the
    latter would also turn the head, maybe beyond the reach of the first estimates.
    """
    axis = int(np.abs(affine[0, :3]).argmax())
    flip = np.eye(4)
    flip[axis, axis] = -1
    flip[axis, 3] = 2 * float(mask.nonzero()[:, axis].double().mean())
    return np.asarray(affine @ flip)


def _starts(here: np.ndarray, there: np.ndarray) -> list[Affine]:
    """Rigid transforms that bring one centre to the other, with rotations about each axis."""
    starts = []
    for angles in itertools.product((0.0, -_STEP_DEG, _STEP_DEG), repeat=3):
        start = np.eye(4)
        start[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        start[:3, 3] = there - start[:3, :3] @ here
        starts.append(start)
    return starts
