"""Rician noise of magnitude images: the mean of a noisy magnitude, and σ estimated from the echoes.

Mean and variance: Koay and Basser 2006, 10.1016/j.jmr.2006.01.016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chisep.physics.robust import MAD_TO_SD
from chisep.physics.signal import hz_per_ppm
from chisep.preprocessing.epg_fit import Trains, Values
from chisep.types import Echoes, MaskVolume, Volume

_ASYMPTOTIC = 10.0
_ROUNDS = 4
_OUTLIER = 4.0


def estimate_noise_sigma(magnitude: Echoes, mask: MaskVolume) -> float:
    """Estimate the noise of a magnitude channel from the echoes in the brain.

    Decays of all tissues span few dimensions. With three or more echoes there is a linear combination in
    which tissues have almost no signal; its median absolute deviation, which ignores vessels and edges, is
    the noise. Air is not used: reconstruction often sets it to zero, and coil combination changes its noise.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least two echoes, any scale.
    mask
        Brain, shape (i, j, k).

    Returns
    -------
    float
        Standard deviation in the scale of the images; 0 without a voxel that has signal. With two echoes,
        whose difference shows tissue, from differences between neighbouring voxels: somewhat too large.
    """
    return noise_sigma_of_voxels(magnitude[:, mask])


def noise_sigma_of_voxels(signal: Trains) -> float:
    """Estimate the noise as `estimate_noise_sigma` does, from the echoes of voxels, shape (echo, voxel)."""
    positive = (signal > 0).all(0)
    if not bool(positive.all()):
        signal = signal[:, positive]
    if not signal.shape[1]:
        return 0.0
    scale = float(signal.amax())
    signal = signal / scale
    unit = signal / signal.norm(dim=0)
    kept = unit
    for _ in range(_ROUNDS):
        # eigh sorts by size: the first vector is the contrast with the least signal.
        contrast = torch.linalg.eigh((kept @ kept.T).double())[1][:, 0].to(signal.dtype)
        along = contrast @ unit
        kept = unit[:, along.abs() <= _OUTLIER * MAD_TO_SD * along.abs().median()]
    along = contrast @ signal
    if len(signal) == 2 and len(along) > 1:
        along = torch.diff(along) / math.sqrt(2)
    sigma = MAD_TO_SD * float(along.abs().median())
    return scale * sigma / _floor_narrowing(signal.median(dim=1).values, contrast, sigma)


def _floor_narrowing(levels: Tensor, contrast: Tensor, sigma: float) -> float:
    """SD of a combination of magnitudes over that of its channels; below 1 near the noise floor.

    `levels` are typical magnitudes of the echoes, shape (echo,). At a signal s and a noise of 1, the variance
    of a Rician variable is 2 + s² less its squared mean; its squared median is 2 ln 2 at s = 0.
    """
    narrowing = 1.0
    for _ in range(_ROUNDS if sigma > 0 else 0):
        power = ((levels * narrowing / sigma) ** 2 - 2 * math.log(2)).clamp_min(0)
        mean, _ = rician_mean(power.sqrt()[:, None], power.new_ones(1))
        variance = torch.where(power > _ASYMPTOTIC**2, 1, 2 + power - mean[:, 0] ** 2)
        narrowing = float((contrast**2 * variance).sum().sqrt())
    return narrowing


def noise_sigma_of_field(
    field_sigma_ppm: Volume,
    magnitude: Echoes,
    te_s: Sequence[float],
    b0_t: float,
    mask: MaskVolume,
    *,
    offset_fitted: bool = False,
) -> float:
    """Noise of a magnitude channel, from the σ of a total field of the same echoes.

    Real and imaginary part have the noise that the magnitude has. Unlike the magnitudes of two echoes, their
    phase tells noise from tissue. Where residuals exceed noise σ has grown; hence the median.

    Parameters
    ----------
    field_sigma_ppm
        As of `total_field`, shape (i, j, k).
    magnitude
        Shape (echo, i, j, k), any scale.
    te_s
        Echo times in s.
    b0_t
        Field strength in T.
    mask
        Brain, shape (i, j, k).
    offset_fitted
        Whether every voxel's offset was fitted with the field, as in the non-linear fit.

    Returns
    -------
    float
        Standard deviation in the scale of the images; 0 where no voxel has signal.
    """
    sigma = 2 * math.pi * hz_per_ppm(b0_t) * field_sigma_ppm[mask]
    known = sigma > 0
    if not bool(known.any()):
        return 0.0
    signal = magnitude[:, mask][:, known]
    te = signal.new_tensor(list(te_s))[:, None]
    peak = signal.amax().clamp_min(torch.finfo(signal.dtype).tiny)
    weight = (signal / peak) ** 2
    if offset_fitted:
        te = te - (weight * te).sum(0) / weight.sum(0).clamp_min(torch.finfo(signal.dtype).tiny)
    return float(peak * (sigma[known] * (weight * te**2).sum(0).sqrt()).median())


def noise_of_differences(image: Tensor, mask: MaskVolume) -> float:
    """Estimate the noise of one magnitude image from second differences along its axes; rather too large.

    Parameters
    ----------
    image
        Shape (i, j, k), any scale.
    mask
        Brain, shape (i, j, k).

    Returns
    -------
    float
        Standard deviation in the scale of the image: of the three axes the least. 0 if the mask has no three
        neighbours in a row.
    """
    found = []
    for axis, n in enumerate(mask.shape):
        if n < 3:
            continue
        inside = mask.narrow(axis, 0, n - 2) & mask.narrow(axis, 1, n - 2) & mask.narrow(axis, 2, n - 2)
        if bool(inside.any()):
            # The variance of a − 2b + c is six times that of each.
            found.append(MAD_TO_SD * float(image.diff(n=2, dim=axis)[inside].abs().median()) / math.sqrt(6))
    return min(found, default=0.0)


def rician_mean(signal: Trains, noise: Values) -> tuple[Trains, Trains]:
    """Mean of a Rician variable, and its derivative by the signal, shape (echo, voxel).

    √(π/2) [(1 + 2z) I₀(z) + 2z I₁(z)] exp(−z) at a noise of 1, z = signal²/4; far above the noise by its
    asymptotic series, which is more precise there.
    """
    ratio = signal / noise
    inverse = 1 / ratio.clamp_min(_ASYMPTOTIC)
    excess, slope = inverse / 2 + inverse**3 / 8, 1 - inverse**2 / 2
    close = ~(ratio > _ASYMPTOTIC)
    if bool(close.any()):
        near = ratio[close]
        z = near**2 / 4
        even, odd = torch.special.i0e(z), torch.special.i1e(z)
        root = math.sqrt(math.pi / 2)
        excess[close] = root * (even + 2 * z * (even + odd)) - near
        slope[close] = root / 2 * near * (even + odd)
    return excess.mul_(noise).add_(signal), slope
