"""BIDS as people have it: situations of public bug reports, each with its result or its message."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from chisep import cli
from chisep.cli.memory import START_GB
from chisep.errors import InputError
from chisep.io import bids, discovery, nifti
from chisep.io.discovery import Selection, discover
from chisep.io.files import locked, write_json
from chisep.io.filters import read_filters
from chisep.pipeline.check import check_dataset
from chisep.pipeline.config import RunConfig
from chisep.pipeline.inputs import require_inputs
from tests.pipeline.stages import run_up_to
from tests.report.test_group_table import write_session

TE_S = (0.005, 0.011, 0.017, 0.023)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
QUICK = ["--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold", "--cluster", "none"]
ANAT = Path("sub-01", "anat")


def write(root: Path, subject: str, suffix="MEGRE", te_s=TE_S, parts=("mag", "phase"), values=None) -> None:
    """Echoes of 8³ voxels."""
    rng = np.random.default_rng(1)
    for echo, te in enumerate(te_s, start=1):
        for part in parts:
            path = bids.raw_path(root, subject, suffix, echo=echo, part=part)
            nifti.save(path, rng.uniform(-3, 3, (8, 8, 8)) if values is None else values, AFFINE)
            units = {"Units": "rad"} if part == "phase" else {}
            write_json(bids.sidecar_of(path), {"EchoTime": te, "MagneticFieldStrength": 3.0} | units)


@pytest.fixture
def root(tmp_path) -> Path:
    bids.write_dataset_description(tmp_path / "raw", "test")
    write(tmp_path / "raw", "01")
    return tmp_path / "raw"


def images(root: Path, word: str = "MEGRE", subject: str = "01") -> list[Path]:
    return sorted(p for p in (root / f"sub-{subject}").rglob("*.nii*") if word in p.name)


def rename(image: Path, old: str, new: str, *, keep: bool = False) -> Path:
    """Move, or copy, an image with its sidecar."""
    target = image.with_name(image.name.replace(old, new))
    for a, b in ((image, target), (bids.sidecar_of(image), bids.sidecar_of(target))):
        shutil.copy(a, b)
        if not keep:
            a.unlink()
    return target


def bids_check_within(limit_gb: float, root: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a limit of its address space."""
    script = f"ulimit -v {int(limit_gb * 1e9 / 1024)}; exec {sys.executable} -m chisep.cli bids-check {root}"
    return subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )


def edit(image: Path, **facts) -> None:
    sidecar = bids.sidecar_of(image)
    content = json.loads(sidecar.read_text()) | facts
    sidecar.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def to_complex(root: Path, *, keep: bool = False) -> None:
    """Real and imaginary parts in place of, or beside, magnitude and phase."""
    for magnitude in images(root, "part-mag"):
        phase = magnitude.with_name(magnitude.name.replace("part-mag", "part-phase"))
        m, p = nifti.load(magnitude), nifti.load(phase)
        z = m.data * np.exp(1j * p.data)
        for part, values in (("real", z.real), ("imag", z.imag)):
            nifti.save(rename(magnitude, "part-mag", f"part-{part}", keep=True), values, m.affine)
        if not keep:
            for path in (magnitude, phase):
                path.unlink()
                bids.sidecar_of(path).unlink()


def sessions(root: Path, **filters) -> dict[str, discovery.DiscoveredSession]:
    file = root.parent / "filter.json"
    if filters:
        file.write_text(json.dumps(filters))
    selection = Selection(filters=read_filters(file if filters else None))
    return {one.name: one for one in discover(root, selection)}


def session(root: Path, name: str = "sub-01", **filters) -> bids.Session:
    one = sessions(root, **filters)[name]
    assert one.session is not None, one.error
    return one.session


def refused(root: Path, *words: str, name: str = "sub-01", **filters) -> None:
    """The run and `bids-check` refuse with the same words, and have these among them."""
    one = sessions(root, **filters)[name]
    error = one.error
    if one.session is not None:
        with pytest.raises(InputError) as caught:
            require_inputs(one.session)
        error = caught.value
    assert isinstance(error, InputError), error
    for word in words:
        assert word in str(error)
    if not filters:
        (check,) = [check for check in check_dataset(root) if check.name == name]
        assert check.problems[0] == str(error)


