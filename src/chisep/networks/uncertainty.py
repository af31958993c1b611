"""From the scale that a network tells of its error to a standard deviation, by how noisy the scan is.

How far a network is off what it says depends on that: one factor for all makes intervals too wide in scans of
little noise, and too narrow in those of much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from chisep.networks.config import NOISE, Channel, NetworkConfig
from chisep.networks.unrolled_proximal import UNKNOWN_PPM

Factors = float | Sequence[Sequence[float]]
"""One factor, or pairs of a scan's noise in ppm, rising, and the factor there: linear in the logarithm of the
noise in between, the nearest beyond."""


def noise_of(config: NetworkConfig) -> Channel | None:
    """Name the input that tells how noisy a scan is, the noise of the first map; None where there is none."""
    noise = NOISE.get(config.inputs[0])
    return noise if noise in config.inputs else None


def noise_level(noise_ppm: Tensor) -> float:
    """Compute the median where something was measured; 1 ppm where nothing was."""
    known = noise_ppm[noise_ppm > 0]
    return float(known.median()) if known.numel() else UNKNOWN_PPM


def factor_at(factors: Factors, level_ppm: float) -> float:
    """Compute the factor of a scan whose noise is at that level."""
    if isinstance(factors, int | float):
        return float(factors)
    noise, values = zip(*factors, strict=True)
    return float(np.interp(math.log(level_ppm), np.log(noise), values))
