from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import bids, discovery, nifti
from chisep.io.ingest import nifti as importing

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
TE_S = (0.005, 0.011, 0.017)


def echo(root, number, *, part, te_s, subject="01", suffix="MEGRE", b0_t=3.0, session=None, facts=None):
    path = bids.raw_path(root, subject, suffix, echo=number, part=part, session=session)
    nifti.save(path, np.ones((3, 3, 3)), AFFINE)
    content = {"EchoTime": te_s, "MagneticFieldStrength": b0_t} if facts is None else facts
    bids.sidecar_of(path).write_text(json.dumps(content))
    return path


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    bids.write_dataset_description(root, "test")
    for number, te_s in enumerate(TE_S, start=1):
        echo(root, number, part="mag", te_s=te_s)
        echo(root, number, part="phase", te_s=te_s)
        echo(root, number, part=None, te_s=3 * te_s, suffix="MESE")
    return root


def sidecar(root, number=2, part="mag", suffix="MEGRE"):
    return bids.sidecar_of(bids.raw_path(root, "01", suffix, echo=number, part=part))


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_finds_both_series(dataset):
    (session,) = discovery.find_sessions(dataset)
    assert session.name == "sub-01"
    assert session.megre.te_s == TE_S
    assert session.megre.b0_t == 3.0
    assert [p.name for p in session.megre.phase] == [
        f"sub-01_echo-{n}_part-phase_MEGRE.nii.gz" for n in (1, 2, 3)
    ]
    assert session.mese is not None
    assert len(session.mese.magnitude) == 3
    assert session.mese.phase == ()


