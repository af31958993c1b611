"""Rows of the tables: a method on a stage of a world, scored by the benchmark's own metrics."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import chisep
from chisep import methods
from chisep.api.qsm_ci import QsmCiConfig, qsm_ci
from chisep.api.qsm_ci.command import StageName
from chisep.api.qsm_ci.dephasing import dephasing_of
from chisep.api.qsm_ci.inputs import Inputs
from chisep.errors import ChisepWarning, InputError
from chisep.experiments.common.results import cached_result, code_checksum
from chisep.experiments.common.scores import finite
from chisep.experiments.qsm_ci.special import (
    BUDGET,
    LABEL_NULL,
    NULL,
    TUNED_TV,
    input_maps,
    special,
    true_relaxivity,
    truth_of,
)
from chisep.experiments.qsm_ci.worlds import RECORD
from chisep.io import nifti
from chisep.io.files import checksum
from chisep.methods import scan_relaxivity
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions

METRICS = ("xsim", "nrmse", "nrmse_detrend", "hfen", "mspe", "coverage")
DEFAULT = "default"
NO_CHI, NETWORK_RATE = "default, no χ map", "network r2s alone"
NOISY = "localfield-noisy"

METHODS: Mapping[StageName, tuple[str, ...]] = {
    "chi-separation": (
        *(DEFAULT, NO_CHI, *BUDGET, NULL, LABEL_NULL, "iterative", "closed-form"),
        *("chi-sepnet-r2p", "unrolled-thesis"),
    ),
    "field-mapping": (DEFAULT,),
    "bfr": (DEFAULT,),
    "dipole": (DEFAULT, TUNED_TV, "tv", "tikhonov", "tkd", "qsmnet"),
    "r2prime-generation": (DEFAULT, NETWORK_RATE, NULL),
    "brain-extraction": (DEFAULT,),
    "unwrap+bfr": (DEFAULT,),
    "bfr+dipole": (DEFAULT, "tv", "tkd"),
    "end-to-end": (DEFAULT, "tv", "tkd"),
}
"""Methods of each stage; a name of the registry is that method in the place of the default."""

_BUDGET_WORLDS = ("mc", "3t-iso")
"""Worlds with an error budget: D_r,neg by the fibre angle and without it."""
CODE = (
    *("api/qsm_ci", "experiments/qsm_ci/special.py"),
    *("methods", "networks", "physics", "preprocessing", "solvers"),
)
"""Packages that rows depend on."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Cell:
    """A row to compute.

    Parameters
    ----------
    world
        Folder of the world.
    stage
        Stage of the benchmark.
    method
        One of `METHODS`.
    noisy
        Whether the dipole inversion reads the noisy local field.
    """

    world: Path
    stage: StageName
    method: str
    noisy: bool = False

    @property
    def name(self) -> str:
        """Name of its file."""
        words = (self.world.parent.name, self.world.name, self.stage, self.method, "noisy" * self.noisy)
        return "_".join("".join(c if c.isalnum() else "-" for c in word) for word in words if word)


