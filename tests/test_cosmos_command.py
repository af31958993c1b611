"""`chisep cosmos` and `chisep.cosmos`: fields that are registered already."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

import chisep
from chisep.cli import main
from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.physics.dipole import Dipole
from chisep.types import Grid

GRID = Grid((20, 22, 18), (2.0, 2.0, 2.0))
B0 = [(0.0, 0.0, 1.0), (0.0, 0.5, 0.866), (0.5, 0.0, 0.866), (-0.5, 0.0, 0.866)]


@pytest.fixture
def fields(tmp_path):
    """χ of two balls in a larger one; its fields, the mask and a map of σ as files."""
    i, j, k = np.indices(GRID.shape)
    mask = (i - 10) ** 2 + (j - 11) ** 2 + (k - 9) ** 2 < 64
    chi = np.zeros(GRID.shape, np.float32)
    chi[(i - 7) ** 2 + (j - 11) ** 2 + (k - 9) ** 2 < 9] = 0.1
    chi[(i - 13) ** 2 + (j - 11) ** 2 + (k - 9) ** 2 < 9] = -0.05
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nifti.save(tmp_path / "mask.nii.gz", mask.astype(np.uint8), affine)
    for number, b0 in enumerate(B0, start=1):
        field = Dipole(replace(GRID, b0_direction=b0)).apply(torch.from_numpy(chi)).numpy() * mask
        nifti.save(tmp_path / f"F{number}.nii.gz", field, affine)
    nifti.save(tmp_path / "sigma.nii.gz", 1e-3 * mask.astype(np.float32), affine)
    return tmp_path, chi


def command(folder, count=4, **changed):
    numbers = [str(number) for b0 in B0[:count] for number in b0]
    options = {
        "--field": [str(folder / f"F{n + 1}.nii.gz") for n in range(count)],
        "--b0-dir": numbers,
        "--mask": [str(folder / "mask.nii.gz")],
        "--out": [str(folder / "chi.nii.gz")],
    } | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["cosmos", *(word for name, values in options.items() for word in (name, *values))]


def test_command_finds_chi_and_says_how(fields, capsys):
    folder, chi = fields
    sigmas = [str(folder / "sigma.nii.gz")] * 4
    assert main(command(folder, sigma=sigmas)) == 0
    assert capsys.readouterr().out.strip() == str(folder / "chi.nii.gz")
    found = nifti.load(folder / "chi.nii.gz").data
    assert np.linalg.norm(found - chi) < 0.05 * np.linalg.norm(chi)
    said = json.loads((folder / "chi.json").read_text())
    assert said["NoiseWeights"]
    assert said["SpreadDeg"] == pytest.approx(60, abs=0.1)
    assert said["ConditionNumber"] > 1
    assert said["B0DirectionsVoxelAxes"] == [list(b0) for b0 in B0]


def test_python_takes_arrays_images_and_hertz(fields):
    folder, chi = fields
    images = [nib.load(folder / f"F{n}.nii.gz") for n in (1, 2, 3, 4)]
    hertz = [np.asarray(image.dataobj) * 127.73 for image in images]
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj)
    options = chisep.CosmosOptions(units="hz", b0=3.0)
    of_hertz = chisep.cosmos(hertz, mask, B0, options=options, voxel_mm=(2, 2, 2))
    of_images = chisep.cosmos(images, [mask] * 4, B0, voxel_mm=(2, 2, 2))
    np.testing.assert_allclose(of_hertz.get_fdata(), of_images.get_fdata(), atol=2e-5)
    assert np.linalg.norm(of_images.get_fdata() - chi) < 0.05 * np.linalg.norm(chi)


def test_two_orientations_are_warned_of(fields):
    folder, _ = fields
    paths = [folder / "F1.nii.gz", folder / "F2.nii.gz"]
    with pytest.warns(ChisepWarning, match="two head orientations"):
        chisep.cosmos(paths, folder / "mask.nii.gz", B0[:2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b0_dir": ["0", "0", "1"]}, "3 numbers for 4 fields"),
        ({"mask": ["mask.nii.gz", "mask.nii.gz"]}, "2 masks for 4 fields"),
        ({"out": ["chi.txt"]}, "ends in .nii"),
        ({"sigma": ["sigma.nii.gz"]}, "1 for 4 fields"),
        ({"b0_dir": ["0"] * 12}, "vector with a length"),
    ],
)
def test_wrong_lists_are_refused_and_nothing_is_written(fields, capsys, monkeypatch, changed, message):
    folder, _ = fields
    monkeypatch.chdir(folder)
    assert main(command(folder, **changed)) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "chi.nii.gz").exists()
    assert not (folder / "chi.txt").exists()


def test_one_orientation_and_no_field_are_refused(fields):
    folder, _ = fields
    with pytest.raises(InputError, match="at least 2"):
        chisep.cosmos([folder / "F1.nii.gz"], folder / "mask.nii.gz", B0[:1])
    with pytest.raises(InputError, match="a unit of fields"):
        chisep.CosmosOptions(units="gauss")
    with pytest.raises(InputError, match="two or more"):
        chisep.cosmos([], folder / "mask.nii.gz", [])
