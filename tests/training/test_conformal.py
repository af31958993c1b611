"""Factors from scales to standard deviations."""

from __future__ import annotations

import pytest
import torch

from chisep.networks.uncertainty import factor_at
from chisep.training.conformal import COVERAGE, SIGMAS, factors_of


def coverage(ratio, factors, level):
    return float((ratio <= SIGMAS * factor_at(factors, level)).float().mean())


def test_one_factor_holds_the_share():
    ratio = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) ** 3
    factor = factors_of(ratio, None)
    assert isinstance(factor, float)
    assert coverage(ratio, factor, 0.01) == pytest.approx(COVERAGE, abs=1e-3)


def test_scans_of_any_noise_are_held_alike():
    """Errors that grow with the noise by more than the predicted uncertainty."""
    generator = torch.Generator().manual_seed(1)
    counts = 2500 * torch.tensor([2, 2, 2, 2, 1, 1])
    levels = torch.tensor([0.002, 0.004, 0.008, 0.016, 0.032, 0.064]).repeat_interleave(counts)
    ratio = 100 * levels * torch.randn(len(levels), generator=generator).abs()
    factors = factors_of(ratio, levels)
    assert [noise for noise, _ in factors] == sorted({noise for noise, _ in factors})
    for level in levels.unique().tolist():
        assert coverage(ratio[levels == level], factors, level) == pytest.approx(COVERAGE, abs=0.02)


def test_scans_of_one_noise_have_one_factor():
    ratio = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    ((noise, factor),) = factors_of(ratio, torch.full((1000,), 0.01))
    assert noise == pytest.approx(0.01)
    assert factor == pytest.approx(factors_of(ratio, None))
