"""Names, intensity windows, colours and sizes of all figures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap

VolumeArray = Float[np.ndarray, "i j k"]
"""One real map on a grid, NIfTI axis order."""
SubjectRows = Float[np.ndarray, "subject column"]
"""One row of numbers per subject."""
EchoArrays = Float[np.ndarray, "echo i j k"]
"""One real volume per echo, echoes in order of their echo time."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside the brain."""
Points = tuple[Sequence[float] | Sequence[int], Sequence[float]]
"""Horizontal and vertical coordinates, as many of each."""

CHI_POS, CHI_NEG, CHI = r"$\chi_\mathrm{pos}$", r"$\chi_\mathrm{neg}$", r"$\chi$"
"""Names of the maps as Matplotlib writes them."""

SOURCE_WINDOW_PPB = (0.0, 100.0)
"""Intensity window of χ_pos and χ_neg: white matter in the lower half, iron-rich nuclei at the top."""
TOTAL_WINDOW_PPB = (-100.0, 100.0)
"""Intensity window of χ = χ_pos − χ_neg."""
SIGMA_WINDOW_PPB = (0.0, 20.0)
"""Intensity window of standard deviations of susceptibility and field."""
RATE_WINDOW_HZ, R2PRIME_WINDOW_HZ, RATE_NOISE_WINDOW_HZ = (0.0, 50.0), (0.0, 20.0), (0.0, 5.0)
"""Intensity windows of R2* and R2, of R2', and of their noise."""
PPB = 1000.0
"""ppb in one ppm."""

# All three run from or through black, so that empty tissue and the background look alike.
CHI_POS_CMAP: Colormap = mpl.colormaps["inferno"]
CHI_NEG_CMAP: Colormap = LinearSegmentedColormap.from_list(
    "chi_neg", ["#000004", "#0c2a5e", "#1c6db0", "#4fb8d0", "#f3fdff"]
)
DIFFERENCE_CMAP: Colormap = LinearSegmentedColormap.from_list(
    "difference", ["#b9e3ff", "#2f7fd6", "#000000", "#d6452f", "#ffd0b0"]
)

SERIES_COLOURS = ("#c2410c", "#1d4ed8", "#4b5563", "#0d9488")
"""Colours of the series of a chart."""
DARK, LIGHT, OUTLINE = "#0e1116", "#e6e9ee", "#ffb000"
"""Background and text of a figure of planes, and the outline of a region."""
WIDTH_INCH = 10.0
"""Width of every figure, and the largest width of a figure of planes."""
DPI = 90
"""Resolution of PNG files."""


def bare(axes: Axes) -> None:
    """Style the axes of a chart: a faint grid, no frame above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
