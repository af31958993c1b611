from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chisep.errors import InputError
from chisep.physics.epg import SliceProfile, mese_signal, slice_profile
from chisep.physics.signal import se_signal

TE_S = tuple(0.015 * n for n in range(1, 9))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def isochromats(r2, r1, b1, spacing_s, echoes, excitation_deg=90.0, refocusing_deg=180.0) -> torch.Tensor:
    """Bloch simulation: rotation matrices on spins that gradients spread over one full turn per half echo."""
    count = 8 * echoes
    winding = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
    zero, one = torch.zeros_like(winding), torch.ones_like(winding)
    wind = torch.stack(
        (winding.cos(), -winding.sin(), zero, winding.sin(), winding.cos(), zero, zero, zero, one), dim=-1
    ).reshape(count, 3, 3)

    def about(axis: int, angle: float) -> torch.Tensor:
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, dtype=torch.float64)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
        return turn

    half = spacing_s / 2
    decay = torch.tensor([math.exp(-r2 * half)] * 2 + [math.exp(-r1 * half)], dtype=torch.float64)
    regrown = torch.tensor([0.0, 0.0, 1 - math.exp(-r1 * half)], dtype=torch.float64)
    spins = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(count, 3)
    spins = spins @ about(1, math.radians(excitation_deg) * b1).T  # about y: magnetisation to +x
    seen = []
    for _ in range(echoes):
        spins = (wind @ spins[..., None])[..., 0] * decay + regrown
        spins = spins @ about(0, math.radians(refocusing_deg) * b1).T  # about x
        spins = (wind @ spins[..., None])[..., 0] * decay + regrown
        mean = spins.mean(0)
        assert abs(float(mean[1])) < 1e-12
        seen.append(mean[0])
    return torch.stack(seen)


@settings(deadline=None)  # the first call in a process is slow
@given(st.floats(0, 60), st.floats(0, 3))
def test_ideal_refocusing_is_an_exponential_decay(r2, r1):
    signal = mese_signal(scalar(r2), scalar(r1), scalar(1.0), TE_S)
    torch.testing.assert_close(signal, torch.exp(-r2 * torch.tensor(TE_S, dtype=torch.float64)))


def test_ideal_signal_equals_that_of_the_plain_model():
    r2 = torch.linspace(5, 40, 27).reshape(3, 3, 3)
    signal = mese_signal(r2, torch.ones(3, 3, 3), torch.tensor(1.0), TE_S)
    torch.testing.assert_close(signal, se_signal(torch.ones(3, 3, 3), r2, TE_S))


@settings(deadline=None)
@given(st.floats(20, 180), st.floats(30, 90), st.floats(0, 50), st.floats(0, 2))
def test_first_two_echoes_are_analytic(refocusing, excitation, r2, r1):
    tau, alpha = 0.012, math.radians(refocusing)
    first, second = mese_signal(
        scalar(r2),
        scalar(r1),
        scalar(1.0),
        (tau, 2 * tau),
        excitation_deg=excitation,
        refocusing_deg=refocusing,
    ).tolist()
    start = math.sin(math.radians(excitation))
    assert first == pytest.approx(start * math.sin(alpha / 2) ** 2 * math.exp(-r2 * tau), abs=1e-12)
    spin_echo = math.sin(alpha / 2) ** 4 * math.exp(-2 * r2 * tau)
    stimulated = 0.5 * math.sin(alpha) ** 2 * math.exp(-(r1 + r2) * tau)
    assert second == pytest.approx(start * (spin_echo + stimulated), abs=1e-12)


@pytest.mark.parametrize("echoes", [1, 2, 3, 6, 11])
@pytest.mark.parametrize(
    ("b1", "excitation", "refocusing"), [(0.6, 90.0, 180.0), (1.25, 90.0, 180.0), (0.9, 70.0, 120.0)]
)
def test_agrees_with_bloch_simulation(echoes, b1, excitation, refocusing):
    r2, r1, spacing_s = 14.0, 1.1, 0.012
    signal = mese_signal(
        scalar(r2),
        scalar(r1),
        scalar(b1),
        [spacing_s * n for n in range(1, echoes + 1)],
        excitation_deg=excitation,
        refocusing_deg=refocusing,
    )
    torch.testing.assert_close(
        signal, isochromats(r2, r1, b1, spacing_s, echoes, excitation, refocusing), rtol=0, atol=1e-10
    )


