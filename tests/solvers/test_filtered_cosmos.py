"""COSMOS with filtered fields: harmonic errors of the fields do not matter; CSF sets what they leave open."""

from __future__ import annotations

import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.spherical_mean import reach_mm
from chisep.preprocessing.morphology import depth_mm
from chisep.solvers.cosmos import CosmosConfig, cosmos
from chisep.solvers.csf_reference import CsfConfig, relative_to_csf
from chisep.solvers.filtered_cosmos import FilteredConfig, FilteredDipoles, filtered_cosmos
from chisep.types import Grid
from tests.physics.battery import check
from tests.solvers.test_cosmos import SIX, head, relative_error  # noqa: F401


def test_operator():
    grid = Grid((6, 7, 5), (2.0, 2.0, 2.5))
    masks = torch.ones((2, *grid.shape), dtype=torch.bool)
    masks[1, :2] = False
    reaches = torch.stack([reach_mm(depth_mm(mask, grid)).double() for mask in masks])
    weights = torch.rand(masks.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    operator = FilteredDipoles(grid, SIX[:2], reaches, weights, masks[0])
    check(operator, grid.shape, (2, *grid.shape))
    fields = torch.randn(masks.shape, dtype=torch.float64)
    filtered = torch.stack([one.apply(field) for one, field in zip(operator.filters, fields, strict=True)])
    torch.testing.assert_close(operator.back(fields), operator.adjoint(filtered))


def with_background(head, ppb=20.0):  # noqa: F811
    """Fields with the harmonic error of a source outside the head in each orientation."""
    grid, mask = head.tissue.grid, head.tissue.mask
    outside = torch.zeros(grid.shape)
    outside[0, 0, 0] = outside[-1, -1, 3] = 1.0
    fields = []
    for b0, field in zip(SIX, head.fields_ppm, strict=True):
        more = Dipole(Grid(grid.shape, grid.voxel_mm, b0), points=True).apply(outside)
        fields.append(field + more * ppb / 1000 / float(more[mask].std()))
    return torch.stack(fields) * mask


def test_harmonic_errors_of_the_fields_are_removed(head):  # noqa: F811
    tissue = head.tissue
    masks, grid = tissue.mask.expand(6, *tissue.mask.shape), tissue.grid
    fields = with_background(head)
    plain = cosmos(fields, tissue.mask, SIX, grid, CosmosConfig()).chi_ppm
    chi = filtered_cosmos(
        plain, fields, masks, SIX, grid, FilteredConfig(iterations=30), support=tissue.mask
    ).chi_ppm
    truth = head.tissue.chi_pos_ppm - head.tissue.chi_neg_ppm
    assert relative_error(chi, truth) < 0.6 * relative_error(plain, truth)
    kept = filtered_cosmos(
        plain, fields, masks, SIX, grid, FilteredConfig(iterations=0), support=tissue.mask
    ).chi_ppm
    assert torch.equal(kept, plain)


def test_smoothness_suppresses_noise(head):  # noqa: F811
    tissue, truth = head.tissue, head.tissue.chi_pos_ppm - head.tissue.chi_neg_ppm
    masks = tissue.mask.expand(6, *tissue.mask.shape)
    noise = 0.004 * torch.randn(head.fields_ppm.shape, generator=torch.Generator().manual_seed(1))
    fields = (head.fields_ppm + noise) * tissue.mask
    errors = []
    for smoothness in (1e-7, FilteredConfig().smoothness, 0.1):
        config = FilteredConfig(smoothness=smoothness)
        chi = filtered_cosmos(truth, fields, masks, SIX, tissue.grid, config, support=tissue.mask).chi_ppm
        errors.append(relative_error(chi, truth))
    assert errors[1] < errors[0]
    assert errors[1] < errors[2]


def test_a_mask_without_room_for_a_sphere_is_refused(head):  # noqa: F811
    grid = head.tissue.grid
    thin = torch.zeros(grid.shape, dtype=torch.bool)
    thin[5] = True
    with pytest.raises(InputError, match="a sphere of"):
        filtered_cosmos(
            torch.zeros(grid.shape),
            head.fields_ppm,
            thin.expand(6, *thin.shape),
            SIX,
            grid,
            FilteredConfig(),
            support=thin,
        )


@pytest.fixture
def phantom():
    """χ, R2* and mask of a box with fluid in the middle and around."""
    grid = Grid((30, 32, 28), (3.0, 3.0, 3.0))
    mask = torch.ones(grid.shape, dtype=torch.bool)
    fluid = torch.zeros(grid.shape, dtype=torch.bool)
    fluid[14:17, 14:19, 12:16] = True
    fluid[:2] = fluid[-2:] = fluid[:, :2] = fluid[:, :, -2:] = True
    chi = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0)) * 0.02 * ~fluid
    return grid, mask, fluid, chi, torch.where(fluid, 2.0, 20.0)


def test_what_fields_leave_open_is_found_from_csf(phantom):
    grid, mask, _, chi, rates = phantom
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in grid.shape], indexing="ij")
    edges = [n * 3.0 for n in grid.shape]
    square = (x * edges[0]) ** 2 + (y * edges[1]) ** 2 + (z * edges[2]) ** 2
    error = 0.005 - 0.01 * x + 0.002 * z - 0.02 * square / square.max()
    veins = torch.zeros_like(chi)
    veins[0, ::4, ::4] = 0.2
    found = relative_to_csf(chi + error + veins, rates, mask, grid, CsfConfig(), support=mask)
    assert found.order == 2
    assert float((found.chi_ppm - chi - veins).abs().max()) < 0.001
    assert float((found.removed_ppm - error).abs().max()) < 0.001
    assert found.csf.sum() > 0
    assert float(rates[found.csf].max()) < 4
    constant = relative_to_csf(chi + 0.01, rates, mask, grid, CsfConfig(order=0), support=mask)
    assert float((constant.chi_ppm - chi).abs().max()) < 0.001
    assert torch.equal(
        relative_to_csf(chi, rates, mask, grid, CsfConfig(order=-1), support=mask).chi_ppm, chi
    )


def test_little_csf_sets_a_constant_or_nothing(phantom):
    grid, mask, _, chi, _ = phantom
    rates = torch.full(grid.shape, 20.0)
    rates[14:17, 14:19, 12:16] = 2.0
    chi[14:17, 14:19, 12:16] = 0.0
    ventricle = relative_to_csf(chi + 0.01, rates, mask, grid, CsfConfig(), support=mask)
    assert ventricle.order == 0
    assert "one part of the brain" in ventricle.warnings[0]
    assert float((ventricle.chi_ppm - chi).abs().max()) < 0.001
    none = relative_to_csf(chi, torch.full(grid.shape, 20.0), mask, grid, CsfConfig(), support=mask)
    assert torch.equal(none.chi_ppm, chi)
    assert "zero of χ is not set" in none.warnings[0]
