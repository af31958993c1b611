"""Head orientations from raw scans: errors of registration, COSMOS and labels on a simulated participant."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tyro.conf import Positional

import chisep
from chisep.api.left_out_orientation import COSMOS, as_json, left_out_errors, read_scans
from chisep.errors import InputError
from chisep.execution.config import ClusterConfig
from chisep.execution.orientations import run_orientations
from chisep.experiments.orientations.adaptation import AdaptationConfig, adapted_errors
from chisep.experiments.orientations.comparison import SUBJECT, Comparison
from chisep.experiments.orientations.page import page
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.pipeline.orientations.config import OrientationsConfig
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation.dataset import SimulateConfig, simulate


@dataclass(frozen=True, kw_only=True)
class OrientationsExperimentConfig:
    """A simulated participant in several head orientations, from raw scans to labels."""

    out: Positional[Path]
    """Folder for scans, maps and results; finished stages are kept."""
    labels: tuple[Path, ...] = ()
    """Label map of the head; the packaged head if none."""
    voxel_mm: float = 1.5
    """Voxel edge in mm."""
    snr: float = 50.0
    """SNR of the scans."""
    orientations: int = 5
    """Number of head orientations."""
    seed: int = 24
    """Seed of head, motion and noise."""
    methods: tuple[str, ...] = (COSMOS, "unrolled", "tikhonov")
    """Methods whose leave-one-orientation-out error is measured, by name; none for no such measurement."""
    error_budget: bool = True
    """Switch the causes of errors of χ off in turn."""
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    """Fine-tuning of a shipped network on the other orientations, without labels."""

    def __post_init__(self) -> None:
        if len(self.labels) > 1:
            raise InputError("labels", found="several", expected="one", fix="Call the command for each head.")

    @property
    def scans(self) -> SimulateConfig:
        """Simulation of the raw scans."""
        return SimulateConfig(
            out=self.out / "bids",
            labels=self.labels,
            voxel_mm=self.voxel_mm,
            snr=self.snr,
            orientations=self.orientations,
            seed=self.seed,
            raw_orientations=True,
        )

    @property
    def processing(self) -> OrientationsConfig:
        """Processing of the raw scans."""
        return OrientationsConfig(bids=self.out / "bids", out=self.out / "derivatives")


def orientations(config: OrientationsExperimentConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate raw scans, process them with `chisep orientations`, and compare with the truth.

    Returns
    -------
    list of Path
        orientations.md, orientations.json, and a figure of χ and its sources.

    Raises
    ------
    ChisepError
        If scans cannot be made or processed, or a result not be written.
    """

    def step(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, 4)

    make_directory(config.out)
    step("raw scans", 0)
    simulate(config.scans)
    step("processing", 1)
    (result,) = run_orientations(config.processing, ClusterConfig(cluster="none"))
    if result.error is not None:
        raise result.error
    step("comparison", 2)
    comparison = Comparison(config)
    found = comparison.measured()
    if config.error_budget:
        found["ErrorBudget"] = comparison.budget()
    found["Interpolation"] = comparison.interpolation()
    step("orientations left out", 3)
    scans = read_scans(config.processing.out, SUBJECT)
    if config.methods:
        found["LeftOut"] = as_json(left_out_errors(scans, config.methods))
    if config.adaptation.adaptation_steps:
        found["Adaptation"] = adapted_errors(scans, comparison.true_sources, config.adaptation)
    step("orientations", 4)
    results = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": config.labels[0].name if config.labels else "packaged head",
        "Options": json.loads(json.dumps(asdict(config) | {"out": None, "labels": None})),
        "Warnings": list(result.warnings),
        **found,
    }
    return [
        write_text(config.out / "orientations.md", page(results)),
        write_json(config.out / "orientations.json", results),
        write_bytes(config.out / "orientations.png", figures.png(comparison.figure())),
    ]
