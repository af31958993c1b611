"""Relaxation rates R2*, R2 and R2' in 1/s from echo magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes, MaskVolume, Volume

MAX_RATE_HZ = 500.0
"""Upper end of the rates reported; the lower end is 0. Above it, no usual echo time sees a signal."""

REFERENCE_R2_HZ = 12.7
"""Mean R2 of the brain at 3 T (training statistics published with χ-sepnet, Human Brain Mapping 2025)."""

R2_SLOPE_HZ_PER_T = 1.8
"""Assumed growth of the brain's R2 with B0: T2 of about 80 ms at 3 T and 50 ms at 7 T."""

_ITERATIONS = 30
_TOLERANCE = 1e-5
_UNIFORM = 1e-3


def r2star(magnitude: Echoes, te_s: Sequence[float], mask: MaskVolume) -> Volume:
    """R2* from multi-echo gradient-echo magnitudes.

    Uniform echoes go through ARLO (Pei 2015, 10.1002/mrm.25137), which needs no iteration; other
    echo times, and voxels where ARLO has no valid answer, through the non-linear fit of `r2`.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least three echoes, any scale.
    te_s
        Echo times in s, increasing.
    mask
        Where to fit, shape (i, j, k).

    Returns
    -------
    Volume
        R2* in 1/s, within 0 and `MAX_RATE_HZ`; 0 outside the mask.

    Raises
    ------
    InputError
        If there are fewer than three echoes, or the echo times do not fit.
    """
    _check_echoes(magnitude, te_s, at_least=3, name="R2*")
    # Squares of tiny scanner units would leave the range of float32.
    signal = magnitude[:, mask] / magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny)
    steps = [b - a for a, b in pairwise(te_s)]
    if max(steps) - min(steps) > _UNIFORM * max(steps):
        return _filled(_mono_exponential(signal, te_s), mask)
    rate = _arlo(signal, sum(steps) / len(steps))
    failed = ~(torch.isfinite(rate) & (rate >= 0) & (rate <= MAX_RATE_HZ))
    rate[failed] = _mono_exponential(signal[:, failed], te_s)
    return _filled(rate, mask)


def r2(magnitude: Echoes, te_s: Sequence[float], mask: MaskVolume) -> Volume:
    """R2 from multi-echo spin-echo magnitudes, as one exponential with ideal refocusing.

    The least-squares fit of the signal itself, started from the log-linear fit weighted by the squared
    signal. Weak late echoes, where the Rician floor sits, weigh little in both.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least two echoes, any scale.
    te_s
        Echo times in s, increasing.
    mask
        Where to fit, shape (i, j, k).

    Returns
    -------
    Volume
        R2 in 1/s, within 0 and `MAX_RATE_HZ`; 0 outside the mask and where there is no signal.

    Raises
    ------
    InputError
        If there are fewer than two echoes, or the echo times do not fit.
    """
    _check_echoes(magnitude, te_s, at_least=2, name="R2")
    return _filled(_mono_exponential(magnitude[:, mask], te_s), mask)


def r2prime(r2star_hz: Volume, r2_hz: Volume | float) -> Volume:
    """R2' = max(R2* − R2, 0) in 1/s, shape (i, j, k); R2 is a map or one number for all voxels."""
    return (r2star_hz - r2_hz).clamp_min(0)


def pseudo_r2_hz(b0_t: float) -> float:
    """R2 assumed for a session without spin echoes, in 1/s.

    Parameters
    ----------
    b0_t
        Field strength in T.

    Returns
    -------
    float
        12.7 + 1.8 · (B0 − 3): the mean R2 of the brain at 3 T and an assumed linear growth with B0.
        One number for the whole brain: regional differences of R2 end up in R2'.

    Raises
    ------
    InputError
        If the field strength is not positive.
    """
    if not (math.isfinite(b0_t) and b0_t > 0):
        raise InputError(
            "B0",
            found=f"{b0_t} T",
            wanted="a positive field strength",
            remedy="Correct MagneticFieldStrength.",
        )
    return REFERENCE_R2_HZ + R2_SLOPE_HZ_PER_T * (b0_t - 3.0)


