"""A real gradient-echo scan without ground truth, from raw files to maps: plausibility checks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_bytes, write_json
from chisep.io.ingest.nifti import ImportConfig, import_session
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.preprocessing.unwrapping import residual_jumps
from chisep.progress import Progress
from chisep.report import figures

_BRIGHT = 0.4
"""Echoes count where their signal is above this fraction of its median: below it, phase is noise."""
_PPB = 1000.0


@dataclass(frozen=True, kw_only=True)
class RealScanConfig:
    """A multi-echo gradient echo of a person, or a crop of one, without spin echo."""

    out: Positional[Path]
    """Folder for the results."""
    magnitude: tuple[Path, ...]
    """Gradient-echo magnitude: one 4-D NIfTI, echoes along the last axis, or one 3-D NIfTI per echo."""
    phase: tuple[Path, ...]
    """Gradient-echo phase, likewise, in any scale."""
    te: tuple[float, ...]
    """Echo times in seconds, one per echo."""
    b0: float
    """Field strength in tesla."""
    name: str = "real-scan"
    """Name of the results, and of the folder in OUT with the scan and its derivatives."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise InputError(
                "--name",
                found=repr(self.name),
                expected="letters, digits, - and _",
                fix="Choose another name.",
            )


def real_scan(config: RealScanConfig, progress: Progress | None = None) -> list[Path]:
    """Process a scan, count residual 2π wraps in its phase, and plot it.

    Parameters
    ----------
    config
        The scan, and the folder of results.
    progress
        Receives every stage.

    Returns
    -------
    list of Path
        A JSON file and a figure.

    Raises
    ------
    ChisepError
        If the scan cannot be read or processed, or results cannot be written.
    """
    own = make_directory(config.out / config.name)
    raw, derivatives = own / "bids", own / "derivatives"
    if not raw.is_dir():
        import_session(ImportConfig(raw, config.magnitude, config.phase, config.te, config.b0))
    (result,) = run(RunConfig(raw, derivatives), progress)
    if result.error is not None:
        raise result.error
    read = _ScanReader(derivatives / "sub-01" / "anat")
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Scan": config.magnitude[0].name,
        "EchoTime": config.te,
        "MagneticFieldStrength": config.b0,
        "Warnings": [text.replace(f"{own}/", "") for text in result.warnings],
        **_measured(read, _magnitude(raw, len(config.te))),
    }
    rows = [
        figures.Row("Unwrapped phase, last echo", read.echoes[..., -1], "rad", None, "gray"),
        figures.Row(
            "Quality of the phase", read.map("desc-phasequality_probseg"), "0 to 1", (0.0, 1.0), "gray"
        ),
        figures.Row("Local field", _PPB * read.map("desc-local_fieldmap"), "ppb", (-50.0, 50.0), "gray"),
        figures.Row("QSM", _PPB * read.map("desc-qsm_Chimap"), "ppb", (-100.0, 100.0), "gray"),
        figures.Row("R2*", read.map("R2starmap"), "1/s", (0.0, 80.0), "gray"),
    ]
    picture = figures.planes(rows, read.affine, mask=read.map("desc-brain_mask") > 0)
    return [
        write_json(config.out / f"{config.name}.json", found),
        write_bytes(config.out / f"{config.name}.png", figures.png(picture)),
    ]


class _ScanReader:
    """Maps of the one session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        unwrapped = nifti.load(folder / "sub-01_part-phase_desc-unwrapped_MEGRE.nii.gz", ndim=4)
        self.echoes, self.affine = unwrapped.data, unwrapped.affine

    def map(self, name: str) -> figures.VolumeArray:
        """Read a map by its name."""
        return nifti.load(self._folder / f"sub-01_{name}.nii.gz").data


def _magnitude(raw: Path, echoes: int) -> np.ndarray:
    paths = [bids.raw_path(raw, "01", "MEGRE", echo=echo + 1, part="mag") for echo in range(echoes)]
    return np.stack([nifti.load(path).data for path in paths], axis=-1)


def _measured(read: _ScanReader, magnitude: np.ndarray) -> dict[str, Any]:
    """Count 2π wraps in every echo within its signal, and summarise R2* and field."""
    reliable, known = read.map("desc-phase_mask") > 0, read.map("desc-eroded_mask") > 0
    jumps, voxels = [], []
    for echo in range(magnitude.shape[-1]):
        here = reliable & (magnitude[..., echo] > _BRIGHT * np.median(magnitude[..., echo]))
        jumps.append(residual_jumps(torch.from_numpy(read.echoes[..., echo]), torch.from_numpy(here)))
        voxels.append(int(here.sum()))
    rate, field = read.map("R2starmap")[known], _PPB * read.map("desc-local_fieldmap")[known]
    brain = read.map("desc-brain_mask") > 0
    facts = {
        "StepsOfATurn": jumps,
        "VoxelsLookedAt": voxels,
        "ReliablePartOfBrain": round(float(reliable.sum() / brain.sum()), 4),
        "R2starHz": {f"percentile {p}": round(float(np.percentile(rate, p)), 2) for p in (5, 50, 95)},
        "LocalFieldSdPpb": round(float(field.std()), 2),
        "MedianFieldNoisePpb": round(float(_PPB * np.median(read.map("stat-std_fieldmap")[known])), 3),
    }
    return dict(json.loads(json.dumps(facts)))
