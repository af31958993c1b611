"""Noise of a map: estimated from the map itself, or from its noise map."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from chisep.errors import InputError
from chisep.types import MaskVolume, Volume

# 2 % of |N(0, 1)| is below 0.02507. The quantile is so low because edges only raise the high-pass: without
# noise the median of an anatomy is far from 0, its lowest values are not.
_QUANTILE, _QUANTILE_OF_NORMAL = 0.02, 0.025069
_SECOND_DIFFERENCE_GAIN = math.sqrt(6.0)
_FEWEST_VOXELS = 500


def noise_sigma(volume: Volume, mask: MaskVolume, *, nonnegative: bool = False) -> float:
    """Estimate the standard deviation of white noise from one map.

    Second differences along all three axes contain noise (with a known gain) and edges; a low quantile of
    their magnitude is compared with that of a normal distribution.

    Parameters
    ----------
    volume
        The map, shape (i, j, k).
    mask
        Where it is known.
    nonnegative
        Whether the map was clipped at 0, so that zeros contain no information about the noise.

    Returns
    -------
    float
        In the unit of the map; 0 where the mask is too small.
    """
    known = mask & (volume > 0) if nonnegative else mask
    high_pass = volume
    for axis in range(3):
        n = high_pass.shape[axis]
        if n < 3:
            return 0.0
        high_pass = (
            high_pass.narrow(axis, 0, n - 2)
            - 2 * high_pass.narrow(axis, 1, n - 2)
            + high_pass.narrow(axis, 2, n - 2)
        )
    unknown_near = max_pool3d((~known).to(volume.dtype)[None, None], 3, stride=1)[0, 0] > 0
    values = high_pass[~unknown_near].abs()
    if values.numel() < _FEWEST_VOXELS:
        return 0.0
    lowest = values.kthvalue(max(1, int(_QUANTILE * values.numel()))).values
    return float(lowest) / _QUANTILE_OF_NORMAL / _SECOND_DIFFERENCE_GAIN**3


def known_noise(sigma: Volume | float, mask: MaskVolume, least: float) -> tuple[float, Volume]:
    """Median noise of a map, and inverse-variance weights relative to it.

    Parameters
    ----------
    sigma
        Standard deviation, one number or shape (i, j, k); 0 in a map where nothing was measured.
    mask
        Where the map is known.
    least
        Lower bound of the noise.

    Returns
    -------
    tuple of float and Volume
        The median σ in the mask, and (median/σ)², 0 where σ is unknown.
    """
    if not isinstance(sigma, Tensor):
        return max(sigma, least), mask.to(torch.get_default_dtype())
    measured = mask & (sigma > 0)
    if not bool(measured.any()):
        raise InputError(
            "noise map",
            found="no value above 0 in the mask",
            expected="the standard deviation of the noise in every voxel",
            fix="Leave it out, and the noise is estimated.",
        )
    floored = sigma.clamp_min(least)
    median = float(floored[measured].median())
    return median, (median / floored).square_().mul_(measured)
