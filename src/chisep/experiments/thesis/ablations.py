"""Ablations of the thesis: small trainings of one budget, with one change each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from matplotlib.figure import Figure

import chisep
from chisep import methods
from chisep.experiments.common.budgets import BudgetConfig, Run, budgeted, require_known, with_widths
from chisep.experiments.common.lesions import GRADED, LesionsConfig, lesion_options, slope_text
from chisep.experiments.common.networks import PRECISION, Clock, trained_weights
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import NAMES, finite, mean_and_sd, scores
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.experiments.thesis.data import (
    REFERENCES,
    TEST,
    TRAIN,
    VALIDATION,
    AppliedConfig,
    Case,
    dataset_of,
    folders,
    load_case,
    provenance,
    record_of,
)
from chisep.experiments.thesis.patients import GradedPatient, graded_patient, read_lesions
from chisep.experiments.thesis.patients import summarised as lesion_summary
from chisep.experiments.thesis.rows import checksums, qsmnet_chi, weights_path
from chisep.experiments.thesis.table import COLUMNS
from chisep.io import bids
from chisep.io.files import checksum, make_directory, write_bytes, write_json, write_text
from chisep.io.weights import load_header
from chisep.networks.config import SOURCES
from chisep.networks.inference import NetworkOptions
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation.dataset import TRUTH
from chisep.training.data import FoldersConfig, acquisition_path, field_maps
from chisep.training.input_qsm import make_chi_maps, missing_chi_maps
from chisep.training.recipes import Recipe, find
from chisep.training.train import ScansOfTraining, TrainConfig, history, read_scans
from chisep.types import Sources, Volume

Qsm = Literal["qsmnet", "tv", "true"]
"""Method of the input χ map."""

ITERATIONS = (1, 2, 4, 6, 10, 14)
THESIS_ALPHA = (0.67, 0.75)
"""Final value of α in the thesis, for all settings."""
_QSM_FOLDERS: Mapping[Qsm, str] = {"qsmnet": "qsmnet", "tv": "tv", "true": "qsmtrue"}
_METRICS = {"nrmse_percent": ("NRMSE (%)", 2), "ssim": ("SSIM", 4)}
_TEN = "unrolled-10"
_SECOND_SEED = 1


@dataclass(frozen=True, kw_only=True)
class ThesisAblationsConfig(AppliedConfig, LesionsConfig, BudgetConfig):
    """Small trainings of one budget, with one change each."""

    def __post_init__(self) -> None:
        AppliedConfig.__post_init__(self)
        LesionsConfig.__post_init__(self)
        require_known(self, runs(self))


@dataclass(frozen=True)
class QsmRun(Run):
    """One training, and the method of its input χ map."""

    qsm: Qsm = "qsmnet"


def runs(config: ThesisAblationsConfig) -> list[QsmRun]:
    """All runs in the order of training, the most important first."""
    baseline = budgeted(find("thesis-baseline"), config)
    unrolled = budgeted(find("thesis-unrolled"), config)
    half = tuple(max(1, width // 2) for width in config.widths)
    twice = tuple(2 * width for width in config.widths)
    no_qsm = replace(baseline.network, inputs=("r2prime", "field"))
    found = [
        QsmRun("baseline", "baseline", baseline),
        QsmRun(_TEN, "unrolled, 10 iterations, α from 4", unrolled),
        QsmRun("baseline-no-qsm", "baseline without χ_QSM", replace(baseline, network=no_qsm)),
        QsmRun(f"{_TEN}-no-qsm", "unrolled without the χ_QSM row", _unrolled(unrolled, qsm_row=False)),
        QsmRun(f"{_TEN}-alpha-1", "unrolled, α from 1", _unrolled(unrolled, alpha=1.0)),
        QsmRun(f"{_TEN}-alpha-0.41", "unrolled, α from 0.41", _unrolled(unrolled, alpha=0.41)),
    ]
    found += [
        QsmRun(f"unrolled-{n}", f"unrolled, {n} iteration{'s' * (n > 1)}", _unrolled(unrolled, iterations=n))
        for n in ITERATIONS
        if f"unrolled-{n}" != _TEN
    ]
    pairs = (("baseline", "baseline", baseline), (_TEN, "unrolled", unrolled))
    found += [
        QsmRun(f"{name}-seed-2", f"{title}, second seed", replace(recipe, seed=_SECOND_SEED))
        for name, title, recipe in pairs
    ]
    found += [
        QsmRun(
            f"{name}-{text}-width",
            f"{title}, channels {'-'.join(map(str, widths))}",
            with_widths(recipe, widths),
        )
        for text, widths in (("half", half), ("twice", twice))
        for name, title, recipe in pairs
    ]
    by: tuple[tuple[Qsm, str], ...] = (("true", "true"), ("tv", "by TV"))
    found += [
        QsmRun(f"{name}-qsm-{qsm}", f"{title}, χ_QSM {text}", recipe, qsm)
        for qsm, text in by
        for name, title, recipe in pairs
    ]
    return found


def _unrolled(recipe: Recipe, **changes: Any) -> Recipe:  # noqa: ANN401
    unrolled = replace(recipe.network.unrolled or UnrolledGradientConfig(), **changes)
    return replace(recipe, network=replace(recipe.network, unrolled=unrolled))


def ablations(config: ThesisAblationsConfig, progress: Progress | None = None) -> list[Path]:
    """Train and test the missing runs, until all are done or the time is up.

    Parameters
    ----------
    config
        Budget, and folders of data, weights of QSMnet and results.
    progress
        Receives the run that is being trained or tested, or the scan that is being read.

    Returns
    -------
    list of Path
        ablations.md, ablations.json and the figures, of the runs done so far.

    Raises
    ------
    InputError
        If the weights of QSMnet are missing, the dataset cannot be used, or a folder holds a run of another
        budget.
    OutputError
        If a result cannot be written.

    Warns
    -----
    ChisepWarning
        If the time was up before all runs were done.
    """
    make_directory(config.out)
    weights_path("qsmnet", config.weights_folder)
    dataset_of(config, progress)
    clock, scans, shared = Clock(config.minutes), _Scans(config), _TrainingScans(config, progress)
    chosen = [run for run in runs(config) if not config.only or run.name in config.only]
    for done, run in enumerate(chosen):
        if progress is not None:
            progress(f"training {run.name}", done, len(chosen))
        weights = _train(config, run, clock, shared, progress)
        if weights is None:
            clock.warn(f"{', '.join(r.name for r in chosen[done:])} not done")
            break
        if progress is not None:
            progress(f"testing {run.name}", done, len(chosen))
        cached_result(_result_path(config, run), _key(config, weights), partial(_tested, scans, run, weights))
    if progress is not None:
        progress("ablations", len(chosen), len(chosen))
    return _write(config)


class _TrainingScans:
    """Scans that trainings share: rotation of tilted heads takes longer than a training."""

    def __init__(self, config: ThesisAblationsConfig, progress: Progress | None) -> None:
        # The baseline reads all channels that any run reads.
        self._recipe, self._progress, self._root = find("thesis-baseline"), progress, config.root
        self._known: tuple[Qsm, ScansOfTraining] | None = None

    def of(self, qsm: Qsm) -> ScansOfTraining:
        """Read the scans with χ maps of one method; those of the last method are cached."""
        if self._known is None or self._known[0] != qsm:
            self._known = None  # frees what the next ones need
            read = read_scans(folders(self._root, _QSM_FOLDERS[qsm]), self._recipe, self._progress)
            self._known = qsm, read
        return self._known[1]


def _train(
    config: ThesisAblationsConfig,
    run: QsmRun,
    clock: Clock,
    shared: _TrainingScans,
    progress: Progress | None,
) -> Path | None:
    where = folders(config.root, _QSM_FOLDERS[run.qsm])
    if "qsm" in run.recipe.network.inputs:
        make_qsm_maps(where, run.qsm, config.weights_folder, progress)
    training = TrainConfig(
        out=config.out / "runs" / run.name,
        data=where,
        recipe=run.recipe,
        name=run.name,
        threads=config.threads,
    )
    return trained_weights(training, clock, progress, lambda: shared.of(run.qsm))


def make_qsm_maps(
    where: FoldersConfig, qsm: Qsm, weights_folder: Path | None, progress: Progress | None = None
) -> None:
    """Compute the input χ maps of the subjects for training and validation; existing maps are reused.

    Parameters
    ----------
    where
        The dataset; maps go into its `qsm` folder.
    qsm
        Their method; the true χ is linked, since it is the same in all scans of a head.
    weights_folder
        Folder of the weights of QSMnet.
    progress
        Receives the map that is being computed.
    """
    subjects = TRAIN + VALIDATION
    if qsm != "true":
        own = str(weights_path("qsmnet", weights_folder)) if qsm == "qsmnet" else ""
        make_chi_maps(
            where, subjects, qsm, NetworkOptions(weights=own, precision=PRECISION), progress=progress
        )
        return
    if not missing_chi_maps(where, subjects):
        return
    bids.write_dataset_description(where.folder("qsm"), "True χ", derivative=True)
    for subject in subjects:
        truth = bids.derivative_path(where.dataset / TRUTH, subject, "Chimap", desc="total")
        for path in field_maps(where, subject):
            target = acquisition_path(where, "qsm", subject, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_file():
                target.symlink_to(os.path.relpath(truth, target.parent))


class _Scans:
    """Test subjects and a patient (the first with lesions), each read on first use."""

    def __init__(self, config: ThesisAblationsConfig) -> None:
        self._config = config
        self._cases: dict[str, Case] = {}
        self._graded: GradedPatient | None = None
        self._chi: dict[tuple[str, Qsm], Volume] = {}

    def case(self, subject: str) -> Case:
        """Read a test subject."""
        if subject not in self._cases:
            self._cases[subject] = load_case(self._config.root, subject)
        return self._cases[subject]

    def patient(self) -> GradedPatient:
        """Simulate the patient."""
        if self._graded is None:
            self._graded = graded_patient(self._config, self._config, TEST[0])
        return self._graded

    def separated(self, name: str, case: Case, run: QsmRun, weights: Path) -> Sources:
        """Apply a run's network, with the χ map that it was trained with; `name` is that of the case."""
        if (name, run.qsm) not in self._chi:
            self._chi[name, run.qsm] = chi_of(case, run.qsm, self._config.weights_folder)
        maps = replace(case.maps, chi_ppm=self._chi[name, run.qsm])
        return methods.separate(
            maps, "chi-sepnet-r2p", NetworkOptions(weights=str(weights), precision=PRECISION)
        )


