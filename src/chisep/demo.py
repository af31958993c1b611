"""Demonstration: simulate a scan, process it, and compare methods with the ground truth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tyro.conf import Positional

import chisep
from chisep import methods, metrics
from chisep.api.files import SOURCE_FILES
from chisep.api.maps import InversionOptions, IterationProgress, SeparationOptions, qsm, separate
from chisep.errors import ChisepWarning
from chisep.io import nifti
from chisep.networks.inference import NetworkOptions
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.progress import Progress
from chisep.report import figures
from chisep.report.comparison import comparison_viewer, score_table
from chisep.report.subject import Panel, SubjectReport, write_report
from chisep.simulation import labelmap
from chisep.simulation.dataset import MAPS, TRUTH, SimulateConfig, simulate
from chisep.simulation.tissue_properties import REGIONS
from chisep.types import Maps

_SYMBOLS = {"paramagnetic": "χ_pos", "diamagnetic": "χ_neg", "total": "χ"}
_COLUMNS = ("method", "map", "inputs", "NRMSE %", "PSNR dB", "SSIM", "xSIM")

_ERROR_WINDOW_PPB = (-50.0, 50.0)


@dataclass(frozen=True)
class DemoConfig:
    """Output folder, voxel size, noise and seed of the demonstration."""

    out: Positional[Path] = Path("chisep-demo")
    """Folder for the simulated dataset, its derivatives and the comparison."""
    voxel_mm: float = 1.2
    """Voxel edge of the simulated scan in mm."""
    snr: float = 100.0
    """Signal-to-noise ratio of the first gradient echo."""
    seed: int = 0
    """Seed of the digital phantom and of the noise."""
    all: bool = False
    """Compare every method, also on the maps of an ideal preprocessing with the noise of the scan; takes
    several times as long."""


SHORT = ("unrolled", "iterative", "closed-form")
"""Methods of the comparison by default: the default of `chisep run`, and two without a network."""


@dataclass(frozen=True)
class DemoResult:
    """Table of the comparison, and paths of the pages."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    report: Path
    comparison: Path


@dataclass(frozen=True)
class _Inputs:
    """Input files of a method."""

    field: Path
    r2prime: Path
    r2star: Path
    mask: Path
    support: Path


def demo(
    config: DemoConfig, progress: Progress | None = None, *, paint_mm: float | None = None
) -> DemoResult:
    """Simulate one subject, run the pipeline, and evaluate methods on its inputs.

    With `all`, every method is evaluated, also on noisy maps of an ideal preprocessing; networks without
    packaged weights are left out.

    Parameters
    ----------
    config
        Output folder and simulation options.
    progress
        Called with the current step.
    paint_mm
        As of `chisep.simulation.dataset.simulate`.

    Returns
    -------
    DemoResult
        Metrics within the valid-field mask, and the pages.

    Raises
    ------
    ChisepError
        If the output cannot be written or a stage fails.
    """
    raw, out = config.out / "bids", config.out / "derivatives"
    scan = SimulateConfig(
        out=raw, voxel_mm=config.voxel_mm, snr=config.snr, seed=config.seed, maps=config.all
    )
    simulate(scan, progress, paint_mm=paint_mm)
    (result,) = run(RunConfig(raw, out), progress)
    if result.error or result.report is None:
        raise result.error or RuntimeError("the run left no report")

    truth, ideal, made = (folder / "sub-01" / "anat" for folder in (raw / TRUTH, raw / MAPS, out))
    inputs = {"pipeline": _inputs(made, made / "sub-01_desc-eroded_mask.nii.gz", made)}
    if config.all:
        inputs["noisy maps"] = _inputs(ideal, truth / "sub-01_desc-brain_mask.nii.gz", truth)
    names = [name for name, method in methods.METHODS.items() if not method.missing_weights]
    comparison = _Comparison(truth, inputs["pipeline"].mask)
    for name in names if config.all else SHORT:
        for label, files in inputs.items():
            show = progress and _bar(progress, f"{name} on {label}" if config.all else name)
            for source, volume in _maps_of(name, label, files, made, scan.b0_t, show).items():
                comparison.add(name, source, label, volume)
        comparison.warnings += _range_warnings(name, inputs["pipeline"], scan.b0_t)
    page = config.out / "comparison.html"
    write_report(page, comparison.report())
    return DemoResult(_COLUMNS, comparison.rows, result.report, page)


def _inputs(maps: Path, mask: Path, brain: Path) -> _Inputs:
    field, r2prime, r2star = (
        maps / f"sub-01_{name}.nii.gz" for name in ("desc-local_fieldmap", "R2primemap", "R2starmap")
    )
    return _Inputs(field, r2prime, r2star, mask, brain / "sub-01_desc-brain_mask.nii.gz")


def _maps_of(
    name: str, label: str, files: _Inputs, made: Path, b0_t: float, progress: IterationProgress | None
) -> dict[str, figures.VolumeArray]:
    """Compute the maps of a method in ppm, or read those that the session was processed with."""
    if (name, label) == (methods.DEFAULTS["sources"], "pipeline"):
        kinds = ("paramagnetic", "diamagnetic")
        return {kind: nifti.load(made / f"sub-01_{SOURCE_FILES[kind]}").data for kind in kinds}
    with warnings.catch_warnings():  # they are on the page
        warnings.filterwarnings("ignore", f".*{methods.NOT_TRAINED}", ChisepWarning)
        return _solve(name, files, b0_t, progress)


