"""R2 of the brain at other field strengths."""

from __future__ import annotations

import math

import pytest
import torch

from chisep.errors import InputError
from chisep.physics.relaxation import REFERENCE_R2_HZ, pseudo_r2_hz, r2_at_field_hz


def test_r2_of_3_tesla_is_kept_exactly():
    r2_hz = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 40
    assert torch.equal(r2_at_field_hz(r2_hz, 3.0), r2_hz)
    assert pseudo_r2_hz(3.0) == REFERENCE_R2_HZ


def test_growth_is_linear_in_the_field_and_proportional_to_r2():
    r2_hz = torch.tensor([2.0, 10.0, 30.0], dtype=torch.float64)
    at = {b0_t: r2_at_field_hz(r2_hz, b0_t) for b0_t in (1.0, 3.0, 5.0)}
    assert torch.allclose(at[5.0] - at[3.0], at[3.0] - at[1.0])
    assert torch.allclose(at[5.0] / r2_hz, (at[5.0] / r2_hz)[:1].expand(3))


@pytest.mark.parametrize(
    ("b0_t", "t2_ms"), [(1.5, (87.0, 80.0, 80.0)), (3.0, (76.0, 68.0, 71.0)), (7.0, (47.0, 46.0, 47.0))]
)
def test_published_t2_lies_within_the_spread_between_tissues(b0_t, t2_ms):
    """T2 of frontal and occipital grey matter and of white matter (Cox and Gowland 2010)."""
    at_3t = torch.tensor([76.0, 68.0, 71.0]) / 1000
    found = r2_at_field_hz(1 / at_3t, b0_t)
    measured = 1000 / torch.tensor(t2_ms)
    assert float((found / measured - 1).abs().max()) < 0.12


def test_pseudo_r2_is_the_law_of_every_tissue_with_the_mean_r2():
    for b0_t in (0.1, 1.5, 7.0):
        mean = r2_at_field_hz(torch.tensor(REFERENCE_R2_HZ, dtype=torch.float64), b0_t)
        assert float(mean) == pytest.approx(pseudo_r2_hz(b0_t))
        assert pseudo_r2_hz(b0_t) > 0


@pytest.mark.parametrize("b0_t", [0.0, -3.0, math.nan, math.inf])
def test_field_strengths_are_checked(b0_t):
    with pytest.raises(InputError, match="MagneticFieldStrength"):
        pseudo_r2_hz(b0_t)
