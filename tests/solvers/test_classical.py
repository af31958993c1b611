"""Closed form, Tikhonov, TKD and TV against truth and against their own equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.solvers import closed_form, tikhonov, tkd, tv
from chisep.types import Grid, Maps, Relaxivity
from tests.solvers.head import make_head, nrmse_percent


@pytest.fixture(scope="module")
def head():
    return make_head((30, 32, 28))


@pytest.mark.parametrize("relaxivity", [Relaxivity(114.0, 114.0), Relaxivity(90.0, 200.0)])
def test_closed_form_is_exact_with_the_true_chi(head, relaxivity):
    maps = replace(head.maps(relaxivity), chi_ppm=head.chi_ppm)
    sources = closed_form.solve(maps, closed_form.ClosedFormConfig())
    assert nrmse_percent(sources.chi_pos_ppm, head.chi_pos_ppm, head.mask) < 0.01
    assert nrmse_percent(sources.chi_neg_ppm, head.chi_neg_ppm, head.mask) < 0.01


def test_closed_form_without_qsm_takes_tikhonov(head):
    maps = head.maps()
    config = closed_form.ClosedFormConfig(alpha=0.02)
    chi = tikhonov.solve(maps, tikhonov.TikhonovConfig(alpha=0.02)).chi_ppm
    made, given = (closed_form.solve(m, config) for m in (maps, replace(maps, chi_ppm=chi)))
    assert torch.equal(made.chi_pos_ppm, given.chi_pos_ppm)
    assert torch.equal(made.chi_neg_ppm, given.chi_neg_ppm)


def test_tikhonov_solves_its_normal_equation():
    """With a mask that fills a volume far from its content, (D² + α) χ = D f holds everywhere."""
    grid = Grid((24, 24, 24), (1.0, 1.0, 1.0), (0.0, 0.6, 0.8))
    field = torch.zeros(24, 24, 24, dtype=torch.float64)
    field[10:14, 10:14, 10:14] = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    maps = Maps(field, torch.ones(24, 24, 24, dtype=torch.bool), grid)
    chi = tikhonov.solve(maps, tikhonov.TikhonovConfig(alpha=0.3)).chi_ppm
    dipole = Dipole(grid, dtype=torch.float64)
    left, right = dipole.gram(chi) + 0.3 * chi, dipole.apply(field)
    assert (left - right).norm() < 0.02 * right.norm()


def test_tkd_recovers_a_point_at_its_strength():
    """The correction for underestimation: the centre of a point-spread function is 1."""
    grid = Grid((32, 32, 32), (1.0, 1.0, 1.0))
    point = torch.zeros(32, 32, 32, dtype=torch.float64)
    point[16, 16, 16] = 0.5
    mask = torch.ones_like(point, dtype=torch.bool)
    maps = Maps(Dipole(grid, dtype=torch.float64).apply(point), mask, grid)
    for threshold in (0.1, 0.2, 0.5):
        chi = tkd.solve(maps, tkd.TkdConfig(threshold)).chi_ppm
        assert float(chi[16, 16, 16]) == pytest.approx(0.5, rel=0.03)


def test_inversions_rank_as_published(head):
    maps = head.maps(field_noise_ppm=1e-3)
    error = {
        "tv": nrmse_percent(tv.solve(maps, tv.TvConfig()).chi_ppm, head.chi_ppm, head.mask),
        "tikhonov": nrmse_percent(
            tikhonov.solve(maps, tikhonov.TikhonovConfig()).chi_ppm, head.chi_ppm, head.mask
        ),
        "tkd": nrmse_percent(tkd.solve(maps, tkd.TkdConfig()).chi_ppm, head.chi_ppm, head.mask),
    }
    assert error["tv"] < 25
    assert error["tv"] < 0.6 * min(error["tikhonov"], error["tkd"])
    assert max(error.values()) < 65


def test_tv_without_noise_is_nearly_exact(head):
    chi = tv.solve(head.maps(), tv.TvConfig(tolerance=2e-4, iterations=250))
    assert chi.convergence.converged
    assert nrmse_percent(chi.chi_ppm, head.chi_ppm, head.mask) < 5


def test_tv_smooths_more_with_more_noise_declared(head):
    maps = head.maps(field_noise_ppm=1e-3)
    roughness = [
        float(tv.solve(replace(maps, field_sigma_ppm=sigma), tv.TvConfig()).chi_ppm.diff(dim=0).abs().sum())
        for sigma in (1e-4, 1e-3, 1e-2)
    ]
    assert roughness[0] > roughness[1] > roughness[2]


def test_edges_of_the_magnitude_are_spared(head):
    """Heavy smoothing flattens the nuclei, unless the magnitude shows their edges."""
    maps = replace(head.maps(), field_sigma_ppm=1e-2)
    nuclei = head.chi_pos_ppm > 0.08
    shown = replace(maps, magnitude=nuclei.float())
    plain, guided = (float(tv.solve(m, tv.TvConfig()).chi_ppm[nuclei].mean()) for m in (maps, shown))
    truth = float(head.chi_ppm[nuclei].mean())
    assert abs(guided - truth) < 0.8 * abs(plain - truth)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (closed_form.ClosedFormConfig, {"alpha": 0.0}),
        (tikhonov.TikhonovConfig, {"alpha": -1.0}),
        (tkd.TkdConfig, {"threshold": 0.7}),
        (tv.TvConfig, {"tv_weight": float("nan")}),
        (tv.TvConfig, {"iterations": 0}),
        (tv.TvConfig, {"tolerance": 2.0}),
        (tv.TvConfig, {"edge_fraction": 1.5}),
    ],
)
def test_settings_are_checked(config, bad):
    with pytest.raises(InputError):
        config(**bad)
