"""The documented script from raw scans in several head orientations to Table 2.1, at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chisep.io import nifti
from chisep.simulation.anatomy import packaged_labels

SCRIPT = Path(__file__).parents[2] / "examples/thesis_from_raw_scans.sh"


@pytest.mark.slow
def test_the_script_ends_with_the_table(tmp_path):
    whole = packaged_labels()
    labels = tmp_path / "coarse_dseg.nii.gz"
    affine = whole.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
    nifti.save(labels, whole.labels[::4, ::4, ::4], affine, dtype=np.int16)
    options = {
        "SIMULATE": "--subjects 3 --orientations 3 --voxel-mm 4 --refine-mm inf --te-gre-s 0.005 0.013 0.021 "
        "--te-se-s 0.015 0.03 0.045",
        "ORIENTATIONS": "--cluster none",
        "SPLIT": "--train 01 --validation 02 --test 03",
        "NETWORKS": "--epochs 1 --steps-per-epoch 4",
    }
    # The environment of this interpreter comes first, so that the script finds its chisep.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    call = [SCRIPT, tmp_path / "work", labels]
    done = subprocess.run(
        call, env=os.environ | options | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "work/table/table.json").read_text())
    assert found["Split"] == {"train": ["01"], "validation": ["02"], "test": ["03"]}
    assert {"unrolled-thesis", "chi-sepnet-r2p", "closed-form"} & {row["row"] for row in found["Rows"]}
    for row in found["Rows"]:
        assert "truth" not in row
        assert np.isfinite(row["label"]["chi_pos"]["nrmse_percent"]["mean"])
    page = (tmp_path / "work/table/table.md").read_text()
    assert "Against the label" in page
    assert "Against the truth" not in page
