"""Bland-Altman plots: agreement of two measurements of the same quantities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, Points, bare

_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, eq=False)
class Agreement:
    """One panel of differences over means.

    Parameters
    ----------
    title, x_label, y_label
        Texts.
    points
        Name in the legend → means and differences of two measurements.
    bias, limits
        Mean of the differences, and half width of its 95 % limits of agreement.
    """

    title: str
    x_label: str
    y_label: str
    points: Mapping[str, Points]
    bias: float
    limits: float


def bland_altman(panels: Sequence[Agreement]) -> Figure:
    """Bland-Altman plots side by side, with one legend."""
    figure = Figure((WIDTH_INCH, 3.9), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for series, (name, (x, y)) in enumerate(panel.points.items()):
            axes.plot(
                *(x, y, _MARKERS[series % len(_MARKERS)]),
                color=SERIES_COLOURS[series % len(SERIES_COLOURS)],
                markersize=3,
                alpha=0.6,
                label=name,
            )
        for value, style in ((0.0, "-"), (-panel.limits, "--"), (panel.limits, "--")):
            axes.axhline(panel.bias + value, color="#111111", linewidth=0.8, linestyle=style)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        bare(axes)
        if number == 0:
            figure.legend(loc="outside lower center", ncols=len(panel.points), frameon=False)
    return figure
