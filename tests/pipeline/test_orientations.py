"""`chisep orientations`: groups of scans, bad input, and the whole chain from raw scans to labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import chisep
from chisep import metrics
from chisep.cli import main
from chisep.errors import InputError
from chisep.execution.config import ClusterConfig
from chisep.execution.orientations import run_orientations
from chisep.io import nifti
from chisep.io.files import write_json
from chisep.networks.config import NetworkConfig
from chisep.pipeline.orientations.config import OrientationsConfig, ScansConfig
from chisep.pipeline.orientations.groups import find_groups
from chisep.simulation.dataset import SimulateConfig, simulate
from chisep.training.data import FoldersConfig, load_scans

HERE = ClusterConfig(cluster="none")
ONE_B0 = {"MagneticFieldStrength": 3.0}


def write_scan(root, name, suffix="MEGRE", *, facts=ONE_B0, echoes=(0.005, 0.012, 0.02)):
    """Write the smallest files that are found as one series."""
    entities = dict(pair.split("-") for pair in name.split("_"))
    folder = root / f"sub-{entities['sub']}"
    folder = (folder / f"ses-{entities['ses']}" if "ses" in entities else folder) / "anat"
    for echo, te_s in enumerate(echoes, start=1):
        for part in ("mag", "phase") if suffix == "MEGRE" else ("mag",):
            label = f"_part-{part}" if suffix == "MEGRE" else ""
            path = folder / f"{name}_echo-{echo}{label}_{suffix}.nii.gz"
            nifti.save(path, np.ones((4, 4, 4), np.float32), np.eye(4))
            write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"EchoTime": te_s, **facts})


def groups(root, **options):
    return find_groups(ScansConfig(bids=root, out=root.parent / "out", **options))


@pytest.mark.parametrize("by", ["acq", "ses", "run"])
def test_orientations_are_told_apart_by_the_entity_that_differs(tmp_path, by):
    root = tmp_path / "bids"
    for number in (1, 2, 3):
        write_scan(root, f"sub-01_{by}-{number}")
    (group,) = groups(root)
    assert group.error is None
    assert group.by == by
    assert [session.entities[by] for session in group.sessions] == ["1", "2", "3"]
    assert group.reference == f"sub-01_{by}-1"
    (other,) = groups(root, orientation_reference="2")
    assert other.sessions[0].entities[by] == "2"


def test_the_spin_echo_is_that_of_its_label_and_its_scan_is_the_reference(tmp_path):
    root = tmp_path / "bids"
    for number in (1, 2):
        write_scan(root, f"sub-01_acq-ori{number}")
    write_scan(root, "sub-01_acq-ori2", "MESE", echoes=(0.015, 0.03, 0.045))
    (group,) = groups(root)
    assert group.reference == "sub-01_acq-ori2"
    assert [session.mese is not None for session in group.sessions] == [True, False]
    (other,) = groups(root, orientation_reference="ori1")
    assert [session.mese is not None for session in other.sessions] == [False, True]


def test_a_spin_echo_without_label_is_that_of_the_reference(tmp_path):
    root = tmp_path / "bids"
    for number in (1, 2):
        write_scan(root, f"sub-01_acq-ori{number}")
    write_scan(root, "sub-01", "MESE", echoes=(0.015, 0.03, 0.045))
    (group,) = groups(root, orientation_reference="ori2")
    assert [(s.name, s.mese is not None) for s in group.sessions] == [
        ("sub-01_acq-ori2", True),
        ("sub-01_acq-ori1", False),
    ]


def test_one_orientation_is_refused_and_says_what_to_use(tmp_path, capsys):
    root = tmp_path / "bids"
    write_scan(root, "sub-01_acq-ori1")
    assert main(["orientations", str(root), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "found one: sub-01_acq-ori1" in said
    assert "two or more head orientations" in said
    assert not (tmp_path / "out").exists()


def test_different_field_strengths_are_refused(tmp_path):
    root = tmp_path / "bids"
    write_scan(root, "sub-01_acq-ori1")
    write_scan(root, "sub-01_acq-ori2", facts={"MagneticFieldStrength": 7.0})
    (group,) = groups(root)
    assert isinstance(group.error, InputError)
    assert "MagneticFieldStrength 7.0" in str(group.error)


def test_different_field_strengths_are_refused_beside_a_spin_echo(tmp_path):
    root = tmp_path / "bids"
    write_scan(root, "sub-01_acq-ori1")
    write_scan(root, "sub-01_acq-ori2", facts={"MagneticFieldStrength": 7.0})
    write_scan(root, "sub-01_acq-ori1", "MESE", echoes=(0.015, 0.03, 0.045))
    (group,) = groups(root)
    assert "found MagneticFieldStrength 7.0; expected 3.0" in str(group.error)


def test_two_spin_echoes_belong_to_their_orientations(tmp_path):
    root = tmp_path / "bids"
    for number in (1, 2, 3):
        write_scan(root, f"sub-01_acq-ori{number}")
    for number in (2, 3):
        write_scan(root, f"sub-01_acq-ori{number}", "MESE", echoes=(0.015, 0.03, 0.045))
    (group,) = groups(root)
    assert group.error is None
    found = [(session.name, session.mese is not None) for session in group.sessions]
    assert found == [("sub-01_acq-ori2", True), ("sub-01_acq-ori1", False), ("sub-01_acq-ori3", False)]


def test_scans_that_differ_in_two_entities_need_a_choice(tmp_path):
    root = tmp_path / "bids"
    for session in ("a", "b"):
        for number in (1, 2):
            write_scan(root, f"sub-01_ses-{session}_acq-ori{number}")
    (group,) = groups(root)
    assert "--by" in str(group.error)
    (group,) = groups(root, by="acq")
    assert "--session-label" in str(group.error)
    (group,) = groups(root, by="acq", session_label=("a",))
    assert group.error is None


def test_an_unknown_reference_names_the_known_ones(tmp_path):
    root = tmp_path / "bids"
    for number in (1, 2):
        write_scan(root, f"sub-01_acq-ori{number}")
    (group,) = groups(root, orientation_reference="ori9")
    assert "one of: ori1, ori2" in str(group.error)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Raw scans of the packaged head in four orientations at 4 mm."""
    out = tmp_path_factory.mktemp("raw") / "bids"
    scans = SimulateConfig(
        out=out,
        voxel_mm=4.0,
        orientations=4,
        raw_orientations=True,
        snr=100.0,
        te_gre_s=(0.005, 0.013, 0.021),
        te_se_s=(0.015, 0.030, 0.045),
        seed=3,
    )
    simulate(scans, paint_mm=4.0)
    return out


