"""Every picture of chisep: functions from arrays to Matplotlib figures.

Volumes are shown in the anatomical axes closest to their affine, in radiological convention: the patient's
right is at the left of coronal and axial planes, the face looks to the left in sagittal planes. Nothing is
resampled, so an oblique volume is seen along its own voxel axes. Susceptibilities come in ppm and are drawn
in ppb, with the same windows for every subject so that pages can be compared.

Figures are built without pyplot: no window, no global state, and nothing to close.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from chisep.types import Affine

VolumeArray = Float[np.ndarray, "i j k"]
"""One real map on a grid, NIfTI axis order."""
HeadRows = Float[np.ndarray, "head column"]
"""One row of numbers per head."""
EchoArrays = Float[np.ndarray, "echo i j k"]
"""One real volume per echo, echoes in order of their echo time."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside the brain."""

CHI_POS, CHI_NEG, CHI = r"$\chi_\mathrm{pos}$", r"$\chi_\mathrm{neg}$", r"$\chi$"
"""Names of the maps as Matplotlib writes them."""

SOURCE_WINDOW_PPB = (0.0, 100.0)
"""Window of χ_pos and χ_neg: white matter in the lower half, the iron-rich nuclei at its top."""
TOTAL_WINDOW_PPB = (-100.0, 100.0)
"""Window of χ = χ_pos − χ_neg."""

# All three run from or through black, so that empty tissue and the surroundings look alike.
CHI_POS_CMAP: Colormap = mpl.colormaps["inferno"]
CHI_NEG_CMAP: Colormap = LinearSegmentedColormap.from_list(
    "chi_neg", ["#000004", "#0c2a5e", "#1c6db0", "#4fb8d0", "#f3fdff"]
)
DIFFERENCE_CMAP: Colormap = LinearSegmentedColormap.from_list(
    "difference", ["#b9e3ff", "#2f7fd6", "#000000", "#d6452f", "#ffd0b0"]
)

# Left and right end of the sagittal, the coronal and the axial plane.
_SIDES = (("A", "P"), ("R", "L"), ("R", "L"))
_SERIES_COLOURS = ("#c2410c", "#1d4ed8", "#4b5563")
_DARK, _LIGHT = "#0e1116", "#e6e9ee"
_DPI = 90
_WIDTH_INCH, _TALLEST_INCH, _LOWEST_INCH, _NARROWEST_INCH = 10.0, 4.0, 1.2, 0.4
_GAP_INCH, _TITLE_INCH, _SIDES_INCH, _BAR_INCH = 0.1, 0.32, 0.24, 0.95
_MARGIN_MM = 8.0
_ECHO_COLUMNS = 5
_FEW_POINTS = 20
_PPB = 1000.0


@dataclass(frozen=True, eq=False)
class Row:
    """One volume in a figure of planes, and how its values turn into colours.

    Parameters
    ----------
    title
        Text above the row; may hold Matplotlib's mathtext.
    volume
        Values in `unit`, shape (i, j, k).
    unit
        Text at the colour bar.
    window
        Values at both ends of the colour map; None takes the 99th percentile of the magnitudes in the mask:
        from 0 to it for non-negative values, from minus to plus it for others.
    cmap
        A Matplotlib colour map, or its name.
    """

    title: str
    volume: VolumeArray
    unit: str
    window: tuple[float, float] | None = None
    cmap: str | Colormap = "gray"


@dataclass(frozen=True, eq=False)
class _View:
    """What is shown of a grid: its orientation and, in RAS+ axes, voxel edges, box and plane positions."""

    orientation: NDArray[Any]
    voxel_mm: tuple[float, ...]
    box: tuple[slice, ...]
    index: tuple[int, ...]

    def plane(self, volume: NDArray[Any], axis: int) -> NDArray[Any]:
        """One plane with its rows from top to bottom and its columns from left to right of the picture."""
        turned = nib.apply_orientation(volume, self.orientation)
        part: list[slice | int] = list(self.box)
        part[axis] = self.index[axis]
        # Superior (or anterior) is up; right (or anterior) is left: both axes run against the picture's.
        picture: NDArray[Any] = turned[tuple(part)][::-1, ::-1].T
        return picture

    def size_mm(self, axis: int) -> tuple[float, float]:
        """Width and height of the plane across an axis."""
        edges = [(s.stop - s.start) * mm for s, mm in zip(self.box, self.voxel_mm, strict=True)]
        del edges[axis]
        return edges[0], edges[1]


