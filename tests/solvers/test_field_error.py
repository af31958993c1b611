"""Error of the field from its power near the cone, against errors that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from chisep.physics.dipole import Dipole, half_spectrum, of_half_spectrum
from chisep.simulation.structured_errors import structured_field_error
from chisep.solvers import iterative, tikhonov, tkd, tv
from chisep.solvers._admm import PENALTY_VOXEL, minimise
from chisep.solvers._common import PaddedBox
from chisep.solvers.field_error import coarse_error, field_error, field_spectra, least_of, noise_pattern
from chisep.types import Grid
from tests.solvers.head import make_head, nrmse_percent


@pytest.fixture(scope="module")
def head():
    return make_head((40, 44, 36))


def structured(head, sigma_ppm, seed=0):
    """Gaussian error: a fine part, and as much again between one and two voxels."""
    noise = torch.randn((2, *head.grid.shape), generator=torch.Generator().manual_seed(seed)).numpy()
    fine, coarse = noise[0], gaussian_filter(noise[1], 1) - gaussian_filter(noise[1], 2)
    error = torch.from_numpy(fine / fine.std() + coarse / coarse.std()) * head.mask
    return error * sigma_ppm / error[head.mask].square().mean().sqrt()


def with_error(head, sigma_ppm, seed=0, r2prime_noise_ppm=0.0):
    maps = head.maps(r2prime_noise_ppm=r2prime_noise_ppm)
    return replace(maps, field_ppm=maps.field_ppm + structured(head, sigma_ppm, seed))


@pytest.mark.parametrize("sigma_ppm", [3e-3, 6e-3, 9e-3])
def test_structured_errors_are_found(head, sigma_ppm):
    sigma = field_error(with_error(head, sigma_ppm)).sigma_ppm
    assert float(sigma[head.mask].median()) == pytest.approx(sigma_ppm, rel=0.25)
    assert not sigma[~head.mask].any()


def test_a_field_without_error_has_next_to_none(head):
    maps = head.maps()
    assert field_spectra(maps).sigma_ppm < 0.02 * float(maps.field_ppm[head.mask].std())


def test_oblique_b0_and_anisotropic_voxels():
    head = make_head((40, 44, 24), (2.0, 2.0, 3.0), (0.0, 0.5, 0.87))
    assert field_spectra(head.maps(field_noise_ppm=2e-3)).sigma_ppm == pytest.approx(2e-3, rel=0.15)


def test_noise_goes_as_one_over_the_magnitude(head):
    """The magnitude falls to a third along an axis: σ follows it, and its median is that of the noise."""
    magnitude = torch.linspace(3, 1, head.grid.shape[0])[:, None, None].expand(head.grid.shape) * head.mask
    noise = torch.randn(head.grid.shape, generator=torch.Generator().manual_seed(1))
    true = torch.where(head.mask, 4e-3 / magnitude, torch.zeros(()))
    maps = replace(head.maps(), magnitude=magnitude)
    found = field_error(replace(maps, field_ppm=maps.field_ppm + true * noise)).sigma_ppm
    torch.testing.assert_close(found[head.mask], true[head.mask], rtol=0.12, atol=0)


def test_the_pattern_is_bounded(head):
    hole = torch.ones(head.grid.shape)
    hole[20, 20, 18], hole[10, 20, 18] = 0.0, 100.0
    pattern = noise_pattern(replace(head.maps(), magnitude=hole))
    assert (float(pattern.max()), float(pattern[head.mask].min())) == (4.0, 0.5)


def test_the_gradient_of_chi_does_not_grow_with_the_error(head):
    """That of a phantom so small and smooth is overestimated, by what the border leaks."""
    steps = torch.stack([head.chi_ppm.diff(dim=axis).square().sum() for axis in range(3)]).sum()
    true = float((steps / head.mask.sum()).sqrt())
    clean, noisy = (field_spectra(with_error(head, s)).chi_gradient_ppm for s in (0.0, 6e-3))
    assert true < clean < 2 * true
    assert noisy == pytest.approx(clean, rel=0.2)


def test_a_given_sigma_is_kept(head):
    maps = replace(head.maps(field_noise_ppm=1e-3), field_sigma_ppm=4e-3)
    error = field_error(maps)
    assert error.sigma_ppm == 4e-3
    assert error.spectra.sigma_ppm == pytest.approx(4e-3)
    assert field_spectra(replace(maps, field_sigma_ppm=4e-3 * head.mask)).sigma_ppm == pytest.approx(4e-3)


def test_few_voxels_have_white_noise_only():
    head = make_head((14, 14, 14))
    error = field_error(head.maps())
    assert error.spectra is None
    for solver, config in (
        (tikhonov, tikhonov.TikhonovConfig()),
        (tkd, tkd.TkdConfig()),
        (tv, tv.TvConfig()),
    ):
        assert torch.isfinite(solver.solve(head.maps(), config).chi_ppm).all()


def test_least_of():
    assert least_of(lambda x: (x - 0.3) ** 2, 1e-3, 1.0) == pytest.approx(0.3, rel=1e-2)


@pytest.mark.parametrize("sigma_ppm", [1e-3, 6e-3])
@pytest.mark.parametrize(
    ("solver", "fixed"),
    [
        (tikhonov, [tikhonov.TikhonovConfig(10.0**power) for power in (-4, -3, -2, -1)]),
        (tkd, [tkd.TkdConfig(threshold) for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)]),
    ],
)
def test_closed_forms_choose_a_weight_near_the_best(head, solver, fixed, sigma_ppm):
    maps = with_error(head, sigma_ppm)

    def error(config):
        return nrmse_percent(solver.solve(maps, config).chi_ppm, head.chi_ppm, head.mask)

    assert error(type(fixed[0])()) < 1.05 * min(error(config) for config in fixed)


def test_tv_knows_that_structured_errors_are_coarse():
    """Far better than Tikhonov, and than itself with all of the error taken for white."""
    head = make_head((56, 60, 50))
    error = structured_field_error(head.mask, head.grid, np.random.default_rng(0))
    maps = replace(head.maps(), field_ppm=head.maps().field_ppm + 6e-3 * error)
    found = field_error(maps)
    coarse = coarse_error(found, PaddedBox(head.mask, head.grid, padding=0.1).periodic_grid)
    assert coarse.white_part < 0.95
    assert coarse.power.max() > 30 * coarse.power.median()
    of_tv, of_tikhonov = (
        nrmse_percent(made.chi_ppm, head.chi_ppm, head.mask)
        for made in (tv.solve(maps, tv.TvConfig()), tikhonov.solve(maps, tikhonov.TikhonovConfig()))
    )
    assert of_tv < 0.9 * of_tikhonov


def test_admm_with_a_coarse_error_is_the_best_linear_estimate():
    """Against dense matrices: a ridge in place of TV, and the covariance of the whole error."""
    ridge, penalty, grid = 0.05, 0.05, Grid((8, 9, 7), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    padded = PaddedBox(torch.ones(grid.shape, dtype=torch.bool), grid, padding=0.1)
    rng = torch.Generator().manual_seed(2)
    field = padded.cut(torch.randn(grid.shape, generator=rng)).double()
    inside = padded.cut(torch.ones(grid.shape)).double()
    periodic, dipole = padded.periodic_grid, Dipole(grid, dtype=torch.float64)
    power = 5 * torch.rand(half_spectrum(torch.ones(periodic.shape), periodic.shape).shape, generator=rng)
    power[..., 0] = power[..., -1] = 2.0  # a half spectrum of any values is not that of an even function
    power = power[:1, :1].expand_as(power).double().contiguous()
    made, _ = minimise(
        padded=padded,
        grid=grid,
        field_ppm=field,
        weight=inside,
        start=torch.zeros_like(field)[None],
        field_gain=1.0,
        tv_weight=1e-12,
        tv_mask=torch.ones((3, *field.shape), dtype=torch.bool),
        voxelwise=lambda z: z * inside * PENALTY_VOXEL / (PENALTY_VOXEL + ridge),
        penalty_field=penalty,
        coarse_power=power,
        iterations=1500,
        tolerance=1e-10,
        progress=None,
    )
    units = torch.eye(math.prod(grid.shape), dtype=torch.float64).reshape(-1, *grid.shape)
    forward = torch.stack([dipole.apply(unit).flatten() for unit in units], 1)

    def coarse(unit):
        spectrum = half_spectrum(padded.cut(unit), periodic.shape) * power
        return padded.box(of_half_spectrum(spectrum, periodic.shape, periodic.shape))

    covariance = torch.stack([coarse(unit)[:8, :9, :7].flatten() for unit in units], 1)
    covariance = covariance + torch.eye(len(units), dtype=torch.float64)
    inverse = forward.T @ torch.linalg.inv(covariance)
    wanted = torch.linalg.solve(
        inverse @ forward + ridge * torch.eye(len(units), dtype=torch.float64),
        inverse @ field[:8, :9, :7].flatten(),
    )
    # The wrapped field is corrected in the data, not in the adjoint: 1.2 %.
    assert (made[0, :8, :9, :7].flatten() - wanted).norm() < 0.02 * wanted.norm()


def test_a_white_error_has_no_coarse_part(head):
    maps = head.maps(field_noise_ppm=3e-3)
    assert coarse_error(field_error(maps), head.grid) == (1.0, None)


def test_what_a_given_sigma_has_beyond_the_error_found_is_coarse(head):
    maps = head.maps(field_noise_ppm=1e-3)
    spectra = field_spectra(replace(maps, field_sigma_ppm=2e-3))
    assert spectra.sigma_ppm == pytest.approx(2e-3)
    assert 1e-6 < spectra.white_power < 1.5e-6
    assert spectra.coarseness > 2
    assert field_spectra(replace(maps, field_sigma_ppm=1.05e-3)).coarseness == 1
    own, smaller = (field_spectra(replace(maps, field_sigma_ppm=sigma)) for sigma in (None, 0.5e-3))
    torch.testing.assert_close(smaller.error, own.error * (0.5e-3 / own.sigma_ppm) ** 2)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_tkd_with_structured_errors_is_no_worse_than_tikhonov(seed):
    """In a head of 60 voxels. In 40 voxels too few waves lie near the cone for the estimated spectra, and the
    order of the two, which differ by less than 1 %, is chance."""
    head = make_head((56, 60, 50))
    error = structured_field_error(head.mask, head.grid, np.random.default_rng(seed))
    maps = replace(head.maps(), field_ppm=head.maps().field_ppm + 6e-3 * error)
    of_tkd, of_tikhonov = (
        nrmse_percent(made.chi_ppm, head.chi_ppm, head.mask)
        for made in (tkd.solve(maps, tkd.TkdConfig()), tikhonov.solve(maps, tikhonov.TikhonovConfig()))
    )
    assert of_tkd < of_tikhonov


def test_tv_with_structured_errors_is_no_worse_than_tikhonov(head):
    maps = with_error(head, 6e-3)
    made = tv.solve(maps, tv.TvConfig())
    simple = tikhonov.solve(maps, tikhonov.TikhonovConfig())
    errors = [nrmse_percent(x.chi_ppm, head.chi_ppm, head.mask) for x in (made, simple)]
    assert errors[0] < errors[1]
    assert made.convergence.chosen["tv_weight"] > 0
    assert simple.convergence.chosen["alpha"] > 0.01


def test_iterative_weighs_the_field_by_its_estimated_error(head):
    """As good as with the true σ; with that of the thermal noise alone it is worse."""
    maps = with_error(head, 6e-3, r2prime_noise_ppm=1e-2)
    config = iterative.IterativeConfig(iterations=30)

    def error(maps):
        made = iterative.solve(maps, config)
        return nrmse_percent(made.chi_pos_ppm, head.chi_pos_ppm, head.mask)

    found, true, small = error(maps), *(error(replace(maps, field_sigma_ppm=s)) for s in (6e-3, 1e-3))
    assert found < 1.05 * true
    assert found < 0.9 * small
