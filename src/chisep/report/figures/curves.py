"""Line charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, Points, bare

_FEW_POINTS = 20


@dataclass(frozen=True, eq=False)
class Curves:
    """One panel of curves.

    Parameters
    ----------
    title, x_label, y_label
        Texts; the ticks of the horizontal axis are integers if all x values are.
    lines
        Name in the legend → points of a curve.
    thin
        Thin curves in the colour of the line of that name, for example of single subjects.
    band
        Lower and upper end of a shaded range, and its name.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points]
    thin: Mapping[str, Sequence[Points]] = field(default_factory=dict)
    band: tuple[float, float, str] | None = None


def curves(panels: Sequence[Curves]) -> Figure:
    """Line charts side by side."""
    figure = Figure((WIDTH_INCH, 3.6), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        few = max((len(x) for x, _ in panel.lines.values()), default=0) <= _FEW_POINTS
        for series, (name, (x, y)) in enumerate(panel.lines.items()):
            colour = SERIES_COLOURS[series % len(SERIES_COLOURS)]
            for thin_x, thin_y in panel.thin.get(name, ()):
                axes.plot(thin_x, thin_y, color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(x, y, color=colour, marker="o" if few else None, linewidth=1.5, label=name)
        if panel.band is not None:
            low, high, name = panel.band
            axes.axhspan(low, high, color=SERIES_COLOURS[2], alpha=0.2, linewidth=0, label=name)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if all(float(value).is_integer() for x, _ in panel.lines.values() for value in x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        bare(axes)
    return figure
