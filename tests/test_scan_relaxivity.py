"""`--dr auto` from maps: coarse maps keep places and means; a simulated head gives its D_r."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.methods import scan_relaxivity
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.scan_relaxivity import Estimate, ScanRelaxivity
from chisep.types import Grid, Maps


def maps(edge_mm=(1.0, 1.0, 2.0), shape=(13, 12, 9), r2prime=True):
    random = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:11, 2:10, 1:-1] = True
    field = torch.randn(shape, generator=random)
    affine = np.diag([*edge_mm, 1.0])
    affine[:3, 3] = (-5.0, 3.0, 8.0)
    return Maps(
        field_ppm=field,
        mask=mask,
        grid=Grid(shape, edge_mm, affine=affine),
        r2prime_hz=field.abs() if r2prime else None,
        field_sigma_ppm=torch.full(shape, 0.002),
    )


def test_coarse_maps_keep_places_and_means(monkeypatch):
    given, seen = maps(), []

    def invert(coarse, method, device):
        seen.append(coarse)
        return type("Made", (), {"chi_ppm": torch.zeros(coarse.grid.shape)})()

    monkeypatch.setattr(scan_relaxivity, "invert", invert)
    scan_relaxivity.estimate_relaxivity(given)
    (coarse,) = seen
    assert coarse.grid.shape == tuple(coarse.field_ppm.shape) == (7, 6, 9)
    assert coarse.grid.voxel_mm == (2.0, 2.0, 2.0)
    np.testing.assert_allclose(coarse.grid.affine @ [1, 1, 0, 1], given.grid.affine @ [2.5, 2.5, 0, 1])
    assert coarse.field_ppm[2, 2, 3] == pytest.approx(float(given.field_ppm[4:6, 4:6, 3].mean()))
    # Voxels outside the mask do not count.
    assert coarse.field_ppm[5, 2, 3] == pytest.approx(float(given.field_ppm[10:11, 4:6, 3].mean()))
    assert coarse.field_sigma_ppm[2, 2, 3] == pytest.approx(0.002)
    assert not coarse.field_ppm[~coarse.mask].any()
    assert coarse.relaxivity is None


def test_without_r2prime_or_with_coarse_voxels_d_r_is_the_default(monkeypatch):
    sure = ScanRelaxivity(*(Estimate(150.0, (140.0, 160.0), 9.0) for _ in range(2)))
    monkeypatch.setattr(scan_relaxivity, "estimate_relaxivity", lambda maps, **_: sure)
    assert scan_relaxivity.relaxivity_from(maps(), 3.0).relaxivity.pos_hz_per_ppm == 150.0
    for given, why in (
        (maps(r2prime=False), "no measured R2'"),
        (maps((2.0, 2.0, 4.0)), "voxel edges of 4 mm"),
    ):
        chosen = scan_relaxivity.relaxivity_from(given, 7.0)
        assert chosen.relaxivity == default_relaxivity(7.0)
        assert why in chosen.warnings[0]
