"""Statistics of region values over the participants of a group: two groups, age, and change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from chisep.report.group_outliers import Values
from chisep.report.group_sessions import SessionSummary

FEWEST_PER_GROUP = 3
"""Participants that a group needs for a comparison."""
FEWEST_FOR_AGE = 5
"""Participants that a regression on age needs."""
MOST_LEVELS = 6
"""Groups of one column of participants.tsv."""

STATISTICS_FILES = ("group_comparison", "group_age", "group_change", "group_changes")
"""Names of all tables, without ending."""

_CONFIDENCE = 0.95
_STATISTIC = "mean"

Cell = str | float | int | None
"""A cell of a table; None where there is no value."""


@dataclass(frozen=True)
class StatisticsTable:
    """Results of one analysis, one row per region and map.

    Parameters
    ----------
    name
        Of its file, without ending.
    title, caption
        For readers.
    columns
        Name → description, with the unit where it has one.
    rows
        One cell per column.
    """

    name: str
    title: str
    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]


_REGION = {"map": "Name of the map, with its unit", "region": "Name of the region"}
_TEST = {
    "p": "Two-sided p value, without correction",
    "q": "p value after the correction of Benjamini and Hochberg over all rows of this table",
}


def statistics_tables(
    sessions: Sequence[SessionSummary],
    columns: Mapping[str, int],
    values: Values,
    participants: Mapping[str, Mapping[str, str]],
) -> list[StatisticsTable]:
    """Compare regions between groups of participants, with age, and over repeated sessions.

    Parameters
    ----------
    sessions
        Sessions of the group.
    columns
        Name of a region value (map__region__statistic) → its column in `values`.
    values
        Region values, shape (session, column).
    participants
        Participant → column of participants.tsv → text.

    Returns
    -------
    list of StatisticsTable
        Those for which there are enough participants.
    """
    first = _first_sessions(sessions)
    chosen: list[tuple[str, str, int]] = []
    for name, place in columns.items():
        of_map, *rest = name.split("__")
        if rest[1:] == [_STATISTIC]:
            chosen.append((of_map, rest[0], place))
    tables = [
        _compared(participants, first, chosen, values),
        _by_age(participants, first, chosen, values),
        *_changed(sessions, chosen, values),
    ]
    return [table for table in tables if table.rows]


def _first_sessions(sessions: Sequence[SessionSummary]) -> dict[str, int]:
    """Participant → row of the first session; each participant counts once."""
    first: dict[str, int] = {}
    for row, session in enumerate(sessions):
        first.setdefault(session.entity("sub"), row)
    return first


_Chosen = Sequence[tuple[str, str, int]]
"""Map, region, and column of the mean."""


def _compared(
    participants: Mapping[str, Mapping[str, str]], first: Mapping[str, int], chosen: _Chosen, values: Values
) -> StatisticsTable:
    """Welch's comparison of every two groups of the columns group, diagnosis and sex."""
    rows: list[list[Cell]] = []
    for column in ("group", "diagnosis", "sex"):
        members: dict[str, list[int]] = {}
        for name, row in first.items():
            if level := participants.get(name, {}).get(column):
                members.setdefault(level, []).append(row)
        members = {level: found for level, found in members.items() if len(found) >= FEWEST_PER_GROUP}
        if not 2 <= len(members) <= MOST_LEVELS:
            continue
        for one, other in itertools.combinations(sorted(members), 2):
            for of_map, region, place in chosen:
                a, b = (_known(values[members[level], place]) for level in (one, other))
                if min(len(a), len(b)) >= FEWEST_PER_GROUP:
                    rows.append([of_map, region, column, one, other, *_welch(a, b)])
    return StatisticsTable(
        "group_comparison",
        "Comparison of groups",
        "Means of regions in two groups of participants.tsv, the first session of each participant. "
        "Difference: first minus second group, with the 95 % confidence interval of Welch's t test.",
        _REGION
        | {
            "column": "Column of participants.tsv",
            "group_1": "First group",
            "group_2": "Second group",
            "n_1": "Participants of the first group",
            "mean_1": "Mean of the first group, in the unit of the map",
            "sd_1": "Standard deviation of the first group",
            "n_2": "Participants of the second group",
            "mean_2": "Mean of the second group",
            "sd_2": "Standard deviation of the second group",
            "difference": "mean_1 − mean_2",
            "low": "Lower end of its 95 % confidence interval (Welch)",
            "high": "Upper end",
            "hedges_g": "Difference over the pooled standard deviation, corrected for small samples",
        }
        | _TEST,
        _corrected(rows),
    )


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> list[Cell]:
    difference = float(a.mean() - b.mean())
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    small = 1 - 3 / (4 * (len(a) + len(b)) - 9)
    described = [len(a), float(a.mean()), float(a.std(ddof=1)), len(b), float(b.mean()), float(b.std(ddof=1))]
    if not pooled:
        return [*described, difference, None, None, None, None]
    errors = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    # Welch and Satterthwaite.
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (len(a) - 1) + errors[1] ** 2 / (len(b) - 1))
    low, high, p = _interval_and_p(difference, math.sqrt(sum(errors)), freedom)
    return [*described, difference, low, high, small * difference / pooled, p]


