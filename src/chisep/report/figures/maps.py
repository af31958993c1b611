"""Maps of one grid below each other, each in a sagittal, a coronal and an axial plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chisep.regions.labels import present_labels
from chisep.report.figures.sheet import BAR_INCH, GAP_INCH, SIDES_INCH, TITLE_INCH, Box, Sheet
from chisep.report.figures.style import (
    CHI,
    CHI_NEG,
    CHI_POS,
    DIFFERENCE_CMAP,
    PPB,
    SOURCE_WINDOW_PPB,
    TOTAL_WINDOW_PPB,
    WIDTH_INCH,
    MaskArray,
    VolumeArray,
)
from chisep.report.figures.view import SIDES, View, centre_of_mass, view_of
from chisep.types import Affine

TALLEST_INCH, LOWEST_INCH, NARROWEST_INCH = 4.0, 1.2, 0.4
"""Largest height of a plane, smallest height of a row, and smallest width of a plane's cell."""
MOST_NAMES = 32
"""Regions named below a figure: those with most voxels in its planes."""
_NAME_COLUMNS, _NAME_INCH = 4, 0.2


@dataclass(frozen=True, eq=False)
class Row:
    """One volume in a figure of planes, with its unit, intensity window and colour map.

    Parameters
    ----------
    title
        Text above the row; may contain mathtext.
    volume
        Values in `unit`, shape (i, j, k).
    unit
        Text at the colour bar.
    window
        Values at both ends of the colour map. None: from 0 (from its negative for maps with negative values)
        to the 99th percentile of the magnitudes in the mask.
    cmap
        A Matplotlib colour map, or its name.
    """

    title: str
    volume: VolumeArray
    unit: str
    window: tuple[float, float] | None = None
    cmap: str | Colormap = "gray"


@dataclass(frozen=True, eq=False)
class _Layout:
    """Layout of the rows of planes on a sheet."""

    view: View
    inch_per_mm: float
    cells_inch: tuple[float, ...]
    row_inch: float

    @classmethod
    def of(cls, view: View) -> _Layout:
        sizes = [view.size_mm(axis) for axis in range(3)]
        free_inch = WIDTH_INCH - BAR_INCH - 4 * GAP_INCH
        # One scale for all planes, so that a millimetre is as long in each of them.
        scale = min(free_inch / sum(width for width, _ in sizes), TALLEST_INCH / max(h for _, h in sizes))
        cells = tuple(max(width * scale, NARROWEST_INCH) for width, _ in sizes)
        return cls(view, scale, cells, max(max(height for _, height in sizes) * scale, LOWEST_INCH))

    def sheet(self, rows: int, below_inch: float = 0.0) -> Sheet:
        return Sheet(sum(self.cells_inch) + 4 * GAP_INCH + BAR_INCH, rows * self._step_inch + below_inch)

    @property
    def _step_inch(self) -> float:
        return TITLE_INCH + self.row_inch + SIDES_INCH

    def top(self, row: int) -> float:
        return row * self._step_inch + TITLE_INCH

    def plane(self, row: int, axis: int) -> Box:
        width, height = (size * self.inch_per_mm for size in self.view.size_mm(axis))
        left = GAP_INCH + sum(cell + GAP_INCH for cell in self.cells_inch[:axis])
        return Box(
            left + (self.cells_inch[axis] - width) / 2,
            self.top(row) + (self.row_inch - height) / 2,
            width,
            height,
        )

    def bar(self, row: int) -> Box:
        left = GAP_INCH + sum(cell + GAP_INCH for cell in self.cells_inch)
        return Box(left, self.top(row), BAR_INCH - GAP_INCH, self.row_inch)


def planes(
    rows: Sequence[Row],
    affine: Affine,
    *,
    mask: MaskArray | None = None,
    overlay: MaskArray | None = None,
    position: Sequence[int] | None = None,
) -> Figure:
    """Sagittal, coronal and axial plane of several volumes of one grid, one row per volume.

    Parameters
    ----------
    rows
        The volumes.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Where the values are valid: the field of view and the planes follow it; everything else is background
        and does not count for windows. None shows the whole volume.
    overlay
        Region whose outline is drawn, shape (i, j, k).
    position
        Voxel (i, j, k) that the planes pass through; None takes the centre of the mask.

    Returns
    -------
    Figure
        Its images in reading order: a row's three planes, then its colour bar.
    """
    layout = _Layout.of(view_of(rows[0].volume.shape, affine, mask, position))
    sheet = layout.sheet(len(rows))
    for number, row in enumerate(rows):
        _draw_row(sheet, layout, number, row, mask)
        if overlay is not None:
            for axis in range(3):
                sheet.outline(layout.view.plane(overlay, axis), layout.plane(number, axis))
    return sheet.figure


def _draw_row(sheet: Sheet, layout: _Layout, number: int, row: Row, mask: MaskArray | None) -> None:
    window = default_window(row.volume, mask) if row.window is None else row.window
    for axis in range(3):
        draw_plane(sheet, layout.plane(number, axis), layout.view, row.volume, mask, axis, window, row.cmap)
    sheet.heading(GAP_INCH, layout.top(number) - 0.08, row.title)
    sheet.colour_bar(layout.bar(number), window, row.cmap, row.unit)


