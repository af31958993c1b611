"""Rates: exact decays come back, SciPy agrees, σ is what repetition shows, and a simulated session."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.stats import rice

from chisep.errors import InputError
from chisep.physics.epg import mese_signal, slice_profile
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz
from chisep.physics.signal import hz_per_ppm, se_signal
from chisep.preprocessing.decay_fit import LEAST_RATE_HZ, MAX_RATE_HZ
from chisep.preprocessing.magnitude_noise import estimate_noise_sigma
from chisep.preprocessing.relaxometry import (
    REGISTRATION_SD_MM,
    R2Config,
    R2starConfig,
    Rate,
    SpinEchoFit,
    pseudo_r2prime,
    r2,
    r2prime,
    r2star,
    with_registration_error,
)
from chisep.simulation.anatomy import LabelMap, packaged_labels
from chisep.simulation.fields import total_field
from chisep.simulation.scanner import ScannerConfig, scan_gre, scan_se, session_coils
from chisep.simulation.tissue import TissueConfig, make_tissue

GRE_S = (0.005, 0.011, 0.017, 0.023, 0.029)
UNEVEN_S = (0.003, 0.008, 0.015, 0.029)
SE_S = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
RATES_HZ = torch.tensor([0.5, 2.0, 8.0, 15.0, 25.0, 60.0, 120.0, 200.0], dtype=torch.float64).reshape(2, 2, 2)
ALL = torch.ones(2, 2, 2, dtype=torch.bool)


def decay(te_s, amplitude=700.0, dtype=torch.float64):
    return se_signal(torch.full((2, 2, 2), amplitude, dtype=dtype), RATES_HZ.to(dtype), te_s)


def rician(clean, sigma, seed=0):
    rng = torch.Generator().manual_seed(seed)
    real, imaginary = (sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype) for _ in range(2))
    return torch.hypot(clean + real, imaginary)


def noisy(te_s, sigma=0.02, rate_hz=30.0, seed=0, dtype=torch.float32):
    clean = se_signal(torch.ones(12, 12, 12, dtype=dtype), torch.full((12, 12, 12), rate_hz), te_s)
    return rician(clean.to(dtype), sigma, seed)


def inside(data):
    return torch.ones(data.shape[1:], dtype=torch.bool)


def exponential(data, te_s, mask, **options):
    return r2(data, te_s, mask, R2Config(method="exponential"), **options)


def arlo(data, te_s, mask, **options):
    return r2star(data, te_s, mask, R2starConfig(method="arlo"), **options)


def test_arlo_recovers_exact_decays_up_to_the_error_of_simpsons_rule():
    measured = arlo(decay(GRE_S), GRE_S, ALL).rate_hz
    # Simpson's rule is exact to fourth order in R2*·ΔTE, so only the fastest decays see its error.
    torch.testing.assert_close(measured[RATES_HZ <= 60], RATES_HZ[RATES_HZ <= 60], rtol=2e-3, atol=0)
    torch.testing.assert_close(measured, RATES_HZ, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_fits_recover_exact_decays(dtype, rtol):
    wanted = RATES_HZ.to(dtype)
    for fit, te_s in ((arlo, UNEVEN_S), (r2star, GRE_S), (exponential, SE_S)):
        torch.testing.assert_close(
            fit(decay(te_s, dtype=dtype), te_s, ALL, noise_sigma=0.0).rate_hz, wanted, rtol=rtol, atol=0
        )


@pytest.mark.parametrize(("fit", "te_s"), [(exponential, SE_S), (r2star, UNEVEN_S)])
def test_noisy_fit_agrees_with_scipy(fit, te_s):
    sigma = 0.05
    data = noisy(te_s, sigma, dtype=torch.float64)
    found = fit(data, te_s, inside(data), noise_sigma=sigma)

    def mean_magnitude(t, amplitude, rate):
        return rice.mean(amplitude * np.exp(-rate * t) / sigma, scale=sigma)

    for voxel in [(0, 0, 0), (3, 5, 7), (11, 2, 9), (6, 6, 6)]:
        signal = data[(slice(None), *voxel)].numpy()
        wanted, covariance = curve_fit(
            mean_magnitude,
            np.array(te_s),
            signal,
            p0=(1.0, 25.0),
            sigma=np.full(len(te_s), sigma),
            absolute_sigma=True,
        )
        assert float(found.rate_hz[voxel]) == pytest.approx(wanted[1], rel=1e-3)
        assert float(found.sigma_hz[voxel]) == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-2)


@pytest.mark.parametrize(("fit", "te_s"), [(r2star, GRE_S), (arlo, GRE_S), (exponential, SE_S)])
def test_fits_have_no_bias_and_their_sigma_is_what_repetition_shows(fit, te_s):
    data = noisy(te_s, sigma=0.01)
    found = fit(data, te_s, inside(data))
    assert float(found.rate_hz.mean()) == pytest.approx(30.0, rel=0.01)
    assert float(found.rate_hz.std() / found.sigma_hz.mean()) == pytest.approx(1, abs=0.06)


def test_noise_floor_does_not_look_like_a_slow_decay():
    data = noisy(SE_S, sigma=0.1, rate_hz=40.0)
    found = exponential(data, SE_S, inside(data)).rate_hz
    assert float(found.median()) == pytest.approx(40.0, rel=0.03)
    plain = exponential(data, SE_S, inside(data), noise_sigma=0.0).rate_hz
    assert float(plain.median()) < 0.85 * 40


@pytest.mark.parametrize("te_s", [GRE_S, SE_S, (0.005, 0.011, 0.017)])
@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_noise_is_found_in_decays_of_all_tissues(te_s, sigma):
    rng = torch.Generator().manual_seed(4)
    rate = (20 + 6 * torch.randn(20, 20, 20, generator=rng)).clamp_min(1)
    clean = se_signal(0.5 + torch.rand(20, 20, 20, generator=rng), rate, te_s)
    clean[:, 0, :2] *= torch.rand(clean[:, 0, :2].shape, generator=rng)  # some nonsense, as in vessels
    data = 3e-9 * rician(clean, sigma)
    assert estimate_noise_sigma(data, inside(data)) == pytest.approx(3e-9 * sigma, rel=0.05)


def test_noise_of_two_echoes_is_not_underestimated():
    data = noisy((0.015, 0.03), sigma=0.01)
    assert 0.0095 < estimate_noise_sigma(data, inside(data)) < 0.02
    assert estimate_noise_sigma(torch.zeros(2, 3, 3, 3), torch.ones(3, 3, 3, dtype=torch.bool)) == 0


@given(exponent=st.integers(-30, 30))
@settings(max_examples=15, deadline=None)
def test_rates_do_not_depend_on_the_scale_of_the_images(exponent):
    data = noisy(GRE_S)[:, :3, :3, :3]
    mask = torch.ones(3, 3, 3, dtype=torch.bool)
    for fit in (arlo, r2star):
        scaled, plain = fit(data * 2.0**exponent, GRE_S, mask), fit(data, GRE_S, mask)
        torch.testing.assert_close(scaled.rate_hz, plain.rate_hz, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scaled.sigma_hz, plain.sigma_hz, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("te_s", [GRE_S, (0.005, 0.011, 0.018, 0.023, 0.029)])
@pytest.mark.parametrize("fit", [arlo, r2star])
def test_hopeless_voxels_get_rates_within_the_range(fit, te_s):
    data = torch.zeros(5, 2, 2, 2)
    data[:, 0, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    data[0, 0, 1, 0] = 1.0
    data[:, 1, 1, 1] = 3.0
    data[:, 1, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    data[:, 1, 0, 1] = torch.nan
    found = fit(data, te_s, ALL, noise_sigma=1e-3)
    rate = found.rate_hz
    assert torch.isfinite(rate).all()
    assert torch.isfinite(found.sigma_hz).all()
    assert ((rate >= LEAST_RATE_HZ) & (rate <= MAX_RATE_HZ)).all()
    assert rate[0, 0, 0] == 0  # no signal
    assert found.sigma_hz[0, 0, 0] == MAX_RATE_HZ
    assert rate[0, 0, 1] == LEAST_RATE_HZ  # grows
    assert rate[0, 1, 0] > 300  # gone after one echo
    assert rate[1, 1, 1] == pytest.approx(0, abs=1e-3)


def test_zero_outside_the_mask():
    mask = ALL.clone()
    mask[0] = False
    for found in (r2star(decay(GRE_S), GRE_S, mask), r2(decay(SE_S), SE_S, mask)):
        for volume in (found.rate_hz, found.sigma_hz):
            assert (volume[0] == 0).all()
        assert (found.rate_hz[1] > 0).all()


def test_an_empty_mask_gives_empty_maps():
    for found in (r2star(decay(GRE_S), GRE_S, ~ALL), r2(decay(SE_S), SE_S, ~ALL)):
        assert (found.rate_hz == 0).all()


def test_simulated_session_within_three_percent(head):
    brain = head.brain
    measured = r2star(head.gre().abs(), head.te_s, brain).rate_hz
    assert ((measured - head.r2star_hz).abs() / head.r2star_hz)[brain].median() <= 0.03
    # Its refocusing is perfect: one exponential.
    measured = exponential(head.se(), head.te_se_s, brain).rate_hz
    assert ((measured - head.r2_hz).abs() / head.r2_hz)[brain].median() <= 0.03


# ---- gradients of the field --------------------------------------------------------------------------------


def ramp(te_s, gradient_hz, shape=(10, 9, 8)):
    """Decays of 25 1/s in a field that changes by so many Hz from voxel to voxel along each axis."""
    places = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    field_ppm = sum(g * x for g, x in zip(gradient_hz, places, strict=True)) / hz_per_ppm(3.0)
    left = torch.ones(len(te_s), dtype=torch.float64)
    for g in gradient_hz:
        left *= torch.sinc(g * torch.tensor(te_s, dtype=torch.float64))
    clean = se_signal(torch.ones(shape, dtype=torch.float64), torch.full(shape, 25.0), te_s)
    return (clean * left[:, None, None, None]).abs(), field_ppm


@pytest.mark.parametrize("method", ["nonlinear", "arlo"])
@pytest.mark.parametrize("gradient_hz", [(0.0, 0.0, 12.0), (6.0, -9.0, 4.0), (0.0, 0.0, 45.0)])
def test_gradient_of_the_field_is_corrected(method, gradient_hz):
    data, field_ppm = ramp(GRE_S, gradient_hz)
    mask = inside(data)
    mask[0], mask[:, 3:5, 2] = False, False
    config = R2starConfig(method=method)
    found = r2star(data, GRE_S, mask, config, total_field_ppm=field_ppm, b0_t=3.0).rate_hz[mask]
    torch.testing.assert_close(found, torch.full_like(found, 25.0), rtol=3e-3, atol=0)
    assert (r2star(data, GRE_S, mask, config).rate_hz[mask] > 26).all()


def test_sigma_grows_where_echoes_are_lost():
    weak, field_ppm = ramp(GRE_S, (0.0, 0.0, 45.0))
    whole, _ = ramp(GRE_S, (0.0, 0.0, 0.0))
    mask = inside(weak)
    lost = r2star(weak, GRE_S, mask, total_field_ppm=field_ppm, b0_t=3.0, noise_sigma=0.01)
    assert (lost.sigma_hz > 2 * r2star(whole, GRE_S, mask, noise_sigma=0.01).sigma_hz).all()


def test_field_known_beyond_the_mask_is_used_and_elsewhere_it_is_not():
    data, field_ppm = ramp(GRE_S, (0.0, 0.0, 12.0))
    field_ppm = field_ppm + 0.002 * torch.arange(8, dtype=torch.float64) ** 2
    mask = inside(data)
    mask[:, :, -1] = False
    with_neighbour, without = (
        r2star(data, GRE_S, mask, total_field_ppm=field_ppm, field_known=known, b0_t=3.0).rate_hz
        for known in (torch.ones_like(mask), None)
    )
    differ = (with_neighbour != without).any(0).any(0)
    assert differ.tolist() == [False] * 6 + [True, False]
    with pytest.raises(InputError, match="without B0"):
        r2star(data, GRE_S, mask, total_field_ppm=field_ppm)


# ---- echo trains -------------------------------------------------------------------------------------------


def test_other_echo_times_fall_back_to_an_exponential_and_say_so():
    data = decay(UNEVEN_S)
    found = r2(data, UNEVEN_S, ALL)
    assert "multiples of the first" in found.warnings[0]
    assert found.model == "exponential"
    assert found.b1 is None
    torch.testing.assert_close(found.rate_hz, exponential(data, UNEVEN_S, ALL).rate_hz)


@pytest.mark.parametrize("b1", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("pulse", ["ideal", "sinc"])
def test_echo_trains_of_any_b1_give_r2(pulse, b1):
    rng = torch.Generator().manual_seed(2)
    rate = 5 + 20 * torch.rand(8, 8, 8, generator=rng, dtype=torch.float64)
    profile = None if pulse == "ideal" else slice_profile("sinc", 10, refocusing_width=1.2)
    clean = 800 * mese_signal(
        rate, torch.full_like(rate, 0.9), torch.full_like(rate, b1), SE_S, profile=profile
    )
    config = R2Config(pulse=pulse, refocusing_width=1.2)
    found = r2(clean, SE_S, inside(clean), config, voxel_mm=(3.0, 3.0, 3.0))
    assert float(((found.rate_hz - rate) / rate).abs().max()) < 0.02
    assert found.b1 is not None


@pytest.fixture(scope="module")
def session():
    """A simulated head of 4 mm, and its scans with strong stimulated echoes and an uneven B1."""
    labels = packaged_labels()
    coarse = LabelMap(
        np.ascontiguousarray(labels.labels[::4, ::4, ::4]),
        labels.affine @ np.diag([4.0, 4.0, 4.0, 1.0]),
        "coarse",
    )
    tissue = make_tissue(coarse, np.random.default_rng(0), TissueConfig(), voxel_mm=(4.0, 4.0, 4.0), b0_t=3.0)
    field_ppm = total_field(tissue).total_ppm
    config = ScannerConfig(voxel_mm=4.0, snr=math.inf, refocusing_width=1.0, b1_spread=0.15)
    rng = np.random.default_rng(1)
    coils = session_coils(tissue, config, rng)
    gre = scan_gre(tissue, field_ppm, coils, config, rng).abs()
    return tissue, field_ppm, coils, gre, scan_se(tissue, coils, config, rng)


@pytest.mark.parametrize("snr", [30.0, 50.0, 100.0])
def test_simulated_session_with_stimulated_echoes(session, snr):
    tissue, field_ppm, coils, gre, se = session
    brain = tissue.mask
    gre, se = (rician(echoes, float(echoes[0][brain].mean()) / snr) for echoes in (gre, se))
    everywhere = torch.ones_like(brain)
    fitted_r2star = r2star(gre, GRE_S, brain, total_field_ppm=field_ppm, field_known=everywhere, b0_t=3.0)
    fitted_r2 = r2(se, SE_S, brain, R2Config(refocusing_width=1.0), voxel_mm=(4.0, 4.0, 4.0))

    def error(found, truth):
        return (found.rate_hz - truth)[brain]

    r2star_hz = tissue.r2_hz + tissue.r2prime_hz
    for found, truth in ((fitted_r2star, r2star_hz), (fitted_r2, tissue.r2_hz)):
        score = error(found, truth) / found.sigma_hz[brain]
        assert 0.9 <= float(score.std()) <= 1.1
        assert abs(float(score.mean())) <= 0.15
        assert abs(float((error(found, truth) / truth[brain]).median())) <= 0.01
    assert fitted_r2.b1 is not None
    assert float((fitted_r2.b1 - coils.b1)[brain].abs().median()) <= 0.03
    if snr == 100.0:
        relative = error(fitted_r2, tissue.r2_hz).abs() / tissue.r2_hz[brain]
        assert float(relative.median()) <= 0.03
        plain = exponential(se, SE_S, brain)
        # The excited slice is refocused no wider than it is: all its flanks make stimulated echoes.
        assert float((error(plain, tissue.r2_hz).abs() / tissue.r2_hz[brain]).median()) > 0.20


def test_r2prime_is_the_difference_with_its_negative_noise():
    def row(*values):
        return torch.tensor(values).reshape(1, 1, -1)

    r2star_hz = Rate(row(20.0, 10.0, 5.0, 5.0), row(3.0, 3.0, 3.0, 3.0))
    found = r2prime(r2star_hz, Rate(row(12.0, 12.0, 5.0, 50.0), row(4.0, 4.0, 0.0, 4.0)))
    assert found.rate_hz.flatten().tolist() == [8, -2, 0, -15]  # the last is far beyond noise: −3 σ
    assert found.sigma_hz.flatten().tolist() == [5, 5, 3, 5]


def test_r2prime_of_fluid_has_no_bias_and_a_true_sigma():
    """R2* = R2 near 0: a bound at 0, of a rate or of the difference, would show in the mean."""
    gre, se = (noisy(te_s, rate_hz=0.5, seed=n) for n, te_s in enumerate((GRE_S, SE_S)))
    mask = inside(gre)
    found = r2prime(r2star(gre, GRE_S, mask), exponential(se, SE_S, mask))
    score = found.rate_hz / found.sigma_hz
    assert float((found.rate_hz < 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert abs(float(score.mean())) < 0.06  # 2.5 standard errors
    assert float(score.std()) == pytest.approx(1, abs=0.05)


def test_registration_error_makes_r2_less_sure_where_it_has_a_gradient():
    places = torch.arange(6.0).expand(4, 5, 6).clone()
    rate = 10 * places  # 5 1/s a mm along the third axis
    mask = torch.ones(4, 5, 6, dtype=torch.bool)
    mask[:, :, 0] = False
    rate[~mask] = 0
    fit = SpinEchoFit(rate, torch.full_like(rate, 0.4) * mask)
    sigma = with_registration_error(fit, mask, (1.0, 1.0, 2.0)).sigma_hz
    expected = math.hypot(0.4, REGISTRATION_SD_MM * 5)
    torch.testing.assert_close(sigma, torch.where(mask, expected, 0.0))


@pytest.mark.parametrize("b0_t", [1.5, 3.0, 7.0])
def test_pseudo_r2prime_is_as_uncertain_as_tissues_differ_in_r2(b0_t):
    rate, sigma = torch.tensor([[[40.0, 5.0, 0.0]]]), torch.tensor([[[3.0, 3.0, 0.0]]])
    assumed = pseudo_r2_hz(b0_t)
    found = pseudo_r2prime(Rate(rate, sigma), b0_t)
    assert found.rate_hz.flatten().tolist() == pytest.approx([40 - assumed, 0, 0])
    uncertain = math.hypot(3, PSEUDO_R2_SD * assumed)
    assert found.sigma_hz.flatten().tolist() == pytest.approx([uncertain, uncertain, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: R2starConfig(least_left=1.0),
        lambda: R2Config(refocusing_deg=0.0),
        lambda: R2Config(t1_s=math.nan),
        lambda: R2Config(b1_order=-1),
    ],
)
def test_options_are_checked(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    ("fit", "echoes", "te_s", "said"),
    [
        (r2star, 1, (0.005,), "1 echo;"),
        (r2, 1, (0.015,), "1 echo;"),
        (r2star, 3, (0.005, 0.011), "3 echoes and 2 echo times"),
        (r2star, 3, (0.005, 0.004, 0.011), "0.004"),
        (r2, 3, (0.0, 0.004, 0.011), "0, 0.004"),
    ],
)
def test_echoes_that_do_not_fit_are_refused(fit, echoes, te_s, said):
    with pytest.raises(InputError, match=said):
        fit(torch.ones(echoes, 2, 2, 2), te_s, ALL)
