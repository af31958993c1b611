"""Error of the local field: what any estimate must do, and how true it is on a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.preprocessing.background import BackgroundConfig, LocalField, reliable_mask, remove_background
from chisep.preprocessing.field_error import chi_of_holes
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


def test_a_hole_with_a_large_r2star_makes_sigma_larger_around_it():
    """Iron whose signal is lost: R2' says its susceptibility. Near the surface R2* is that of air as well."""
    brain, hole = ball(GRID, 25), ball(GRID, 4)
    surface = brain & ball(GRID, 3, (0.0, 0.0, 23.0))
    known = brain & ~hole & ~surface
    r2star = 20.0 * brain
    r2star[hole], r2star[surface] = 90.0, 90.0
    chi = chi_of_holes(known, brain, GRID, r2star, 7.0)
    torch.testing.assert_close(chi[hole], torch.full_like(chi[hole], 70 * 6 / 7 / (114 * 7 / 3)))
    assert not chi[~hole].any()
    field = textured(GRID, brain)
    without, with_iron = (
        remove_background(field, known, GRID, brain=brain, hole_chi_ppm=of_hole) for of_hole in (None, chi)
    )
    torch.testing.assert_close(with_iron.local_field_ppm, without.local_field_ppm)
    ratio = with_iron.sigma_ppm / without.sigma_ppm
    near, far = known & ball(GRID, 8), known & ~ball(GRID, 20)
    assert float(ratio[near].median()) > 1.25 > 1.1 > float(ratio[far].median())


def test_without_r2star_no_hole_is_a_strong_source():
    brain = ball(GRID, 25)
    assert not chi_of_holes(brain & ~ball(GRID, 4), brain, GRID, torch.zeros(GRID.shape), 3.0).any()


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
