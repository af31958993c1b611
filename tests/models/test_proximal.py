"""The proximal network: exact steps, what it starts from, and its options."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from chisep.errors import InputError
from chisep.models.network import MEASURED_ROWS, PHI_ROWS, SOURCES, NetworkConfig
from chisep.models.proximal import Proximal, ProximalConfig
from chisep.models.unet import UNetConfig
from chisep.models.unrolled import UnrolledConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid

SHAPE = (5, 4, 6)
GRID = Grid(SHAPE, (1.0, 1.2, 0.9), (0.2, 0.3, 0.9))
GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.rand(2, 1, *SHAPE, generator=GENERATOR) > 0.3
X = 0.05 * torch.rand(2, 2, *SHAPE, generator=GENERATOR, dtype=torch.float64) * MASK
PHI = Separation(Dipole(GRID, dtype=torch.float64), 0.8, MASK.squeeze(1))
Y = PHI.apply(X)[:, 1:]


def make(**options) -> Proximal:
    torch.manual_seed(1)
    config = ProximalConfig(**options)
    mean, sd = (0.05, 0.0, 0.03, 0.02), (0.03, 0.01, 0.03, 0.02)
    return Proximal(UNetConfig((2, 3), "instance"), config, mean, sd).double().eval()


def silent(network: Proximal) -> Proximal:
    """The same without what its U-nets add."""
    for unet in network.unets:
        for parameter in unet.head.parameters():
            parameter.data.zero_()
    return network


def misfit(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(PHI.apply(x)[:, 1:] - Y)


def test_without_priors_every_pass_comes_nearer_to_the_measurements():
    network = silent(make(passes=4, last_step=False))
    found = [misfit(x) for x in network.iterates(Y, MASK, PHI)]
    assert all(later < 0.9 * earlier for earlier, later in pairwise(found))


def test_a_last_step_comes_nearer_to_the_measurements():
    with_step, without = (make(last_step=last)(Y, MASK, PHI) for last in (True, False))
    assert misfit(with_step) < misfit(without)


def test_nothing_outside_the_mask():
    for x in make().iterates(Y, MASK, PHI):
        assert x.shape == X.shape
        assert not x[(~MASK).expand_as(x)].any()


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_their_gradients(tied):
    network = make(tied=tied, passes=2).train()
    assert len(network.unets) == (1 if tied else 2)
    assert network.log_weights.shape == (3, 2)
    (network(Y, MASK, PHI) - X).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_bad_options_are_refused():
    for options in ({"passes": 0}, {"field_weight": 0.0}, {"r2prime_weight": float("inf")}):
        with pytest.raises(InputError, match="above 0"):
            ProximalConfig(**options)
    with pytest.raises(InputError, match="r2prime"):
        NetworkConfig(PHI_ROWS, SOURCES, proximal=ProximalConfig())
    with pytest.raises(InputError, match="one kind"):
        NetworkConfig(MEASURED_ROWS, SOURCES, unrolled=UnrolledConfig(), proximal=ProximalConfig())
