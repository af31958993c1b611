"""LBV: a dense solution, harmonic fields, boundary values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.preprocessing.lbv import LbvConfig, lbv
from chisep.types import Grid
from tests.preprocessing.test_vsharp import ball

EXACT = LbvConfig(rim_mm=0.0, tolerance=1e-10)


def blob(shape, seed=1):
    """A ragged mask in one piece."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return torch.from_numpy(sum(a**2 for a in axes) + 0.15 * rng.standard_normal(shape) < 0.8)


def is_inner(mask):
    padded = torch.nn.functional.pad(mask, (1,) * 6)
    faces = [padded.roll(s, a)[1:-1, 1:-1, 1:-1] for a in range(3) for s in (-1, 1)]
    return mask & torch.stack(faces).all(0)


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (1.0, 0.7, 2.5)])
def test_agrees_with_a_dense_solution(voxel_mm):
    shape = (9, 10, 8)
    mask = blob(shape)
    field = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = is_inner(mask)
    number = -torch.ones(shape, dtype=torch.long)
    number[inner] = torch.arange(int(inner.sum()))
    matrix = np.zeros((int(inner.sum()),) * 2)
    right = np.zeros(int(inner.sum()))
    for voxel in inner.nonzero().tolist():
        row = int(number[tuple(voxel)])
        for axis in range(3):
            for step in (-1, 1):
                other = list(voxel)
                other[axis] += step
                weight = voxel_mm[axis] ** -2
                matrix[row, row] += weight
                if inner[tuple(other)]:
                    matrix[row, int(number[tuple(other)])] -= weight
                else:
                    right[row] += weight * float(field[tuple(other)])
    background = field.clone()
    background[inner] = torch.from_numpy(np.linalg.solve(matrix, right))
    result = lbv(field, mask, Grid(shape, voxel_mm), EXACT)
    torch.testing.assert_close(result.local_field_ppm, (field - background) * mask, atol=1e-8, rtol=0)


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_a_field_that_is_harmonic_on_the_grid_vanishes(voxel_mm):
    grid = Grid((40, 44, 30), voxel_mm)
    x, y, z = (
        (torch.arange(n, dtype=torch.float64) * v).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, v) in enumerate(zip(grid.shape, voxel_mm, strict=True))
    )
    field = (3 + x - 2 * y + x * y - y * z + x**2 - 2 * y**2 + z**2) * 1e-3
    mask = blob(grid.shape)
    local = lbv(field, mask, grid, EXACT).local_field_ppm
    assert local.abs().max() < 1e-7 * field[mask].std()


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (1.0, 2.0, 1.5)])
def test_few_steps_are_enough_whatever_the_size_and_the_voxels(voxel_mm):
    for n in (24, 72):
        grid = Grid((n, n, n), voxel_mm)
        mask = ball(Grid(grid.shape, (1.0, 1.0, 1.0)), 0.45 * n)
        field = torch.rand(grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found, wanted = (
            lbv(field, mask, grid, LbvConfig(rim_mm=0.0, tolerance=1e-12, iterations=steps)).local_field_ppm
            for steps in (12, 200)
        )
        assert float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_a_mask_without_inside_is_refused():
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[4:12, 4:12, 8:10] = True
    with pytest.raises(InputError, match="all neighbours"):
        lbv(torch.zeros(16, 16, 16), mask, Grid((16, 16, 16), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("options", [{"rim_mm": -1.0}, {"iterations": 0}, {"tolerance": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(InputError, match="LBV"):
        LbvConfig(**options)
