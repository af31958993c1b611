"""Comparisons over a group: against known differences, slopes and changes, and on the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from chisep.io import nifti
from chisep.pipeline.outputs import OUTPUTS
from chisep.report.group_participants import read_participants
from chisep.report.group_sessions import SessionSummary
from chisep.report.group_statistics import STATISTICS_FILES, statistics_tables
from chisep.report.group_table import make_group
from tests.report.browser import opened
from tests.report.test_group_table import write_session

COLUMNS = {
    "chi_pos_ppb__putamen__mean": 0,
    "chi_pos_ppb__putamen__median": 1,
    "chi_pos_ppb__nucleus__mean": 2,
}


def group(visits: int = 1) -> tuple[list[SessionSummary], np.ndarray, dict[str, dict[str, str]]]:
    """Twelve participants: iron of the putamen grows by 0.5 ppb a year; patients have 20 ppb more."""
    rng = np.random.default_rng(3)
    sessions, rows, facts = [], [], {}
    for number in range(12):
        patient, age = number % 2, 30 + 4 * number
        facts[f"sub-{number:02}"] = {"group": ("control", "patient")[patient], "age": str(age)}
        for visit in range(1, visits + 1):
            name = f"sub-{number:02}" + (f"_ses-{visit}" if visits > 1 else "")
            sessions.append(SessionSummary(name, "done"))
            putamen = 50 + 0.5 * age + 20 * patient + 3 * (visit - 1) + rng.normal()
            rows.append([putamen, -1.0, 40 + rng.normal()])
    return sessions, np.array(rows, np.float32), facts


def table(tables, name: str) -> dict[str, dict[str, object]]:
    """Rows of a table by region."""
    (found,) = (one for one in tables if one.name == name)
    assert all(len(row) == len(found.columns) for row in found.rows)
    return {row[1]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def test_groups_differ_by_what_they_differ():
    sessions, values, facts = group()
    rows = table(statistics_tables(sessions, COLUMNS, values, facts), "group_comparison")
    assert set(rows) == {"putamen", "nucleus"}, "means alone"
    putamen = rows["putamen"]
    controls, patients = values[::2, 0].astype(float), values[1::2, 0].astype(float)
    assert (putamen["group_1"], putamen["group_2"]) == ("control", "patient")
    assert (putamen["n_1"], putamen["n_2"]) == (6, 6)
    assert putamen["difference"] == pytest.approx(controls.mean() - patients.mean())
    assert putamen["low"] < -22 < putamen["high"], "20 ppb, and 4 years of 0.5 ppb"
    # Welch's test by its formula.
    a, b = controls.var(ddof=1) / 6, patients.var(ddof=1) / 6
    t = (controls.mean() - patients.mean()) / np.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / 5 + b**2 / 5)
    assert putamen["p"] == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    assert putamen["q"] == pytest.approx(min(2 * putamen["p"], rows["nucleus"]["p"]))
    assert rows["nucleus"]["p"] > 0.01


def test_slope_with_age():
    sessions, values, facts = group()
    values[:, 0] -= 20 * (np.arange(12) % 2)
    rows = table(statistics_tables(sessions, COLUMNS, values, facts), "group_age")
    assert rows["putamen"]["low"] < 5 < rows["putamen"]["high"]
    assert rows["putamen"]["slope_per_10_years"] == pytest.approx(5, abs=0.6)
    assert rows["putamen"]["r"] > 0.95
    assert rows["nucleus"]["low"] < 0 < rows["nucleus"]["high"]


def test_change_between_sessions():
    sessions, values, facts = group(visits=3)
    tables = statistics_tables(sessions, COLUMNS, values, facts)
    rows = table(tables, "group_change")
    assert rows["putamen"]["n"] == 12
    assert rows["putamen"]["low"] < 6 < rows["putamen"]["high"], "3 ppb a visit, first to third"
    (each,) = (one for one in tables if one.name == "group_changes")
    first = dict(zip(each.columns, each.rows[0], strict=True))
    assert (first["first_session"], first["last_session"]) == ("sub-00_ses-1", "sub-00_ses-3")
    assert first["change"] == pytest.approx(float(values[2, 0] - values[0, 0]), rel=1e-5)
    # Participants count once where they are compared.
    assert table(tables, "group_comparison")["putamen"]["n_1"] == 6


def test_too_few_participants_are_not_compared():
    sessions, values, facts = group()
    assert statistics_tables(sessions, COLUMNS, values, {}) == []
    few = {name: facts[name] for name in list(facts)[:4]}
    assert statistics_tables(sessions, COLUMNS, values, few) == []
    facts = {name: {"age": "n/a", "group": "all"} for name in facts}
    assert statistics_tables(sessions, COLUMNS, values, facts) == []


def test_participants_are_read_without_what_identifies_them(tmp_path):
    path = tmp_path / "participants.tsv"
    assert read_participants(path) == ({}, [])
    path.write_text("participant_id\tname\tage\tsex\nsub-01\tJane Roe\t33\tn/a\nsub-02\tJohn\t\tM\n")
    assert read_participants(path) == ({"sub-01": {"age": "33"}, "sub-02": {"sex": "M"}}, [])
    path.write_bytes(b"participant_id\tage\nsub-01\t\xff\n")
    facts, problems = read_participants(path)
    assert facts == {}
    assert "cannot be read" in problems[0]
    path.write_text("subject\tage\nsub-01\t3\n")
    assert "participant_id" in read_participants(path)[1][0]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Nine sessions with regions, the last an outlier; two of them with maps."""
    folder = tmp_path_factory.mktemp("group")
    for number in range(8):
        write_session(folder, f"sub-{number:02}")
    write_session(folder, "sub-08", shift=400.0)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    shape = (20, 24, 18)
    mask = np.zeros(shape, np.uint8)
    mask[3:17, 3:21, 3:15] = 1
    for name, value in (("sub-00", 0.02), ("sub-08", 0.08)):
        maps = {"chi_pos": value * mask, "chi_neg": 0.01 * mask, "qsm": (value - 0.01) * mask}
        for key, values in maps.items():
            path = folder / name / "anat" / f"{name}_{OUTPUTS[key].name}.nii.gz"
            nifti.save(path, values.astype(np.float32), affine)
        nifti.save(folder / name / "anat" / f"{name}_{OUTPUTS['mask'].name}.nii.gz", mask, affine)
    return folder