@pytest.fixture(scope="module")
def pair(raw_gradient_echo, tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Maps of a scan as magnitude and phase, and of the same scan as real and imaginary part."""
    maps = {}
    for kind in ("polar", "complex"):
        raw = tmp_path_factory.mktemp(kind) / "raw"
        shutil.copytree(raw_gradient_echo, raw)
        for path in images(raw, "part-phase"):
            image = nifti.load(path)
            radians = image.data * np.pi / np.abs(image.data).max()
            nifti.save(path, radians, image.affine)
            edit(path, Units="rad")
        if kind == "complex":
            to_complex(raw)
        config = RunConfig(raw, raw.parent / "out", method="closed-form", qsm="tkd")
        result = run_up_to("qsm", config)
        assert any("part-real" in text for text in result.warnings) == (kind == "complex")
        folder = raw.parent / "out" / ANAT
        names = ("desc-total_fieldmap", "desc-qsm_Chimap", "desc-brain_mask")
        maps[kind] = {n: nib.load(folder / f"sub-01_{n}.nii.gz").get_fdata() for n in names}
        record = json.loads((raw.parent / "out/.chisep/sub-01/field.json").read_text())
        assert any("part-imag" in name for name in record["inputs"]) == (kind == "complex")
    return maps


class TestRealAndImaginary:
    """rordenlab/dcm2niix#455."""

    @pytest.mark.parametrize(("name", "limit"), [("desc-total_fieldmap", 0.01), ("desc-qsm_Chimap", 0.03)])
    def test_maps_are_those_of_magnitude_and_phase(self, pair, name, limit):
        brain = (pair["polar"]["desc-brain_mask"] > 0) & (pair["complex"]["desc-brain_mask"] > 0)
        polar, made = pair["polar"][name][brain], pair["complex"][name][brain]
        assert np.linalg.norm(made - polar) < limit * np.linalg.norm(polar)

    def test_beside_magnitude_and_phase_these_are_used(self, root):
        to_complex(root, keep=True)
        found = session(root)
        assert [path.name for path in found.megre.files if "part-real" in path.name] == []
        assert any("part-real is not read" in note for note in found.notes)

    def test_the_phase_alone_is_computed_where_the_magnitude_is_there(self, root):
        to_complex(root, keep=True)
        for path in images(root, "part-phase"):
            path.unlink()
        found = session(root)
        assert found.megre.magnitude[0] == images(root, "part-mag")[0]
        assert isinstance(found.megre.phase[0], bids.EchoImage.__args__[1])  # type: ignore[attr-defined]
        assert found.megre.phase_units == "rad"

    def test_a_part_that_lacks_its_partner(self, root):
        to_complex(root)
        images(root, "echo-2_part-imag")[0].unlink()
        refused(root, "part-real at TE", "part-imag")

    def test_a_real_part_without_its_offset(self, root):
        to_complex(root)
        found = session(root)
        image = nifti.load(images(root, "echo-1_part-real")[0])
        with pytest.raises(InputError, match="no negative value"):
            found.megre.phase[0].computed(image.data + 100, image.data)

    def test_spin_echo(self, root):
        write(root, "01", "MESE", parts=("real", "imag"))
        found = session(root)
        assert found.mese is not None
        assert len(found.mese.magnitude) == len(TE_S)
        assert {path.name.split("part-")[1][:4] for path in found.mese.files} == {"real", "imag"}

    @pytest.mark.parametrize(("part", "new"), [("mag", "magnitude"), ("phase", "ph")])
    def test_unknown_parts_are_named(self, root, part, new):
        for path in images(root, f"part-{part}_"):
            rename(path, f"part-{part}_", f"part-{new}_")
        refused(root, f"part-{new}", "part-mag, part-phase, part-real, part-imag")

    def test_an_unknown_part_beside_the_known_ones_is_passed_over(self, root):
        for path in images(root, "part-mag"):
            rename(path, "part-mag", "part-mip", keep=True)
        assert any("part-mip is not read" in note for note in session(root).notes)


class TestReconstructions:
    """QSMxT#148."""

    def relabelled(self, root, label, word="MEGRE", *, keep=False):
        for path in images(root, word):
            if "rec-" not in path.name:
                rename(path, "_echo-", f"_{label}_echo-", keep=keep)

    @pytest.mark.parametrize("entity", ["rec", "ce", "dir"])
    def test_each_is_a_session(self, root, entity):
        self.relabelled(root, f"{entity}-a", keep=True)
        for path in images(root):
            if f"{entity}-a" not in path.name:
                rename(path, "_echo-", f"_{entity}-b_echo-")
        write(root, "01", "MESE", parts=(None,))
        found = sessions(root)
        assert list(found) == [f"sub-01_{entity}-a", f"sub-01_{entity}-b"]
        for name, one in found.items():
            assert one.session is not None, one.error
            assert one.session.mese is not None
            assert {p.name.split("_")[1] for p in one.session.megre.files} == {name.split("_")[1]}
            assert one.session.output(root, "R2starmap").name.startswith(f"{name}_R2star")

    def test_one_is_chosen(self, root):
        self.relabelled(root, "rec-norm", keep=True)
        assert list(sessions(root)) == ["sub-01", "sub-01_rec-norm"]
        assert list(sessions(root, MEGRE={"reconstruction": "norm"})) == ["sub-01_rec-norm"]
        assert list(sessions(root, megre={"rec": None})) == ["sub-01"]
        assert list(sessions(root, MEGRE={"reconstruction": "*"})) == ["sub-01_rec-norm"]
        assert list(sessions(root, MEGRE={"reconstruction": ["norm", None]})) == ["sub-01", "sub-01_rec-norm"]
        (left_out,) = sessions(root, MEGRE={"reconstruction": "dis2d"}).values()
        assert "--bids-filter-file" in str(left_out.error)

    def test_normalised_magnitude_beside_the_plain_one(self, root):
        self.relabelled(root, "rec-norm", "part-mag", keep=True)
        refused(root, "rec-", "--bids-filter-file", '"reconstruction": null', name="sub-01_rec-norm")
        assert session(root).megre.magnitude[0].name == "sub-01_echo-1_part-mag_MEGRE.nii.gz"
        chosen = session(root, "sub-01_rec-norm", MEGRE={"reconstruction": "norm"})
        assert "rec-norm" in chosen.megre.magnitude[0].name
        assert chosen.megre.phase[0].name == "sub-01_echo-1_part-phase_MEGRE.nii.gz"

    def test_normalised_magnitude_with_the_only_phase(self, root):
        self.relabelled(root, "rec-norm", "part-mag")
        assert list(sessions(root)) == ["sub-01_rec-norm"]
        found = session(root, "sub-01_rec-norm")
        assert len(found.megre.phase) == len(TE_S)
        assert any("only other reconstruction" in note for note in found.notes)

    def test_other_entities_that_tell_two_images_apart_are_named(self, root):
        for path in images(root, "part-mag"):
            rename(path, "_echo-", "_flip-1_echo-", keep=True)
        refused(root, "told apart by flip- only", "--bids-filter-file")
        assert session(root, MEGRE={"flip": None}).megre.te_s == TE_S

    def test_two_spin_echoes_and_a_choice(self, root):
        for number in (1, 2):
            write(root, "01", "MESE", parts=(None,))
            for path in images(root, "MESE"):
                if "run-" not in path.name:
                    rename(path, "_echo-", f"_run-0{number}_echo-")
        refused(root, "2 spin-echo series", "--bids-filter-file")
        chosen = session(root, MESE={"run": 2})
        assert {"run-02" in path.name for path in chosen.mese.files} == {True}

    @pytest.mark.parametrize(
        "content",
        [
            *("[]", "{", '{"MEGRE": 3}', '{"MEGRE": {"rec": {}}}', '{"MEGRE": {"rec": []}}'),
            *('{"MEGRE": {"reconstuction": "norm"}}', '{"bold": {"run": 1}}', '{"MEGRE": {"rec": 1.5}}'),
        ],
    )
    def test_filter_files_of_another_form(self, tmp_path, content):
        (tmp_path / "f.json").write_text(content)
        with pytest.raises(InputError, match=r"f\.json"):
            read_filters(tmp_path / "f.json")

    def test_filters_of_other_apps_are_passed_over(self, tmp_path):
        (tmp_path / "f.json").write_text('{"bold": {"task": "rest"}, "MESE": {"datatype": "anat"}}')
        assert read_filters(tmp_path / "f.json").is_empty


class TestTimesAndNumbers:
    """dcm2niix#359, #400, #543, heudiconv#39, ROMEO#25."""

    def test_times_rounded_to_single_precision(self, root):
        for path, te in zip(images(root, "part-phase"), TE_S, strict=True):
            edit(path, EchoTime=float(np.float32(te)))
        edit(images(root, "part-phase")[3], EchoTime=TE_S[3] + 1e-6)
        found = session(root)
        assert found.megre.te_s == TE_S
        assert check_dataset(root)[0].ok

    def test_other_times_are_refused(self, root):
        edit(images(root, "part-phase")[3], EchoTime=TE_S[3] + 1e-4)
        refused(root, "equal EchoTime")

    def test_equal_times_are_refused(self, root):
        for path in images(root):
            edit(path, EchoTime=0.005)
        refused(root, "grow with the echo number")

    def test_times_against_numbers_are_refused(self, root):
        for part in ("mag", "phase"):
            for path, te in zip(images(root, f"part-{part}"), (0.017, 0.005, 0.011, 0.023), strict=True):
                edit(path, EchoTime=te)
        refused(root, "grow with the echo number")

    def test_keys_of_field_maps_are_refused(self, root):
        for path in images(root, "part-phase"):
            edit(path, EchoTime=None, EchoTime1=0.005, EchoTime2=0.011)
        refused(root, "no EchoTime")

    def test_numbers_of_echoes_are_those_of_their_names(self, root):
        assert session(root).megre.echo_numbers == (1, 2, 3, 4)
        for path in images(root, "echo-3"):
            path.unlink()
        assert session(root).megre.echo_numbers == (1, 2, 4)


class TestFiles:
    """spine-generic#5, QSMxT#98."""

    def test_repetitions(self, root):
        for path in images(root):
            image = nifti.load(path)
            nifti.save(path, np.stack([image.data] * 3, -1), image.affine)
        refused(root, "4-D", "3 volumes", "(and 7 more files)", "repetitions", "run-", "chisep import")
        assert len(check_dataset(root)[0].problems) == 1

    def test_one_file_with_all_echoes(self, root):
        for part in ("mag", "phase"):
            first, *others = images(root, f"part-{part}")
            image = nifti.load(first)
            nifti.save(first, np.stack([image.data] * 4, -1), image.affine)
            edit(rename(first, "_echo-1", ""), EchoTime=list(TE_S))
            for path in others:
                path.unlink()
        refused(root, "EchoTime [0.005, 0.011, 0.017, 0.023]", "holds 4 echoes", "chisep import")
        for path in images(root):
            edit(path, EchoTime=0.005)
        refused(root, "4-D", "4 volumes", "chisep import")

    def test_a_fourth_axis_of_one_is_none(self, root):
        for path in images(root):
            image = nifti.load(path)
            nifti.save(path, image.data[..., None], image.affine)
        require_inputs(session(root))
        assert check_dataset(root)[0].ok

    def test_packed_and_unpacked(self, root):
        first = images(root)[0]
        first.with_suffix("").write_bytes(nib.load(first).to_bytes())
        refused(root, "sub-01_echo-1_part-mag_MEGRE.nii beside sub-01_echo-1_part-mag_MEGRE.nii.gz", "Keep")

    @pytest.mark.parametrize("spoil", ["cut", "grid", "nothing"])
    def test_bids_check_has_the_words_of_the_run(self, root, spoil):
        path = images(root)[2]
        if spoil == "grid":
            nifti.save(path, np.ones((8, 8, 7)), AFFINE)
        else:
            path.write_bytes(path.read_bytes()[: 100 if spoil == "cut" else 0])
        refused(root, path.name)
        check = check_dataset(root)[0]
        result = cli.main(["run", str(root), str(root.parent / "out"), *QUICK])
        assert result == 1
        failure = json.loads((root.parent / "out/.chisep/sub-01/error.json").read_text())
        assert failure["Error"] == check.problems[0]


def _nothing(root: Path) -> None:
    (root / "sub-02").mkdir()


def _spin_echo_only(root: Path) -> None:
    write(root, "02", "MESE", parts=(None,))


def _other_suffix(root: Path) -> None:
    write(root, "02")
    for path in images(root, subject="02"):
        rename(path, "MEGRE", "T2starw")


def _other_subject(root: Path) -> None:
    write(root, "02")
    for path in images(root, subject="02"):
        rename(path, "sub-02", "sub-2")


def _lower_case(root: Path) -> None:
    write(root, "02")
    for path in images(root, subject="02"):
        rename(path, "MEGRE", "megre")


def _no_anat(root: Path) -> None:
    write(root, "02")
    for path in (root / "sub-02" / "anat").iterdir():
        path.rename(root / "sub-02" / path.name)


def _unreadable(root: Path) -> None:
    (root / "sub-02" / "anat").mkdir(parents=True)
    (root / "sub-02" / "anat" / "sub-02_echo-1_part-mag_MEGRE.nii.gz").mkdir()


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (_nothing, "no other images"),
    "spin echo only": (_spin_echo_only, "spin echo (MESE) only"),
    "other suffix": (_other_suffix, "sub-02_echo-1_part-mag_T2starw.nii.gz"),
    "other subject": (_other_subject, "sub-2_echo-1_part-mag_MEGRE.nii.gz"),
    "lower case": (_lower_case, "sub-02_echo-1_part-mag_megre.nii.gz"),
    "no anat": (_no_anat, "sub-02_echo-1_part-mag_MEGRE.nii.gz"),
    "no image": (_unreadable, "sub-02"),
}


