from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.optimize import nnls

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.signal import r2prime_of_sources
from chisep.simulation.anatomy import LabelMap, packaged_labels, with_structures
from chisep.simulation.tissue import Tissue, TissueConfig, make_tissue
from chisep.solvers.cosmos import (
    CosmosConfig,
    MaskedDipoles,
    condition_number,
    cosmos,
    nonnegative_sources,
    separate_by_orientations,
    spread_deg,
)
from chisep.types import Grid, Relaxivity
from tests.physics.battery import check

EXACT = CosmosConfig(iterations=300, tolerance=1e-10)


def tilted(about_x_deg: float, about_y_deg: float) -> tuple[float, float, float]:
    """B0 as seen from a head turned about its x and y axes."""
    x, y = math.radians(about_x_deg), math.radians(about_y_deg)
    return math.sin(y) * math.cos(x), -math.sin(x), math.cos(x) * math.cos(y)


SIX = [tilted(*tilt) for tilt in ((0, 0), (30, 0), (-30, 0), (0, 30), (0, -30), (21, 21))]


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))


@dataclass
class Head:
    tissue: Tissue
    chi_ppm: torch.Tensor
    fields_ppm: torch.Tensor


@pytest.fixture(scope="module")
def head() -> Head:
    """The packaged head at 4 mm, and the fields of its brain in six orientations."""
    rng = np.random.default_rng(0)
    whole = packaged_labels()
    half = LabelMap(
        np.ascontiguousarray(whole.labels[::2, ::2, ::2]),
        whole.affine @ np.diag([2.0, 2.0, 2.0, 1.0]),
        whole.source,
    )
    tissue = make_tissue(with_structures(half, rng), rng, TissueConfig(), voxel_mm=(4.0, 4.0, 4.0), b0_t=3.0)
    chi = tissue.chi_pos_ppm - tissue.chi_neg_ppm
    fields = torch.stack([Dipole(replace(tissue.grid, b0_direction=b)).apply(chi) for b in SIX])
    return Head(tissue, chi, fields)


