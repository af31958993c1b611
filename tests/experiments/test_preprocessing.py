"""The experiment on what preprocessing costs, on one coarse session."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.preprocessing import SESSIONS, PreprocessingConfig, page, simulation


def test_each_session_changes_one_thing(tmp_path):
    config = PreprocessingConfig(out=tmp_path)
    first = asdict(simulation(config, "snr100"))
    assert first["snr"] == 100
    assert first["voxel_mm"] == 1.5
    assert len(SESSIONS) >= 6
    for name, session in SESSIONS.items():
        own = asdict(simulation(config, name))
        changed = {key for key, value in own.items() if value != first[key]} - {"out"}
        assert changed == set(session.options)
    with pytest.raises(InputError, match="some of: snr100"):
        PreprocessingConfig(out=tmp_path, only=("snr1000",))


@pytest.mark.slow
def test_a_session_is_measured_stage_by_stage(tmp_path):
    call = ["reproduce", "preprocessing", str(tmp_path), "--only", "bipolar", "--voxel-mm", "4"]
    assert cli.main(call) == 0
    found = json.loads((tmp_path / "preprocessing.json").read_text())
    (row,) = found["Rows"].values()
    assert row["mask_dice"] > 0.9
    assert row["field_r"] > 0.9, "the phase of the read-out is found and removed"
    assert row["r2star_percent"] < 10
    assert row["r2_percent"] < 10
    assert row["motion_mm"] < 2.0
    for source in ("chi_pos", "chi_neg"):
        assert row[f"{source}_true_inputs_nrmse_percent"] < row[f"{source}_cost_percent"] < 60
    assert found["Sessions"]["bipolar"]["bipolar"] is True
    assert (tmp_path / "preprocessing.md").read_text() == page(found["Rows"])
    assert str(tmp_path) not in json.dumps(found["Sessions"])
    assert (tmp_path / "preprocessing.png").read_bytes().startswith(b"\x89PNG")
