"""Heads for the tests: the packaged one, made once, and a coarse copy of it on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chisep.io import nifti
from chisep.simulation.anatomy import LabelMap, packaged_labels
from chisep.simulation.tissue import Tissue, TissueConfig, make_tissue


@pytest.fixture(scope="session")
def packaged() -> LabelMap:
    return packaged_labels()


@pytest.fixture(scope="session")
def coarse(packaged: LabelMap) -> LabelMap:
    """Every fourth voxel of the packaged head."""
    affine = packaged.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
    return LabelMap(np.ascontiguousarray(packaged.labels[::4, ::4, ::4]), affine, "coarse head")


@pytest.fixture(scope="session")
def coarse_file(coarse: LabelMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "coarse_dseg.nii.gz"
    return nifti.save(path, coarse.labels, coarse.affine, dtype=np.int16)


@pytest.fixture(scope="session")
def coarser_file(packaged: LabelMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every eighth voxel of the packaged head, so that a subject takes a third of a second."""
    path = tmp_path_factory.mktemp("labels") / "coarser_dseg.nii.gz"
    affine = packaged.affine @ np.diag([8.0, 8.0, 8.0, 1.0])
    return nifti.save(path, packaged.labels[::8, ::8, ::8], affine, dtype=np.int16)


@pytest.fixture(scope="session")
def tissue(coarse: LabelMap) -> Tissue:
    return make_tissue(coarse, np.random.default_rng(0), TissueConfig(), voxel_mm=(4.0, 4.0, 4.0), b0_t=3.0)
