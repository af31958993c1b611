"""Predicted against assigned susceptibility of lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, Points, bare


@dataclass(frozen=True, eq=False)
class Lesions:
    """Predicted against assigned values of lesions, by one method.

    Parameters
    ----------
    title
        Name of the method.
    points
        Name in the legend → assigned and predicted values in ppb.
    fits
        The same names → slope and intercept (ppb) of the fitted line.
    """

    title: str
    points: Mapping[str, Points]
    fits: Mapping[str, tuple[float, float]]


def lesion_lines(panels: Sequence[Lesions]) -> Figure:
    """Predicted against assigned values of lesions with regression lines, in rows of four, equal axes."""
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure((WIDTH_INCH, 0.3 + WIDTH_INCH / 4 * 1.15 * lines), layout="constrained")
    values = [v for panel in panels for pair in panel.points.values() for part in pair for v in part]
    top = 1.05 * max(values, default=1.0)
    ends = np.array([0.0, top])
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.plot(ends, ends, color=SERIES_COLOURS[2], linestyle=":", linewidth=1)
        for series, (name, (assigned, predicted)) in enumerate(panel.points.items()):
            colour = SERIES_COLOURS[series % len(SERIES_COLOURS)]
            slope, intercept = panel.fits[name]
            axes.scatter(assigned, predicted, s=9, color=colour, linewidths=0)
            axes.plot(
                ends, intercept + slope * ends, color=colour, linewidth=1.2, label=f"{name}: {slope:.2f}"
            )
        axes.set(xlim=(0, top), ylim=(min(0.0, *values), top), aspect="equal")
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        if panel.points:
            axes.legend(frameon=False, fontsize=7, loc="upper left")
        bare(axes)
    figure.supxlabel("assigned (ppb)", fontsize=9)
    figure.supylabel("predicted (ppb)", fontsize=9)
    return figure
