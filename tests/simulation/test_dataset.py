from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from chisep.errors import InputError
from chisep.io import bids, discovery, nifti
from chisep.physics.dipole import Dipole
from chisep.simulation.dataset import MAPS, TRUTH, SimulateConfig, acquired, simulate
from chisep.simulation.lesions.kinds import PatientConfig
from chisep.simulation.motion import moved
from chisep.simulation.tissue import TissueConfig


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()
    }


@pytest.fixture(scope="module")
def made(coarser_file, tmp_path_factory) -> Path:
    """Two subjects, phase in scanner units, head oblique."""
    out = tmp_path_factory.mktemp("simulated")
    calls: list[tuple[str, int, int]] = []
    config = SimulateConfig(
        out=out,
        subjects=2,
        labels=(coarser_file,),
        voxel_mm=6.0,
        phase_units="arbitrary",
        tilt_deg=(15.0, 0.0, 0.0),
    )
    assert simulate(config, lambda *what: calls.append(what)) == ["01", "02"]
    assert calls == [("sub-01", 0, 2), ("sub-01", 1, 2), ("sub-02", 1, 2), ("sub-02", 2, 2)]
    return out


def test_chisep_reads_the_dataset_back(made):
    first, second = discovery.find_sessions(made)
    assert (first.subject, second.subject) == ("01", "02")
    assert first.megre.te_s == (0.005, 0.011, 0.017, 0.023, 0.029)
    assert first.megre.b0_t == 3.0
    assert first.megre.phase_units == "arbitrary"
    assert first.mese is not None
    assert first.mese.te_s == (0.015, 0.03, 0.045, 0.06, 0.075, 0.09)
    phase = nifti.load(first.megre.phase[0])
    assert 0 <= phase.data.min() < phase.data.max() <= 4095
    direction = nifti.b0_direction_of(phase.affine)
    np.testing.assert_allclose(direction, (0, np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15))), atol=1e-5)


def test_truth_is_complete_and_consistent(made):
    def truth(suffix: str, desc: str | None = None) -> np.ndarray:
        path = bids.derivative_path(made / TRUTH, "01", suffix, desc=desc)
        assert bids.sidecar_of(path).is_file()
        return nifti.load(path).data

    pos, neg = truth("Chimap", "paramagnetic"), truth("Chimap", "diamagnetic")
    mask, labels = truth("mask", "brain") > 0, truth("dseg")
    assert pos.min() >= 0
    assert neg.min() >= 0
    np.testing.assert_allclose(truth("Chimap", "total"), pos - neg, atol=1e-6)
    np.testing.assert_allclose(truth("R2primemap"), 114 * (pos + neg), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(truth("R2starmap"), truth("R2map") + truth("R2primemap"), rtol=1e-5)
    for volume in (pos, neg, truth("R2map"), truth("fieldmap", "local"), truth("anglemap", "fibre")):
        assert not volume[~mask].any()
        assert volume[mask].any()
    assert not bids.derivative_path(made / TRUTH, "01", "dseg", desc="lesion").exists()
    table = (made / TRUTH / "dseg.tsv").read_text().splitlines()
    named = {int(row.split("\t")[0]) for row in table[1:]}
    assert table[0] == "index\tname"
    assert set(np.unique(labels).astype(int)) <= named


def test_sidecars_state_units_and_relaxivity(made):
    def facts(suffix: str, desc: str | None = None) -> dict:
        return json.loads(
            bids.derivative_path(made / TRUTH, "01", suffix, desc=desc, ext=".json").read_text()
        )

    assert facts("Chimap", "total")["Units"] == "ppm"
    assert facts("fieldmap", "local")["Units"] == "ppm"
    assert facts("R2primemap")["Units"] == "1/s"
    assert facts("R2primemap")["DrPositiveHzPerPpm"] == 114.0
    assert facts("anglemap", "fibre")["Units"] == "rad"
    assert facts("anglemap", "fibre")["B0DirectionVoxelAxes"] == facts("R2map")["B0DirectionVoxelAxes"]


VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


def validate(dataset: Path) -> None:
    """Check with the validator of BIDS that there is no error."""
    done = subprocess.run([VALIDATOR, dataset, "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []
    assert done.returncode == 0


def test_the_bids_validator_has_no_errors(made):
    validate(made)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"b0_t": 7.0, "orientations": 6, "maps": True}, id="7 T, six orientations, and maps"),
        pytest.param({"patient": PatientConfig(kinds=("microbleed",), parkinson_rise=0.3)}, id="patient"),
        pytest.param({"maps_only": True, "orientations": 3}, id="maps only"),
    ],
)
def test_the_bids_validator_has_no_errors_with_other_options(small, options):
    config = replace(small, subjects=1, **options)
    simulate(config)
    validate(config.out)
    assert "sub-01" in (config.out / TRUTH / "participants.tsv").read_text()


