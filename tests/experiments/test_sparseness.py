from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.experiments.realism.results import _sparseness_section
from chisep.experiments.realism.sparseness import (
    COSMOS_BANDS,
    _directions,
    agreement,
    as_cosmos,
    bands,
    sparseness_rows,
    spread,
)
from chisep.physics.dipole import Dipole
from chisep.simulation.structured_errors import BAND_SD_PPB, structured_field_error
from chisep.solvers.cosmos import condition_number
from chisep.types import Grid


def test_spread_of_known_distributions():
    rng = np.random.default_rng(0)
    gaussian = spread(rng.normal(5, 3, 200_000).astype(np.float32))
    assert gaussian["sd"] == pytest.approx(3, rel=0.01)
    assert gaussian["robust_sd"] == pytest.approx(3, rel=0.01)
    assert gaussian["kurtosis"] == pytest.approx(3, rel=0.03)
    # A part p of ±a on a flat ground has the kurtosis 1/p.
    sparse = np.zeros(10_000, dtype=np.float32)
    sparse[:200], sparse[200:400] = 7, -7
    assert spread(sparse) == {"sd": pytest.approx(7 * 0.2, rel=1e-3), "robust_sd": 0, "kurtosis": 25}


def test_bands_part_a_wave_by_the_transfer_of_gaussian_filters():
    shape, length = (96, 8, 8), 12.0
    at = np.arange(shape[0], dtype=np.float32).reshape(-1, 1, 1)
    wave = np.broadcast_to(10 * np.cos(2 * np.pi * at / length), shape).astype(np.float32)
    inside = np.zeros(shape, dtype=bool)
    inside[24:72] = True
    found = bands(wave, inside, (1.0, 1.0, 1.0))
    sigmas = 1.06 * np.array([1.0, 2.0, 4.0])
    kept = np.concatenate(([1.0], np.exp(-2 * (np.pi * sigmas / length) ** 2)))
    for band, transfer in zip(found, kept[:-1] - kept[1:], strict=True):
        assert band["sd"] == pytest.approx(10 / np.sqrt(2) * transfer, rel=0.01)


def test_the_error_of_cosmos_is_that_of_the_least_squares_of_twelve_fields():
    grid = Grid((40, 44, 36), (1.0, 1.0, 1.0), (0.1, 0.2, 0.97))
    mask = np.ones(grid.shape, dtype=bool)
    directions = _directions(grid.b0_direction)
    assert len(directions) == 12
    np.testing.assert_allclose(directions[0], grid.b0_direction, atol=1e-12)
    assert condition_number(directions) < 4
    error = as_cosmos(np.zeros(grid.shape, dtype=np.float32), mask, grid, np.random.default_rng(0))
    size = float(np.hypot.reduce(BAND_SD_PPB))
    top, below = 0.0, 0.0
    for number, direction in enumerate(directions):
        turned = Grid(grid.shape, grid.voxel_mm, direction)
        kernel = Dipole(turned, pad=False).kernel
        field = size * structured_field_error(
            torch.from_numpy(mask), turned, np.random.default_rng(number + 1)
        )
        top = top + kernel * torch.fft.rfftn(field)
        below = below + kernel.square()
    expected = torch.fft.irfftn(top / below.clamp(min=1e-3), s=grid.shape)
    assert error.std() == pytest.approx(float(expected.std()), rel=0.1)


def test_interpolation_of_cosmos_leaves_the_mean_and_takes_off_detail():
    grid = Grid((24, 24, 24), (1.0, 1.0, 1.0))
    mask = np.ones(grid.shape, dtype=bool)
    point = np.zeros(grid.shape, dtype=np.float32)
    error = as_cosmos(point, mask, grid, np.random.default_rng(0))
    point[12, 12, 12] = 1000
    seen = as_cosmos(point, mask, grid, np.random.default_rng(0)) - error
    assert seen.sum() == pytest.approx(1000, rel=1e-4)
    assert seen[12, 12, 12] == pytest.approx(1000 / 12 + 11 / 12 * 1000 * 0.75**3, rel=1e-3)


def test_rows_say_how_many_heads_agree():
    published = [{"sd": b.sd, "robust_sd": b.robust_sd, "kurtosis": b.kurtosis} for b in COSMOS_BANDS]
    grainy = [{**band, "kurtosis": 8.0} for band in published]
    heads = [
        {"sparseness": {"truth": published, "as_cosmos": published}},
        {"sparseness": {"truth": published, "as_cosmos": grainy}},
    ]
    rows = {(row["band"], row["statistic"]): row for row in sparseness_rows(heads)}
    assert rows["2–4", "robust_sd"]["heads_that_agree"] == 2
    assert rows["2–4", "kurtosis"]["heads_that_agree"] == 1
    assert "low" not in rows["2–4", "sd"]
    assert agreement(COSMOS_BANDS[0])["kurtosis"] == (25 / 1.5, 37.5)
    _, table = _sparseness_section(sparseness_rows(heads))
    assert "| 1–2 | kurtosis | 22 | 15 (8 to 22) | 14.7 to 33 | 1/2 | 22 |" in table
    assert _sparseness_section(sparseness_rows([{"sparseness": None}])) == ()
