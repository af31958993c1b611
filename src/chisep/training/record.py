"""TrainingRecord of a training beside its checkpoints: recipe, data and initial weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from chisep.errors import InputError
from chisep.io.files import checksum, write_json
from chisep.io.weights import load_header
from chisep.networks import weights as network_weights
from chisep.networks.config import NetworkConfig
from chisep.training.config import TrainConfig
from chisep.training.data import CropConfig, FoldersConfig
from chisep.training.losses import LossConfig
from chisep.training.module import OptimiserConfig
from chisep.training.protocols import ProtocolConfig
from chisep.training.recipes import Recipe

_RECORD = "training.json"
_DESCRIPTIVE = ("summary", "reference")
"""Texts of a recipe: they have no effect on a training, so a record may have others."""


class TrainingData(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Dataset of a training, and its subjects.

    Parameters
    ----------
    dataset
        Name in its description.
    train, validation
        Labels of the subjects, without `sub-`.
    """

    dataset: str
    train: list[str]
    validation: list[str]


class Start(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Initial weights of a training.

    Parameters
    ----------
    sha256
        Checksum of their file.
    training_data, best_step, start, made_by
        From their header, if it has them.
    """

    sha256: str
    training_data: dict[str, Any] | None = None
    best_step: int | None = None
    start: dict[str, Any] | None = None
    made_by: dict[str, Any] | None = None


class TrainingRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Schema of `training.json`: the settings of the recipe, the data, and initial weights if there are any.

    Parameters
    ----------
    data
        Dataset and subjects.
    start
        Initial weights; None for random ones.
    network, summary, reference, crops, protocol, loss, optimiser, epochs, steps_per_epoch, saves_per_epoch, \
batch_size, validation_crops, seed
        As in `Recipe`.
    """

    network: NetworkConfig
    summary: str
    reference: str
    crops: CropConfig
    protocol: ProtocolConfig | None = None
    loss: LossConfig
    optimiser: OptimiserConfig
    epochs: int
    steps_per_epoch: int
    saves_per_epoch: int
    batch_size: int
    validation_crops: int
    seed: int
    data: TrainingData
    start: Start | None = None


def settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to JSON types for comparison, without those that are None.

    A setting of a later version is None in the trainings of earlier versions.
    """
    read: dict[str, Any] = json.loads(
        json.dumps(facts),
        object_hook=lambda d: {name: value for name, value in d.items() if value is not None},
    )
    return read


def same_recipe(recipe: Recipe, facts: Mapping[str, Any]) -> bool:
    """Whether stored settings are those of a recipe; its summary and reference may differ."""
    return not _different(settings(asdict(recipe)), settings(facts))


def described_data(data: FoldersConfig) -> dict[str, Any]:
    """Name of the dataset and its subjects for training and validation."""
    name = "unnamed"
    description = data.dataset / "dataset_description.json"
    if description.is_file():
        name = json.loads(description.read_text(encoding="utf-8")).get("Name", name)
    return {"dataset": name, "train": list(data.train), "validation": list(data.validation)}


def described_start(config: TrainConfig) -> dict[str, Any]:
    """Checksum and training data of the initial weights; empty for random weights."""
    if not config.start:
        return {}
    path = network_weights.find_weights(config.start)
    header = load_header(path)
    names = (field for field in Start.__struct_fields__ if field != "sha256")
    return {"start": {"sha256": checksum(path), **{name: header.get(name) for name in names}}}


def check_record(config: TrainConfig) -> None:
    """Write the record of a training; refuse a folder that has the record of another.

    Raises
    ------
    InputError
        If the record cannot be read, or is of another recipe, data or initial weights.
    """
    own = settings({**asdict(config.recipe), "data": described_data(config.data), **described_start(config)})
    path = config.out / _RECORD
    if path.is_file() and (different := _different(own, _read(path))):
        raise InputError(
            config.out,
            found=f"a training with other {', '.join(different)}",
            expected="an empty folder, or the training of the same recipe",
            fix="Give another --out, or delete this one.",
        )
    write_json(path, own)


def _different(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = (name for name in {**own, **other} if name not in _DESCRIPTIVE)
    return [name for name in names if own.get(name) != other.get(name)]


def _read(path: Path) -> dict[str, Any]:
    """Read a record by its schema.

    Raises
    ------
    InputError
        If it is damaged, or has settings that this version does not have.
    """
    try:
        stored = settings(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        known = settings(msgspec.to_builtins(msgspec.convert(stored, TrainingRecord)))
        if unknown := _names(stored) - _names(known):
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    except (msgspec.MsgspecError, UnicodeDecodeError, InputError, ValueError) as error:
        raise InputError(
            path,
            found=f"no record of a training of this version ({' '.join(str(error).split())[:300]})",
            expected="the record that `chisep train` wrote",
            fix="Resume with the version of chisep that started this training, or give another --out.",
        ) from error
    return stored


def _names(facts: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Names of all settings, those of a group after its name and a dot."""
    names = set()
    for name, value in facts.items():
        names.add(prefix + name)
        # Facts of earlier weights are free text.
        if isinstance(value, Mapping) and name != "start":
            names |= _names(value, f"{prefix}{name}.")
    return names