def _view(
    shape: tuple[int, ...], affine: Affine, mask: MaskArray | None, position: Sequence[int] | None = None
) -> _View:
    """Frame the mask and cut at its centre of mass (or at a position); without a mask, the whole volume."""
    orientation = nib.io_orientation(affine)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    places = [np.arange(n) for n in shape] if mask is None or not mask.any() else np.nonzero(mask)
    turned = []
    for axis, (n, edge, inside) in enumerate(zip(shape, edges, places, strict=True)):
        ends = [int(inside.min()), int(inside.max())]
        centre = float(inside.mean()) if position is None else float(position[axis])
        target, flip = orientation[axis]
        if flip < 0:
            ends, centre = [n - 1 - end for end in reversed(ends)], n - 1 - centre
        cut, margin = math.floor(centre + 0.5), math.ceil(_MARGIN_MM / edge)
        first, last = max(min(ends[0] - margin, cut), 0), min(max(ends[1] + margin, cut), n - 1)
        turned.append((int(target), float(edge), slice(first, last + 1), cut))
    _, voxel_mm, box, index = zip(*sorted(turned, key=lambda entry: entry[0]), strict=True)
    return _View(orientation, voxel_mm, box, index)


def planes(
    rows: Sequence[Row],
    affine: Affine,
    *,
    mask: MaskArray | None = None,
    overlay: MaskArray | None = None,
    position: Sequence[int] | None = None,
) -> Figure:
    """Show volumes of one grid below each other, each in a sagittal, a coronal and an axial plane.

    Parameters
    ----------
    rows
        The volumes.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Where the values are valid: framed and cut through its centre; everything else is background and
        does not count for windows. None shows the whole volume.
    overlay
        A region whose outline is drawn, shape (i, j, k).
    position
        Voxel (i, j, k) that the planes pass through; None takes the centre of the mask.

    Returns
    -------
    Figure
        Axes in reading order: a row's three planes, then its colour bar.
    """
    view = _view(rows[0].volume.shape, affine, mask, position)
    sizes = [view.size_mm(axis) for axis in range(3)]
    free_inch = _WIDTH_INCH - _BAR_INCH - 4 * _GAP_INCH
    # One scale for all planes, so that a millimetre is as long in each of them.
    inch_per_mm = min(free_inch / sum(width for width, _ in sizes), _TALLEST_INCH / max(h for _, h in sizes))
    cells = [max(width * inch_per_mm, _NARROWEST_INCH) for width, _ in sizes]
    row_inch = max(max(height for _, height in sizes) * inch_per_mm, _LOWEST_INCH)
    sheet = _Sheet(sum(cells) + 4 * _GAP_INCH + _BAR_INCH, (_TITLE_INCH + row_inch + _SIDES_INCH) * len(rows))
    for number, row in enumerate(rows):
        top = number * (_TITLE_INCH + row_inch + _SIDES_INCH) + _TITLE_INCH
        window = _window(row.volume, mask) if row.window is None else row.window
        left = _GAP_INCH
        for axis, (cell, (width, height)) in enumerate(zip(cells, sizes, strict=True)):
            width_inch, height_inch = width * inch_per_mm, height * inch_per_mm
            axes = sheet.axes(
                left + (cell - width_inch) / 2, top + (row_inch - height_inch) / 2, width_inch, height_inch
            )
            image = _draw(axes, view, row.volume, mask, axis, window, row.cmap)
            if overlay is not None:
                _outline(axes, view, overlay, axis)
            left += cell + _GAP_INCH
        sheet.text(_GAP_INCH, top - 0.08, row.title)
        sheet.colour_bar(image, left, top, row_inch, row.unit)
    return sheet.figure


def three_planes(
    volume: VolumeArray,
    affine: Affine,
    *,
    title: str,
    unit: str,
    window: tuple[float, float] | None = None,
    cmap: str | Colormap = "gray",
    mask: MaskArray | None = None,
    overlay: MaskArray | None = None,
    position: Sequence[int] | None = None,
) -> Figure:
    """Show one volume in three planes; parameters as in `Row` and `planes`."""
    return planes(
        [Row(title, volume, unit, window, cmap)], affine, mask=mask, overlay=overlay, position=position
    )


