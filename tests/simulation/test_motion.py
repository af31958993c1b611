from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.io.nifti import b0_direction_of
from chisep.simulation.anatomy import tilted
from chisep.simulation.motion import (
    ORIENTATION_TILTS_DEG,
    brain_centre_mm,
    moved,
    random_rigid,
    reoriented,
    rigid,
    rotation,
)


def blob(
    shape: tuple[int, int, int], affine: np.ndarray, centre_mm: np.ndarray, width_mm: float
) -> torch.Tensor:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return torch.from_numpy(np.exp(-(((world - centre_mm) / width_mm) ** 2).sum(-1))).float()


AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -30], [0, 0, 2.5, -40], [0, 0, 0, 1]])
SHAPE = (40, 40, 32)


def test_rotations_are_right_handed_and_in_order():
    np.testing.assert_allclose(rotation((90.0, 0.0, 0.0)) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation((0.0, 90.0, 0.0)) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((0.0, 0.0, 90.0)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(
        rotation((30.0, 40.0, 0.0)), rotation((0.0, 40.0, 0.0)) @ rotation((30.0, 0.0, 0.0))
    )


def test_a_rigid_transform_turns_about_its_centre_and_shifts_it():
    centre = np.array([3.0, -4.0, 5.0])
    transform = rigid((1.0, 2.0, 3.0), (10.0, -20.0, 30.0), centre.tolist())
    np.testing.assert_allclose(transform[:3, :3] @ centre + transform[:3, 3], centre + np.array([1, 2, 3]))
    np.testing.assert_allclose(transform[:3, :3] @ transform[:3, :3].T, np.eye(3), atol=1e-12)


def test_a_moved_image_shows_the_head_where_the_transform_takes_it():
    transform = rigid((4.0, -3.0, 2.0), (8.0, 5.0, -12.0), (0.0, 0.0, 0.0))
    place = np.array([6.0, 4.0, -5.0])
    image = moved(blob(SHAPE, AFFINE, place, 8.0), AFFINE, transform)
    expected = blob(SHAPE, AFFINE, transform[:3, :3] @ place + transform[:3, 3], 8.0)
    torch.testing.assert_close(image, expected, atol=3e-3, rtol=0)


def test_the_inverse_transform_brings_an_image_back():
    transform = rigid((1.3, -0.7, 2.1), (2.0, -3.0, 4.0), (0.0, 0.0, 0.0))
    image = blob(SHAPE, AFFINE, np.array([2.0, 1.0, 0.0]), 8.0)
    there = moved(image, AFFINE, transform)
    assert float((there - image).abs().max()) > 0.1
    torch.testing.assert_close(moved(there, AFFINE, np.linalg.inv(transform)), image, atol=3e-3, rtol=0)


def test_no_motion_changes_nothing(tissue):
    still = random_rigid(tissue, 0.0, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(still, np.eye(4))
    assert moved(tissue.m0, tissue.grid.matrix(), still) is tissue.m0


def test_random_motion_has_the_asked_spread_about_the_brain(tissue):
    rng = np.random.default_rng(0)
    drawn = [random_rigid(tissue, 2.0, 3.0, rng) for _ in range(300)]
    centre = brain_centre_mm(tissue)
    shifts = [t[:3, :3] @ centre + t[:3, 3] - centre for t in drawn]
    angles = [np.degrees(np.arcsin(t[2, 1])) for t in drawn]
    assert np.std(shifts) == pytest.approx(2.0, rel=0.1)
    assert np.std(angles) == pytest.approx(3.0, rel=0.15)


def test_six_directions_are_unit_and_distinct(tissue):
    directions = np.array([reoriented(tissue, tilt).grid.b0_direction for tilt in ORIENTATION_TILTS_DEG])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    np.testing.assert_allclose(directions[0], tissue.grid.b0_direction, atol=1e-12)
    apart = np.degrees(np.arccos(np.clip(directions @ directions.T, -1, 1)))
    assert apart[~np.eye(6, dtype=bool)].min() > 15
    assert apart.max() < 61


def test_a_reoriented_head_sees_b0_as_one_that_was_tilted(tissue, coarse):
    for tilt in ORIENTATION_TILTS_DEG[1:]:
        expected = b0_direction_of(tilted(coarse, tilt).affine)
        np.testing.assert_allclose(reoriented(tissue, tilt).grid.b0_direction, expected, atol=1e-9)
        assert reoriented(tissue, tilt).grid.affine is tissue.grid.affine