def test_equal_seeds_give_equal_bytes_and_subjects_do_not_depend_on_their_number(coarser_file, tmp_path):
    def dataset(name: str, **options: object) -> dict[str, bytes]:
        config = SimulateConfig(
            out=tmp_path / name, labels=(coarser_file,), voxel_mm=8.0, megre_only=True, **options
        )
        simulate(config)
        return contents(config.out)

    one, two, other = (
        dataset("one", subjects=2),
        dataset("two", subjects=1),
        dataset("three", subjects=1, seed=1),
    )
    shared = [name for name in two if name.startswith(("sub-01", str(TRUTH / "sub-01")))]
    assert len(shared) == 2 * (2 * 5 + 10) + 1
    assert all(one[name] == two[name] for name in shared)
    assert dataset("again", subjects=2) == one
    images = [name for name in shared if name.endswith("MEGRE.nii.gz") or "Chimap.nii" in name]
    assert all(other[name] != two[name] for name in images)
    assert all(one[name] != one[name.replace("sub-01", "sub-02")] for name in images)
    assert not any("MESE" in name for name in one)


def test_a_quick_look_is_painted_coarser_and_says_so(tmp_path):
    """Brain and mean χ_pos stay about the same; a subject painted otherwise is made again."""
    config = SimulateConfig(out=tmp_path / "bids", voxel_mm=8.0, maps_only=True)
    chi = {}
    for paint_mm in (4.0, 8.0):
        simulate(config, paint_mm=paint_mm)
        chi[paint_mm] = truth_of(config, "Chimap", "paramagnetic")
        recipe = json.loads((config.out / TRUTH / "sub-01" / "sub-01_simulation.json").read_text())
        assert recipe["PaintMm"] == paint_mm
    assert chi[4.0].shape == chi[8.0].shape
    fine, coarse = chi[4.0] > 0, chi[8.0] > 0
    assert 2 * (fine & coarse).sum() / (fine.sum() + coarse.sum()) > 0.8
    assert chi[8.0][coarse].mean() == pytest.approx(chi[4.0][fine].mean(), rel=0.15)


def test_label_maps_are_used_in_turn(coarser_file, tmp_path):
    first = nifti.load(coarser_file)
    other = nifti.save(tmp_path / "flipped_dseg.nii.gz", first.data[::-1], first.affine, dtype=np.int16)
    config = SimulateConfig(
        out=tmp_path / "bids", subjects=3, labels=(coarser_file, other), voxel_mm=8.0, megre_only=True
    )
    simulate(config)
    rows = (tmp_path / "bids" / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[-1] for row in rows[1:]] == [coarser_file.name, other.name, coarser_file.name]


def test_a_wrong_label_map_leaves_nothing_behind(tmp_path):
    out = tmp_path / "bids"
    with pytest.raises(InputError, match=r"missing\.nii\.gz"):
        simulate(SimulateConfig(out=out, labels=(tmp_path / "missing.nii.gz",)))
    assert not out.exists()


@pytest.fixture
def small(coarser_file, tmp_path) -> SimulateConfig:
    return SimulateConfig(
        out=tmp_path / "bids", subjects=2, labels=(coarser_file,), voxel_mm=8.0, megre_only=True, simple=True
    )


def test_subjects_that_are_there_are_kept_and_others_made_again(small):
    simulate(small)
    before = contents(small.out)
    kept, lost = (small.out / f"sub-{name}" for name in ("01", "02"))
    stamp = kept.stat().st_ino
    shutil.rmtree(lost)
    calls: list[tuple[str, int, int]] = []
    assert simulate(small, lambda *what: calls.append(what)) == ["01", "02"]
    assert calls == [("sub-02", 1, 2), ("sub-02", 2, 2)]
    assert kept.stat().st_ino == stamp
    assert contents(small.out) == before
    simulate(replace(small, subjects=1, snr=30.0))
    after = contents(small.out)
    assert {name for name in before if before[name] != after[name]} == {
        *(name for name in before if name.startswith("sub-01") and name.endswith("MEGRE.nii.gz")),
        str(TRUTH / "sub-01" / "sub-01_simulation.json"),
    }
    assert before.keys() == after.keys()


