"""Stages judge what they measured: a doubtful field stops a session, unless it is accepted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import nifti
from chisep.pipeline.config import RunConfig
from chisep.preprocessing.field_map import FieldConfig
from chisep.provenance.records import records_of
from tests.pipeline.stages import run_up_to


@pytest.fixture
def doubtful(raw_gradient_echo, tmp_path) -> Path:
    """A scan whose second echo has a phase offset of its own."""
    root = tmp_path / "bids"
    shutil.copytree(raw_gradient_echo, root)
    path = next(root.glob("sub-*/anat/*echo-2_part-phase_MEGRE.nii.gz"))
    image = nifti.load(path)
    nifti.save(path, np.angle(np.exp(1j * (image.data + 0.5))), image.affine)
    return root


def test_a_doubtful_field_is_refused_and_nothing_is_written(doubtful, tmp_path):
    config = RunConfig(doubtful, tmp_path / "out", method="closed-form", qsm="tkd")
    with pytest.raises(InputError, match=r"field of sub-01.*residual.*add --field-map\.accept-poor"):
        run_up_to("field", config)
    assert not list((tmp_path / "out").glob("sub-*/anat/*fieldmap*"))
    assert "field" not in records_of(tmp_path / "out", "sub-01")


def test_a_doubtful_field_that_is_accepted_is_a_warning_everywhere(doubtful, tmp_path):
    accepting = FieldConfig(accept_poor=True)
    config = RunConfig(doubtful, tmp_path / "out", method="closed-form", qsm="tkd", field_map=accepting)
    run_up_to("report", config)
    record = records_of(config.out, "sub-01")["field"]
    levels = {check["Name"]: check["Level"] for check in record.facts["Checks"]}
    assert levels["CoherentResidualRad"] == "red"
    assert any("phase residual shared by neighbouring voxels" in text for text in record.warnings)
    page = (config.out / "sub-01.html").read_text()
    assert '<span class="light red">red</span>' in page
    assert "phase residual shared by neighbouring voxels" in page
