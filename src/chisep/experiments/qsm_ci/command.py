"""The experiment `qsm-ci`: worlds by the benchmark's definitions, its stages, its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.experiments.common.texts import markdown
from chisep.experiments.qsm_ci.definitions import DEFINITIONS, Maker, definition
from chisep.experiments.qsm_ci.rows import METHODS, benchmark, cells_of, row
from chisep.experiments.qsm_ci.worlds import HeadOptions, written_world
from chisep.io.files import make_directory, write_json, write_text
from chisep.progress import Progress


@dataclass(frozen=True, kw_only=True)
class QsmCiExperimentConfig:
    """Worlds by the definitions of QSM-CI, and all stages and methods on them; finished rows are kept."""

    out: Positional[Path]
    """Folder for worlds, rows and results. A row is computed again if its world or its weights change; after
    a change of the code remove its file in the folder `cells`."""
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


_TITLES = {
    "xsim": ("xSIM", 3),
    "nrmse": ("NRMSE %", 1),
    "nrmse_detrend": ("detrended %", 1),
    "hfen": ("HFEN %", 1),
    "mspe": ("MSPE %", 2),
    "coverage": ("coverage", 3),
    "dice": ("Dice", 3),
}


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown: a table for each stage, and D_r."""
    parts = [
        "# QSM-CI on simulated worlds\n",
        f"Head {str(found['Head']).removesuffix('_dseg.nii.gz')}, {found['VoxelMm']:g} mm, scored by the "
        "metrics of QSM-CI over the whole mask. Worlds by qsm-forward have the benchmark's own tissues and "
        "D_r maps, worlds by chisep those of its digital phantoms. The default is the submission, run by "
        "QSM-CI's local runner.\n",
    ]
    for stage in METHODS:
        rows = [one for one in found["Rows"] if one["Stage"] == stage]
        if rows:
            parts += [f"## {stage}\n", _table(rows)]
    relaxivities = [one for one in found["Rows"] if "D_r" in one]
    if relaxivities:
        parts += ["## D_r found\n", _relaxivity_table(relaxivities)]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    outputs = list(rows[0]["Scores"])
    names = {output: [key for key in _TITLES if key in rows[0]["Scores"][output]] for output in outputs}
    short = {"chi-para": "χ_pos ", "chi-dia": "χ_neg "}
    columns = [f"{short.get(output, '')}{_TITLES[key][0]}" for output in outputs for key in names[output]]
    lines = []
    for one in sorted(rows, key=lambda x: (x["World"], x["Maker"], x["Noisy"])):
        values = [
            _number(one["Scores"][output].get(key), _TITLES[key][1])
            for output in outputs
            for key in names[output]
        ]
        method = one["Method"] + (" (noisy field)" if one["Noisy"] else "")
        lines.append([one["World"], one["Maker"], method, *values])
    return markdown(["world", "made by", "method", *columns], lines)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _relaxivity_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for one in sorted(rows, key=lambda x: (x["World"], x["Maker"])):
        d_r = one["D_r"]
        cells = [
            f"{made:.0f} of {true:.0f} ({100 * (made / true - 1):+.0f} %)"
            for made, true in zip(d_r["Found"], d_r["True"], strict=True)
        ]
        with_chi = "with the χ map" if one["Method"] == "default" else "from the field"
        lines.append([one["World"], one["Maker"], with_chi, *cells, d_r["Source"]])
    return markdown(["world", "made by", "estimate", "D_r,pos", "D_r,neg", "source"], lines)