def read(path):
    return nifti.load(path).data


def config(raw, out, **options):
    return OrientationsConfig(bids=raw, out=out, **options)


@pytest.fixture(scope="module")
def processed(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("processed")
    (result,) = run_orientations(config(raw, out), HERE)
    assert result.error is None, str(result.error)
    return out, result


@pytest.mark.slow
def test_raw_scans_become_labels(raw, processed):
    out, result = processed
    truth = raw / "derivatives/truth/sub-01/anat"
    labels = out / "derivatives/labels/sub-01/anat"
    for acq in ("ori2", "ori3", "ori4"):
        true = json.loads((truth / f"sub-01_acq-{acq}_desc-motion_xfm.json").read_text())
        found = json.loads((out / f"sub-01/anat/sub-01_acq-{acq}_from-ori1_to-{acq}_xfm.json").read_text())
        wrong = np.array(found["ReferenceToThisWorldMm"]) @ np.linalg.inv(true["FirstToThisWorldMm"])
        assert np.degrees(np.arccos((np.trace(wrong[:3, :3]) - 1) / 2)) < 1.0
        field = json.loads(
            (out / f"derivatives/maps/sub-01/anat/sub-01_acq-{acq}_desc-local_fieldmap.json").read_text()
        )
        true_b0 = json.loads((truth / f"sub-01_acq-{acq}_desc-local_fieldmap.json").read_text())
        cosine = np.dot(field["B0DirectionVoxelAxes"], true_b0["B0DirectionVoxelAxes"])
        assert np.degrees(np.arccos(min(cosine, 1))) < 1.0
        assert field["MagneticFieldStrength"] == 3.0
    common = read(labels / "sub-01_desc-brain_mask.nii.gz") > 0
    inside = common & (read(truth / "sub-01_desc-brain_mask.nii.gz") > 0)
    chi = metrics.nrmse_percent(
        read(labels / "sub-01_desc-cosmos_Chimap.nii.gz"),
        read(truth / "sub-01_desc-total_Chimap.nii.gz"),
        inside,
    )
    assert chi < 44  # 4 mm, three echoes; 41.8 was measured
    for desc in ("paramagnetic", "diamagnetic"):
        for folder in ("labels", "iterative"):
            made = read(out / f"derivatives/{folder}/sub-01/anat/sub-01_desc-{desc}_Chimap.nii.gz")
            assert made.min() >= 0
            assert metrics.nrmse_percent(made, read(truth / f"sub-01_desc-{desc}_Chimap.nii.gz"), inside) < 60
    page = (out / "sub-01_orientations.html").read_text()
    assert "Condition number" in page
    assert "deep in the brain" in page
    facts = json.loads((labels / "sub-01_desc-cosmos_Chimap.json").read_text())
    csf = read(labels / "sub-01_desc-csf_mask.nii.gz") > 0
    assert facts["CsfMl"] == pytest.approx(csf.sum() * 0.064, rel=0.1)
    assert 0 < facts["CsfDeepMl"] < facts["CsfMl"]
    assert not (csf & ~common).any()
    assert "sub-01_acq-ori4" in page
    assert result.report == out / "sub-01_orientations.html"


@pytest.mark.slow
def test_a_second_run_does_nothing_and_networks_read_the_maps(raw, processed):
    out, _ = processed
    (again,) = run_orientations(config(raw, out), HERE)
    assert {"sub-01: cosmos", "sub-01: labels", "sub-01: report", "sub-01_acq-ori3: pose"} <= set(
        again.skipped
    )
    folders = FoldersConfig(out, ("01",), ("01",))
    scans = load_scans(
        folders, ("01",), NetworkConfig(inputs=("field", "r2prime"), outputs=("chi_pos", "chi_neg"))
    )
    assert [scan.name for scan in scans] == [f"sub-01_acq-ori{n}" for n in (1, 2, 3, 4)]
    found = chisep.evaluate(chisep.EvaluateConfig(orientations=out, methods=("cosmos", "tikhonov")))
    errors = {method: one["nrmse_percent"] for method, one in found["sub-01"].items()}
    assert errors["cosmos"] < 100
    assert set(found["sub-01"]["cosmos"]["left_out"]) == {scan.name for scan in scans}


@pytest.mark.slow
def test_a_dry_run_says_what_would_run_and_a_config_file_repeats_a_call(raw, processed, tmp_path, capsys):
    out, _ = processed
    file, before = tmp_path / "options.toml", sorted(out.rglob("*"))
    call = ["orientations", str(raw), str(out), "--dry-run"]
    assert main([*call, "--cosmos.iterations", "7", "--save-config", str(file)]) == 0
    said = capsys.readouterr().out
    assert "sub-01_acq-ori2: 0 stages would run, 4 are kept" in said
    assert "cosmos: parameter iterations: 60 → 7" in said
    assert "labels: follows cosmos" in said
    assert main(["orientations", "--config", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out == said
    assert main(call) == 0
    assert "sub-01: 0 stages would run, 10 are kept" in capsys.readouterr().out
    assert main(["orientations", str(raw), str(tmp_path / "new"), "--dry-run"]) == 0
    assert "sub-01: 10 stages would run, 0 are kept" in capsys.readouterr().out
    assert sorted(out.rglob("*")) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_without_a_spin_echo_and_with_a_flipped_scan_there_is_chi_alone(raw, processed, tmp_path):
    out, _ = processed
    spoiled, changed = tmp_path / "bids", tmp_path / "out"
    shutil.copytree(raw / "sub-01", spoiled / "sub-01")
    shutil.copytree(out, changed)
    for path in (spoiled / "sub-01/anat").glob("*MESE*"):
        path.unlink()
    for path in (spoiled / "sub-01/anat").glob("*acq-ori3*.nii.gz"):
        image = nifti.load(path)
        nifti.save(path, image.data[::-1].copy(), image.affine)
    (result,) = run_orientations(config(spoiled, changed), HERE)
    assert result.error is None
    said = " ".join(result.warnings)
    assert "sub-01_acq-ori3 is left out: its left and right are exchanged" in said
    assert "no spin echo (MESE)" in said
    assert "left out" in (changed / "sub-01_orientations.html").read_text()
    # Nothing of the run before is left for networks to train on.
    assert sorted(path.name for path in (changed / "derivatives/labels/sub-01/anat").glob("*.nii.gz")) == [
        f"sub-01_desc-{desc}.nii.gz" for desc in ("brain_mask", "cosmos_Chimap", "csf_mask")
    ]
    assert not list((changed / "derivatives").rglob("*acq-ori3*"))
    assert not list((changed / "derivatives/iterative").rglob("*.nii.gz"))


@pytest.mark.slow
def test_equal_orientations_are_refused(raw, tmp_path):
    spoiled = tmp_path / "bids"
    for path in (raw / "sub-01/anat").glob("*acq-ori1*MEGRE*"):
        for acq in ("ori1", "ori2"):
            target = spoiled / "sub-01/anat" / path.name.replace("acq-ori1", f"acq-{acq}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (result,) = run_orientations(config(spoiled, tmp_path / "out"), HERE)
    assert "equal ones" in str(result.error)
    assert not (tmp_path / "out/sub-01_orientations.html").exists()
