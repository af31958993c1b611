"""Relaxivity D_r of a scan: given, the default of the field strength, or calibrated in deep grey matter.

The calibration is a regression of R2' on |χ|: in nuclei that are rich in iron and poor in myelin χ is almost
χ_pos, so that R2' = D_r,pos |χ| + a constant
(Shin 2021, 10.1016/j.neuroimage.2021.118371; 137 1/s/ppm at 3 T. Dimov 2022, 10.3390/tomography8030127,
finds another value with another QSM: D_r depends on the QSM method used to calibrate it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.robust import MAD_TO_SD
from chisep.physics.signal import default_relaxivity
from chisep.types import MaskVolume, Relaxivity, Volume

Labels = Int[Tensor, "i j k"]
"""One label number per voxel."""
Points = Float[np.ndarray, "..."]
"""One number per region, or per resample and region."""

DEEP_GREY: Mapping[int, str] = MappingProxyType(
    {
        11: "left caudate nucleus",
        50: "right caudate nucleus",
        12: "left putamen",
        51: "right putamen",
        13: "left pallidum",
        52: "right pallidum",
        27: "left substantia nigra",
        59: "right substantia nigra",
    }
)
"""FreeSurfer numbers of the nuclei with the most iron."""
MapPair = Float[np.ndarray, "2 i j k"]
"""χ and R2'."""
MeanPairs = Float[np.ndarray, "resample 2"]
"""Their means in resamples."""

_OUTLIER = 4.0


AUTO: Literal["auto"] = "auto"
"""D_r estimated from the scan itself."""
DrOption = tuple[float, ...] | Literal["auto"]
"""D_r as an option: none, one number, two, or `auto`."""


def check_dr(dr: DrOption) -> None:
    """Check an option of D_r.

    Raises
    ------
    InputError
        If there are more than two numbers.
    """
    if dr != AUTO and len(dr) > 2:
        raise InputError(
            "--dr",
            found=f"{len(dr)} numbers",
            expected="one, two for χ_pos and χ_neg, or auto",
            fix="Give D_r in 1/s/ppm.",
        )