@pytest.fixture(scope="module")
def participants(out) -> Path:
    path = out / "people.tsv"
    lines = [f"sub-{n:02}\t{30 + n}\t{('control', 'patient')[n % 2]}\n" for n in range(9)]
    path.write_text("participant_id\tage\tgroup\n" + "".join(lines))
    return path


def test_tables_are_written_and_go_with_their_reason(out, participants):
    make_group(out, participants=participants)
    for name in ("group_comparison", "group_age"):
        with (out / f"{name}.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert {row["region"] for row in rows} == {"left_putamen", "right_putamen"}
        assert list(json.loads((out / f"{name}.json").read_text())) == list(rows[0])
    make_group(out)
    assert not [name for name in STATISTICS_FILES if (out / f"{name}.tsv").exists()]


@pytest.mark.slow
def test_page_sorts_filters_and_compares_subjects_in_chromium(out, participants):
    path = make_group(out, participants=participants).page
    with opened(path) as page:
        table = page.locator("#sessions table")
        names = lambda: [text.split()[0] for text in table.locator("tbody tr:visible th").all_text_contents()]  # noqa: E731
        assert names() == [f"sub-{n:02}" for n in range(9)]
        assert page.locator("img.thumbnail").count() == 2
        heading = table.locator("thead button", has_text="brain (mL)")
        heading.click()
        heading.click()
        assert names()[0] == "sub-08", "the largest brain"
        assert heading.locator("xpath=..").get_attribute("aria-sort") == "descending"
        search = page.locator("#sessions input[type=search]")
        search.fill("SUB-08 putamen")
        assert names() == ["sub-08"], "the outlier, by the name of its region"
        search.fill("sub-08 caudate")
        assert names() == []
        search.fill("")
        assert len(names()) == 9
        assert "χ_pos (ppb) in left putamen" in table.text_content()
        # The viewer switches between subjects.
        root = page.locator("#viewer-root")
        page.wait_for_selector("[data-loaded='sub-00']")
        assert root.locator("td[data-value=chi_pos]").text_content() == "20 ppb"
        root.locator("[data-control=scan]").select_option("1")
        page.wait_for_selector("[data-loaded='sub-08']")
        assert root.locator("td[data-value=chi_pos]").text_content() == "80 ppb"
        assert page.locator("h2", has_text="Change with age").count() == 1
