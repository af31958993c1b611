"""Record of a training beside its checkpoints: recipe, data and start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from chisep.errors import InputError
from chisep.io.files import checksum, write_json
from chisep.io.weights import load_header
from chisep.networks import weights as network_weights
from chisep.training.config import TrainConfig
from chisep.training.data import FoldersConfig

_RECORD = "training.json"


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, for comparing; without those that are None.

    A setting that a later version added is None in the trainings of an earlier one.
    """
    read: dict[str, Any] = json.loads(
        json.dumps(facts),
        object_hook=lambda d: {name: value for name, value in d.items() if value is not None},
    )
    return read


def described_data(data: FoldersConfig) -> dict[str, Any]:
    """Name of the dataset and its subjects for training and validation."""
    name = "unnamed"
    description = data.dataset / "dataset_description.json"
    if description.is_file():
        name = json.loads(description.read_text(encoding="utf-8")).get("Name", name)
    return {"dataset": name, "train": list(data.train), "validation": list(data.validation)}


def described_start(config: TrainConfig) -> dict[str, Any]:
    """Checksum and training data of the weights that a training starts from; empty for random weights."""
    if not config.start:
        return {}
    path = network_weights.find_weights(config.start)
    facts = ("training_data", "best_step", "start", "made_by")
    header = load_header(path)
    return {"start": {"sha256": checksum(path), **{name: header.get(name) for name in facts}}}


def check_record(config: TrainConfig) -> None:
    """Write recipe and data beside the checkpoints; refuse a folder that holds the training of others."""
    wanted = plain({**asdict(config.recipe), "data": described_data(config.data), **described_start(config)})
    record = config.out / _RECORD
    if record.is_file():
        known = plain(json.loads(record.read_text(encoding="utf-8")))
        if known != wanted:
            different = [name for name in {**wanted, **known} if known.get(name) != wanted.get(name)]
            raise InputError(
                config.out,
                found=f"a training with other {', '.join(different)}",
                expected="an empty folder, or the training of the same recipe",
                fix="Give another --out, or delete this one.",
            )
    write_json(record, wanted)
