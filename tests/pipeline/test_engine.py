from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import chisep
from chisep.errors import InputError, OutputError
from chisep.io import nifti
from chisep.io.files import checksum
from chisep.pipeline.engine import COSTS, DryRunPlanner, Stage, StageCache, StageResult, output_checksum
from tests.outcome import contents


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("1")
    return tmp_path


def ledger(place: Path, kind: type[StageCache] = StageCache) -> StageCache:
    return kind(place / "raw", place / "out", "sub-01")


def doubled(place: Path, name: str = "first", **changes) -> Stage:
    """Twice the number of a file, as a text."""
    source = place / "raw" / "a.txt" if name == "first" else place / "out" / "first.txt"
    target = place / "out" / f"{name}.txt"

    def work(files):
        target.parent.mkdir(exist_ok=True)
        files.write(target).write_text(str(2 * int(files.read(source).read_text())))
        return StageResult({"Digits": len(target.read_text())})

    facts = {"parameters": {"Method": "sum", "R2": {"method": "epg", "te_s": (0.01, 0.02)}}} | changes
    return Stage(name, "twice", [source], [target], facts["parameters"], work)


def image_stage(place: Path, said: str = "", pause_s: float = 0.0, megabytes: int = 0) -> Stage:
    target = place / "out" / "sub-01_Chimap.nii.gz"

    def work(files):
        time.sleep(pause_s)
        np.ones(megabytes * 1_000_000, dtype=np.uint8)
        nifti.save(files.write(target), np.ones((2, 3, 4), dtype=np.float32), np.eye(4))
        return StageResult({"ErosionMm": 1.5}, [said, said] if said else [])

    weights = [{"Name": "net", "SHA256": "ab" * 32}]
    return Stage("map", "a map", [place / "raw" / "a.txt"], [target], {"Weights": weights}, work)


class TestStageCache:
    def test_runs_once(self, place):
        for skipped in ([], ["first"]):
            book = ledger(place)
            book.do(doubled(place))
            assert book.skipped == skipped
            assert book.records["first"].facts == {"Digits": 1}
        assert (place / "out" / "first.txt").read_text() == "2"

    def test_a_stage_that_fails_leaves_no_record(self, place):
        (place / "raw" / "a.txt").write_text("x")
        with pytest.raises(ValueError, match="invalid"):
            ledger(place).do(doubled(place))
        assert ledger(place).why(doubled(place)) == "never ran"

    def test_an_output_taken_away_meanwhile_is_not_recorded(self, place):
        """Otherwise the next run would trust a record whose outputs are missing."""
        stage = doubled(place)

        def work(files):
            facts = stage.work(files)
            (place / "out").rename(place / "gone")
            return facts

        with pytest.raises(OutputError, match=r"gone while a run wrote to it \(first.txt\)"):
            ledger(place).do(replace(stage, work=work))
        ledger(place).do(stage)
        assert (place / "out" / "first.txt").read_text() == "2"

    def test_why(self, place, monkeypatch):
        """Each fact in a record is a separate reason to run; restored, the record is up to date again."""
        book, stage = ledger(place), doubled(place)
        assert book.why(stage) == "never ran"
        book.do(stage)
        assert book.why(stage) is None

        other = doubled(place, parameters={"Method": "sum", "R2": {"method": "mono", "te_s": (0.01,)}})
        assert book.why(other) == (
            "parameter R2.method: epg → mono; parameter R2.te_s: [0.01, 0.02] → [0.01]"
        )
        assert book.why(doubled(place, parameters={})).startswith("parameter Method: sum → none; ")
        (place / "raw" / "a.txt").write_text("5")
        assert book.why(stage) == "input a.txt changed"
        (place / "raw" / "a.txt").unlink()
        assert book.why(stage) == "input a.txt missing"
        (place / "raw" / "a.txt").write_text("1")
        assert book.why(stage) is None
        (place / "out" / "first.txt").write_text("3")
        assert book.why(stage) == "output first.txt missing or changed"
        (place / "out" / "first.txt").unlink()
        assert book.why(stage) == "output first.txt missing or changed"
        (place / "out" / "first.txt").write_text("2")
        monkeypatch.setattr(chisep, "__version__", "9.9")
        assert book.why(stage) == f"version {book.records['first'].version} → 9.9"
        monkeypatch.undo()
        assert book.why(stage) is None

    def test_why_weights(self, place):
        book, stage = ledger(place), image_stage(place)
        book.do(stage)
        new = [{"Name": "net", "SHA256": "cd" * 32}]
        other = Stage("map", "a map", stage.inputs, stage.outputs, {"Weights": new}, stage.work)
        assert book.why(other) == "weights net (abababab) → net (cdcdcdcd)"

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1}', "null", "[" * 100_000])
    def test_a_broken_record_is_none(self, place, text):
        book = ledger(place)
        book.do(doubled(place))
        (place / "out" / ".chisep" / "sub-01" / "first.json").write_text(text)
        assert book.why(doubled(place)) == "its record cannot be read"
        again = ledger(place)
        again.do(doubled(place))
        assert again.skipped == []

    def test_inputs_elsewhere(self, place):
        """Files of neither dataset are named by their address; relative paths are those of absolute ones."""
        elsewhere = place / "mask.txt"
        elsewhere.write_text("1")
        stage = Stage("copy", "", [elsewhere], [], {}, lambda _files: StageResult())
        ledger(place).do(stage)
        record = json.loads((place / "out" / ".chisep" / "sub-01" / "copy.json").read_text())
        assert record["inputs"] == {elsewhere.as_uri(): checksum(elsewhere)}

    def test_relative_paths(self, place, monkeypatch):
        ledger(place).do(doubled(place))
        monkeypatch.chdir(place)
        book = StageCache(Path("raw"), Path("out"), "sub-01")
        assert book.why(doubled(Path())) is None