def chi_of(case: Case, qsm: Qsm, folder: Path | None) -> Volume:
    """Compute the input χ map of a test case, in ppm; arguments as of `make_qsm_maps`."""
    if qsm == "true":
        return case.references["truth"].chi_ppm
    return qsmnet_chi(case.maps, folder) if qsm == "qsmnet" else methods.invert(case.maps, qsm).chi_ppm


def _result_path(config: ThesisAblationsConfig, run: QsmRun) -> Path:
    return config.out / "runs" / run.name / "result.json"


def _key(config: ThesisAblationsConfig, weights: Path) -> dict[str, Any]:
    return {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Weights": {"own": checksum(weights), **checksums(("qsmnet",), config.weights_folder)},
        "Dataset": {subject: msgspec.to_builtins(record_of(config.root, subject)) for subject in TEST},
        "Lesions": lesion_options(config),
    }


def _tested(scans: _Scans, run: QsmRun, weights: Path) -> dict[str, Any]:
    """Scores on the test subjects and on the patient, and the history of α."""
    subjects, seconds = {}, []
    for subject in TEST:
        case = scans.case(subject)
        started = time.perf_counter()
        sources = scans.separated(subject, case, run, weights)
        seconds.append(time.perf_counter() - started)
        subjects[subject] = {r: scores(sources, case.references[r], case.maps.mask) for r in REFERENCES}
    graded = scans.patient()
    lesions = read_lesions(graded, [scans.separated("patient", graded.case, run, weights)])
    return {
        "run": run.name,
        "title": run.title,
        "qsm": run.qsm,
        "recipe": asdict(run.recipe),
        "validation_loss": finite(load_header(weights)["metrics"]["validation_loss"]),
        "alpha": [(step, finite(alpha)) for step, alpha in history(weights.parent, "alpha")],
        "seconds": round(min(seconds), 2),
        "subjects": subjects,
        "slopes": lesion_summary([lesions]),
        **lesions,
    }


