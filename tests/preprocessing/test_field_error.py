"""Error of the local field: what any estimate must do, and how true it is on a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.preprocessing.background import BackgroundConfig, LocalField, reliable_mask, remove_background
from chisep.preprocessing.morphology import depth_mm
from tests.preprocessing.test_background import METHODS, OUTSIDE, textured
from tests.preprocessing.test_vsharp import GRIDS, ball, field_of_sphere

GRID = GRIDS[1]


@pytest.fixture(scope="module")
def results() -> dict[str, LocalField]:
    """Local fields of one total field with noise of 1 ppb, by method."""
    mask = ball(GRID, 25)
    field = textured(GRID, mask) + field_of_sphere(GRID, **OUTSIDE)
    noise = torch.full(GRID.shape, 1e-3)
    return {
        method: remove_background(field, mask, GRID, BackgroundConfig(method), sigma_ppm=noise)
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_sigma_is_known_where_the_field_is_and_at_least_its_noise(results, method):
    found = results[method]
    assert torch.equal(found.sigma_ppm > 0, found.mask)
    assert float(found.sigma_ppm[found.mask].min()) >= 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_sigma_grows_to_the_edge(results, method):
    found = results[method]
    depth = depth_mm(ball(GRID, 25), GRID)[found.mask]
    sigma = found.sigma_ppm[found.mask]
    by_depth = [float(sigma[(depth > a) & (depth <= a + 4)].median()) for a in (1, 5, 9, 13)]
    assert by_depth == sorted(by_depth, reverse=True)
    assert by_depth[0] > 1.3 * by_depth[-1]


@pytest.mark.parametrize("method", METHODS)
def test_sigma_scales_with_field_and_noise(results, method):
    mask = ball(GRID, 25)
    field = textured(GRID, mask) + field_of_sphere(GRID, **OUTSIDE)
    twice = remove_background(
        2 * field, mask, GRID, BackgroundConfig(method), sigma_ppm=torch.full(GRID.shape, 2e-3)
    )
    torch.testing.assert_close(twice.sigma_ppm, 2 * results[method].sigma_ppm, rtol=1e-3, atol=1e-7)


def test_sigma_is_larger_where_the_field_at_the_edge_is_wrong():
    """A strong source in the outermost layers, such as blood in a sinus, misleads V-SHARP nearby."""
    mask = ball(GRID, 25)
    calm = textured(GRID, mask)
    centre = (0.0, 0.0, 22.0)
    wrong = calm + field_of_sphere(GRID, centre, 5.0, 0.5)
    before, after = (remove_background(field, mask, GRID).sigma_ppm for field in (calm, wrong))
    near = mask & ball(GRID, 10.0, centre)
    far = mask & ~ball(GRID, 25.0, centre)
    assert float((after / before)[near].median()) > 2 * float((after / before)[far].median())


def test_error_over_sigma_is_near_one_on_a_head(head):
    noise = 5e-4
    field = head.total_ppm + noise * torch.randn(head.grid.shape, generator=torch.Generator().manual_seed(0))
    found = remove_background(field, head.brain, head.grid, sigma_ppm=torch.full(head.grid.shape, noise))
    error = (found.local_field_ppm - head.local_ppm)[found.mask]
    ratio = ((error - error.mean()) / found.sigma_ppm[found.mask]).numpy()
    assert 0.3 < np.sqrt(np.mean(ratio**2)) < 1.5


def test_the_reliable_mask_is_where_sigma_is_small(results):
    found = results["vsharp"]
    reliable = reliable_mask(found, GRID)
    assert not (reliable & ~found.mask).any()
    assert 0.05 < float(reliable.sum() / found.mask.sum()) < 0.95
    assert found.sigma_ppm[reliable].max() < found.sigma_ppm[found.mask & ~reliable].max()


def test_a_field_of_zero_has_the_error_of_its_noise():
    mask, noise = ball(GRID, 25), torch.full(GRID.shape, 1e-3)
    found = remove_background(torch.zeros(GRID.shape), mask, GRID, sigma_ppm=noise)
    torch.testing.assert_close(found.sigma_ppm, noise * mask)
