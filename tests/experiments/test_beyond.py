"""The experiment beyond the thesis, end to end on a small head, with networks of no skill."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.robustness.protocols import (
    CONDITIONS,
    PROTOCOL_ROWS,
    ROWS,
    UNROLLED,
    BeyondConfig,
    simulation,
)
from chisep.experiments.robustness.scans import SimulatedScan, error_budget
from chisep.io import nifti
from chisep.networks.config import SOURCES
from chisep.physics.relaxation import pseudo_r2_hz
from chisep.simulation.anatomy import packaged_labels
from chisep.training.conformal import SIGMAS
from chisep.types import Sources
from tests.untrained import save_untrained

WEIGHTS = {
    "chi-sepnet-r2p": "chi-sepnet-r2p",
    "unrolled-baseline": "chi-sepnet-r2p",
    "unrolled-baseline-long": "chi-sepnet-r2p",
    "unrolled-first": "unrolled",
    "unrolled-gradient": "unrolled-thesis",
    "unrolled-qsm": "unrolled-qsm",
    "unrolled-thesis": "unrolled-thesis",
    "unrolled": "unrolled",
}
"""Names of weights → kind of network."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Every sixth voxel of the packaged head at half its size, and weights."""
    folder = tmp_path_factory.mktemp("beyond")
    whole = packaged_labels()
    labels = np.ascontiguousarray(whole.labels[::6, ::6, ::6])
    head = nifti.save(
        folder / "small_dseg.nii.gz", labels, whole.affine @ np.diag([3.0, 3.0, 3.0, 1.0]), dtype=np.int16
    )
    for seed, (name, kind) in enumerate(WEIGHTS.items()):
        made = save_untrained(folder, kind, seed)
        (folder / name).mkdir()
        shutil.move(made, folder / name / "weights.safetensors")
    # Large voxels have few lesions' worth of white matter.
    return {
        "labels": (head,),
        "weights_folder": folder,
        "conditions": ("standard", "oblique", "misspecified", "gre-only"),
        "heads_of_conditions": 1,
        "strengths_ppb": (100.0, 300.0, 600.0),
        "size_mm": 9.0,
        "separation_mm": 0.0,
        "voxel_mm": 4.0,
    }


def command(arguments, out):
    call = ["reproduce", "beyond", str(out)]
    for name, value in arguments.items():
        values = value if isinstance(value, tuple) else (value,)
        call += [f"--{name.replace('_', '-')}", *(str(v) for v in values)]
    return call


@pytest.mark.filterwarnings("ignore::chisep.errors.ChisepWarning")
def test_from_heads_to_tables(arguments, tmp_path):
    assert cli.main(command(arguments, tmp_path)) == 0
    found = json.loads((tmp_path / "beyond.json").read_text())
    assert set(found["Scores"]) == set(arguments["conditions"])
    for name, rows in found["Scores"].items():
        applied = set(ROWS if name == "standard" else PROTOCOL_ROWS)
        assert set(rows) == {row for row in applied if ROWS[row].target == "sources"}
        # Data steps do most of the work where networks know nothing, if R2' was measured.
        for row in {"iterative", UNROLLED} & applied:
            assert name == "gre-only" or rows[row]["chi_pos"]["nrmse_percent"]["mean"] < 60
    assert set(found["Coverage"]["standard"]) == {UNROLLED, "unrolled-first"}, "others predict no interval"
    assert found["Lesions"]["iterative"]["hemorrhage"]["slope"] == pytest.approx(1, abs=0.4)
    assert len(found["Cascades"]["hemorrhage"]) == 3, "two cascades, and the final DC steps"
    assert set(found["Chi"]["Scores"]["oblique"]) == {"tikhonov", "unrolled-qsm"}
    assert set(found["Chi"]["Scores"]["standard"]) == {"tikhonov", "tv", "qsmnet", "unrolled-qsm"}
    assert found["Compared"] == {row: found["Scores"]["standard"][row] for row in found["Compared"]}
    assert UNROLLED in found["Compared"]
    assert set(found["Chi"]["Coverage"]["standard"]) == {"unrolled-qsm"}
    assert found["Chi"]["Lesions"]["tv"]["hemorrhage"]["lesions"] == 3
    page = (tmp_path / "beyond.md").read_text()
    for row in ROWS.values():
        assert row.title in page
    assert str(tmp_path) not in json.dumps(found)
    assert (tmp_path / "beyond-lesions.png").read_bytes().startswith(b"\x89PNG")
    # Equal weights and options are not computed again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert cli.main(command(arguments, tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    assert json.loads((tmp_path / "beyond.json").read_text()) == found
    # Lesions are of the standard protocol.
    (tmp_path / "beyond-lesions.png").unlink()
    assert cli.main(command(arguments | {"conditions": ("oblique",)}, tmp_path)) == 0
    assert not (tmp_path / "beyond-lesions.png").exists()