class TestEveryParticipant:
    @pytest.mark.parametrize("kind", UNUSABLE)
    def test_who_cannot_run_is_named(self, root, kind, capsys):
        spoil, word = UNUSABLE[kind]
        spoil(root)
        found = sessions(root)
        assert found["sub-01"].session is not None
        assert word in str(found["sub-02"].error)
        labels = ["--participant-label", "02"]
        assert cli.main(["run", str(root), str(root.parent / "out"), *QUICK, *labels]) == 1
        said = "".join(capsys.readouterr().err.split())
        assert "1of1sessionsfailed" in said
        assert word.replace(" ", "") in said
        assert cli.main(["bids-check", str(root)]) == 1

    def test_misnamed_images_beside_good_ones_are_mentioned(self, root):
        rename(images(root)[0], "sub-01", "sub-1", keep=True)
        assert any("sub-1_echo-1" in note for note in session(root).notes)
        assert any("sub-1_echo-1" in text for text in check_dataset(root)[0].warnings)

    def test_a_fault_of_ours_stops_one_participant_only(self, root, monkeypatch):
        write(root, "02")
        known = bids.read_sidecar

        def fails(image, *rest):
            if "sub-01" in image.name:
                raise IndexError("list index out of range")
            return known(image, *rest)

        monkeypatch.setattr("chisep.io.series.read_sidecar", fails)
        found = sessions(root)
        assert isinstance(found["sub-01"].error, IndexError)
        assert found["sub-02"].session is not None
        first, second = check_dataset(root)
        assert "fault of chisep" in first.problems[0]
        assert second.ok

    def test_sessions_are_chosen_by_label(self, root):
        for subject, visit in (("02", "a"), ("02", "b"), ("03", "a")):
            write(root, subject)
            for path in images(root, subject=subject):
                if path.parent.parent.name == f"sub-{subject}":
                    folder = root / f"sub-{subject}" / f"ses-{visit}" / "anat"
                    folder.mkdir(parents=True, exist_ok=True)
                    for file in (path, bids.sidecar_of(path)):
                        name = file.name.replace(f"sub-{subject}", f"sub-{subject}_ses-{visit}")
                        file.rename(folder / name)

        def names(*labels, participants=()):
            return [one.name for one in discover(root, Selection(participants, labels))]

        assert names() == ["sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03_ses-a"]
        assert names("a") == ["sub-02_ses-a", "sub-03_ses-a"]
        assert names("ses-b") == ["sub-02_ses-b"]
        assert names("b", participants=("02", "03")) == ["sub-02_ses-b", "sub-03"]
        with pytest.raises(InputError, match="--session-label"):
            names("c")
        every = [one.name for one in discover(root, names_only=True)]
        assert every == names()


