from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chisep.physics.signal import hz_per_ppm, se_signal
from chisep.simulation.fields import total_field
from chisep.simulation.measured import measured_maps, rate_sigma_hz
from chisep.simulation.scanner import ScannerConfig

SIMPLE = ScannerConfig(simple=True, snr=60.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_without_noise_they_are_the_truth(tissue):
    maps = measured_maps(tissue, replace(SIMPLE, snr=math.inf), rng())
    fields = total_field(tissue)
    torch.testing.assert_close(maps.local_ppm, fields.local_ppm * tissue.mask)
    torch.testing.assert_close(maps.total_ppm, fields.total_ppm * tissue.mask)
    torch.testing.assert_close(maps.r2prime_hz, tissue.r2prime_hz)
    torch.testing.assert_close(maps.r2_hz, tissue.r2_hz * tissue.mask)
    torch.testing.assert_close(maps.r2star_hz, (tissue.r2_hz + tissue.r2prime_hz) * tissue.mask)
    assert float(maps.field_sigma_ppm.max()) == 0


def test_residual_background_is_in_the_local_field_only(tissue):
    plain = measured_maps(tissue, replace(SIMPLE, snr=math.inf), rng())
    left = measured_maps(tissue, replace(SIMPLE, snr=math.inf, residual_background_ppb=4.0), rng())
    residue = (left.local_ppm - plain.local_ppm)[tissue.mask]
    assert 1000 * float(residue.std()) == pytest.approx(4, rel=1e-3)
    torch.testing.assert_close(left.total_ppm, plain.total_ppm)
    torch.testing.assert_close(left.r2star_hz, plain.r2star_hz)


def test_noise_has_the_stated_spread_and_is_0_outside(tissue):
    maps = measured_maps(tissue, SIMPLE, rng())
    mask = tissue.mask
    error = maps.local_ppm - maps.fields.local_ppm * mask
    torch.testing.assert_close(maps.total_ppm - maps.fields.total_ppm * mask, error, atol=1e-5, rtol=0)
    assert float((error / maps.field_sigma_ppm)[mask].std()) == pytest.approx(1, rel=0.02)
    certain = mask & (tissue.r2prime_hz > 4 * maps.r2prime_sigma_hz)
    error = (maps.r2prime_hz - tissue.r2prime_hz) / maps.r2prime_sigma_hz
    assert float(error[certain].std()) == pytest.approx(1, rel=0.03)
    assert float(maps.r2prime_hz.min()) == 0
    for volume in (maps.local_ppm, maps.total_ppm, maps.r2prime_hz, maps.r2star_hz, maps.r2_hz):
        assert not volume[~mask].any()


def test_rates_of_both_scans_have_noise_of_their_own(tissue):
    """R2' is what R2* of the gradient echo and R2 of the spin echo leave, and has the noise of both."""
    maps = measured_maps(tissue, SIMPLE, rng())
    star_sigma = maps.field_sigma_ppm * 2 * math.pi * hz_per_ppm(tissue.b0_t)
    r2_sigma = (maps.r2prime_sigma_hz.square() - star_sigma.square()).clamp(min=0).sqrt()
    certain = tissue.mask & (tissue.r2_hz > 4 * maps.r2prime_sigma_hz)
    star = ((maps.r2star_hz - tissue.r2_hz - tissue.r2prime_hz) / star_sigma)[certain]
    r2 = ((maps.r2_hz - tissue.r2_hz) / r2_sigma)[certain]
    assert float(star.std()) == pytest.approx(1, rel=0.03)
    assert float(r2.std()) == pytest.approx(1, rel=0.03)
    assert abs(float((star * r2).mean())) < 0.05
    left = (maps.r2star_hz - maps.r2_hz).clamp(min=0)
    torch.testing.assert_close(maps.r2prime_hz[certain], left[certain], rtol=0, atol=1e-4)
    assert min(float(maps.r2star_hz.min()), float(maps.r2_hz.min())) >= 0


def test_half_the_snr_is_twice_the_noise_and_seeds_decide(tissue):
    one, same, other = (measured_maps(tissue, SIMPLE, rng(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one.local_ppm, same.local_ppm)
    assert not torch.equal(one.local_ppm, other.local_ppm)
    worse = measured_maps(tissue, replace(SIMPLE, snr=30.0), rng())
    error, more = (maps.local_ppm - maps.fields.local_ppm * tissue.mask for maps in (one, worse))
    bounded = worse.field_sigma_ppm == worse.field_sigma_ppm.max()
    assert 0 < int(bounded.sum()) < 10
    torch.testing.assert_close(more[~bounded], 2 * error[~bounded], rtol=1e-3, atol=1e-6)


def test_rates_fitted_to_noisy_echoes_scatter_as_propagation_says():
    te_s, snr, size = (0.005, 0.011, 0.017, 0.023, 0.029), 80.0, 20000
    shape = (size, 1, 1)
    frequency_hz, r2star = 3.0, 22.0
    clean = se_signal(torch.ones(shape), torch.full(shape, r2star), te_s)
    sigma = float(rate_sigma_hz(clean, torch.ones(shape, dtype=torch.bool), te_s, snr).mean())
    te = torch.tensor(te_s)[:, None]
    signal = clean[..., 0, 0] * torch.polar(torch.ones_like(te), 2 * torch.pi * frequency_hz * te)
    noise = torch.from_numpy(rng().standard_normal((2, len(te_s), size), dtype=np.float32))
    noisy = signal + torch.complex(*noise) * float(clean[0].mean()) / snr
    # Oracle: straight lines through phase and through log magnitude, weighted by the squared signal.
    weight = clean[..., 0, 0] ** 2
    weight = weight / weight.sum(0)
    centred = te - (weight * te).sum(0)
    slopes = (weight * centred**2).sum(0)
    phase_rate = (weight * centred * noisy.angle()).sum(0) / slopes
    decay = -(weight * centred * noisy.abs().log()).sum(0) / slopes
    assert float(phase_rate.std()) == pytest.approx(sigma, rel=0.03)
    assert float(decay.std()) == pytest.approx(sigma, rel=0.03)
    assert float(phase_rate.mean()) == pytest.approx(2 * math.pi * frequency_hz, rel=0.01)
    assert float(decay.mean()) == pytest.approx(r2star, rel=0.01)


def test_noise_is_typical_of_3_tesla(tissue):
    maps = measured_maps(tissue, ScannerConfig(), rng())
    assert 0.4 < 1000 * float(maps.field_sigma_ppm[tissue.mask].median()) < 1.5
    r2prime_ppb = 1000 * maps.r2prime_sigma_hz[tissue.mask].median() / tissue.relaxivity.pos_hz_per_ppm
    assert 3 < float(r2prime_ppb) < 22


def test_where_no_signal_is_left_a_rate_is_as_uncertain_as_random_phase():
    shape = (2, 1, 1)
    magnitude = torch.tensor([[1.0, 0.0], [0.5, 0.0]]).reshape(2, *shape)
    sigma = rate_sigma_hz(magnitude, torch.tensor([True, True]).reshape(shape), (0.005, 0.025), 100.0)
    turns_ppm = float(sigma[1, 0, 0]) / (2 * math.pi * hz_per_ppm(3.0))
    assert turns_ppm == pytest.approx(math.sqrt(2 / 12) / 0.020 / hz_per_ppm(3.0), rel=1e-5)
    assert float(sigma[0, 0, 0]) < float(sigma[1, 0, 0])