@settings(deadline=None)
@given(st.floats(0.2, 2.5), st.floats(0.1, 3), st.floats(0, 60))
def test_no_echo_outlives_the_slowest_relaxation(b1, r1, faster):
    signal = mese_signal(scalar(r1 + faster), scalar(r1), scalar(b1), TE_S)
    bound = torch.exp(-r1 * torch.tensor(TE_S, dtype=torch.float64))
    assert (signal.abs() <= bound * (1 + 1e-12)).all()


def test_without_relaxation_low_flip_angles_reach_the_pseudo_steady_state():
    te_s = [0.01 * n for n in range(1, 65)]
    signal = mese_signal(scalar(0.0), scalar(0.0), scalar(1.0), te_s, refocusing_deg=60.0)
    # Oscillations die out as states spread over all windings; what stays locked is sin(α/2) of the start.
    assert signal[-8:].mean().item() == pytest.approx(math.sin(math.radians(30)), abs=0.01)


def test_stimulated_echoes_fake_a_slower_decay():
    signal = mese_signal(scalar(14.0), scalar(1.0), torch.tensor([1.0, 0.75], dtype=torch.float64), TE_S)
    apparent = torch.log(signal[1] / signal[-1]) / (TE_S[-1] - TE_S[1])
    assert apparent[0] == pytest.approx(14.0)
    assert apparent[1] < 13.7


def test_voxels_do_not_know_of_each_other():
    """More voxels than one chunk holds, shapes that broadcast, and single precision."""
    generator = torch.Generator().manual_seed(0)
    r2 = 5 + 30 * torch.rand(40, 1, 1, generator=generator, dtype=torch.float64)
    b1 = 0.6 + 0.7 * torch.rand(25, 20, generator=generator, dtype=torch.float64)
    r1 = torch.tensor([0.7, 1.5], dtype=torch.float64).repeat(10)
    signal = mese_signal(r2, r1, b1, TE_S)
    assert signal.shape == (8, 40, 25, 20)
    for i, j, k in [(0, 0, 0), (39, 24, 19), (20, 3, 11)]:
        torch.testing.assert_close(signal[:, i, j, k], mese_signal(r2[i, 0, 0], r1[k], b1[j, k], TE_S))
    single = mese_signal(r2.float(), r1.float(), b1.float(), TE_S)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), signal, rtol=0, atol=2e-6)


def test_slice_profile_is_a_weighted_sum_over_positions():
    profile = SliceProfile(
        torch.tensor([1.0, 0.5]), torch.tensor([0.9, 0.4]), weight=torch.tensor([0.75, 0.25])
    )
    signal = mese_signal(scalar(15.0), scalar(1.0), scalar(0.9), TE_S, profile=profile)

    def train(excitation, refocusing):
        return mese_signal(
            scalar(15.0),
            scalar(1.0),
            scalar(0.9),
            TE_S,
            excitation_deg=90.0 * excitation,
            refocusing_deg=180.0 * refocusing,
        )

    torch.testing.assert_close(signal, 0.75 * train(1.0, 0.9) + 0.25 * train(0.5, 0.4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["sinc", "gaussian"])
def test_profile_is_one_in_the_centre_and_half_at_the_edge_of_the_slice(kind):
    profile = slice_profile(kind, 400)
    assert profile.excitation[0].item() == pytest.approx(1, abs=0.01)
    assert profile.excitation[199:201].mean().item() == pytest.approx(0.5, abs=0.02)
    assert profile.excitation[-1].abs().item() < 0.07
    assert profile.weight.sum().item() == pytest.approx(1)


def test_profile_of_a_wider_refocusing_slice_is_stretched():
    narrow, wide = slice_profile("sinc", 100), slice_profile("sinc", 100, refocusing_width=3.0)
    torch.testing.assert_close(wide.excitation, narrow.excitation)
    # The middle of every third of the wide one is the centre of a position of the narrow one.
    torch.testing.assert_close(wide.refocusing[1::3], narrow.refocusing[:33])


@pytest.mark.parametrize(
    "te_s", [(), (0.015,) * 2, (0.01, 0.025, 0.04), (0.02, 0.03), (-0.01, -0.02), (0.0, 0.0)]
)
def test_uneven_echo_times_are_refused(te_s):
    with pytest.raises(InputError, match="evenly spaced"):
        mese_signal(scalar(10.0), scalar(1.0), scalar(1.0), te_s)


@pytest.mark.parametrize("option", [{"positions": 0}, {"refocusing_width": 0.0}, {"time_bandwidth": -1.0}])
def test_impossible_profiles_are_refused(option):
    with pytest.raises(InputError, match="slice profile"):
        slice_profile(**option)