class TestGroup:
    """Table and page say what is current, what failed since, and who never ran."""

    @pytest.fixture
    def folder(self, root) -> Path:
        """One session that ran; one that failed; one that was never asked for."""
        _nothing(root)
        write(root, "03")
        out = root.parent / "out"
        write_session(out, "sub-01")
        (out / "sub-01.html").write_text('<body>\n<div class="frame">\n<p>maps</p></div>')
        assert cli.main(["run", str(root), str(out), *QUICK, "--participant-label", "02"]) == 1
        return root.parent

    def rows(self, folder, *options) -> dict[str, dict[str, str]]:
        assert cli.main(["run", str(folder / "raw"), str(folder / "out"), "group", *options]) == 0
        with (folder / "out" / "group.tsv").open(encoding="utf-8", newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}

    def fail(self, folder) -> None:
        """Run sub-01 with a sidecar that stops it."""
        image = images(folder / "raw")[0]
        before = bids.sidecar_of(image).read_text()
        edit(image, MagneticFieldStrength=30000)
        call = ["run", str(folder / "raw"), str(folder / "out"), *QUICK, "--participant-label", "01"]
        assert cli.main(call) == 1
        bids.sidecar_of(image).write_text(before)

    def test_everyone_has_a_row(self, folder):
        rows = self.rows(folder)
        statuses = {name: row["status"] for name, row in rows.items()}
        assert statuses == {"sub-01": "done", "sub-02": "failed", "sub-03": "never ran"}
        assert "no other images" in rows["sub-02"]["error"]
        assert list(self.rows(folder, "--participant-label", "01")) == ["sub-01"]

    def test_folder_and_labels_are_looked_up(self, folder, capsys):
        out = str(folder / "out")
        assert cli.main(["run", str(folder / "none"), out, "group"]) == 1
        assert "no such directory" in capsys.readouterr().err
        assert cli.main(["run", str(folder / "raw"), out, "group", "--participant-label", "99"]) == 1
        assert "no participant 99" in capsys.readouterr().err

    def test_not_beside_a_participant_level(self, folder, capsys):
        with locked(folder / "out"):
            assert cli.main(["run", str(folder / "raw"), str(folder / "out"), "group"]) == 1
        assert "another run at work" in capsys.readouterr().err
        assert not (folder / "out" / "group.tsv").exists()

    def test_what_failed_since_has_no_numbers_and_no_current_report(self, folder):
        out = folder / "out"
        assert self.rows(folder)["sub-01"]["brain_volume_ml"] != "n/a"
        assert 'href="sub-01.html"' in (out / "group.html").read_text()
        for _ in range(2):  # marked once
            self.fail(folder)
        marked = (out / "sub-01.html").read_text()
        assert marked.count("This page is of an earlier run") == 1
        assert "30000" in marked
        assert marked.index("earlier run") < marked.index("maps")
        row = self.rows(folder)["sub-01"]
        assert row["status"] == "failed"
        numbers = [key for key in row if "__" in key]
        assert {row[key] for key in (*numbers, "seconds", "brain_volume_ml")} == {"n/a"}
        assert 'href="sub-01.html"' not in (out / "group.html").read_text()

    def test_the_next_run_that_succeeds_makes_the_report_again(self, raw_gradient_echo, tmp_path):
        raw, out = Path(shutil.copytree(raw_gradient_echo, tmp_path / "raw")), tmp_path / "out"
        call = ["run", str(raw), str(out), *QUICK]
        assert cli.main(call) == 0
        page = (out / "sub-01.html").read_text()
        self.fail(tmp_path)
        assert (out / "sub-01.html").read_text() != page
        assert cli.main(call) == 0
        assert (out / "sub-01.html").read_text() == page
        assert self.rows(tmp_path)["sub-01"]["status"] == "done"

    def test_maps_made_after_the_report_make_it_stale(self, folder):
        for stage, content in (("qsm", {"outputs": {"a.nii.gz": "new"}}), ("report", None)):
            record = folder / f"out/.chisep/sub-01/{stage}.json"
            if content is None:
                content = json.loads(record.read_text()) | {"inputs": {"bids::a.nii.gz": "old"}}
            record.write_text(json.dumps(content))
        assert self.rows(folder)["sub-01"]["status"] == "unfinished"

    def test_an_error_of_a_name_that_is_gone_says_nothing(self, folder):
        shutil.rmtree(folder / "raw" / "sub-02")
        assert list(self.rows(folder)) == ["sub-01", "sub-03"]


