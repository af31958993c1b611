"""Denoised R2': a dense calculation agrees, noise goes, edges and lesions stay, σ is that of the errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.preprocessing.rate_denoising import decay_parameters, denoised_r2prime, local_lmmse
from chisep.preprocessing.relaxometry import R2Config, r2, r2prime, r2star

GRE_S = (0.005, 0.011, 0.017, 0.023, 0.029)
SE_S = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
MM = (1.0, 1.0, 1.0)
SHAPE = (24, 26, 25)
BASE_HZ = 6.0
R2_HZ = 13.0


def measured(r2prime_hz, r2_hz=None, amplitude=None, sigma=0.02, seed=0):
    """Raw and denoised R2' of noisy scans."""
    rng = torch.Generator().manual_seed(seed)
    r2_hz = torch.full(SHAPE, R2_HZ) if r2_hz is None else r2_hz
    amplitude = torch.ones(SHAPE) if amplitude is None else amplitude

    def scan(rate, te_s):
        clean = torch.stack([amplitude * torch.exp(-rate * te) for te in te_s])
        return torch.hypot(*(part + sigma * torch.randn(clean.shape, generator=rng) for part in (clean, 0)))

    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:2] = False
    gre, se = scan(r2_hz + r2prime_hz, GRE_S), scan(r2_hz, SE_S)
    of_gre = r2star(gre, GRE_S, mask, noise_sigma=sigma)
    of_se = r2(se, SE_S, mask, R2Config(method="exponential"), noise_sigma=sigma)
    decays = decay_parameters(gre, GRE_S, of_gre, mask), decay_parameters(se, SE_S, of_se, mask)
    return r2prime(of_gre, of_se), denoised_r2prime(*decays, mask, MM), mask


def smooth_field(seed, sd_voxels=2.5):
    """Gaussian random field of SD 1."""
    field = ndimage.gaussian_filter(
        np.random.default_rng(seed).standard_normal(SHAPE), sd_voxels, mode="wrap"
    )
    return torch.from_numpy((field / field.std()).astype(np.float32))


@pytest.mark.parametrize("texture_hz", [0.0, 2.0])
def test_noise_is_halved_and_sigma_is_true(texture_hz):
    truth = BASE_HZ + texture_hz * smooth_field(1)
    raw, found, mask = measured(truth, amplitude=1 + 0.1 * smooth_field(2))
    error = (found.rate_hz - truth)[mask]
    assert float(error.std()) < (0.5 if texture_hz == 0 else 0.65) * float((raw.rate_hz - truth)[mask].std())
    assert abs(float(error.mean())) < 0.05
    score = error / found.sigma_hz[mask]
    assert 0.85 <= float(score.std()) <= 1.15
    assert not found.rate_hz[~mask].any()
    assert not found.sigma_hz[~mask].any()


def test_what_a_good_image_shows_is_used():
    """Where the amplitude follows R2' closely, less noise is left."""
    texture = smooth_field(3, 1.2)
    truth = BASE_HZ + 2 * texture
    errors = {
        name: float((found.rate_hz - truth)[mask].std())
        for name, amplitude in (("same", 1 + 0.1 * texture), ("none", torch.ones(SHAPE)))
        for _, found, mask in [measured(truth, amplitude=amplitude)]
    }
    assert errors["same"] < 0.9 * errors["none"]


