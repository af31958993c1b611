"""V-SHARP against analytic fields: a source outside vanishes, a source inside stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import half_spectrum, of_half_spectrum
from chisep.physics.spherical_mean import sphere_spectrum
from chisep.preprocessing.vsharp import VsharpConfig, fitted_sources, vsharp
from chisep.types import Grid

GRIDS = [Grid((72, 72, 72), (1.0, 1.0, 1.0)), Grid((60, 72, 40), (1.2, 1.0, 1.8), (0.3, 0.0, 1.0))]


def coordinates_mm(grid):
    axes = [
        (torch.arange(n, dtype=torch.float64) - n / 2) * v
        for n, v in zip(grid.shape, grid.voxel_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def ball(grid, radius_mm, centre_mm=(0.0, 0.0, 0.0)):
    centre = torch.tensor(centre_mm, dtype=torch.float64)[:, None, None, None]
    return (coordinates_mm(grid) - centre).square().sum(0).sqrt() <= radius_mm


def field_of_sphere(grid, centre_mm, radius_mm, chi_ppm):
    """Analytic field of a sphere: χ/3 (a/r)³ (3 cos²θ − 1) outside of it, 0 inside."""
    centre = torch.tensor(centre_mm, dtype=torch.float64)[:, None, None, None]
    away = coordinates_mm(grid) - centre
    r = away.square().sum(0).sqrt().clamp_min(1e-9)
    cosine = sum(a * b for a, b in zip(away, grid.b0_direction, strict=True)) / r
    outside = chi_ppm / 3 * (radius_mm / r) ** 3 * (3 * cosine**2 - 1)
    return torch.where(r > radius_mm, outside, 0.0).float()


def correlation(a, b, mask):
    return float(np.corrcoef(a[mask].numpy(), b[mask].numpy())[0, 1])


@pytest.mark.parametrize("grid", GRIDS, ids=["isotropic", "anisotropic"])
def test_the_field_of_an_outside_source_is_removed(grid):
    mask = ball(grid, 27)
    outside = field_of_sphere(grid, (5.0, 36.0, -20.0), 8.0, 9.4) + 0.7
    result = vsharp(outside, mask, grid)
    before, after = outside[result.mask].std(), result.local_field_ppm[result.mask].std()
    assert after < 0.01 * before


def test_sources_that_were_fitted_before_are_used_again():
    grid = GRIDS[0]
    mask, field = ball(grid, 27), field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    fitted = fitted_sources(field, mask, grid)
    assert torch.equal(vsharp(field, mask, grid, fitted=fitted).local_field_ppm, fitted.field_ppm * mask)
    assert torch.equal(vsharp(field, mask, grid).local_field_ppm, fitted.field_ppm * mask)


def test_a_fit_can_be_watched_and_ended():
    grid = Grid((24, 26, 22), (2.0, 2.0, 2.0))
    mask, field = ball(grid, 20), field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    seen = {}
    fitted_sources(field, mask, grid, stop=lambda n, chi: bool(seen.setdefault(n, chi.clone()) is None))
    assert list(seen) == list(range(1, 21))
    ended = fitted_sources(field, mask, grid, stop=lambda n, _: n == 3)
    assert torch.equal(ended.chi_ppm, seen[3])
    assert torch.equal(ended.chi_ppm, fitted_sources(field, mask, grid, VsharpConfig(iterations=3)).chi_ppm)


@pytest.mark.parametrize("grid", GRIDS, ids=["isotropic", "anisotropic"])
def test_the_field_of_an_inside_source_stays(grid):
    mask = ball(grid, 27)
    inside = field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    result = vsharp(inside, mask, grid, VsharpConfig(rim_mm=7.0))
    a, b = result.local_field_ppm[result.mask], inside[result.mask]
    assert correlation(result.local_field_ppm, inside, result.mask) > 0.985
    assert float((a * b).sum() / (b * b).sum()) == pytest.approx(1.0, abs=0.06)


def test_both_together_and_shift_by_a_constant():
    grid = GRIDS[0]
    mask = ball(grid, 27)
    outside = field_of_sphere(grid, (5.0, 36.0, -20.0), 8.0, 9.4)
    inside = field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    result = vsharp(outside + inside, mask, grid)
    assert correlation(result.local_field_ppm, inside, result.mask) > 0.98
    shifted = vsharp(outside + inside + 3.0, mask, grid)
    torch.testing.assert_close(shifted.local_field_ppm, result.local_field_ppm, atol=2e-5, rtol=0)


def test_linear_in_the_field_and_zero_outside_its_mask():
    grid, mask = GRIDS[1], ball(GRIDS[1], 25)
    total = field_of_sphere(grid, (5.0, 36.0, -20.0), 8.0, 9.4)
    once, twice = vsharp(total, mask, grid), vsharp(2 * total, mask, grid)
    torch.testing.assert_close(twice.local_field_ppm, 2 * once.local_field_ppm)
    assert (once.local_field_ppm[~once.mask] == 0).all()
    assert not (once.mask & ~mask).any()


def test_what_lies_outside_the_mask_is_never_read():
    grid, mask = GRIDS[0], ball(GRIDS[0], 20)
    total = field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    torch.testing.assert_close(
        vsharp(torch.where(mask, total, 99.0), mask, grid).local_field_ppm,
        vsharp(total, mask, grid).local_field_ppm,
    )


@pytest.mark.parametrize(
    ("iterations", "rim_mm", "lost_mm"), [(20, 0.0, 0.0), (0, 0.0, 3.0), (20, 5.0, 5.0), (0, 5.0, 5.0)]
)
def test_the_rim_lost_is_as_deep_as_asked_for(iterations, rim_mm, lost_mm):
    """Without a fit of sources nothing is known where the smallest sphere does not fit."""
    grid, mask = GRIDS[0], ball(GRIDS[0], 20)
    config = VsharpConfig(min_radius_mm=3.0, rim_mm=rim_mm, iterations=iterations)
    result = vsharp(torch.zeros(grid.shape), mask, grid, config)
    assert not (result.mask & ~ball(grid, 20.5 - lost_mm)).any()
    assert not (ball(grid, 19 - lost_mm) & ~result.mask).any()
    assert result.erosion_mm == lost_mm
    assert result.erosion_ml == pytest.approx(int((mask & ~result.mask).sum()) / 1000)


def test_a_thin_slab_loses_a_third_of_its_depth_at_most():
    grid = Grid((40, 40, 18), (1.0, 1.0, 1.0))
    brain = torch.ones(grid.shape, dtype=torch.bool)
    known = vsharp(torch.zeros(grid.shape), brain, grid, VsharpConfig(rim_mm=7.0)).mask
    assert int(known.sum()) == 34 * 34 * 12


def test_spheres_of_voxels_have_the_mean_of_a_harmonic_function():
    """The field of a point, close by: the mean over the smallest sphere is its value in the middle."""
    grid = Grid((48, 48, 48), (1.0, 1.0, 1.0))
    x, y, z = coordinates_mm(grid) - torch.tensor([9.0, 2.0, 5.0])[:, None, None, None]
    field = ((2 * z**2 - x**2 - y**2) / (x**2 + y**2 + z**2) ** 2.5).nan_to_num(0.0, 0.0, 0.0)
    middle = (24, 24, 24)
    errors = []
    for radius_mm in (math.sqrt(3), 2.0):
        kernel = sphere_spectrum(radius_mm, grid.shape, grid, like=field)
        mean = of_half_spectrum(half_spectrum(field, grid.shape) * kernel, grid.shape, grid.shape)
        errors.append(abs(float((mean - field)[middle] / field[middle])))
    assert errors[0] < 1e-3
    assert errors[0] < 0.1 * errors[1]


def test_fitting_sources_keeps_more_of_the_local_field_than_deconvolution():
    """A source near the surface: most of its field is harmonic where spheres fit."""
    grid, mask = GRIDS[0], ball(GRIDS[0], 27)
    inside = field_of_sphere(grid, (3.0, 12.0, 14.0), 4.0, 0.1)
    error = {}
    for iterations in (0, 20):
        result = vsharp(inside, mask, grid, VsharpConfig(iterations=iterations, rim_mm=5.0))
        error[iterations] = float((result.local_field_ppm - inside)[result.mask].norm())
    assert error[20] < 0.6 * error[0]


def test_half_the_voxel_size_gives_the_same_field():
    """The kernels are in mm: a field sampled twice as finely has the same local part."""
    coarse, fine = Grid((32, 32, 32), (2.0, 2.0, 2.0)), Grid((64, 64, 64), (1.0, 1.0, 1.0))
    results = []
    for grid in (coarse, fine):
        total = field_of_sphere(grid, (0.0, 2.0, 4.0), 6.0, 0.1)
        config = VsharpConfig(min_radius_mm=4.0, max_radius_mm=12.0)
        results.append(vsharp(total, ball(grid, 26), grid, config))
    a, b = results[0].local_field_ppm, results[1].local_field_ppm[::2, ::2, ::2]
    both = results[0].mask & results[1].mask[::2, ::2, ::2]
    assert correlation(a, b, both) > 0.97


def test_double_precision_gives_the_same_field():
    grid, mask = GRIDS[1], ball(GRIDS[1], 25)
    total = field_of_sphere(grid, (3.0, -2.0, 4.0), 4.0, 0.1)
    double = vsharp(total.double(), mask, grid).local_field_ppm
    assert double.dtype == torch.float64
    torch.testing.assert_close(vsharp(total, mask, grid).local_field_ppm.double(), double, atol=1e-6, rtol=0)


def test_a_mask_too_thin_is_refused():
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[4:12, 4:12, 8] = True
    with pytest.raises(InputError, match="deeper inside"):
        vsharp(torch.zeros(16, 16, 16), mask, Grid((16, 16, 16), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    "options",
    [{"max_radius_mm": 0.0}, {"max_radius_mm": math.inf}, {"min_radius_mm": 13.0}, {"min_radius_mm": 0.0}],
)
def test_radii_are_checked(options):
    with pytest.raises(InputError, match="radii"):
        VsharpConfig(**options)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_threshold_is_checked(threshold):
    with pytest.raises(InputError, match="threshold"):
        VsharpConfig(threshold=threshold)
