"""Charts of maps of several subjects: histograms, and power in bands of wavelength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from chisep.report.figures.style import SERIES_COLOURS, WIDTH_INCH, SubjectRows, bare


@dataclass(frozen=True, eq=False)
class Distribution:
    """Histograms of one map in several subjects.

    Parameters
    ----------
    title
        Name of the map.
    unit
        Of its values.
    window
        First and last edge of the bins.
    percent
        Voxels in each bin in percent, one row per subject.
    marks
        Values marked by vertical lines.
    """

    title: str
    unit: str
    window: tuple[float, float]
    percent: SubjectRows
    marks: Sequence[float] = ()


def distributions(panels: Sequence[Distribution]) -> Figure:
    """Histograms of several maps, one line per subject, in rows of three; single high bins are clipped."""
    columns = 3
    lines = math.ceil(len(panels) / columns)
    figure = Figure((WIDTH_INCH, 2.6 * lines), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        edges = np.linspace(*panel.window, panel.percent.shape[1] + 1)
        for row in panel.percent:
            axes.stairs(row, edges, color=SERIES_COLOURS[1], linewidth=0.8, alpha=0.6)
        for mark in panel.marks:
            axes.axvline(mark, color=SERIES_COLOURS[0], linestyle="--", linewidth=1)
        # The bin of CSF would hide the others.
        most = panel.percent.max(axis=0)
        top = min(float(most.max()), 1.5 * float(np.percentile(most, 95)))
        axes.set(xlim=panel.window, xlabel=f"{panel.title} ({panel.unit})", ylim=(0, 1.05 * max(top, 1e-6)))
        if number % columns == 0:
            axes.set_ylabel("voxels (%)")
        bare(axes)
    return figure


def band_spectra(densities: Mapping[str, SubjectRows], edges_mm: Sequence[float], *, unit: str) -> Figure:
    """Power spectra of maps in bands of wavelength, one line per subject.

    Parameters
    ----------
    densities
        Name in the legend → mean power density in each band; NaN for an empty band.
    edges_mm
        Edges of the bands in mm, shortest first.
    unit
        Text at the vertical axis.
    """
    figure = Figure((WIDTH_INCH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    middle = np.sqrt(np.asarray(edges_mm[1:]) * np.asarray(edges_mm[:-1]))
    for number, (name, rows) in enumerate(densities.items()):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        for row in rows:
            axes.plot(middle, row, color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(middle, rows.mean(axis=0), color=colour, marker="o", linewidth=1.5, label=name)
    axes.set(xscale="log", yscale="log", xlabel="wavelength (mm)", ylabel=f"power density ({unit})")
    axes.set_xticks(list(edges_mm), labels=[f"{edge:g}" for edge in edges_mm])
    axes.minorticks_off()
    axes.legend(frameon=False)
    bare(axes)
    return figure