def source_maps(
    chi_pos_ppm: VolumeArray,
    chi_neg_ppm: VolumeArray,
    chi_ppm: VolumeArray,
    affine: Affine,
    mask: MaskArray,
    *,
    position: Sequence[int] | None = None,
) -> Figure:
    """Show χ_pos and χ_neg from 0 to 100 ppb, and their difference χ from −100 to 100 ppb, in three planes.

    Parameters
    ----------
    chi_pos_ppm, chi_neg_ppm, chi_ppm
        Susceptibility in ppm, shape (i, j, k); χ_neg as a positive magnitude.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask, position
        As in `planes`.
    """
    pos, neg = f"{CHI_POS} (paramagnetic: iron)", f"{CHI_NEG} (diamagnetic: myelin, calcium)"
    rows = [
        Row(pos, _PPB * chi_pos_ppm, "ppb", SOURCE_WINDOW_PPB, CHI_POS_CMAP),
        Row(neg, _PPB * chi_neg_ppm, "ppb", SOURCE_WINDOW_PPB, CHI_NEG_CMAP),
        Row(f"{CHI} = {CHI_POS} − {CHI_NEG}", _PPB * chi_ppm, "ppb", TOTAL_WINDOW_PPB),
    ]
    return planes(rows, affine, mask=mask, position=position)


def comparison(
    predicted_ppm: VolumeArray,
    truth_ppm: VolumeArray,
    affine: Affine,
    mask: MaskArray,
    *,
    title: str,
    window_ppb: tuple[float, float] = SOURCE_WINDOW_PPB,
    cmap: str | Colormap = "gray",
    position: Sequence[int] | None = None,
) -> Figure:
    """Show a susceptibility map, the truth, and their difference in half the window's width.

    Parameters
    ----------
    predicted_ppm, truth_ppm
        Susceptibility in ppm, shape (i, j, k).
    affine
        Voxel index to scanner mm, shape (4, 4).
    title
        Name of the map; may hold Matplotlib's mathtext.
    window_ppb, cmap
        Window in ppb and colour map of prediction and truth.
    mask, position
        As in `planes`.
    """
    half = (window_ppb[1] - window_ppb[0]) / 2
    predicted, truth = _PPB * predicted_ppm, _PPB * truth_ppm
    rows = [
        Row(f"{title}: prediction", predicted, "ppb", window_ppb, cmap),
        Row(f"{title}: truth", truth, "ppb", window_ppb, cmap),
        Row(f"{title}: prediction − truth", predicted - truth, "ppb", (-half, half), DIFFERENCE_CMAP),
    ]
    return planes(rows, affine, mask=mask, position=position)


def mask_outline(magnitude: VolumeArray, mask: MaskArray, affine: Affine) -> Figure:
    """Show the outline of the brain mask on a magnitude image of arbitrary scale, in three planes.

    The whole volume is shown, so that what the mask misses is seen.
    """
    centre = [round(float(axis.mean())) for axis in np.nonzero(mask)] if mask.any() else None
    return three_planes(
        magnitude, affine, title="Brain mask on magnitude", unit="a.u.", overlay=mask, position=centre
    )


def echoes(
    volumes: EchoArrays,
    affine: Affine,
    te_s: Sequence[float],
    *,
    title: str,
    unit: str,
    window: tuple[float, float] | None = None,
    cmap: str | Colormap = "gray",
    mask: MaskArray | None = None,
    position: Sequence[int] | None = None,
) -> Figure:
    """Show the same axial plane of every echo, all in one window.

    Parameters
    ----------
    volumes
        One volume per echo in `unit`, shape (echo, i, j, k): magnitude, or unwrapped phase.
    affine
        Voxel index to scanner mm, shape (4, 4).
    te_s
        Echo times in seconds, one per echo.
    title, unit, window, cmap
        As in `Row`.
    mask, position
        As in `planes`.
    """
    return axial_planes(
        volumes,
        [f"TE {1e3 * te:.1f} ms" for te in te_s],
        affine,
        title=title,
        unit=unit,
        window=window,
        cmap=cmap,
        mask=mask,
        position=position,
    )


