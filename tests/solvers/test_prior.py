"""Iterative separation and total variation with an estimate and its standard deviations as prior."""

from __future__ import annotations

import pytest
import torch

from chisep.errors import InputError
from chisep.solvers import iterative, tv
from chisep.types import Relaxivity, Sources, Susceptibility
from tests.solvers.head import make_head

HEAD = make_head((18, 20, 16))
MAPS = HEAD.maps(Relaxivity(114.0, 91.2), field_noise_ppm=1e-3)
INSIDE = MAPS.mask
CONFIG = iterative.IterativeConfig(iterations=150)
TV = tv.TvConfig(iterations=150)


def prior(off: float, sigma: float) -> Sources:
    """True sources, all wrong by the same number."""
    ones = torch.ones_like(MAPS.field_ppm)
    truth = (HEAD.chi_pos_ppm, HEAD.chi_neg_ppm)
    made = [(x + off) * INSIDE for x in truth]
    return Sources(*made, chi_pos_sigma_ppm=sigma * ones, chi_neg_sigma_ppm=sigma * ones)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other)[INSIDE].square().mean().sqrt())


def test_a_precise_prior_stays():
    """Right by its own word: the data say nothing else."""
    given = prior(0.0, 1e-3)
    made = iterative.solve(MAPS, CONFIG, prior=given)
    assert distance(made.chi_pos_ppm, given.chi_pos_ppm) < 2e-3
    assert torch.equal(made.chi_pos_sigma_ppm, given.chi_pos_sigma_ppm)


def test_a_vague_prior_changes_nothing():
    alone = iterative.solve(MAPS, CONFIG)
    made = iterative.solve(MAPS, CONFIG, prior=prior(0.02, 100.0))
    assert distance(made.chi_pos_ppm, alone.chi_pos_ppm) < 1e-3
    assert distance(made.chi_neg_ppm, alone.chi_neg_ppm) < 1e-3


def test_total_variation_has_a_prior_too():
    chi = (HEAD.chi_pos_ppm - HEAD.chi_neg_ppm) * INSIDE
    ones = torch.ones_like(chi)
    precise = tv.solve(MAPS, TV, prior=Susceptibility(chi, chi_sigma_ppm=1e-3 * ones))
    assert distance(precise.chi_ppm, chi) < 2e-3
    alone = tv.solve(MAPS, TV)
    vague = tv.solve(MAPS, TV, prior=Susceptibility(0 * chi, chi_sigma_ppm=100 * ones))
    assert distance(vague.chi_ppm, alone.chi_ppm) < 0.1 * distance(alone.chi_ppm, chi)
    assert torch.equal(precise.chi_sigma_ppm, 1e-3 * ones)


def test_a_prior_needs_standard_deviations():
    with pytest.raises(InputError, match="σ"):
        iterative.solve(MAPS, CONFIG, prior=Sources(MAPS.field_ppm, MAPS.field_ppm))
