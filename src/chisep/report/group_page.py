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
from chisep.report.group_sessions import SessionSummary
from chisep.report.subject import Panel

_MOST_ROWS_SHOWN = 60


_SHOWN = (
    "brain_volume_ml",
    "residual_phase_rad",
    "field_noise_ppb",
    "registration_shift_mm",
    "spin_echo_coverage",
    "r2prime_noise_hz",
)
"""Quality measures in the table of the page."""


def group_page(
    sessions: Sequence[SessionSummary],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> GroupReport:
    """Content of the group page."""
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
            outliers=apart[place],
            note=session.error,
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
        header=[*_SHOWN, "unconverged", "warnings"],
        sessions=lines,
        outlier_rule=outlier_rule(),
        warnings=said.most_common(),
        panels=_panels(sessions, columns, values, apart),
        version=chisep.__version__,
    )


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
            of_map.setdefault(parts[0], []).append(figures.Spread(parts[1], known, outliers))
    panels = []
    for map_name, spreads in of_map.items():
        spreads.sort(key=lambda one: (-len(one.values), -float(np.median(one.values)), one.name))
        shown = spreads[:_MOST_ROWS_SHOWN]
        left_out = f" {len(spreads) - len(shown)} more regions are in group.tsv." if shown != spreads else ""
        panels.append(
            Panel.of_figure(
                f"{map_name} in regions",
                "Medians of regions over sessions: a line from the 5th to the 95th percentile, a bar between "
                "the quartiles, a stroke at the median; outliers are dots, up to three a region named."
                + left_out,
                figures.spreads(shown, label=map_name),
                alt=f"Spread of {map_name} over sessions in every region.",
            )
        )
    return panels