def test_an_interrupted_subject_leaves_nothing_and_is_made_again(small):
    def interrupt(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            simulate(small, lambda what, done, total: signal.setitimer(signal.ITIMER_REAL, 0.1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not [*small.out.rglob("*sub-*")]
    # A killed process cannot clean up: the next one does.
    (small.out / ".sub-01.chisep-tmp" / "sub-01").mkdir(parents=True)
    simulate(small)
    assert not [*small.out.glob(".*")]
    assert discovery.find_sessions(small.out)[1].subject == "02"


def test_people_whom_chisep_did_not_simulate_are_not_replaced(small):
    image = small.out / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.touch()
    with pytest.raises(InputError, match="sub-02"):
        simulate(small)
    assert [*small.out.rglob("*")] == [image.parent.parent, image.parent, image]


def test_processes_make_the_same_dataset(small, tmp_path):
    apart = replace(small, out=tmp_path / "apart", jobs=2)
    calls: list[tuple[str, int, int]] = []
    assert simulate(apart, lambda *what: calls.append(what)) == ["01", "02"]
    assert {what for what, _, _ in calls} == {"sub-01", "sub-02"}
    assert [done for _, done, _ in calls] == [1, 2]
    simulate(small)
    assert contents(apart.out) == contents(small.out)


def test_orientations_share_head_and_grid_and_differ_in_b0(small):
    config = replace(small, subjects=1, orientations=3)
    simulate(config)
    sessions = discovery.find_sessions(config.out)
    assert [session.entities for session in sessions] == [{"acq": f"ori{n}"} for n in (1, 2, 3)]
    images = [nifti.load(session.megre.magnitude[0]) for session in sessions]
    for image in images[1:]:
        nifti.require_same_grid(images[0], image)
    directions, fields = [], []
    for number, session in enumerate(sessions, start=1):
        facts = bids.read_sidecar(session.megre.phase[0], config.out)
        directions.append(facts["B0DirectionVoxelAxes"])
        truth = config.out / TRUTH / "sub-01" / "anat" / f"sub-01_acq-ori{number}_desc-local_fieldmap.nii.gz"
        assert json.loads(bids.sidecar_of(truth).read_text())["B0DirectionVoxelAxes"] == directions[-1]
        fields.append(nifti.load(truth).data)
    np.testing.assert_allclose(directions[0], nifti.b0_direction_of(images[0].affine), atol=1e-6)
    assert abs(fields[0] - fields[1]).max() > 1e-3
    chi = sum(
        sign * nifti.load(bids.derivative_path(config.out / TRUTH, "01", "Chimap", desc=desc)).data
        for desc, sign in (("paramagnetic", 1), ("diamagnetic", -1))
    )
    grid = nifti.grid_of(images[0], directions[1])
    expected = Dipole(grid).apply(torch.from_numpy(chi)).numpy()
    inside = fields[1] != 0
    np.testing.assert_allclose(fields[1][inside], expected[inside], atol=1e-5)


def test_motion_between_the_scans_is_stated_and_undoes_itself(small):
    still = replace(small, subjects=1, megre_only=False, simple=False, snr=math.inf, voxel_mm=6.0)
    moved_config = replace(still, out=still.out.with_name("moved"), motion_mm=6.0, motion_deg=5.0)
    images = []
    for config in (still, moved_config):
        simulate(config)
        images.append(nifti.load(bids.raw_path(config.out, "01", "MESE", echo=1)))
    path = moved_config.out / TRUTH / "sub-01" / "anat" / "sub-01_desc-motion_xfm.json"
    transform = np.array(json.loads(path.read_text())["MegreToMeseWorldMm"])
    assert abs(transform[:3, 3]).max() > 1
    before, after = (torch.from_numpy(image.data) for image in images)
    back = moved(after, images[0].affine, np.linalg.inv(transform))
    mask = torch.from_numpy(
        nifti.load(bids.derivative_path(still.out / TRUTH, "01", "mask", desc="brain")).data > 0
    )
    assert float((back - before)[mask].std()) < 0.4 * float((after - before)[mask].std())


def test_maps_only_writes_noisy_maps_and_no_scans(small):
    config = replace(small, subjects=1, maps_only=True)
    simulate(config)
    assert not (config.out / "sub-01").exists()
    for suffix, desc in (("fieldmap", "local"), ("fieldmap", "total"), ("R2primemap", None)):
        path = bids.derivative_path(config.out / MAPS, "01", suffix, desc=desc)
        facts = json.loads(bids.sidecar_of(path).read_text())
        assert facts["NoiseSdMedian"] > 0
        if desc == "total":
            continue
        truth = nifti.load(bids.derivative_path(config.out / TRUTH, "01", suffix, desc=desc)).data
        error = (nifti.load(path).data - truth)[truth != 0]
        assert 0.5 < np.median(abs(error)) / (0.674 * facts["NoiseSdMedian"]) < 1.2
    stamp = path.stat().st_mtime_ns
    simulate(config)
    assert path.stat().st_mtime_ns == stamp


def truth_of(config: SimulateConfig, suffix: str, desc: str | None = None) -> np.ndarray:
    return nifti.load(bids.derivative_path(config.out / TRUTH, "01", suffix, desc=desc)).data


def test_where_fibres_run_along_b0_orientation_makes_r2prime_smaller(small):
    """The angle that is written is the one that R2' follows."""
    config = replace(small, subjects=1, maps_only=True, tissue=TissueConfig(orientation_effect=True))
    simulate(config)
    angle, r2prime = truth_of(config, "anglemap", "fibre"), truth_of(config, "R2primemap")
    pos, neg = truth_of(config, "Chimap", "paramagnetic"), truth_of(config, "Chimap", "diamagnetic")
    assert 0 <= angle.min() < angle.max() <= np.pi / 2 + 1e-6
    labels = truth_of(config, "dseg")
    white = np.isin(labels, (2, 41)) & (neg > 0.015)
    apparent = (r2prime / 114 - pos)[white] / neg[white]
    assert np.corrcoef(apparent, np.sin(angle[white]) ** 2)[0, 1] > 0.5


def test_a_patient_has_lesions_where_the_label_says(small, coarse_file, tmp_path):
    patient = PatientConfig(kinds=("calcification", "hemorrhage"), count=3, size_mm=(12.0, 15.0))
    config = replace(small, subjects=1, labels=(coarse_file,), voxel_mm=4.0, maps_only=True, patient=patient)
    healthy = replace(config, out=tmp_path / "healthy", patient=PatientConfig())
    simulate(config)
    simulate(healthy)
    image = bids.derivative_path(config.out / TRUTH, "01", "dseg", desc="lesion")
    labels = nifti.load(image).data
    header, *lines = bids.sidecar_of(image).with_suffix(".tsv").read_text().splitlines()
    rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert sorted({*np.unique(labels).astype(int)} - {0}) == [int(row["index"]) for row in rows] == [1, 2, 3]
    maps = {
        sign: truth_of(config, "Chimap", desc)
        for sign, desc in (("pos", "paramagnetic"), ("neg", "diamagnetic"))
    }
    for row in rows:
        inside = labels == int(row["index"])
        for sign, volume in maps.items():
            assert 1000 * volume[inside].mean() == pytest.approx(float(row[f"chi_{sign}_ppb"]), abs=0.05)
        # Chronic hemorrhages are a rim of that strength around fluid.
        if row["name"] == "calcification":
            assert float(row["chi_neg_ppb"]) == pytest.approx(float(row["strength_ppb"]), rel=0.1)
    # Nothing else has changed, and a healthy head has no such file.
    assert not bids.derivative_path(healthy.out / TRUTH, "01", "dseg", desc="lesion").exists()
    same = maps["pos"] == truth_of(healthy, "Chimap", "paramagnetic")
    assert 0.98 < same.mean() < 1
    np.testing.assert_array_equal(truth_of(config, "dseg"), truth_of(healthy, "dseg"))


def test_lesions_are_in_oversampled_scans_too(small):
    """The field, made on fine voxels, is that of the sources that are written on coarse ones."""
    patient = PatientConfig(
        kinds=("calcification",), count=1, size_mm=(15.0, 15.0), strength_ppb=(900.0, 900.0)
    )
    config = replace(small, subjects=1, simple=False, coils=0, oversampling=2, patient=patient)
    simulate(config)
    image = nifti.load(bids.derivative_path(config.out / TRUTH, "01", "Chimap", desc="total"))
    expected = Dipole(nifti.grid_of(image)).apply(torch.from_numpy(image.data)).numpy()
    near = binary_dilation(truth_of(config, "dseg", "lesion") > 0, iterations=3)
    near &= truth_of(config, "mask", "brain") > 0
    found = truth_of(config, "fieldmap", "local")
    assert abs(expected[near]).max() > 0.1
    assert np.corrcoef(found[near], expected[near])[0, 1] > 0.8


def test_maps_beside_scans_leave_the_scans_as_they_were(small):
    plain = replace(small, subjects=1, orientations=2)
    both = replace(plain, out=small.out.with_name("both"), maps=True)
    for config in (plain, both):
        simulate(config)
    before, after = contents(plain.out), contents(both.out)
    changed = {name for name, content in before.items() if after[name] != content}
    assert changed == {str(TRUTH / "sub-01" / "sub-01_simulation.json")}
    new = after.keys() - before.keys()
    assert all(name.startswith(str(MAPS)) for name in new)
    # Local and total field and R2* of two scans, R2' and R2 of the first; image and sidecar. Description and
    # .bidsignore.
    assert len(new) == 2 * (2 * 3 + 2) + 2


def test_residual_misregistration_moves_maps_but_the_first_and_not_their_noise(small):
    still = replace(small, subjects=1, maps_only=True, simple=False, orientations=2)
    moved_config = replace(still, out=small.out.with_name("moved"), misregistration_mm=4.0)
    found = []
    for config in (still, moved_config):
        simulate(config)
        folder = config.out / MAPS
        paths = [
            acquired(bids.derivative_path(folder, "01", "fieldmap", desc="local"), f"ori{n}") for n in (1, 2)
        ]
        found.append([nifti.load(path).data for path in paths])
    transform = np.array(json.loads(bids.sidecar_of(paths[1]).read_text())["ResidualMisregistrationWorldMm"])
    (first, second), (same, displaced) = found
    np.testing.assert_array_equal(first, same)
    true = acquired(bids.derivative_path(still.out / TRUTH, "01", "fieldmap", desc="local"), "ori2")
    image = nifti.load(true)
    noise = torch.from_numpy(second - image.data)
    expected = moved(torch.from_numpy(image.data), image.affine, transform) + noise
    # Beyond the edge of the brain the truth that was written is 0.
    inside = binary_erosion(image.data != 0, iterations=2)
    np.testing.assert_allclose(displaced[inside], expected.numpy()[inside], atol=2e-3)
    assert abs(displaced - second)[inside].max() > 0.005


def test_oversampled_scans_have_the_grid_of_their_truth(small):
    config = replace(small, subjects=1, megre_only=False, simple=False, voxel_mm=8.0, oversampling=2)
    simulate(config)
    truth = nifti.load(bids.derivative_path(config.out / TRUTH, "01", "fieldmap", desc="local"))
    for path in (
        bids.raw_path(config.out, "01", "MEGRE", echo=1, part="phase"),
        bids.raw_path(config.out, "01", "MESE", echo=6),
    ):
        nifti.require_same_grid(truth, nifti.load(path))
    plain = replace(config, out=config.out.with_name("plain"), oversampling=1)
    simulate(plain)
    coarse = nifti.load(bids.derivative_path(plain.out / TRUTH, "01", "fieldmap", desc="local"))
    assert np.corrcoef(truth.data[truth.data != 0], coarse.data[truth.data != 0])[0, 1] > 0.9
    chi = [
        bids.derivative_path(c.out / TRUTH, "01", "Chimap", desc="total").read_bytes()
        for c in (plain, config)
    ]
    assert chi[0] == chi[1]


@pytest.mark.parametrize("values", [{"subjects": 0}, {"seed": -1}, {"jobs": 0}])
def test_impossible_datasets_are_refused(tmp_path, values):
    with pytest.raises(InputError, match=next(iter(values))):
        SimulateConfig(out=tmp_path, **values)
