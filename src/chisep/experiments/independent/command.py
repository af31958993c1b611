"""Independent bench: every method on every phantom under every condition, with cached results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.common.results import cached_result
from chisep.experiments.independent.conditions import CONDITIONS
from chisep.experiments.independent.page import figure, page
from chisep.experiments.independent.qsm_forward_world import qsm_forward
from chisep.experiments.independent.rows import ROWS, row_of_weights
from chisep.experiments.independent.scans import Place, Scan
from chisep.experiments.independent.statistics import summarised
from chisep.experiments.independent.worlds import WORLDS
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.progress import Progress
from chisep.report import figures


@dataclass(frozen=True, kw_only=True)
class IndependentConfig:
    """Phantoms that share no code with the simulation or the training data."""

    out: Positional[Path]
    """Folder for the results; existing results of the same weights and options are reused."""
    labels: tuple[Path, ...]
    """Label maps of the phantoms, at 1 mm."""
    worlds: tuple[str, ...] = tuple(WORLDS)
    """Worlds, by name."""
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    """Conditions, by name."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Methods, by name."""
    weights: tuple[str, ...] = ()
    """Further weights files, each as NAME=FILE; their method follows from their header."""
    refinement: bool = True
    """Whether a solver refines the estimates of networks with predicted uncertainty. Without, networks are
    compared alone."""
    box: tuple[int, int, int] | None = None
    """Size in voxels of a box at the centre of the brain, for a quick look; the whole brain if not given."""
    reference: str = "unrolled"
    """Method that the others are compared with: one of the rows, or the NAME of further weights."""
    draws: int = 1
    """Number of noise draws of each scan."""
    seed: int = 4711
    """Seed of phantoms and noise."""

    def __post_init__(self) -> None:
        for option, given, known in (
            ("--worlds", self.worlds, WORLDS),
            ("--conditions", self.conditions, CONDITIONS),
            ("--rows", self.rows, ROWS),
        ):
            if unknown := [name for name in given if name not in known]:
                raise InputError(
                    option,
                    found=", ".join(unknown),
                    expected=f"some of: {', '.join(known)}",
                    fix="Correct the names.",
                )
        for text in self.weights:
            name, _, file = text.partition("=")
            if not name or not file or name in ROWS:
                raise InputError(
                    "--weights",
                    found=repr(text),
                    expected="NAME=FILE, with a name that no method of the bench has",
                    fix="For example --weights mine=OUT/weights.safetensors.",
                )

        if not self.labels or self.draws < 1:
            raise InputError(
                "reproduce independent",
                found=f"{len(self.labels)} label maps, {self.draws} noise draws",
                expected="1 or more of both",
                fix="Correct --labels or --draws.",
            )
        names = [*self.rows, *(text.partition("=")[0] for text in self.weights)]
        if self.reference not in names:
            raise InputError(
                "--reference",
                found=repr(self.reference),
                expected=f"one of: {', '.join(names)}",
                fix="Choose a method of this call.",
            )

    def all_rows(self) -> dict[str, ComparedMethod]:
        """Methods by name, those of further weights last."""
        found = {name: ROWS[name] for name in self.rows}
        for text in self.weights:
            name, _, file = text.partition("=")
            found[name] = row_of_weights(name, Path(file))
        return {name: replace(row, refined=self.refinement) for name, row in found.items()}


def independent(config: IndependentConfig, progress: Progress | None = None) -> list[Path]:
    """Make the phantoms, apply every method, and summarise.

    Parameters
    ----------
    config
        Heads, worlds, conditions, methods, and the folder of results.
    progress
        Receives the scan and method.

    Returns
    -------
    list of Path
        independent.md, independent.json and the figure.

    Raises
    ------
    InputError
        If a label map or weights cannot be used, or qsm-forward is needed and not installed.
    OutputError
        If a result cannot be written.
    """
    make_directory(config.out)
    rows = config.all_rows()
    if any(WORLDS[world].needs_qsm_forward for world in config.worlds):
        qsm_forward()
    cases = [
        (Place(world, labels, config.box, config.seed), condition, draw)
        for world in config.worlds
        for labels in config.labels
        for condition in config.conditions
        for draw in range(config.draws)
    ]
    cells: list[dict[str, Any]] = []
    for done, (place, condition, draw) in enumerate(cases):
        scan = Scan(place, condition, draw, config.out / "worlds")
        for name, row in rows.items():
            if progress is not None:
                progress(f"{place.name}, {condition}: {name}", done, len(cases))
            path = config.out / "cells" / f"{place.name}_{condition}_{draw + 1}_{name}.json"
            made_by = {"GeneratedBy": f"chisep {chisep.__version__}"}
            result = cached_result(path, made_by | scan.key(row), partial(scan.evaluated, row))
            cells.append({"row": name, **result})
    if progress is not None:
        progress("independent", len(cases), len(cases))
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Options": _options(config),
        "Rows": {name: row.key() for name, row in rows.items()},
        **summarised(cells, config.reference),
        "Cells": cells,
    }
    return [
        write_text(config.out / "independent.md", page(found)),
        write_json(config.out / "independent.json", found),
        write_bytes(config.out / "independent.png", figures.png(figure(found))),
    ]


def _options(config: IndependentConfig) -> dict[str, Any]:
    """Options that results depend on, in JSON types; files by their name."""
    return {
        "labels": [path.name for path in config.labels],
        "box": config.box and list(config.box),
        "draws": config.draws,
        **({} if config.refinement else {"refinement": False}),
        "seed": config.seed,
        "reference": config.reference,
    }
