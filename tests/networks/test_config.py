"""What all networks have in common, and how configs become networks."""

from __future__ import annotations

import pytest
import torch

from chisep.errors import InputError
from chisep.networks.config import PHI_ROWS, SOURCES, NetworkConfig, build
from chisep.networks.single_pass import SinglePass
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradient, UnrolledGradientConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid

UNET = UNetConfig((2, 3), "instance")
STATISTICS = {
    "field": (0.0, 0.01),
    "qsm": (0.002, 0.04),
    "r2prime": (0.05, 0.03),
    "r2star": (0.2, 0.1),
    "chi": (-0.001, 0.05),
    "chi_pos": (0.03, 0.03),
    "chi_neg": (0.025, 0.02),
}
CONFIGS = {
    "qsmnet": NetworkConfig(("field",), ("chi",), UNET),
    "r2s": NetworkConfig(("r2star",), ("r2prime",), UNET),
    "chi-sepnet": NetworkConfig(PHI_ROWS, SOURCES, UNET),
    "unrolled": NetworkConfig(PHI_ROWS, SOURCES, UNET, UnrolledGradientConfig(3, 0.4)),
}


def made(name: str):
    torch.manual_seed(0)
    return build(CONFIGS[name], STATISTICS).eval()


def data(inputs: int, seed: int = 0):
    """Maps of two volumes, their masks, Φ of their grids."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 1, 5, 6, 7, generator=generator) > 0.3
    y = 0.05 * torch.randn(2, inputs, 5, 6, 7, generator=generator) * mask
    grids = [Grid((5, 6, 7), (1.0, 1.0, 1.0), b0) for b0 in ((0.0, 0.0, 1.0), (0.0, 0.6, 0.8))]
    return y, mask, Separation(Dipole.of_batch(grids), mask=mask.squeeze(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_estimates_have_the_shape_of_the_outputs_and_are_0_outside_the_mask(name):
    y, mask, phi = data(len(CONFIGS[name].inputs))
    found = made(name).intermediate_estimates(y, mask, phi)
    assert len(found) == (3 if name == "unrolled" else 1)
    for x in found:
        assert x.shape == (2, len(CONFIGS[name].outputs), 5, 6, 7)
        assert x.dtype == torch.float32
        assert torch.isfinite(x).all()
        assert not (x * ~mask).any()
        assert x.any()


@pytest.mark.parametrize("name", CONFIGS)
def test_volumes_of_a_batch_do_not_know_each_other(name):
    y, mask, phi = data(len(CONFIGS[name].inputs))
    network = made(name)
    together = network.intermediate_estimates(y, mask, phi)[-1]
    for number, b0 in enumerate(((0.0, 0.0, 1.0), (0.0, 0.6, 0.8))):
        one = slice(number, number + 1)
        alone = Separation(Dipole(Grid((5, 6, 7), (1.0, 1.0, 1.0), b0)), mask=mask[number])
        torch.testing.assert_close(
            network.intermediate_estimates(y[one], mask[one], alone)[-1], together[one]
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_lies_outside_the_mask_does_not_matter(name):
    y, mask, phi = data(len(CONFIGS[name].inputs))
    network = made(name)
    dirty = y + 7.0 * ~mask
    torch.testing.assert_close(
        network.intermediate_estimates(dirty, mask, phi)[-1],
        network.intermediate_estimates(y, mask, phi)[-1],
        rtol=1e-4,
        atol=1e-6,
    )


def test_one_pass_is_the_unet_between_z_scores():
    y, mask, _ = data(3)
    network = made("chi-sepnet")
    column = {k: torch.tensor(v)[:, None, None, None] for k, v in _columns().items()}
    z = network.unet((y - column["in_mean"]) / column["in_sd"] * mask)
    torch.testing.assert_close(network(y, mask), (z * column["out_sd"] + column["out_mean"]) * mask)


def _columns() -> dict[str, list[float]]:
    return {
        "in_mean": [STATISTICS[c][0] for c in PHI_ROWS],
        "in_sd": [STATISTICS[c][1] for c in PHI_ROWS],
        "out_mean": [STATISTICS[c][0] for c in SOURCES],
        "out_sd": [STATISTICS[c][1] for c in SOURCES],
    }


def test_build_makes_what_the_config_says():
    assert isinstance(made("qsmnet"), SinglePass)
    unrolled = made("unrolled")
    assert isinstance(unrolled, UnrolledGradient)
    assert unrolled.alpha.item() == pytest.approx(0.4)
    scale = unrolled.scale
    assert scale.mean.flatten().tolist() == pytest.approx([0.03, 0.025])
    assert scale.sd.flatten().tolist() == pytest.approx([0.03, 0.02])


@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_of_every_channel_are_needed(name):
    scaled = SOURCES if name == "unrolled" else CONFIGS[name].inputs + CONFIGS[name].outputs
    for channel in scaled:
        rest = {key: value for key, value in STATISTICS.items() if key != channel}
        with pytest.raises(InputError, match=f"found none of {channel};"):
            build(CONFIGS[name], rest)


@pytest.mark.parametrize("sd", [0.0, -0.1, float("nan"), float("inf")])
def test_statistics_that_scale_nothing_are_refused(sd):
    """A map of one value has no z-scores."""
    with pytest.raises(InputError, match="field"):
        build(CONFIGS["qsmnet"], STATISTICS | {"field": (0.0, sd)})


@pytest.mark.parametrize(
    ("inputs", "outputs", "unrolled"),
    [
        ((), ("chi",), None),
        (("field",), (), None),
        (("field", "qsm", "r2prime"), SOURCES, UnrolledGradientConfig()),
        (("field",), ("chi",), UnrolledGradientConfig()),
        (PHI_ROWS, ("chi_neg", "chi_pos"), UnrolledGradientConfig()),
    ],
)
def test_channels_are_checked(inputs, outputs, unrolled):
    with pytest.raises(InputError, match="Correct the channels"):
        NetworkConfig(inputs, outputs, unrolled=unrolled)
