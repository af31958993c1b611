"""Outliers among the sessions of a group, by robust z-scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from chisep.physics.robust import MAD_TO_SD
from chisep.report.group_sessions import QUALITY, SessionSummary

Column = Float[np.ndarray, " session"]
"""One number per session, NaN where it is missing."""


Values = Float[np.ndarray, "session column"]
"""Numbers of all sessions, NaN where one is missing."""


FEWEST_FOR_OUTLIERS = 8
"""With fewer sessions there are no outliers."""


OUTLIER_SCORE = 3.5
"""A robust z-score beyond this is an outlier."""


_MEAN_DEVIATION_TO_SD = 1.2533


def robust_scores(values: Column) -> Column:
    """Robust z-scores: distance from the median in robust standard deviations; NaN stays NaN.

    The standard deviation is that of a normal distribution with the same median absolute deviation; where
    that is 0, because more than half of the values are equal, with the same mean absolute deviation
    (Iglewicz and Hoaglin 1993).

    Parameters
    ----------
    values
        One per session.
    """
    if not np.isfinite(values).any():
        return values
    away = values - np.nanmedian(values)
    spread = MAD_TO_SD * np.nanmedian(np.abs(away)) or _MEAN_DEVIATION_TO_SD * np.nanmean(np.abs(away))
    return np.asarray(away / (spread or 1.0))


def find_outliers(
    sessions: Sequence[SessionSummary],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
) -> list[list[str]]:
    """Columns in which each session is an outlier: quality measures and region medians."""
    apart: list[list[str]] = [[] for _ in sessions]

    def look(name: str, column: Column) -> None:
        if np.count_nonzero(np.isfinite(column)) < FEWEST_FOR_OUTLIERS:
            return
        for place in np.flatnonzero(np.abs(robust_scores(column)) > OUTLIER_SCORE):
            apart[place].append(name)

    for name in QUALITY:
        look(name, quality[name])
    for name, place in columns.items():
        if name.endswith("__median"):
            look(name, values[:, place].astype(np.float64))
    return apart


def outlier_rule() -> str:
    """Definition of an outlier, for readers."""
    return (
        f"An outlier is a value whose distance from the cohort's median is more than {OUTLIER_SCORE} times "
        f"{MAD_TO_SD} times the median absolute deviation; quality figures and the medians of regions are "
        f"looked at, where at least {FEWEST_FOR_OUTLIERS} sessions have a value."
    )
