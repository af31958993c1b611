"""The unrolled network against Eq. 2.5 written out, and its options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chisep.errors import InputError
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradient, UnrolledGradientConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid

SHAPE = (5, 4, 6)
GRID = Grid(SHAPE, (1.0, 1.2, 0.9), (0.2, 0.3, 0.9))
MEAN, SD = (1 / 32, 1 / 64), (1 / 16, 1 / 32)  # the same in single precision
GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.rand(2, 1, *SHAPE, generator=GENERATOR) > 0.3
Y = 0.05 * torch.randn(2, 3, *SHAPE, generator=GENERATOR, dtype=torch.float64) * MASK
PHI = Separation(Dipole(GRID, dtype=torch.float64), 0.8, MASK.squeeze(1))


def make(norm="instance", **options) -> UnrolledGradient:
    torch.manual_seed(1)
    return (
        UnrolledGradient(UNetConfig((2, 3), norm), UnrolledGradientConfig(**options), MEAN, SD)
        .double()
        .eval()
    )


def prior(network: UnrolledGradient, x: torch.Tensor) -> torch.Tensor:
    """P_θ, with its z-scores."""
    mean, sd = (torch.tensor(v, dtype=x.dtype)[:, None, None, None] for v in (MEAN, SD))
    return (network.unet((x - mean) / sd * MASK) * sd + mean) * MASK


def written_out(network: UnrolledGradient, alpha: float, iterations: int) -> list[torch.Tensor]:
    """x̂ᵢ₊₁ = P_θ(α Φᴴy + (I − α ΦᴴΦ) x̂ᵢ) with dense matrices, volume by volume, from x̂₀ = 0."""
    back, gram = torch.zeros(2, 2, *SHAPE, dtype=Y.dtype), []
    n = 2 * GRID.shape[0] * GRID.shape[1] * GRID.shape[2]
    for number in range(2):
        phi = Separation(PHI.dipole, PHI.ratio, MASK[number, 0])
        matrix = phi.apply(torch.eye(n, dtype=Y.dtype).reshape(n, 2, *SHAPE)).reshape(n, -1).T
        gram.append(torch.eye(n, dtype=Y.dtype) - alpha * matrix.T @ matrix)
        back[number] = (alpha * matrix.T @ Y[number].flatten()).reshape(2, *SHAPE)
    x, found = torch.zeros_like(back), []
    for _ in range(iterations):
        kept = torch.stack([m @ v.flatten() for m, v in zip(gram, x, strict=True)]).reshape(x.shape)
        x = prior(network, back + kept)
        found.append(x)
    return found


@pytest.mark.parametrize("alpha", [4.0, 0.4])
def test_is_the_equation(alpha):
    network = make(iterations=4, alpha=alpha)
    found = network.intermediate_estimates(Y, MASK, PHI)
    for x, expected in zip(found, written_out(network, alpha, 4), strict=True):
        torch.testing.assert_close(x, expected)


def test_thesis_defaults():
    config = UnrolledGradientConfig()
    assert (config.iterations, config.alpha, config.qsm_row) == (10, 4.0, True)
    assert (config.checkpoint, config.gradient_iterations) == (False, None)
    network = make()
    assert isinstance(network.alpha, torch.nn.Parameter)
    assert network.alpha.shape == ()
    assert float(network.alpha.detach()) == 4
    assert len(network.intermediate_estimates(Y, MASK, PHI)) == 10


def test_the_final_estimate_is_the_result_and_more_iterations_continue_fewer():
    network = make(iterations=5)
    found = network.intermediate_estimates(Y, MASK, PHI)
    torch.testing.assert_close(network(Y, MASK, PHI), found[-1])
    network.config = replace(network.config, iterations=2)
    torch.testing.assert_close(network(Y, MASK, PHI), found[1])


def test_one_network_serves_all_iterations():
    counts = [sum(p.numel() for p in make(iterations=n).parameters()) for n in (1, 10)]
    assert counts[0] == counts[1]


def gradients(network: UnrolledGradient, mode: bool = True) -> dict[str, torch.Tensor]:
    network.train(mode).zero_grad()
    network(Y, MASK, PHI).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_alpha_and_every_weight_get_a_gradient():
    for name, gradient in gradients(make(iterations=3)).items():
        assert gradient.abs().max() > 0, name


def test_gradient_of_alpha_is_the_slope():
    network, step = make(iterations=3, alpha=0.4), 1e-6

    def value(alpha: float) -> torch.Tensor:
        return written_out(network, alpha, 3)[-1].square().sum().detach()

    slope = (value(0.4 + step) - value(0.4 - step)) / (2 * step)
    torch.testing.assert_close(gradients(network)["alpha"], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("last", [None, 2])
def test_checkpointing_changes_no_gradient_and_no_statistics(norm, last):
    """Running statistics of batch norm are not taken a second time when activations are made again."""
    plain = make(norm, iterations=3, gradient_iterations=last)
    thrifty = make(norm, iterations=3, gradient_iterations=last, checkpoint=True)
    torch.testing.assert_close(gradients(thrifty), gradients(plain), rtol=1e-9, atol=1e-12)
    found, expected = thrifty.state_dict(), plain.state_dict()
    assert any("running" in name for name in found) == (norm == "batch")
    for name in found:
        if "running" in name:
            assert torch.equal(found[name], expected[name])
            assert found[name].unique().numel() > 1


@pytest.mark.parametrize("last", [1, 2, 4])
def test_gradients_through_the_last_iterations_only(last):
    """As if x̂ before them were data."""
    found = gradients(make(iterations=4, gradient_iterations=last))
    network = make(iterations=4).train()
    with torch.no_grad():
        start = (
            (network.intermediate_estimates(Y, MASK, PHI)[3 - last])
            if last < 4
            else torch.zeros_like(Y[:, :2])
        )
    x = start
    for _ in range(last):
        x = prior(network, x + network.alpha * PHI.adjoint(Y - PHI.apply(x)))
    x.square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_iterations_without_a_gradient_still_count():
    """The result does not depend on how far gradients flow, and evaluation needs none."""
    expected = make(iterations=4)(Y, MASK, PHI)
    torch.testing.assert_close(make(iterations=4, gradient_iterations=1)(Y, MASK, PHI), expected)
    with torch.inference_mode():
        torch.testing.assert_close(make(iterations=4, checkpoint=True)(Y, MASK, PHI), expected)


def test_without_its_row_the_qsm_map_does_not_matter():
    other = Y.clone()
    other[:, 0] = 1.0
    blind, seeing = (make(iterations=3, qsm_row=row) for row in (False, True))
    torch.testing.assert_close(blind(other, MASK, PHI), blind(Y, MASK, PHI), rtol=0, atol=0)
    assert (seeing(other, MASK, PHI) - seeing(Y, MASK, PHI)).abs().max() > 1e-3


def test_without_its_row_the_equation_has_two():
    """Φ of R2' and field only, written out."""
    network = make(iterations=2, alpha=0.4, qsm_row=False)
    rows = torch.tensor([0.0, 1.0, 1.0], dtype=Y.dtype)[:, None, None, None]
    x = torch.zeros_like(Y[:, :2])
    for _ in range(2):
        back = PHI.adjoint(rows * Y)
        x = prior(network, 0.4 * back + x - 0.4 * PHI.adjoint(rows * PHI.apply(x)))
    torch.testing.assert_close(network(Y, MASK, PHI), x)


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"gradient_iterations": 0}, {"iterations": 3, "gradient_iterations": 4}],
)
def test_iterations_are_checked(options):
    with pytest.raises(InputError, match="Correct the options"):
        UnrolledGradientConfig(**options)
