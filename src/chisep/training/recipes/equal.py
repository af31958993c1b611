"""Three designs under equal conditions: random worlds, χ of `unrolled-qsm`, parameters, steps and loss.

The published networks differ in data, size, χ map and loss too; these in their design alone. All scans have
one protocol, 3 T, 1 mm and B0 along the head, since χ-sepnet has no input for any of these. If a design can
take noise maps, it gets them.
"""

from dataclasses import replace

from chisep.networks.config import NOISE, PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.training.recipes import SMALL_WIDTHS, Recipe, small, unrolled

_OF_DC_STEPS = (8, 16, 24, 32)
"""Channels per level of the three U-nets of `unrolled`: together 3 % fewer parameters than the others."""
_EPOCHS, _STEPS_PER_EPOCH = 15, 100
_UNROLLED = unrolled.RECIPES["unrolled"]
_PROTOCOL = replace(unrolled.PROTOCOL, standard_share=1.0, gre_only_share=0.0, chi_weights="unrolled-qsm")


def _equal(network: NetworkConfig, widths: tuple[int, ...], summary: str, reference: str) -> Recipe:
    recipe = small(
        replace(
            _UNROLLED,
            network=network,
            summary=f"{summary}; for the comparison of designs under equal conditions",
            reference=reference,
            protocol=_PROTOCOL,
            epochs=_EPOCHS,
        ),
        steps_per_epoch=_STEPS_PER_EPOCH,
        validation_crops=32,
    )
    return replace(recipe, network=replace(network, unet=UNetConfig(widths)))


RECIPES = {
    "equal-chisepnet": _equal(
        NetworkConfig((*PHI_ROWS, *NOISE.values()), SOURCES, b0_along_z=True),
        SMALL_WIDTHS,
        "χ-sepnet-R2' with noise maps",
        "Kim M. et al., Human Brain Mapping 2025",
    ),
    "equal-gradient": _equal(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), b0_along_z=True),
        SMALL_WIDTHS,
        "unrolled χ-sepnet-R2' (Eq. 2.5): gradient steps, which have no place for noise maps",
        "Kim K.W., Seoul National University, 2023",
    ),
    "equal-proximal": _equal(
        _UNROLLED.network,
        _OF_DC_STEPS,
        "`unrolled`: exact DC steps weighted by noise maps",
        "chisep, docs/decisions/0019-random-contrasts.md",
    ),
}