def test_lesions_of_three_voxels_keep_their_contrast():
    truth, inside = torch.full(SHAPE, BASE_HZ), torch.zeros(SHAPE, dtype=torch.bool)
    for i in (6, 13, 20):
        for j in (5, 13, 21):
            for k in (5, 12, 20):
                inside[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = True
    truth[inside] += 12.0
    _, found, _ = measured(truth)
    contrast = found.rate_hz[inside].mean() - BASE_HZ
    assert float(contrast) == pytest.approx(12.0, rel=0.05)
    centre = found.rate_hz[6:21:7, 5:22:8, 5:21].amax(-1)
    assert (centre > BASE_HZ + 9).all()


def test_edges_are_not_blurred():
    truth = torch.full(SHAPE, BASE_HZ)
    truth[:, 13:] += 12.0
    _, found, mask = measured(truth)
    mean = [float(found.rate_hz[:, j][mask[:, j]].mean()) for j in (12, 13)]
    assert mean == pytest.approx([BASE_HZ, BASE_HZ + 12], abs=0.3)  # 2.5 % of the step


def test_maps_without_noise_do_not_change():
    truth = BASE_HZ + 2 * smooth_field(4)
    raw, found, mask = measured(truth, sigma=0.0)
    torch.testing.assert_close(found.rate_hz[mask], raw.rate_hz[mask], rtol=0, atol=1e-4)


def test_voxels_without_signal_keep_their_values_and_spoil_no_neighbour():
    truth = torch.full(SHAPE, BASE_HZ)
    amplitude = torch.ones(SHAPE)
    amplitude[12, 12, 12] = 0
    _, found, mask = measured(truth, amplitude=amplitude, sigma=0.01)
    away = (found.rate_hz - truth).abs()
    away[12, 12, 12] = 0
    assert float(away[mask].max()) < 3
    assert torch.isfinite(found.rate_hz).all()
    assert torch.isfinite(found.sigma_hz).all()


def test_the_estimate_is_that_of_a_dense_calculation():
    rng = np.random.default_rng(5)
    shape = (5, 5, 5)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 0] = False
    count = int(mask.sum())
    mixing = rng.standard_normal((3, 3))
    values = 2 * mixing @ rng.standard_normal((3, count))
    noise_covariance = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.0], [0.0, 0.0, 0.8]])
    combination = np.array([0.0, 1.0, -1.0])
    noise = {
        (i, j): torch.full((count,), noise_covariance[i, j], dtype=torch.float64)
        for i, j in ((0, 0), (1, 0), (1, 1), (2, 2))
    }
    found, _ = local_lmmse(torch.from_numpy(values), noise, combination.tolist(), mask, MM)

    places = np.argwhere(mask.numpy())
    line = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    n = (line.sum() ** 2 / (line**2).sum()) ** 3
    for voxel in (0, 40, count // 2):
        offset = places - places[voxel]
        weights = np.exp(-0.5 * (offset**2).sum(1) / 0.8**2) * (np.abs(offset) <= 2).all(1)
        weights /= weights.sum()
        away = values - values @ weights[:, None]
        covariance = (weights * away) @ away.T + 2 / n * noise_covariance
        of_value = noise_covariance @ combination
        explained = of_value @ np.linalg.solve(covariance, of_value)
        share = min(1.0, combination @ of_value / explained)
        expected = combination @ values[:, voxel]
        expected -= share * of_value @ np.linalg.solve(covariance, away[:, voxel])
        assert float(found[voxel]) == pytest.approx(expected, rel=1e-6)


def test_the_units_of_parameters_do_not_matter():
    generator = torch.Generator().manual_seed(6)
    mask = torch.ones(9, 8, 7, dtype=torch.bool)
    values = torch.randn(2, mask.sum(), generator=generator, dtype=torch.float64)
    one = torch.ones(mask.sum(), dtype=torch.float64)
    plain = local_lmmse(values, {(0, 0): 0.2 * one, (1, 1): 0.5 * one}, (0.0, 1.0), mask, (1.0, 1.0, 2.0))
    scaled = local_lmmse(
        values * torch.tensor([[1e3], [1e-2]]),
        {(0, 0): 0.2e6 * one, (1, 1): 0.5e-4 * one},
        (0.0, 1.0),
        mask,
        (2.0, 2.0, 4.0),
    )
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, 1e2 * b)


def test_thick_slices_share_less():
    """Neighbours across thick slices are farther away: their weight is lower."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.ones(12, 12, 12, dtype=torch.bool)
    noisy = torch.randn(1, mask.sum(), generator=generator)
    one = torch.ones(int(mask.sum()))
    cubes, slices = (
        local_lmmse(noisy, {(0, 0): one}, (1.0,), mask, mm)[0].std() for mm in (MM, (1.0, 1.0, 5.0))
    )
    assert cubes < slices < 1
