"""Figure 2.5 of the thesis: hemorrhage and calcification of graded strength, predicted against assigned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from matplotlib.figure import Figure

import chisep
from chisep.errors import InputError
from chisep.experiments.common.lesions import (
    GRADED,
    LesionsConfig,
    fitted,
    lesion_options,
    lesion_pairs,
    lesion_panel,
    slope_text,
)
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import arrays, finite, mean_and_sd
from chisep.experiments.common.texts import markdown, plus_minus
from chisep.experiments.thesis.data import (
    SUBJECTS,
    TEST,
    AppliedConfig,
    Case,
    ThesisConfig,
    dataset_of,
    load_case,
    provenance,
    record_of,
    scanned,
)
from chisep.experiments.thesis.rows import (
    RECIPES,
    ROWS,
    UNROLLED,
    checksums,
    described,
    intermediate_estimates,
    separated,
)
from chisep.experiments.thesis.table import with_qsmnet
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation.dataset import SimulateConfig, healthy_tissue
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.placement import add_lesions
from chisep.simulation.measured import measured_maps
from chisep.types import Sources

_STREAM = 25
"""Random stream of the lesions, independent of that of the heads."""
_SAME_PPM = 1e-4


@dataclass(frozen=True, kw_only=True)
class PatientsConfig(AppliedConfig, LesionsConfig):
    """Hemorrhages and calcifications of graded strength in the three test subjects."""

    def __post_init__(self) -> None:
        AppliedConfig.__post_init__(self)
        LesionsConfig.__post_init__(self)


@dataclass(frozen=True, eq=False)
class GradedPatient:
    """Test subject with lesions: its scan and label map of lesions.

    Parameters
    ----------
    case
        Measured maps and ground truth; no label.
    patient
        Tissue with lesions.
    """

    case: Case
    patient: Patient


def patients(config: PatientsConfig, progress: Progress | None = None) -> list[Path]:
    """Add lesions to the test subjects, simulate their scans and apply every method.

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
        patients.md, patients.json, the points with their lines (2.5), and the slope of every
        intermediate estimate.

    Raises
    ------
    InputError
        If weights are missing, the dataset cannot be used, or it is not of the heads given.
    OutputError
        If a result cannot be written.
    """
    make_directory(config.out)
    weights = described(list(RECIPES), config.weights_folder)
    root = dataset_of(config, progress)
    cells: list[dict[str, Any]] = []
    for subject in TEST:
        lazy = _LesionSubject(config, subject)
        for name in ROWS:
            if progress is not None:
                progress(f"sub-{subject}: {name}", len(cells), len(TEST) * len(ROWS))
            path = config.out / "cells" / f"sub-{subject}_{name}_lesions.json"
            cells.append(cached_result(path, lazy.key(root, name), partial(lazy.make, name)))
    if progress is not None:
        progress("patients", len(cells), len(cells))
    summary = {name: summarised([cell for cell in cells if cell["row"] == name]) for name in ROWS}
    by_cascade = estimate_slopes([cell for cell in cells if cell["row"] == UNROLLED])
    found = {
        **provenance(config),
        "Weights": weights,
        "Units": {"assigned_ppb": "mean of the true source over the lesion's voxels"},
        "Rows": summary,
        "IntermediateEstimates": by_cascade,
        "Cells": cells,
    }
    return [
        write_text(config.out / "patients.md", page(summary, by_cascade)),
        write_json(config.out / "patients.json", found),
        write_bytes(config.out / "2.5-lesions.png", figures.png(_lesion_figure(cells, summary))),
        write_bytes(config.out / "estimates-slope.png", figures.png(_cascade_figure(by_cascade))),
    ]


class _LesionSubject:
    """Test subject with lesions, simulated on first use."""

    def __init__(self, config: PatientsConfig, subject: str) -> None:
        self.config, self.subject = config, subject
        self.graded: GradedPatient | None = None

    def key(self, root: Path, name: str) -> dict[str, Any]:
        """Everything that the result of a method depends on."""
        return {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Weights": checksums(ROWS[name].needed, self.config.weights_folder),
            "Dataset": msgspec.to_builtins(record_of(root, self.subject)),
            "Lesions": lesion_options(self.config),
        }

    def make(self, name: str) -> dict[str, Any]:
        """Apply a method and evaluate its lesions."""
        folder = self.config.weights_folder
        if self.graded is None:
            graded = graded_patient(self.config, self.config, self.subject)
            self.graded = replace(graded, case=with_qsmnet(graded.case, folder))
        maps = self.graded.case.maps
        found = (
            intermediate_estimates(maps, folder)
            if name == UNROLLED
            else [separated(ROWS[name], maps, folder)]
        )
        return {"subject": self.subject, "row": name, **read_lesions(self.graded, found)}


def graded_patient(thesis: ThesisConfig, lesions: LesionsConfig, subject: str) -> GradedPatient:
    """Simulate a subject of the dataset with lesions.

    Parameters
    ----------
    thesis
        The dataset and its options.
    lesions
        Lesions to add.
    subject
        Label without `sub-`.

    Returns
    -------
    GradedPatient
        Scan in the first head orientation, with other noise.

    Raises
    ------
    InputError
        If the head or the options differ from those of the dataset.

    Warns
    -----
    ChisepWarning
        If a lesion has no free position; it is left out.
    """
    config = thesis.simulation()
    index = SUBJECTS.index(subject)
    _check_options(thesis, config, subject)
    healthy = healthy_tissue(config, index)
    known = load_case(thesis.root, subject).references["truth"].chi_pos_ppm
    if float((known - healthy.chi_pos_ppm * healthy.mask).abs().max()) > _SAME_PPM:
        raise InputError(
            thesis.root,
            found=f"another head as subject {subject} than is made of the label map",
            expected="the label maps that the dataset was made of, and the version of chisep that made it",
            fix="Give the --labels of `chisep simulate`, in its order.",
        )
    lesions_rng, noise_rng = np.random.default_rng([config.seed, index, _STREAM]).spawn(2)
    configs = [lesions.lesion(kind, s) for s in lesions.strengths_ppb for kind in GRADED]
    patient = add_lesions(healthy, configs, lesions_rng, separation_mm=lesions.separation_mm)
    return GradedPatient(scanned(patient.tissue, measured_maps(patient.tissue, config, noise_rng)), patient)


def _check_options(thesis: ThesisConfig, config: SimulateConfig, subject: str) -> None:
    """Refuse a dataset of other options than those of the patient."""
    own = json.loads(json.dumps(asdict(config), default=str), parse_constant=str)
    known = record_of(thesis.root, subject).options
    different = [name for name, value in known.items() if own.get(name) != value]
    if different:
        raise InputError(
            thesis.root,
            found=f"subject {subject} made with other {', '.join(different)}",
            expected="the options of the thesis' dataset",
            fix="Give the --voxel-mm and --seed that it was made with, or leave --dataset out.",
        )


def read_lesions(graded: GradedPatient, found: Sequence[Sources]) -> dict[str, Any]:
    """Evaluate the lesions in the result of a method.

    Parameters
    ----------
    graded
        The patient.
    found
        Every intermediate estimate, the result last; a single one for most methods.

    Returns
    -------
    dict
        `lesions`: kind, strength, and mean assigned and predicted value of each in ppb; `nrmse_percent` over
        the voxels of all lesions of a kind; `estimates_ppb`: the predicted values of each intermediate
        estimate. Values of a network that diverged are None.
    """
    labels = graded.patient.labels.numpy()
    truth = arrays(graded.case.references["truth"])
    made = [arrays(sources) for sources in found]
    placed = [(row, GRADED[kind]) for row in graded.patient.lesions for kind in GRADED if row.kind == kind]
    means = [
        [finite(1000 * x[source][labels == row.label].mean(dtype=np.float64)) for row, source in placed]
        for x in made
    ]
    lesions = []
    for (row, source), predicted in zip(placed, means[-1], strict=True):
        assigned = float(1000 * truth[source][labels == row.label].mean(dtype=np.float64))
        lesions.append(
            {
                "kind": row.kind,
                "strength_ppb": row.strength_ppb,
                "assigned_ppb": assigned,
                "predicted_ppb": predicted,
                "voxels": int(np.count_nonzero(labels == row.label)),
            }
        )
    nrmse: dict[str, float | None] = {}
    for kind, source in GRADED.items():
        inside = np.isin(labels, [row.label for row, _ in placed if row.kind == kind])
        size = float(np.linalg.norm(truth[source][inside]))
        error = float(np.linalg.norm(made[-1][source][inside] - truth[source][inside]))
        nrmse[kind] = finite(100 * error / size) if size else None
    return {"lesions": lesions, "nrmse_percent": nrmse, "estimates_ppb": means}


def summarised(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fit lines through the lesions of all subjects, by one method.

    Parameters
    ----------
    cells
        What `read_lesions` returns, one a subject.

    Returns
    -------
    dict
        For each kind: `lesions` (their number), `slope` with its 95 % interval `slope_low`, `slope_high`,
        `intercept_ppb`, and mean and SD over the subjects of `nrmse_percent` inside the lesions.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in GRADED:
        pairs = lesion_pairs(cells, kind)
        found[kind] = {
            "lesions": len(pairs),
            **fitted([assigned for assigned, _ in pairs], [predicted for _, predicted in pairs]),
            "nrmse_percent": mean_and_sd([cell["nrmse_percent"][kind] for cell in cells]),
        }
    return found


def estimate_slopes(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float | None]]]:
    """Fit the line of `summarised` for every intermediate estimate of the unrolled network."""
    found: dict[str, list[dict[str, float | None]]] = {}
    for kind in GRADED:
        found[kind] = []
        for number in range(len(cells[0]["estimates_ppb"])):
            pairs = [
                (lesion["assigned_ppb"], value)
                for cell in cells
                for value, lesion in zip(cell["estimates_ppb"][number], cell["lesions"], strict=True)
                if lesion["kind"] == kind and value is not None
            ]
            found[kind].append(fitted([a for a, _ in pairs], [p for _, p in pairs]))
    return found


def page(summary: Mapping[str, Mapping[str, Any]], by_cascade: Mapping[str, Sequence[Any]]) -> str:
    """Write slopes and errors as Markdown."""
    head = ["method"]
    for kind, source in GRADED.items():
        name = f"{kind} ({'χ_pos' if source == 'chi_pos' else 'χ_neg'})"
        head += [f"{name}: slope [95 %]", "intercept (ppb)", "NRMSE inside (%)"]
    lines = [
        [ROWS[name].title, *(text for kind in GRADED for text in _texts(found[kind]))]
        for name, found in summary.items()
    ]
    count = {kind: next(iter(summary.values()))[kind]["lesions"] for kind in GRADED}
    numbers = [
        [str(number + 1), *(slope_text(by_cascade[kind][number]) for kind in GRADED)]
        for number in range(len(next(iter(by_cascade.values()))))
    ]
    return "\n".join(
        (
            "# Lesions of graded strength in the test phantoms\n",
            "Mean predicted against mean assigned value, one point per lesion; a slope of 1 is perfect. "
            + ", ".join(f"{number} {kind}s" for kind, number in count.items())
            + " in all; NRMSE: mean ± SD over the phantoms.\n",
            markdown(head, lines),
            "## Intermediate estimates of the unrolled network: slope [95 %]\n",
            markdown(["iteration", *GRADED], numbers),
        )
    )


def _texts(found: Mapping[str, Any]) -> list[str]:
    nrmse = found["nrmse_percent"]
    return [
        slope_text(found),
        plus_minus(found["intercept_ppb"], None, 1),
        plus_minus(nrmse["mean"], nrmse["sd"], 1),
    ]


def _lesion_figure(cells: Sequence[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    return figures.lesion_lines(
        [
            lesion_panel(ROWS[name].title, [cell for cell in cells if cell["row"] == name], found)
            for name, found in summary.items()
        ]
    )


def _cascade_figure(by_cascade: Mapping[str, Sequence[Mapping[str, float | None]]]) -> Figure:
    lines, thin = {}, {}
    for kind, fits in by_cascade.items():
        known = [(i, fit) for i, fit in enumerate(fits, start=1) if fit["slope"] is not None]
        iteration = [i for i, _ in known]
        lines[kind] = (iteration, [fit["slope"] or 0.0 for _, fit in known])
        thin[kind] = [
            (iteration, [fit[end] or 0.0 for _, fit in known]) for end in ("slope_low", "slope_high")
        ]
    panel = figures.Curves("Unrolled network (thin: 95 %)", "iteration", "slope", lines, thin)
    return figures.curves([panel])
