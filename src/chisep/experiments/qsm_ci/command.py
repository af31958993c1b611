"""The experiment `qsm-ci`: worlds by the benchmark's definitions, its stages, its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.experiments.qsm_ci.definitions import DEFINITIONS, Maker, definition
from chisep.experiments.qsm_ci.page import page
from chisep.experiments.qsm_ci.rows import METHODS, benchmark, cells_of, row
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
    head = HeadOptions(config.labels, config.voxel_mm, config.seed)
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    for done, name in enumerate(config.worlds):
        for maker in config.makers:
            one = definition(name)
            if progress is not None:
                progress(f"{name} by {maker}", done, len(config.worlds))
            world = written_world(config.out / "worlds" / maker / name, one, maker, head)
            for cell in cells_of(world, separates=one.separates, only=config.stages):
                if config.methods and cell.method not in config.methods:
                    continue
                if progress is not None:
                    progress(f"{name} by {maker}: {cell.stage}, {cell.method}", done, len(config.worlds))
                rows.append(row(cell, config.submissions, config.out / "cells"))
            written = _written(config, rows)
    return written


def _written(config: QsmCiExperimentConfig, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": "packaged head" if config.labels is None else config.labels.name,
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Rows": list(rows),
    }
    return [
        write_text(config.out / "qsm-ci.md", page(found)),
        write_json(config.out / "qsm-ci.json", found),
    ]
