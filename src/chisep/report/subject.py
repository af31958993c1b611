"""Report of one session: viewer, figures, tables, parameters and warnings on one HTML page.

The page is self-contained: it includes its style, images and scripts, and asks no host for anything. Equal
reports give equal pages; the page adds no date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from chisep.io.files import write_text
from chisep.io.paths import is_file
from chisep.preprocessing.checks import in_words
from chisep.report.figures import data_uri
from chisep.report.pages import TABLE_SCRIPTS, VIEWER_SCRIPTS, rendered
from chisep.report.viewer import EncodedViewer

_START_OF_PAGE = '<div class="frame">'
_START_OF_MARK = '<section class="warnings" role="alert" style="grid-column: 1 / -1">'


@dataclass(frozen=True)
class Table:
    """Table of texts; the first column names the rows.

    Parameters
    ----------
    header
        One text per column.
    rows
        One text per column in every row.
    groups
        Headings above the header, each with the number of columns it spans; together they span all.
    best
        (row, column) of the cells to emphasise.

    Raises
    ------
    ValueError
        If a row is not as long as the header, or the groups do not span it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    best: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        columns = len(self.header)
        if any(len(row) != columns for row in self.rows):
            raise ValueError(f"every row needs {columns} cells, one per column of the header")
        if self.groups and sum(span for _, span in self.groups) != columns:
            raise ValueError(f"the groups together need to span {columns} columns")


@dataclass(frozen=True)
class Panel:
    """One figure or table of a report, with heading and caption.

    Parameters
    ----------
    title
        Heading, also in the table of contents.
    caption
        Caption: what to look for.
    image
        Data URI of a figure.
    alt
        Alternative text of the image; required with an image.
    table
        Table instead of a figure.
    in_viewer
        Whether the viewer shows the same: the figure is then for print and for browsers without scripts.
    technical
        Whether it is a detail of the computation, shown with the parameters.

    Raises
    ------
    ValueError
        If there is not exactly one of image and table, or the image is no data URI or has no `alt`.
    """

    title: str
    caption: str
    image: str | None = None
    alt: str = ""
    table: Table | None = None
    in_viewer: bool = False
    technical: bool = False

    def __post_init__(self) -> None:
        if (self.image is None) == (self.table is None):
            raise ValueError("a panel has either an image or a table")
        if self.image is not None and not (self.image.startswith("data:image/") and self.alt):
            raise ValueError("the image of a panel is a data URI (data:image/…) with an alternative text")

    @classmethod
    def of_figure(
        cls,
        title: str,
        caption: str,
        figure: Figure,
        *,
        alt: str,
        in_viewer: bool = False,
        technical: bool = False,
    ) -> Panel:
        """Make a panel from a Matplotlib figure."""
        image = data_uri(figure)
        return cls(title, caption, image=image, alt=alt, in_viewer=in_viewer, technical=technical)