def benchmark() -> tuple[Any, Any, Any]:
    """Runner, scorer and stages of the package qsm-ci.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        from qsm_ci import qsm_eval, runner, stages
    except ImportError as error:
        raise InputError(
            "qsm-ci",
            found="no such package",
            expected="qsm-ci 0.6.2 or later, which runs and scores",
            fix="pip install 'chisep[qsm-ci]'.",
        ) from error
    return runner, qsm_eval, stages


def row(cell: Cell, submissions: Path, cells: Path) -> dict[str, Any]:
    """Compute a row, or return the one that is stored for the same world, weights and code.

    Parameters
    ----------
    cell
        What to compute.
    submissions
        Folder with the submissions, which the benchmark's local runner executes for the default method.
    cells
        Folder of stored rows.

    Returns
    -------
    dict
        Metrics by output, and for chi-separation the D_r found and true.
    """
    key = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "World": json.loads((cell.world / RECORD).read_text(encoding="utf-8")),
        "Weights": _weights(cell),
        "Code": _code(cell),
    }
    known = {
        "Maker": cell.world.parent.name,
        "World": cell.world.name,
        "Stage": cell.stage,
        "Method": cell.method,
        "Noisy": cell.noisy,
        "Weights": key["Weights"],
        "Code": key["Code"],
    }
    return cached_result(cells / f"{cell.name}.json", key, lambda: known | _scored(cell, submissions))


def _code(cell: Cell) -> str:
    """Checksum of the code that a row depends on."""
    if cell.method in (NULL, LABEL_NULL):
        return code_checksum("experiments/qsm_ci/special.py", "preprocessing/relaxometry.py")
    return code_checksum(*CODE)


def _weights(cell: Cell) -> list[Any]:
    """Weights that a row depends on."""
    if cell.stage == "r2prime-generation":
        of_network = {"Name": "r2s", "SHA256": checksum(network_weights.find_weights("r2s"))}
        return [of_network] if cell.method != NULL else []
    name = _method(cell)
    if not name:
        return []
    used: list[Any] = methods.weights_used(name, NetworkOptions(), chi_given=True)
    if cell.stage == "chi-separation":
        used += methods.weights_used(scan_relaxivity.QSM, NetworkOptions(), chi_given=True)
    return used


def _method(cell: Cell) -> str:
    """Name of the registered method of a row; empty if none is used."""
    if cell.method in (NULL, LABEL_NULL):
        return ""
    if cell.method in methods.METHODS:
        return cell.method
    if cell.method == TUNED_TV:
        return "tv"
    if cell.stage == "chi-separation":
        return methods.DEFAULTS["sources"]
    return methods.DEFAULTS["chi"] if "dipole" in cell.stage or cell.stage == "end-to-end" else ""


def _scored(cell: Cell, submissions: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ChisepWarning)  # that D_r was estimated, a scan is beyond training, …
        given, out = Path(folder) / "in", Path(folder) / "out"
        _copy_inputs(cell, given)
        if cell.method == DEFAULT:
            found["Runner"] = _run_submission(cell, submissions, given, out)
        elif cell.method in methods.METHODS:
            qsm_ci(QsmCiConfig(given, out, stage=cell.stage, method=cell.method))
        elif cell.method == NO_CHI:
            (given / "chimap.nii.gz").unlink()
            qsm_ci(QsmCiConfig(given, out, stage="chi-separation"))
        else:
            _write(out, special(cell.world, cell.stage, cell.method, Inputs(given)), Inputs(given))
        if cell.stage == "chi-separation" and cell.method in (DEFAULT, NO_CHI):
            found["D_r"] = _relaxivity(cell, Inputs(given), chi_is_true=cell.method == DEFAULT)
        found["Scores"] = _scores(cell, out)
    return found


def _copy_inputs(cell: Cell, given: Path) -> None:
    given.mkdir()
    _, _, stages = benchmark()
    extra = ["magnitude"] if cell.stage in ("dipole", "bfr+dipole") else []
    for name in {*stages.STAGES[cell.stage]["consumes"], *extra}:
        file = "params.json" if name == "params" else f"{name}.nii.gz"
        source = f"{NOISY}.nii.gz" if cell.noisy and name == "localfield" else file
        shutil.copy(cell.world / "inputs" / source, given / file)


def _run_submission(cell: Cell, submissions: Path, given: Path, out: Path) -> list[str]:
    """Run and score the submission of a stage with the benchmark's local runner; return what it reports."""
    runner, _, stages = benchmark()
    stage = stages.STAGES[cell.stage]
    folder = submission_of(cell.stage, submissions)
    arguments = [str(folder), "--runner", "local", "-o", f"{out}{os.sep}"]
    for file in sorted(given.iterdir()):
        name = file.name.split(".")[0]
        if name in stage["consumes"] or name == "magnitude":
            arguments += [f"--{name}", str(file)]
    if "mask" in stage["consumes"]:
        arguments += ["--truth", str(_truth_folder(cell, given.parent))]
    out.mkdir()
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            status = runner.run_command(arguments, log=lambda text: print(text, file=said))
    finally:
        os.environ["PATH"] = path
    lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
    if status:
        raise InputError(
            folder,
            found=f"a run that failed: {' '.join(lines)[-300:]}",
            expected="a valid submission",
            fix="Run it by hand with qsm-ci run.",
        )
    return [
        line.replace(str(given.parent), "…").replace(str(submissions), submissions.name) for line in lines
    ]


