"""Content of the group page: sessions, warnings, and the distribution of region values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

import chisep
from chisep.io.tsv import MISSING, cell
from chisep.report import figures
from chisep.report.group import GroupReport, SessionLine
from chisep.report.group_outliers import Column, Values, outlier_rule
from chisep.report.group_previews import Previews
from chisep.report.group_sessions import SessionSummary
from chisep.report.group_statistics import StatisticsTable
from chisep.report.subject import Panel

_MOST_ROWS_SHOWN = 60


_SHOWN = {
    "brain_volume_ml": "brain (mL)",
    "residual_phase_rad": "phase residual (rad)",
    "field_noise_ppb": "field noise (ppb)",
    "registration_shift_mm": "motion to spin echo (mm)",
    "spin_echo_coverage": "spin-echo coverage",
    "r2prime_noise_hz": "noise of R2′ (1/s)",
}
"""Quality measures in the table of the page, with their headings."""
_OPEN = ("chi_pos_ppb", "chi_neg_ppb", "qsm_ppb")
"""Maps whose figures are open at first; the others are folded."""
_MAP_NAMES = {
    "chi_pos_ppb": "χ_pos (ppb)",
    "chi_neg_ppb": "χ_neg (ppb)",
    "chi_total_ppb": "χ (ppb)",
    "qsm_ppb": "QSM (ppb)",
    "r2star_hz": "R2* (1/s)",
    "r2_hz": "R2 (1/s)",
    "r2prime_hz": "R2′ (1/s)",
}


def group_page(
    sessions: Sequence[SessionSummary],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
    *,
    statistics: Sequence[StatisticsTable] = (),
    shown_maps: Previews | None = None,
    problems: Sequence[str] = (),
) -> GroupReport:
    """Content of the group page."""
    thumbnails = shown_maps.thumbnails if shown_maps else {}
    status = Counter(session.status for session in sessions)
    lines = [
        SessionLine(
            name=session.name,
            # A report is not current if its session failed since or its maps were made again.
            report=f"{session.name}.html" if session.status == "done" else None,
            status=session.status,
            cells=[
                *(cell(float(quality[key][place])) for key in _SHOWN),
                ", ".join(session.unconverged) or "none",
                str(len(session.warnings)),
            ],
            outliers=[_readable(name) for name in apart[place]],
            note=session.error,
            thumbnail=thumbnails.get(session.name),
        )
        for place, session in enumerate(sessions)
    ]
    said = Counter(text for session in sessions for text in session.warnings)
    seconds = quality["seconds"][np.isfinite(quality["seconds"])]
    return GroupReport(
        summary=[
            *((name, str(status.get(name, 0))) for name in ("done", "failed", "unfinished", "never ran")),
            ("sessions with outliers", str(sum(bool(found) for found in apart))),
            ("sessions with warnings", str(sum(bool(session.warnings) for session in sessions))),
            ("median time of a session", f"{np.median(seconds):.0f} s" if seconds.size else MISSING),
        ],
        header=[*_SHOWN.values(), "unconverged", "warnings"],
        sessions=lines,
        outlier_rule=outlier_rule(),
        warnings=[*((text, 1) for text in problems), *said.most_common()],
        panels=_panels(sessions, columns, values, apart),
        version=chisep.__version__,
        statistics=statistics,
        viewer=shown_maps.viewer if shown_maps else None,
        thumbnails_note=_thumbnails_note(len(thumbnails), len(sessions)),
    )


def _thumbnails_note(shown: int, sessions: int) -> str:
    """Say what thumbnails show, and whether all sessions have one."""
    if not shown:
        return ""
    text = (
        "Pictures: axial planes of χ_pos, χ_neg (0 to 100 ppb) and QSM (−100 to 100 ppb), as far as there "
        "are maps; the patient's right is at the left."
    )
    if shown < sessions:
        text += f" {shown} of {sessions} sessions have pictures and are in the viewer, outliers first."
    return text


def _readable(name: str) -> str:
    """Name of a column for readers: a quality measure, or a map in a region."""
    of_map, *rest = name.split("__")
    if not rest:
        return _SHOWN.get(name, name)
    return f"{_MAP_NAMES.get(of_map, of_map)} in {rest[0].replace('_', ' ')}"


def _panels(
    sessions: Sequence[SessionSummary],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> list[Panel]:
    """One figure per map: region medians over sessions, the largest first."""
    of_map: dict[str, list[figures.Spread]] = {}
    named: dict[str, list[int]] = {}
    for place, found in enumerate(apart):
        for name in found:
            named.setdefault(name, []).append(place)
    for name, place in columns.items():
        parts = name.split("__")
        column = values[:, place].astype(np.float64)
        known = column[np.isfinite(column)]
        if len(parts) == 3 and parts[2] == "median" and known.size:
            outliers = [(sessions[row].name, float(column[row])) for row in named.get(name, ())]
            of_map.setdefault(parts[0], []).append(
                figures.Spread(parts[1].replace("_", " "), known, outliers)
            )
    panels = []
    for map_name, spreads in of_map.items():
        spreads.sort(key=lambda one: (-len(one.values), -float(np.median(one.values)), one.name))
        shown = spreads[:_MOST_ROWS_SHOWN]
        title = _MAP_NAMES.get(map_name, map_name)
        left_out = f" {len(spreads) - len(shown)} more regions are in group.tsv." if shown != spreads else ""
        panels.append(
            Panel.of_figure(
                f"{title} in regions",
                "Medians of regions over sessions: a line from the 5th to the 95th percentile, a bar between "
                "the quartiles, a stroke at the median. In small groups every session is a small dot. "
                "Outliers are diamonds, up to three a region named." + left_out,
                figures.spreads(shown, label=title),
                alt=f"Spread of {title} over sessions in every region.",
                technical=map_name not in _OPEN,
            )
        )
    return panels
