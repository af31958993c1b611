"""Networks of an experiment: training within a time limit, weights, intermediate estimates."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chisep.errors import ChisepWarning
from chisep.io.files import checksum
from chisep.io.weights import load_header
from chisep.networks import inference
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions, Precision
from chisep.progress import Progress
from chisep.training.export import WEIGHTS
from chisep.training.recipes import Recipe
from chisep.training.record import same_recipe
from chisep.training.train import ScansOfTraining, TrainConfig, train
from chisep.types import Maps, Sources

PRECISION: Precision = "single"
"""Precision of networks under test: the same on all hardware."""


class Clock:
    """Time limit of one call.

    Parameters
    ----------
    minutes
        Time of the call; without limit if None.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def minutes_left(self) -> float | None:
        """Minutes; None if there is no limit."""
        return None if self._end is None else max(0.0, (self._end - time.monotonic()) / 60)

    def warn(self, unfinished: str) -> None:
        """Warn that the time limit ended the call, and name what is unfinished."""
        warnings.warn(f"the time is up: {unfinished}; the same command goes on", ChisepWarning, stacklevel=3)


def trained_weights(
    config: TrainConfig,
    clock: Clock,
    progress: Progress | None,
    read: Callable[[], ScansOfTraining] | None = None,
) -> Path | None:
    """Train or resume a network; finished weights of the same recipe are reused.

    Parameters
    ----------
    config
        The training; its `minutes` are those of the clock.
    clock
        Of the call.
    progress
        Receives the scan that is being read.
    read
        Returns scans that several trainings share; they are read for this one alone if left out.

    Returns
    -------
    Path or None
        The weights; None if the time was up before they were done.
    """
    weights = config.out / WEIGHTS
    if weights.is_file() and _has_recipe(load_header(weights), config.recipe):
        return weights
    left = clock.minutes_left()
    if left is not None and left <= 0:
        return None
    return train(replace(config, minutes=left), progress, read=read).weights


def _has_recipe(header: dict[str, Any], recipe: Recipe) -> bool:
    return same_recipe(recipe, {"network": header.get("network"), **header.get("recipe", {})})


def described_weights(path: Path) -> dict[str, Any]:
    """Checksum, validation loss and commit of a weights file, for the JSON file of a result."""
    header = load_header(path)
    return {"sha256": checksum(path), **{key: header.get(key) for key in ("metrics", "best_step", "made_by")}}


def estimates_of(weights: Path | str, maps: Maps) -> list[Sources]:
    """Apply an unrolled network and return its estimate after each cascade, the result last.

    Parameters
    ----------
    weights
        Weights file of the network.
    maps
        All maps that the network reads.
    """
    trained = network_weights.load(weights)
    channels = inference.measured_channels(maps, trained.config.inputs, NetworkOptions(precision=PRECISION))
    ratio = 1.0 if maps.relaxivity is None else maps.relaxivity.ratio
    estimates = inference.intermediate_estimates(
        trained, channels, maps.mask, maps.grid, ratio=ratio, precision=PRECISION
    )
    return [Sources(*x[:2].clamp_min(0)) for x in estimates]
