"""Dark figure for planes, with positions in inches from its left and upper edge.

One axes covers the whole figure. Separate axes for every plane and colour bar would take most of the time
of a report: their ticks, spines and labels cost more than the images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from chisep.report.figures.style import DARK, LIGHT, OUTLINE

GAP_INCH, TITLE_INCH, SIDES_INCH, BAR_INCH = 0.1, 0.32, 0.24, 0.95
"""Space between planes, above a row for its title, below for the sides, at its right for the colour bar."""

_POINT_INCH = 1 / 72
_SMALL_POINTS, _LARGE_POINTS = 9, 11
_BAR_LEFT_INCH, _BAR_WIDTH_INCH = 0.05, 0.14
_TICK_POINTS, _PAD_POINTS = 3.5, 3.5
_MOST_TICKS = 9
_SHADES = 256


class Box(NamedTuple):
    """Rectangle in inches from the left and upper edge of a sheet."""

    left: float
    top: float
    width: float
    height: float


class Sheet:
    """Dark figure with positions in inches from its left and upper edge."""

    def __init__(self, width_inch: float, height_inch: float) -> None:
        self.figure = Figure((width_inch, height_inch), facecolor=DARK)
        self.width_inch = width_inch
        self._axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_axis_off()
        self._axes.set(xlim=(0.0, width_inch), ylim=(height_inch, 0.0), autoscale_on=False)

    def image(
        self,
        pixels: NDArray[Any],
        box: Box,
        window: tuple[float, float],
        cmap: str | Colormap,
        **style: Any,  # noqa: ANN401
    ) -> None:
        """Draw an image; values that are NaN or masked are transparent."""
        extent = (box.left, box.left + box.width, box.top + box.height, box.top)
        self._axes.imshow(
            pixels,
            extent=extent,
            origin="upper",
            aspect="auto",
            vmin=window[0],
            vmax=window[1],
            cmap=cmap,
            **style,
        )

    def background(self, box: Box) -> None:
        """Fill a rectangle with black, below the images."""
        self._axes.add_patch(
            Rectangle(box[:2], box.width, box.height, facecolor="black", linewidth=0, zorder=-1)
        )

    def sides(self, box: Box, left: str, right: str) -> None:
        """Write the patient's sides below both ends of a plane."""
        for x, name, alignment in ((box.left, left, "left"), (box.left + box.width, right, "right")):
            y = box.top + box.height + _PAD_POINTS * _POINT_INCH
            self._text(x, y, name, ha=alignment, va="top")

    def outline(self, region: NDArray[Any], box: Box) -> None:
        """Draw the border of a region; a region that leaves the plane is closed at its edge."""
        # A frame of background lets the contour close, and gives a plane of one slice the two rows it needs.
        plane = np.pad(region.astype(np.float32), 1)
        if not plane.any():
            return
        rows, columns = plane.shape
        x = box.left + (np.arange(columns) - 0.5) * box.width / (columns - 2)
        y = box.top + (np.arange(rows) - 0.5) * box.height / (rows - 2)
        lines = self._axes.contour(x, y, plane, levels=[0.5], colors=OUTLINE, linewidths=1.0)
        lines.set_clip_path(Rectangle(box[:2], box.width, box.height, transform=self._axes.transData))

    def heading(self, left: float, bottom: float, text: str) -> None:
        """Write a title that ends above `bottom`."""
        self._text(left, bottom, text, size=_LARGE_POINTS)

    def caption(self, box: Box, text: str) -> None:
        """Write a small title above the middle of a plane."""
        self._text(box.left + box.width / 2, box.top - 3 * _POINT_INCH, text, ha="center")

    def named(self, left: float, top: float, colour: Any, text: str) -> None:  # noqa: ANN401
        """Write a text beside a square of its colour."""
        edge = 0.12
        self._axes.add_patch(Rectangle((left, top), edge, edge, facecolor=colour, linewidth=0))
        self._text(left + edge + 0.06, top + edge / 2, text, va="center_baseline")

    def colour_bar(self, box: Box, window: tuple[float, float], cmap: str | Colormap, unit: str) -> None:
        """Draw the colour bar of a window with its unit; the box holds the bar, its ticks and the unit."""
        left, top, _, height = box
        bar = Box(left + _BAR_LEFT_INCH, top, _BAR_WIDTH_INCH, height)
        shades = np.linspace(window[1], window[0], _SHADES)[:, None]
        self.image(shades, bar, window, cmap, interpolation="nearest")
        ticks, labels, factor = _ticks(window, height)
        right = bar.left + bar.width
        end = right + _TICK_POINTS * _POINT_INCH
        places = top + height * (window[1] - ticks) / (window[1] - window[0])
        self._axes.hlines(places, right, end, colors=LIGHT, linewidth=0.8)
        for place, label in zip(places, labels, strict=True):
            self._text(end + _PAD_POINTS * _POINT_INCH, place, label, va="center_baseline")
        if factor:
            self._text(right, top - 3 * _POINT_INCH, factor, ha="right")
        middle = top + height / 2
        self._text(left + box.width, middle, unit, size=10, ha="right", va="center", rotation="vertical")

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = _SMALL_POINTS,
        **style: Any,  # noqa: ANN401
    ) -> None:
        # A text of the figure, which unlike a text of the axes computes no clip path.
        self.figure.text(x, y, text, transform=self._axes.transData, color=LIGHT, fontsize=size, **style)


def _ticks(window: tuple[float, float], height_inch: float) -> tuple[NDArray[Any], list[str], str]:
    """Ticks of a colour bar with their labels, and the factor that all labels share."""
    room = int(height_inch / (2 * _SMALL_POINTS * _POINT_INCH))
    locator = MaxNLocator(min(max(room, 1), _MOST_TICKS), steps=[1, 2, 2.5, 5, 10])
    ticks = np.asarray(locator.tick_values(*window))
    slack = 1e-6 * (window[1] - window[0])
    ticks = ticks[(ticks >= window[0] - slack) & (ticks <= window[1] + slack)]
    formatter = ScalarFormatter()
    formatter.create_dummy_axis()
    formatter.axis.set_view_interval(*window)  # type: ignore[union-attr]
    return ticks, formatter.format_ticks(ticks.tolist()), formatter.get_offset()
