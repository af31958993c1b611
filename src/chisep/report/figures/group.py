"""Distribution of quantities over the sessions of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, bare

_MOST_DOTS, _MOST_NAMES = 60, 3


@dataclass(frozen=True, eq=False)
class Spread:
    """Values of one quantity in the sessions of a group.

    Parameters
    ----------
    name
        Name of the quantity.
    values
        One value per session that has it.
    outliers
        Session and value of the outliers.
    """

    name: str
    values: NDArray[Any]
    outliers: Sequence[tuple[str, float]] = ()


def spreads(rows: Sequence[Spread], *, label: str) -> Figure:
    """Percentiles of quantities of one unit over sessions, one row each, with named outliers.

    Parameters
    ----------
    rows
        The quantities, from top to bottom.
    label
        Text at the horizontal axis.
    """
    figure = Figure((WIDTH_INCH, 1.0 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        low, first, middle, third, high = np.percentile(row.values, (5, 25, 50, 75, 95))
        axes.plot((low, high), (place, place), color=SERIES_COLOURS[2], linewidth=0.8)
        axes.plot((first, third), (place, place), color=SERIES_COLOURS[1], linewidth=5, alpha=0.45)
        axes.plot(middle, place, marker="|", color=SERIES_COLOURS[1], markersize=9)
        if len(row.values) <= _MOST_DOTS:
            axes.plot(row.values, [place] * len(row.values), ".", color=SERIES_COLOURS[1], markersize=3)
        for number, (name, value) in enumerate(sorted(row.outliers, key=lambda one: one[1])):
            axes.plot(value, place, "D", color=SERIES_COLOURS[0], markersize=5)
            if number < _MOST_NAMES:
                axes.annotate(
                    name,
                    (value, place),
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=7,
                    color=SERIES_COLOURS[0],
                )
    axes.set_yticks(range(len(rows)), labels=[row.name for row in rows], fontsize=8)
    axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    bare(axes)
    return figure
