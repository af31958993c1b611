"""Scans of one and of two gradient echoes: what can be done is done, and what is missing is said."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from chisep import cli
from chisep.io import bids, nifti
from chisep.io.discovery import find_sessions
from chisep.pipeline.check import check_dataset
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.magnitude_noise import noise_sigma_of_field
from chisep.preprocessing.relaxometry import r2star
from chisep.simulation.dataset import SimulateConfig, simulate

TE_S = (0.005, 0.010, 0.015, 0.020, 0.025)
FIVE, ONE, TWO, TWO_ALONE = "01", "02", "03", "04"
KEPT = {ONE: (3,), TWO: (1, 3), TWO_ALONE: (1, 3)}
RATES_AND_SOURCES = ("R2starmap", "R2primemap", "desc-paramagnetic_Chimap", "desc-diamagnetic_Chimap")


@pytest.fixture(scope="session")
def raw(make_once) -> Path:
    """One head: five echoes, one, two with a spin echo, two without."""

    def write(root: Path) -> None:
        wanted = SimulateConfig(out=root, voxel_mm=5.0, snr=100.0, te_gre_s=TE_S)
        simulate(wanted, paint_mm=4.0)
        for subject, echoes in KEPT.items():
            for file in (root / "sub-01" / "anat").iterdir():
                names = bids.entities(file.name)
                wanted = int(names["echo"]) in echoes if names["suffix"] == "MEGRE" else subject != TWO_ALONE
                if wanted:
                    copied(file, root, subject)
            if subject != ONE:  # its regions are those of the atlas
                for file in (root / "derivatives" / "truth" / "sub-01" / "anat").glob("*dseg*"):
                    copied(file, root / "derivatives" / "truth", subject)

    return make_once("few-echoes", write)


def copied(file: Path, root: Path, subject: str) -> None:
    target = root / f"sub-{subject}" / "anat" / file.name.replace("sub-01", f"sub-{subject}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


@pytest.fixture(scope="session")
def out(raw, make_once) -> Path:
    def write(folder: Path) -> None:
        call = ["run", str(raw), str(folder), "--method", "closed-form", "--qsm", "tkd", "--cluster", "none"]
        assert cli.main(call) == 0
        assert cli.main(["run", str(raw), str(folder), "group"]) == 0
        assert cli.main(["explain", str(folder), "--methods"]) == 0

    return make_once("few-echoes-out", write)


def image(folder: Path, subject: str, name: str) -> np.ndarray:
    return nib.load(folder / f"sub-{subject}" / "anat" / f"sub-{subject}_{name}.nii.gz").get_fdata()


def deep(out: Path, subject: str) -> np.ndarray:
    """Two voxels from the edge of the valid-field mask, where background removal is accurate."""
    return binary_erosion(image(out, subject, "desc-eroded_mask") > 0, iterations=2)


def record(out: Path, subject: str, stage: str) -> dict:
    return json.loads((out / ".chisep" / f"sub-{subject}" / f"{stage}.json").read_text())


def page(out: Path, subject: str) -> str:
    return (out / f"sub-{subject}.html").read_text()


def relative(found: np.ndarray, expected: np.ndarray, where: np.ndarray) -> float:
    a, b = (values[where] - np.median(values[where]) for values in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("subject", "of_total", "of_local", "of_qsm"), [(ONE, 0.2, 0.5, 0.65), (TWO, 0.03, 0.25, 0.45)]
)
def test_field_and_qsm_are_near_those_of_five_echoes(out, subject, of_total, of_local, of_qsm):
    """Noise is most of the difference of two echoes, the phase of the receiver that of one."""
    both = deep(out, FIVE) & deep(out, subject)
    assert both.sum() > 0.7 * deep(out, FIVE).sum()
    limits = {"desc-total_fieldmap": of_total, "desc-local_fieldmap": of_local, "desc-qsm_Chimap": of_qsm}
    for name, limit in limits.items():
        assert relative(image(out, subject, name), image(out, FIVE, name), both) < limit, name


@pytest.mark.parametrize("subject", [FIVE, ONE, TWO])
def test_qsm_against_the_truth(raw, out, subject):
    known = deep(out, subject)
    truth = image(raw / "derivatives" / "truth", FIVE, "desc-total_Chimap")
    r = np.corrcoef(image(out, subject, "desc-qsm_Chimap")[known], truth[known])[0, 1]
    assert r > 0.7


def test_one_echo_has_no_rates_and_no_sources(out):
    for name in RATES_AND_SOURCES:
        assert not (out / "sub-02" / "anat" / f"sub-02_{name}.nii.gz").exists()
        assert (out / "sub-03" / "anat" / f"sub-03_{name}.nii.gz").exists()
    assert {path.stem for path in (out / ".chisep" / "sub-02").glob("*.json")} == {
        *("mask", "field", "background", "qsm", "labels", "regions", "report")
    }


def test_one_echo_says_what_is_missing_and_why(raw, out, capsys):
    field = record(out, ONE, "field")
    assert field["facts"]["NotMade"] == ["R2*", "R2'", "sources"]
    assert any("one echo tells no decay" in text for text in field["warnings"])
    html = page(out, ONE)
    assert "one echo tells no decay" in html
    assert "not made: one gradient echo tells no decay" in html
    assert "Susceptibility map (QSM)" in html
    assert "QSM (ppb)" in html
    for absent in ("Separated sources", "Relaxation rates", "χ_neg (ppb)", "Spin echo on gradient echo"):
        assert absent not in html
    (check,) = (check for check in check_dataset(raw) if check.name == "sub-02")
    assert check.ok
    assert any("1 gradient echo (TE 15 ms)" in text for text in check.will_run)
    assert any("one echo tells no decay" in text for text in check.warnings)
    assert any("spin echo" in text for text in check.missing)
    capsys.readouterr()
    assert cli.main(["explain", str(out / "sub-02" / "anat" / "sub-02_desc-qsm_Chimap.nii.gz")]) == 0
    assert "NotMade" in capsys.readouterr().out


def test_little_trust_is_a_warning(out):
    """The receiver's phase stays in the field of one echo: its local field is not known well anywhere."""
    background = record(out, ONE, "background")
    assert background["facts"]["TrustedPartOfBrain"] < 0.25
    assert any("desc-reliable_mask" in text for text in background["warnings"])
    assert not any("desc-reliable_mask" in text for text in record(out, FIVE, "background")["warnings"])


