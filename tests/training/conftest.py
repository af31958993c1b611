"""A labelled dataset of two coarse heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chisep.io import bids, nifti
from chisep.pipeline.labelled_dataset import LABELS, LabelledConfig, simulate_labelled
from chisep.simulation.anatomy import packaged_labels
from chisep.training.data import FoldersConfig


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Three orientations of two heads at 5 mm, labels of both, and χ maps as a QSM method makes them."""
    folder = tmp_path_factory.mktemp("dataset")
    whole = packaged_labels()
    head = nifti.save(
        folder / "third_dseg.nii.gz",
        whole.labels[::3, ::3, ::3],
        whole.affine @ np.diag([3.0, 3.0, 3.0, 1.0]),
        dtype=np.int16,
    )
    config = LabelledConfig(
        out=folder / "bids",
        labels=(head,),
        subjects=2,
        voxel_mm=5.0,
        snr=100.0,
        orientations=3,
        maps_only=True,
        dephasing=False,  # voxels so large would have no signal near air
        labels_from_orientations=True,
    )
    rng = np.random.default_rng(0)
    for subject in simulate_labelled(config):
        cosmos = nifti.load(bids.derivative_path(config.out / LABELS, subject, "Chimap", desc="cosmos"))
        for number in (1, 2, 3):
            # Too flat and noisy, as QSM is; different in every orientation.
            chi = 0.8 * cosmos.data + 0.005 * rng.standard_normal(cosmos.data.shape)
            anat = config.out / "derivatives" / "qsm" / f"sub-{subject}" / "anat"
            nifti.save(anat / f"sub-{subject}_acq-ori{number}_Chimap.nii.gz", chi, cosmos.affine)
    return config.out


@pytest.fixture(scope="session")
def folders(dataset) -> FoldersConfig:
    """One head to train on, one to validate."""
    return FoldersConfig(dataset, ("01",), ("02",), qsm="qsm")
