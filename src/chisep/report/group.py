"""Group page: sessions with links to their reports, outliers and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chisep.report.pages import rendered
from chisep.report.subject import Panel


@dataclass(frozen=True)
class SessionLine:
    """One session in the table of a group's page.

    Parameters
    ----------
    name
        Name of the session.
    report
        Link to its report, relative to the group page; None if there is none.
    status
        done, unfinished or failed.
    cells
        Texts of the columns in `GroupReport.header`.
    outliers
        Names of the columns in which it is an outlier.
    note
        Error of a failed session.
    """

    name: str
    report: str | None
    status: str
    cells: Sequence[str]
    outliers: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class GroupReport:
    """Content of the group page.

    Parameters
    ----------
    summary
        Main facts: name and value.
    header
        Names of the columns of `SessionLine.cells`.
    sessions
        One line per session.
    outlier_rule
        Definition of an outlier.
    warnings
        Text and number of sessions; the most frequent first.
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
    """Render the page as one self-contained HTML document; every text is escaped.

    Parameters
    ----------
    report
        Content of the page.
    """
    return rendered("group.html.j2", report=report)
