"""The page of a group: its sessions with their reports, what lies apart, and what was warned of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chisep.report.subject import Panel, rendered


@dataclass(frozen=True)
class SessionLine:
    """One session in the table of a group's page.

    Parameters
    ----------
    name
        Of the session.
    report
        Address of its page, relative to the group's; None if there is none.
    status
        done, unfinished or failed.
    cells
        Texts of the columns that the page names.
    outliers
        What lies apart in this session.
    note
        Why it failed, or what it lacks.
    """

    name: str
    report: str | None
    status: str
    cells: Sequence[str]
    outliers: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class GroupReport:
    """What a group's page shows.

    Parameters
    ----------
    summary
        The few facts to see first: name and value.
    header
        Names of the columns that the cells of sessions belong to.
    sessions
        One line a session.
    outlier_rule
        How outliers are found, or why none were looked for.
    warnings
        Text, and in how many sessions it was said; the most frequent first.
    panels
        Figures.
    version
        Of chisep.
    """

    summary: Sequence[tuple[str, str]]
    header: Sequence[str]
    sessions: Sequence[SessionLine]
    outlier_rule: str
    warnings: Sequence[tuple[str, int]]
    panels: Sequence[Panel]
    version: str


def render_group(report: GroupReport) -> str:
    """Make the page: one HTML document, complete in itself; every text of the report is escaped.

    Parameters
    ----------
    report
        What to show.
    """
    return rendered("group.html.j2", report=report)
