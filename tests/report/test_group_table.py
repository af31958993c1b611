"""Group level: all sessions listed, outliers found, untrusted text escaped, thousands in seconds."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.regions.statistics import RegionValue, write_values
from chisep.report.group_outliers import FEWEST_FOR_OUTLIERS, robust_scores
from chisep.report.group_table import GroupResult, make_group
from chisep.report.pages import TABLE_SCRIPTS
from tests.report.test_subject import Page

ATTACK = "=HYPERLINK(\"http://example.org\")<script>alert('x')</script>\t\r\n&"
MAPS = ("chi_pos_ppb", "chi_neg_ppb", "chi_total_ppb", "qsm_ppb", "r2star_hz", "r2_hz", "r2prime_hz")


def record(facts: dict[str, object] | None = None, warnings: tuple[str, ...] = ()) -> dict[str, object]:
    return {
        "outputs": {},
        "facts": facts or {},
        "warnings": list(warnings),
        "seconds": 10.0,
        "peak_memory_gb": 0.5,
    }


def write_session(
    out: Path,
    name: str,
    *,
    shift: float = 0.0,
    regions: tuple[str, ...] = ("Left-Putamen", "Right-Putamen"),
    maps: tuple[str, ...] = MAPS[:2],
    warnings: tuple[str, ...] = (),
    done: bool = True,
) -> None:
    """Write what a session leaves, by what the group level is promised to read."""
    folder = out / ".chisep" / name
    folder.mkdir(parents=True)
    stages = {
        "mask": record({"BrainVolumeMl": 1300.0 + shift}),
        "field": record({"MedianResidualPhaseRad": 0.02}, warnings),
        "separation": record({"Convergence": {"Iterations": 9, "Converged": shift == 0, "Change": [0.1]}}),
    }
    if done:
        stages["report"] = record()
        (out / f"{name}.html").write_text("<!DOCTYPE html>")
    for stage, content in stages.items():
        (folder / f"{stage}.json").write_text(json.dumps(content))
    labels = dict(part.split("-") for part in name.split("_"))
    anat = out / f"sub-{labels['sub']}"
    anat = (anat / f"ses-{labels['ses']}" if "ses" in labels else anat) / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(name)) % 2**32)
    rows = [
        RegionValue(index, region, of, 100, 0.8, 50 + shift, 9.0, 50.0 + shift + rng.normal(), None)
        for index, region in enumerate(regions, start=10)
        for of in maps
    ]
    write_values(anat / f"{name}_regions.tsv", rows)


def read(result: GroupResult) -> list[dict[str, str]]:
    with result.table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def out(tmp_path) -> Path:
    """Nine sessions: one outlier, one failed, one unfinished."""
    for number in range(8):
        write_session(tmp_path, f"sub-{number:02}_ses-1")
    write_session(tmp_path, "sub-08_ses-1", shift=400.0, warnings=("the phase was rescaled",))
    write_session(tmp_path, "sub-09", done=False, warnings=("the phase was rescaled",))
    failed = tmp_path / ".chisep" / "sub-10"
    failed.mkdir()
    (failed / "error.json").write_text(json.dumps({"Error": "echo-2.nii.gz: found NaN"}))
    return tmp_path


def test_every_session_is_told(out):
    result = make_group(out)
    rows = read(result)
    assert [row["name"] for row in rows] == [f"sub-{n:02}_ses-1" for n in range(9)] + ["sub-09", "sub-10"]
    assert [row["status"] for row in rows] == ["done"] * 9 + ["unfinished", "failed"]
    assert result.status == {"done": 9, "unfinished": 1, "failed": 1}
    assert rows[0]["participant_id"] == "sub-00"
    assert rows[0]["session_id"] == "ses-1"
    assert rows[9]["session_id"] == "n/a"
    assert rows[10]["error"] == "echo-2.nii.gz: found NaN"
    assert rows[8]["warnings"] == "field: the phase was rescaled"
    assert rows[8]["unconverged_stages"] == "separation"
    assert rows[0]["unconverged_stages"] == "n/a"
    assert float(rows[0]["seconds"]) == 40
    assert float(rows[8]["chi_pos_ppb__left_putamen__mean"]) == 450
    assert float(rows[8]["volume_ml__right_putamen"]) == 0.8
    assert "chi_pos_ppb__left_putamen__sigma" not in rows[8]
    assert rows[10]["chi_pos_ppb__left_putamen__mean"] == "n/a"


def test_the_dictionary_explains_every_column(out):
    result = make_group(out)
    content = json.loads(result.dictionary.read_text())
    assert list(content) == list(read(result)[0])
    assert all(entry["Description"] for entry in content.values())
    assert content["chi_pos_ppb__left_putamen__median"]["Units"] == "ppb"
    assert content["brain_volume_ml"]["Units"] == "mL"
    assert content["seconds"]["Units"] == "s"


def test_outliers_are_marked_and_named(out):
    result = make_group(out)
    rows = read(result)
    found = rows[8]["outliers"].split()
    assert {"brain_volume_ml", "chi_pos_ppb__left_putamen__median"} <= set(found)
    assert int(rows[8]["outlier_count"]) == len(found)
    assert "brain_volume_ml" not in " ".join(row["outliers"] for row in rows[:8])
    page = result.page.read_text()
    assert "brain (mL), χ_pos (ppb) in left putamen" in page
    assert "3.5" in page


def test_values_below_the_others_are_outliers_too(tmp_path):
    for number in range(FEWEST_FOR_OUTLIERS):
        write_session(tmp_path, f"sub-{number}")
    write_session(tmp_path, "sub-9", shift=-400.0)
    assert "brain_volume_ml" in read(make_group(tmp_path))[-1]["outliers"].split()


def test_few_sessions_have_no_outliers(tmp_path):
    for number in range(FEWEST_FOR_OUTLIERS - 2):
        write_session(tmp_path, f"sub-{number}")
    write_session(tmp_path, "sub-9", shift=1000.0)
    assert {row["outlier_count"] for row in read(make_group(tmp_path))} == {"0"}


def test_robust_scores():
    rng = np.random.default_rng(0)
    scores = robust_scores(rng.normal(5, 3, 20_000))
    assert np.std(scores) == pytest.approx(1, abs=0.02)
    assert abs(np.median(scores)) < 0.02
    mostly_equal = np.array([1.0] * 9 + [2.0])
    assert robust_scores(mostly_equal)[-1] > 3.5
    assert not robust_scores(np.ones(9)).any()
    with_gaps = robust_scores(np.array([1.0, np.nan, 2.0, 3.0]))
    assert np.isnan(with_gaps[1])
    assert with_gaps[2] == 0
    assert np.isnan(robust_scores(np.full(3, np.nan))).all()


def test_page_is_whole_and_links_reports(out):
    page = Page(make_group(out).page.read_text())
    assert not page.open
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.count("script") == len(TABLE_SCRIPTS)
    assert all(source.startswith("data:image/") for source in page.values("src"))
    links = [link for link in page.values("href") if not link.startswith("#")]
    assert links == [f"sub-{n:02}_ses-1.html" for n in range(9)]
    assert all((out / link).is_file() for link in links)
    ids = page.values("id")
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(ids)
    assert "field: the phase was rescaled" in " ".join(page.texts)


def test_equal_derivatives_give_equal_files(out):
    first = make_group(out)
    before = [path.read_bytes() for path in (first.table, first.dictionary, first.page)]
    make_group(out)
    assert [path.read_bytes() for path in (first.table, first.dictionary, first.page)] == before


def test_texts_of_files_do_no_harm(tmp_path):
    for number in range(3):
        write_session(tmp_path, f"sub-{number}", regions=(ATTACK, "Ärger$_{x", "核"), warnings=(ATTACK,))
    (tmp_path / ".chisep" / "sub-4").mkdir()
    (tmp_path / ".chisep" / "sub-4" / "error.json").write_text(json.dumps({"Error": ATTACK}))
    result = make_group(tmp_path)
    page = result.page.read_text()
    assert page.count("<script") == len(TABLE_SCRIPTS)
    assert "&lt;script" in page
    with result.table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert len(rows) == 5
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [text for row in rows for text in row if text.startswith(("=", "+", "@", "\t", "\r"))]
    assert {"volume_ml__arger_x", "volume_ml__region"} <= set(rows[0])


def test_names_that_lead_elsewhere_are_left_out(tmp_path):
    write_session(tmp_path, "sub-1")
    for name in ("sub-..", "sub-1 2", "sub-1_ses-", "lock"):
        (tmp_path / ".chisep" / name).mkdir()
    assert [row["name"] for row in read(make_group(tmp_path))] == ["sub-1"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"facts": 3, "warnings": 4, "seconds": "x"}', b"\xff"]
)
def test_broken_records_and_tables(tmp_path, content):
    write_session(tmp_path, "sub-1")
    write_session(tmp_path, "sub-2")
    (tmp_path / ".chisep" / "sub-1" / "mask.json").write_bytes(content)
    (tmp_path / "sub-1" / "anat" / "sub-1_regions.tsv").write_bytes(content)
    first, second = read(make_group(tmp_path))
    assert first["brain_volume_ml"] == "n/a"
    assert first["chi_pos_ppb__left_putamen__mean"] == "n/a"
    assert "regions: the table cannot be read" in first["warnings"]
    assert float(second["brain_volume_ml"]) == 1300


def test_nothing_to_gather(tmp_path):
    with pytest.raises(InputError, match="no session"):
        make_group(tmp_path)


@pytest.mark.slow
def test_a_thousand_sessions(tmp_path):
    """1000 sessions of 40 regions and 7 maps: seconds."""
    regions = tuple(f"ctx-lh-region{number}" for number in range(40))
    write_session(tmp_path, "sub-0000", regions=regions, maps=MAPS)
    table = tmp_path / "sub-0000" / "anat" / "sub-0000_regions.tsv"
    for number in range(1, 1000):
        name = f"sub-{number:04}"
        write_session(tmp_path, name, regions=())
        (tmp_path / name / "anat" / f"{name}_regions.tsv").write_bytes(table.read_bytes())
    start = time.process_time()
    result = make_group(tmp_path)
    assert result.sessions == 1000
    assert time.process_time() - start < 60  # some 10 s; with room for a slow machine
    rows = read(result)
    assert len(rows) == 1000
    assert float(rows[-1][f"r2star_hz__{'ctx_lh_region39'}__mean"]) == 50
