"""Rates: exact decays come back, SciPy agrees, scale does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from chisep.errors import InputError
from chisep.physics.signal import se_signal
from chisep.preprocessing.relaxometry import MAX_RATE_HZ, pseudo_r2_hz, r2, r2prime, r2star

GRE_S = (0.005, 0.011, 0.017, 0.023, 0.029)
UNEVEN_S = (0.003, 0.008, 0.015, 0.029)
SE_S = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
RATES_HZ = torch.tensor([0.5, 2.0, 8.0, 15.0, 25.0, 60.0, 120.0, 200.0], dtype=torch.float64).reshape(2, 2, 2)
ALL = torch.ones(2, 2, 2, dtype=torch.bool)


def decay(te_s, amplitude=700.0, dtype=torch.float64):
    return se_signal(torch.full((2, 2, 2), amplitude, dtype=dtype), RATES_HZ.to(dtype), te_s)


def noisy(te_s, sigma=0.02, seed=0):
    rng = torch.Generator().manual_seed(seed)
    clean = se_signal(torch.ones(12, 12, 12), torch.full((12, 12, 12), 30.0), te_s)
    return (clean + sigma * torch.randn(clean.shape, generator=rng)).abs()


def test_arlo_recovers_exact_decays_up_to_the_error_of_simpsons_rule():
    measured = r2star(decay(GRE_S), GRE_S, ALL)
    # Simpson's rule is exact to fourth order in R2*·ΔTE, so only the fastest decays see its error.
    torch.testing.assert_close(measured[RATES_HZ <= 60], RATES_HZ[RATES_HZ <= 60], rtol=2e-3, atol=0)
    torch.testing.assert_close(measured, RATES_HZ, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_fits_recover_exact_decays(dtype, rtol):
    torch.testing.assert_close(
        r2star(decay(UNEVEN_S, dtype=dtype), UNEVEN_S, ALL), RATES_HZ.to(dtype), rtol=rtol, atol=0
    )
    torch.testing.assert_close(r2(decay(SE_S, dtype=dtype), SE_S, ALL), RATES_HZ.to(dtype), rtol=rtol, atol=0)


@pytest.mark.parametrize(("fit", "te_s"), [(r2, SE_S), (r2star, UNEVEN_S)])
def test_noisy_fit_agrees_with_scipy(fit, te_s):
    data = noisy(te_s)
    rate = fit(data, te_s, torch.ones(data.shape[1:], dtype=torch.bool))
    for voxel in [(0, 0, 0), (3, 5, 7), (11, 2, 9), (6, 6, 6)]:
        signal = data[(slice(None), *voxel)].double().numpy()
        wanted, _ = curve_fit(lambda t, a, r: a * np.exp(-r * t), np.array(te_s), signal, p0=(1.0, 25.0))
        assert float(rate[voxel]) == pytest.approx(wanted[1], rel=1e-3)


def test_arlo_and_the_fit_have_no_bias_between_them():
    data = noisy(GRE_S, sigma=0.01)
    mask = torch.ones(data.shape[1:], dtype=torch.bool)
    assert float(r2star(data, GRE_S, mask).mean()) == pytest.approx(30.0, rel=0.01)
    assert float(r2(data, GRE_S, mask).mean()) == pytest.approx(30.0, rel=0.01)


@given(exponent=st.integers(-30, 30))
def test_rates_do_not_depend_on_the_scale_of_the_images(exponent):
    data = noisy(GRE_S)[:, :3, :3, :3]
    mask = torch.ones(3, 3, 3, dtype=torch.bool)
    for te_s in (GRE_S, (0.005, 0.011, 0.018, 0.023, 0.029)):
        torch.testing.assert_close(
            r2star(data * 2.0**exponent, te_s, mask), r2star(data, te_s, mask), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("te_s", [GRE_S, (0.005, 0.011, 0.018, 0.023, 0.029)])
def test_hopeless_voxels_get_rates_within_the_range(te_s):
    data = torch.zeros(5, 2, 2, 2)
    data[:, 0, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    data[0, 0, 1, 0] = 1.0
    data[:, 1, 1, 1] = 3.0
    data[:, 1, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    rate = r2star(data, te_s, ALL)
    assert torch.isfinite(rate).all()
    assert ((rate >= 0) & (rate <= MAX_RATE_HZ)).all()
    assert rate[0, 0, 0] == 0  # no signal
    assert rate[0, 0, 1] == 0  # grows
    assert rate[0, 1, 0] > 300  # gone after one echo
    assert rate[1, 1, 1] == pytest.approx(0, abs=1e-3)


def test_zero_outside_the_mask():
    mask = ALL.clone()
    mask[0] = False
    for rate in (r2star(decay(GRE_S), GRE_S, mask), r2(decay(SE_S), SE_S, mask)):
        assert (rate[0] == 0).all()
        assert (rate[1] > 0).all()


def test_simulated_session_within_three_percent(head):
    inside = head.brain
    measured = r2star(head.gre().abs(), head.te_s, inside)
    assert ((measured - head.r2star_hz).abs() / head.r2star_hz)[inside].median() <= 0.03
    measured = r2(head.se(), head.te_se_s, inside)
    assert ((measured - head.r2_hz).abs() / head.r2_hz)[inside].median() <= 0.03


def test_r2prime_is_the_difference_and_never_negative():
    r2star_hz = torch.tensor([20.0, 10.0, 5.0]).reshape(1, 1, 3)
    assert r2prime(r2star_hz, torch.tensor([12.0, 12.0, 5.0]).reshape(1, 1, 3)).flatten().tolist() == [
        8,
        0,
        0,
    ]
    assert r2prime(r2star_hz, 12.0).flatten().tolist() == [8, 0, 0]


def test_pseudo_r2_is_positive_and_grows_with_field():
    values = [pseudo_r2_hz(b0_t) for b0_t in (0.1, 1.5, 3.0, 7.0)]
    assert values == sorted(values)
    assert values[0] > 0
    assert values[2] == pytest.approx(12.7)
    with pytest.raises(InputError, match="MagneticFieldStrength"):
        pseudo_r2_hz(0.0)


@pytest.mark.parametrize(
    ("fit", "echoes", "te_s", "said"),
    [
        (r2star, 2, (0.005, 0.011), "2 echoes"),
        (r2, 1, (0.015,), "1 echo;"),
        (r2star, 3, (0.005, 0.011), "3 echoes and 2 echo times"),
        (r2star, 3, (0.005, 0.004, 0.011), "0.004"),
        (r2, 3, (0.0, 0.004, 0.011), "0, 0.004"),
    ],
)
def test_echoes_that_do_not_fit_are_refused(fit, echoes, te_s, said):
    with pytest.raises(InputError, match=said):
        fit(torch.ones(echoes, 2, 2, 2), te_s, ALL)
