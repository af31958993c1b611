"""Figures: functions from arrays to Matplotlib figures.

Susceptibility is given in ppm and drawn in ppb, with the same intensity window for every subject, so that
pages can be compared. Figures are built without pyplot: there is no global state, and nothing to close.
"""

from chisep.report.figures.agreement import Agreement, bland_altman
from chisep.report.figures.axial import axial_planes, echoes
from chisep.report.figures.bars import Bars, bars
from chisep.report.figures.curves import Curves, curves
from chisep.report.figures.distributions import Distribution, band_spectra, distributions
from chisep.report.figures.encode import data_uri, png
from chisep.report.figures.group import Spread, spreads
from chisep.report.figures.lesions import Lesions, lesion_lines
from chisep.report.figures.maps import (
    Row,
    comparison,
    mask_outline,
    planes,
    region_planes,
    source_maps,
    three_planes,
)
from chisep.report.figures.qc import convergence, histogram
from chisep.report.figures.style import (
    CHI,
    CHI_NEG,
    CHI_NEG_CMAP,
    CHI_POS,
    CHI_POS_CMAP,
    DIFFERENCE_CMAP,
    R2PRIME_WINDOW_HZ,
    RATE_NOISE_WINDOW_HZ,
    RATE_WINDOW_HZ,
    SIGMA_WINDOW_PPB,
    SOURCE_WINDOW_PPB,
    TOTAL_WINDOW_PPB,
    EchoArrays,
    MaskArray,
    Points,
    VolumeArray,
)

__all__ = [
    "CHI",
    "CHI_NEG",
    "CHI_NEG_CMAP",
    "CHI_POS",
    "CHI_POS_CMAP",
    "DIFFERENCE_CMAP",
    "R2PRIME_WINDOW_HZ",
    "RATE_NOISE_WINDOW_HZ",
    "RATE_WINDOW_HZ",
    "SIGMA_WINDOW_PPB",
    "SOURCE_WINDOW_PPB",
    "TOTAL_WINDOW_PPB",
    "Agreement",
    "Bars",
    "Curves",
    "Distribution",
    "EchoArrays",
    "Lesions",
    "MaskArray",
    "Points",
    "Row",
    "Spread",
    "VolumeArray",
    "axial_planes",
    "band_spectra",
    "bars",
    "bland_altman",
    "comparison",
    "convergence",
    "curves",
    "data_uri",
    "distributions",
    "echoes",
    "histogram",
    "lesion_lines",
    "mask_outline",
    "planes",
    "png",
    "region_planes",
    "source_maps",
    "spreads",
    "three_planes",
]
