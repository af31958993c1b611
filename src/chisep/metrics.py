"""How close a map is to the truth: pure functions on arrays and a mask.

Maps are in ppm, shape (i, j, k); masks are bool, and true in the voxels of the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import gaussian_laplace, uniform_filter
from skimage.metrics import structural_similarity

Map = Float[np.ndarray, "i j k"]
"""A map in ppm."""
Mask = Bool[np.ndarray, "i j k"]
"""True in the voxels of the evaluation."""
Labels = Integer[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""

PEAK_PPM = 1.0
"""Peak of PSNR, with which the figures of published χ-sepnet papers agree."""
_XSIM_WINDOW, _XSIM_C1, _XSIM_C2 = 5, 1e-4, 1e-6
_SSIM_WINDOW = 7


def evaluate(predicted: Map, truth: Map, mask: Mask) -> dict[str, float]:
    """Compute all metrics of a map that need no regions.

    Returns
    -------
    dict
        NRMSE in % (plain and demeaned), PSNR in dB (whole field of view, and in the mask), SSIM, xSIM,
        HFEN in %, Pearson's r, mean error in ppm.
    """
    return {
        "nrmse_percent": nrmse_percent(predicted, truth, mask),
        "nrmse_demeaned_percent": nrmse_demeaned_percent(predicted, truth, mask),
        "psnr_db": psnr_db(predicted, truth, mask),
        "psnr_in_mask_db": psnr_in_mask_db(predicted, truth, mask),
        "ssim": ssim(predicted, truth, mask),
        "xsim": xsim(predicted, truth, mask),
        "hfen_percent": hfen_percent(predicted, truth, mask),
        "pearson_r": pearson_r(predicted, truth, mask),
        "mean_error_ppm": float((predicted[mask] - truth[mask]).mean(dtype=np.float64)),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def nrmse_percent(predicted: Map, truth: Map, mask: Mask) -> float:
    """100 ‖p − t‖ / ‖t‖ in the mask, without demeaning; NaN where the truth is 0."""
    p, t = predicted[mask].astype(np.float64), truth[mask].astype(np.float64)
    return 100 * _ratio(float(np.linalg.norm(p - t)), float(np.linalg.norm(t)))


def nrmse_demeaned_percent(predicted: Map, truth: Map, mask: Mask) -> float:
    """NRMSE after both maps lost their mean in the mask (QSM-CI's variant)."""
    p, t = predicted[mask].astype(np.float64), truth[mask].astype(np.float64)
    return 100 * _ratio(
        float(np.linalg.norm(p - p.mean() - t + t.mean())), float(np.linalg.norm(t - t.mean()))
    )


def _psnr(mean_square: float) -> float:
    return 10 * math.log10(PEAK_PPM**2 / mean_square) if mean_square > 0 else math.inf


def psnr_db(predicted: Map, truth: Map, mask: Mask) -> float:
    """PSNR with a peak of 1 ppm over the whole field of view, where both maps are 0 outside the mask."""
    error = np.where(mask, predicted - truth, 0).astype(np.float64)
    return _psnr(float(np.square(error).mean()))


def psnr_in_mask_db(predicted: Map, truth: Map, mask: Mask) -> float:
    """PSNR with a peak of 1 ppm over the voxels of the mask."""
    error = (predicted[mask] - truth[mask]).astype(np.float64)
    return _psnr(float(np.square(error).mean()))


def ssim(predicted: Map, truth: Map, mask: Mask) -> float:
    """Structural similarity as χ-sepnet's authors compute it.

    Both maps are scaled so that their joint range in the mask becomes 0 to 255, and the map of a 7³
    uniform window is averaged over the mask (Wang 2004, 10.1109/TIP.2003.819861).
    """
    low = min(predicted[mask].min(), truth[mask].min())
    high = max(predicted[mask].max(), truth[mask].max())
    if high == low or min(truth.shape) < _SSIM_WINDOW:
        return math.nan
    scaled = [np.where(mask, (m - low) * (255.0 / (high - low)), 0.0) for m in (predicted, truth)]
    _, local = structural_similarity(*scaled, data_range=255.0, full=True)
    return float(local[mask].mean())


def xsim(predicted: Map, truth: Map, mask: Mask) -> float:
    """Structural similarity for susceptibility (XSIM): 5³ window, L = 1, K1 = 0.01, K2 = 0.001.

    Milovic 2025, 10.1002/mrm.30271. Windows at the edge of the volume hold only what is inside, as in QSM-CI.
    """

    def mean(volume: NDArray[np.float64]) -> NDArray[np.float64]:
        averaged: NDArray[np.float64] = uniform_filter(volume, _XSIM_WINDOW, mode="constant") / inside
        return averaged

    inside = uniform_filter(np.ones(truth.shape), _XSIM_WINDOW, mode="constant")
    p, t = predicted.astype(np.float64), truth.astype(np.float64)
    mean_p, mean_t = mean(p), mean(t)
    variances = mean(p * p) - mean_p**2 + mean(t * t) - mean_t**2
    covariance = mean(p * t) - mean_p * mean_t
    local = (2 * mean_p * mean_t + _XSIM_C1) * (2 * covariance + _XSIM_C2)
    local /= (mean_p**2 + mean_t**2 + _XSIM_C1) * (variances + _XSIM_C2)
    return float(local[mask].mean())


def hfen_percent(predicted: Map, truth: Map, mask: Mask, sigma: float = 1.5) -> float:
    """High-frequency error norm: NRMSE of both maps after a Laplacian of Gaussian (σ in voxels).

    Maps that are 0 outside the mask have a jump at its edge, which lies in the kernel of voxels near it.
    """
    p, t = (gaussian_laplace(m.astype(np.float64), sigma, truncate=5.0) for m in (predicted, truth))
    return nrmse_percent(p, t, mask)


def pearson_r(predicted: Map, truth: Map, mask: Mask) -> float:
    """Pearson's correlation in the mask; NaN where one map is constant."""
    p, t = predicted[mask].astype(np.float64), truth[mask].astype(np.float64)
    p, t = p - p.mean(), t - t.mean()
    return _ratio(float(p @ t), float(np.linalg.norm(p) * np.linalg.norm(t)))


@dataclass(frozen=True)
class RegionStatistics:
    """Values of a map in a region, in the unit of the map."""

    voxels: int
    mean: float
    sd: float
    median: float


def roi_statistics(volume: Map, labels: Labels) -> dict[int, RegionStatistics]:
    """Statistics of every label but 0."""
    inside = labels != 0
    order = np.argsort(labels[inside], kind="stable")
    values = volume[inside][order].astype(np.float64)
    found, starts = np.unique(labels[inside][order], return_index=True)
    return {
        int(label): RegionStatistics(part.size, float(part.mean()), float(part.std()), float(np.median(part)))
        for label, part in zip(found, np.split(values, starts[1:]), strict=False)
    }


def mspe_percent(predicted: Map, truth: Map, labels: Labels) -> float:
    """Mean squared percentage error of regional means; NaN without regions of non-zero truth."""
    made, real = roi_statistics(predicted, labels), roi_statistics(truth, labels)
    errors = [(made[label].mean / real[label].mean - 1) ** 2 for label in real if real[label].mean != 0]
    return 100 * float(np.mean(errors)) if errors else math.nan


@dataclass(frozen=True)
class Line:
    """A least-squares line with the 95 % confidence interval of its slope."""

    slope: float
    intercept: float
    slope_low: float
    slope_high: float


def lesion_slope(assigned: Sequence[float], predicted: Sequence[float]) -> Line:
    """Line of mean predicted against mean assigned value over lesions of graded strength; 1 is perfect."""
    fit = stats.linregress(assigned, predicted)
    half = float(stats.t.ppf(0.975, len(assigned) - 2) * fit.stderr)
    return Line(float(fit.slope), float(fit.intercept), float(fit.slope) - half, float(fit.slope) + half)
