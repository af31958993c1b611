"""Crops of real scans through the way without spin echo: the chain runs and gives plausible values."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from chisep import cli

ECHO_TIMES = ["0.004", "0.008", "0.012"]


@pytest.mark.parametrize("prefix", ["", "clearswi_"])
def test_from_files_to_maps(shared_megre, tmp_path, prefix, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    files = [
        "--magnitude",
        str(shared_megre / f"{prefix}Mag.nii"),
        "--phase",
        str(shared_megre / f"{prefix}Phase.nii"),
    ]
    assert cli.main(["import", str(raw), *files, "--te", *ECHO_TIMES, "--b0", "7"]) == 0
    assert cli.main(["run", str(raw), str(out), "participant"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "radians" in said
    assert "pseudo-R2" in said

    def load(name):
        return nib.load(out / "sub-01" / "anat" / f"sub-01_{name}.nii.gz").get_fdata()

    mask = load("desc-eroded_mask") > 0
    assert mask.mean() > 0.05
    assert 10 < np.median(load("R2starmap")[mask]) < 60
    assert 0.001 < load("desc-local_fieldmap")[mask].std() < 0.1
    for name in ("paramagnetic", "diamagnetic"):
        chi = load(f"desc-{name}_Chimap")
        assert chi.min() >= 0
        assert 0.001 < chi[mask].mean() < 0.5
    page = (out / "sub-01.html").read_text()
    assert "pseudo-R2" in page


def test_nan_in_a_real_phase_is_refused(shared_megre, tmp_path, capsys):
    phase = shared_megre / "phase_with_nan.nii"
    command = ["import", str(tmp_path / "raw"), "--magnitude", str(phase), "--phase", str(phase)]
    assert cli.main([*command, "--te", "0.004", "0.008", "--b0", "7"]) == 1
    assert "1280 of 163840 values are NaN" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
