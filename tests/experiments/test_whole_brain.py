"""The experiment on the whole chain over the whole brain: its measures, and one coarse session."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.common.session_maps import MapReader
from chisep.experiments.whole_brain.measures import (
    BRAIN,
    BY_DEPTH,
    CORTEX,
    DEEP,
    DEEP_GREY,
    MAPS,
    WHOLE,
    error_by_depth,
    error_over_sigma,
    errors_of,
    interval_coverage,
    read_truth,
)
from chisep.experiments.whole_brain.sessions import WholeBrainConfig
from chisep.io import nifti
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.dataset import TRUTH


@pytest.fixture(scope="module")
def truth(raw_session):
    return read_truth(MapReader(raw_session / TRUTH, raw_session / TRUTH))


def test_zones_by_depth_divide_the_true_brain(truth, raw_session):
    brain = MapReader(raw_session / TRUTH, raw_session).true_mask(BRAIN)
    assert (sum(truth.zones[zone].astype(int) for zone in BY_DEPTH) == brain).all()
    assert truth.zones[DEEP] is not truth.zones[BY_DEPTH[-1]]
    assert (truth.zones[DEEP] == truth.zones[BY_DEPTH[-1]]).all()
    for zone in (CORTEX, DEEP_GREY):
        assert 0 < np.count_nonzero(truth.zones[zone] & brain) == np.count_nonzero(truth.zones[zone])
    facts = truth.facts()
    assert facts[WHOLE]["share_percent"] == 100
    assert facts[CORTEX]["mean_depth_mm"] < facts[DEEP_GREY]["mean_depth_mm"]


def test_a_voxel_without_a_value_counts_as_0(truth):
    made = {name: truth.maps[name].copy() for name in MAPS}
    assert set(errors_of(made, truth, truth.zones)["chi"].values()) <= {0, None}
    rim = truth.zones[WHOLE] & ~truth.zones[DEEP]
    for values in made.values():
        values[rim] = 0
    found = errors_of(made, truth, {**truth.zones, "rim": rim})
    for name in MAPS:
        true = truth.maps[name][truth.brain]
        missing = np.linalg.norm(truth.maps[name][rim]) / np.linalg.norm(true)
        assert found[name][WHOLE] == pytest.approx(100 * missing, rel=1e-3)
        assert found[name]["rim"] == 100
        assert found[name][DEEP] == 0


def test_a_right_sigma_has_a_ratio_of_1_at_every_depth(truth):
    rng = np.random.default_rng(0)
    brain = truth.brain
    sigma = np.where(brain, 1 + 4 / (1 + truth.depth_mm), 0).astype(np.float32)
    error = sigma * rng.standard_normal(brain.shape).astype(np.float32)
    found = error_over_sigma(error, sigma, brain, truth)
    ends = [fifth["to_mm"] for fifth in found["fifths"]]
    assert ends == sorted(ends)
    assert len(ends) == 5
    for fifth in (found, *found["fifths"]):
        assert fifth["ratio"] == pytest.approx(1, abs=0.05)
        assert fifth["rms"] == pytest.approx(fifth["sigma"], rel=0.05)
    assert found["fifths"][0]["sigma"] > found["fifths"][-1]["sigma"]
    half = error_over_sigma(error, sigma / 2, brain, truth)
    assert half["ratio"] == pytest.approx(2 * found["ratio"], rel=1e-3)
    nowhere = error_over_sigma(error, np.zeros_like(sigma), brain, truth)
    assert nowhere == {"rms": None, "sigma": None, "ratio": None, "fifths": []}


def test_errors_by_depth_are_of_known_voxels(truth):
    error = np.where(truth.zones[DEEP], 2.0, 7.0).astype(np.float32)
    found = error_by_depth(error, truth.zones[DEEP], truth)
    assert found[DEEP] == found[WHOLE] == found[BY_DEPTH[-1]] == 2
    assert all(found[zone] is None for zone in BY_DEPTH[:-1])


def test_coverage_is_the_share_of_voxels_in_their_interval(truth):
    brain = truth.brain.astype(np.float32)
    made = {name: truth.maps[name] + 0.01 * brain for name in ("chi_pos", "chi_neg", "qsm")}
    sigmas = {"chi_pos": 0.02 * brain, "chi_neg": 0.001 * brain, "qsm": 0.001 * brain}
    sigmas["chi_pos"][truth.zones[DEEP]] = 0
    found = interval_coverage(made, sigmas, truth, truth.zones)
    assert found["chi_pos"][WHOLE] == 100
    assert found["chi_pos"][DEEP] is None, "no interval"
    assert found["chi_neg"][WHOLE] == 0
    assert found["qsm"][WHOLE] == 100, "the mean of a QSM is not determined"


def test_what_is_missing_is_refused(tmp_path):
    label = tmp_path / "a_dseg.nii.gz"
    with pytest.raises(InputError, match="one or more"):
        WholeBrainConfig(out=tmp_path, labels=())
    with pytest.raises(InputError, match="two files of one name"):
        WholeBrainConfig(out=tmp_path, labels=(label, tmp_path / "other" / "a_dseg.nii.gz"))
    with pytest.raises(InputError):
        WholeBrainConfig(out=tmp_path, labels=(label,), methods=("tikhonov",))


@pytest.mark.filterwarnings("ignore::chisep.errors.ChisepWarning")
def test_from_heads_to_tables(tmp_path):
    whole = packaged_labels()
    labels = np.ascontiguousarray(whole.labels[::4, ::4, ::4])
    affine = whole.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
    head = nifti.save(tmp_path / "head-1_dseg.nii.gz", labels, affine, dtype=np.int16)
    out = tmp_path / "out"
    call = ["reproduce", "whole-brain", str(out), "--labels", str(head), "--voxel-mm", "6", "--snrs", "50"]
    call += ["--methods", "closed-form", "--refine-mm", "4"]
    assert cli.main(call) == 0
    found = json.loads((out / "whole-brain.json").read_text())
    assert str(tmp_path) not in json.dumps(found)
    own = found["SNR"]["50"]
    assert own["Heads"] == list(own["ByHead"]) == ["head-1"]
    chain, known = (own["Whole"][what]["closed-form"]["chi_pos"]["mean"] for what in ("chain", "true-maps"))
    assert 0 < known < 100
    assert 0 < chain < 100
    covered = own["Covered"]
    assert covered["χ maps"] <= covered["brain mask"] <= 100
    assert covered["brain mask"] > 80
    assert set(own["Background"]) == {"chain", "vsharp", "pdf", "lbv"}
    page = (out / "whole-brain.md").read_text()
    assert "closed-form, whole chain" in page
    for name in ("whole-brain", "whole-brain-field"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # A finished session is kept, and earlier results are shown beside the new ones.
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    kept |= {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert cli.main([*call, "--before", str(out / "whole-brain.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads((out / "whole-brain.json").read_text()) == found
    assert "closed-form, whole chain, before (head-1)" in (out / "whole-brain.md").read_text()
