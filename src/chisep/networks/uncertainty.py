"""Convert the predicted Laplace scale to a standard deviation, by noise level (conformal calibration).

The ratio of error to predicted scale depends on the noise of the scan: with one factor for all scans,
intervals are too wide at low noise and too narrow at high noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from chisep.networks.config import NOISE, Channel, NetworkConfig
from chisep.networks.unrolled_proximal import UNKNOWN_PPM

Factors = float | Sequence[Sequence[float]]
"""Conformal factors: one number, or pairs of noise level in ppm, rising, and factor. Between pairs
is linear in the logarithm of the noise; beyond them it is that of the nearest pair."""


def noise_of(config: NetworkConfig) -> Channel | None:
    """Name the noise map of the first input; None if the network has no noise inputs."""
    noise = NOISE.get(config.inputs[0])
    return noise if noise in config.inputs else None


def noise_level(noise_ppm: Tensor) -> float:
    """Median noise of measured voxels; 1 ppm if there is none."""
    known = noise_ppm[noise_ppm > 0]
    return float(known.median()) if known.numel() else UNKNOWN_PPM


def factor_at(factors: Factors, level_ppm: float) -> float:
    """Interpolate the conformal factor at the noise level of a scan."""
    if isinstance(factors, int | float):
        return float(factors)
    noise, values = zip(*factors, strict=True)
    return float(np.interp(math.log(level_ppm), np.log(noise), values))


CHI_FACTOR = 1.05
"""Conformal factor of χ = χ_pos − χ_neg: σ_χ over √(σ_pos² + σ_neg²), of the shipped weights `unrolled`.

Measured on the heads 09 and 10: 0.96 to 1.07 with a spin echo, 0.91 without (docs/decisions/0017-one-chi.md).
"""


def chi_sigma(pos_sigma_ppm: Tensor, neg_sigma_ppm: Tensor) -> Tensor:
    """Combine the standard deviations of χ_pos and χ_neg to that of χ = χ_pos − χ_neg.

    Parameters
    ----------
    pos_sigma_ppm, neg_sigma_ppm
        Standard deviations of χ_pos and χ_neg in ppm, equal shapes.
    """
    return CHI_FACTOR * (pos_sigma_ppm.square() + neg_sigma_ppm.square()).sqrt()