@dataclass(frozen=True)
class RegionRow:
    """Mean and standard deviation of the maps in a region, in ppb.

    Parameters
    ----------
    region
        Its name.
    voxels
        Number of voxels.
    chi_pos_ppb, chi_neg_ppb, chi_ppb
        (mean, standard deviation) of each map. Where sources were not separated, those of χ_pos and χ_neg are
        None, and χ is the QSM.
    """

    region: str
    voxels: int
    chi_pos_ppb: tuple[float, float] | None
    chi_neg_ppb: tuple[float, float] | None
    chi_ppb: tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Metrics of a map against the ground truth: NRMSE in %, PSNR in dB, SSIM and xSIM."""

    nrmse_percent: float
    psnr_db: float
    ssim: float
    xsim: float


@dataclass(frozen=True)
class MethodScores:
    """Metrics of both source maps of one method.

    Parameters
    ----------
    method
        Its name.
    chi_pos, chi_neg
        Metrics of χ_pos and χ_neg.
    """

    method: str
    chi_pos: Scores
    chi_neg: Scores


@dataclass(frozen=True)
class QualityRow:
    """One quality check of a scan.

    Parameters
    ----------
    label
        The quantity in words.
    value, good, usable
        As measured, and its limits, with their unit.
    level
        green, amber or red.
    """

    label: str
    value: str
    good: str
    usable: str
    level: str

    @classmethod
    def of_fact(cls, fact: Mapping[str, Any]) -> QualityRow:
        """Read an entry of `Checks` in a stage record."""
        value, good, usable = in_words(fact["Value"], fact["Amber"], fact["Red"], fact["Unit"])
        return cls(fact["Label"], value, good, usable, fact["Level"])


@dataclass(frozen=True)
class SubjectReport:
    """Content of the report of one session.

    Parameters
    ----------
    title
        Heading of the page.
    subject, session
        BIDS labels, without `sub-` and `ses-`.
    summary
        Main facts: name and value.
    warnings
        Assumptions, repairs and omissions.
    quality
        Quality checks of the stages.
    panels
        Figures and tables in the order of the stages.
    regions
        Region values; empty without labels.
    parameters
        Parameters of every stage, possibly nested.
    versions
        Program → version.
    viewer
        Maps to look into; None for a page without a viewer.
    """

    title: str
    subject: str
    session: str | None = None
    summary: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    quality: Sequence[QualityRow] = ()
    panels: Sequence[Panel] = ()
    regions: Sequence[RegionRow] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    viewer: EncodedViewer | None = None


def method_table(scores: Sequence[MethodScores]) -> Table:
    """Table of methods against the ground truth, the best of every column emphasised.

    Parameters
    ----------
    scores
        One entry per method.
    """
    # Format, and the sign that makes larger better.
    columns = (("nrmse_percent", ".1f", -1), ("psnr_db", ".2f", 1), ("ssim", ".4f", 1), ("xsim", ".4f", 1))
    cells = [[entry.method] for entry in scores]
    best = set()
    for source in ("chi_pos", "chi_neg"):
        for name, form, sign in columns:
            texts = [format(getattr(getattr(entry, source), name), form) for entry in scores]
            # Compared as printed: of two equal texts, both are the best.
            top = max((sign * float(text) for text in texts), default=0.0)
            for row, text in enumerate(texts):
                cells[row].append(text)
                if sign * float(text) == top:
                    best.add((row, len(cells[row]) - 1))
    measures = ("NRMSE % ↓", "PSNR dB ↑", "SSIM ↑", "xSIM ↑")
    return Table(
        header=("method", *measures, *measures),
        rows=tuple(tuple(row) for row in cells),
        groups=(("", 1), ("χ_pos", len(measures)), ("χ_neg", len(measures))),
        best=frozenset(best) if len(scores) > 1 else frozenset(),
    )


def region_table(regions: Sequence[RegionRow]) -> Table:
    """Table of regions with mean ± standard deviation of each map in ppb.

    Parameters
    ----------
    regions
        One entry per region.
    """
    separated = not regions or regions[0].chi_pos_ppb is not None
    maps = ("χ_pos (ppb)", "χ_neg (ppb)", "χ (ppb)") if separated else ("QSM (ppb)",)
    return Table(
        header=("region", "voxels", *maps),
        rows=tuple(
            (
                row.region,
                str(row.voxels),
                *(
                    f"{_number(pair[0])} ± {pair[1]:.1f}"
                    for pair in (row.chi_pos_ppb, row.chi_neg_ppb, row.chi_ppb)
                    if pair is not None
                ),
            )
            for row in regions
        ),
    )


def render(report: SubjectReport) -> str:
    """Render the report as one self-contained HTML document; every text is escaped.

    Parameters
    ----------
    report
        Content of the page.
    """
    # Above a viewer, tables come first: they say what to look for in it.
    first = [panel for panel in report.panels if panel.table and report.viewer]
    rest = [panel for panel in report.panels if panel not in first]
    return rendered(
        "subject.html.j2",
        report=report,
        tables=first,
        panels=sorted(rest, key=lambda panel: panel.technical),
        region_table=region_table(report.regions),
        parameters={
            stage: list(_leaves(values, "" if isinstance(values, Mapping) else stage))
            for stage, values in report.parameters.items()
        },
        scripts=(
            *(TABLE_SCRIPTS if _has_sortable_table(report) else ()),
            *(VIEWER_SCRIPTS if report.viewer else ()),
        ),
    )


def _has_sortable_table(report: SubjectReport) -> bool:
    return bool(report.regions) or any(panel.table and not panel.table.groups for panel in report.panels)


def mark_as_earlier(path: Path, error: str) -> None:
    """Say on top of a page that is there that it is of an earlier run, since the last one failed.

    The next run that succeeds makes the page anew: its checksum is not that of the stage's record any more.

    Parameters
    ----------
    path
        The page; nothing is done if there is none.
    error
        What stopped the last run.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    if not is_file(path):
        return
    page = path.read_text(encoding="utf-8", errors="replace")
    before, _, rest = _without_mark(page).partition(_START_OF_PAGE)
    if not rest:  # no page of ours
        return
    text = escape(f"This page is of an earlier run. The last run of this session failed: {error}")
    mark = f"{_START_OF_MARK}<strong>{text}</strong></section>"
    write_text(path, f"{before}{_START_OF_PAGE}\n{mark}{rest}")


def _without_mark(page: str) -> str:
    """Take away the mark of an earlier failure."""
    before, found, rest = page.partition(f"\n{_START_OF_MARK}")
    return before + rest.partition("</section>")[2] if found else page


def write_report(path: Path, report: SubjectReport) -> Path:
    """Write the report; the file is complete or absent.

    Parameters
    ----------
    path
        The HTML file.
    report
        Content of the page.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    return write_text(path, render(report))


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Texts of all values below a parameter, with their names joined by " › "."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{name} › {key}" if name else str(key))
    else:
        yield name, _text(value)


def _text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(entry) for entry in value)
    return str(value)


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")
