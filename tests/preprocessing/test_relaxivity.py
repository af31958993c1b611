"""D_r from deep grey matter: known lines come back, and what cannot be told is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.physics.signal import r2prime_of_sources
from chisep.preprocessing.relaxivity import DEEP_GREY, CalibrationConfig, calibrate_relaxivity
from chisep.types import Relaxivity

D_R = 114.0
EDGE = 8
MEAN_PPM = (0.048, 0.046, 0.077, 0.079, 0.132, 0.128, 0.116, 0.118)


def rng(seed=0):
    return np.random.default_rng(seed)


def nuclei(chi_neg_ppm=0.0, heterogeneity=0.15, seed=0):
    """A cube per nucleus: its label, χ_pos and χ_neg."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(EDGE * len(DEEP_GREY), EDGE, EDGE, dtype=torch.int16)
    pos = torch.zeros(labels.shape, dtype=torch.float64)
    for n, (label, mean) in enumerate(zip(DEEP_GREY, MEAN_PPM, strict=True)):
        cube = slice(EDGE * n, EDGE * (n + 1))
        labels[cube] = label
        pos[cube] = mean * (1 + heterogeneity * torch.randn(pos[cube].shape, generator=random))
    return labels, pos.clamp_min(0), torch.full_like(pos, chi_neg_ppm)


def maps(pos, neg, chi_noise=0.0, r2prime_noise=0.0, seed=1):
    random = torch.Generator().manual_seed(seed)
    noise = [torch.randn(pos.shape, generator=random, dtype=torch.float64) for _ in range(2)]
    r2prime = r2prime_of_sources(pos, neg, Relaxivity(D_R, D_R))
    return r2prime + r2prime_noise * noise[0], pos - neg + chi_noise * noise[1]


def everywhere(labels):
    return torch.ones(labels.shape, dtype=torch.bool)


def test_one_source_gives_d_r_exactly():
    labels, pos, neg = nuclei()
    fit = calibrate_relaxivity(*maps(pos, neg), labels, everywhere(labels), rng())
    assert fit.hz_per_ppm == pytest.approx(D_R, rel=1e-6)
    assert fit.intercept_hz == pytest.approx(0, abs=1e-6)
    assert fit.r_squared == pytest.approx(1)
    assert [point.label for point in fit.regions] == list(DEEP_GREY)


def test_equal_myelin_in_all_nuclei_goes_to_the_intercept():
    labels, pos, neg = nuclei(chi_neg_ppm=0.010)
    fit = calibrate_relaxivity(*maps(pos, neg), labels, everywhere(labels), rng())
    assert fit.hz_per_ppm == pytest.approx(D_R, rel=1e-6)
    assert fit.intercept_hz == pytest.approx(2 * D_R * 0.010, rel=1e-3)


def test_myelin_that_grows_with_iron_makes_d_r_too_large_by_twice_its_share():
    labels, pos, _ = nuclei(heterogeneity=0.0)
    fit = calibrate_relaxivity(*maps(pos, 0.05 * pos), labels, everywhere(labels), rng())
    assert fit.hz_per_ppm == pytest.approx(D_R * 1.05 / 0.95, rel=1e-6)


def test_interval_holds_d_r_under_noise_as_often_as_it_says():
    held = 0
    for seed in range(30):
        labels, pos, neg = nuclei(seed=seed)
        # Regions err as wholes too: their χ_neg differs from one to the next.
        neg = neg + 0.01 * torch.from_numpy(rng(seed).random(len(DEEP_GREY)).repeat(EDGE))[:, None, None]
        noisy = maps(pos, neg, chi_noise=0.015, r2prime_noise=2.0, seed=seed)
        fit = calibrate_relaxivity(*noisy, labels, everywhere(labels), rng(seed))
        low, high = fit.interval95
        assert low < fit.hz_per_ppm < high
        held += low <= D_R <= high
    assert held >= 27


def test_outlying_voxels_do_not_matter():
    labels, pos, neg = nuclei()
    r2prime, chi = maps(pos, neg)
    r2prime[::5, 0, 0] = 300.0
    chi[1::5, 0, 0] = -1.0
    fit = calibrate_relaxivity(r2prime, chi, labels, everywhere(labels), rng())
    assert fit.hz_per_ppm == pytest.approx(D_R, rel=0.01)


def test_equal_seeds_give_equal_intervals_and_voxels_beyond_the_mask_do_not_count():
    labels, pos, neg = nuclei()
    r2prime, chi = maps(pos, neg, chi_noise=0.01, r2prime_noise=1.0)
    mask = everywhere(labels)
    mask[:, :2] = False
    first = calibrate_relaxivity(r2prime, chi, labels, mask, rng(3))
    r2prime[:, :2] = torch.nan
    chi[:, :2] = 9.0
    assert calibrate_relaxivity(r2prime, chi, labels, mask, rng(3)) == first


def test_too_few_nuclei_are_refused():
    labels, pos, neg = nuclei()
    labels[EDGE * 4 :] = 0
    with pytest.raises(InputError, match="at least 5"):
        calibrate_relaxivity(*maps(pos, neg), labels, everywhere(labels), rng())


@pytest.mark.parametrize("kind", ["falls", "flat"])
def test_nuclei_that_show_no_relation_are_refused(kind):
    labels, pos, neg = nuclei()
    r2prime, chi = maps(pos, neg, r2prime_noise=2.0)
    r2prime = 20 - r2prime if kind == "falls" else torch.randn_like(r2prime)
    with pytest.raises(InputError, match="D_r from deep grey matter"):
        calibrate_relaxivity(r2prime, chi, labels, everywhere(labels), rng())


@pytest.mark.parametrize("options", [{"least_regions": 2}, {"resamples": 5}, {"block_voxels": 0}])
def test_options_are_checked(options):
    with pytest.raises(InputError, match=next(iter(options))):
        CalibrationConfig(**options)
