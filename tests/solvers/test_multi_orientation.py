"""Multi-orientation χ-separation and susceptibility tensor, on a small head with known sources."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.solvers.cosmos import CosmosConfig, MaskedDipoles, cosmos, nonnegative_sources
from chisep.solvers.multi_orientation import MultiOrientationConfig, separate_orientations
from chisep.solvers.tensor import TensorConfig, TensorFields, tensor
from chisep.types import Grid, Relaxivity
from tests.physics.battery import check
from tests.solvers.head import make_head

SIX = [
    (0.0, 0.0, 1.0),
    (0.5, 0.0, 0.866),
    (-0.5, 0.0, 0.866),
    (0.0, 0.5, 0.866),
    (0.0, -0.5, 0.866),
    (0.4, 0.4, 0.8246),
]
D_R = Relaxivity(114.0, 90.0)


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))


@pytest.fixture(scope="module")
def scans():
    """A small head, noisy fields of six orientations with their σ, and a noisy R2' with its σ."""
    head = make_head((24, 26, 22))
    noise = torch.Generator().manual_seed(0)
    fields = torch.stack([Dipole(replace(head.grid, b0_direction=b)).apply(head.chi_ppm) for b in SIX])
    sigma = torch.full_like(fields, 2e-3)
    fields = (fields + sigma * torch.randn(fields.shape, generator=noise)) * head.mask
    exact = (head.chi_pos_ppm * D_R.pos_hz_per_ppm + head.chi_neg_ppm * D_R.neg_hz_per_ppm) * head.mask
    rate = (exact + 2.0 * torch.randn(exact.shape, generator=noise)) * head.mask
    return head, fields, sigma, rate


def test_beats_voxelwise_least_squares_of_cosmos(scans):
    head, fields, sigma, rate = scans
    masks = head.mask.expand(len(SIX), *head.mask.shape)
    chi = cosmos(fields, masks, SIX, head.grid, CosmosConfig(), sigmas_ppm=sigma).chi_ppm
    voxelwise = nonnegative_sources(chi, rate, D_R)
    seen = []
    found = separate_orientations(
        fields,
        masks,
        SIX,
        rate,
        D_R,
        head.grid,
        MultiOrientationConfig(),
        sigmas_ppm=sigma,
        r2prime_sigma_hz=2.0 * head.mask,
        support=head.mask,
        chi_ppm=chi,
        progress=lambda *step: seen.append(step),
    )
    assert seen[0] == ("iterations", 1, 20)
    for name in ("chi_pos_ppm", "chi_neg_ppm"):
        result, truth = getattr(found, name), getattr(head, name) * head.mask
        assert float(result.min()) >= 0
        assert not result[~head.mask].any()
        assert relative_error(result, truth) < relative_error(getattr(voxelwise, name), truth)
    assert relative_error(found.chi_ppm, head.chi_ppm) <= 1.02 * relative_error(chi, head.chi_ppm)


@pytest.mark.parametrize("grid", [Grid((4, 4, 4), (1.0, 1.0, 1.0)), Grid((3, 5, 4), (1.0, 0.7, 2.0))])
def test_operator_of_the_tensor(grid):
    weights = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grids = [replace(grid, b0_direction=b) for b in SIX[:3]]
    operator = TensorFields(MaskedDipoles(grids, weights, torch.float64), grid)
    check(operator, (6, *grid.shape), (3, *grid.shape))


def test_a_tensor_without_anisotropy_has_the_field_of_its_chi(scans):
    head, *_ = scans
    grids = [replace(head.grid, b0_direction=b) for b in SIX]
    known = torch.ones(len(SIX), *head.grid.shape, dtype=torch.bool)
    dipoles = MaskedDipoles(grids, known, torch.float32)
    components = torch.zeros(6, *head.grid.shape)
    components[:3] = head.chi_ppm
    found = TensorFields(dipoles, head.grid).apply(components)
    torch.testing.assert_close(found, dipoles.apply(head.chi_ppm), rtol=1e-3, atol=1e-6)


def test_mean_and_chi33_of_an_isotropic_head(scans):
    head, fields, sigma, _ = scans
    masks = head.mask.expand(len(SIX), *head.mask.shape)
    chi = cosmos(fields, masks, SIX, head.grid, CosmosConfig(), sigmas_ppm=sigma).chi_ppm
    found = tensor(fields, masks, SIX, head.grid, TensorConfig(), chi_ppm=chi, sigmas_ppm=sigma)
    truth = head.chi_ppm * head.mask
    assert relative_error(found.mean_ppm, truth) < 1.6 * relative_error(chi, truth)
    assert relative_error(found.along(SIX[0]), truth) < 2.0 * relative_error(chi, truth)


def test_anisotropy_is_found(scans):
    """A body whose χ along one axis is larger: COSMOS sees one number, the tensor sees the difference."""
    head, *_ = scans
    masks = head.mask.expand(len(SIX), *head.mask.shape)
    components = torch.zeros(6, *head.grid.shape)
    components[:3] = head.chi_ppm
    body = torch.zeros_like(head.mask)
    body[9:15, 10:16, 8:14] = True
    components[0, body] += 0.06
    grids = [replace(head.grid, b0_direction=b) for b in SIX]
    operator = TensorFields(MaskedDipoles(grids, masks, torch.float32), head.grid)
    fields = operator.apply(components)
    chi = cosmos(fields, masks, SIX, head.grid, CosmosConfig()).chi_ppm
    found = tensor(fields, masks, SIX, head.grid, TensorConfig(), chi_ppm=chi)
    difference = (found.components_ppm[0] - found.components_ppm[2])[body].mean()
    assert float(difference) > 0.01


def test_five_orientations_are_too_few_for_a_tensor(scans):
    head, fields, *_ = scans
    masks = head.mask.expand(5, *head.mask.shape)
    with pytest.raises(InputError, match="at least 6"):
        tensor(fields[:5], masks, SIX[:5], head.grid, TensorConfig(), chi_ppm=head.chi_ppm)
