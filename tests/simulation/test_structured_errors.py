"""Structured errors of the field: their size, bands and direction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from chisep.simulation.structured_errors import BAND_SD_PPB, structured_field_error
from chisep.types import Grid

GRID = Grid((48, 48, 48), (1.0, 1.0, 1.0))
EVERYWHERE = torch.ones(GRID.shape, dtype=torch.bool)


def test_mean_square_is_one_within_the_mask_and_nothing_is_outside():
    mask = EVERYWHERE.clone()
    mask[:10] = False
    error = structured_field_error(mask, GRID, np.random.default_rng(0))
    assert float(error[mask].square().mean()) == pytest.approx(1)
    assert not error[~mask].any()


def test_bands_have_their_sizes():
    scipy = pytest.importorskip("scipy.ndimage")
    error = structured_field_error(EVERYWHERE, GRID, np.random.default_rng(1)).numpy()
    filtered = [error, *(scipy.gaussian_filter(error, s, mode="wrap") for s in (1, 2, 4))]
    sizes = [np.std(fine - coarse) for fine, coarse in pairwise(filtered)]
    # A band-pass of the sum contains a part of the neighbouring bands.
    assert sizes[0] / sizes[1] == pytest.approx(BAND_SD_PPB[0] / BAND_SD_PPB[1], rel=0.35)
    assert sizes[1] / sizes[2] == pytest.approx(BAND_SD_PPB[1] / BAND_SD_PPB[2], rel=0.35)


def test_more_power_near_the_cone_than_near_the_equator():
    error = structured_field_error(EVERYWHERE, GRID, np.random.default_rng(2))
    power = torch.fft.fftn(error).abs().square()
    k = torch.fft.fftfreq(48)
    x, y, z = torch.meshgrid(k, k, k, indexing="ij")
    cos2 = z**2 / (x**2 + y**2 + z**2).clamp_min(1e-9)
    cone, equator = (cos2 > 0.25) & (cos2 < 0.42), cos2 < 0.03
    assert float(power[cone].mean() / power[equator].mean()) > 2


def test_empty_mask_gives_nothing():
    assert not structured_field_error(~EVERYWHERE, GRID, np.random.default_rng(0)).any()
