"""Metrics of an experiment: sources and susceptibility against a reference, mean and SD over subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chisep import metrics
from chisep.networks.config import SOURCES
from chisep.types import MaskVolume, Sources

_METRICS: Mapping[str, Callable[..., float]] = {
    "nrmse_percent": metrics.nrmse_percent,
    "psnr_db": metrics.psnr_db,
    "psnr_in_mask_db": metrics.psnr_in_mask_db,
    "ssim": metrics.ssim,
    "xsim": metrics.xsim,
}
NAMES = {"chi_pos": "χ_pos", "chi_neg": "χ_neg"}


CHI_METRICS = {"nrmse_percent": ("NRMSE (%)", 1), "hfen_percent": ("HFEN (%)", 1), "ssim": ("SSIM", 3)}
"""Metrics → title and digits."""


def arrays(sources: Sources) -> dict[str, NDArray[Any]]:
    """χ_pos and χ_neg in ppm by the names of `SOURCES`."""
    return {"chi_pos": sources.chi_pos_ppm.numpy(), "chi_neg": sources.chi_neg_ppm.numpy()}


def scores(predicted: Sources, reference: Sources, mask: MaskVolume) -> dict[str, dict[str, float | None]]:
    """Metrics of χ_pos and χ_neg; None where one is not defined.

    Parameters
    ----------
    predicted, reference
        Shape (i, j, k), 0 outside the mask.
    mask
        Brain.

    Returns
    -------
    dict
        By the names of `SOURCES`: NRMSE in %, PSNR in dB with a peak of 1 ppm (whole field of view, and in
        the mask), SSIM, xSIM.
    """
    inside, made, real = mask.numpy(), arrays(predicted), arrays(reference)
    found: dict[str, dict[str, float | None]] = {}
    for name in SOURCES:
        values = {metric: function(made[name], real[name], inside) for metric, function in _METRICS.items()}
        found[name] = {key: finite(value) for key, value in values.items()}
    return found


def chi_scores(made: NDArray[Any], real: NDArray[Any], inside: NDArray[np.bool_]) -> dict[str, float | None]:
    """Compute the metrics of `CHI_METRICS` of zero-mean χ maps; None where undefined."""
    made, real = _centred(made, inside), _centred(real, inside)
    return {name: finite(getattr(metrics, name)(made, real, inside)) for name in CHI_METRICS}


def _centred(chi: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(inside, chi - chi[inside].mean(dtype=np.float64), 0).astype(np.float32)


def mean_and_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and SD (n − 1) over subjects; None where a value is missing or, for the SD, alone."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return {"mean": None, "sd": None}
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "sd": sd}


def finite(value: float) -> float | None:
    """Return a finite value, and None for NaN and infinity, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
