"""The validator of BIDS has no error on what chisep writes: scans, their truth, and derivatives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chisep import cli
from chisep.simulation.dataset import MAPS, TRUTH, SimulateConfig, simulate
from chisep.simulation.lesions.kinds import PatientConfig
from tests.hostile.conftest import LONG
from tests.hostile.limits import names

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
SCANS = {
    "six poses, maps": {"b0_t": 7.0, "orientations": 6, "maps": True},
    "as it comes": {},
    "arbitrary phase": {"phase_units": "arbitrary", "tilt_deg": (15.0, 0.0, 0.0), "subjects": 2},
    "patient": {"patient": PatientConfig(kinds=("microbleed",), parkinson_rise=0.3)},
}


def errors(dataset: Path) -> list[dict]:
    done = subprocess.run([VALIDATOR, dataset, "--json"], capture_output=True, text=True, check=False)
    return [issue for issue in json.loads(done.stdout)["issues"]["issues"] if issue["severity"] == "error"]


def write(root: Path, voxel_mm: float = 7.0, **options) -> Path:
    simulate(SimulateConfig(out=root, voxel_mm=voxel_mm, seed=3, **options))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANS if LONG else list(SCANS)[:1])
def test_simulated(name, tmp_path):
    root = write(tmp_path / "raw", **SCANS[name])
    assert errors(root) == []
    for folder in (TRUTH, MAPS):
        if (root / folder).is_dir():
            assert errors(root / folder) == []


_QUICK = ("--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold")
RUNS = {
    "as it comes": (4.0, ()),
    "spin echo": (6.0, _QUICK),
    "no spin echo": (6.0, _QUICK),
    "iterative, R2 without B1": (5.0, ("--r2.method", "exponential")),
    "calibrated": (4.0, ("--calibrate-dr", *_QUICK)),
}
"""Voxel edge in mm, and options."""


@pytest.mark.parametrize("name", RUNS if LONG else list(RUNS)[:1])
def test_derivatives(name, raw_session, processed, tmp_path):
    voxel_mm, options = RUNS[name]
    out = tmp_path / "out"
    if name == "as it comes":
        raw = raw_session
        shutil.copytree(processed, out)
    else:
        raw = write(tmp_path / "raw", voxel_mm)
        if name == "no spin echo":
            for file in (raw / "sub-01" / "anat").glob("*MESE*"):
                file.unlink()
        assert cli.main(["run", str(raw), str(out), "participant", *options]) == 0
    assert cli.main(["run", str(raw), str(out), "group"]) == 0
    assert errors(out) == []
    # Nothing of BIDS' own is among what the validator was told to leave out.
    told = (out / ".bidsignore").read_text().splitlines()
    patterns = [line for line in told if line and not line.startswith("#")]
    for path in names(out):
        ignored = any(path.match(pattern) for pattern in patterns)
        of_bids = path.name.endswith(("_Chimap.nii.gz", "_mask.nii.gz", "_R2map.nii.gz", "_R2starmap.nii.gz"))
        assert not (ignored and of_bids and "_stat-" not in path.name), path
