"""χ maps that training takes in: made from every local field, kept, and never mixed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from chisep import methods
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.networks.inference import NetworkOptions
from chisep.training.data import FoldersConfig
from chisep.training.input_qsm import make_chi_maps, missing_chi_maps
from chisep.types import Maps
from tests.small_dataset import DIRECTIONS, write_dataset
from tests.untrained import save_untrained

SUBJECTS = ("01", "02")


@pytest.fixture
def folders(tmp_path) -> FoldersConfig:
    return FoldersConfig(write_dataset(tmp_path / "bids", SUBJECTS), ("01",), ("02",), qsm="chi")


def test_every_scan_is_inverted_with_its_own_b0_direction(folders):
    calls = []
    assert len(missing_chi_maps(folders, SUBJECTS)) == 4
    made = make_chi_maps(folders, SUBJECTS, "tkd", progress=lambda *what: calls.append(what))
    assert not missing_chi_maps(folders, SUBJECTS)
    assert [path.name for path in made] == [
        f"sub-{subject}_acq-ori{orientation}_Chimap.nii.gz" for subject in SUBJECTS for orientation in (1, 2)
    ]
    assert calls[-1][1:] == (4, 4)
    mask = nifti.load_mask(bids.derivative_path(folders.folder("masks"), "01", "mask", desc="brain"))
    for path, direction in zip(made[:2], DIRECTIONS, strict=True):
        name = path.name.replace("Chimap", "desc-local_fieldmap")
        field = nifti.load(folders.folder("maps") / "sub-01" / "anat" / name)
        maps = Maps(
            torch.from_numpy(field.data), torch.from_numpy(mask.data), nifti.grid_of(field, direction)
        )
        expected = methods.invert(maps, "tkd").chi_ppm.numpy()
        np.testing.assert_allclose(nifti.load(path).data, expected, atol=1e-6)
        facts = json.loads(bids.sidecar_of(path).read_text())
        assert facts["B0DirectionVoxelAxes"] == list(direction)
        assert (facts["Method"], facts["Units"]) == ("tkd", "ppm")


def test_maps_that_are_there_are_kept(folders):
    first = make_chi_maps(folders, ("01",), "tkd")[0]
    nifti.save(first, 7 * np.ones_like(nifti.load(first).data), nifti.load(first).affine)
    make_chi_maps(folders, SUBJECTS, "tkd")
    assert nifti.load(first).data.min() == 7


def test_maps_made_elsewhere_are_kept_though_nothing_is_known_of_them(folders):
    made = make_chi_maps(folders, ("01",), "tkd")
    before = [path.read_bytes() for path in made]
    for path in made:
        bids.sidecar_of(path).unlink()
    assert len(make_chi_maps(folders, SUBJECTS, "tikhonov")) == 4
    assert [path.read_bytes() for path in made] == before


def test_maps_by_other_methods_or_weights_are_not_mixed(folders, tmp_path):
    make_chi_maps(folders, ("01",), "tkd")
    with pytest.raises(InputError, match=r"sub-01_acq-ori1_Chimap.*map by tkd"):
        make_chi_maps(folders, SUBJECTS, "tikhonov")
    assert len(missing_chi_maps(folders, SUBJECTS)) == 2
    other = FoldersConfig(folders.dataset, ("01",), ("02",), qsm="network")
    files = [save_untrained(tmp_path / str(seed), "qsmnet", seed) for seed in (0, 1)]
    make_chi_maps(other, ("01",), "qsmnet", NetworkOptions(weights=str(files[0])))
    with pytest.raises(InputError, match="by other weights"):
        make_chi_maps(other, SUBJECTS, "qsmnet", NetworkOptions(weights=str(files[1])))


def test_weights_are_in_the_sidecar(folders, tmp_path):
    weights = save_untrained(tmp_path, "qsmnet")
    path = make_chi_maps(folders, ("02",), "qsmnet", NetworkOptions(weights=str(weights)))[0]
    (used,) = json.loads(bids.sidecar_of(path).read_text())["Weights"]
    assert used["Name"] == "qsmnet"


def test_unusable_wishes(folders):
    with pytest.raises(InputError, match="tikhonov, tkd, tv"):
        make_chi_maps(folders, SUBJECTS, "iterative")
    with pytest.raises(InputError, match="no local field"):
        make_chi_maps(folders, ("03",), "tkd")
    with pytest.raises(InputError, match="no network"):
        make_chi_maps(folders, SUBJECTS, "tkd", NetworkOptions(weights="qsmnet"))
