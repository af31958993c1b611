"""Published recipes with all that costs time made small, and the script of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chisep.networks.unet import UNetConfig
from chisep.training.data import CropConfig, FoldersConfig
from chisep.training.module import OptimiserConfig
from chisep.training.recipes import Recipe, find
from chisep.training.train import TrainConfig

EPOCHS = 4
"""Of the training that is interrupted, and of the one that is not."""


def tiny(name: str = "qsmnet", norm: str = "batch", **changes) -> Recipe:
    """Two epochs of four steps, each saved twice, on two crops of 16³."""
    recipe = find(name)
    network = replace(recipe.network, unet=UNetConfig((4, 8), norm))
    if network.unrolled is not None:
        network = replace(network, unrolled=replace(network.unrolled, iterations=3))
    small = {
        "network": network,
        "crops": CropConfig(size=16),
        "optimiser": OptimiserConfig(learning_rate=3e-3),
        "epochs": 2,
        "steps_per_epoch": 4,
        "saves_per_epoch": 2,
        "batch_size": 2,
        "validation_crops": 4,
    }
    return replace(recipe, **{**small, **changes})


def config(out: Path, dataset: Path, recipe: Recipe, **options) -> TrainConfig:
    labels = "labels" if recipe.protocol is None else "truth"
    data = FoldersConfig(dataset, ("01",), ("02",), qsm="qsm", labels=labels)
    return TrainConfig(out=out, data=data, recipe=recipe, **{"accelerator": "cpu", "threads": 1, **options})
