"""Group level: all sessions of a derivatives dataset in one table and on one page.

Tables and records are read of every session, so that thousands of sessions take seconds. Images are read of
the few sessions whose maps the page shows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chisep.errors import InputError
from chisep.io.files import write_json, write_text
from chisep.io.tsv import write_table
from chisep.progress import Progress
from chisep.report.group import render_group
from chisep.report.group_outliers import Column, Values, find_outliers, outlier_rule
from chisep.report.group_page import group_page
from chisep.report.group_participants import read_participants
from chisep.report.group_previews import MOST_SESSIONS, previews
from chisep.report.group_sessions import (
    COSTS,
    NUMBERS,
    QUALITY,
    SessionSummary,
    has_records,
    read_session,
    session_names,
)
from chisep.report.group_statistics import STATISTICS_FILES, StatisticsTable, statistics_tables

_TEXTS = {
    "participant_id": "Participant",
    "session_id": "Session of the participant",
    "name": "Start of the names of all files of the session",
    "status": "done: all stages to the report; failed: an error stopped the last run; never ran; unfinished: "
    "none of these",
    "error": "What stopped it",
    "unconverged_stages": "Stages whose iteration ended before it reached its tolerance",
    "warning_count": "Number of warnings",
    "warnings": "Warnings, each with its stage",
    "outlier_count": "Number of columns in which this session is an outlier",
    "outliers": "Names of these columns",
}


_UNIT_OF_ENDING = {"ppb": "ppb", "hz": "1/s"}


@dataclass(frozen=True)
class GroupResult:
    """Files of the group level.

    Parameters
    ----------
    table, dictionary, page
        group.tsv, group.json and group.html.
    sessions
        Number of sessions.
    status
        Status → number of sessions.
    """

    table: Path
    dictionary: Path
    page: Path
    sessions: int
    status: Mapping[str, int]


# Long because the docstring states the whole contract.
def make_group(
    out: Path,
    progress: Progress | None = None,
    *,
    expected: Sequence[str] = (),
    only_expected: bool = False,
    participants: Path | None = None,
) -> GroupResult:
    """Summarise all sessions of a derivatives dataset in group.tsv, group.json and group.html.

    Where participants.tsv tells groups or ages, or sessions repeat, regions are compared in tables of their
    own: group_comparison.tsv, group_age.tsv, group_change.tsv and group_changes.tsv, each with a JSON file.

    Parameters
    ----------
    out
        Derivatives dataset of `chisep run`.
    expected
        Names of the sessions that the raw dataset has; each gets a row, though it may never have run.
    only_expected
        Whether sessions that are not expected are left out.
    participants
        participants.tsv of the raw dataset; None without one.
    progress
        Called with the session that is read.

    Returns
    -------
    GroupResult
        Files written; equal derivatives give equal files.

    Raises
    ------
    InputError
        If no session was processed there.
    OutputError
        If it cannot be written.
    """
    processed = session_names(out)
    known = set(expected)
    if known:  # an error of a name that the raw dataset does not have any more says nothing
        processed = [name for name in processed if name in known or has_records(out, name)]
    names = sorted(known.union(name for name in processed if not only_expected))
    if not set(names) & set(processed):
        raise InputError(
            out,
            found="no session that was processed",
            expected="a derivatives dataset written by `chisep run BIDS OUT participant`",
            fix="Run the participant level first, or check the path.",
        )
    sessions: list[SessionSummary] = []
    columns: dict[str, int] = {}
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for done, name in enumerate(names):
        if progress:
            progress(name, done, len(names))
        session = read_session(out, name)
        places = [columns.setdefault(column, len(columns)) for column in session.regions]
        rows.append((np.array(places, dtype=np.intp), np.array([*session.regions.values()], np.float32)))
        session.regions = {}
        sessions.append(session)
    values = np.full((len(names), len(columns)), np.nan, dtype=np.float32)
    for row, (at, numbers) in zip(values, rows, strict=True):
        row[at] = numbers
    if progress:
        progress("table and page", len(names), len(names))
    quality = {key: np.array([s.numbers.get(key, math.nan) for s in sessions]) for key in NUMBERS}
    apart = find_outliers(sessions, quality, columns, values)
    result = GroupResult(
        out / "group.tsv",
        out / "group.json",
        out / "group.html",
        len(names),
        dict(Counter(session.status for session in sessions)),
    )
    _write_table(result.table, sessions, quality, columns, values, apart)
    write_json(result.dictionary, _dictionary(columns))
    facts, problems = read_participants(participants) if participants else ({}, [])
    statistics = statistics_tables(sessions, columns, values, facts)
    _write_statistics(out, statistics)
    page = group_page(
        sessions,
        quality,
        columns,
        values,
        apart,
        statistics=statistics,
        shown_maps=previews(out, _previewed(sessions, apart)),
        problems=problems,
    )
    write_text(result.page, render_group(page))
    return result


def _previewed(sessions: Sequence[SessionSummary], apart: Sequence[Sequence[str]]) -> list[str]:
    """Sessions whose maps are in the page: those with most outliers are chosen first."""
    done = [place for place, session in enumerate(sessions) if session.status == "done"]
    chosen = sorted(done, key=lambda place: (-len(apart[place]), place))[:MOST_SESSIONS]
    return [sessions[place].name for place in sorted(chosen)]


def _write_statistics(out: Path, tables: Sequence[StatisticsTable]) -> None:
    """Write each analysis as a table with its dictionary; those of an earlier call that are not made go."""
    for name in STATISTICS_FILES:
        for ending in ("tsv", "json"):
            (out / f"{name}.{ending}").unlink(missing_ok=True)
    for table in tables:
        write_table(out / f"{table.name}.tsv", [*table.columns], table.rows)
        dictionary = {name: {"Description": text} for name, text in table.columns.items()}
        write_json(out / f"{table.name}.json", dictionary)


def _write_table(
    path: Path,
    sessions: Sequence[SessionSummary],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> None:
    def lines() -> Iterable[Iterable[Any]]:
        for place, session in enumerate(sessions):
            texts = {
                "participant_id": session.entity("sub"),
                "session_id": session.entity("ses"),
                "name": session.name,
                "status": session.status,
                "error": session.error or None,
                "unconverged_stages": ", ".join(session.unconverged) or None,
                "warning_count": len(session.warnings),
                "warnings": " | ".join(session.warnings) or None,
                "outlier_count": len(apart[place]),
                "outliers": " ".join(apart[place]) or None,
            }
            yield [
                *texts.values(),
                *(float(quality[key][place]) for key in NUMBERS),
                *values[place].tolist(),
            ]

    write_table(path, [*_TEXTS, *NUMBERS, *columns], lines())


def _dictionary(columns: Iterable[str]) -> dict[str, Any]:
    """Column descriptions for group.json."""
    content: dict[str, Any] = {name: {"Description": text} for name, text in _TEXTS.items()}
    content["status"]["Levels"] = {
        "done": "all stages to the report",
        "failed": "an error stopped its last run; numbers of earlier runs are left out",
        "unfinished": "stages are missing or were made again after the report",
        "never ran": "it is in the raw dataset, but no stage of it was finished and no error was noted",
    }
    content["outliers"]["Description"] += ". " + outlier_rule()
    described = {key: (figure.description, figure.unit) for key, figure in QUALITY.items()} | COSTS
    for name, (text, unit) in described.items():
        content[name] = {"Description": text} | ({"Units": unit} if unit else {})
    for name in columns:
        of_map, region, *statistic = name.split("__")
        if not statistic:
            content[name] = {"Description": f"Volume of {region} within the brain mask", "Units": "mL"}
            continue
        what = {"sd": "Standard deviation", "sigma": "Mean noise (standard deviation) of a voxel"}.get(
            statistic[0], statistic[0].capitalize()
        )
        unit = _UNIT_OF_ENDING.get(of_map.rsplit("_", 1)[-1], "")
        content[name] = {"Description": f"{what} of {of_map} in {region}"} | ({"Units": unit} if unit else {})
    return content
