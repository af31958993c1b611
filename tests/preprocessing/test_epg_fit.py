"""Echo trains with stimulated echoes: the dictionary interpolates, and B1 comes back."""

from __future__ import annotations

import pytest
import torch

from chisep.physics.epg import mese_signal, slice_profile
from chisep.preprocessing.epg_fit import EpgTable, transmit_field

SE_S = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
PROFILE = slice_profile("sinc", 12, refocusing_width=1.0)
LIKE = torch.zeros((), dtype=torch.float64)


def table(like=LIKE, profile=PROFILE):
    return EpgTable(SE_S, like, excitation_deg=90.0, refocusing_deg=180.0, profile=profile, t1_s=1.1)


def trains(r2_hz, b1, t1_s=1.1, profile=PROFILE):
    return mese_signal(r2_hz, torch.full_like(r2_hz, 1 / t1_s), b1, SE_S, profile=profile)


def pairs(count=400, seed=0):
    random = torch.Generator().manual_seed(seed)
    r2_hz = 0.5 + 60 * torch.rand(count, generator=random, dtype=torch.float64)
    return r2_hz, 0.5 + 0.9 * torch.rand(count, generator=random, dtype=torch.float64)


def test_between_entries_trains_are_those_of_the_phase_graph():
    r2_hz, b1 = pairs()
    values, _ = table().model(b1)(torch.arange(len(r2_hz)), r2_hz)
    wanted = trains(r2_hz, b1).abs()
    assert float((values - wanted).abs().max() / wanted.max()) < 1e-3


def test_slopes_are_those_of_finite_differences():
    r2_hz, b1 = pairs()
    model = table().model(b1[100:])
    here = torch.arange(50, 250)
    r2_hz = r2_hz[150:350]
    _, slope = model(here, r2_hz)
    wanted = (model(here, r2_hz + 0.05)[0] - model(here, r2_hz - 0.05)[0]) / 0.1
    torch.testing.assert_close(slope, wanted, rtol=0.02, atol=2e-5)


def test_rates_beyond_the_table_still_decay():
    rates = torch.tensor([0.0, 200.0, 300.0, 500.0], dtype=torch.float64)
    values, slope = table().model(torch.ones_like(rates))(torch.arange(len(rates)), rates)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()
    assert (values[:, 1:].diff(dim=1) < 0).all()


@pytest.mark.parametrize("b1", [0.6, 0.8, 1.2, 1.4])
def test_misfit_is_least_at_the_true_b1_whatever_r2(b1):
    r2_hz = torch.tensor([1.0, 9.7, 14.3, 23.0, 51.0], dtype=torch.float64)
    grid, left = table().misfit(trains(r2_hz, torch.full_like(r2_hz, b1)))
    assert (left >= 0).all()
    torch.testing.assert_close(
        grid[left.argmin(0)], torch.full_like(r2_hz, b1), rtol=0, atol=float(grid[1] - grid[0]) / 2 + 1e-9
    )


def scan(shape=(24, 26, 20), snr=50.0, seed=1, dtype=torch.float32):
    """A ball of mixed tissue, its B1 (bright in the middle) and noisy trains."""
    random = torch.Generator().manual_seed(seed)
    lines = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape]
    x, y, z = torch.meshgrid(*lines, indexing="ij")
    mask = x**2 + y**2 + z**2 <= 1
    b1 = 1.15 - 0.4 * (x**2 + y**2 + z**2) + 0.08 * x
    r2_hz = 10 + 10 * torch.rand(shape, generator=random)
    clean = trains(r2_hz[mask].double(), b1[mask].double()).to(dtype)
    sigma = float(clean[0].mean()) / snr
    return mask, b1, clean + sigma * torch.randn(clean.shape, generator=random, dtype=dtype), sigma


def test_smooth_b1_comes_back_from_noisy_trains():
    mask, b1, noisy, sigma = scan()
    found = transmit_field(table(noisy), noisy, sigma, mask, (4.0, 4.0, 4.0), 6)
    error = (found - b1)[mask].abs()
    assert float(error.median()) < 0.01
    assert float(error.quantile(0.95)) < 0.04
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize(("shape", "order"), [((24, 26, 1), 6), ((1, 1, 1), 6), ((9, 1, 1), 0)])
def test_slices_and_single_voxels_have_a_b1(shape, order):
    mask, _, noisy, sigma = scan(shape)
    found = transmit_field(table(noisy), noisy, sigma, mask, (2.0, 2.0, 2.0), order)
    assert torch.isfinite(found).all()
    assert (found[mask] > 0.3).all()


def test_ideal_pulses_leave_one_side_of_nominal_for_the_whole_map():
    mask, _, _, _ = scan()
    lines = torch.linspace(0.75, 0.95, mask.shape[0])[:, None, None].expand(mask.shape)
    r2_hz = torch.full((int(mask.sum()),), 14.0, dtype=torch.float64)
    clean = trains(r2_hz, lines[mask].double(), profile=None).float()
    found = transmit_field(table(clean, None), clean, 1e-3, mask, (4.0, 4.0, 4.0), 4)[mask]
    # 1 + d and 1 − d are one and the same train: either is right, a mixture of both is not.
    assert float(((found - 1).abs() - (lines[mask] - 1).abs()).abs().median()) < 0.02
    assert (found < 1).all() or (found > 1).all()