def _range_warnings(name: str, files: _Inputs, b0_t: float) -> list[str]:
    """Warn of a network that was trained on other scans than that of the demonstration."""
    field, mask = nifti.load(files.field), nifti.load_mask(files.mask)
    maps = Maps(
        field_ppm=torch.from_numpy(field.data),
        mask=torch.from_numpy(mask.data),
        grid=nifti.grid_of(field),
        relaxivity=default_relaxivity(b0_t),
        b0_t=b0_t,
    )
    return [f"{name}: {text}" for text in methods.range_warnings(name, maps, NetworkOptions())]


def _bar(progress: Progress, what: str) -> IterationProgress:
    return lambda done, total: progress(what, done, total)


def _solve(
    name: str, files: _Inputs, b0_t: float, progress: IterationProgress | None
) -> dict[str, figures.VolumeArray]:
    """Compute the maps of a method in ppm."""
    if methods.METHODS[name].target == "chi":
        options = InversionOptions(method=name)
        chi = qsm(files.field, files.mask, support=files.support, options=options, progress=progress)
        return {"total": _data(chi)}
    images = separate(
        files.field,
        files.r2prime,
        files.mask,
        r2star=files.r2star,
        support=files.support,
        options=SeparationOptions(method=name, b0=b0_t),
        progress=progress,
    )
    return {"paramagnetic": _data(images.paramagnetic), "diamagnetic": _data(images.diamagnetic)}


def _data(image: nib.Nifti1Image) -> figures.VolumeArray:
    return np.asarray(image.dataobj, dtype=np.float32)


class _Comparison:
    """Collects metrics and figures."""

    def __init__(self, truth: Path, mask: Path) -> None:
        image = nifti.load_mask(mask)
        self.mask, self.affine = image.data, image.affine
        self.truth = {
            source: nifti.load(truth / f"sub-01_{name}").data for source, name in SOURCE_FILES.items()
        }
        self.labels = np.rint(nifti.load(truth / "sub-01_dseg.nii.gz").data).astype(np.int32)
        self.rows: list[tuple[str, ...]] = []
        self.warnings: list[str] = []
        self._estimates: dict[str, dict[str, figures.VolumeArray]] = {source: {} for source in self.truth}
        self._shown: dict[str, list[figures.Row]] = {
            source: [self._row("truth", source, volume)] for source, volume in self.truth.items()
        }

    def _row(self, title: str, source: str, volume: figures.VolumeArray) -> figures.Row:
        window = figures.TOTAL_WINDOW_PPB if source == "total" else figures.SOURCE_WINDOW_PPB
        return figures.Row(title, np.where(self.mask, 1000 * volume, 0), "ppb", window, "gray")

    def add(self, method: str, source: str, inputs: str, volume: figures.VolumeArray) -> None:
        scores = metrics.evaluate(volume, self.truth[source], self.mask)
        self.rows.append(
            (
                method,
                _SYMBOLS[source],
                inputs,
                f"{scores['nrmse_percent']:.1f}",
                f"{scores['psnr_db']:.1f}",
                f"{scores['ssim']:.3f}",
                f"{scores['xsim']:.3f}",
            )
        )
        self._estimates[source][f"{method}, {inputs}"] = volume
        error = np.where(self.mask, 1000 * (volume - self.truth[source]), 0)
        self._shown[source] += [
            self._row(f"{method}, {inputs}", source, volume),
            figures.Row(
                f"{method}, {inputs}: error", error, "ppb", _ERROR_WINDOW_PPB, figures.DIFFERENCE_CMAP
            ),
        ]

    def report(self) -> SubjectReport:
        panels = [
            Panel(
                "Scores",
                "Metrics against the ground truth, within the valid-field mask. “Pipeline” inputs are the "
                "results of preprocessing of the scan. “Noisy maps” (--all) are the field and R2′ of an "
                "ideal preprocessing, with the noise of the scan, in the whole brain. The difference is the "
                "effect of preprocessing. PSNR is relative to 1 ppm over the whole field of view.",
                table=score_table(_COLUMNS, self.rows),
            )
        ]
        for source, rows in self._shown.items():
            if len(rows) == 1:  # the truth alone
                continue
            symbol = _SYMBOLS[source]
            panels.append(
                Panel.of_figure(
                    symbol,
                    f"Ground truth, then the methods that compute {symbol}, each with its error.",
                    figures.planes(rows, self.affine, mask=self.mask),
                    alt=f"{symbol} of the ground truth, of the methods, and their errors in three planes.",
                    in_viewer=True,
                )
            )
        return SubjectReport(
            title="chisep: methods against the truth",
            subject="01",
            summary=[("Data", "a digital phantom, not a person")],
            warnings=self.warnings,
            panels=panels,
            versions={"chisep": chisep.__version__},
            viewer=comparison_viewer(
                {_SYMBOLS[source]: volume for source, volume in self.truth.items()},
                {_SYMBOLS[source]: volumes for source, volumes in self._estimates.items()},
                self.affine,
                self.mask,
                self.labels,
                {index: name for region in REGIONS for index, name in region.names()},
                labelmap.DEEP_GREY,
            ),
        )
