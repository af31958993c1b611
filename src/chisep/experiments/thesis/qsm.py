"""Dipole inversion: QSMnet and classical methods on the test subjects and their lesions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from matplotlib.figure import Figure

import chisep
from chisep import methods
from chisep.experiments.common.lesions import (
    GRADED,
    fitted,
    lesion_options,
    lesion_pairs,
    lesion_panel,
    read_chi,
    slope_text,
)
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import CHI_METRICS, chi_scores, mean_and_sd
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.experiments.thesis.data import TEST, dataset_of, folders, load_case, provenance, record_of
from chisep.experiments.thesis.patients import GradedPatient, PatientsConfig, graded_patient
from chisep.experiments.thesis.rows import checksums, described, qsmnet_chi
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.progress import Progress
from chisep.report import figures
from chisep.types import Maps, Volume

METHODS: Mapping[str, str] = {"tikhonov": "Tikhonov", "tv": "total variation", "qsmnet": "QSMnet"}
"""QSM methods of the comparison → title."""
REFERENCES = ("cosmos", "truth")
"""References: the label of QSMnet, from six orientations, and the ground truth."""


@dataclass(frozen=True, kw_only=True)
class QsmExperimentConfig(PatientsConfig):
    """Susceptibility maps of the three test subjects, healthy and with lesions."""


def qsm(config: QsmExperimentConfig, progress: Progress | None = None) -> list[Path]:
    """Dipole inversion of every test subject by every method, with and without lesions.

    What was computed from equal weights, data and lesions before is not computed again.

    Parameters
    ----------
    config
        Lesions, and folders of data, weights and results.
    progress
        Receives the subject and method.

    Returns
    -------
    list of Path
        qsm.md, qsm.json, the metrics as bars, the lesions with their lines.

    Raises
    ------
    InputError
        If weights are missing, the dataset cannot be used, or it is not of the heads given.
    OutputError
        If a result cannot be written.
    """
    make_directory(config.out)
    weights = described(["qsmnet"], config.weights_folder)
    root = dataset_of(config, progress)
    cells: list[dict[str, Any]] = []
    for subject in TEST:
        lazy = _QsmSubject(config, subject)
        for name in METHODS:
            if progress is not None:
                progress(f"sub-{subject}: {name}", len(cells), len(TEST) * len(METHODS))
            path = config.out / "cells" / f"sub-{subject}_{name}_qsm.json"
            cells.append(cached_result(path, lazy.key(root, name), partial(lazy.make, name)))
    if progress is not None:
        progress("susceptibility maps", len(cells), len(cells))
    summary = summarised(cells)
    found = {
        **provenance(config),
        "Weights": weights,
        "Units": {"assigned_ppb, predicted_ppb": "mean over the lesion's voxels; −χ for calcifications"},
        "Rows": summary,
        "Cells": cells,
    }
    return [
        write_text(config.out / "qsm.md", page(summary)),
        write_json(config.out / "qsm.json", found),
        write_bytes(config.out / "qsm.png", figures.png(_metric_figure(summary))),
        write_bytes(config.out / "qsm-lesions.png", figures.png(_lesion_figure(cells, summary))),
    ]


class _QsmSubject:
    """Test subject, healthy and with lesions, read and simulated on first use."""

    def __init__(self, config: QsmExperimentConfig, subject: str) -> None:
        self.config, self.subject = config, subject
        self.patient: GradedPatient | None = None

    def key(self, root: Path, name: str) -> dict[str, Any]:
        """Everything that the result of a method depends on."""
        return {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Weights": checksums(["qsmnet"] if name == "qsmnet" else [], self.config.weights_folder),
            "Dataset": msgspec.to_builtins(record_of(root, self.subject)),
            "Lesions": lesion_options(self.config),
        }

    def make(self, name: str) -> dict[str, Any]:
        """Metrics of a method in the healthy head, and its values in lesions."""
        if self.patient is None:
            self.patient = graded_patient(self.config, self.config, self.subject)
        return {
            **subject_row(self.config.root, self.subject, name, self.config.weights_folder),
            "lesions": read_chi(
                self.patient.patient,
                self.patient.case.references["truth"].chi_ppm,
                _inverted(name, self.patient.case.maps, self.config.weights_folder),
            ),
        }


def subject_row(root: Path, subject: str, name: str, weights_folder: Path | None = None) -> dict[str, Any]:
    """Evaluate a method on the first scan of a subject.

    Parameters
    ----------
    root
        The dataset.
    subject
        Label without `sub-`.
    name
        A key of `METHODS`.
    weights_folder
        Folder of `chisep reproduce networks`; the shipped weights if None.

    Returns
    -------
    dict
        subject, row, seconds, and for COSMOS and truth the metrics of χ; None where one is not defined. All
        maps have mean 0 in the brain, since a field does not determine the mean of χ.

    Raises
    ------
    InputError
        If maps or weights are missing.
    """
    case = load_case(root, subject)
    started = time.perf_counter()
    made = _inverted(name, case.maps, weights_folder).numpy()
    seconds = round(time.perf_counter() - started, 2)
    cosmos = nifti.load(
        bids.derivative_path(folders(root).folder("labels"), subject, "Chimap", desc="cosmos")
    )
    references = {"cosmos": cosmos.data, "truth": case.references["truth"].chi_ppm.numpy()}
    inside = case.maps.mask.numpy()
    return {
        "subject": subject,
        "row": name,
        "seconds": seconds,
        **{r: chi_scores(made, reference, inside) for r, reference in references.items()},
    }


def _inverted(name: str, maps: Maps, folder: Path | None) -> Volume:
    return qsmnet_chi(maps, folder) if name == "qsmnet" else methods.invert(maps, name).chi_ppm


def summarised(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarise over subjects.

    Parameters
    ----------
    cells
        What `subject_row` returns with `lesions`, of several methods and subjects.

    Returns
    -------
    dict
        For each method: title, mean seconds, mean and SD of each metric against each reference, and for each
        kind of lesion the line through all of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, title in METHODS.items():
        own = [cell for cell in cells if cell["row"] == name]
        lines = {}
        for kind in GRADED:
            pairs = lesion_pairs(own, kind)
            lines[kind] = {"lesions": len(pairs), **fitted([a for a, _ in pairs], [p for _, p in pairs])}
        found[name] = {
            "title": title,
            "seconds": round(float(np.mean([cell["seconds"] for cell in own])), 2),
            **{r: {m: mean_and_sd([cell[r][m] for cell in own]) for m in CHI_METRICS} for r in REFERENCES},
            "lesions": lines,
        }
    return found


def page(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Write what `summarised` returns as Markdown."""
    head = ["method", *(f"{title}, {r}" for r in REFERENCES for title, _ in CHI_METRICS.values())]
    head += [f"{kind}: slope [95 %]" for kind in GRADED]
    lines = [
        [
            row["title"],
            *(
                plus_minus(row[r][m]["mean"], row[r][m]["sd"], d)
                for r in REFERENCES
                for m, (_, d) in CHI_METRICS.items()
            ),
            *(slope_text(row["lesions"][kind]) for kind in GRADED),
        ]
        for row in summary.values()
    ]
    return "\n".join(
        (
            "# Susceptibility maps of the test phantoms\n",
            f"Mean ± SD over {len(TEST)} phantoms against COSMOS of six orientations and against the truth; "
            "every map has mean 0. Lesions: mean predicted against mean assigned χ (−χ of calcifications); a "
            "slope of 1 is perfect.\n",
            markdown(head, lines),
        )
    )


def _metric_figure(summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    return figures.bars(
        [
            figures.Bars(
                title,
                [row["title"] for row in summary.values()],
                {f"against {r}": [number(row[r][m]["mean"]) for row in summary.values()] for r in REFERENCES},
                {f"against {r}": [row[r][m]["sd"] or 0.0 for row in summary.values()] for r in REFERENCES},
            )
            for m, (title, _) in CHI_METRICS.items()
        ]
    )


def _lesion_figure(cells: Sequence[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    return figures.lesion_lines(
        [
            lesion_panel(row["title"], [cell for cell in cells if cell["row"] == name], row["lesions"])
            for name, row in summary.items()
        ]
    )
