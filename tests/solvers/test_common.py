from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chisep.errors import InputError
from chisep.physics.operators import Gradient
from chisep.solvers._common import PaddedBox, check, edge_mask, ended, relative_change
from chisep.solvers.noise import known_noise, noise_sigma
from chisep.types import Grid


def random_mask(seed: int) -> torch.Tensor:
    mask = torch.zeros(20, 18, 22, dtype=torch.bool)
    mask[3:12, 5:18, 4:16] = True
    return mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) > 0.5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.25, 1.0]))
def test_cut_and_restore_are_inverse_in_the_mask(seed, padding):
    mask = random_mask(seed)
    padded = PaddedBox(mask, Grid((20, 18, 22), (1.0, 1.0, 1.0)), padding)
    volume = torch.randn(20, 18, 22, generator=torch.Generator().manual_seed(seed)) * mask
    assert torch.equal(padded.restore(padded.cut(volume)), volume)
    assert padded.cut(volume).shape == padded.box_grid.shape
    assert not padded.cut(volume)[-1].any(), "the last layer keeps periodic differences apart"
    for box, periodic in zip(padded.box_grid.shape, padded.periodic_grid.shape, strict=True):
        assert periodic >= box + max(16, padding * box)


@pytest.mark.parametrize("sigma", [1e-3, 0.2])
def test_noise_is_found_under_anatomy(sigma):
    generator = torch.Generator().manual_seed(0)
    steps = (torch.arange(40) // 10).float()[:, None, None].expand(40, 40, 40)
    mask = torch.ones(40, 40, 40, dtype=torch.bool)
    noisy = steps + sigma * torch.randn(steps.shape, generator=generator)
    assert noise_sigma(noisy, mask) == pytest.approx(sigma, rel=0.1)
    clipped = (noisy - 1).clamp(min=0)
    assert noise_sigma(clipped, mask, nonnegative=True) == pytest.approx(sigma, rel=0.15)


def test_noise_of_what_is_smooth_is_small():
    axis = torch.linspace(0, 3, 40)
    wave = torch.sin(axis)[:, None, None] + torch.cos(axis)[None, :, None] * axis
    assert noise_sigma(wave, torch.ones(40, 40, 40, dtype=torch.bool)) < 1e-5


def test_noise_of_too_few_voxels_is_unknown():
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    mask[2:5, 2:5, 2:5] = True
    assert noise_sigma(torch.randn(9, 9, 9), mask) == 0.0
    assert noise_sigma(torch.randn(2, 9, 9), torch.ones(2, 9, 9, dtype=torch.bool)) == 0.0


def test_the_edge_mask_keeps_off_borders_and_edges():
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[2:10, 2:10, 2:10] = True
    gradient = Gradient((1.0, 1.0, 1.0))
    inner = edge_mask(mask, gradient, None, 0.3)
    assert not gradient.apply(mask.float())[inner].any()
    magnitude = 10 * (torch.arange(12) >= 6).float()[:, None, None].expand(12, 12, 12) * mask
    magnitude = magnitude + 0.1 * torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0))
    at_edges = edge_mask(mask, gradient, magnitude, 0.3)
    assert not at_edges[:, 5].any()
    assert at_edges[0, 3, 4, 4]
    assert not (at_edges & ~inner).any()


def test_end_of_an_iteration():
    good, far, near = (ended([0.5, last], 1e-4, "this") for last in (1e-5, 0.1, 5e-4))
    assert good.converged
    assert not far.converged
    assert "2 iterations" in far.warnings[0]
    assert near.iterations == 2
    assert good.warnings == near.warnings == ()


def test_relative_change():
    assert relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(0.2)
    assert relative_change(torch.zeros(2), torch.zeros(2)) == 0.0


@pytest.mark.parametrize("value", [0.0, -1.0, 3.0, float("nan"), float("inf")])
def test_numbers_out_of_range_are_named(value):
    with pytest.raises(InputError, match="some-option"):
        check("some-option", value, low=0.0, high=2.0)


def test_weights_of_a_noise_map_are_inverse_variances():
    """(median/σ)² inside the mask, 0 where nothing was measured; σ is floored."""
    mask = torch.ones(5, 1, 1, dtype=torch.bool)
    mask[4] = False
    sigma = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0])[:, None, None]
    typical, weight = known_noise(sigma, mask, 1e-3)
    assert typical == 1.0
    assert weight.flatten().tolist() == [4.0, 1.0, 0.25, 0.0, 0.0]
    typical, weight = known_noise(sigma, mask, 1.0)
    assert weight.flatten().tolist() == [1.0, 1.0, 0.25, 0.0, 0.0]
    assert known_noise(0.25, mask, 1e-3)[0] == 0.25
    with pytest.raises(InputError, match="noise map"):
        known_noise(torch.zeros_like(sigma), mask, 1e-3)
