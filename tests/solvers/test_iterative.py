from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.optimize import nnls

from chisep.errors import InputError
from chisep.solvers import closed_form, iterative
from chisep.solvers._admm import PENALTY_VOXEL
from chisep.types import Relaxivity
from tests.solvers.head import make_head, nrmse_percent

CONFIG = iterative.IterativeConfig()


@pytest.fixture(scope="module")
def head():
    return make_head((30, 32, 28))


def errors(sources, head):
    return (
        nrmse_percent(sources.chi_pos_ppm, head.chi_pos_ppm, head.mask),
        nrmse_percent(sources.chi_neg_ppm, head.chi_neg_ppm, head.mask),
    )


@pytest.mark.parametrize("relaxivity", [Relaxivity(114.0, 114.0), Relaxivity(114.0, 150.0)])
def test_maps_without_noise_give_the_truth(head, relaxivity):
    """Field and R2' alone determine both sources where the model is exact."""
    assert max(errors(iterative.solve(head.maps(relaxivity), CONFIG), head)) < 1


def test_a_true_qsm_map_is_kept(head):
    maps = replace(head.maps(), chi_ppm=head.chi_ppm)
    assert max(errors(iterative.solve(maps, CONFIG), head)) < 1


@pytest.mark.parametrize("seed", [0, 1])
def test_beats_the_closed_form_at_snr_50(head, seed):
    maps = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2, seed=seed)
    iterated = errors(iterative.solve(maps, CONFIG), head)
    voxelwise = errors(closed_form.solve(maps, closed_form.ClosedFormConfig()), head)
    assert iterated[0] < 0.6 * voxelwise[0]
    assert iterated[1] < 0.6 * voxelwise[1]


def test_beats_the_closed_form_given_the_same_qsm_map(head):
    noise = torch.randn(head.grid.shape, generator=torch.Generator().manual_seed(3))
    maps = replace(
        head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2),
        chi_ppm=(head.chi_ppm + 0.015 * noise) * head.mask,
    )
    iterated = errors(iterative.solve(maps, CONFIG), head)
    voxelwise = errors(closed_form.solve(maps, closed_form.ClosedFormConfig()), head)
    assert iterated[0] < 0.7 * voxelwise[0]
    assert iterated[1] < 0.7 * voxelwise[1]


def test_oblique_b0_and_anisotropic_voxels():
    head = make_head((30, 32, 22), (2.0, 2.0, 3.0), (0.0, 0.5, 0.87))
    assert max(errors(iterative.solve(head.maps(), CONFIG), head)) < 1.5


def test_sources_in_the_rim_explain_the_field_inside(head):
    """The field is known in a part of the brain only, but all of it makes the field."""
    inner = torch.from_numpy(binary_erosion(head.mask.numpy(), iterations=3))
    maps = replace(head.maps(), mask=inner)
    error = {}
    for support in (None, head.mask):
        # Without sources in the rim it converges slowly, to a larger error.
        config = iterative.IterativeConfig(iterations=240)
        sources = iterative.solve(replace(maps, support=support), config)
        assert not sources.chi_pos_ppm[~(inner if support is None else support)].any()
        error[support is None] = nrmse_percent(sources.chi_neg_ppm, head.chi_neg_ppm, inner)
    assert error[False] < 0.7 * error[True]


def test_scales_with_its_maps(head):
    maps = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2)
    config = iterative.IterativeConfig(iterations=30, tolerance=0.1)
    once = iterative.solve(maps, config)
    doubled = replace(maps, field_ppm=2 * maps.field_ppm, r2prime_hz=2 * maps.r2prime_hz)
    twice = iterative.solve(doubled, config)
    torch.testing.assert_close(twice.chi_pos_ppm, 2 * once.chi_pos_ppm, rtol=1e-3, atol=1e-5)


def test_double_precision_agrees(head):
    maps = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2)
    single, double = (
        iterative.solve(maps.to("cpu", dtype), CONFIG).chi_pos_ppm for dtype in (torch.float32, torch.float64)
    )
    assert double.dtype == torch.float64
    assert nrmse_percent(single.double(), double, head.mask) < 0.1


