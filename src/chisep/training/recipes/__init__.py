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
"""Channels that two CPU cores can train: 351 thousand parameters, a receptive field of 92 voxels."""
PROXIMAL_WIDTHS = (16, 32, 48, 64)
"""The same for networks whose data steps see what is far: at equal cost more channels where details are."""
FIELD_WIDTHS = (16, 24, 32, 48)
"""The same for networks that make χ of the field alone."""
_HIGHER, _ANNEALING = 3.0, 20.0


@dataclass(frozen=True)
class Recipe:
    """All that makes a training run, but for the data."""

    network: NetworkConfig
    """What is trained."""
    summary: str = ""
    """What it is for."""
    reference: str = ""
    """The paper."""
    crops: CropConfig = field(default_factory=CropConfig)
    """What an example is."""
    protocol: ProtocolConfig | None = None
    """Protocols by which crops of digital heads are scanned; crops of the dataset's own scans if None."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is made small."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How."""
    epochs: int = 20
    """Epochs; the one with the lowest validation loss is kept."""
    steps_per_epoch: int = 1000
    """Batches of an epoch."""
    saves_per_epoch: int = 4
    """Checkpoints of an epoch, to resume from."""
    batch_size: int = 12
    """Crops of a batch, over all devices."""
    validation_crops: int = 96
    """Crops of the validation subjects, the same after every epoch."""
    seed: int = 0
    """Of weights and crops."""

    def __post_init__(self) -> None:
        counts = (self.epochs, self.steps_per_epoch, self.saves_per_epoch, self.batch_size)
        if min(counts) < 1 or self.steps_per_epoch % self.saves_per_epoch or self.validation_crops < 1:
            raise InputError(
                "recipe",
                found=f"epochs, steps, saves, batch size {counts}, {self.validation_crops} validation crops",
                expected="numbers of 1 or more, the steps of an epoch a multiple of its saves",
                fix="Correct the options.",
            )


def small(recipe: Recipe, *, steps_per_epoch: int = 200, validation_crops: int = 16) -> Recipe:
    """Return the same for a machine with two cores: narrow, crops of 48³, batches of 2, 4000 steps in all."""
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
    """Return the same with a learning rate that starts three times as high and falls by a factor of 20.

    So few steps go as far as at the published rate, which is nearly constant over them, and do not end in the
    noise of the last ones.
    """
    own = recipe.optimiser
    steps = recipe.epochs * recipe.steps_per_epoch
    decay_steps = max(1, round(steps * math.log(own.decay) / math.log(1 / _ANNEALING)))
    return replace(
        recipe, optimiser=replace(own, learning_rate=_HIGHER * own.learning_rate, decay_steps=decay_steps)
    )


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    from chisep.training.recipes import chisepnet, qsmnet, unrolled

    published = {**qsmnet.RECIPES, **chisepnet.RECIPES, **unrolled.RECIPES}
    narrow = {f"{name}-small": small(recipe) for name, recipe in published.items()}
    # The validation loss of QSMnet stands still after half as many steps; those of ten iterations take long.
    for name in ("qsmnet", "unrolled-gradient"):
        narrow[f"{name}-small"] = small(published[name], steps_per_epoch=100, validation_crops=32)
    for name in ("unrolled", "unrolled-baseline"):
        # Crops under any protocol differ so much that more of them have to be seen.
        narrow[f"{name}-small"] = small(replace(published[name], epochs=40), validation_crops=32)
    qsm = small(published["unrolled-qsm"], validation_crops=32)
    unet = replace(qsm.network.unet, widths=FIELD_WIDTHS)
    narrow["unrolled-qsm-small"] = replace(qsm, network=replace(qsm.network, unet=unet))
    return {**published, **narrow}


def find(name: str) -> Recipe:
    """Look a recipe up.

    Raises
    ------
    InputError
        If there is none of that name; names those there are.
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
