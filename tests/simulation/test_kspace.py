from __future__ import annotations

import pytest
import torch

from chisep.simulation.kspace import Window, block_mean, crop_kspace


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize("window", ["none", "tukey", "hamming"])
@pytest.mark.parametrize("factor", [2, 3])
def test_cropping_keeps_the_mean(window: Window, factor: int):
    fine = image(12, 18, 24)
    coarse = crop_kspace(fine, factor, window)
    assert coarse.shape == (12 // factor, 18 // factor, 24 // factor)
    torch.testing.assert_close(coarse.mean(), fine.mean())


def test_an_axis_that_is_no_multiple_is_continued_by_zeros():
    fine = image(7, 8, 9)
    filled = torch.zeros(8, 8, 10, dtype=torch.complex64)
    filled[:7, :, :9] = fine
    torch.testing.assert_close(crop_kspace(fine, 2), crop_kspace(filled, 2))
    assert block_mean(fine.real, 2).shape == (4, 4, 5)


@pytest.mark.parametrize("factor", [2, 3])
def test_what_the_coarse_grid_resolves_is_sampled_at_its_voxel_centres(factor):
    n = 12 * factor
    centre = torch.arange(n) + 0.5
    wave = 1 + 0.5 * torch.cos(2 * torch.pi * 3 * centre / n) + 0.2 * torch.sin(2 * torch.pi * centre / n)
    fine = wave[:, None, None] * wave[None, :, None] * torch.ones(n)
    centre = factor * (torch.arange(12) + 0.5)
    wave = 1 + 0.5 * torch.cos(2 * torch.pi * 3 * centre / n) + 0.2 * torch.sin(2 * torch.pi * centre / n)
    expected = wave[:, None, None] * wave[None, :, None] * torch.ones(12)
    got = crop_kspace(torch.complex(fine, torch.zeros_like(fine)), factor)
    torch.testing.assert_close(got.real, expected, atol=1e-5, rtol=0)
    assert float(got.imag.abs().max()) < 1e-5


def test_what_it_cannot_resolve_is_gone_and_windows_ring_less():
    n = 48
    wave = torch.cos(2 * torch.pi * 20 * torch.arange(n) / n).expand(n, n, n)
    lost = crop_kspace(torch.complex(wave, torch.zeros_like(wave)).contiguous(), 2)
    assert float(lost.abs().max()) < 1e-5
    step = torch.zeros(n, n, n, dtype=torch.complex64)
    step[13:37] = 1
    peaks = {
        window: float(crop_kspace(step, 2, window).abs().max()) for window in ("none", "tukey", "hamming")
    }
    assert peaks["none"] > 1.05
    assert peaks["none"] > peaks["tukey"] > peaks["hamming"]
    assert peaks["hamming"] < 1.02


def test_blocks_are_averaged():
    fine = torch.arange(4.0)[:, None, None].expand(4, 4, 4).contiguous()
    torch.testing.assert_close(block_mean(fine, 2), torch.tensor([0.5, 2.5])[:, None, None].expand(2, 2, 2))
