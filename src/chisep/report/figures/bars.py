"""Panels of bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, bare


@dataclass(frozen=True, eq=False)
class Bars:
    """One panel of horizontal bars.

    Parameters
    ----------
    title
        Text above.
    groups
        Names of the groups of bars, from top to bottom.
    lengths
        Name in the legend → one number per group; NaN for no bar.
    spreads
        The same names → half length of the error bars.
    """

    title: str
    groups: Sequence[str]
    lengths: Mapping[str, Sequence[float]]
    spreads: Mapping[str, Sequence[float]] = field(default_factory=dict)


def bars(panels: Sequence[Bars]) -> Figure:
    """Bar charts in rows of two; a row shares the names of the groups."""
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    most = max(len(panel.groups) * len(panel.lengths) for panel in panels)
    figure = Figure((WIDTH_INCH, lines * (1.0 + 0.19 * most)), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        place = np.arange(len(panel.groups))
        thick = 0.8 / len(panel.lengths)
        for series, (name, lengths) in enumerate(panel.lengths.items()):
            axes.barh(
                place + (series - (len(panel.lengths) - 1) / 2) * thick,
                lengths,
                height=0.9 * thick,
                xerr=panel.spreads.get(name),
                color=SERIES_COLOURS[series % len(SERIES_COLOURS)],
                error_kw={"linewidth": 1, "ecolor": "#111111"},
                label=name,
            )
        axes.set(title=panel.title, yticks=place, ylim=(len(panel.groups) - 0.4, -0.6))
        axes.set_yticklabels(panel.groups if number % columns == 0 else [""] * len(panel.groups))
        if number == 0:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
            )
        bare(axes)
    return figure