class TestPlaces:
    def test_a_damaged_description_says_what_to_do(self, root, tmp_path, capsys):
        out = tmp_path / "out"
        bids.write_dataset_description(out, "made", derivative=True, raw=root)
        (out / bids.DESCRIPTION).write_text("{")
        assert cli.main(["run", str(root), str(out), *QUICK]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"{out / bids.DESCRIPTION}: found a file that is not JSON" in said
        assert "Restore it, or delete it" in said

    @pytest.mark.parametrize("place", ["sub-01", "sub-01/anat", "sub-01/../sub-01/out", "link/out"])
    def test_no_output_in_a_participants_folder(self, root, place):
        (root / "link").symlink_to(root / "sub-01")
        with pytest.raises(InputError, match="a folder of a participant"):
            RunConfig(root, root / place)
        RunConfig(root, root / "derivatives" / "chisep")

    def test_a_closed_pipe_ends_quietly(self):
        """As in `chisep explain … | head -1`."""
        for call in (["methods", "--json"], ["--help"]):
            read, written = os.pipe()
            os.close(read)
            done = subprocess.run(
                [sys.executable, "-m", "chisep.cli", *call],
                stdout=written,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
            )
            os.close(written)
            assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.parametrize("limit_gb", [0.3, 0.6, 0.99 * START_GB])
    def test_a_memory_limit_that_lets_nothing_start(self, root, limit_gb):
        done = bids_check_within(limit_gb, root)
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"chisep: error: too little memory: found a limit of {limit_gb:.2f} GB (ulimit -v); expected"
        )
        assert done.stderr.count("\n") == 1

    def test_the_least_memory_with_which_it_starts(self, root):
        done = bids_check_within(1.001 * START_GB, root)
        assert (done.returncode, done.stderr) == (0, "")

    def test_no_loopback(self, root):
        """`unshare -n`: workers could not be reached."""
        unshare = shutil.which("unshare")
        allowed = unshare and not subprocess.run([unshare, "-rn", "true"], check=False).returncode
        if not allowed:
            pytest.skip("this system allows no network namespaces")
        write(root, "02")
        call = ["run", str(root), str(root.parent / "out"), "--method", "closed-form", "--qsm", "tkd"]
        command = [unshare, "-rn", sys.executable, "-m", "chisep.cli", *call]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 1
        assert "--cluster none" in done.stderr
        assert "Traceback" not in done.stderr