def test_an_even_noise_map_is_one_number(head):
    maps = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2)
    numbers = replace(maps, field_sigma_ppm=1e-3, r2prime_sigma_hz=1.14)
    even = torch.ones(head.grid.shape)
    volumes = replace(maps, field_sigma_ppm=1e-3 * even, r2prime_sigma_hz=1.14 * even)
    one, other = (iterative.solve(m, CONFIG).chi_pos_ppm for m in (numbers, volumes))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_noise_maps_weigh_each_voxel(head):
    """One half of the head is ten times noisier: its noise must not spoil the other half."""
    factor = torch.ones(head.grid.shape)
    factor[:15] = 10.0
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn(head.grid.shape, generator=generator) * factor * head.mask for _ in range(2)]
    maps = head.maps()
    maps = replace(
        maps,
        field_ppm=maps.field_ppm + 1e-3 * noise[0],
        r2prime_hz=(maps.r2prime_hz + 1.14 * noise[1]).clamp(min=0),
    )
    weighed = replace(maps, field_sigma_ppm=1e-3 * factor, r2prime_sigma_hz=1.14 * factor)
    even = replace(maps, field_sigma_ppm=3e-3, r2prime_sigma_hz=3.4)
    better, worse = (max(errors(iterative.solve(m, CONFIG), head)) for m in (weighed, even))
    assert better < 0.8 * worse


def test_a_noise_map_of_zeros_is_refused(head):
    nothing = torch.zeros(head.grid.shape)
    with pytest.raises(InputError, match="noise map"):
        iterative.solve(replace(head.maps(), field_sigma_ppm=nothing), CONFIG)


def test_tells_when_it_has_not_converged(head):
    maps = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2)
    seen = []
    sources = iterative.solve(
        maps, iterative.IterativeConfig(iterations=5), lambda _, done, most: seen.append((done, most))
    )
    assert "iterations" in sources.convergence.warnings[0]
    assert not sources.convergence.converged
    assert sources.convergence.iterations == len(sources.convergence.change) == 5
    assert seen == [(n, 5) for n in range(1, 6)]


def test_nothing_to_separate(head):
    empty = torch.zeros(head.grid.shape)
    sources = iterative.solve(replace(head.maps(), field_ppm=empty, r2prime_hz=empty), CONFIG)
    assert not sources.chi_pos_ppm.any()
    assert not sources.chi_neg_ppm.any()


def test_voxel_step_is_nonnegative_least_squares():
    """Against SciPy's NNLS on random voxels, with and without a QSM map."""
    rng = np.random.default_rng(0)
    ratio, weight_r, weight_q, rho = 1.4, 0.02, 0.01, PENALTY_VOXEL
    target, qsm = (torch.tensor(rng.normal(0, 0.1, (4, 4, 4))) for _ in range(2))
    z = torch.tensor(rng.normal(0, 0.1, (2, 4, 4, 4)))
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = False
    weights = (torch.full_like(target, weight_r), torch.full_like(target, weight_q))
    made = iterative.VoxelStep(target, qsm, mask, ratio, *weights)(z)
    assert not made[:, 0, 0, 0].any()
    roots = np.sqrt([weight_r, weight_q, rho, rho])
    matrix = roots[:, None] * np.array([[1, ratio], [1, -1], [1, 0], [0, 1]])
    for at in np.argwhere(mask.numpy()):
        i, j, k = at
        right = roots * np.array([target[i, j, k], qsm[i, j, k], z[0, i, j, k], z[1, i, j, k]])
        np.testing.assert_allclose(made[:, i, j, k], nnls(matrix, right)[0], atol=1e-9)


@pytest.mark.parametrize("missing", ["r2prime_hz", "relaxivity"])
def test_what_is_missing_is_named(head, missing):
    with pytest.raises(InputError, match="R2'" if missing == "r2prime_hz" else "D_r"):
        iterative.solve(replace(head.maps(), **{missing: None}), CONFIG)


@pytest.mark.parametrize(
    "bad", [{"tv_weight": 0.0}, {"iterations": 0}, {"tolerance": 0.0}, {"qsm_sigma_ppm": -1.0}]
)
def test_settings_are_checked(bad):
    with pytest.raises(InputError):
        iterative.IterativeConfig(**bad)
