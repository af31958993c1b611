"""Group page: sessions with links to their reports, outliers and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chisep.io.tsv import MISSING
from chisep.report.group_statistics import Cell, StatisticsTable
from chisep.report.pages import TABLE_SCRIPTS, VIEWER_SCRIPTS, rendered
from chisep.report.subject import Panel
from chisep.report.viewer import EncodedViewer

MOST_ROWS = 2000
"""Rows of a table in the page; longer ones are in their file only."""


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
    thumbnail
        Data URI of a small picture of its maps; None without one.
    """

    name: str
    report: str | None
    status: str
    cells: Sequence[str]
    outliers: Sequence[str] = ()
    note: str = ""
    thumbnail: str | None = None


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
    statistics
        Comparisons of groups, with age, and over sessions.
    viewer
        Small maps of the sessions; None without any.
    thumbnails_note
        What the thumbnails show, and which sessions have none.
    """

    summary: Sequence[tuple[str, str]]
    header: Sequence[str]
    sessions: Sequence[SessionLine]
    outlier_rule: str
    warnings: Sequence[tuple[str, int]]
    panels: Sequence[Panel]
    version: str
    statistics: Sequence[StatisticsTable] = ()
    viewer: EncodedViewer | None = None
    thumbnails_note: str = ""


def render_group(report: GroupReport) -> str:
    """Render the page as one self-contained HTML document; every text is escaped.

    Parameters
    ----------
    report
        Content of the page.
    """
    scripts = (*TABLE_SCRIPTS, *(VIEWER_SCRIPTS if report.viewer else ()))
    return rendered("group.html.j2", report=report, most_rows=MOST_ROWS, shown=_shown, scripts=scripts)


def _shown(value: Cell) -> str:
    """Text of a number in a table of the page: four digits."""
    if value is None:
        return MISSING
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("-", "−") if isinstance(value, float) else text