def _interval_and_p(estimate: float, error: float, freedom: float) -> tuple[float, float, float]:
    """Confidence interval and two-sided p value of Student's t distribution."""
    if not error:
        return estimate, estimate, 0.0
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * error
    return estimate - half, estimate + half, float(2 * stats.t.sf(abs(estimate) / error, freedom))


def _by_age(
    participants: Mapping[str, Mapping[str, str]], first: Mapping[str, int], chosen: _Chosen, values: Values
) -> StatisticsTable:
    """Linear regression of the means of regions on age."""
    ages = {row: age for name, row in first.items() if (age := _age(participants.get(name, {}))) is not None}
    rows: list[list[Cell]] = []
    at = np.array([*ages], dtype=np.intp)
    years = np.array([*ages.values()])
    for of_map, region, place in chosen if len(ages) >= FEWEST_FOR_AGE else ():
        column = values[at, place].astype(np.float64)
        known = np.isfinite(column)
        x, y = years[known], column[known]
        if len(y) < FEWEST_FOR_AGE or not np.ptp(x) or not np.ptp(y):
            continue
        fit = stats.linregress(x, y)
        slope = float(fit.slope)
        low, high, p = _interval_and_p(slope, float(fit.stderr), len(y) - 2)
        rows.append([of_map, region, len(y), 10 * slope, 10 * low, 10 * high, float(fit.rvalue), p])
    return StatisticsTable(
        "group_age",
        "Change with age",
        "Linear regression of the means of regions on age (participants.tsv), the first session of each "
        "participant. Slope per ten years with its 95 % confidence interval.",
        _REGION
        | {
            "n": "Participants",
            "slope_per_10_years": "Slope of the regression, in the unit of the map per ten years",
            "low": "Lower end of its 95 % confidence interval",
            "high": "Upper end",
            "r": "Pearson's correlation coefficient",
        }
        | _TEST,
        _corrected(rows),
    )


def _age(facts: Mapping[str, str]) -> float | None:
    """Age in years; BIDS has 89+ for the oldest, which is no number for a regression."""
    try:
        age = float(facts.get("age", ""))
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= 120 else None


def _changed(
    sessions: Sequence[SessionSummary], chosen: _Chosen, values: Values
) -> Iterator[StatisticsTable]:
    """Subtract the first from the last session of each participant who has two."""
    visits: dict[str, list[int]] = {}
    for row, session in enumerate(sessions):
        visits.setdefault(session.entity("sub"), []).append(row)
    pairs = {name: (rows[0], rows[-1]) for name, rows in visits.items() if len(rows) > 1}
    each: list[list[Cell]] = []
    over: list[list[Cell]] = []
    for of_map, region, place in chosen if pairs else ():
        changes, before, after = [], [], []
        for name, (first, last) in pairs.items():
            start, end = float(values[first, place]), float(values[last, place])
            if math.isfinite(start) and math.isfinite(end):
                each.append(
                    [of_map, region, name, sessions[first].name, sessions[last].name, start, end, end - start]
                )
                changes.append(end - start)
                before.append(start)
                after.append(end)
        if changes:
            over.append(
                [
                    of_map,
                    region,
                    len(changes),
                    *map(float, (np.mean(before), np.mean(after))),
                    *_paired(changes),
                ]
            )
    yield StatisticsTable(
        "group_change",
        "Change between sessions",
        "Means of regions in the last minus the first session (in the order of their names) of participants "
        "with several sessions. Interval and p value: paired t test.",
        _REGION
        | {
            "n": "Participants with both sessions",
            "first": "Mean over participants of the first session, in the unit of the map",
            "last": "Mean over participants of the last session",
            "change": "last − first",
            "sd": "Standard deviation of the change over participants",
            "low": "Lower end of the 95 % confidence interval of the change",
            "high": "Upper end",
        }
        | _TEST,
        _corrected(over),
    )
    yield StatisticsTable(
        "group_changes",
        "Changes of every participant",
        "Means of regions in the first and the last session of every participant with several sessions.",
        _REGION
        | {
            "participant_id": "Participant",
            "first_session": "Name of the first session",
            "last_session": "Name of the last session",
            "first": "Mean in the first session, in the unit of the map",
            "last": "Mean in the last session",
            "change": "last − first",
        },
        each,
    )


def _paired(changes: Sequence[float]) -> list[Cell]:
    mean = float(np.mean(changes))
    if len(changes) < FEWEST_PER_GROUP or not np.ptp(changes):
        return [mean, None, None, None, None]
    sd = float(np.std(changes, ddof=1))
    return [mean, sd, *_interval_and_p(mean, sd / math.sqrt(len(changes)), len(changes) - 1)]


def _known(column: NDArray[np.float32]) -> NDArray[np.float64]:
    return column[np.isfinite(column)].astype(np.float64)


def _corrected(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """Add q values to rows that end with their p value."""
    known = [place for place, row in enumerate(rows) if isinstance(row[-1], float) and math.isfinite(row[-1])]
    corrected = stats.false_discovery_control([rows[place][-1] for place in known]) if known else []
    q: dict[int, float] = dict(zip(known, map(float, corrected), strict=True))
    return [[*row, q.get(place)] for place, row in enumerate(rows)]