def relaxivity(dr: Sequence[float], b0_t: float) -> Relaxivity:
    """D_r from options: none (the default of the field strength), one number, or two.

    Parameters
    ----------
    dr
        D_r in 1/s/ppm: empty, of both sources, or of χ_pos and χ_neg.
    b0_t
        Field strength in tesla.
    """
    return Relaxivity(dr[0], dr[-1]) if dr else default_relaxivity(b0_t)


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of the calibration of D_r and of its confidence interval."""

    least_voxels: int = 20
    """Regions of fewer voxels are left out."""
    least_regions: int = 5
    """Minimum number of regions."""
    block_voxels: int = 3
    """Edge in voxels of the blocks that are resampled together, since errors of neighbours are correlated."""
    resamples: int = 2000
    """Number of bootstrap resamples."""

    def __post_init__(self) -> None:
        for name, least in (
            ("least_voxels", 1),
            ("least_regions", 4),
            ("block_voxels", 1),
            ("resamples", 100),
        ):
            value = getattr(self, name)
            if value < least:
                raise InputError(
                    name, found=f"{value}", expected=f"{least} or more", fix="Correct the option."
                )


@dataclass(frozen=True)
class RegionPoint:
    """Means of one region, without outlying voxels.

    Parameters
    ----------
    label, name
        Of the region.
    voxels
        Number of voxels averaged.
    chi_ppm
        |χ| in ppm.
    r2prime_hz
        R2' in 1/s.
    """

    label: int
    name: str
    voxels: int
    chi_ppm: float
    r2prime_hz: float


@dataclass(frozen=True)
class RelaxivityFit:
    """A regression of R2' on |χ|.

    Parameters
    ----------
    hz_per_ppm
        Slope: D_r in 1/s per ppm.
    interval95
        Its 95 % confidence interval.
    intercept_hz
        R2' at χ = 0 in 1/s.
    r_squared
        Squared correlation of the regions' means.
    regions
        The points of the regression.
    """

    hz_per_ppm: float
    interval95: tuple[float, float]
    intercept_hz: float
    r_squared: float
    regions: tuple[RegionPoint, ...]


# Long because the docstring states the whole contract.
def calibrate_relaxivity(
    r2prime_hz: Volume,
    chi_ppm: Volume,
    labels: Labels,
    mask: MaskVolume,
    rng: np.random.Generator,
    config: CalibrationConfig | None = None,
    *,
    regions: Mapping[int, str] = DEEP_GREY,
) -> RelaxivityFit:
    """Calibrate D_r by Deming regression over deep grey nuclei.

    Both means have errors, so the line has the least orthogonal distance (Deming), in units of the scatter of
    voxels within regions. The interval is from a bootstrap over regions and, within each, over blocks of
    voxels, widened by Student's t because regions are few.

    Parameters
    ----------
    r2prime_hz
        R2' in 1/s, shape (i, j, k).
    chi_ppm
        Susceptibility, relative to any reference below the nuclei, shape (i, j, k).
    labels
        Segmentation, shape (i, j, k).
    mask
        Where both maps are known, shape (i, j, k).
    rng
        Draws the resamples.
    config
        Options; defaults where None.
    regions
        Label numbers of the regions and their names.

    Returns
    -------
    RelaxivityFit
        D_r, its interval, and the regions used.

    Raises
    ------
    InputError
        If there are too few regions, or the regions do not show that R2' grows with |χ|: an interval that
        reaches 0 or is wider than D_r itself.

    Notes
    -----
    Where both sources are in a voxel, R2' = D_r (|χ| + 2 min(χ_pos, χ_neg)). A part that is equal
    in all regions adds to the intercept. A part that grows with |χ| adds to the slope: in digital phantoms
    with the sources of the χ-separation atlas (Min 2024, 10.1002/nbm.5226) D_r comes out some 5 % too large
    from these nuclei, 30 % without an intercept, and 35 % where nuclei with more myelin are added
    (subthalamic, dentate). A susceptibility map that is too small by some part makes D_r too large by the
    same: D_r depends on its map.
    """
    config = config or CalibrationConfig()
    maps = np.stack([chi_ppm.cpu().double().numpy(), r2prime_hz.cpu().double().numpy()])
    numbers, inside = labels.cpu().numpy(), mask.cpu().numpy() & np.isfinite(maps).all(0)
    samples = {label: _Sample(maps, inside & (numbers == label)) for label in regions}
    used = {label: sample for label, sample in samples.items() if sample.voxels >= config.least_voxels}
    if len(used) < config.least_regions:
        raise InputError(
            "regions for D_r",
            found=", ".join(regions[label] for label in used) or "none",
            expected=f"at least {config.least_regions} nuclei of {config.least_voxels} voxels or more",
            fix="Give a segmentation with FreeSurfer's numbers on the grid of the maps, or a D_r.",
        )
    means = np.array([sample.mean for sample in used.values()])
    x, y = np.abs(means[:, 0]), means[:, 1]
    spread_x, spread_y = np.median([sample.scatter for sample in used.values()], axis=0)
    ratio = float(spread_y / spread_x) ** 2 if spread_x > 0 and spread_y > 0 else 1.0
    slope = float(_deming(x, y, ratio))
    half = _half_interval(list(used.values()), ratio, rng, config)
    low, high = slope - half, slope + half
    if not (math.isfinite(half) and slope > 0 and low > 0 and high - low < slope):
        raise InputError(
            "D_r from deep grey matter",
            found=f"{slope:.4g} 1/s/ppm, 95 % interval {low:.4g} to {high:.4g}",
            expected="a positive D_r whose interval is narrower than D_r itself",
            fix="Check R2', the susceptibility map and the segmentation, or give a D_r.",
        )
    points = tuple(
        RegionPoint(label, regions[label], sample.voxels, float(abs(sample.mean[0])), float(sample.mean[1]))
        for label, sample in used.items()
    )
    r_squared = float(np.corrcoef(x, y)[0, 1] ** 2)
    return RelaxivityFit(slope, (low, high), float(y.mean() - slope * x.mean()), r_squared, points)


class _Sample:
    """Voxels of one region without outliers in χ or R2'.

    Attributes
    ----------
    voxels
        Their number.
    mean, scatter
        Mean and standard deviation of χ and R2', shape (2,).
    """

    def __init__(self, maps: MapPair, here: np.ndarray) -> None:
        values, places = maps[:, here], np.argwhere(here)
        if values.shape[1]:
            centre = np.median(values, axis=1, keepdims=True)
            away = np.abs(values - centre)
            kept = (away <= _OUTLIER * MAD_TO_SD * np.median(away, axis=1, keepdims=True)).all(0)
            values, places = values[:, kept], places[kept]
        self._values, self._places = values, places
        self.voxels = values.shape[1]
        self.mean = values.mean(1) if self.voxels else np.zeros(2)
        self.scatter = values.std(1) if self.voxels else np.zeros(2)

    def resampled(self, count: int, block: int, rng: np.random.Generator) -> MeanPairs:
        """Means of resamples of blocks of voxels."""
        _, index = np.unique(self._places // block, axis=0, return_inverse=True)
        blocks = int(index.max()) + 1
        size = np.bincount(index.ravel(), minlength=blocks)
        sums = np.stack([np.bincount(index.ravel(), values, blocks) for values in self._values], axis=1)
        times = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=count)
        return np.asarray(times @ sums / (times @ size)[:, None])


def _deming(x: Points, y: Points, ratio: float) -> Points:
    """Slope by Deming regression; `ratio` is the variance of errors in y over that in x."""
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    xx, yy, xy = (dx**2).mean(-1), (dy**2).mean(-1), (dx * dy).mean(-1)
    half = (yy - ratio * xx) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((half + np.sqrt(half**2 + ratio * xy**2)) / xy)


def _half_interval(
    samples: list[_Sample], ratio: float, rng: np.random.Generator, config: CalibrationConfig
) -> float:
    """Half the 95 % interval of the slope by bootstrap."""
    count, n = config.resamples, len(samples)
    drawn = np.stack([sample.resampled(count, config.block_voxels, rng) for sample in samples], axis=1)
    chosen = rng.integers(n, size=(count, n))
    picked = np.take_along_axis(drawn, chosen[..., None], axis=1)
    # A line through fewer than three different regions has no scatter.
    scattered = np.array([len(set(row)) >= 3 for row in chosen.tolist()])
    slopes = _deming(np.abs(picked[scattered, :, 0]), picked[scattered, :, 1], ratio)
    low, high = np.quantile(slopes[np.isfinite(slopes)], stats.norm.cdf([-1, 1]))
    return float(stats.t.ppf(0.975, n - 2) * (high - low) / 2)