def summarised(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and SD over the test subjects, a row for each result.

    Parameters
    ----------
    results
        Results of the runs (result.json).

    Returns
    -------
    list of dict
        Name, title, iterations, α at the start and at the end (None for a network without iterations),
        validation loss, seconds per phantom, metrics as of the table, and slopes of lesions.
    """
    found = []
    for result in results:
        own = list(result["subjects"].values())
        unrolled = result["recipe"]["network"]["unrolled"]
        found.append(
            {
                "run": result["run"],
                "title": result["title"],
                "iterations": None if unrolled is None else unrolled["iterations"],
                "alpha_start": None if unrolled is None else unrolled["alpha"],
                "alpha_end": result["alpha"][-1][1] if result["alpha"] else None,
                "validation_loss": result["validation_loss"],
                "seconds": result["seconds"],
                **{
                    r: {
                        s: {metric: mean_and_sd([cell[r][s][metric] for cell in own]) for metric in COLUMNS}
                        for s in SOURCES
                    }
                    for r in REFERENCES
                },
                "slopes": result["slopes"],
            }
        )
    return found


def _write(config: ThesisAblationsConfig) -> list[Path]:
    """Summarise the finished runs."""
    results = []
    for run in runs(config):
        path = _result_path(config, run)
        if path.is_file():
            results.append(json.loads(path.read_text(encoding="utf-8")))
    summary = summarised(results)
    found = {
        **provenance(config),
        "Budget": config.budget,
        "QsmnetWeights": checksums(("qsmnet",), config.weights_folder),
        "Rows": summary,
        "Alpha": {result["run"]: result["alpha"] for result in results if result["alpha"]},
        "AlphaOfThesis": THESIS_ALPHA,
    }
    written = [
        write_text(config.out / "ablations.md", page(summary, config.budget)),
        write_json(config.out / "ablations.json", found),
    ]
    for name, figure in _figures(summary, found["Alpha"]):
        written.append(write_bytes(config.out / f"{name}.png", figures.png(figure)))
    return written


def page(summary: Sequence[Mapping[str, Any]], budget: Mapping[str, Any]) -> str:
    """Write rows and budget as Markdown."""
    widths = "-".join(map(str, budget["widths"]))
    text = [
        "# Ablations\n",
        f"All runs have one budget: channels per level {widths} (other numbers where a row says so), crops "
        f"of {budget['crop']}³, batches of {budget['batch_size']}, {budget['epochs']} epochs of "
        f"{budget['steps_per_epoch']} steps, "
        f"the best by {budget['validation_crops']} validation crops. Mean ± SD over the test phantoms; "
        "slopes in one phantom with lesions.\n",
    ]
    metrics = [(s, m, digits) for s in SOURCES for m, (_, digits) in _METRICS.items()]
    for reference in REFERENCES:
        head = ["run", *(f"{NAMES[s]}: {_METRICS[m][0]}" for s, m, _ in metrics)]
        lines = [
            [
                row["title"],
                *(plus_minus(**row[reference][source][metric], digits=d) for source, metric, d in metrics),
            ]
            for row in summary
        ]
        text += [f"## Against the {reference}\n", markdown(head, lines)]
    low, high = THESIS_ALPHA
    head = ["run", "α at the start", "α at the end", *(f"{kind}: slope [95 %]" for kind in GRADED)]
    lines = [
        [
            row["title"],
            plus_minus(row["alpha_start"], None, 2),
            plus_minus(row["alpha_end"], None, 2),
            *(slope_text(row["slopes"][kind]) for kind in GRADED),
            f"{row['seconds']:.1f}",
        ]
        for row in summary
    ]
    text += [f"## Step size (in the thesis {low} to {high} at the end), lesions, time\n"]
    text += [markdown([*head, "seconds per phantom"], lines)]
    return "\n".join(text)


def _figures(
    summary: Sequence[Mapping[str, Any]], alphas: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, Figure]]:
    """Draw the figures of the finished runs."""
    titles = {"chi_pos": figures.CHI_POS, "chi_neg": figures.CHI_NEG}
    if summary:
        panels = [
            figures.Bars(
                f"{titles[source]}: NRMSE (%)",
                [row["title"] for row in summary],
                {
                    f"against the {r}": [number(row[r][source]["nrmse_percent"]["mean"]) for row in summary]
                    for r in REFERENCES
                },
                {
                    f"against the {r}": [row[r][source]["nrmse_percent"]["sd"] or 0.0 for row in summary]
                    for r in REFERENCES
                },
            )
            for source in SOURCES
        ]
        yield "ablations", figures.bars(panels)
    by_name = {row["run"]: row for row in summary}
    counted = [by_name[f"unrolled-{n}"] for n in ITERATIONS if f"unrolled-{n}" in by_name]
    if counted:
        count = [row["iterations"] for row in counted]
        curves = [
            figures.Curves(
                titles[source],
                "iterations",
                "NRMSE (%)",
                {
                    f"against the {r}": (
                        count,
                        [number(row[r][source]["nrmse_percent"]["mean"]) for row in counted],
                    )
                    for r in REFERENCES
                },
            )
            for source in SOURCES
        ]
        yield "iterations", figures.curves(curves)
    starts = {
        f"α from {by_name[name]['alpha_start']:g}": (
            [step for step, _ in alphas[name]],
            [number(alpha) for _, alpha in alphas[name]],
        )
        for name in (_TEN, f"{_TEN}-alpha-1", f"{_TEN}-alpha-0.41")
        if name in alphas
    }
    if starts:
        panel = figures.Curves(
            "Step size during training", "step", "α", starts, band=(*THESIS_ALPHA, "end in the thesis")
        )
        yield "alpha", figures.curves([panel])
