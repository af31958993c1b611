from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.simulation.refine import overlaps, pool, refined, upsampled


def ball(n: int = 24, radius: float = 8.0) -> np.ndarray:
    at = np.arange(n) - (n - 1) / 2
    square = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2
    labels = np.ones((n, n, n), dtype=np.int16)
    labels[square < radius**2] = 700
    return labels


def test_a_ball_of_voxels_becomes_a_ball():
    labels, radius = ball(), 8.0
    fine = refined(labels, (4, 4, 4))
    at = (np.arange(96) + 0.5) / 4 - 0.5 - 11.5
    distance = np.sqrt(at[:, None, None] ** 2 + at[:, None] ** 2 + at**2)
    stairs = np.kron(labels, np.ones((4, 4, 4), dtype=np.int16))
    wrong = [int(((each == 700) != (distance < radius)).sum()) for each in (fine, stairs)]
    assert wrong[0] < 0.6 * wrong[1]
    assert (fine == 700).sum() / 64 == pytest.approx((labels == 700).sum(), rel=0.03)


def test_a_plane_stays_where_it_is_and_labels_stay_a_partition():
    labels = np.full((10, 12, 14), 3, dtype=np.int16)
    labels[:, 5:] = 41
    labels[:, :, 9:] = 2
    fine = refined(labels, (2, 3, 2))
    assert fine.shape == (20, 36, 28)
    np.testing.assert_array_equal(fine[:, :, :10], np.kron(labels, np.ones((2, 3, 2)))[:, :, :10])
    assert set(np.unique(fine)) == {2, 3, 41}


def test_a_sheet_of_one_voxel_survives():
    labels = np.ones((9, 9, 9), dtype=np.int16)
    labels[4] = 2
    assert (refined(labels, (2, 2, 2)) == 2).sum() >= 0.9 * 8 * 81


def test_refining_by_one_changes_nothing():
    labels = ball(8, 3.0)
    assert refined(labels, (1, 1, 1)) is labels


def test_a_linear_map_stays_linear():
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (6, 7, 8)), indexing="ij")
    fine = upsampled(i - 2 * j + 3 * k, (2, 3, 4))
    at = [(torch.arange(n * f) + 0.5) / f - 0.5 for n, f in zip((6, 7, 8), (2, 3, 4), strict=True)]
    expected = at[0][:, None, None] - 2 * at[1][:, None] + 3 * at[2]
    torch.testing.assert_close(fine[2:-2, 3:-3, 4:-4], expected[2:-2, 3:-3, 4:-4])


@pytest.mark.parametrize("new_mm", [0.7, 1.0, 1.9])
def test_averaging_keeps_the_total(new_mm):
    volume = torch.rand(11, 9, 10, generator=torch.Generator().manual_seed(0))
    new = [int(np.ceil((2.0 + 0.5 * n) / new_mm)) + 1 for n in volume.shape]
    weights = [overlaps(n, 0.5, m, new_mm, start_mm=2.0) for n, m in zip(volume.shape, new, strict=True)]
    assert float(pool(volume, weights).sum()) * new_mm**3 == pytest.approx(float(volume.sum()) / 8, rel=1e-5)


def test_a_head_is_continued_to_where_the_grid_ends():
    weights = overlaps(5, 1.0, 2, 3.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    torch.testing.assert_close(weights[1], torch.tensor([0, 0, 0, 1 / 3, 2 / 3]))