def axial_planes(
    volumes: EchoArrays,
    titles: Sequence[str],
    affine: Affine,
    *,
    title: str,
    unit: str,
    window: tuple[float, float] | None = None,
    cmap: str | Colormap = "gray",
    mask: MaskArray | None = None,
    position: Sequence[int] | None = None,
    columns: int = _ECHO_COLUMNS,
) -> Figure:
    """Show the same axial plane of several volumes, all in one window.

    Parameters
    ----------
    volumes
        In `unit`, shape (volume, i, j, k).
    titles
        Text above each plane.
    affine
        Voxel index to scanner mm, shape (4, 4).
    title, unit, window, cmap
        As in `Row`.
    mask, position
        As in `planes`.
    columns
        Planes in a line.
    """
    view = _view(volumes.shape[1:], affine, mask, position)
    width, height = view.size_mm(axis=2)
    free_inch = _WIDTH_INCH - _BAR_INCH - (columns + 1) * _GAP_INCH
    # The scale of full lines, also for fewer planes.
    inch_per_mm = min(free_inch / columns / width, _TALLEST_INCH / height)
    columns = min(len(volumes), columns)
    cell_inch, line_inch = max(width * inch_per_mm, 2 * _NARROWEST_INCH), height * inch_per_mm
    step_inch = _TITLE_INCH + line_inch + _SIDES_INCH
    lines = math.ceil(len(volumes) / columns)
    bar_left = _GAP_INCH + columns * (cell_inch + _GAP_INCH)
    sheet = _Sheet(bar_left + _BAR_INCH, _TITLE_INCH + lines * step_inch)
    limits = _window(volumes, mask) if window is None else window
    for number, (volume, text) in enumerate(zip(volumes, titles, strict=True)):
        line, column = divmod(number, columns)
        left = _GAP_INCH + column * (cell_inch + _GAP_INCH)
        top = 2 * _TITLE_INCH + line * step_inch
        axes = sheet.axes(left + (cell_inch - width * inch_per_mm) / 2, top, width * inch_per_mm, line_inch)
        image = _draw(axes, view, volume, mask, 2, limits, cmap)
        axes.set_title(text, color=_LIGHT, fontsize=9, pad=3)
    sheet.text(_GAP_INCH, _TITLE_INCH - 0.08, title)
    sheet.colour_bar(image, bar_left, 2 * _TITLE_INCH, max(line_inch, _LOWEST_INCH), unit)
    return sheet.figure


