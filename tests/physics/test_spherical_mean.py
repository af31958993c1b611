"""Spherical mean value filter: an operator that removes harmonic functions."""

from __future__ import annotations

import torch

from chisep.physics.spherical_mean import (
    SphericalMeanFilter,
    padded_grid,
    reach_mm,
    smallest_radius_mm,
    sphere_radii_mm,
)
from chisep.preprocessing.morphology import depth_mm
from chisep.types import Grid
from tests.physics.battery import check


def made(grid: Grid, mask: torch.Tensor, weight: torch.Tensor | None = None) -> SphericalMeanFilter:
    reach = reach_mm(depth_mm(mask, grid)).double()
    radii = sphere_radii_mm(smallest_radius_mm(grid), 12.0, reach)
    return SphericalMeanFilter(reach, grid, padded_grid(mask.shape, grid, 12.0), radii, weight=weight)


def test_operator():
    grid = Grid((7, 6, 8), (2.0, 2.5, 2.0))
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[0, 0] = False
    check(made(grid, mask), grid.shape, grid.shape)
    weight = torch.rand(grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check(made(grid, mask, weight), grid.shape, grid.shape)


def test_harmonic_functions_become_zero_and_sources_stay():
    grid = Grid((24, 26, 22), (2.0, 2.0, 2.0))
    x, y, z = torch.meshgrid(
        *[torch.arange(n, dtype=torch.float64) - n / 2 for n in grid.shape], indexing="ij"
    )
    ball = x**2 + y**2 + z**2 < 9**2
    harmonic = 3 + 2 * x - y + x * y - 4 * (2 * z**2 - x**2 - y**2)
    filtered = made(grid, ball)
    assert float(filtered.apply(harmonic * ball).abs().max()) < 1e-6 * float(harmonic.abs().max())
    point = torch.zeros_like(x)
    point[12, 13, 11] = 1.0
    assert float(filtered.apply(point)[12, 13, 11]) > 0.9
