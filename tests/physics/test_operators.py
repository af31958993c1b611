from __future__ import annotations

import pytest
import torch

from chisep.physics.dipole import Dipole
from chisep.physics.operators import Combination, Gradient, Stacked
from chisep.physics.separation import Separation
from chisep.types import Grid
from tests.physics.battery import check

GRIDS = [
    Grid((4, 4, 4), (1.0, 1.0, 1.0)),
    Grid((4, 5, 3), (1.0, 0.7, 2.0), (0.3, -0.5, 0.8)),
    Grid((3, 4, 4), (2.0, 1.0, 1.0), (1.0, 0.0, 0.0)),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pad", [True, False, (True, False, True)])
def test_dipole(grid, pad):
    check(Dipole(grid, pad=pad, dtype=torch.float64), grid.shape, grid.shape)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_separation(grid, pad, ratio):
    operator = Separation(Dipole(grid, pad=pad, dtype=torch.float64), ratio)
    check(operator, (2, *grid.shape), (3, *grid.shape))


@pytest.mark.parametrize("grid", GRIDS)
def test_gradient(grid):
    gradient = Gradient(grid.voxel_mm)
    check(gradient, grid.shape, (3, *grid.shape))
    x = torch.randn(grid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    symbol = gradient.symbol(grid.shape, dtype=torch.float64, device="cpu")
    torch.testing.assert_close(torch.fft.irfftn(symbol * torch.fft.rfftn(x), s=grid.shape), gradient.gram(x))


def test_composition_and_stack():
    combine = Combination((2.0, -0.5))
    check(combine, (2, 3, 3, 3), (3, 3, 3))
    check(Gradient((1.0, 1.0, 1.0)) @ combine, (2, 3, 3, 3), (3, 3, 3, 3))
    check(Stacked((combine, Combination((1.0, 1.0)))), (2, 3, 3, 3), (2, 3, 3, 3))