def with_noise(fields_ppm: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Noise of 1 ppb: a field of about SNR 50 in phase."""
    return fields_ppm + 1e-3 * torch.randn(fields_ppm.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [Grid((4, 4, 4), (1.0, 1.0, 1.0)), Grid((3, 5, 4), (1.0, 0.7, 2.0))])
def test_operator(grid):
    known = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    grids = [replace(grid, b0_direction=b) for b in SIX[:3]]
    check(MaskedDipoles(grids, known, torch.float64), grid.shape, (3, *grid.shape))
    weights = (
        torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * known
    )
    check(MaskedDipoles(grids, weights, torch.float64, known[0]), grid.shape, (3, *grid.shape))


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (1.0, 1.5, 0.8)])
@pytest.mark.parametrize("one_mask", [True, False])
def test_is_the_dense_least_squares_solution(voxel_mm, one_mask):
    generator = torch.Generator().manual_seed(0)
    shape = (6, 5, 7)
    grid = Grid(shape, voxel_mm)
    masks = torch.rand(shape if one_mask else (4, *shape), generator=generator) > 0.25
    masks[..., [0, -1], :, :] = masks[..., :, [0, -1], :] = True  # so that the box is the whole grid
    masks[..., :, :, [0, -1]] = True
    each = masks.expand(4, *shape)
    support = each.any(0)
    fields = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    config = replace(EXACT, tikhonov=1e-2)
    found = cosmos(fields, masks, SIX[1:5], grid, config).chi_ppm

    # The solver leaves one empty layer around the mask, so that its kernels are those of a larger grid.
    larger = grid.reshaped([n + 1 for n in shape])
    basis = torch.zeros(int(support.sum()), *larger.shape, dtype=torch.float64)
    basis[torch.arange(len(basis)), *support.nonzero().T] = 1
    i, j, k = (slice(0, n) for n in shape)
    columns = [
        Dipole(replace(larger, b0_direction=b), dtype=torch.float64).apply(basis)[:, i, j, k] * mask
        for b, mask in zip(SIX[1:5], each, strict=True)
    ]
    dense = torch.stack(columns, dim=1).flatten(1).T
    left = dense.T @ dense + config.tikhonov * torch.eye(len(basis), dtype=torch.float64)
    wanted = torch.linalg.solve(left, dense.T @ (fields * each).flatten())
    torch.testing.assert_close(found[support], wanted)
    assert not found[~support].any()


def test_a_head_without_noise_is_recovered(head):
    mask = head.tissue.mask
    found = cosmos(head.fields_ppm * mask, mask, SIX, head.tissue.grid, CosmosConfig())
    assert found.convergence.converged
    assert relative_error(found.chi_ppm, head.chi_ppm) < 0.02
    assert not found.chi_ppm[~mask].any()


def test_a_noisy_head_and_its_sources(head):
    tissue, fields = head.tissue, with_noise(head.fields_ppm) * head.tissue.mask
    found = cosmos(fields, tissue.mask, SIX, tissue.grid, CosmosConfig())
    assert relative_error(found.chi_ppm, head.chi_ppm) < 0.10
    sources = separate_by_orientations(
        fields, tissue.mask, SIX, tissue.r2prime_hz, tissue.relaxivity, tissue.grid, CosmosConfig()
    )
    assert relative_error(sources.chi_pos_ppm, tissue.chi_pos_ppm) < 0.05
    assert relative_error(sources.chi_neg_ppm, tissue.chi_neg_ppm) < 0.05
    assert sources.convergence == found.convergence


def test_iterating_beats_the_closed_form_and_more_orientations_beat_fewer(head):
    mask, grid, fields = head.tissue.mask, head.tissue.grid, with_noise(head.fields_ppm)

    def error(orientations: list[int], config: CosmosConfig) -> float:
        b0 = [SIX[n] for n in orientations]
        return relative_error(cosmos(fields[orientations], mask, b0, grid, config).chi_ppm, head.chi_ppm)

    everything = list(range(6))
    six = error(everything, CosmosConfig())
    assert six < error([0, 1, 3], CosmosConfig())
    assert six < 0.5 * error(everything, CosmosConfig(iterations=1))
    stopped = cosmos(fields, mask, SIX, grid, CosmosConfig(iterations=1)).convergence
    assert "COSMOS stopped after 1 iteration" in stopped.warnings[0]


def test_what_lies_outside_a_mask_is_not_read(head):
    """Each field known elsewhere: other values beyond its mask change nothing."""
    mask = head.tissue.mask
    masks = mask.expand(6, *mask.shape).clone()
    inside = mask.nonzero()
    middle = int(inside[:, 1].float().mean())
    masks[1, :, :middle] = masks[4, :, middle:] = False
    clean = cosmos(head.fields_ppm * masks, masks, SIX, head.tissue.grid, CosmosConfig())
    spoiled = cosmos(torch.where(masks, head.fields_ppm, 5.0), masks, SIX, head.tissue.grid, CosmosConfig())
    torch.testing.assert_close(spoiled.chi_ppm, clean.chi_ppm)
    assert relative_error(clean.chi_ppm, head.chi_ppm) < 0.02


def test_is_linear_in_the_fields(head):
    mask, grid = head.tissue.mask, head.tissue.grid
    once = cosmos(head.fields_ppm, mask, SIX, grid, CosmosConfig()).chi_ppm
    twice = cosmos(2 * head.fields_ppm, mask, SIX, grid, CosmosConfig()).chi_ppm
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-7)


def test_fields_of_zero_give_zero_and_progress_is_reported():
    grid = Grid((8, 8, 8), (1.0, 1.0, 1.0))
    seen = []
    found = cosmos(
        torch.zeros(6, 8, 8, 8),
        torch.ones(8, 8, 8, dtype=torch.bool),
        SIX,
        grid,
        CosmosConfig(),
        progress=lambda *step: seen.append(step),
    )
    assert not found.chi_ppm.any()
    assert seen == [("iterations", 1, 60)]


def test_reference_has_mean_zero(head):
    ventricles = torch.isin(head.tissue.labels, torch.tensor([4, 43])) & head.tissue.mask
    found = cosmos(
        head.fields_ppm, head.tissue.mask, SIX, head.tissue.grid, CosmosConfig(), reference=ventricles
    ).chi_ppm
    assert float(found[ventricles].mean()) == pytest.approx(0, abs=1e-7)
    assert not found[~head.tissue.mask].any()


def test_double_precision_is_kept():
    fields = torch.randn(3, 6, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(6, 6, 6, dtype=torch.bool)
    found = cosmos(fields, mask, SIX[1:4], Grid((6, 6, 6), (1.0, 1.0, 1.0)), EXACT)
    assert found.chi_ppm.dtype == torch.float64


def test_condition_number():
    assert condition_number([(0.0, 0.0, 1.0)] * 3) > 1000
    # A rotation of all orientations together changes nothing, nor does the sign of a direction.
    turned = [(-b[1], b[0], -b[2]) for b in SIX]
    assert condition_number(turned) == pytest.approx(condition_number(SIX), rel=1e-3)
    assert condition_number(SIX) < 2.5 < condition_number([tilted(0, 0), tilted(15, 0), tilted(0, 15)])
    # B0 along x, y and z: Σ (1/3 − k_a²)² = Σ k_a⁴ − 1/3, which is 2/3 along an axis and 0 on the diagonal.
    assert condition_number([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]) > 50


def test_orientations_that_hardly_differ_are_warned_of():
    fields = torch.zeros(3, 6, 6, 6)
    b0 = [tilted(0, 0), tilted(4, 0), tilted(0, 4)]
    mask, grid = torch.ones(6, 6, 6, dtype=torch.bool), Grid((6, 6, 6), (1.0, 1.0, 1.0))
    warnings = cosmos(fields, mask, b0, grid, CosmosConfig()).convergence.warnings
    assert "differ by 5.7° at most" in warnings[0]
    assert "condition number" in warnings[1]
    (two,) = cosmos(fields[:2], mask, SIX[:2], grid, CosmosConfig()).convergence.warnings
    assert "two head orientations" in two


def test_spread_is_the_largest_angle_whatever_the_sign():
    assert spread_deg(SIX[:2]) == pytest.approx(30)
    assert spread_deg([SIX[0], tuple(-b for b in SIX[1])]) == pytest.approx(30)
    assert spread_deg(SIX[1:3]) == pytest.approx(60)
    assert spread_deg([SIX[0]] * 3) == pytest.approx(0, abs=1e-5)


def test_noise_weights_beat_equal_weights(head):
    """One orientation with ten times the noise in half of the head: with σ it hardly matters."""
    sigma = torch.full_like(head.fields_ppm, 1e-3)
    sigma[2, : sigma.shape[1] // 2] = 1e-2
    noise = torch.randn(sigma.shape, generator=torch.Generator().manual_seed(3)) * sigma
    found = [
        relative_error(
            cosmos(
                head.fields_ppm + noise,
                head.tissue.mask,
                SIX,
                head.tissue.grid,
                CosmosConfig(),
                sigmas_ppm=known,
            ).chi_ppm,
            head.chi_ppm,
        )
        for known in (None, sigma)
    ]
    assert found[1] < 0.6 * found[0]


def test_equal_noise_changes_nothing(head):
    inputs = (with_noise(head.fields_ppm), head.tissue.mask, SIX, head.tissue.grid, CosmosConfig())
    weighted = cosmos(*inputs, sigmas_ppm=torch.full_like(head.fields_ppm, 2e-3))
    torch.testing.assert_close(weighted.chi_ppm, cosmos(*inputs).chi_ppm, rtol=1e-3, atol=1e-5)


def test_sources_of_the_rim_are_found_where_no_field_is_known(head):
    """Fields of the core alone: with χ in the whole brain the core is right, without it is not."""
    brain = head.tissue.mask
    core = torch.from_numpy(ndimage.binary_erosion(brain.numpy(), iterations=2))
    wide, narrow = (
        cosmos(head.fields_ppm * core, core, SIX, head.tissue.grid, CosmosConfig(), support=support).chi_ppm
        for support in (brain, None)
    )
    assert relative_error(wide[core], head.chi_ppm[core]) < 0.5 * relative_error(
        narrow[core], head.chi_ppm[core]
    )


@pytest.mark.parametrize("ratio", [1.0, 0.4, 2.5])
def test_sources_are_those_of_scipy_nnls(ratio):
    rng = np.random.default_rng(0)
    relaxivity = Relaxivity(114.0, 114.0 * ratio)
    chi, total = rng.normal(0, 0.05, 500), rng.normal(0.02, 0.05, 500)
    maps = [torch.tensor(values).reshape(5, 10, 10) for values in (chi, total * 114.0)]
    found = nonnegative_sources(*maps, relaxivity)
    matrix = np.array([[1.0, -1.0], [1.0, ratio]])
    wanted = np.array([nnls(matrix, [a, b])[0] for a, b in zip(chi, total, strict=True)])
    np.testing.assert_allclose(found.chi_pos_ppm.flatten().numpy(), wanted[:, 0], atol=1e-14)
    np.testing.assert_allclose(found.chi_neg_ppm.flatten().numpy(), wanted[:, 1], atol=1e-14)


def test_sources_of_exact_maps_are_exact(head):
    tissue = head.tissue
    relaxivity = Relaxivity(114.0, 80.0)
    r2prime_hz = r2prime_of_sources(tissue.chi_pos_ppm, tissue.chi_neg_ppm, relaxivity)
    sources = nonnegative_sources(head.chi_ppm, r2prime_hz, relaxivity)
    torch.testing.assert_close(sources.chi_pos_ppm, tissue.chi_pos_ppm, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(sources.chi_neg_ppm, tissue.chi_neg_ppm, rtol=1e-4, atol=1e-7)


SHAPE = (4, 4, 4)
FULL = torch.ones(SHAPE, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields_ppm": torch.zeros(1, *SHAPE), "b0_directions": SIX[:1]}, "at least 2"),
        ({"sigmas_ppm": torch.zeros(3, *SHAPE)}, "above 0 in its mask"),
        ({"b0_directions": SIX[:2]}, "3 vectors"),
        ({"b0_directions": [(0.0, 1.0)] * 3}, "3 vectors"),
        ({"b0_directions": [*SIX[:2], (0.0, 0.0, 0.0)]}, "vector with a length"),
        ({"masks": torch.stack((FULL, FULL, ~FULL))}, "without any voxel"),
        ({"reference": ~FULL}, "without any voxel"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    inputs = {
        "fields_ppm": torch.zeros(3, *SHAPE),
        "masks": FULL,
        "b0_directions": SIX[1:4],
        "grid": Grid(SHAPE, (1.0, 1.0, 1.0)),
        "config": CosmosConfig(),
    }
    with pytest.raises(InputError, match=message):
        cosmos(**(inputs | change))


@pytest.mark.parametrize("option", [{"iterations": 0}, {"tolerance": 0.0}, {"tikhonov": -1.0}])
def test_impossible_settings_are_refused(option):
    with pytest.raises(InputError):
        CosmosConfig(**option)
