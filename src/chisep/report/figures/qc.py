"""Charts of a session: distribution of map values, convergence of an iterative solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, MaskArray, VolumeArray, bare


def histogram(
    maps: Mapping[str, VolumeArray],
    mask: MaskArray,
    *,
    unit: str,
    window: tuple[float, float],
    bins: int = 100,
) -> Figure:
    """Histograms of maps in a mask.

    Parameters
    ----------
    maps
        Name in the legend (may contain mathtext) → values in `unit`, shape (i, j, k).
    mask
        Voxels that count.
    unit
        Text at the horizontal axis.
    window
        First and last value of the horizontal axis; the legend has the share of voxels beyond.
    bins
        Number of bins in the window.
    """
    figure, axes = _chart(3.2)
    for number, (name, volume) in enumerate(maps.items()):
        values = volume[mask]
        counts, edges = np.histogram(values, bins=bins, range=window)
        total = max(values.size, 1)
        beyond = 100 * (values.size - int(counts.sum())) / total
        axes.stairs(
            100 * counts / total,
            edges,
            label=f"{name} ({beyond:.1f} % beyond)",
            color=SERIES_COLOURS[number % len(SERIES_COLOURS)],
            linewidth=1.5,
        )
    axes.set(xlim=window, xlabel=unit, ylabel="voxels in the mask (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    bare(axes)
    return figure


def convergence(change: Sequence[float], *, tolerance: float | None = None) -> Figure:
    """Convergence plot: relative change of the solution at every iteration.

    Parameters
    ----------
    change
        Relative change at iteration 1, 2, …
    tolerance
        Tolerance of the solver, drawn as a line.
    """
    figure, axes = _chart(3.0)
    iteration = np.arange(1, len(change) + 1)
    positive = np.asarray(change) > 0  # a logarithmic axis cannot show 0
    axes.plot(
        iteration[positive], np.asarray(change)[positive], color=SERIES_COLOURS[1], marker=".", linewidth=1.5
    )
    if positive.any():
        axes.set_yscale("log")
    if tolerance is not None:
        axes.axhline(tolerance, color=SERIES_COLOURS[2], linestyle="--", linewidth=1, label="tolerance")
        axes.legend(frameon=False)
    axes.set(xlim=(0.5, max(len(change), 1) + 0.5), xlabel="iteration", ylabel="relative change")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    bare(axes)
    return figure


def _chart(height_inch: float) -> tuple[Figure, Axes]:
    """Figure with fixed margins: a layout computed from the labels needs a second drawing."""
    figure = Figure((WIDTH_INCH, height_inch))
    left, right, bottom, top = 0.75, 0.2, 0.5, 0.1
    size = WIDTH_INCH - left - right, height_inch - bottom - top
    axes = figure.add_axes(
        (left / WIDTH_INCH, bottom / height_inch, size[0] / WIDTH_INCH, size[1] / height_inch)
    )
    return figure, axes
