"""Examples of a training by its recipe: training, validation and calibration crops."""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import ConcatDataset

from chisep.progress import Progress
from chisep.training.data import Crops, Example, FoldersConfig, TrainingScan, load_scans
from chisep.training.protocols import ProtocolCrops, load_heads
from chisep.training.recipes import Recipe

ScansOfTraining = tuple[list[TrainingScan], list[TrainingScan]]
"""Scans to train on, and scans that choose the best epoch."""
_CALIBRATION_SEED = 0x5CA1E


def read_scans(data: FoldersConfig, recipe: Recipe, progress: Progress | None = None) -> ScansOfTraining:
    """Read the scans, or the heads, for training and those for validation.

    Parameters
    ----------
    data
        Where they are.
    recipe
        Selects the channels.
    progress
        Receives the scan that is being read.

    Raises
    ------
    InputError
        As `load_scans` and `load_heads`.
    """
    labels = recipe.protocol is not None and recipe.protocol.contrast.labels_share > 0
    train_scans, validation_scans = (
        load_scans(data, subjects, recipe.network, progress=progress)
        if recipe.protocol is None
        else load_heads(data, subjects, progress, labels=labels)
        for subjects in (data.train, data.validation)
    )
    return train_scans, validation_scans


def crops_of(recipe: Recipe, scans: list[TrainingScan], count: int, seed: int) -> Crops | ProtocolCrops:
    """Cut crops of scans, or scan crops of heads by random protocols, as the recipe says."""
    if recipe.protocol is None:
        return Crops(scans, recipe.network, recipe.crops, count, seed)
    return ProtocolCrops(scans, recipe.network, recipe.protocol, recipe.crops.size, count, seed)


def calibration_crops(recipe: Recipe, scans: list[TrainingScan]) -> ConcatDataset[Example]:
    """Cut the calibration set of the predicted uncertainty: crops as near to whole scans as possible.

    Sources outside a crop are missing at its faces, so these crops have twice the edge of training crops. The
    network does not know whether a scan is well registered and its R2 well fitted, so every crop is scanned
    both ways; otherwise intervals are too wide for good scans. There are twice as many as choose the best
    epoch, since tails are rare.
    """
    large = replace(recipe, crops=replace(recipe.crops, size=2 * recipe.crops.size))
    protocols = [recipe.protocol]
    if recipe.protocol is not None:
        protocols.append(recipe.protocol.with_good_r2prime())
    return ConcatDataset(
        [
            crops_of(replace(large, protocol=protocol), scans, 2 * recipe.validation_crops, _CALIBRATION_SEED)
            for protocol in protocols
        ]
    )
