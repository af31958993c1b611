"""Ablations: small trainings of one budget, with one change each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chisep.errors import InputError
from chisep.training.recipes import Recipe, annealed

_ALPHA_FASTER = 3.0
"""Factor of the learning rate of α. A larger one overshoots: the first step of RMSprop is ten times it."""
_BUDGET = ("widths", "crop", "batch_size", "epochs", "steps_per_epoch", "validation_crops")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Budget of every run, and selection of runs."""

    only: tuple[str, ...] = ()
    """Runs to train, by name; if unset: all, in order."""
    minutes: float | None = None
    """Stop after so many minutes; the same command resumes."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Channels per level; the ablations of channels have others."""
    crop: int = 32
    """Edge of a crop in voxels."""
    batch_size: int = 2
    """Crops in a batch."""
    epochs: int = 5
    """Number of epochs."""
    steps_per_epoch: int = 100
    """Batches in an epoch."""
    validation_crops: int = 32
    """Crops of the validation subjects, which select the best epoch."""
    threads: int | None = None
    """CPU threads; if unset: all."""

    @property
    def budget(self) -> dict[str, Any]:
        """What all runs have in common."""
        return {name: getattr(self, name) for name in _BUDGET}


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    name
        Name of its folder.
    title
        Name in tables.
    recipe
        Recipe to train.
    """

    name: str
    title: str
    recipe: Recipe


def require_known(config: BudgetConfig, runs: Sequence[Run]) -> None:
    """Refuse names in `only` that no run has.

    Raises
    ------
    InputError
        If there are any.
    """
    known = [run.name for run in runs]
    if unknown := [name for name in config.only if name not in known]:
        raise InputError(
            "only",
            found=", ".join(unknown),
            expected=f"some of: {', '.join(known)}",
            fix="Correct the names.",
        )


def budgeted(recipe: Recipe, config: BudgetConfig) -> Recipe:
    """Return the recipe with the settings of the budget.

    α changes by about its learning rate in every step. In a short training it gets a higher rate, so that it
    converges before the rate has decayed.
    """
    own = recipe.optimiser
    if recipe.network.unrolled is not None:
        own = replace(own, alpha_learning_rate=_ALPHA_FASTER * own.alpha_learning_rate)
    return annealed(
        replace(
            with_widths(recipe, config.widths),
            optimiser=own,
            crops=replace(recipe.crops, size=config.crop),
            epochs=config.epochs,
            steps_per_epoch=config.steps_per_epoch,
            batch_size=config.batch_size,
            validation_crops=config.validation_crops,
        )
    )


def with_widths(recipe: Recipe, widths: tuple[int, ...]) -> Recipe:
    """Return the recipe with other channels per level."""
    network = recipe.network
    return replace(recipe, network=replace(network, unet=replace(network.unet, widths=widths)))
