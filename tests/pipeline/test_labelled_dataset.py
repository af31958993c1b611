from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.metrics import nrmse_percent
from chisep.pipeline.labelled_dataset import LABELS, LabelledConfig, simulate_labelled
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.dataset import MAPS, TRUTH

NAMES = {"paramagnetic": "paramagnetic", "diamagnetic": "diamagnetic", "cosmos": "total"}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LabelledConfig:
    """Six orientations of the packaged head at half resolution."""
    folder = tmp_path_factory.mktemp("labelled")
    whole = packaged_labels()
    head = nifti.save(
        folder / "half_dseg.nii.gz",
        whole.labels[::2, ::2, ::2],
        whole.affine @ np.diag([2.0, 2.0, 2.0, 1.0]),
        dtype=np.int16,
    )
    return LabelledConfig(
        out=folder / "bids",
        labels=(head,),
        voxel_mm=4.0,
        snr=100.0,
        orientations=6,
        maps_only=True,
        dephasing=False,  # voxels so large would have no signal near air
        labels_from_orientations=True,
    )


@pytest.fixture(scope="module")
def labelled(config) -> Path:
    told: list[tuple[str, int, int]] = []
    assert simulate_labelled(config, lambda *what: told.append(what)) == ["01"]
    assert told[-2:] == [("sub-01: labels", 0, 1), ("labels", 1, 1)]
    return config.out


def load(root: Path, folder: Path, suffix: str, desc: str | None = None) -> np.ndarray:
    return nifti.load(bids.derivative_path(root / folder, "01", suffix, desc=desc)).data


def errors_percent(root: Path) -> dict[str, float]:
    mask = load(root, TRUTH, "mask", "brain") > 0
    return {
        desc: nrmse_percent(load(root, LABELS, "Chimap", desc), load(root, TRUTH, "Chimap", true), mask)
        for desc, true in NAMES.items()
    }


def test_labels_are_near_the_truth(labelled):
    errors = errors_percent(labelled)
    assert errors["cosmos"] < 10
    assert max(errors.values()) < 15


def test_labels_are_sources_of_the_measured_maps(labelled):
    """Where both sources are positive, they give back χ of COSMOS and the measured R2'."""
    pos, neg, chi = (load(labelled, LABELS, "Chimap", desc) for desc in NAMES)
    assert min(pos.min(), neg.min()) >= 0
    both = (pos > 0) & (neg > 0)
    assert both.any()
    np.testing.assert_allclose((pos - neg)[both], chi[both], atol=1e-5)
    name = "sub-01_acq-ori1_R2primemap.nii.gz"
    r2prime = nifti.load(labelled / MAPS / "sub-01" / "anat" / name).data
    np.testing.assert_allclose(114 * (pos + neg)[both], r2prime[both], atol=1e-3)


def test_sidecars_say_where_labels_come_from(labelled):
    for desc in NAMES:
        path = bids.derivative_path(labelled / LABELS, "01", "Chimap", desc=desc, ext=".json")
        facts = json.loads(path.read_text())
        assert facts["Units"] == "ppm"
        assert facts["Parameters"]["DrPositiveHzPerPpm"] == 114.0
        assert len(facts["B0DirectionsVoxelAxes"]) == 6
        assert sum("acq-ori6" in source for source in facts["Sources"]) == 2
    assert (
        json.loads((labelled / LABELS / "dataset_description.json").read_text())["DatasetType"]
        == "derivative"
    )


def test_labels_are_kept_until_their_maps_change(config, labelled):
    path = bids.derivative_path(labelled / LABELS, "01", "Chimap", desc="cosmos")
    stamp, before = path.stat().st_ino, path.read_bytes()
    simulate_labelled(config)
    assert path.stat().st_ino == stamp
    path.unlink()
    simulate_labelled(config)
    assert path.read_bytes() == before


def test_misregistered_orientations_make_labels_worse(config, labelled):
    blurred = replace(config, out=config.out.with_name("blurred"), misregistration_mm=2.0)
    simulate_labelled(blurred)
    better, worse = errors_percent(labelled), errors_percent(blurred.out)
    assert worse["cosmos"] > 1.5 * better["cosmos"]
    assert all(worse[desc] > better[desc] for desc in NAMES)


def test_labels_need_three_orientations(tmp_path):
    with pytest.raises(InputError, match="--orientations 6"):
        LabelledConfig(out=tmp_path, orientations=2, labels_from_orientations=True)


def test_without_labels_it_is_a_plain_simulation(config, tmp_path):
    plain = replace(
        config, out=tmp_path / "plain", orientations=1, labels_from_orientations=False, voxel_mm=8.0
    )
    simulate_labelled(plain)
    assert not (plain.out / LABELS).exists()
