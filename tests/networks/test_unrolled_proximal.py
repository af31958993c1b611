"""The proximal network: exact steps, what it starts from, and its options."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from chisep.errors import InputError
from chisep.networks.config import MEASURED_ROWS, PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.networks.unrolled_proximal import UnrolledProximal, UnrolledProximalConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid

SHAPE = (5, 4, 6)
GRID = Grid(SHAPE, (1.0, 1.2, 0.9), (0.2, 0.3, 0.9))
GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.rand(2, 1, *SHAPE, generator=GENERATOR) > 0.3
X = 0.05 * torch.rand(2, 2, *SHAPE, generator=GENERATOR, dtype=torch.float64) * MASK
PHI = Separation(Dipole(GRID, dtype=torch.float64), 0.8, MASK.squeeze(1))
ROWS = PHI.apply(X)[:, 1:]
SIGMA = torch.tensor([0.008, 0.001], dtype=torch.float64).reshape(2, 1, 1, 1) * MASK
Y = torch.cat((ROWS, SIGMA), dim=1)


def make(*, noise: bool = True, **options) -> UnrolledProximal:
    torch.manual_seed(1)
    config = UnrolledProximalConfig(**{"uncertainty": False, **options})
    mean, sd = (0.05, 0.0, 0.03, 0.02), (0.03, 0.01, 0.03, 0.02)
    return UnrolledProximal(UNetConfig((2, 3), "instance"), config, mean, sd, noise=noise).double().eval()


def silent(network: UnrolledProximal) -> UnrolledProximal:
    """The same without what its U-nets add."""
    for unet in network.unets:
        for parameter in unet.head.parameters():
            parameter.data.zero_()
    return network


def misfit(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(PHI.apply(x)[:, 1:] - ROWS)


def test_without_priors_every_pass_comes_nearer_to_the_measurements():
    network = silent(make(passes=4, last_steps=0))
    found = [misfit(x) for x in network.intermediate_estimates(Y, MASK, PHI)]
    assert all(later < 0.9 * earlier for earlier, later in pairwise(found))


def test_last_steps_come_nearer_to_the_measurements():
    none, one, two = (misfit(make(last_steps=count)(Y, MASK, PHI)) for count in (0, 1, 2))
    assert two < one < none


def test_last_steps_have_one_weight():
    assert make(last_steps=3).log_weights.shape == make(last_steps=1).log_weights.shape


def test_every_u_net_and_the_final_dc_steps_give_an_estimate():
    """So that what each U-net makes can have a loss, and a line in tables."""
    found = make(passes=2, last_steps=2).intermediate_estimates(Y, MASK, PHI)
    before = make(passes=2, last_steps=0).intermediate_estimates(Y, MASK, PHI)
    assert len(found) == len(before) + 1 == 3
    for x, y in zip(found, before, strict=False):
        torch.testing.assert_close(x, y)


def test_nothing_outside_the_mask():
    for x in make().intermediate_estimates(Y, MASK, PHI):
        assert x.shape == X.shape
        assert not x[(~MASK).expand_as(x)].any()


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_their_gradients(tied):
    network = make(tied=tied, passes=2, uncertainty=True).train()
    assert len(network.unets) == (1 if tied else 2)
    assert network.log_weights.shape == (3, 2)
    made = network(Y, MASK, PHI)
    assert made.shape == (2, 4, *SHAPE)
    (made - torch.cat((X, 0.01 * torch.ones_like(X)), dim=1)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_scales_are_positive_and_change_no_source_with_one_prior_for_all():
    network = make(uncertainty=True, adaptive=False)
    made = network(Y, MASK, PHI)
    inside = MASK.expand(-1, 2, -1, -1, -1)
    assert (made[:, 2:][inside] > 0).all()
    assert not made[:, 2:][~inside].any()
    # With the rows of its heads that tell scales left out, it is a network that tells none.
    plain = make(adaptive=False)
    plain.load_state_dict(
        {name: value[:2] if ".head." in name else value for name, value in network.state_dict().items()}
    )
    torch.testing.assert_close(plain(Y, MASK, PHI), made[:, :2])


def test_the_last_step_moves_what_the_u_net_is_unsure_of():
    """A network whose U-nets add nothing and are unsure of χ_neg, or of χ_pos."""
    moved = []
    for unsure in (0, 1):
        network = silent(make(passes=1, uncertainty=True))
        network.unets[0].head.bias.data[2:] = -6.0
        network.unets[0].head.bias.data[2 + unsure] = 1.0
        before = silent(make(passes=1, uncertainty=True, last_steps=0))(Y, MASK, PHI)
        moved.append((network(Y, MASK, PHI) - before)[:, :2].abs().mean((0, 2, 3, 4)))
    assert moved[0][0] > 100 * moved[0][1]
    assert moved[1][1] > 100 * moved[1][0]


def test_the_first_step_follows_r2prime_where_it_is_far_off_beyond_its_noise():
    """A lesion ten times as strong as what the prior expects."""
    lesion = torch.zeros_like(MASK)
    lesion[:, :, 1:4, 1:3, 2:5] = True
    rows = ROWS.clone()
    rows[:, 0] = (rows[:, 0] + 0.6 * lesion.squeeze(1)) * MASK.squeeze(1)
    y = torch.cat((rows, 4 * SIGMA), dim=1)
    inside = (lesion & MASK).squeeze(1)
    left = []
    for adaptive in (True, False):
        made = silent(make(passes=1, last_steps=0, adaptive=adaptive))(y, MASK, PHI)
        left.append((rows[:, 0] - PHI.total(made))[inside])
    assert left[0].square().mean() < 0.2 * left[1].square().mean()


def test_further_last_steps_move_only_where_the_u_net_is_unsure():
    """A U-net that is unsure in one half: more steps there, none elsewhere."""
    unsure = torch.zeros_like(MASK)
    unsure[..., : SHAPE[-1] // 2] = True
    made = {}
    for steps in (1, 2):
        network = silent(make(passes=1, last_steps=steps, uncertainty=True, widest=30.0))
        u_net = network.unets[0]
        network.unets[0] = Told(u_net, unsure)
        made[steps] = network(Y, MASK, PHI)[:, :2]
    moved = (made[2] - made[1]).abs().amax(1, keepdim=True)
    assert moved[unsure & MASK].mean() > 1e-4
    assert moved[~unsure & MASK].max() < 1e-9


def test_a_scale_that_fell_below_the_smallest_learns_on():
    network = silent(make(passes=2, uncertainty=True))
    network.unets[0].head.bias.data[2:] = -20.0
    (network(Y, MASK, PHI)[:, :2] - X).square().sum().backward()
    assert (network.unets[0].head.bias.grad[2:].abs() > 0).all()


class Told(torch.nn.Module):
    """A U-net that says where it is unsure of both sources."""

    def __init__(self, unet, unsure):
        super().__init__()
        self.unet, self.unsure = unet, unsure

    def forward(self, x, number=0):
        made = self.unet(x, number)
        made[:, 2:] = torch.where(self.unsure, 0.0, -3.0)
        return made


def test_what_was_not_measured_does_not_matter():
    """Where a noise map is 0 any value of its row gives the same."""
    network = make(passes=1)
    unknown = torch.zeros(SHAPE, dtype=torch.bool)
    unknown[2:4, 1:3, 2:4] = True
    y = Y.clone()
    y[:, 2:, unknown] = 0.0
    other = y.clone()
    other[:, :2, unknown] = 7.0
    made = network(y, MASK, PHI)
    torch.testing.assert_close(made, network(other, MASK, PHI))
    assert (made - network(Y, MASK, PHI)).abs().max() > 1e-4


def test_less_noise_weighs_more():
    """The measurements of a scan of less noise are followed more closely."""
    loud = torch.cat((ROWS, 10 * SIGMA), dim=1)
    network = silent(make(passes=1, last_steps=0))
    assert misfit(network(Y, MASK, PHI)) < 0.9 * misfit(network(loud, MASK, PHI))
    without = silent(make(noise=False, passes=1, last_steps=0))
    assert misfit(without(ROWS, MASK, PHI)) <= misfit(network(Y, MASK, PHI))


def test_without_data_steps_it_is_u_nets_in_turn():
    network = silent(make(data_steps=False, last_steps=0))
    found = network.intermediate_estimates(Y, MASK, PHI)
    assert all(torch.equal(x, found[0]) for x in found), "nothing but U-nets, which add nothing"


def test_chi_of_the_field_alone():
    network = UnrolledProximal(
        UNetConfig((2, 3), "instance"), UnrolledProximalConfig(), (0.0, 0.01), (0.01, 0.03)
    ).double()
    y = torch.stack((ROWS[:, 1], SIGMA[:, 1].expand_as(ROWS[:, 1])), dim=1)
    made = network(y, MASK, PHI)
    assert made.shape == (2, 2, *SHAPE)
    quiet = silent(network)
    chi = quiet(y, MASK, PHI)[:, 0]
    field = ROWS[:, 1]
    left = (PHI.dipole.apply(chi) - field) * MASK.squeeze(1)
    assert torch.linalg.vector_norm(left) < 0.5 * torch.linalg.vector_norm(field * MASK.squeeze(1))


def test_bad_options_are_refused():
    for options in ({"passes": 0}, {"padding": 0.5}, {"prior_ppb": 0.0}, {"field_error_ppb": float("inf")}):
        with pytest.raises(InputError, match="above 0"):
            UnrolledProximalConfig(**options)
    with pytest.raises(InputError, match="r2prime"):
        NetworkConfig(PHI_ROWS, SOURCES, proximal=UnrolledProximalConfig())
    with pytest.raises(InputError, match="one kind"):
        NetworkConfig(
            MEASURED_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), proximal=UnrolledProximalConfig()
        )
    with pytest.raises(InputError, match="channels out of"):
        NetworkConfig((*PHI_ROWS, "field_sigma"), SOURCES, unrolled=UnrolledGradientConfig())


@pytest.mark.parametrize("count", [0, 1])
def test_conjugate_gradients_lower_the_objective_of_the_dc_step(count):
    """Where the noise differs between voxels the closed form is not the minimum."""
    weights = torch.rand(Y[:, :2].shape, generator=GENERATOR, dtype=torch.float64) * 20 * MASK
    z = torch.zeros_like(X)

    def objective(network: UnrolledProximal) -> torch.Tensor:
        x = network._dc_step(ROWS, z, weights, None, 0, PHI) * MASK
        prior = network._prior(None, z) + network._excess(ROWS[:, 0] - PHI.total(z), weights[:, 0], 0.8)
        misfit = (weights * (PHI.apply(x)[:, 1:] - ROWS).square()).sum()
        return misfit + (x.square() / prior).sum()

    exact = objective(silent(make(cg_iterations=60)))
    assert objective(silent(make(cg_iterations=10 * count))) > exact * (1 + 1e-9)


def test_errors_beyond_the_noise_can_stay_as_configured():
    network = make(learned_errors=False, r2prime_error_ppb=0.5, field_error_ppb=0.1)
    assert not network.log_errors.requires_grad
    network.log_errors.data.fill_(1.0)
    network.reset_errors()
    torch.testing.assert_close(network.log_errors.exp(), torch.tensor([0.0005, 0.0001], dtype=torch.float64))


def test_final_dc_steps_have_their_own_number_of_iterations():
    base, last, both = (
        silent(make(passes=1, **options))
        for options in (
            {"cg_iterations": 2},
            {"cg_iterations": 2, "last_cg_iterations": 0},
            {"cg_iterations": 0, "last_cg_iterations": 2},
        )
    )
    first = [network.intermediate_estimates(Y, MASK, PHI)[0] for network in (base, last, both)]
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=0)
    assert not torch.equal(first[0], first[2])
    assert misfit(base(Y, MASK, PHI)) < misfit(last(Y, MASK, PHI))
