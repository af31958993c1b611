"""Scans of the independent bench: phantoms that are cached, and every method on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.independent.conditions import CONDITIONS, measure
from chisep.experiments.independent.evaluation import evaluated
from chisep.experiments.independent.heads import Head, read_head
from chisep.experiments.independent.lesions import Lesion
from chisep.experiments.independent.rows import apply, input_maps
from chisep.experiments.independent.worlds import WORLDS, Phantom
from chisep.io.files import checksum, make_directory
from chisep.types import Maps

BENCH_VERSION = 3
"""Raised with every change of worlds or conditions: cached phantoms and results of another are made anew."""
_HEAD_STREAM, _WORLD_STREAM, _SCAN_STREAM = 1, 2, 3


@dataclass(frozen=True)
class Place:
    """A head in a world.

    Parameters
    ----------
    world
        Name of the world.
    labels
        Label map.
    box
        Size of the box at the centre of the brain; None: whole.
    seed
        Of phantoms and noise.
    """

    world: str
    labels: Path
    box: tuple[int, int, int] | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.world}_{self.labels.name.split('_')[0].split('.')[0]}"

    def key(self) -> dict[str, Any]:
        """Everything that the phantom depends on."""
        return {
            "version": BENCH_VERSION,
            "world": self.world,
            "labels": checksum(self.labels),
            "box": self.box and list(self.box),
            "seed": self.seed,
        }


def phantom_of(place: Place, folder: Path) -> Phantom:
    """Make a phantom, or read it from the folder of an earlier call."""
    path, key = folder / f"{place.name}.npz", json.dumps(place.key())
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return _unpacked(stored)
    words = int(checksum(place.labels)[:8], 16)
    head = read_head(place.labels, np.random.default_rng([place.seed, words, _HEAD_STREAM]), place.box)
    stream = [place.seed, words, _WORLD_STREAM]
    phantom = WORLDS[place.world].make(head, np.random.default_rng(stream))
    make_directory(folder)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **_packed(phantom), key=np.array(key))
    temporary.replace(path)
    return phantom


def _packed(phantom: Phantom) -> dict[str, Any]:
    head = phantom.head
    lesions = [(x.source, x.shape, x.assigned_ppb) for x in phantom.lesions]
    inside = [x.inside for x in phantom.lesions]
    numbers = np.zeros(head.mask.shape, np.uint8)
    for number, own in enumerate(inside, 1):
        numbers[own] = number
    return {
        "labels": head.labels,
        "classes": head.classes,
        "mask": head.mask,
        "fibre": head.fibre.astype(np.float16),
        "chi_pos": phantom.chi_pos_ppm,
        "chi_neg": phantom.chi_neg_ppm,
        "field": phantom.field_ppm,
        "lesions": np.array(json.dumps(lesions)),
        "lesion_numbers": numbers,
    }


def _unpacked(stored: Any) -> Phantom:  # noqa: ANN401
    fibre = stored["fibre"].astype(np.float32)
    head = Head(stored["labels"], stored["classes"], stored["mask"], fibre)
    numbers = stored["lesion_numbers"]
    lesions = tuple(
        Lesion(source, shape, assigned, numbers == number)
        for number, (source, shape, assigned) in enumerate(json.loads(str(stored["lesions"])), 1)
    )
    return Phantom(head, stored["chi_pos"], stored["chi_neg"], stored["field"], lesions)


class Scan:
    """A phantom under a condition, simulated on first use."""

    def __init__(self, place: Place, condition: str, draw: int, folder: Path) -> None:
        self.place, self.condition, self.draw, self._folder = place, condition, draw, folder

    def key(self, row: ComparedMethod) -> dict[str, Any]:
        """Everything that a result depends on."""
        return {**self.place.key(), "condition": self.condition, "draw": self.draw, "row": row.key()}

    @cached_property
    def phantom(self) -> Phantom:
        """The truth."""
        return phantom_of(self.place, self._folder)

    @cached_property
    def maps(self) -> Maps:
        """Maps that methods get."""
        words = int(checksum(self.place.labels)[:8], 16)
        rng = np.random.default_rng([self.place.seed, words, _SCAN_STREAM, self.draw])
        world, condition = WORLDS[self.place.world], CONDITIONS[self.condition]
        return input_maps(self.phantom, world, condition, measure(self.phantom, world, condition, rng))

    def evaluated(self, row: ComparedMethod) -> dict[str, Any]:
        """Apply a method and evaluate its result."""
        known = {
            "world": self.place.world,
            "head": self.place.name.removeprefix(f"{self.place.world}_"),
            "condition": self.condition,
            "draw": self.draw,
        }
        return known | evaluated(apply(row, self.maps), self.phantom)