def _truth_folder(cell: Cell, parent: Path) -> Path:
    """Folder with the truth of the outputs of a stage."""
    _, _, stages = benchmark()
    folder = parent / "truth"
    folder.mkdir()
    for output in stages.STAGES[cell.stage]["produces"]:
        shutil.copy(_true_file(cell, output), folder / f"{output}.nii.gz")
    return folder


def _true_file(cell: Cell, output: str) -> Path:
    """File of the truth of an output of a stage."""
    _, _, stages = benchmark()
    folder = "groundtruth" if stages.ARTIFACT_KIND[output] in ("chi", "chisep") else "inputs"
    return cell.world / folder / f"{output}.nii.gz"


def submission_of(stage: str, submissions: Path) -> Path:
    """Folder of the submission for a stage.

    Raises
    ------
    InputError
        If there is none.
    """
    runner, _, _ = benchmark()
    for file in sorted(submissions.glob("*/algorithm.yml")):
        if runner._parse_manifest(file.parent)["stage"] == stage:
            return file.parent
    raise InputError(
        submissions,
        found=f"no submission for {stage}",
        expected="the folder qsm-ci of chisep's repository",
        fix="Give it by --submissions.",
    )


def _relaxivity(cell: Cell, inputs: Inputs, *, chi_is_true: bool) -> dict[str, Any]:
    maps = input_maps(inputs, with_chi_map=chi_is_true)
    chosen = dephasing_of(maps, inputs.parameters.B0, chi_is_true=chi_is_true)
    true = true_relaxivity(cell.world)
    return {
        "Source": chosen.source,
        "Found": [chosen.relaxivity.pos_hz_per_ppm, chosen.relaxivity.neg_hz_per_ppm],
        "True": [true.pos_hz_per_ppm, true.neg_hz_per_ppm],
    }


def _write(out: Path, volumes: Mapping[str, torch.Tensor], inputs: Inputs) -> None:
    for name, volume in volumes.items():
        nifti.save(out / f"{name}.nii.gz", volume.numpy(), inputs.affine)


def _scores(cell: Cell, out: Path) -> dict[str, dict[str, float | None]]:
    """Metrics of the benchmark for each output of the stage."""
    _, scorer, stages = benchmark()
    mask = nifti.load(cell.world / "inputs" / "mask.nii.gz").data
    found: dict[str, dict[str, float | None]] = {}
    for output in stages.STAGES[cell.stage]["produces"]:
        made = nifti.load(out / f"{output}.nii.gz").data
        if output == "mask":
            found[output] = {"dice": _dice(made > 0, mask > 0)}
            continue
        kind, file = stages.ARTIFACT_KIND[output], _true_file(cell, output)
        truth = nifti.load(file).data
        regions = _regions(cell) if file.parent.name == "groundtruth" else {}
        component = "dia" if output == "chi-dia" else "para"
        metrics, _ = scorer.score_arrays(
            made.astype(float), truth.astype(float), mask, kind, component=component, **regions
        )
        found[output] = {name: finite(metrics[name]) for name in METRICS if name in metrics}
    return found


def _regions(cell: Cell) -> dict[str, Array]:
    names = {"seg": "dseg", "wm_rois": "wm_rois", "theta": "theta"}
    found: dict[str, Array] = {key: truth_of(cell.world, name) for key, name in names.items()}
    return found | {"seg": np.rint(found["seg"]).astype(np.int32)}


def _dice(one: Array, other: Array) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def cells_of(world: Path, *, separates: bool, only: Sequence[str]) -> list[Cell]:
    """List the rows of a world, the default methods first.

    Parameters
    ----------
    world
        Folder.
    separates
        Whether it is for χ-separation, else for the stages from phase to χ.
    only
        Stages to compute; all if empty.
    """
    found = []
    for stage, names in METHODS.items():
        of_separation = stage in ("chi-separation", "r2prime-generation")
        if of_separation != separates or (only and stage not in only):
            continue
        for noisy in (False, True) if stage == "dipole" else (False,):
            found += [
                Cell(world, stage, name, noisy)
                for name in names
                if name not in BUDGET or world.name in _BUDGET_WORLDS
            ]
    return sorted(found, key=lambda cell: cell.method != DEFAULT)
