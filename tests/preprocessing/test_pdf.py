"""PDF: the least-squares problem that it solves, its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.preprocessing.pdf import PdfConfig, pdf
from chisep.types import Grid
from tests.preprocessing.test_vsharp import ball, coordinates_mm, field_of_sphere

GRID = Grid((48, 44, 40), (1.0, 1.2, 1.5), (0.2, 0.0, 1.0))


def test_many_steps_agree_with_a_dense_least_squares_solution():
    """Fewer sources than voxels, so that the solution is one and early stopping does not matter."""
    grid = Grid((8, 8, 8), (1.0, 1.0, 1.2), (0.3, 0.0, 1.0))
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[0, :2, :2] = False
    mask[5:7, 7, 3:5] = False
    rng = torch.Generator().manual_seed(0)
    field = torch.randn(grid.shape, generator=rng, dtype=torch.float64)
    sigma = 0.5 + torch.rand(grid.shape, generator=rng, dtype=torch.float64)
    dipole = Dipole(grid, pad=False, dtype=torch.float64)
    columns = []
    for voxel in (~mask).nonzero().tolist():
        source = torch.zeros(grid.shape, dtype=torch.float64)
        source[tuple(voxel)] = 1
        columns.append(dipole.apply(source)[mask])
    columns += [torch.ones(int(mask.sum()), dtype=torch.float64), *coordinates_mm(grid)[:, mask]]
    matrix = torch.stack(columns, 1).numpy()
    weight = 1 / sigma[mask].numpy()
    weight = np.minimum(weight / torch.from_numpy(weight).median().item(), 3.0)
    fit, *_ = np.linalg.lstsq(matrix * weight[:, None], field[mask].numpy() * weight, rcond=None)
    config = PdfConfig(rim_mm=0.0, padding_mm=0.0, iterations=500, tolerance=1e-12)
    local = pdf(field, mask, grid, config, sigma_ppm=sigma).local_field_ppm
    np.testing.assert_allclose(local[mask].numpy(), field[mask].numpy() - matrix @ fit, atol=1e-8)


def test_voxels_of_unknown_or_large_noise_do_not_disturb_the_others():
    mask = ball(GRID, 20)
    outside = field_of_sphere(GRID, (0.0, 27.0, 0.0), 5.0, 9.4)
    wrong = (coordinates_mm(GRID)[2].abs() < 2) & (coordinates_mm(GRID)[0] > 8) & mask
    field = torch.where(wrong, outside + 1.0, outside)
    sigma = torch.where(wrong, torch.inf, 1e-3)
    truth = pdf(outside, mask, GRID).local_field_ppm
    for_all, for_good = (pdf(field, mask, GRID, sigma_ppm=s).local_field_ppm for s in (None, sigma))
    rest = pdf(outside, mask, GRID).mask & ~wrong
    errors = [float((found - truth)[rest].norm()) for found in (for_all, for_good)]
    assert errors[1] < 0.2 * errors[0]


def test_a_field_without_background_is_kept():
    local = pdf(torch.zeros(GRID.shape), ball(GRID, 15), GRID).local_field_ppm
    assert (local == 0).all()


@pytest.mark.parametrize(
    "options", [{"rim_mm": -1.0}, {"padding_mm": float("inf")}, {"iterations": 0}, {"tolerance": 1.0}]
)
def test_options_are_checked(options):
    with pytest.raises(InputError, match="PDF"):
        PdfConfig(**options)