def test_a_relative_path_finds_the_same(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    (session,) = discovery.find_sessions(Path("raw"))
    assert session.megre.magnitude[0] == Path("raw/sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz")


def test_sessions_are_kept_apart_and_derivatives_left_alone(dataset):
    for number, te_s in enumerate(TE_S, start=1):
        for part in ("mag", "phase"):
            echo(dataset, number, part=part, te_s=te_s, subject="02", session="b")
            echo(dataset / "derivatives" / "other", number, part=part, te_s=te_s, subject="03")
    first, second = discovery.find_sessions(dataset)
    assert (first.name, second.name) == ("sub-01", "sub-02_ses-b")
    assert second.mese is None
    assert [s.name for s in discovery.find_sessions(dataset, ["sub-02"])] == ["sub-02_ses-b"]


def test_sidecars_are_inherited_and_the_nearest_wins(dataset):
    (dataset / "MEGRE.json").write_text(json.dumps({"MagneticFieldStrength": 7.0, "Manufacturer": "root"}))
    (dataset / "sub-01" / "sub-01_MEGRE.json").write_text(json.dumps({"Manufacturer": "subject"}))
    for number in (1, 2, 3):
        for part in ("mag", "phase"):
            edit(sidecar(dataset, number, part), MagneticFieldStrength=None)
        edit(sidecar(dataset, number, None, "MESE"), MagneticFieldStrength=None)
    (session,) = discovery.find_sessions(dataset)
    assert session.megre.b0_t == 7.0
    assert bids.read_sidecar(session.megre.magnitude[0], dataset)["Manufacturer"] == "subject"


def test_b0_direction_of_registered_images(dataset):
    (session,) = discovery.find_sessions(dataset)
    assert session.megre.b0_direction is None
    edit(sidecar(dataset, 1), B0DirectionVoxelAxes=[0.0, 0.6, 0.8])
    (session,) = discovery.find_sessions(dataset)
    assert session.megre.b0_direction == (0.0, 0.6, 0.8)
    edit(sidecar(dataset, 1), B0DirectionVoxelAxes="z")
    with pytest.raises(InputError, match="three numbers"):
        discovery.find_sessions(dataset)


def keep_first_echo(root, suffix):
    for number in (2, 3):
        for file in sidecar(root).parent.glob(f"*echo-{number}*_{suffix}.*"):
            file.unlink()


def test_one_gradient_echo_is_a_series(dataset):
    keep_first_echo(dataset, "MEGRE")
    (session,) = discovery.find_sessions(dataset)
    assert session.megre.te_s == TE_S[:1]


class TestRefuses:
    def check(self, root, *words, participants=()):
        with pytest.raises(InputError) as caught:
            discovery.find_sessions(root, participants)
        for word in words:
            assert word in str(caught.value)

    def test_no_dataset(self, tmp_path):
        self.check(tmp_path / "none", "no such directory")
        self.check(tmp_path, "no multi-echo gradient-echo images", "chisep import")

    def test_unknown_participant(self, dataset):
        self.check(dataset, "no participant 99", "one of: 01", participants=["99"])

    def test_missing_echo_time(self, dataset):
        edit(sidecar(dataset), EchoTime=None)
        self.check(dataset, "echo-2_part-mag_MEGRE.json", "no EchoTime", "seconds")

    @pytest.mark.parametrize("value", [11.0, -0.01, "0.011", True])
    def test_wrong_echo_time(self, dataset, value):
        edit(sidecar(dataset), EchoTime=value)
        self.check(dataset, "echo-2_part-mag_MEGRE.json", "EchoTime", "seconds")

    def test_milliseconds_come_with_their_remedy(self, dataset):
        edit(sidecar(dataset), EchoTime=11.0)
        self.check(dataset, "milliseconds, write 0.011")

    def test_missing_field_strength(self, dataset):
        for number in (1, 2, 3):
            for part in ("mag", "phase"):
                edit(sidecar(dataset, number, part), MagneticFieldStrength=None)
        self.check(dataset, "no MagneticFieldStrength", "tesla")

    def test_contradictory_field_strength(self, dataset):
        edit(sidecar(dataset), MagneticFieldStrength=7.0)
        self.check(dataset, "[3.0, 7.0]", "one field strength")

    def test_spin_echo_from_another_scanner(self, dataset):
        for number in (1, 2, 3):
            edit(sidecar(dataset, number, None, "MESE"), MagneticFieldStrength=7.0)
        self.check(dataset, "MESE.json", "7.0")

    def test_field_strength_in_other_units(self, dataset):
        edit(sidecar(dataset), MagneticFieldStrength=30000)
        self.check(dataset, "MagneticFieldStrength 30000", "tesla")

    def test_magnitude_and_phase_disagree(self, dataset):
        edit(sidecar(dataset, part="phase"), EchoTime=0.012)
        self.check(dataset, "0.011", "0.012", "equal EchoTime")

    def test_missing_phase(self, dataset):
        bids.raw_path(dataset, "01", "MEGRE", echo=3, part="phase").unlink()
        self.check(dataset, "magnitude and a phase image")

    def test_one_spin_echo_only(self, dataset):
        keep_first_echo(dataset, "MESE")
        self.check(dataset, "the only echo of a MESE series", "at least two")

    def test_one_file_of_all_echoes(self, dataset):
        keep_first_echo(dataset, "MEGRE")
        image = bids.raw_path(dataset, "01", "MEGRE", echo=1, part="mag")
        nifti.save(image, np.ones((4, 5, 6, 3), np.float32), AFFINE)
        self.check(dataset, "4-D file: 3 volumes")

    def test_echo_times_against_echo_numbers(self, dataset):
        for part in ("mag", "phase"):
            edit(sidecar(dataset, 1, part), EchoTime=0.02)
        self.check(dataset, "grow with the echo number")

    def test_broken_sidecar(self, dataset):
        sidecar(dataset).write_text("{")
        self.check(dataset, "not JSON")
        sidecar(dataset).write_text("[1]")
        self.check(dataset, "JSON list")

    def test_two_spin_echoes(self, dataset):
        folder = sidecar(dataset).parent
        for file in folder.glob("*MESE*"):
            for acq in ("a", "b"):
                shutil.copy(file, folder / file.name.replace("sub-01_", f"sub-01_acq-{acq}_"))
            file.unlink()
        self.check(dataset, "2 spin-echo series")


class TestImport:
    @pytest.fixture
    def files(self, tmp_path):
        rng = np.random.default_rng(0)
        for name in ("mag", "phase"):
            nifti.save(tmp_path / f"{name}.nii.gz", rng.uniform(size=(4, 5, 6, 3)), AFFINE)
        return tmp_path

    def config(self, files, **changes):
        facts = {
            "bids": files / "bids",
            "magnitude": (files / "mag.nii.gz",),
            "phase": (files / "phase.nii.gz",),
            "te": TE_S,
            "b0": 7.0,
        }
        return importing.ImportConfig(**(facts | changes))

    def test_becomes_a_valid_dataset(self, files):
        importing.import_session(self.config(files))
        (session,) = discovery.find_sessions(files / "bids")
        assert (session.megre.te_s, session.megre.b0_t, session.mese) == (TE_S, 7.0, None)
        stored = nifti.load(files / "phase.nii.gz", ndim=4).data[..., 1]
        np.testing.assert_array_equal(nifti.load(session.megre.phase[1]).data, stored)
        subprocess.run([VALIDATOR, files / "bids"], check=True, capture_output=True)

    def test_refuses_wrong_number_of_echoes(self, files):
        with pytest.raises(InputError, match="3 echoes"):
            importing.import_session(self.config(files, te=TE_S[:2]))
        assert not (files / "bids").exists()

    def test_one_file_for_each_echo(self, files):
        for name in ("mag", "phase"):
            whole = nifti.load(files / f"{name}.nii.gz", ndim=4).data
            for echo in range(3):
                nifti.save(files / f"{name}-{echo}.nii.gz", whole[..., echo], AFFINE)
        given = {
            part: tuple(files / f"{name}-{echo}.nii.gz" for echo in range(3))
            for part, name in (("magnitude", "mag"), ("phase", "phase"))
        }
        importing.import_session(self.config(files, bids=files / "split", **given))
        importing.import_session(self.config(files))
        for one, other in zip(
            sorted((files / "split").rglob("*.nii.gz")),
            sorted((files / "bids").rglob("*.nii.gz")),
            strict=True,
        ):
            np.testing.assert_array_equal(nifti.load(one).data, nifti.load(other).data)
        with pytest.raises(InputError, match="2 files"):
            importing.import_session(self.config(files, **(given | {"magnitude": given["magnitude"][:2]})))

    def test_refuses_to_overwrite(self, files):
        importing.import_session(self.config(files))
        with pytest.raises(InputError, match="not there yet"):
            importing.import_session(self.config(files))

    def test_refuses_labels_with_separators(self, files):
        with pytest.raises(InputError, match="letters and digits"):
            self.config(files, subject="../01")


def test_the_link_to_the_raw_dataset_follows_a_move(tmp_path):
    here, there = tmp_path / "out", tmp_path / "far" / "away" / "out"
    bids.write_dataset_description(here, "made", derivative=True, raw=tmp_path / "raw")
    described = json.loads((here / bids.DESCRIPTION).read_text())
    assert described["DatasetLinks"] == {"raw": "../raw"}
    (here / bids.DESCRIPTION).write_text(json.dumps(described | {"Authors": ["Somebody"]}))
    there.parent.mkdir(parents=True)
    here.rename(there)
    bids.renew_link(there, tmp_path / "raw")
    found = json.loads((there / bids.DESCRIPTION).read_text())
    assert found == described | {"Authors": ["Somebody"], "DatasetLinks": {"raw": "../../../raw"}}


def test_a_broken_description_is_named(tmp_path):
    (tmp_path / bids.DESCRIPTION).write_text("{")
    with pytest.raises(InputError, match=re.escape(bids.DESCRIPTION)):
        bids.renew_link(tmp_path, tmp_path / "raw")
