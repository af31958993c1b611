"""Refinement of a network's estimate: whom to believe, the network or the maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn.functional import max_pool3d

from chisep.networks.brain_box import BrainBox
from chisep.networks.refinement import refined_chi, refined_sources
from chisep.physics.dipole import Dipole
from chisep.solvers import iterative
from chisep.types import Maps, Relaxivity, Sources, Susceptibility, Volume
from tests.solvers.head import make_head

HEAD = make_head((24, 26, 22))
INSIDE = HEAD.mask
ONES = torch.ones(HEAD.grid.shape) * INSIDE
CLEAN = HEAD.maps(Relaxivity(114.0, 91.2), field_noise_ppm=1e-3, r2prime_noise_ppm=5e-3)
MAPS = replace(CLEAN, field_sigma_ppm=1e-3 * ONES, r2prime_sigma_hz=114 * 5e-3 * ONES)
SIGMA = 5e-3 * ONES
WAVE = torch.sin(torch.arange(24.0) / 3)[:, None, None] * ONES
"""Alike in neighbouring voxels."""


def with_sigma(pos: Volume, neg: Volume, sigma: Volume) -> Sources:
    return Sources(pos, neg, chi_pos_sigma_ppm=sigma, chi_neg_sigma_ppm=sigma, chi_sigma_ppm=sigma)


def estimate(off_ppm: float) -> Sources:
    """True sources, both wrong by the same wave."""
    off = off_ppm * WAVE
    return with_sigma(HEAD.chi_pos_ppm + off, HEAD.chi_neg_ppm + off, SIGMA)


def error_ppm(made: Sources) -> float:
    return float((made.chi_pos_ppm - HEAD.chi_pos_ppm)[INSIDE].square().mean().sqrt())


def test_an_estimate_that_fits_is_the_prior_as_it_is():
    """All in the box of the brain, whose free-space dipole differs a little from that of the whole grid."""
    box = BrainBox(INSIDE, HEAD.grid)
    pos, neg, mask, sigma = map(box.cut, (HEAD.chi_pos_ppm, HEAD.chi_neg_ppm, INSIDE, SIGMA))
    noise = box.cut(MAPS.field_ppm - Dipole(HEAD.grid).apply(HEAD.chi_ppm) * INSIDE)
    maps = Maps(
        field_ppm=Dipole(box.grid).apply(pos - neg) * mask + noise,
        mask=mask,
        grid=box.grid,
        relaxivity=MAPS.relaxivity,
        r2prime_hz=box.cut(MAPS.r2prime_hz),
        field_sigma_ppm=box.cut(MAPS.field_sigma_ppm),
        r2prime_sigma_hz=box.cut(MAPS.r2prime_sigma_hz),
    )
    given = with_sigma(pos, neg, sigma)
    depth = distance_transform_edt(np.pad(mask.numpy(), 1), sampling=box.grid.voxel_mm)[1:-1, 1:-1, 1:-1]
    prior = replace(given, chi_neg_sigma_ppm=torch.where(torch.from_numpy(depth) <= 3, 0.3, 1.0) * sigma)
    config = iterative.IterativeConfig(iterations=20, tolerance=4e-3)
    wanted = iterative.solve(maps, config, prior=prior)
    made = refined_sources(maps, given, 20, None)
    torch.testing.assert_close(made.chi_pos_ppm, wanted.chi_pos_ppm, rtol=0, atol=2e-4)
    torch.testing.assert_close(made.chi_pos_sigma_ppm, 0.9 * sigma)
    assert made.convergence.warnings == ()


def test_residual_background_is_removed():
    """The field of a source beside the head, of the size of the local field, costs little."""
    beside = torch.zeros(HEAD.grid.shape)
    outside = ~(max_pool3d(INSIDE[None].float(), 5, stride=1, padding=2)[0] > 0)
    beside[(outside & (torch.arange(HEAD.grid.shape[0]) < 6)[:, None, None])] = 0.3
    background = Dipole(HEAD.grid).apply(beside) * INSIDE
    assert float(background[INSIDE].std()) > 3e-3
    given = estimate(0.002)
    errors = [
        error_ppm(
            refined_sources(replace(MAPS, field_ppm=MAPS.field_ppm + part * background), given, 40, None)
        )
        for part in (0.0, 1.0)
    ]
    assert errors[1] < 1.6 * errors[0]  # 2.2 if it stays


def test_an_estimate_that_misses_r2prime_counts_less_than_it_says():
    given = estimate(0.03)
    made = refined_sources(MAPS, given, 60, None)
    as_stated = iterative.solve(MAPS, iterative.IterativeConfig(iterations=60), prior=given)
    assert error_ppm(made) < 0.7 * error_ppm(as_stated)
    assert error_ppm(made) < 0.4 * error_ppm(given)


def test_sigma_is_that_of_the_solver_where_the_estimate_is_wrong():
    """The estimate is wrong by 30 ppb and states 5; the solver, which has hardly a prior then, by less."""
    made = refined_sources(MAPS, estimate(0.03), 120, None)
    for value, truth, sigma in (
        (made.chi_pos_ppm, HEAD.chi_pos_ppm, made.chi_pos_sigma_ppm),
        (made.chi_neg_ppm, HEAD.chi_neg_ppm, made.chi_neg_sigma_ppm),
        (made.chi_ppm, HEAD.chi_ppm, made.chi_sigma_ppm),
    ):
        error = (value - truth).abs()
        assert float((error <= 1.645 * sigma)[INSIDE].float().mean()) > 0.85
        assert float(sigma[INSIDE].square().mean() / error[INSIDE].square().mean()) < 9
    assert "tissue is unlike theirs" in made.convergence.warnings[0]
    again = refined_sources(MAPS, estimate(0.03), 120, None)
    assert torch.equal(again.chi_neg_sigma_ppm, made.chi_neg_sigma_ppm)


def test_chi_neg_at_the_surface_is_more_that_of_the_estimate():
    """The field is wrong in the surface layer by more than it states."""
    layer = INSIDE & (-max_pool3d(-ONES[None], 5, 1, 2)[0] < 1)
    wrong = replace(MAPS, field_ppm=MAPS.field_ppm + 0.02 * WAVE * layer)
    given = estimate(0.0)
    made = refined_sources(wrong, given, 20, None)
    as_stated = iterative.solve(wrong, iterative.IterativeConfig(iterations=20), prior=given)

    def at_the_surface(sources: Sources) -> float:
        return float((sources.chi_neg_ppm - HEAD.chi_neg_ppm)[layer].square().mean().sqrt())

    assert at_the_surface(made) < 0.6 * at_the_surface(as_stated)


def test_an_error_that_the_noise_map_does_not_state_is_not_explained_by_sources():
    """The estimate is right; the field has a smooth error ten times its noise."""
    wrong = replace(MAPS, field_ppm=MAPS.field_ppm + 0.01 * WAVE)
    given = estimate(0.0)
    made = refined_sources(wrong, given, 20, None)
    as_stated = iterative.solve(wrong, iterative.IterativeConfig(iterations=20), prior=given)
    assert error_ppm(made) < 0.7 * error_ppm(as_stated)


def test_r2prime_without_a_spin_echo_leaves_the_estimate():
    """Its error is one of R2, alike in whole regions, which σ states."""
    pseudo = replace(MAPS, r2prime_sigma_hz=4 * MAPS.r2prime_sigma_hz)
    given = estimate(0.01)
    seen = []
    made = refined_sources(pseudo, given, 20, lambda *done: seen.append(done))
    assert made is given
    assert seen == [("network", 1, 1)]


@pytest.mark.parametrize("edge", [3, 4])
def test_thin_volumes_are_refined_too(edge):
    thin = make_head((16, 18, edge))
    maps = thin.maps(Relaxivity(114.0, 114.0), field_noise_ppm=1e-3, r2prime_noise_ppm=5e-3)
    sigma = 5e-3 * torch.ones(thin.grid.shape)
    maps = replace(maps, field_sigma_ppm=0.2 * sigma, r2prime_sigma_hz=114 * sigma)
    given = with_sigma(thin.chi_pos_ppm, thin.chi_neg_ppm, sigma)
    assert torch.isfinite(refined_sources(maps, given, 3, None).chi_pos_ppm).all()


def test_chi_keeps_its_uncertainty():
    chi = HEAD.chi_ppm * INSIDE
    made = refined_chi(MAPS, Susceptibility(chi, chi_sigma_ppm=SIGMA), 20, None)
    assert torch.equal(made.chi_sigma_ppm, SIGMA)
    assert not torch.equal(made.chi_ppm, chi)
    assert float((made.chi_ppm - chi)[INSIDE].square().mean().sqrt()) < 0.01
