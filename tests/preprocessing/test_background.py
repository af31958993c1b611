"""All methods of background removal behind one signature: what any of them must do."""

from __future__ import annotations

import pytest
import torch

from chisep.physics.dipole import Dipole
from chisep.preprocessing.background import BackgroundConfig, VsharpConfig, remove_background
from chisep.preprocessing.lbv import LbvConfig
from chisep.preprocessing.pdf import PdfConfig
from chisep.types import Grid
from tests.preprocessing.test_vsharp import GRIDS, ball, coordinates_mm, correlation, field_of_sphere

METHODS = ("vsharp", "pdf", "lbv")
OUTSIDE = {"centre_mm": (5.0, 36.0, -20.0), "radius_mm": 8.0, "chi_ppm": 9.4}


def removed(field, mask, grid, method, **more):
    """Local field without the rim, in which errors are larger (`test_field_error.py`)."""
    rims = VsharpConfig(rim_mm=7.0), PdfConfig(rim_mm=7.0), LbvConfig(rim_mm=7.0)
    return remove_background(field, mask, grid, BackgroundConfig(method, *rims), **more)


def textured(grid, mask, seed=0):
    """Field of random sources in the mask."""
    rng = torch.Generator().manual_seed(seed)
    chi = 0.05 * torch.randn(grid.shape, generator=rng) * mask
    return Dipole(grid).apply(chi - mask * chi[mask].mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=["isotropic", "anisotropic"])
def test_the_field_of_an_outside_source_is_removed(method, grid):
    mask = ball(grid, 27)
    outside = field_of_sphere(grid, **OUTSIDE)
    result = removed(outside, mask, grid, method)
    assert result.local_field_ppm[result.mask].std() < 0.02 * outside[result.mask].std()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=["isotropic", "anisotropic"])
def test_the_field_of_sources_inside_stays(method, grid):
    mask = ball(grid, 27)
    inside = textured(grid, mask)
    result = removed(inside + field_of_sphere(grid, **OUTSIDE), mask, grid, method)
    assert correlation(result.local_field_ppm, inside, result.mask) > 0.96


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=["isotropic", "anisotropic"])
def test_offsets_that_are_constant_or_linear_in_space_do_not_matter(method, grid):
    mask = ball(grid, 18)
    field = textured(grid, mask).double()
    x, y, z = coordinates_mm(grid) / 18
    shifted = field + 2.0 + 0.3 * x - 0.5 * y + 0.4 * z
    before, after = (removed(f, mask, grid, method).local_field_ppm for f in (field, shifted))
    torch.testing.assert_close(after, before, atol=1e-5 * float(field[mask].std()), rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_outside_the_mask_is_never_read_and_is_zero(method):
    grid, mask = GRIDS[0], ball(GRIDS[0], 20)
    field = textured(grid, mask)
    result = removed(torch.where(mask, field, torch.nan), mask, grid, method)
    torch.testing.assert_close(result.local_field_ppm, removed(field, mask, grid, method).local_field_ppm)
    assert (result.local_field_ppm[~result.mask] == 0).all()
    assert not (result.mask & ~mask).any()


@pytest.mark.parametrize("method", METHODS)
def test_the_rim_that_was_left_out_is_reported(method):
    grid, mask = GRIDS[1], ball(GRIDS[1], 25)
    result = removed(textured(grid, mask), mask, grid, method)
    lost = int((mask & ~result.mask).sum()) * 1.2 * 1.0 * 1.8 / 1000
    assert result.erosion_ml == pytest.approx(lost)
    assert 0 < result.erosion_mm <= 25 / 3 + 1


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_up_to_the_edge_of_the_volume(method):
    grid = Grid((40, 36, 30), (1.0, 1.0, 1.5), (0.0, 0.3, 1.0))
    mask = torch.ones(grid.shape, dtype=torch.bool)
    field = textured(grid, mask)
    far = coordinates_mm(grid)[0].float() * 0.01
    result = removed(field + far, mask, grid, method)
    assert correlation(result.local_field_ppm, field, result.mask) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_double_precision_gives_the_same_field(method):
    grid, mask = GRIDS[1], ball(GRIDS[1], 25)
    field = textured(grid, mask) + field_of_sphere(grid, **OUTSIDE)
    double = removed(field.double(), mask, grid, method).local_field_ppm
    assert double.dtype == torch.float64
    single = removed(field, mask, grid, method).local_field_ppm
    torch.testing.assert_close(single.double(), double, atol=2e-5, rtol=0)


def test_only_pdf_weighs_by_noise():
    grid, mask = GRIDS[1], ball(GRIDS[1], 25)
    field = textured(grid, mask)
    sigma = 1 + coordinates_mm(grid)[0].float().abs() / 10
    for method in METHODS:
        even = removed(field, mask, grid, method).local_field_ppm
        weighted = removed(field, mask, grid, method, sigma_ppm=sigma).local_field_ppm
        assert torch.equal(even, weighted) == (method != "pdf")
