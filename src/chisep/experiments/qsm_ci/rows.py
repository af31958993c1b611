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
from chisep.api.qsm_ci.inputs import Inputs
from chisep.errors import ChisepWarning, InputError
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import finite
from chisep.experiments.qsm_ci.worlds import RECORD
from chisep.io import nifti
from chisep.io.files import checksum
from chisep.methods import scan_relaxivity
from chisep.methods.given_chi import with_chi
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.solvers import tv
from chisep.types import Maps, Relaxivity

METRICS = ("xsim", "nrmse", "nrmse_detrend", "hfen", "mspe", "coverage")
DEFAULT = "default"
NO_CHI, TRUE_DR, TUNED_TV = "default, no χ map", "default, true D_r", "tv, tuned on the truth"
NULL, LABEL_NULL = "null (closed form)", "null, D_r by labels"
NOISY = "localfield-noisy"
_NULL_POS_3T, _NULL_RATIO = 137.0, 133.77 / 107.84
_TV_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_CHI = ("unrolled-qsm", "tv", "tikhonov", "tkd", "qsmnet")

METHODS: Mapping[str, tuple[str, ...]] = {
    "chi-separation": (
        *(DEFAULT, NO_CHI, TRUE_DR, NULL, LABEL_NULL, "iterative", "closed-form"),
        *("chi-sepnet-r2p", "unrolled-thesis"),
    ),
    "field-mapping": (DEFAULT,),
    "bfr": (DEFAULT,),
    "dipole": (DEFAULT, TUNED_TV, *_CHI[1:]),
    "r2prime-generation": (DEFAULT, NULL),
    "brain-extraction": (DEFAULT,),
    "unwrap+bfr": (DEFAULT,),
    "bfr+dipole": (DEFAULT, "tv"),
    "end-to-end": (DEFAULT, "tv"),
}
"""Methods of each stage; a name of the registry is that method in the place of the default."""

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
    stage: str
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
    """Compute a row, or return the one that is stored for the same world, weights and version.

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
    }
    known = {
        "Maker": cell.world.parent.name,
        "World": cell.world.name,
        "Stage": cell.stage,
        "Method": cell.method,
        "Noisy": cell.noisy,
    }
    return cached_result(cells / f"{cell.name}.json", key, lambda: known | _scored(cell, submissions))


def _weights(cell: Cell) -> list[Any]:
    """Weights that a row depends on."""
    if cell.stage == "r2prime-generation":
        return [checksum(network_weights.find_weights("r2s"))] if cell.method == DEFAULT else []
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
            _run_submission(cell, submissions, given, out)
        elif cell.method in methods.METHODS:
            qsm_ci(QsmCiConfig(given, out, stage=_known_stage(cell.stage), method=cell.method))
        elif cell.method == NO_CHI:
            (given / "chimap.nii.gz").unlink()
            qsm_ci(QsmCiConfig(given, out, stage="chi-separation"))
        else:
            _write(out, _special(cell, Inputs(given)), Inputs(given))
        if cell.stage == "chi-separation" and cell.method in (DEFAULT, NO_CHI):
            found["D_r"] = _relaxivity(cell, Inputs(given), chi_is_true=cell.method == DEFAULT)
        found["Scores"] = _scores(cell, out)
    return found


def _known_stage(stage: str) -> Any:  # noqa: ANN401
    return stage


def _copy_inputs(cell: Cell, given: Path) -> None:
    given.mkdir()
    _, _, stages = benchmark()
    extra = ["magnitude"] if cell.stage in ("dipole", "bfr+dipole") else []
    for name in {*stages.STAGES[cell.stage]["consumes"], *extra}:
        file = "params.json" if name == "params" else f"{name}.nii.gz"
        source = f"{NOISY}.nii.gz" if cell.noisy and name == "localfield" else file
        shutil.copy(cell.world / "inputs" / source, given / file)


def _run_submission(cell: Cell, submissions: Path, given: Path, out: Path) -> None:
    """Run the submission of the stage with the benchmark's local runner."""
    runner, _, stages = benchmark()
    folder = submission_of(cell.stage, submissions)
    arguments = [str(folder), "--runner", "local", "-o", f"{out}{os.sep}"]
    for file in sorted(given.iterdir()):
        name = file.name.split(".")[0]
        if name in stages.STAGES[cell.stage]["consumes"] or name == "magnitude":
            arguments += [f"--{name}", str(file)]
    out.mkdir()
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            status = runner.run_command(arguments, log=lambda text: print(text, file=said))
    finally:
        os.environ["PATH"] = path
    if status:
        raise InputError(
            folder,
            found=f"a run that failed: {said.getvalue().strip()[-300:]}",
            expected="a valid submission",
            fix="Run it by hand with qsm-ci run.",
        )


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


