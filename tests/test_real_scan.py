"""Crops of real scans through the way without spin echo: the chain runs and gives plausible values."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.real_scan import RealScanConfig
from chisep.physics.signal import hz_per_ppm
from chisep.preprocessing.unwrapping import residual_jumps

ECHO_TIMES = ["0.004", "0.008", "0.012"]


def jumps(phase_rad, mask):
    return residual_jumps(torch.from_numpy(phase_rad), torch.from_numpy(mask))


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

    brain, reliable = load("desc-brain_mask") > 0, load("desc-phase_mask") > 0
    field_ppm = load("desc-total_fieldmap")
    assert np.isfinite(field_ppm).all()
    assert reliable.sum() > 0.95 * brain.sum()
    # Echoes have no steps of a turn either, but where so little signal is left that their phase is noise.
    magnitude = nib.load(shared_megre / f"{prefix}Mag.nii").get_fdata()
    unwrapped = load("part-phase_desc-unwrapped_MEGRE")
    for echo, te_s in enumerate(map(float, ECHO_TIMES)):
        bright = magnitude[..., echo] > 0.4 * np.median(magnitude[..., echo])
        assert jumps(unwrapped[..., echo], reliable & bright) == 0
        assert jumps(field_ppm * 2 * np.pi * hz_per_ppm(7.0) * te_s, brain) == 0
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


def test_summary_of_a_real_crop(shared_megre, tmp_path):
    call = ["reproduce", "real-scan", str(tmp_path), "--name", "real-crop-clearswi", "--b0", "7"]
    call += ["--magnitude", str(shared_megre / "clearswi_Mag.nii"), "--te", *ECHO_TIMES]
    assert cli.main([*call, "--phase", str(shared_megre / "clearswi_Phase.nii")]) == 0
    found = json.loads((tmp_path / "real-crop-clearswi.json").read_text())
    assert found["StepsOfATurn"] == [0, 0, 0]
    assert min(found["VoxelsLookedAt"]) > 0
    assert str(tmp_path) not in json.dumps(found)
    with pytest.raises(InputError, match="letters, digits"):
        RealScanConfig(
            out=tmp_path, magnitude=(shared_megre,), phase=(shared_megre,), te=(0.004,), b0=7.0, name="../x"
        )
    low, median, high = found["R2starHz"].values()
    assert low < median < high
    assert found["MedianFieldNoisePpb"] < found["LocalFieldSdPpb"], "the field is more than its noise"
