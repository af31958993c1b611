"""Head orientations: registration over 30°, flipped scans, B0 and maps on the grid of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.preprocessing.head_orientation import (
    PoseConfig,
    angle_deg,
    b0_in_reference,
    find_pose,
    noise_gain,
    to_reference,
)
from chisep.simulation.motion import rigid, rotation
from chisep.types import Grid

SHAPE, EDGE = (46, 54, 46), 4.0
AFFINE = np.diag([EDGE, EDGE, EDGE, 1.0])
AFFINE[:3, 3] = [-90.0, -120.0, -70.0]


def scan(seed=0, echoes=3):
    """Three echoes of an asymmetric head with smooth random tissue, and its brain mask."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.indices(SHAPE)).astype(float)
    centre = np.array([22.5, 26.0, 23.0])
    radius = sum(((p - c) / r) ** 2 for p, c, r in zip(place, centre, (16, 19, 15), strict=True))
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.6)
    texture /= texture.std()
    brain = radius < 1
    head = (radius < 1.4) * (1.0 + 0.25 * texture)
    decay = 0.35 + 0.1 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.6) / 0.1
    images = [head * np.exp(-echo * np.clip(decay, 0.1, 0.8)) for echo in range(echoes)]
    return torch.from_numpy(np.stack(images).astype(np.float32)), torch.from_numpy(brain)


def seen_after(images, mask, motion, affine):
    """The same head after a motion, on another grid."""
    pull = np.linalg.inv(AFFINE) @ np.linalg.inv(motion) @ affine

    def move(volume, order):
        return ndimage.affine_transform(volume, pull[:3, :3], pull[:3, 3], order=order, mode="nearest")

    moved = np.stack([move(image.numpy(), 3) for image in images])
    noise = np.random.default_rng(1).normal(0, 0.01, moved.shape)
    inside = move(mask.numpy().astype(np.float32), 1) > 0.5
    return torch.from_numpy(np.abs(moved + noise).astype(np.float32)), torch.from_numpy(inside)


CENTRE = (AFFINE @ [22.5, 26.0, 23.0, 1.0])[:3]


@pytest.mark.parametrize(
    ("shift_mm", "angles_deg"),
    [((12.0, -9.0, 15.0), (30.0, 4.0, -6.0)), ((-6.0, 4.0, 2.0), (-3.0, -31.0, 8.0))],
)
def test_motions_of_thirty_degrees_are_found(shift_mm, angles_deg):
    images, brain = scan()
    motion = rigid(shift_mm, angles_deg, CENTRE.tolist())
    slab = AFFINE.copy()
    turn = rotation((5.0, -4.0, 6.0))
    slab[:3, :3] = turn @ AFFINE[:3, :3]
    slab[:3, 3] = CENTRE + shift_mm - slab[:3, :3] @ [22.5, 26.0, 23.0]
    moved, mask = seen_after(images, brain, motion, slab)
    found = find_pose(moved, slab, mask, images, AFFINE, brain, PoseConfig(points=20_000))
    assert found.rigid.found
    assert not found.mirrored
    wrong = np.eye(4)
    wrong[:3, :3] = found.rigid.fixed_to_moving_mm[:3, :3] @ motion[:3, :3].T
    assert angle_deg(wrong) < 0.5
    off = (found.rigid.fixed_to_moving_mm - motion) @ [*CENTRE, 1.0]
    assert np.linalg.norm(off) < 0.3


def test_a_flipped_scan_is_recognised():
    images, brain = scan()
    flipped = images.flip(1)
    found = find_pose(flipped, AFFINE, brain.flip(0), images, AFFINE, brain, PoseConfig(points=20_000))
    assert found.mirrored


def test_another_head_is_not_registered():
    images, brain = scan()
    other, mask = scan(seed=5)
    found = find_pose(other, AFFINE, mask, images, AFFINE, brain, PoseConfig(points=20_000))
    assert not found.rigid.found
    assert not found.mirrored


def test_b0_is_that_of_the_head_and_scan_axes_do_not_matter():
    reference = Grid(SHAPE, (EDGE,) * 3, (0.0, 0.0, 1.0), AFFINE)
    turn = rotation((0.0, 0.0, 40.0))
    slab = AFFINE.copy()
    slab[:3, :3] = turn @ AFFINE[:3, :3]
    b0_in_slab = tuple(float(b) for b in turn.T @ [0, 0, 1])
    scan_grid = Grid(SHAPE, (EDGE,) * 3, b0_in_slab, slab)
    motion = rigid((3.0, 2.0, 1.0), (25.0, 0.0, 0.0), CENTRE.tolist())
    found = b0_in_reference(scan_grid, motion, reference)
    np.testing.assert_allclose(found, rotation((25.0, 0.0, 0.0)).T @ [0, 0, 1], atol=1e-12)
    flipped = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = Grid(SHAPE, (EDGE,) * 3, (0.0, 0.0, 1.0), flipped)
    turned = b0_in_reference(Grid(SHAPE, (EDGE,) * 3, (0.0, 0.0, 1.0), AFFINE), motion, mirrored)
    np.testing.assert_allclose(turned, np.array(found) * [-1, 1, 1], atol=1e-12)


def test_maps_come_to_the_reference_without_ringing_at_the_edge():
    _, brain = scan()
    grid = Grid(SHAPE, (EDGE,) * 3, (0.0, 0.0, 1.0), AFFINE)
    level = torch.where(brain, 7.0, -50.0)
    motion = rigid((5.0, 3.0, -4.0), (20.0, 0.0, 10.0), CENTRE.tolist())
    moved, known = to_reference(level, brain, grid, grid, motion)
    assert float(moved[known].min()) == pytest.approx(7.0, abs=0.01)
    assert float(moved[known].max()) == pytest.approx(7.0, abs=0.01)
    assert not moved[~known].any()
    assert float(known.sum()) == pytest.approx(float(brain.sum()), rel=0.05)


def test_noise_that_splines_remove_is_measured():
    _, brain = scan()
    grid = Grid(SHAPE, (EDGE,) * 3, (0.0, 0.0, 1.0), AFFINE)
    assert noise_gain(grid, grid, np.eye(4), brain) == pytest.approx(1.0, abs=0.01)
    half = rigid((EDGE / 2, EDGE / 2, EDGE / 2), (0.0, 0.0, 0.0), CENTRE.tolist())
    assert 0.5 < noise_gain(grid, grid, half, brain) < 0.8