class TestFacts:
    def test_sidecars_and_records_say_all(self, place):
        book = ledger(place)
        book.do(image_stage(place, said="something was assumed", pause_s=0.05))
        sidecar = json.loads((place / "out" / "sub-01_Chimap.json").read_text())
        source = "bids:raw:a.txt"
        assert sidecar["Sources"] == [source]
        assert sidecar["SourcesSHA256"] == {source: checksum(place / "raw" / "a.txt")}
        assert sidecar["Parameters"]["Weights"][0]["SHA256"] == "ab" * 32
        assert sidecar["Warnings"] == ["something was assumed"]
        assert sidecar["SoftwareVersion"] == f"chisep {chisep.__version__}"
        assert sidecar["Libraries"]["torch"]
        assert sidecar["Units"] == "ppm"
        assert sidecar["ErosionMm"] == 1.5
        assert 0.05 <= sidecar["Seconds"] < 5
        record = json.loads((place / "out" / ".chisep" / "sub-01" / "map.json").read_text())
        assert record["seconds"] == sidecar["Seconds"]
        assert record["peak_memory_gb"] == sidecar["PeakMemoryGB"]
        assert record["warnings"] == sidecar["Warnings"]
        assert set(record["outputs"]) == {"sub-01_Chimap.nii.gz", "sub-01_Chimap.json"}

    def test_peak_memory_is_that_of_the_stage(self, place):
        """A greedy stage before does not count."""
        peaks = []
        for number, megabytes in enumerate((0, 200, 0)):
            place_of_one = place / str(number)
            (place_of_one / "raw").mkdir(parents=True)
            (place_of_one / "raw" / "a.txt").write_text("1")
            book = ledger(place_of_one)
            book.do(image_stage(place_of_one, megabytes=megabytes))
            peaks.append(book.records["map"].peak_memory_gb)
        assert peaks[1] - peaks[0] == pytest.approx(0.2, abs=0.05)
        assert peaks[2] - peaks[0] < 0.1

    def test_costs_alone_make_no_difference(self, place):
        """Two runs that took unequally long are equal but for that, and for each other's records."""
        found = []
        for name, pause_s in (("one", 0.0), ("two", 0.1)):
            (place / name / "raw").mkdir(parents=True)
            (place / name / "raw" / "a.txt").write_text("1")
            ledger(place / name).do(image_stage(place / name, pause_s=pause_s))
            found.append(contents(place / name / "out"))
        assert found[0] == found[1]
        sidecar = place / "one" / "out" / "sub-01_Chimap.json"
        content = json.loads(sidecar.read_text())
        for cost in COSTS:
            sidecar.write_text(json.dumps(content | {cost: 1e9}))
            assert ledger(place / "one").why(image_stage(place / "one")) is None
        sidecar.write_text(json.dumps(content | {"Units": "ppb"}))
        assert "output sub-01_Chimap.json" in str(ledger(place / "one").why(image_stage(place / "one")))

    def test_checksums_of_other_json_are_those_of_their_bytes(self, place):
        path = place / "xfm.json"
        path.write_text('{"MovedMm": 1}')
        assert output_checksum(path) == checksum(path)
        assert output_checksum(place / "nothing.json") == ""


class TestForecast:
    def test_writes_nothing_and_names_what_follows(self, place):
        forecast = ledger(place, DryRunPlanner)
        forecast.do(doubled(place))
        forecast.do(doubled(place, "second"))
        assert forecast.reasons == {"first": "never ran", "second": "never ran"}
        assert not (place / "out").exists()

        book = ledger(place)
        for name in ("first", "second"):
            book.do(doubled(place, name))
        before = contents(place)
        (place / "raw" / "a.txt").write_text("7")
        for change, second in (({}, "follows first"), ({"parameters": {}}, "parameter Method: sum → none; ")):
            forecast = ledger(place, DryRunPlanner)
            forecast.do(doubled(place))
            forecast.do(doubled(place, "second", **change))
            assert forecast.reasons["first"] == "input a.txt changed"
            assert str(forecast.reasons["second"]).startswith(second)
        (place / "raw" / "a.txt").write_text("1")
        assert contents(place) == before

    def test_kept(self, place):
        ledger(place).do(doubled(place))
        forecast = ledger(place, DryRunPlanner)
        forecast.do(doubled(place))
        assert forecast.reasons == {"first": None}


def test_errors_pass(place):
    def work(_files):
        raise InputError("x", found="a", expected="b", fix="c")

    with pytest.raises(InputError):
        ledger(place).do(Stage("bad", "", [], [], {}, work))
    assert not (place / "out").exists()


@pytest.mark.parametrize("use", ["read", "write"])
def test_a_stage_can_use_declared_files_only(place, use):
    """A file that is read unseen could change, and the stage would be skipped all the same."""
    stage = doubled(place)

    def work(files):
        return StageResult({"Path": str(getattr(files, use)(place / "raw" / "b.txt"))})

    with pytest.raises(ValueError, match=r"b\.txt"):
        ledger(place).do(replace(stage, work=work))
    assert ledger(place).why(stage) == "never ran"
