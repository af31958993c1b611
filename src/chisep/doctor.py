"""Check of an installation: versions, machine, weights, and the whole pipeline on a small simulated scan."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

import chisep
from chisep import metrics
from chisep.errors import ChisepError, ChisepWarning
from chisep.execution.machine import SESSION_GB, this_machine
from chisep.io import bids, nifti
from chisep.io.files import checksum
from chisep.networks.weights import checksums, shipped
from chisep.pipeline.config import RunConfig
from chisep.pipeline.engine import library_versions
from chisep.pipeline.run import run
from chisep.progress import Progress
from chisep.simulation.dataset import TRUTH, SimulateConfig, simulate

_EXTRAS = {
    "train": (("pytorch-lightning",), "training (`chisep train`)"),
    "dicom": (("dcm2niix",), "DICOM files (`chisep dicom`)"),
    "slurm": (("dask-jobqueue",), "a SLURM cluster (`--cluster slurm`)"),
}
_RESULTS_GB = 0.22
"""Results of a session at 1 mm (`benchmarks/results/planning.json`)."""
_LEAST_SESSIONS = 5
"""Room on the disk below which the check says so."""
_VOXEL_MM, _PAINT_MM = 4.0, 4.0
_LARGEST_NRMSE_PERCENT = 60.0
"""Of χ_pos in the self-test: it was 40 %; 100 % is an empty map."""


@dataclass(frozen=True)
class DoctorConfig:
    """What to check."""

    out: Path = Path()
    """Folder whose disk is checked: where results are to go."""
    device: str = "cpu"
    """Device of the self-test: cpu, cuda, cuda:1, …"""
    self_test: bool = True
    """Process a simulated scan of coarse voxels, from raw images to the report: 12 s of one core."""
    json: bool = False
    """Print the findings as JSON."""


@dataclass(frozen=True)
class Finding:
    """One check.

    Parameters
    ----------
    check
        Its name.
    level
        good; notice: chisep runs, but something is missing or tight; fault: chisep does not work here.
    found
        What was found.
    fix
        What to do; empty where nothing is.
    """

    check: str
    level: Literal["good", "notice", "fault"]
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return asdict(self)

    def row(self) -> tuple[str, str, str, str]:
        """Return the row of a table."""
        return self.check, self.level, self.found, self.fix


def doctor(config: DoctorConfig, progress: Progress | None = None) -> list[Finding]:
    """Check versions, devices, memory, disk and weights, and run a self-test.

    Parameters
    ----------
    config
        What to check.
    progress
        Called with the step of the self-test.

    Returns
    -------
    list of Finding
        One per check; nothing is written but a temporary folder, which is removed.
    """
    findings = [
        *_versions(),
        *_devices(config.device),
        _memory(config.device),
        _disk(config.out),
        *_weights(),
    ]
    if config.self_test:
        findings.append(_self_test(config.device, progress))
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("chisep", "good", f"{chisep.__version__} on Python {platform.python_version()}")
    yield Finding("libraries", "good", ", ".join(f"{name} {v}" for name, v in library_versions().items()))
    for extra, (packages, purpose) in _EXTRAS.items():
        try:
            found = ", ".join(f"{name} {version(name)}" for name in packages)
        except PackageNotFoundError:
            fix = f"pip install 'chisep[{extra}]', if you want {purpose}"
            yield Finding(f"extra {extra}", "notice", "not installed", fix)
        else:
            yield Finding(f"extra {extra}", "good", found)


def _devices(device: str) -> Iterator[Finding]:
    cores = this_machine("cpu").cores
    yield Finding(
        "processor", "good", f"{cores} cores, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    if names:
        yield Finding("GPU", "good", ", ".join(f"cuda:{number} {name}" for number, name in enumerate(names)))
    elif device.startswith("cuda"):
        fix = "Install a build of torch for CUDA and the driver, or leave --device out."
        yield Finding("GPU", "fault", "none that torch can use", fix)
    else:
        yield Finding("GPU", "good", "none; the processor suffices")


def _memory(device: str) -> Finding:
    free_gb = this_machine(device).memory_gb
    found = f"{free_gb:.1f} GB free; chisep plans {SESSION_GB:g} GB for a session at 1 mm"
    if free_gb < SESSION_GB:
        return Finding("memory", "notice", found, "Close other programs, or process scans of coarser voxels.")
    return Finding("memory", "good", found)


def _disk(out: Path) -> Finding:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free_gb = shutil.disk_usage(place).free / 1e9
    found = f"{free_gb:.1f} GB free at {place}; results of a session at 1 mm take {_RESULTS_GB:g} GB"
    if free_gb < _LEAST_SESSIONS * _RESULTS_GB:
        return Finding("disk", "notice", found, "Free space, or choose another disk.")
    return Finding("disk", "good", found)


def _weights() -> Iterator[Finding]:
    listed, files = checksums(), {path.name: path for path in shipped().values()}
    wrong = [name for name in listed if name not in files or checksum(files[name]) != listed[name]]
    if wrong:
        fix = "Install chisep again: these files are not those of this version."
        yield Finding("weights", "fault", f"missing or changed: {', '.join(wrong)}", fix)
    else:
        yield Finding("weights", "good", f"{len(listed)} networks, all with the SHA-256 of this version")


def _self_test(device: str, progress: Progress | None) -> Finding:
    """Simulate a scan, process it with the default options, and compare χ_pos with the truth."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="chisep-doctor-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", ChisepWarning)  # voxels of 4 mm are coarse
            nrmse = _nrmse_percent(Path(folder), device, progress)
    except (ChisepError, OSError, RuntimeError) as error:
        return Finding("self-test", "fault", str(error), "Please report it, with this table.")
    found = f"χ_pos has an NRMSE of {nrmse:.0f} %, after {time.perf_counter() - start:.0f} s"
    if nrmse > _LARGEST_NRMSE_PERCENT:
        expected = f"It should be below {_LARGEST_NRMSE_PERCENT:g} %: please report it, with this table."
        return Finding("self-test", "fault", found, expected)
    return Finding("self-test", "good", found)


def _nrmse_percent(folder: Path, device: str, progress: Progress | None) -> float:
    raw, out = folder / "bids", folder / "derivatives"
    simulate(SimulateConfig(out=raw, voxel_mm=_VOXEL_MM), progress, paint_mm=_PAINT_MM)
    (result,) = run(RunConfig(raw, out, device=device), progress)
    if result.error is not None:
        raise result.error
    made, truth, mask = (
        bids.derivative_path(root, "01", suffix, desc=desc)
        for root, suffix, desc in (
            (out, "Chimap", "paramagnetic"),
            (raw / TRUTH, "Chimap", "paramagnetic"),
            (raw / TRUTH, "mask", "brain"),
        )
    )
    inside = nifti.load_mask(mask).data
    return float(metrics.nrmse_percent(nifti.load(made).data, nifti.load(truth).data, inside))