def test_the_methods_text_tells_sessions_apart(out):
    text = (out / "methods.md").read_text()
    for words in (
        "The phase of the one echo was unwrapped in space",
        "R2* and R2′ were not measured, since one gradient echo tells no decay",
        "sources were not separated",
        "R2* is that of the ratio of both echoes",
        "No spin echo was used.",
        "registered to susceptibility of each scan",
    ):
        assert re.search(rf"In \d of 4 sessions \([^)]*\): (?:(?!In \d).)*{re.escape(words)}", text), words
    assert "sub-02" in text


def test_the_group_table_has_every_session(out):
    with (out / "group.tsv").open() as file:
        rows = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert len(rows) == 4
    putamen = next(name for name in rows["sub-02"] if re.fullmatch(r"qsm_ppb__.*putamen__mean", name))
    assert all(row[putamen] != "n/a" for row in rows.values())
    assert rows["sub-02"][putamen.replace("qsm", "chi_pos")] == "n/a"
    assert rows["sub-03"][putamen.replace("qsm", "chi_pos")] != "n/a"


def test_a_second_run_does_nothing(raw, out, capsys):
    call = ["run", str(raw), str(out), "--method", "closed-form", "--qsm", "tkd", "--cluster", "none"]
    capsys.readouterr()
    assert cli.main([*call, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "sub-02" in text
    assert not re.search(r"never ran|changed|missing|follows", text), text


def test_regions_of_one_echo_follow_the_structures(raw, out):
    """The atlas is registered to susceptibility alone."""
    assert record(out, ONE, "labels")["facts"]["AtlasOverlapDice"] > 0.9
    found = np.rint(image(out, ONE, "desc-regions_dseg"))
    truth = np.rint(image(raw / "derivatives" / "truth", FIVE, "dseg"))
    for nucleus in (10, 12, 49, 51):
        made, true = found == nucleus, truth == nucleus
        assert 2 * (made & true).sum() / (made.sum() + true.sum()) > 0.4, nucleus


@pytest.mark.parametrize("subject", [TWO, TWO_ALONE])
def test_r2star_of_two_echoes_is_unbiased_and_its_noise_is_true(raw, out, subject):
    truth = image(raw / "derivatives" / "truth", FIVE, "R2starmap")
    sigma = image(out, subject, "stat-std_R2starmap")
    known = (image(out, subject, "desc-eroded_mask") > 0) & (sigma > 0) & (truth > 0)
    error = (image(out, subject, "R2starmap") - truth)[known]
    assert abs(np.median(error)) < 0.02 * np.median(truth[known])
    assert 1.4826 * np.median(np.abs(error) / sigma[known]) == pytest.approx(1, abs=0.2)
    assert any("two gradient echoes" in text for text in record(out, subject, "relaxometry")["warnings"])


def test_two_echoes_without_a_spin_echo_carry_the_uncertainty_of_r2(out):
    with_spin_echo, without = (image(out, subject, "stat-std_R2primemap") for subject in (TWO, TWO_ALONE))
    known = (with_spin_echo > 0) & (without > 0)
    assert np.median(without[known]) > 1.5 * np.median(with_spin_echo[known])
    assert any("pseudo-R2" in text for text in record(out, TWO_ALONE, "relaxometry")["warnings"])


@pytest.mark.parametrize("subject", [TWO, TWO_ALONE])
def test_sources_of_two_echoes_are_near_those_of_five(out, subject):
    both = (image(out, FIVE, "desc-eroded_mask") > 0) & (image(out, subject, "desc-eroded_mask") > 0)
    for name in ("desc-paramagnetic_Chimap", "desc-diamagnetic_Chimap"):
        found, expected = (image(out, which, name)[both] for which in (subject, FIVE))
        assert np.corrcoef(found, expected)[0, 1] > (0.8 if subject == TWO else 0.7)


@pytest.mark.parametrize("fit", ["linear", "nonlinear"])
def test_the_phase_of_two_echoes_tells_their_noise(even, fit):
    """Their magnitudes do not: differences of tissues look like noise."""
    chosen = [0, 3]
    te_s = [even.te_s[echo] for echo in chosen]
    field = even.field(echoes=(0, 3), config=FieldConfig(fit=fit))
    found = noise_sigma_of_field(
        field.sigma_ppm, even.magnitude[chosen], te_s, 3.0, even.mask, offset_fitted=fit == "nonlinear"
    )
    signal = even.magnitude * torch.exp(1j * even.phase_rad)
    true = float(signal[:, :5, :5, :5].real.std())  # in air
    assert found == pytest.approx(true, rel=0.2)


def test_r2star_of_two_echoes_is_their_ratio():
    rate = torch.tensor([5.0, 20.0, 60.0]).reshape(3, 1, 1)
    magnitude = torch.stack([700 * torch.exp(-te * rate) for te in (0.00942, 0.020)])
    found = r2star(magnitude, (0.00942, 0.020), torch.ones(3, 1, 1, dtype=torch.bool), noise_sigma=0.0)
    torch.testing.assert_close(found.rate_hz, rate, rtol=1e-3, atol=0)


def test_one_echo_needs_no_number_in_its_name(tmp_path):
    bids.write_dataset_description(tmp_path, "test")
    for part in ("mag", "phase"):
        path = tmp_path / "sub-01" / "anat" / f"sub-01_part-{part}_MEGRE.nii.gz"
        nifti.save(path, np.ones((3, 3, 3)), np.eye(4))
        bids.sidecar_of(path).write_text(json.dumps({"EchoTime": 0.02, "MagneticFieldStrength": 3.0}))
    (session,) = find_sessions(tmp_path)
    assert session.megre.te_s == (0.02,)
    assert session.megre.echo_numbers == (1,)


def test_a_real_field_mapping_scan_from_the_command_line(shared_philips, tmp_path):
    """A whole head, two echoes of 2.3 and 4.6 ms, 3 mm, one file an echo."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    files = {
        kind: [str(shared_philips / f"echo-{n}_{kind}.nii.gz") for n in (1, 2)] for kind in ("mag", "phase")
    }
    call = ["import", str(raw), "--magnitude", *files["mag"], "--phase", *files["phase"]]
    assert cli.main([*call, "--te", "0.0023", "0.0046", "--b0", "3"]) == 0
    assert cli.main(["run", str(raw), str(out), "--method", "closed-form", "--qsm", "tkd"]) == 0
    assert 1200 < record(out, "01", "mask")["facts"]["BrainVolumeMl"] < 1900
    checks = record(out, "01", "field")["facts"]["Checks"]
    assert {check["Level"] for check in checks} == {"green"}
    known = image(out, "01", "desc-eroded_mask") > 0
    qsm = 1000 * image(out, "01", "desc-qsm_Chimap")
    assert 10 < 1.4826 * np.median(np.abs(qsm[known] - np.median(qsm[known]))) < 100
    # Iron: the pallidum is paramagnetic against the brain.
    labels = np.rint(image(out, "01", "desc-regions_dseg"))
    assert record(out, "01", "labels")["facts"]["AtlasOverlapDice"] > 0.85
    assert record(out, "01", "labels")["facts"]["AtlasContrast"] == "susceptibility"
    pallidum = known & np.isin(labels, (13, 52))
    assert np.median(qsm[pallidum]) > np.median(qsm[known]) + 20
    assert 5 < record(out, "01", "relaxometry")["facts"]["MedianR2starNoiseHz"] < 15
    assert "Susceptibility map (QSM)" in page(out, "01")
