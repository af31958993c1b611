"""Robustness experiment: every method on every simulated scan, with cached results."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import chisep
from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.common.networks import described_weights
from chisep.experiments.common.results import cached_result
from chisep.experiments.robustness.protocols import ROWS, BeyondConfig, weights_of
from chisep.experiments.robustness.results import lesion_figure, page, summarised
from chisep.experiments.robustness.scans import SimulatedScan
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.progress import Progress
from chisep.report import figures


def beyond(config: BeyondConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate the heads, apply every method, and summarise.

    Parameters
    ----------
    config
        Heads, methods, protocols, folders of weights and results.
    progress
        Receives the scan and method.

    Returns
    -------
    list of Path
        beyond.md, beyond.json and the figure of the lesions.

    Raises
    ------
    InputError
        If weights are missing or a label map cannot be used.
    OutputError
        If a result cannot be written.
    """
    make_directory(config.out)
    for row in config.rows:
        weights_of(config, ROWS[row])
    cases = [
        (name, index, lesions)
        for name in config.conditions
        for index in range(len(config.labels) if name == "standard" else config.heads_of_conditions)
        for lesions in ((False, True) if name == "standard" else (False,))
    ]
    cells: list[dict[str, Any]] = []
    for done, (name, index, lesions) in enumerate(cases):
        scan = SimulatedScan(config, name, index, lesions=lesions)
        for row in config.rows_under(name):
            if progress is not None:
                progress(f"{name}, head {index + 1}{', lesions' * lesions}: {row}", done, len(cases))
            path = config.out / "cells" / f"{name}_{index + 1}{'_lesions' * lesions}_{row}.json"
            cells.append(cached_result(path, scan.key(row), partial(scan.evaluated, row)))
    if progress is not None:
        progress("beyond", len(cases), len(cases))
    summary = summarised(config, cells)
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Options": json.loads(
            json.dumps(asdict(config) | {"out": None, "weights_folder": None}, default=_name)
        ),
        "Weights": {row: _described(config, ROWS[row]) for row in config.rows},
        **summary,
        "Cells": cells,
    }
    written = [
        write_text(config.out / "beyond.md", page(config, summary)),
        write_json(config.out / "beyond.json", found),
    ]
    if summary["Lesions"]:  # none without the standard protocol
        figure = figures.png(lesion_figure(summary, cells))
        written.append(write_bytes(config.out / "beyond-lesions.png", figure))
    return written


def _name(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


def _described(config: BeyondConfig, row: ComparedMethod) -> dict[str, Any] | None:
    path = weights_of(config, row)
    return None if path is None else described_weights(path)
