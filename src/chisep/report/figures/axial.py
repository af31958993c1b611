"""The same axial plane of several volumes, for example of all echoes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from chisep.report.figures.maps import LOWEST_INCH, NARROWEST_INCH, TALLEST_INCH, default_window, draw_plane
from chisep.report.figures.sheet import BAR_INCH, GAP_INCH, SIDES_INCH, TITLE_INCH, Box, Sheet
from chisep.report.figures.style import WIDTH_INCH, EchoArrays, MaskArray
from chisep.report.figures.view import view_of
from chisep.types import Affine

_COLUMNS = 5
_AXIAL = 2


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
    """Axial plane of every echo, all with one intensity window.

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
    columns: int = _COLUMNS,
) -> Figure:
    """Show the same axial plane of several volumes, all with one intensity window.

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
        Planes per line.
    """
    view = view_of(volumes.shape[1:], affine, mask, position)
    width, height = view.size_mm(_AXIAL)
    free_inch = WIDTH_INCH - BAR_INCH - (columns + 1) * GAP_INCH
    # The scale of full lines, also for fewer planes.
    inch_per_mm = min(free_inch / columns / width, TALLEST_INCH / height)
    columns = min(len(volumes), columns)
    cell_inch, line_inch = max(width * inch_per_mm, 2 * NARROWEST_INCH), height * inch_per_mm
    step_inch = TITLE_INCH + line_inch + SIDES_INCH
    lines = math.ceil(len(volumes) / columns)
    bar_left = GAP_INCH + columns * (cell_inch + GAP_INCH)
    sheet = Sheet(bar_left + BAR_INCH, TITLE_INCH + lines * step_inch)
    limits = default_window(volumes, mask) if window is None else window
    for number, (volume, text) in enumerate(zip(volumes, titles, strict=True)):
        line, column = divmod(number, columns)
        left = GAP_INCH + column * (cell_inch + GAP_INCH) + (cell_inch - width * inch_per_mm) / 2
        box = Box(left, 2 * TITLE_INCH + line * step_inch, width * inch_per_mm, line_inch)
        draw_plane(sheet, box, view, volume, mask, _AXIAL, limits, cmap)
        sheet.caption(box, text)
    sheet.heading(GAP_INCH, TITLE_INCH - 0.08, title)
    bar = Box(bar_left, 2 * TITLE_INCH, BAR_INCH - GAP_INCH, max(line_inch, LOWEST_INCH))
    sheet.colour_bar(bar, limits, cmap, unit)
    return sheet.figure
