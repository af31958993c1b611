"""How files came to be, on records that the real ledger wrote of small stages."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import chisep
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import write_json, write_text
from chisep.pipeline.engine import DeclaredFiles, Stage, StageCache, StageResult
from chisep.preprocessing.background import BackgroundConfig
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.mask import MaskConfig, QualityConfig
from chisep.preprocessing.vsharp import VsharpConfig
from chisep.provenance.datasets import dataset_links
from chisep.provenance.explain import explain
from chisep.provenance.explanation import Explanation, RawExplanation
from chisep.provenance.records import records_of, sessions_of
from chisep.provenance.values import flat, unit_of

SESSION = bids.Session("01", {}, bids.Series((), (), (), 3.0), None)
NAME = "sub-01"
WEIGHTS = {"Name": "net", "SHA256": "ab" * 32, "TrainingData": "heads", "LicenceOfTrainingData": "CC0-1.0"}


def save(path: Path, value: float = 1.0) -> Path:
    return nifti.save(path, np.full((3, 3, 3), value, dtype=np.float32), np.eye(4))


class Derivatives:
    """A derivatives dataset of one session: mask → field → background → separation → report."""

    def __init__(self, root: Path) -> None:
        self.raw, self.out = root / "raw", root / "raw" / "derivatives" / "chisep"
        bids.write_dataset_description(self.raw, "Raw")
        bids.write_dataset_description(self.out, "chisep derivatives", derivative=True)
        write_json(
            self.raw / "MEGRE.json", {"EchoTime": 0.004, "MagneticFieldStrength": 3, "Manufacturer": "A"}
        )
        self.echoes = []
        for echo in (1, 2, 3):
            image = save(bids.raw_path(self.raw, "01", "MEGRE", echo=echo, part="mag"), echo)
            write_json(bids.sidecar_of(image), {"EchoTime": 0.004 * echo})
            self.echoes.append(image)
        self.mask = SESSION.output(self.out, "mask", desc="brain")
        self.field = SESSION.output(self.out, "fieldmap", desc="total")
        self.local = SESSION.output(self.out, "fieldmap", desc="local")
        self.chi = SESSION.output(self.out, "Chimap", desc="total")
        self.report = self.out / f"{NAME}.html"
        self.run()

    def stages(self) -> list[Stage]:
        def work(outputs: list[Path], facts: dict[str, object]):
            def make(_declared: DeclaredFiles) -> StageResult:
                for path in outputs:
                    save(path) if path.suffix == ".gz" else write_text(path, "<p>page</p>")
                return StageResult(facts)

            return make

        times = {"EchoTime": [0.004, 0.008, 0.012], "MagneticFieldStrength": 3.0}
        background = BackgroundConfig("vsharp", replace(VsharpConfig(), rim_mm=5.0))
        separation = {"Method": "unrolled-thesis", "Weights": [WEIGHTS], "D_r_pos": 114.0, "D_r_neg": 120.0}
        chain: list[tuple[str, list[Path], Path, dict[str, object], dict[str, object]]] = [
            ("mask", self.echoes, self.mask, asdict(MaskConfig()), {}),
            (
                "field",
                [*self.echoes, self.mask],
                self.field,
                times | asdict(FieldConfig()) | {"Quality": asdict(QualityConfig())},
                {"BipolarReadout": False},
            ),
            (
                "background",
                [self.field],
                self.local,
                {"Method": "vsharp"} | asdict(background.vsharp),
                {"ErosionMm": 5.5},
            ),
            (
                "separation",
                [self.local, self.mask],
                self.chi,
                separation,
                {"Convergence": {"Change": [0.5] * 90}},
            ),
            ("report", [self.chi, self.local], self.report, {"Parameters": {"x": 1}}, {}),
        ]
        return [
            Stage(name, f"what {name} makes", inputs, [output], parameters, work([output], facts))
            for name, inputs, output, parameters, facts in chain
        ]

    def run(self) -> None:
        ledger = StageCache(self.raw, self.out, NAME)
        for stage in self.stages():
            ledger.do(stage)

    def record(self, stage: str) -> Path:
        return self.out / ".chisep" / NAME / f"{stage}.json"


@pytest.fixture
def made(tmp_path) -> Derivatives:
    return Derivatives(tmp_path)


def of(path: Path, **options: Path) -> Explanation:
    found = explain(path, **options)
    assert isinstance(found, Explanation)
    json.dumps(found.as_dict())
    return found


class TestOutputs:
    def test_every_stage_once_and_back_to_the_raw_files(self, made):
        found = of(made.report)
        assert [step.stage for step in found.steps] == ["report", "separation", "background", "field", "mask"]
        assert found.holds
        raw = {check.name for step in found.steps for check in step.inputs if check.stage is None}
        assert raw == {f"bids:raw:sub-01/anat/{path.name}" for path in made.echoes}
        assert {step.stage for step in of(made.field).steps} == {"field", "mask"}

    def test_image_and_its_sidecar_have_one_story(self, made):
        image, sidecar = of(made.chi), of(bids.sidecar_of(made.chi))
        assert image.steps == sidecar.steps
        assert image.holds
        assert sidecar.holds

    def test_facts_of_the_stage(self, made):
        step = of(made.chi).steps[0]
        assert step.description == "what separation makes"
        assert step.version == chisep.__version__
        assert step.libraries["numpy"] == np.__version__
        assert step.weights == (WEIGHTS,)
        assert step.seconds >= 0
        assert step.peak_memory_gb > 0

    def test_parameters_that_are_not_the_defaults(self, made):
        settings = {
            (step.stage, setting.name): setting for step in of(made.chi).steps for setting in step.settings
        }
        assert {key for key, setting in settings.items() if setting.differs} == {
            ("background", "rim_mm"),
            ("separation", "Method"),
            ("separation", "D_r_neg"),
        }
        assert settings["background", "rim_mm"].default == VsharpConfig().rim_mm
        assert settings["separation", "D_r_neg"].default == pytest.approx(114.0)
        assert settings["field", "Quality.vein_mm"].unit == "mm"
        assert settings["field", "EchoTime"].unit == "s"

    def test_text(self, made):
        text = "\n".join(of(made.report).lines())
        for words in (
            "sub-01.html: unchanged",
            "raw: sub-01/anat/sub-01_echo-*_part-mag_MEGRE.nii.gz (3 files): unchanged",
            "rim_mm         5 mm  (default 0 mm)",
            "min_radius_mm  automatic",
            "D_r_pos  114 1/s/ppm",
            "SHA256 abab",
            "found: Convergence.Change 0.5, … 0.5 (90 values)",
            f"chisep {chisep.__version__}, with SimpleITK",
        ):
            assert words in text
        assert text.count("\nfield of sub-01: what field makes") == 1
        assert "Parameters.x" not in text

    def test_one_changed_echo_has_a_line_of_its_own(self, made):
        save(made.echoes[1], 9.0)
        found = of(made.local)
        assert not found.holds
        lines = "\n".join(found.lines())
        assert "raw: sub-01/anat/sub-01_echo-*_part-mag_MEGRE.nii.gz (2 files): unchanged" in lines
        assert "raw: sub-01/anat/sub-01_echo-2_part-mag_MEGRE.nii.gz: changed since" in lines

    @pytest.mark.parametrize("harm", ["change", "remove", "pipe"])
    @pytest.mark.parametrize("which", ["report", "local", "mask"])
    def test_what_became_of_each_file(self, made, harm, which):
        path: Path = getattr(made, which)
        if harm == "change":
            path.write_bytes(path.read_bytes() + b" ")
        else:
            path.unlink()
            if harm == "pipe":
                os.mkfifo(path)
        found = of(made.report)
        files = [found.file, *(check for step in found.steps for check in step.inputs)]
        bad = {(Path(str(check.path)).name, check.state) for check in files if check.state != "unchanged"}
        assert bad == {(path.name, "changed since" if harm == "change" else "missing")}
        assert not found.holds

    def test_a_changed_sidecar_but_not_one_that_cost_other_seconds(self, made):
        sidecar = bids.sidecar_of(made.chi)
        content = json.loads(sidecar.read_text())
        write_json(sidecar, content | {"Seconds": 1e6})
        assert of(sidecar).holds
        write_json(sidecar, content | {"Description": "by hand"})
        assert of(sidecar).file.state == "changed since"

    def test_raw_dataset_elsewhere(self, made, tmp_path):
        moved = made.out.rename(tmp_path / "moved")
        found = of(moved / f"{NAME}.html")
        assert {check.state for step in found.steps for check in step.inputs if check.stage is None} == {
            "not looked for"
        }
        assert not found.holds
        assert of(moved / f"{NAME}.html", raw=made.raw).holds
        description = moved / "dataset_description.json"
        links = {"DatasetLinks": {"raw": os.path.relpath(made.raw, moved)}}
        write_json(description, json.loads(description.read_text()) | links)
        assert of(moved / f"{NAME}.html").holds
        assert dataset_links(moved)["raw"].resolve() == made.raw

    def test_inputs_outside_of_both_datasets(self, made, tmp_path):
        given = save(tmp_path / "other place" / "m%20k.nii.gz")
        record = json.loads(made.record("mask").read_text())
        ledger = StageCache(made.raw, made.out, NAME)
        first = made.stages()[0]
        ledger.do(replace(first, inputs=[given]))
        (step,) = of(made.mask).steps
        assert [check.state for check in step.inputs] == ["unchanged"]
        assert step.inputs[0].path == str(given)
        assert record != json.loads(made.record("mask").read_text())

    def test_records_of_before_facts(self, made):
        """An older version wrote outputs, facts and warnings only."""
        record = json.loads(made.record("background").read_text())
        old = {"key": "0" * 64} | {name: record[name] for name in ("outputs", "facts", "warnings")}
        write_json(made.record("background"), old)
        (step,) = of(made.local).steps
        assert (step.version, step.settings, step.inputs) == ("", (), ())
        assert "(version not recorded)" in "\n".join(of(made.local).lines())

    def test_names_with_control_characters_do_not_reach_the_terminal(self, made):
        record = json.loads(made.record("mask").read_text())
        write_json(made.record("mask"), record | {"warnings": ["\x1b[2J\nbell\a"]})
        lines = of(made.mask).lines()
        assert all(line.isprintable() for line in lines)
        assert "  warning: \\x1b[2J\\nbell\\x07" in lines


class TestRawFiles:
    def test_fields_and_what_rests_on_it(self, made):
        found = explain(made.echoes[1])
        assert isinstance(found, RawExplanation)
        json.dumps(found.as_dict())
        name = "sub-01/anat/sub-01_echo-2_part-mag_MEGRE.json"
        assert found.sidecars == ("MEGRE.json", name)
        assert found.facts["EchoTime"] == (0.008, name)
        assert found.facts["Manufacturer"] == ("A", "MEGRE.json")
        assert {name: value for name, (value, _) in found.facts.items()} == bids.read_sidecar(
            made.echoes[1], made.raw
        )
        assert {use.stage: use.state for use in found.uses} == {
            "mask": "unchanged",
            "field": "unchanged",
            "background": None,
            "separation": None,
            "report": None,
        }
        save(made.echoes[1], 7.0)
        assert {use.state for use in explain(made.echoes[1]).uses} == {"changed since", None}

    def test_derivatives_elsewhere(self, made, tmp_path):
        moved = made.out.rename(tmp_path / "moved")
        assert explain(made.echoes[0]).uses == ()
        assert "No result that depends on it was found" in explain(made.echoes[0]).lines()
        found = explain(made.echoes[0], out=moved)
        assert len(found.uses) == 5
        assert f"  {moved}: sub-01: mask read it: unchanged" in found.lines()

    def test_broken_sidecar(self, made):
        write_text(made.raw / "MEGRE.json", "{")
        with pytest.raises(InputError, match=r"MEGRE\.json"):
            explain(made.echoes[0])


class TestBadInput:
    @pytest.mark.parametrize("name", ["sub-01_desc-hand_Chimap.json", "sub-01_desc-hand_Chimap.nii.gz"])
    def test_made_by_hand(self, made, name):
        path = write_text(made.chi.with_name(name), "{}")
        with pytest.raises(InputError, match="no record lists"):
            explain(path)

    def test_group_level(self, made):
        with pytest.raises(InputError, match="summary of all sessions"):
            explain(write_text(made.out / "group.tsv", "session"))

    def test_outside_of_any_dataset(self, tmp_path):
        with pytest.raises(InputError, match="outside of any dataset"):
            explain(write_text(tmp_path / "notes.txt", "x"))
        with pytest.raises(InputError, match="no such file"):
            explain(tmp_path / "nothing.nii.gz")
        with pytest.raises(InputError, match="a directory"):
            explain(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "null",
            "{}",
            '{"outputs": []}',
            '{"outputs": {}, "inputs": 3}',
            '{"outputs": {}, "parameters": [1]}',
            '{"outputs": {}, "warnings": 3}',
            '{"outputs": {}, "seconds": "long"}',
            '{"outputs": {"../../etc/passwd": "0"}}',
            '{"outputs": {}, "inputs": {"bids:raw:/etc/passwd": "0"}}',
            '{"outputs": {}, "inputs": {"bids::a/../../b": "0"}}',
            "[" * 100_000,
        ],
    )
    def test_records_that_cannot_be_read(self, made, content):
        write_text(made.record("field"), content)
        with pytest.raises(InputError, match=r"field\.json"):
            explain(made.report)

    def test_record_cut_off_anywhere(self, made):
        whole = made.record("field").read_text()
        for end in range(0, len(whole) - 2, 97):
            write_text(made.record("field"), whole[:end])
            with pytest.raises(InputError, match="cannot be read"):
                explain(made.field)


def test_sessions_and_records(made):
    (made.out / ".chisep" / "lock").touch()
    write_json(made.record("error"), {"message": "why it failed once"})
    assert sessions_of(made.out) == [NAME]
    assert sessions_of(made.out, start="sub-02") == []
    assert set(records_of(made.out, NAME)) == {"mask", "field", "background", "separation", "report"}


def test_units():
    assert [unit_of(name) for name in ("EchoTime", "a.rim_mm", "t1_s", "D_r_pos", "iterations")] == [
        "s",
        "mm",
        "s",
        "1/s/ppm",
        "",
    ]
    assert dict(flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None})) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_nothing_is_written(made):
    before = sorted((p, p.stat().st_mtime_ns) for p in made.raw.rglob("*"))
    explain(made.report)
    explain(made.echoes[0])
    assert sorted((p, p.stat().st_mtime_ns) for p in made.raw.rglob("*")) == before
