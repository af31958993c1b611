"""Experiments: `chisep reproduce NAME OUT` computes the tables and figures of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chisep.progress import Progress

Function = Callable[[Any, Progress | None], list[Path]]
"""Takes the experiment's config and returns the files to look at."""


@dataclass(frozen=True)
class Experiment:
    """An experiment by name.

    Parameters
    ----------
    summary
        Its purpose, in one line.
    load
        Imports the experiment; returns the class of its config and its function.
    """

    summary: str
    load: Callable[[], tuple[type[Any], Function]]


def _realism() -> tuple[type[Any], Function]:
    from chisep.experiments.realism.command import RealismConfig, realism

    return RealismConfig, realism


def _orientations() -> tuple[type[Any], Function]:
    from chisep.experiments.orientations.command import OrientationsExperimentConfig, orientations

    return OrientationsExperimentConfig, orientations


def _preprocessing() -> tuple[type[Any], Function]:
    from chisep.experiments.preprocessing import PreprocessingConfig, preprocessing

    return PreprocessingConfig, preprocessing


def _relaxivity() -> tuple[type[Any], Function]:
    from chisep.experiments.relaxivity import RelaxivityConfig, relaxivity

    return RelaxivityConfig, relaxivity


def _scan_checks() -> tuple[type[Any], Function]:
    from chisep.experiments.scan_checks import ScanChecksConfig, scan_checks

    return ScanChecksConfig, scan_checks


def _real_scan() -> tuple[type[Any], Function]:
    from chisep.experiments.real_scan import RealScanConfig, real_scan

    return RealScanConfig, real_scan


def _networks() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.networks import NetworksConfig, train_networks

    return NetworksConfig, train_networks


def _table() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.table import TableConfig, table

    return TableConfig, table


def _figures() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.pictures import FiguresConfig, pictures

    return FiguresConfig, pictures


def _patients() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.patients import PatientsConfig, patients

    return PatientsConfig, patients


def _qsm() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.qsm import QsmExperimentConfig, qsm

    return QsmExperimentConfig, qsm


def _ablations() -> tuple[type[Any], Function]:
    from chisep.experiments.thesis.ablations import ThesisAblationsConfig, ablations

    return ThesisAblationsConfig, ablations


def _beyond() -> tuple[type[Any], Function]:
    from chisep.experiments.robustness.command import beyond
    from chisep.experiments.robustness.protocols import BeyondConfig

    return BeyondConfig, beyond


def _independent() -> tuple[type[Any], Function]:
    from chisep.experiments.independent.command import IndependentConfig, independent

    return IndependentConfig, independent


def _network_ablations() -> tuple[type[Any], Function]:
    from chisep.experiments.robustness.ablations import NetworkAblationsConfig, ablations

    return NetworkAblationsConfig, ablations


def _regions() -> tuple[type[Any], Function]:
    from chisep.experiments.nuclei import NucleiExperimentConfig, nuclei

    return NucleiExperimentConfig, nuclei


def _whole_brain() -> tuple[type[Any], Function]:
    from chisep.experiments.whole_brain.command import whole_brain
    from chisep.experiments.whole_brain.sessions import WholeBrainConfig

    return WholeBrainConfig, whole_brain


def _qsm_ci() -> tuple[type[Any], Function]:
    from chisep.experiments.qsm_ci.command import QsmCiExperimentConfig, qsm_ci_worlds

    return QsmCiExperimentConfig, qsm_ci_worlds


def _reproducibility() -> tuple[type[Any], Function]:
    from chisep.experiments.reproducibility import ReproducibilityConfig, reproducibility

    return ReproducibilityConfig, reproducibility


EXPERIMENTS = {
    "realism": Experiment("digital phantoms compared with published measurements in people", _realism),
    "preprocessing": Experiment(
        "error due to preprocessing: simulated sessions from raw echoes to maps", _preprocessing
    ),
    "orientations": Experiment(
        "several head orientations from raw scans: errors of registration, COSMOS and labels", _orientations
    ),
    "relaxivity": Experiment("D_r from the scan itself: simulated scans of known D_r", _relaxivity),
    "scan-checks": Experiment("quality checks of twenty scans without faults: all should pass", _scan_checks),
    "real-scan": Experiment(
        "a gradient-echo scan of a person: 2π wraps, relaxation rate maps, figures", _real_scan
    ),
    "networks": Experiment("train the thesis' networks on eight digital phantoms; resumes", _networks),
    "table": Experiment("Table 2.1 of the thesis: every method on the test phantoms", _table),
    "figures": Experiment(
        "Figures 2.2 to 2.4 of the thesis: intermediate estimates of the unrolled network", _figures
    ),
    "patients": Experiment("Figure 2.5 of the thesis: lesions of graded strength", _patients),
    "qsm": Experiment(
        "susceptibility maps by QSMnet, total variation and Tikhonov on the test phantoms", _qsm
    ),
    "ablations": Experiment("ablations of the thesis: small trainings with one change each", _ablations),
    "beyond": Experiment(
        "the unrolled network against all others: unseen phantoms, lesions, other protocols, intervals",
        _beyond,
    ),
    "independent": Experiment(
        "every method on phantoms that share no code with the simulation or the training data", _independent
    ),
    "parts": Experiment(
        "ablations of the unrolled network: small trainings with one change each", _network_ablations
    ),
    "regions": Experiment("nuclei of the atlas CIT168 on simulated scans against the true nuclei", _regions),
    "whole-brain": Experiment(
        "the whole chain over the whole brain: from raw scans to maps, errors by depth",
        _whole_brain,
    ),
    "qsm-ci": Experiment(
        "every stage of the benchmark QSM-CI on worlds by its definitions, scored by its metrics", _qsm_ci
    ),
    "reproducibility": Experiment(
        "one head, four protocols, two scanners, three runs: agreement of region means", _reproducibility
    ),
}