def _special(cell: Cell, inputs: Inputs) -> dict[str, Any]:
    """Compute null methods, the default with the true D_r, and a tuned TV."""
    if cell.method == TUNED_TV:
        return {"chimap": _tuned_tv(cell, inputs)}
    if cell.stage == "r2prime-generation":
        from chisep.preprocessing.relaxometry import pseudo_r2prime, r2star

        rate = r2star(inputs.echoes("magnitude"), inputs.te_s, inputs.mask)
        return {"r2prime": pseudo_r2prime(rate, inputs.parameters.B0).rate_hz}
    chi, r2prime, mask = inputs.volume("chimap"), inputs.volume("r2prime"), inputs.mask
    if cell.method == TRUE_DR:
        true = _true_relaxivity(cell)
        maps = Maps(
            inputs.volume("localfield"),
            mask,
            inputs.grid,
            true,
            r2prime_hz=r2prime,
            magnitude=inputs.combined_magnitude(),
            b0_t=inputs.parameters.B0,
        )
        made = with_chi(methods.separate(maps, methods.DEFAULTS["sources"]), chi, mask)
        return {"chi-para": made.chi_pos_ppm, "chi-dia": made.chi_neg_ppm}
    if cell.method == NULL:
        pos_dr = torch.full_like(chi, _NULL_POS_3T * inputs.parameters.B0 / 3)
        neg_dr = _NULL_RATIO * pos_dr
    else:
        pos_dr, neg_dr = (torch.from_numpy(_truth(cell, f"dr_{name}")) for name in ("pos", "neg"))
    # χ_pos − χ_neg = χ and D_r,pos χ_pos + D_r,neg χ_neg = R2'.
    pos = (neg_dr * chi + r2prime) / (pos_dr + neg_dr).clamp_min(1e-6)
    return {"chi-para": pos.clamp_min(0) * mask, "chi-dia": (pos - chi).clamp_min(0) * mask}


def _tuned_tv(cell: Cell, inputs: Inputs) -> torch.Tensor:
    """Total variation with the weight of the smallest error against the truth."""
    maps = Maps(inputs.volume("localfield"), inputs.mask, inputs.grid, magnitude=inputs.combined_magnitude())
    truth = torch.from_numpy(_truth(cell, "chimap"))
    made = [methods.invert(maps, "tv", tv.TvConfig(tv_weight=weight)).chi_ppm for weight in _TV_WEIGHTS]

    def error(chi: torch.Tensor) -> float:
        difference = (chi - truth)[inputs.mask]
        return float(difference.std())

    return min(made, key=error)


def _truth(cell: Cell, name: str) -> NDArray[np.float32]:
    return nifti.load(cell.world / "groundtruth" / f"{name}.nii.gz").data


def _true_relaxivity(cell: Cell) -> Relaxivity:
    """Means of the true D_r maps, weighted by the sources."""
    pos, neg = (np.asarray(_truth(cell, f"dr_{name}"), np.float64) for name in ("pos", "neg"))
    chi_pos, chi_neg = (np.asarray(_truth(cell, f"chi-{name}"), np.float64) for name in ("para", "dia"))
    # A source without R2' states no D_r.
    of_pos, of_neg = chi_pos * (pos > 0), chi_neg * (neg > 0)
    return Relaxivity(float((pos * of_pos).sum() / of_pos.sum()), float((neg * of_neg).sum() / of_neg.sum()))


def _relaxivity(cell: Cell, inputs: Inputs, *, chi_is_true: bool) -> dict[str, Any]:
    maps = Maps(
        inputs.volume("localfield"),
        inputs.mask,
        inputs.grid,
        r2prime_hz=inputs.volume("r2prime"),
        chi_ppm=inputs.volume("chimap") if chi_is_true else None,
        magnitude=inputs.combined_magnitude(),
        b0_t=inputs.parameters.B0,
    )
    chosen = scan_relaxivity.relaxivity_from(maps, inputs.parameters.B0, chi_is_true=chi_is_true)
    true = _true_relaxivity(cell)
    return {
        "Source": chosen.facts["D_r_source"],
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
        kind = stages.ARTIFACT_KIND[output]
        folder = "groundtruth" if kind in ("chi", "chisep") else "inputs"
        truth = nifti.load(cell.world / folder / f"{output}.nii.gz").data
        regions = _regions(cell) if folder == "groundtruth" else {}
        component = "dia" if output == "chi-dia" else "para"
        metrics, _ = scorer.score_arrays(
            made.astype(float), truth.astype(float), mask, kind, component=component, **regions
        )
        found[output] = {name: finite(metrics[name]) for name in METRICS if name in metrics}
    return found


def _regions(cell: Cell) -> dict[str, Array]:
    names = {"seg": "dseg", "wm_rois": "wm_rois", "theta": "theta"}
    found: dict[str, Array] = {key: _truth(cell, name) for key, name in names.items()}
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
            found += [Cell(world, stage, name, noisy) for name in names]
    return sorted(found, key=lambda cell: cell.method != DEFAULT)
