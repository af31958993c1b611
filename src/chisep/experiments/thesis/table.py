"""Table 2.1 of the thesis: every method on the test subjects, against the label and against the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import chisep
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import NAMES, mean_and_sd, scores
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.experiments.thesis.data import (
    REFERENCES,
    AppliedConfig,
    Case,
    dataset_of,
    load_case,
    origin_of,
    provenance,
)
from chisep.experiments.thesis.rows import (
    RECIPES,
    ROWS,
    ThesisMethod,
    checksums,
    described,
    qsmnet_chi,
    row_of,
    separated,
)
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.networks.config import SOURCES
from chisep.progress import Progress
from chisep.report import figures

Published = Mapping[str, tuple[float, float]]
PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "chi-sepnet-r2p": {
        "chi_pos": {"nrmse_percent": (33.72, 2.77), "psnr_db": (47.45, 0.94), "ssim": (0.94322, 0.00592)},
        "chi_neg": {"nrmse_percent": (35.79, 2.62), "psnr_db": (48.17, 0.70), "ssim": (0.94179, 0.00506)},
    },
    "unrolled-thesis": {
        "chi_pos": {"nrmse_percent": (33.46, 2.83), "psnr_db": (47.52, 0.98), "ssim": (0.94307, 0.00600)},
        "chi_neg": {"nrmse_percent": (35.33, 2.72), "psnr_db": (48.28, 0.78), "ssim": (0.94246, 0.00536)},
    },
}
"""Mean and SD over the thesis' test subjects (people, labels of several orientations)."""
COLUMNS = {
    "nrmse_percent": ("NRMSE (%)", 2),
    "psnr_db": ("PSNR (dB)", 2),
    "psnr_in_mask_db": ("PSNR in mask (dB)", 2),
    "ssim": ("SSIM", 4),
    "xsim": ("xSIM", 4),
}
"""Metrics → title and digits."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(AppliedConfig):
    """Table 2.1: NRMSE, PSNR, SSIM, xSIM of all methods over the three test phantoms."""


def table(config: TableConfig, progress: Progress | None = None) -> list[Path]:
    """Apply every method to every test subject, and sum up.

    What was computed from equal weights and data before is not computed again.

    Parameters
    ----------
    config
        Where data, weights and results are.
    progress
        Receives the subject and method.

    Returns
    -------
    list of Path
        table.md, table.json, table.png.

    Raises
    ------
    InputError
        If weights are missing or the dataset cannot be used.
    OutputError
        If a result cannot be written.
    """
    make_directory(config.out)
    weights = described(list(RECIPES), config.weights_folder)
    root = dataset_of(config, progress)
    cells: list[dict[str, Any]] = []
    for subject in config.test:
        lazy = _TableSubject(root, subject, config.weights_folder)
        for name in ROWS:
            if progress is not None:
                progress(f"sub-{subject}: {name}", len(cells), len(config.test) * len(ROWS))
            path = config.out / "cells" / f"sub-{subject}_{name}.json"
            cells.append(cached_result(path, lazy.key(name), partial(lazy.make, name)))
    if progress is not None:
        progress("table", len(cells), len(cells))
    summary = summarised(cells)
    found = {
        **provenance(config),
        "Weights": weights,
        "Units": {"psnr_db": "peak 1 ppm, whole field of view", "seconds": "on this machine"},
        "Published": PUBLISHED,
        "Rows": summary,
        "Cells": cells,
    }
    return [
        write_text(config.out / "table.md", page(summary)),
        write_json(config.out / "table.json", found),
        write_bytes(config.out / "table.png", figures.png(_figure(summary))),
    ]


class _TableSubject:
    """A test subject, whose maps are read and whose χ is made when the first method asks."""

    def __init__(self, root: Path, subject: str, folder: Path | None) -> None:
        self.root, self.subject, self.folder = root, subject, folder
        self.case: Case | None = None

    def key(self, name: str) -> dict[str, Any]:
        """All that the result of a method depends on."""
        return {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Weights": checksums(row_of(name).needed, self.folder),
            "Dataset": origin_of(self.root, self.subject),
        }

    def make(self, name: str) -> dict[str, Any]:
        """Scores of a method."""
        if self.case is None:
            self.case = with_qsmnet(load_case(self.root, self.subject), self.folder)
        return _scored(self.case, self.subject, name, self.folder)


def with_qsmnet(case: Case, folder: Path | None) -> Case:
    """Return the same case with χ of QSMnet."""
    return replace(case, maps=replace(case.maps, chi_ppm=qsmnet_chi(case.maps, folder)))


def subject_row(root: Path, subject: str, name: str, weights_folder: Path | None = None) -> dict[str, Any]:
    """Compute what a method scores on the first scan of a subject, from nothing but data and weights.

    Parameters
    ----------
    root
        The dataset.
    subject
        Label without `sub-`.
    name
        Of the method: a key of `chisep.experiments.thesis.rows.ROWS`.
    weights_folder
        Where `chisep reproduce networks` wrote; the weights that come with chisep if None.

    Returns
    -------
    dict
        subject, row, seconds, and for label and truth the metrics of χ_pos and χ_neg.

    Raises
    ------
    InputError
        If there is no such method, or maps or weights are missing.
    """
    row = row_of(name)
    case = load_case(root, subject)
    return _scored(with_qsmnet(case, weights_folder) if row.qsm else case, subject, name, weights_folder)


def _scored(case: Case, subject: str, name: str, folder: Path | None) -> dict[str, Any]:
    started = time.perf_counter()
    sources = separated(row_of(name), case.maps, folder)
    seconds = round(time.perf_counter() - started, 2)
    found = {r: scores(sources, reference, case.maps.mask) for r, reference in case.references.items()}
    return {"subject": subject, "row": name, "seconds": seconds, **found}


def summarised(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and SD over the subjects.

    Parameters
    ----------
    cells
        What `subject_row` returns, of several methods and subjects.

    Returns
    -------
    list of dict
        A row for each method in the order of `ROWS`: name, title, number of subjects, mean seconds, and for
        label and truth, χ_pos and χ_neg each metric's mean and SD (n − 1); None where it is not defined.
    """
    found = []
    for name, row in ROWS.items():
        own = [cell for cell in cells if cell["row"] == name]
        if own:
            found.append(_summary_row(name, row, own))
    return found