def draw_plane(
    sheet: Sheet,
    box: Box,
    view: View,
    volume: NDArray[Any],
    mask: MaskArray | None,
    axis: int,
    window: tuple[float, float],
    cmap: str | Colormap,
) -> None:
    """Draw one plane of a volume on black, with the patient's sides below it."""
    shown = view.plane(volume, axis)
    if mask is not None:
        shown = np.where(view.plane(mask, axis), shown, np.nan)
    sheet.background(box)
    sheet.image(shown, box, window, cmap)
    sheet.sides(box, *SIDES[axis])


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
    """Sagittal, coronal and axial plane of one volume; parameters as in `Row` and `planes`."""
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
    """Three planes of χ_pos and χ_neg (0 to 100 ppb) and of χ = χ_pos − χ_neg (−100 to 100 ppb).

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
        Row(pos, PPB * chi_pos_ppm, "ppb", SOURCE_WINDOW_PPB),
        Row(neg, PPB * chi_neg_ppm, "ppb", SOURCE_WINDOW_PPB),
        Row(f"{CHI} = {CHI_POS} − {CHI_NEG}", PPB * chi_ppm, "ppb", TOTAL_WINDOW_PPB),
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
    """Susceptibility map, ground truth, and their difference at half the window width.

    Parameters
    ----------
    predicted_ppm, truth_ppm
        Susceptibility in ppm, shape (i, j, k).
    affine
        Voxel index to scanner mm, shape (4, 4).
    title
        Name of the map; may contain mathtext.
    window_ppb, cmap
        Intensity window in ppb and colour map of prediction and truth.
    mask, position
        As in `planes`.
    """
    half = (window_ppb[1] - window_ppb[0]) / 2
    predicted, truth = PPB * predicted_ppm, PPB * truth_ppm
    rows = [
        Row(f"{title}: prediction", predicted, "ppb", window_ppb, cmap),
        Row(f"{title}: truth", truth, "ppb", window_ppb, cmap),
        Row(f"{title}: prediction − truth", predicted - truth, "ppb", (-half, half), DIFFERENCE_CMAP),
    ]
    return planes(rows, affine, mask=mask, position=position)


def mask_outline(magnitude: VolumeArray, mask: MaskArray, affine: Affine) -> Figure:
    """Outline of the brain mask on a magnitude image of arbitrary scale, in three planes.

    The whole volume is shown, so that brain outside the mask is visible.
    """
    return three_planes(
        magnitude,
        affine,
        title="Brain mask on magnitude",
        unit="a.u.",
        overlay=mask,
        position=centre_of_mass(mask),
    )


def region_planes(
    volume: VolumeArray,
    labels: NDArray[Any],
    affine: Affine,
    mask: MaskArray,
    names: Mapping[int, str],
) -> Figure:
    """Regions in colours over a map in three planes, below the map alone, and above their names.

    Parameters
    ----------
    volume
        Susceptibility in ppb, shape (i, j, k).
    labels
        Label of every voxel, 0 outside, shape (i, j, k).
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Brain, which sets the field of view.
    names
        Label → name.
    """
    layout = _Layout.of(view_of(volume.shape, affine, mask))
    cut = [layout.view.plane(labels, axis) for axis in range(3)]
    shown, counts = np.unique(np.concatenate([plane[plane != 0] for plane in cut]), return_counts=True)
    named = sorted(shown[np.argsort(-counts, kind="stable")][:MOST_NAMES].tolist())
    lines = math.ceil(len(named) / _NAME_COLUMNS)
    sheet = layout.sheet(2, lines * _NAME_INCH)
    region_row = 1
    _draw_row(sheet, layout, 0, Row("Susceptibility", volume, "ppb", TOTAL_WINDOW_PPB), mask)
    sheet.heading(GAP_INCH, layout.top(region_row) - 0.08, "Regions")
    # Neighbouring labels are often neighbouring or mirrored structures: steps of 7 separate their colours.
    numbers = present_labels(labels)
    boxes = [layout.plane(region_row, axis) for axis in range(3)]
    for axis, box in enumerate(boxes):
        draw_plane(sheet, box, layout.view, volume, mask, axis, TOTAL_WINDOW_PPB, "gray")
    for plane, box in zip(cut, boxes, strict=True):
        colours = (np.searchsorted(numbers, plane) + 1) * 7 % 20
        sheet.image(
            np.ma.masked_where(plane == 0, colours),
            box,
            (0.0, 19.0),
            "tab20",
            alpha=0.45,
            interpolation="nearest",
        )
    for place, label in enumerate(named):
        column, line = divmod(place, max(lines, 1))
        left = GAP_INCH + column * (sheet.width_inch - 2 * GAP_INCH) / _NAME_COLUMNS
        colour = mpl.colormaps["tab20"](int((np.searchsorted(numbers, label) + 1) * 7 % 20))
        sheet.named(
            left, layout.top(2) - TITLE_INCH + line * _NAME_INCH, colour, names.get(label, f"region {label}")
        )
    return sheet.figure


def default_window(values: NDArray[Any], mask: MaskArray | None) -> tuple[float, float]:
    """Intensity window from the 99th percentile of the magnitudes in a mask; symmetric for signed maps."""
    # Transposed as the mask: images in memory have their first axis fastest.
    inside = values.T[mask.T] if mask is not None and mask.any() else values
    inside = inside[np.isfinite(inside)]
    if not inside.any():
        return 0.0, 1.0
    top = float(np.percentile(np.abs(inside), 99)) or float(np.abs(inside).max())
    return (-top if inside.min() < 0 else 0.0), top
