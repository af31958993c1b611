from __future__ import annotations

import pytest
import torch

from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid
from tests.physics.battery import check

GRID = Grid((5, 6, 7), (1.0, 1.2, 0.9), (0.2, 0.3, 0.9))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def phi() -> Separation:
    return Separation(Dipole(GRID, pad=False, dtype=torch.float64), ratio=0.7)


def test_rows_are_the_three_equations(phi):
    x = random(2, *GRID.shape)
    chi, r2prime, field = phi.apply(x)
    torch.testing.assert_close(chi, x[0] - x[1])
    torch.testing.assert_close(r2prime, x[0] + 0.7 * x[1])
    torch.testing.assert_close(field, phi.dipole.apply(x[0] - x[1]))


def test_eigenvalues_of_the_gram():
    """For equal D_r: 2 on χ_pos + χ_neg, 2 + 2d² on χ_pos − χ_neg."""
    phi = Separation(Dipole(GRID, pad=False, dtype=torch.float64))
    pp, pn, nn = phi.gram_symbol()
    d2 = phi.dipole.kernel**2
    torch.testing.assert_close(pp + pn, torch.full_like(d2, 2.0))
    torch.testing.assert_close(pp - pn, 2 + 2 * d2)
    torch.testing.assert_close(pp, nn)
    assert (pp - pn).max() <= 26 / 9 + 1e-12


def test_gram_symbol_is_the_gram(phi):
    x = random(2, *GRID.shape)
    pp, pn, nn = phi.gram_symbol()
    pos, neg = phi.dipole.spectrum(x)
    by_symbol = phi.dipole.volume(torch.stack((pp * pos + pn * neg, pn * pos + nn * neg)))
    torch.testing.assert_close(by_symbol, phi.gram(x))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.05, 0.3, 30.0), (0.0, 1.0, 100.0)])
def test_proximal_step_is_a_minimum(phi, weights):
    """The gradient of the objective vanishes at the closed-form solution."""
    y, z, rho = random(3, *GRID.shape, seed=1), random(2, *GRID.shape, seed=2), 0.5
    x = phi.proximal(y, z, weights, rho)
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None, None]
    gradient = phi.adjoint(w * (phi.apply(x) - y)) + rho * (x - z)
    assert gradient.abs().max() < 1e-10


def test_proximal_step_of_exact_data_returns_the_sources(phi):
    x = random(2, *GRID.shape)
    torch.testing.assert_close(phi.proximal(phi.apply(x), torch.zeros_like(x), rho=0.0), x)


def test_closed_forms_refuse_a_padded_dipole():
    phi = Separation(Dipole(GRID, dtype=torch.float64))
    with pytest.raises(ValueError, match="without padding"):
        phi.gram_symbol()


SMALL = Grid((3, 4, 4), (1.0, 1.2, 0.9), (0.2, 0.3, 0.9))


def some_voxels(*shape: int) -> torch.Tensor:
    return random(*shape, seed=9) > -0.5


@pytest.mark.parametrize("pad", [True, False])
def test_masked_operator(pad):
    dipole = Dipole(SMALL, pad=pad, dtype=torch.float64)
    check(Separation(dipole, 0.7, some_voxels(*SMALL.shape)), (2, *SMALL.shape), (3, *SMALL.shape))


def test_masked_operator_of_a_batch():
    """Each volume has its own mask, voxel size and B0 direction."""
    dipole = Dipole.of_batch(
        [SMALL, Grid(SMALL.shape, (1.0, 1.0, 2.0), (1.0, 0.0, 0.5))], dtype=torch.float64
    )
    mask = some_voxels(2, *SMALL.shape)
    assert not torch.equal(mask[0], mask[1])
    phi = Separation(dipole, 0.7, mask)
    check(phi, (2, 2, *SMALL.shape), (2, 3, *SMALL.shape))


def test_mask_takes_the_rows_off_outside_and_nothing_else(phi):
    mask, x = some_voxels(*GRID.shape), random(2, *GRID.shape)
    masked = Separation(phi.dipole, phi.ratio, mask).apply(x)
    assert not masked[:, ~mask].any()
    torch.testing.assert_close(masked[:, mask], phi.apply(x)[:, mask])


def test_a_mask_of_the_whole_grid_changes_nothing(phi):
    whole = Separation(phi.dipole, phi.ratio, torch.ones(GRID.shape, dtype=torch.bool))
    x, y = random(2, *GRID.shape), random(3, *GRID.shape)
    torch.testing.assert_close(whole.apply(x), phi.apply(x))
    torch.testing.assert_close(whole.adjoint(y), phi.adjoint(y))
    torch.testing.assert_close(whole.gram(x), phi.gram(x))


