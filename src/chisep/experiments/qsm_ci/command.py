"""The experiment `qsm-ci`: worlds by the benchmark's definitions, its stages, its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.experiments.qsm_ci.definitions import DEFINITIONS, Maker, definition
from chisep.experiments.qsm_ci.page import page
from chisep.experiments.qsm_ci.rows import DEFAULT, METHODS, benchmark, cells_of, row
from chisep.experiments.qsm_ci.worlds import HeadOptions, written_world
from chisep.io.files import make_directory, write_json, write_text
from chisep.progress import Progress


@dataclass(frozen=True, kw_only=True)
class QsmCiExperimentConfig:
    """Worlds by the definitions of QSM-CI, and all stages and methods on them; finished rows are kept."""

    out: Positional[Path]
    """Folder for worlds, rows and results. A row is computed again if its world, its weights or the code
    change."""
    labels: Path | None = None
    """Label map of the head; the packaged head if none."""
    further_heads: tuple[Path, ...] = ()
    """Label maps of further heads, for the rows of the default alone."""
    worlds: tuple[str, ...] = tuple(DEFINITIONS)
    """Worlds to make."""
    makers: tuple[Maker, ...] = ("qsm-forward", "chisep")
    """Simulators of each world."""
    stages: tuple[str, ...] = ()
    """Stages to run; if unset: all."""
    methods: tuple[str, ...] = ()
    """Methods to run, by their names in the tables; if unset: all."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 25
    """Seed of head and noise."""
    submissions: Path = Path("qsm-ci")
    """Folder of the submissions."""

    def __post_init__(self) -> None:
        for name in self.worlds:
            definition(name)
        for name in self.stages:
            if name not in METHODS:
                raise InputError(
                    "stages", found=name, expected=", ".join(METHODS), fix="Correct the option --stages."
                )
        heads = (*(() if self.labels is None else (self.labels,)), *self.further_heads)
        for labels in heads:
            if not labels.is_file():
                raise InputError(
                    labels,
                    found="no such file",
                    expected="the label map of a head",
                    fix="Correct the options --labels and --further-heads.",
                )
        if len({_stem(labels) for labels in heads}) < len(heads):
            raise InputError(
                "further_heads",
                found="two heads of the same file name",
                expected="another file name for each head, which names its folder",
                fix="Correct the option --further-heads.",
            )


def qsm_ci_worlds(config: QsmCiExperimentConfig, progress: Progress | None = None) -> list[Path]:
    """Make the worlds and compute all rows that are not stored.

    Returns
    -------
    list of Path
        qsm-ci.md, qsm-ci.json.

    Raises
    ------
    ChisepError
        If a package of the extra is missing, a world cannot be made, or a method fails.
    """
    benchmark()
    make_directory(config.out)
    first = _Head(config.out, config.labels, config.methods)
    others = [_Head(config.out / _stem(path), path, (DEFAULT,)) for path in config.further_heads]
    rows: list[dict[str, Any]] = []
    further: list[dict[str, Any]] = []
    written: list[Path] = []
    for done, name in enumerate(config.worlds):

        def say(text: str, done: int = done) -> None:
            if progress is not None:
                progress(text, done, len(config.worlds))

        for maker in config.makers:
            rows += _rows(config, first, name, maker, say)
            for head in others:
                further += _rows(config, head, name, maker, say)
            written = _written(config, rows, further)
    return written


@dataclass(frozen=True)
class _Head:
    """A head: folder of its worlds and rows, label map, and the methods to run (all if empty)."""

    folder: Path
    labels: Path | None
    methods: tuple[str, ...]


def _rows(
    config: QsmCiExperimentConfig, head: _Head, name: str, maker: Maker, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Make one world of a head and compute its rows."""
    one, stem = definition(name), _stem(head.labels)
    say(f"{name} by {maker}, {stem}")
    options = HeadOptions(head.labels, config.voxel_mm, config.seed)
    world = written_world(head.folder / "worlds" / maker / name, one, maker, options)
    rows = []
    for cell in cells_of(world, separates=one.separates, only=config.stages):
        if not head.methods or cell.method in head.methods:
            say(f"{name} by {maker}, {stem}: {cell.stage}, {cell.method}")
            rows.append(row(cell, config.submissions, head.folder / "cells") | {"Head": stem})
    return rows


def _stem(labels: Path | None) -> str:
    return "packaged head" if labels is None else labels.name.removesuffix(".nii.gz").removesuffix("_dseg")


def _written(
    config: QsmCiExperimentConfig, rows: Sequence[Mapping[str, Any]], further: Sequence[Mapping[str, Any]]
) -> list[Path]:
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": _stem(config.labels),
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Rows": list(rows),
        "FurtherHeads": list(further),
    }
    return [
        write_text(config.out / "qsm-ci.md", page(found)),
        write_json(config.out / "qsm-ci.json", found),
    ]