def _summary_row(name: str, row: ThesisMethod, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "row": name,
        "title": row.title,
        "subjects": len(cells),
        "seconds": round(float(np.mean([cell["seconds"] for cell in cells])), 2),
        **{
            reference: {
                source: {
                    metric: mean_and_sd([cell[reference][source][metric] for cell in cells])
                    for metric in COLUMNS
                }
                for source in SOURCES
            }
            for reference in REFERENCES
            if reference in cells[0]
        },
    }


def page(summary: Sequence[Mapping[str, Any]]) -> str:
    """Write what `summarised` returns as Markdown, with the thesis' figures beside."""
    parts = ["# Table 2.1 on digital phantoms\n"]
    parts.append(
        f"Mean ± SD over {summary[0]['subjects']} test phantoms. PSNR: peak 1 ppm, over the whole field of "
        "view as the thesis' figures suggest, and over the brain. Thesis: people, another dataset.\n"
    )
    for reference, title in (("label", "Against the label (COSMOS and R2')"), ("truth", "Against the truth")):
        if reference not in summary[0]:
            continue
        parts.append(f"## {title}\n")
        for source in SOURCES:
            parts.append(markdown(*_lines(summary, reference, source)))
    return "\n".join(parts)


def _lines(
    summary: Sequence[Mapping[str, Any]], reference: str, source: str
) -> tuple[list[str], list[list[str]]]:
    # The thesis compares with labels only.
    thesis = ("nrmse_percent", "psnr_db", "ssim") if reference == "label" else ()
    head = [NAMES[source], *(title for title, _ in COLUMNS.values())]
    head += [f"thesis: {COLUMNS[metric][0]}" for metric in thesis]
    lines = []
    for row in summary:
        values = row[reference][source]
        line = [
            row["title"],
            *(plus_minus(values[m]["mean"], values[m]["sd"], d) for m, (_, d) in COLUMNS.items()),
        ]
        published = PUBLISHED.get(row["row"], {}).get(source, {})
        line += [plus_minus(*published[m], COLUMNS[m][1]) if m in published else "–" for m in thesis]
        lines.append(line)
    return head, lines


def _figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    panels = []
    known = [reference for reference in REFERENCES if reference in summary[0]]
    for source, name in (("chi_pos", figures.CHI_POS), ("chi_neg", figures.CHI_NEG)):
        for metric in ("nrmse_percent", "ssim"):
            pairs = {r: [row[r][source][metric] for row in summary] for r in known}
            panels.append(
                figures.Bars(
                    f"{name}: {COLUMNS[metric][0]}",
                    [row["title"] for row in summary],
                    {f"against the {r}": [number(pair["mean"]) for pair in pairs[r]] for r in known},
                    {f"against the {r}": [pair["sd"] or 0.0 for pair in pairs[r]] for r in known},
                )
            )
    return figures.bars(panels)