def test_closed_forms_refuse_a_mask(phi):
    masked = Separation(phi.dipole, phi.ratio, torch.ones(GRID.shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="no mask"):
        masked.gram_symbol()
    with pytest.raises(ValueError, match="no mask"):
        masked.proximal(random(3, *GRID.shape), random(2, *GRID.shape))


def test_data_step_is_the_proximal_step_where_that_is_closed():
    """χ has twice the prior variance of a source."""
    phi = Separation(Dipole(GRID, pad=False, dtype=torch.float64))
    y, z = random(3, *GRID.shape), random(2, *GRID.shape, seed=3)
    made = phi.data_step(y[1], y[2], z, torch.tensor(0.7), torch.tensor(40.0))
    torch.testing.assert_close(made, phi.proximal(y, z, (0.0, 0.7, 20.0)))


@pytest.mark.parametrize("weight", [0.0, 0.7, 1e6])
def test_data_step_minimises_with_a_prior_for_each_source(weight):
    """Both priors the same everywhere, the field's weight that of the χ which R2' leaves uncertain."""
    ratio, v_pos, v_neg, of_field = 0.6, 2.0, 0.3, 20.0
    phi = Separation(Dipole(GRID, pad=False, dtype=torch.float64), ratio)
    y, z = random(3, *GRID.shape), random(2, *GRID.shape, seed=3)
    prior = torch.tensor([v_pos, v_neg], dtype=torch.float64)[:, None, None, None].expand_as(z)
    seen = torch.tensor([1.0, ratio], dtype=torch.float64)
    left = torch.linalg.inv(torch.diag(1 / prior[:, 0, 0, 0]) + weight * torch.outer(seen, seen))
    difference = torch.tensor([1.0, -1.0], dtype=torch.float64)
    weight_field = of_field * (difference @ left @ difference)
    made = phi.data_step(y[1], y[2], z, torch.tensor(weight), weight_field, prior=prior)

    pp, pn, nn = phi.gram_symbol((0.0, weight, of_field))
    weights = torch.tensor([0.0, weight, of_field], dtype=torch.float64)[:, None, None, None]
    pos, neg = phi.dipole.spectrum(phi.adjoint(weights * y) + z / prior)
    pp, nn = pp + 1 / v_pos, nn + 1 / v_neg
    solved = torch.stack((nn * pos - pn * neg, pp * neg - pn * pos)) / (pp * nn - pn**2)
    torch.testing.assert_close(made, phi.dipole.volume(solved))


def test_data_step_leaves_a_source_that_is_certain():
    phi = Separation(Dipole(SMALL, dtype=torch.float64), 0.6)
    y, z = random(3, *SMALL.shape), random(2, *SMALL.shape, seed=3)
    prior = torch.ones_like(z)
    prior[1] = 0.0
    made = phi.data_step(y[1], y[2], z, torch.tensor(0.7), torch.tensor(40.0), prior=prior)
    assert torch.equal(made[1], z[1])
    assert (made[0] - z[0]).abs().max() > 0.1


def test_data_step_leaves_what_agrees_with_the_data():
    mask = some_voxels(*SMALL.shape)
    phi = Separation(Dipole(SMALL, dtype=torch.float64), 0.6, mask)
    z = random(2, *SMALL.shape)
    y = phi.apply(z)
    weights = torch.tensor(3.0), torch.tensor(100.0)
    torch.testing.assert_close(phi.data_step(y[1], y[2], z, *weights), z)


def test_data_step_of_a_batch_has_weights_and_a_ratio_for_each_volume():
    mask = some_voxels(2, *SMALL.shape)
    dipole = Dipole(SMALL, dtype=torch.float64)
    y, z = random(2, 3, *SMALL.shape), random(2, 2, *SMALL.shape, seed=3)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([10.0, 90.0], dtype=torch.float64)
    ratio = torch.tensor([0.6, 1.2], dtype=torch.float64)
    trust = random(2, *SMALL.shape, seed=4).sigmoid()
    shaped = [w.reshape(2, 1, 1, 1) for w in (*weights, ratio)]
    phi = Separation(dipole, shaped[2], mask)
    both = phi.data_step(y[:, 1], y[:, 2], z, *shaped[:2], trust)
    for n in range(2):
        alone = Separation(dipole, float(ratio[n]), mask[n])
        made = alone.data_step(y[n, 1], y[n, 2], z[n], weights[0][n], weights[1][n], trust[n])
        torch.testing.assert_close(made, both[n])
        torch.testing.assert_close(phi.apply(z)[n], alone.apply(z[n]))
        torch.testing.assert_close(phi.adjoint(y)[n], alone.adjoint(y[n]))


def test_data_step_takes_what_is_not_trusted_from_where_it_starts():
    dipole = Dipole(SMALL, dtype=torch.float64)
    z, chi = random(2, *SMALL.shape), random(*SMALL.shape, seed=5)
    phi = Separation(dipole, 0.6)
    trust = some_voxels(*SMALL.shape).double()
    field = dipole.apply(chi)
    start = z[0] - z[1]
    lost = torch.where(trust > 0, field, 1e3)
    step = phi.field_step(lost, start, torch.tensor(50.0), trust)
    torch.testing.assert_close(step, phi.field_step(field, start, torch.tensor(50.0), trust))
    masked = Separation(dipole, 0.6, trust > 0)
    torch.testing.assert_close(step, masked.field_step(lost, start, torch.tensor(50.0)))


def start_and_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources that a step starts from, R2' and field that have nothing to do with them."""
    return 0.02 * random(2, *GRID.shape, seed=1), random(*GRID.shape, seed=2), random(*GRID.shape)


def test_data_step_moves_each_voxel_by_its_own_width(phi):
    """A voxel of the usual width moves by the step of that, one of the widest by the step of that."""
    z, r2prime, field = start_and_rows()
    prior = torch.ones(2, *GRID.shape, dtype=torch.float64)
    prior[:, 0, 0, 0] = 1000.0
    weight, none = (torch.tensor(value, dtype=torch.float64) for value in (2.0, 0.0))

    def step(weight, widest=1.0, prior=prior):
        return phi.data_step(r2prime, field, z, none, weight, prior=prior, widest=widest)

    made, narrow, wide = step(weight, 30.0), step(weight), step(30 * weight)
    torch.testing.assert_close(made[:, 0, 0, 0], wide[:, 0, 0, 0])
    assert not torch.allclose(made[:, 0, 0, 0], narrow[:, 0, 0, 0])
    even = torch.ones_like(prior)
    torch.testing.assert_close(step(weight, 30.0, even), step(weight, 1.0, even))


def test_a_further_step_leaves_voxels_of_the_usual_width(phi):
    z, r2prime, field = start_and_rows()
    prior = torch.ones(2, *GRID.shape, dtype=torch.float64)
    prior[:, :2] = 1000.0
    one = torch.tensor(1.0, dtype=torch.float64)
    made = phi.data_step(r2prime, field, z, one, one, prior=prior, widest=30.0, only_wide=True)
    moved = (made - z).abs().amax(0)
    assert moved[:2].min() > 1e-6
    assert moved[2:].max() == 0


@pytest.mark.parametrize("count", [1, 2], ids=["field alone", "both rows"])
def test_posterior_mean_is_a_minimum(count):
    """The gradient of the objective vanishes within the mask, in each volume of a batch."""
    grids = [GRID, Grid(GRID.shape, (1.0, 1.0, 2.0), (0.0, 0.6, 0.8))]
    mask = torch.rand(2, *GRID.shape, generator=torch.Generator().manual_seed(3)) > 0.2
    dipole = Dipole.of_batch(grids, padding=1.5, dtype=torch.float64)
    ratio = torch.tensor([0.7, 1.2], dtype=torch.float64).reshape(-1, 1, 1, 1)
    phi, inside = Separation(dipole, ratio, mask), mask.unsqueeze(1)
    shape = (2, count, *GRID.shape)
    rows, z = random(*shape, seed=1), random(*shape, seed=2) * inside
    weights, prior = 20 * random(*shape, seed=4).abs() * inside, 0.1 + random(*shape, seed=5).abs()
    x = phi.posterior_mean(rows, z, weights, prior, z, 300).requires_grad_()

    def of(x: torch.Tensor) -> torch.Tensor:
        if count == 1:
            return dipole.apply(x[:, 0]).unsqueeze(1)
        return phi.apply(x)[:, 1:]

    misfit = (weights * (of(x) - rows).square()).sum() + ((x - z).square() / prior).sum()
    (gradient,) = torch.autograd.grad(misfit, x)
    assert (gradient * inside).abs().max() < 1e-9
    assert torch.equal(x * ~inside, z * ~inside)
