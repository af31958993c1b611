"""Recipes: one frozen config per published network, and small ones for a machine without a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from chisep.errors import InputError, unknown_name
from chisep.networks.config import NetworkConfig
from chisep.training.data import CropConfig
from chisep.training.losses import LossConfig
from chisep.training.module import OptimiserConfig
from chisep.training.protocols import ProtocolConfig

SMALL_WIDTHS = (8, 16, 32, 64)
"""Channels per level for training on two CPU cores: 351 thousand parameters, receptive field of 92 voxels."""
PROXIMAL_WIDTHS = (16, 32, 48, 64)
"""The same for networks with DC steps, whose U-nets need a smaller receptive field: at equal cost, more
channels at high resolution."""
FIELD_WIDTHS = (16, 24, 32, 48)
"""The same for networks from the field to χ."""
_HIGHER, _ANNEALING = 3.0, 20.0


@dataclass(frozen=True)
class Recipe:
    """Settings of a training, except for the data."""

    network: NetworkConfig
    """Network to train."""
    summary: str = ""
    """Purpose, for the header of the weights."""
    reference: str = ""
    """Paper."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Size and augmentation of crops."""
    protocol: ProtocolConfig | None = None
    """Random protocols for scans of digital phantoms; crops of the scans of the dataset if None."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser and learning-rate schedule."""
    epochs: int = 20
    """Epochs; the weights are those of the epoch with the lowest validation loss."""
    steps_per_epoch: int = 1000
    """Batches in an epoch."""
    saves_per_epoch: int = 4
    """Checkpoints in an epoch, to resume from."""
    batch_size: int = 12
    """Crops in a batch, over all devices."""
    validation_crops: int = 96
    """Number of crops of the validation subjects, the same crops after every epoch."""
    seed: int = 0
    """Seed of weights and crops."""

    def __post_init__(self) -> None:
        counts = (self.epochs, self.steps_per_epoch, self.saves_per_epoch, self.batch_size)
        if min(counts) < 1 or self.steps_per_epoch % self.saves_per_epoch or self.validation_crops < 1:
            raise InputError(
                "recipe",
                found=f"epochs, steps, saves, batch size {counts}, {self.validation_crops} validation crops",
                expected="numbers of 1 or more, and steps_per_epoch a multiple of saves_per_epoch",
                fix="Correct the options.",
            )


def small(recipe: Recipe, *, steps_per_epoch: int = 200, validation_crops: int = 16) -> Recipe:
    """Return a small version for two CPU cores: fewer channels, crops of 48³, batches of 2, 4000 steps."""
    widths = SMALL_WIDTHS if recipe.network.proximal is None else PROXIMAL_WIDTHS
    return annealed(
        replace(
            recipe,
            network=replace(recipe.network, unet=replace(recipe.network.unet, widths=widths)),
            crops=replace(recipe.crops, size=48),
            batch_size=2,
            steps_per_epoch=steps_per_epoch,
            validation_crops=validation_crops,
        )
    )


def annealed(recipe: Recipe) -> Recipe:
    """Return the recipe with a learning rate that starts three times as high and decays by a factor of 20.

    A short training then progresses as far as at the published rate, which is nearly constant over so few
    steps, and its last steps are less noisy.
    """
    own = recipe.optimiser
    steps = recipe.epochs * recipe.steps_per_epoch
    decay_steps = max(1, round(steps * math.log(own.decay) / math.log(1 / _ANNEALING)))
    return replace(
        recipe, optimiser=replace(own, learning_rate=_HIGHER * own.learning_rate, decay_steps=decay_steps)
    )


def recipes() -> dict[str, Recipe]:
    """List all recipes by name."""
    from chisep.training.recipes import chisepnet, equal, qsmnet, unrolled

    published = {**qsmnet.RECIPES, **chisepnet.RECIPES, **unrolled.RECIPES}
    narrow = {f"{name}-small": small(recipe) for name, recipe in published.items()}
    # The validation loss of QSMnet is constant after half as many steps; steps of ten iterations are slow.
    for name in ("qsmnet", "unrolled-gradient"):
        narrow[f"{name}-small"] = small(published[name], steps_per_epoch=100, validation_crops=32)
    for name in ("unrolled", "unrolled-baseline"):
        # Crops under random protocols vary more, so training needs more of them.
        narrow[f"{name}-small"] = small(replace(published[name], epochs=40), validation_crops=32)
    qsm = small(published["unrolled-qsm"], validation_crops=32)
    unet = replace(qsm.network.unet, widths=FIELD_WIDTHS)
    narrow["unrolled-qsm-small"] = replace(qsm, network=replace(qsm.network, unet=unet))
    return {**published, **narrow, **equal.RECIPES}


def find(name: str) -> Recipe:
    """Look up a recipe.

    Raises
    ------
    InputError
        If there is none of that name; the message lists all names.
    """
    known = recipes()
    if name in known:
        return known[name]
    raise unknown_name("recipe", name, known, "chisep train --help")


__all__ = [
    "FIELD_WIDTHS",
    "PROXIMAL_WIDTHS",
    "SMALL_WIDTHS",
    "Recipe",
    "annealed",
    "find",
    "recipes",
    "small",
]
