"""Figures 2.2 to 2.4 of the thesis: intermediate estimates of the unrolled network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from chisep.errors import InputError
from chisep.experiments.common.scores import arrays
from chisep.experiments.thesis.data import (
    AppliedConfig,
    Case,
    dataset_of,
    has_truth,
    load_case,
    provenance,
    references_of,
)
from chisep.experiments.thesis.rows import ROWS, UNROLLED, described, intermediate_estimates
from chisep.experiments.thesis.table import with_qsmnet
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_bytes, write_json
from chisep.metrics import nrmse_percent
from chisep.networks.config import SOURCES
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation import labelmap
from chisep.simulation.dataset import TRUTH
from chisep.types import Sources

_TITLES = {"chi_pos": figures.CHI_POS, "chi_neg": figures.CHI_NEG}
_CMAPS: dict[str, Colormap] = {"chi_pos": figures.CHI_POS_CMAP, "chi_neg": figures.CHI_NEG_CMAP}
_CHANGE_WINDOW_PPB = (-50.0, 50.0)
_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class FiguresConfig(AppliedConfig):
    """Figures 2.2 to 2.4: intermediate estimates of the unrolled network, their errors, their differences."""

    iterations: tuple[int, ...] = (1, 2, 3, 5, 7, 10)
    """Iterations to show."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.iterations or min(self.iterations) < 1:
            raise InputError(
                "iterations",
                found=f"{self.iterations}",
                expected="numbers of iterations, 1 or more",
                fix="Correct the option.",
            )


def pictures(config: FiguresConfig, progress: Progress | None = None) -> list[Path]:
    """Plot the intermediate estimates of the first test subject, and their errors for all test subjects.

    Parameters
    ----------
    config
        Folders of data, weights and results; iterations to show.
    progress
        Receives the subject.

    Returns
    -------
    list of Path
        Of each map the intermediate estimates (2.2), their errors against the label (2.3) and the changes
        (2.4); the curve of NRMSE over the iterations as picture and JSON.

    Raises
    ------
    InputError
        If weights are missing, the dataset cannot be used, or the network has fewer iterations than are to
        be shown.
    OutputError
        If a result cannot be written.

    Notes
    -----
    Intermediate estimates are the results of the method if it stopped there, with negative values set to 0.
    """
    make_directory(config.out)
    weights = described(ROWS[UNROLLED].needed, config.weights_folder)
    root = dataset_of(config, progress)
    curves: dict[str, Any] = {}
    written: list[Path] = []
    for done, subject in enumerate(config.test):
        if progress is not None:
            progress(f"sub-{subject}: intermediate estimates", done, len(config.test))
        case = with_qsmnet(load_case(root, subject), config.weights_folder)
        estimates = intermediate_estimates(case.maps, config.weights_folder)
        curves[subject] = nrmse_curves(case, estimates)
        if not written:
            written = _write_planes(config, case, estimates, lentiform(root, subject))
    if progress is not None:
        progress("figures", len(config.test), len(config.test))
    means = {
        reference: {
            source: np.mean([curves[s][reference][source] for s in config.test], axis=0).tolist()
            for source in SOURCES
        }
        for reference in references_of(root)
    }
    record = {**provenance(config), "Weights": weights, "NrmsePercent": {"mean": means, **curves}}
    return [
        *written,
        write_bytes(config.out / "estimates-nrmse.png", figures.png(_curve_figure(means, curves))),
        write_json(config.out / "estimates-nrmse.json", record),
    ]


def nrmse_curves(case: Case, estimates: Sequence[Sources]) -> dict[str, dict[str, list[float]]]:
    """NRMSE in % of every intermediate estimate against label and truth, of χ_pos and χ_neg."""
    mask = case.maps.mask.numpy()
    made = [arrays(sources) for sources in estimates]
    real = {reference: arrays(sources) for reference, sources in case.references.items()}
    return {
        r: {s: [nrmse_percent(estimate[s], real[r][s], mask) for estimate in made] for s in SOURCES}
        for r in real
    }


def lentiform(root: Path, subject: str) -> list[int] | None:
    """Central voxel of putamen and pallidum; None for a head without them, or without a label map."""
    if not has_truth(root):
        return None
    labels = nifti.load(bids.derivative_path(root / TRUTH, subject, "dseg")).data
    inside = np.isin(labels, (*labelmap.PUTAMEN, *labelmap.PALLIDUM))
    return [round(float(axis.mean())) for axis in np.nonzero(inside)] if inside.any() else None


def _write_planes(
    config: FiguresConfig, case: Case, estimates: Sequence[Sources], position: list[int] | None
) -> list[Path]:
    if max(config.iterations) > len(estimates):
        raise InputError(
            "iterations",
            found=f"{max(config.iterations)}",
            expected=f"{len(estimates)} at most, as the network has",
            fix="Correct --iterations.",
        )
    mask, affine = case.maps.mask.numpy(), case.maps.grid.matrix()
    nothing = torch.zeros_like(case.maps.field_ppm)
    written = []
    for source in SOURCES:
        # The initial estimate is 0, as in the thesis.
        stack = 1000 * np.stack([arrays(x)[source] for x in (Sources(nothing, nothing), *estimates)])
        label = 1000 * arrays(case.references["label"])[source]
        shown = list(config.iterations)
        before = [number - 1 for number in shown]
        title = _TITLES[source]
        for name, volumes, text, window, cmap in (
            ("2.2-estimates", stack[shown], title, figures.SOURCE_WINDOW_PPB, _CMAPS[source]),
            (
                "2.3-errors",
                stack[shown] - label,
                f"{title}: estimate − label",
                _CHANGE_WINDOW_PPB,
                figures.DIFFERENCE_CMAP,
            ),
            (
                "2.4-changes",
                stack[shown] - stack[before],
                f"{title}: estimate − preceding estimate",
                _CHANGE_WINDOW_PPB,
                figures.DIFFERENCE_CMAP,
            ),
        ):
            figure = figures.axial_planes(
                volumes,
                [f"iteration {number}" for number in shown],
                affine,
                title=text,
                unit="ppb",
                window=window,
                cmap=cmap,
                mask=mask,
                position=position,
                columns=_COLUMNS,
            )
            written.append(write_bytes(config.out / f"{name}-{source}.png", figures.png(figure)))
    return written


def _curve_figure(means: dict[str, Any], curves: dict[str, Any]) -> Figure:
    panels = []
    for source in SOURCES:
        lines, thin = {}, {}
        for reference in means:
            mean = means[reference][source]
            iteration = list(range(1, len(mean) + 1))
            lines[f"against the {reference}"] = (iteration, mean)
            thin[f"against the {reference}"] = [(iteration, c[reference][source]) for c in curves.values()]
        panels.append(figures.Curves(_TITLES[source], "iteration", "NRMSE (%)", lines, thin))
    return figures.curves(panels)