def histogram(
    maps: Mapping[str, VolumeArray],
    mask: MaskArray,
    *,
    unit: str,
    window: tuple[float, float],
    bins: int = 100,
) -> Figure:
    """Show how the values of maps are distributed in a mask.

    Parameters
    ----------
    maps
        Name in the legend (may hold mathtext) → values in `unit`, shape (i, j, k).
    mask
        Where values count.
    unit
        Text at the horizontal axis.
    window
        First and last value of the horizontal axis; the legend says how many voxels lie beyond.
    bins
        Number of bins in the window.
    """
    figure = Figure((_WIDTH_INCH, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, volume) in enumerate(maps.items()):
        values = volume[mask]
        counts, edges = np.histogram(values, bins=bins, range=window)
        total = max(values.size, 1)
        beyond = 100 * (values.size - int(counts.sum())) / total
        axes.stairs(
            100 * counts / total,
            edges,
            label=f"{name} ({beyond:.1f} % beyond)",
            color=_SERIES_COLOURS[number % len(_SERIES_COLOURS)],
            linewidth=1.5,
        )
    axes.set(xlim=window, xlabel=unit, ylabel="voxels in the mask (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _bare(axes)
    return figure


def convergence(change: Sequence[float], *, tolerance: float | None = None) -> Figure:
    """Show the relative change of an iterative solution at every iteration.

    Parameters
    ----------
    change
        Relative change at iteration 1, 2, …
    tolerance
        Where the iteration stops, drawn as a line.
    """
    figure = Figure((_WIDTH_INCH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    iteration = np.arange(1, len(change) + 1)
    positive = np.asarray(change) > 0  # a change of exactly 0 has no place on a logarithmic axis
    axes.plot(
        iteration[positive], np.asarray(change)[positive], color=_SERIES_COLOURS[1], marker=".", linewidth=1.5
    )
    if positive.any():
        axes.set_yscale("log")
    if tolerance is not None:
        axes.axhline(tolerance, color=_SERIES_COLOURS[2], linestyle="--", linewidth=1, label="tolerance")
        axes.legend(frameon=False)
    axes.set(xlim=(0.5, max(len(change), 1) + 0.5), xlabel="iteration", ylabel="relative change")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _bare(axes)
    return figure


def to_svg_or_png_base64(figure: Figure) -> str:
    """Encode a figure as a data URI: SVG for line charts, PNG for figures with images.

    Equal figures give equal text: no date, no random identifier, and no name of a program is kept.
    """
    buffer = io.BytesIO()
    if any(axes.images for axes in figure.axes):
        kind = "png"
        buffer.write(png(figure))
    else:
        kind = "svg+xml"
        with mpl.rc_context({"svg.hashsalt": "chisep", "svg.fonttype": "path"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _window(values: NDArray[Any], mask: MaskArray | None) -> tuple[float, float]:
    inside = values[..., mask] if mask is not None and mask.any() else values
    inside = inside[np.isfinite(inside)]
    if not inside.any():
        return 0.0, 1.0
    top = float(np.percentile(np.abs(inside), 99)) or float(np.abs(inside).max())
    return (-top if inside.min() < 0 else 0.0), top


class _Sheet:
    """A dark figure whose contents are placed in inches from its left and upper edge."""

    def __init__(self, width_inch: float, height_inch: float) -> None:
        self.width_inch, self.height_inch = width_inch, height_inch
        self.figure = Figure((width_inch, height_inch), facecolor=_DARK)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes of a width and height."""
        bottom = self.height_inch - top - height
        return self.figure.add_axes(
            (
                left / self.width_inch,
                bottom / self.height_inch,
                width / self.width_inch,
                height / self.height_inch,
            )
        )

    def text(self, left: float, bottom: float, text: str) -> None:
        """Write a title that ends above `bottom`."""
        self.figure.text(
            left / self.width_inch, 1 - bottom / self.height_inch, text, color=_LIGHT, fontsize=11
        )

    def colour_bar(self, image: AxesImage, left: float, top: float, height: float, unit: str) -> None:
        """Add the colour bar of an image with its unit."""
        bar = self.figure.colorbar(image, cax=self.axes(left + 0.05, top, 0.14, height))
        bar.set_label(unit, color=_LIGHT)
        bar.ax.tick_params(colors=_LIGHT, labelsize=9)
        bar.outline.set_visible(False)


def _draw(
    axes: Axes,
    view: _View,
    volume: NDArray[Any],
    mask: MaskArray | None,
    axis: int,
    window: tuple[float, float],
    cmap: str | Colormap,
) -> AxesImage:
    """Draw one plane in mm, with the names of the patient's sides below its left and right end."""
    width, height = view.size_mm(axis)
    shown = view.plane(volume, axis)
    if mask is not None:
        shown = np.where(view.plane(mask, axis), shown, np.nan)
    axes.set_facecolor("black")
    image = axes.imshow(
        shown,
        cmap=cmap,
        vmin=window[0],
        vmax=window[1],
        extent=(0.0, width, 0.0, height),
        origin="upper",
    )
    axes.set_yticks([])
    axes.set_xticks([0.0, width], labels=_SIDES[axis])
    axes.tick_params(length=0, colors=_LIGHT, labelsize=9)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.spines[:].set_visible(False)
    return image


def _outline(axes: Axes, view: _View, region: MaskArray, axis: int) -> None:
    """Draw the border of a region on a plane; a region that leaves the volume is closed at its edge."""
    # A frame of background lets the contour close, and gives a plane of one slice the two rows it needs.
    plane = np.pad(view.plane(region, axis).astype(np.float32), 1)
    if not plane.any():
        return
    rows, columns = plane.shape
    width, height = view.size_mm(axis)
    x = (np.arange(columns) - 0.5) * width / (columns - 2)
    y = height - (np.arange(rows) - 0.5) * height / (rows - 2)
    axes.contour(x, y, plane, levels=[0.5], colors="#ffb000", linewidths=1.0)
    axes.set(xlim=(0.0, width), ylim=(0.0, height))


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


@dataclass(frozen=True, eq=False)
class Distribution:
    """Histograms of one map in several heads.

    Parameters
    ----------
    title
        Name of the map.
    unit
        Of its values.
    window
        First and last edge of the bins.
    percent
        Voxels in each bin in percent, one row a head.
    marks
        Values that are marked by lines.
    """

    title: str
    unit: str
    window: tuple[float, float]
    percent: HeadRows
    marks: Sequence[float] = ()


def distributions(panels: Sequence[Distribution]) -> Figure:
    """Show histograms of several maps, a line a head, in rows of three; single high bins are cut off."""
    columns = 3
    lines = math.ceil(len(panels) / columns)
    figure = Figure((_WIDTH_INCH, 2.6 * lines), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        edges = np.linspace(*panel.window, panel.percent.shape[1] + 1)
        for row in panel.percent:
            axes.stairs(row, edges, color=_SERIES_COLOURS[1], linewidth=0.8, alpha=0.6)
        for mark in panel.marks:
            axes.axvline(mark, color=_SERIES_COLOURS[0], linestyle="--", linewidth=1)
        # The bin of empty tissue (fluids) would dwarf the others.
        most = panel.percent.max(axis=0)
        top = min(float(most.max()), 1.5 * float(np.percentile(most, 95)))
        axes.set(xlim=panel.window, xlabel=f"{panel.title} ({panel.unit})", ylim=(0, 1.05 * max(top, 1e-6)))
        if number % columns == 0:
            axes.set_ylabel("voxels (%)")
        _bare(axes)
    return figure


def band_spectra(densities: Mapping[str, HeadRows], edges_mm: Sequence[float], *, unit: str) -> Figure:
    """Show the power of maps in bands of wavelength, a line a head.

    Parameters
    ----------
    densities
        Name in the legend → mean power density in each band; NaN where a band has none.
    edges_mm
        Wavelengths between which the bands lie, shortest first.
    unit
        Text at the vertical axis.
    """
    figure = Figure((_WIDTH_INCH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    middle = np.sqrt(np.asarray(edges_mm[1:]) * np.asarray(edges_mm[:-1]))
    for number, (name, rows) in enumerate(densities.items()):
        colour = _SERIES_COLOURS[number % len(_SERIES_COLOURS)]
        for row in rows:
            axes.plot(middle, row, color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(middle, rows.mean(axis=0), color=colour, marker="o", linewidth=1.5, label=name)
    axes.set(xscale="log", yscale="log", xlabel="wavelength (mm)", ylabel=f"power density ({unit})")
    axes.set_xticks(list(edges_mm), labels=[f"{edge:g}" for edge in edges_mm])
    axes.minorticks_off()
    axes.legend(frameon=False)
    _bare(axes)
    return figure


Points = tuple[Sequence[float] | Sequence[int], Sequence[float]]
"""Horizontal and vertical coordinates, as many of each."""


@dataclass(frozen=True, eq=False)
class Curves:
    """One panel of curves.

    Parameters
    ----------
    title, x_label, y_label
        Texts; the horizontal axis holds whole numbers where all of a curve's are.
    lines
        Name in the legend → points of a curve.
    thin
        Further curves in the colour of the line of that name, for example of single subjects.
    band
        Lowest and highest vertical coordinate, and name, of a range that is marked.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points]
    thin: Mapping[str, Sequence[Points]] = field(default_factory=dict)
    band: tuple[float, float, str] | None = None


def curves(panels: Sequence[Curves]) -> Figure:
    """Show panels of curves side by side."""
    figure = Figure((_WIDTH_INCH, 3.6), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        few = max((len(x) for x, _ in panel.lines.values()), default=0) <= _FEW_POINTS
        for series, (name, (x, y)) in enumerate(panel.lines.items()):
            colour = _SERIES_COLOURS[series % len(_SERIES_COLOURS)]
            for thin_x, thin_y in panel.thin.get(name, ()):
                axes.plot(thin_x, thin_y, color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(x, y, color=colour, marker="o" if few else None, linewidth=1.5, label=name)
        if panel.band is not None:
            low, high, name = panel.band
            axes.axhspan(low, high, color=_SERIES_COLOURS[2], alpha=0.2, linewidth=0, label=name)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if all(float(value).is_integer() for x, _ in panel.lines.values() for value in x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        _bare(axes)
    return figure


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
        Name in the legend → one number a group; NaN for no bar.
    spreads
        The same names → half length of the error bars.
    """

    title: str
    groups: Sequence[str]
    lengths: Mapping[str, Sequence[float]]
    spreads: Mapping[str, Sequence[float]] = field(default_factory=dict)


def bars(panels: Sequence[Bars]) -> Figure:
    """Show panels of bars in rows of two; a row shares the names of the groups."""
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    most = max(len(panel.groups) * len(panel.lengths) for panel in panels)
    figure = Figure((_WIDTH_INCH, lines * (1.0 + 0.19 * most)), layout="constrained")
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
                color=_SERIES_COLOURS[series % len(_SERIES_COLOURS)],
                error_kw={"linewidth": 1, "ecolor": "#111111"},
                label=name,
            )
        axes.set(title=panel.title, yticks=place, ylim=(len(panel.groups) - 0.4, -0.6))
        axes.set_yticklabels(panel.groups if number % columns == 0 else [""] * len(panel.groups))
        if number == 0:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
            )
        _bare(axes)
    return figure


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
    """Show predicted against assigned values of lesions with fitted lines, in rows of four, on equal axes."""
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure((_WIDTH_INCH, 0.3 + _WIDTH_INCH / 4 * 1.15 * lines), layout="constrained")
    values = [v for panel in panels for pair in panel.points.values() for part in pair for v in part]
    top = 1.05 * max(values, default=1.0)
    ends = np.array([0.0, top])
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.plot(ends, ends, color=_SERIES_COLOURS[2], linestyle=":", linewidth=1)
        for series, (name, (assigned, predicted)) in enumerate(panel.points.items()):
            colour = _SERIES_COLOURS[series % len(_SERIES_COLOURS)]
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
        _bare(axes)
    figure.supxlabel("assigned (ppb)", fontsize=9)
    figure.supylabel("predicted (ppb)", fontsize=9)
    return figure


def region_planes(volume: VolumeArray, labels: NDArray[Any], affine: Affine, mask: MaskArray) -> Figure:
    """Show regions in colours over a map in three planes, and the map alone above.

    Parameters
    ----------
    volume
        Susceptibility in ppb, shape (i, j, k).
    labels
        Label of every voxel, 0 outside, shape (i, j, k).
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Brain, which is framed.
    """
    rows = [Row(title, volume, "ppb", TOTAL_WINDOW_PPB) for title in ("Susceptibility", "Regions")]
    figure = planes(rows, affine, mask=mask)
    view = _view(volume.shape, affine, mask)
    # Neighbouring numbers are often neighbouring or mirrored structures: steps of seven part their colours.
    number = np.searchsorted(np.unique(labels), labels) * 7 % 20
    for axis, axes in enumerate(figure.axes[4:7]):
        coloured = np.ma.masked_where(view.plane(labels, axis) == 0, view.plane(number, axis))
        width, height = view.size_mm(axis)
        axes.imshow(
            coloured,
            cmap="tab20",
            vmin=0,
            vmax=19,
            alpha=0.45,
            interpolation="nearest",
            extent=(0.0, width, 0.0, height),
            origin="upper",
        )
    return figure


@dataclass(frozen=True, eq=False)
class Spread:
    """One quantity over the sessions of a group.

    Parameters
    ----------
    name
        Of the quantity.
    values
        One per session that has it.
    outliers
        Session and value of those that lie apart.
    """

    name: str
    values: NDArray[Any]
    outliers: Sequence[tuple[str, float]] = ()


_MOST_DOTS, _MOST_NAMES = 60, 3


def spreads(rows: Sequence[Spread], *, label: str) -> Figure:
    """Show how quantities of one unit spread over sessions, a row each, the outliers named.

    Parameters
    ----------
    rows
        The quantities, from top to bottom.
    label
        Text at the horizontal axis.
    """
    figure = Figure((_WIDTH_INCH, 1.0 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        low, first, middle, third, high = np.percentile(row.values, (5, 25, 50, 75, 95))
        axes.plot((low, high), (place, place), color=_SERIES_COLOURS[2], linewidth=0.8)
        axes.plot((first, third), (place, place), color=_SERIES_COLOURS[1], linewidth=5, alpha=0.45)
        axes.plot(middle, place, marker="|", color=_SERIES_COLOURS[1], markersize=9)
        if len(row.values) <= _MOST_DOTS:
            axes.plot(row.values, [place] * len(row.values), ".", color=_SERIES_COLOURS[1], markersize=3)
        for number, (name, value) in enumerate(sorted(row.outliers, key=lambda one: one[1])):
            axes.plot(value, place, "o", color=_SERIES_COLOURS[0], markersize=4)
            if number < _MOST_NAMES:
                axes.annotate(
                    name,
                    (value, place),
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=7,
                    color=_SERIES_COLOURS[0],
                )
    axes.set_yticks(range(len(rows)), labels=[row.name for row in rows], fontsize=8)
    axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    _bare(axes)
    return figure