def test_each_protocol_changes_one_thing(arguments, tmp_path):
    config = BeyondConfig(out=tmp_path, **arguments)
    first = vars(simulation(config, "standard"))
    for name, condition in CONDITIONS.items():
        changed = {key for key, value in vars(simulation(config, name)).items() if value != first[key]}
        of_tissue = {"tissue"} if condition.dr_hz_per_ppm else set()
        assert changed == set(condition.options) | of_tissue
        assert bool(changed) == (name not in ("standard", "misspecified", "gre-only"))


def test_a_misspecified_d_r_is_assumed_and_not_scanned(arguments, tmp_path):
    config = BeyondConfig(out=tmp_path, **arguments)
    right, wrong = (
        SimulatedScan(config, name, 0, lesions=False).maps for name in ("standard", "misspecified")
    )
    assert torch.equal(right.r2prime_hz, wrong.r2prime_hz)
    assert wrong.relaxivity.pos_hz_per_ppm == pytest.approx(1.2 * right.relaxivity.pos_hz_per_ppm)


def test_without_spin_echo_r2prime_rests_on_one_r2(arguments, tmp_path):
    config = BeyondConfig(out=tmp_path, **arguments)
    measured, assumed = (
        SimulatedScan(config, name, 0, lesions=False).maps for name in ("standard", "gre-only")
    )
    inside = measured.mask
    assert torch.equal(measured.field_ppm, assumed.field_ppm)
    assert torch.equal(measured.r2star_hz, assumed.r2star_hz)
    assert torch.allclose(assumed.r2prime_hz, (assumed.r2star_hz - pseudo_r2_hz(3.0)).clamp_min(0) * inside)
    assert (assumed.r2prime_sigma_hz > measured.r2prime_sigma_hz)[inside].float().mean() > 0.5


def test_what_is_right_has_no_error(arguments, tmp_path):
    scan = SimulatedScan(BeyondConfig(out=tmp_path, **arguments), "standard", 0, lesions=False)
    exact = error_budget(scan.truth, scan.truth, scan.maps)
    assert exact["sum"] == exact["difference"] == exact["difference_in_cone"] == 0
    assert exact["noise_of_sum"] > 0
    shifted = Sources(scan.truth.chi_pos_ppm + 0.01 * scan.maps.mask, scan.truth.chi_neg_ppm)
    found = error_budget(shifted, scan.truth, scan.maps)
    assert found["sum"] == pytest.approx(10, rel=1e-4)
    assert found["difference"] == pytest.approx(10, rel=1e-4)
    assert found["difference_in_cone"] < found["difference"]
    assert set(scan.truth.__dict__) >= {f"{source}_ppm" for source in SOURCES}


def test_coverage_is_the_share_of_voxels_in_their_interval(arguments, tmp_path):
    scan = SimulatedScan(BeyondConfig(out=tmp_path, **arguments), "standard", 0, lesions=False)
    mask, truth = scan.maps.mask, scan.truth
    error = 0.01 * mask
    wide, narrow = 0.02 / SIGMAS * mask, 0.005 / SIGMAS * mask
    made = Sources(
        truth.chi_pos_ppm + error,
        truth.chi_neg_ppm - error,
        chi_pos_sigma_ppm=wide,
        chi_neg_sigma_ppm=narrow,
    )
    assert scan._coverage(made, mask) == {"chi_pos": 1.0, "chi_neg": 0.0}
    assert scan._coverage(truth, mask) == {}


def test_regions_have_the_error_of_their_means(arguments, tmp_path):
    """Noise averages out in a region, a shift does not."""
    scan = SimulatedScan(BeyondConfig(out=tmp_path, **arguments), "standard", 0, lesions=False)
    mask, truth = scan.maps.mask, scan.truth
    signs = torch.ones(mask.shape)
    signs.view(-1)[torch.nonzero(mask.reshape(-1))[::2, 0]] = -1
    made = Sources(truth.chi_pos_ppm + 0.01 * mask, truth.chi_neg_ppm + 0.01 * signs * mask)
    found = scan._regions(made)
    assert found["count"] > 5
    assert found["chi_pos"] == pytest.approx(10, rel=1e-4)
    assert 0 < found["chi_neg"] < 3


def test_unknown_names_are_refused(arguments, tmp_path):
    for option in ("rows", "rows_of_conditions", "conditions"):
        with pytest.raises(InputError, match="some of"):
            BeyondConfig(out=tmp_path, **arguments | {option: ("nonsense",)})