def _check_echoes(magnitude: Tensor, te_s: Sequence[float], *, at_least: int, name: str) -> None:
    """Check that echoes and echo times belong together and suffice."""
    found = None
    if len(te_s) != len(magnitude):
        found = f"{len(magnitude)} echoes and {len(te_s)} echo times"
    elif len(te_s) < at_least:
        found = f"{len(te_s)} echo" + ("es" if len(te_s) > 1 else "")
    elif te_s[0] <= 0 or any(b <= a for a, b in pairwise(te_s)):
        found = f"echo times {', '.join(f'{te:g}' for te in te_s)} s"
    if found:
        raise InputError(
            f"echoes for {name}",
            found=found,
            wanted=f"at least {at_least} echoes, each with its echo time in s, positive and increasing",
            remedy="Give all echoes of one multi-echo scan, in order.",
        )


def _filled(values: Tensor, mask: Tensor) -> Tensor:
    volume = values.new_zeros(mask.shape)
    volume[mask] = values.clamp(0, MAX_RATE_HZ)
    return volume


def _arlo(signal: Tensor, step_s: float) -> Tensor:
    """ARLO with Simpson's rule; signal (echo, voxel) → rate (voxel), NaN where there is no signal."""
    third = step_s / 3
    first, middle, last = signal[:-2], signal[1:-1], signal[2:]
    integral = third * (first + 4 * middle + last)
    drop = first - last
    mixed = (integral * drop).sum(0)
    return (mixed + third * (drop**2).sum(0)) / ((integral**2).sum(0) + third * mixed)


def _mono_exponential(signal: Tensor, te_s: Sequence[float]) -> Tensor:
    """Least-squares rate of a·exp(−R·TE); signal (echo, voxel) → rate (voxel), 0 where there is no signal.

    Gauss–Newton on (a, R) with Levenberg's damping, all voxels at once. Times are in units of the
    longest TE and signals in units of the brightest echo, so that both unknowns are of order 1.
    """
    longest = te_s[-1]
    t = torch.tensor([te / longest for te in te_s], dtype=signal.dtype, device=signal.device)[:, None]
    peak = signal.amax(0)
    y = signal / torch.where(peak > 0, peak, 1)
    amplitude, rate = _log_linear(y, t)
    limit = MAX_RATE_HZ * longest
    damping = torch.full_like(rate, 1e-3)
    decay = torch.exp(-rate * t)
    residual = y - amplitude * decay
    for _ in range(_ITERATIONS):
        slope = -amplitude * t * decay
        aa, ar, rr = (decay**2).sum(0), (decay * slope).sum(0), (slope**2).sum(0)
        ga, gr = (decay * residual).sum(0), (slope * residual).sum(0)
        aa, rr = aa * (1 + damping), rr * (1 + damping)
        determinant = (aa * rr - ar**2).clamp_min(torch.finfo(y.dtype).tiny)
        new_amplitude = amplitude + (rr * ga - ar * gr) / determinant
        new_rate = (rate + (aa * gr - ar * ga) / determinant).clamp(0, limit)
        new_decay = torch.exp(-new_rate * t)
        new_residual = y - new_amplitude * new_decay
        better = (new_residual**2).sum(0) <= (residual**2).sum(0)
        moved = bool((better & ((new_rate - rate).abs() > _TOLERANCE * (1 + rate))).any())
        amplitude = torch.where(better, new_amplitude, amplitude)
        rate = torch.where(better, new_rate, rate)
        decay = torch.where(better, new_decay, decay)
        residual = torch.where(better, new_residual, residual)
        damping = torch.where(better, damping / 10, damping * 10)
        if not moved:
            break
    return torch.where(peak > 0, rate / longest, 0)


def _log_linear(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude and rate of the line through log y, weighted by y² (the inverse variance of a logarithm)."""
    y = y.clamp_min(1e-6)
    weight = y**2
    total = weight.sum(0)
    log_y = torch.log(y)
    mean_t, mean_log = (weight * t).sum(0) / total, (weight * log_y).sum(0) / total
    spread = (weight * (t - mean_t) ** 2).sum(0).clamp_min(1e-12)
    rate = (-(weight * (t - mean_t) * (log_y - mean_log)).sum(0) / spread).clamp_min(0)
    return torch.exp(mean_log + rate * mean_t), rate
