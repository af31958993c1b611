from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chisep.physics import signal
from chisep.types import Relaxivity


def test_frequency_of_a_ppm():
    assert signal.hz_per_ppm(3.0) == pytest.approx(127.73, abs=0.01)


@given(st.floats(0.1, 12))
def test_relaxivity_grows_with_b0(b0_t):
    relaxivity = signal.default_relaxivity(b0_t)
    assert relaxivity.pos_hz_per_ppm == pytest.approx(38 * b0_t)
    assert relaxivity.ratio == 1


def test_r2prime_weighs_each_source_with_its_own_relaxivity():
    r2prime = signal.r2prime_of_sources(torch.tensor(0.1), torch.tensor(0.02), Relaxivity(114.0, 90.0))
    assert float(r2prime) == pytest.approx(11.4 + 1.8)


def test_gradient_echo_decays_and_turns():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    te = (0.004, 0.012)
    echoes = signal.gre_signal(2 * one, 20 * one, 0.05 * one, te, 7.0, phase_offset_rad=0.3 * one)
    for echo, t in zip(echoes.flatten(), te, strict=True):
        assert float(echo.abs()) == pytest.approx(2 * math.exp(-20 * t))
        turned = 2 * math.pi * 42.577478518 * 7 * 0.05 * t + 0.3
        assert float(echo.angle()) == pytest.approx(math.remainder(turned, 2 * math.pi))


def test_spin_echo_decays():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    echoes = signal.se_signal(3 * one, 12 * one, (0.015, 0.03)).flatten().tolist()
    assert echoes == pytest.approx([3 * math.exp(-0.18), 3 * math.exp(-0.36)])
