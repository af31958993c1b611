"""Noise of a map: estimated from the map itself, or read from a map of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from chisep.errors import InputError
from chisep.types import MaskVolume, Volume

# A share of 2 % of |N(0, 1)| is below 0.02507. So low a quantile, because edges only ever raise the
# high-pass: the median of an anatomy without noise is far from 0, its lowest values are not.
_QUANTILE, _QUANTILE_OF_NORMAL = 0.02, 0.025069
_SECOND_DIFFERENCE_GAIN = math.sqrt(6.0)
_FEWEST_VOXELS = 500


def noise_sigma(volume: Volume, mask: MaskVolume, *, nonnegative: bool = False) -> float:
    """Estimate the standard deviation of white noise from one map.

    Second differences along all three axes leave noise (with a known gain) and edges; the lowest
    few magnitudes are read as the lowest of a normal distribution.

    Parameters
    ----------
    volume
        The map, shape (i, j, k).
    mask
        Where it is known.
    nonnegative
        Whether the map was clipped at 0, so that zeros tell nothing about the noise.

    Returns
    -------
    float
        In the unit of the map; 0 where the mask is too small to tell.
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
    """Noise of a map as one number, and how much more each voxel weighs than one of that noise.

    Parameters
    ----------
    sigma
        Standard deviation, one number or shape (i, j, k); 0 in a map where nothing was measured.
    mask
        Where the map is known.
    least
        Noise below which it counts as noise-free.

    Returns
    -------
    tuple of float and Volume
        The median σ in the mask, and (median/σ)², 0 where nothing is known.
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
