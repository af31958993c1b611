"""An output folder that version 0.1.0 wrote is continued: `out_of_0.1.0` holds its records.

`stages` is whole, with images of a few bytes, so its stages are really continued. `session` has only the
records of a whole session: files stand in for its images, with the checksums that the records have.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chisep.execution.cohort import plan
from chisep.io import nifti
from chisep.io.ingest.nifti import ImportConfig, import_session
from chisep.pipeline import engine
from chisep.pipeline.config import RunConfig
from chisep.pipeline.engine import DryRunPlanner, Stage, StageCache, StageResult
from chisep.provenance.records import records_of
from tests.outcome import contents

OLD = Path(__file__).with_name("out_of_0.1.0")
TE_S = (0.005, 0.011, 0.017, 0.023, 0.029)
TE_SPIN_ECHO_S = (0.015, 0.03, 0.045, 0.06, 0.075, 0.09)
MAP_PARAMETERS = {
    "Method": "sum",
    "R2": {"method": "epg", "te_s": (0.01, 0.02)},
    "Weights": [{"Name": "net", "SHA256": "ab" * 32}],
}


@pytest.fixture
def place(tmp_path) -> Path:
    shutil.copytree(OLD / "stages", tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    return tmp_path


def stages(place: Path, parameters=MAP_PARAMETERS) -> tuple[Stage, Stage]:
    """Make the stages of 0.1.0; each writes the bytes that it wrote then."""
    out = place / "out"
    images = out / "sub-01_Chimap.nii.gz", out / "twice.nii.gz"

    def copy(image: Path):
        def work(files):
            shutil.copy(OLD / "stages" / "out" / image.name, files.write(image))
            return StageResult()

        return work

    return (
        Stage("map", "a map", [place / "raw" / "a.txt"], images[:1], parameters, copy(images[0])),
        Stage("twice", "twice the map", images[:1], images[1:], {}, copy(images[1])),
    )


def continued(place: Path, kind: type[StageCache] = StageCache, **changes) -> StageCache:
    cache = kind(place / "raw", place / "out", "sub-01")
    for stage in stages(place, **changes):
        cache.do(stage)
    return cache


class TestStages:
    def test_records_that_hold_are_kept(self, place):
        before = contents(place)
        assert continued(place, DryRunPlanner).reasons == {"map": None, "twice": None}
        cache = continued(place)
        assert cache.skipped == ["map", "twice"]
        assert cache.records["map"].facts == {"ErosionMm": 1.5}
        assert contents(place) == before

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "0.1.0"}', '{"outputs": 1}'])
    def test_a_damaged_record_is_made_anew(self, place, text):
        before = contents(place / "out")
        record = place / "out" / ".chisep" / "sub-01" / "map.json"
        record.write_text(text)
        planned = continued(place, DryRunPlanner).reasons
        assert planned["map"] == "its record cannot be read"
        assert continued(place).skipped == ["twice"]  # its input came out as it was
        assert json.loads(record.read_text())["outputs"].keys() == {
            "sub-01_Chimap.nii.gz",
            "sub-01_Chimap.json",
        }
        after = contents(place / "out")
        assert after.keys() == before.keys()
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {".chisep/sub-01/map.json", "sub-01_Chimap.json"}
        assert continued(place).skipped == ["map", "twice"]

    def test_changes_are_reasons(self, place):
        other = MAP_PARAMETERS | {"Method": "mean"}
        planned = continued(place, DryRunPlanner, parameters=other).reasons
        assert planned == {"map": "parameter Method: sum → mean", "twice": "follows map"}
        (place / "raw" / "a.txt").write_text("2")
        (place / "out" / "twice.nii.gz").unlink()
        cache = StageCache(place / "raw", place / "out", "sub-01")
        first, second = stages(place)
        assert cache.why(first) == "input a.txt changed"
        assert cache.why(second) == "output twice.nii.gz missing or changed"


@pytest.fixture
def session(tmp_path, monkeypatch) -> RunConfig:
    """Raw data and outputs by the names in the records, each with the checksum in the records."""
    raw, out = tmp_path / "bids", tmp_path / "derivatives"
    shutil.copytree(OLD / "session", out)
    for name, echoes in (("magnitude", 5), ("phase", 5), ("spin_echo", 6)):
        nifti.save(tmp_path / f"{name}.nii.gz", np.ones((3, 4, 5, echoes), np.float32), np.eye(4))
    images = ((tmp_path / f"{name}.nii.gz",) for name in ("magnitude", "phase"))
    import_session(ImportConfig(raw, *images, TE_S, 3.0, (tmp_path / "spin_echo.nii.gz",), TE_SPIN_ECHO_S))
    for sidecar in raw.rglob("*_part-phase_MEGRE.json"):
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Units": "rad"}))
    records = records_of(out, "sub-01")
    known: dict[Path, str] = {}
    for record in records.values():
        for uri, checksum in record.inputs.items():
            *_, dataset, name = uri.split(":")
            known[(raw if dataset == "raw" else out) / name] = checksum
        known |= {out / name: checksum for name, checksum in record.outputs.items()}
    for path in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("{}")

    def checksum(path: Path) -> str:
        if path not in known:
            raise FileNotFoundError(path)
        return known[path]

    monkeypatch.setattr(engine, "Checksums", lambda: checksum)
    return RunConfig(raw, out)


class TestSession:
    def test_every_record_is_read(self, session):
        records = records_of(session.out, "sub-01")
        assert len(records) == 10
        for record in records.values():
            assert record.version == "0.1.0"
            assert record.inputs
            assert record.outputs
            assert record.libraries["torch"]
            assert record.seconds > 0

    def test_a_dry_run_says_why(self, session):
        """The field stage and the stages after it run again, since 0.1.0 did not check the field quality."""
        before = contents(session.out)
        (planned,) = plan(session)
        assert planned.error is None
        kept = {name for name, reason in planned.reasons.items() if reason is None}
        assert kept == {"mask", "registration", "labels"}
        assert str(planned.reasons["field"]).startswith("parameter accept_poor: none → false")
        assert str(planned.reasons["regions"]).startswith("follows ")
        assert planned.reasons["relaxometry"]
        # The headers of the weights state the training range since.
        assert "weights unrolled" in str(planned.reasons["separation"])
        assert "parameter Method: unrolled-qsm → separation" in str(planned.reasons["qsm"])
        assert planned.reasons["background"]
        assert planned.reasons["report"]
        assert contents(session.out) == before

    def test_damaged_records_are_named(self, session):
        (session.out / ".chisep" / "sub-01" / "mask.json").write_text('{"version": "0.1.0", "out')
        (planned,) = plan(session)
        assert planned.reasons["mask"] == "its record cannot be read"
        assert planned.reasons["registration"] == "follows mask"
