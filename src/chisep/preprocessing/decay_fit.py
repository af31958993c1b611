"""Non-linear least-squares fit of a decay rate to echo magnitudes, with the noise floor in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chisep.preprocessing.epg_fit import DecayModel, Trains, Values
from chisep.preprocessing.intravoxel_dephasing import LEAST_ATTENUATION, Attenuation
from chisep.preprocessing.magnitude_noise import rician_mean

MAX_RATE_HZ = 500.0
"""Upper bound of fitted rates and of their σ, where it means that nothing is known. Faster decays leave no
signal at usual echo times."""
LEAST_RATE_HZ = -20.0
"""Lower bound of fitted rates. Noise makes the rate of a slow decay (CSF) negative in part of the voxels; a
bound of 0 would make its mean too large."""
_ITERATIONS = 30
_TOLERANCE = 1e-5
_CHUNK = 1 << 16
_LEAST_NOISE = 1e-7


def exponential(te_s: Sequence[float], left: Attenuation) -> DecayModel:
    """Exponential decay model, with the attenuation of each echo."""
    t = left.new_tensor(list(te_s))[:, None]

    def decay(voxels: Tensor, rate_hz: Tensor) -> tuple[Tensor, Tensor]:
        values = left[:, voxels] * torch.exp(-rate_hz * t)
        return values, -t * values

    return decay


def fit_decay(
    signal: Trains, te_s: Sequence[float], sigma: float, model: DecayModel, left: Attenuation
) -> tuple[Values, Values]:
    """Fit amplitude and decay rate by least squares; returns the rate and its σ from the curvature, in 1/s.

    Echoes with an attenuation of 0 are not used. Without signal the rate is 0 and its σ is `MAX_RATE_HZ`.
    Times are in units of the longest TE and signals in units of the brightest echo, so that both unknowns are
    of order 1.
    """
    longest, tiny = te_s[-1], torch.finfo(signal.dtype).tiny
    t = signal.new_tensor([te / longest for te in te_s])[:, None]
    rate, error = torch.zeros_like(signal[0]), torch.zeros_like(signal[0])
    for first in range(0, signal.shape[1], _CHUNK):
        voxels = torch.arange(first, min(first + _CHUNK, signal.shape[1]), device=signal.device)
        chunk = slice(first, first + _CHUNK)
        peak = signal[:, chunk].amax(0)
        scale = torch.where(peak > 0, peak, 1)
        used = left[:, chunk] > 0
        data = _Data(
            signal[:, chunk] / scale,
            (sigma / scale).clamp_min(_LEAST_NOISE),
            None if bool(used.all()) else used.to(signal.dtype),
            voxels,
        )
        start = _log_linear_rate(data.echoes, t, left[:, chunk]).clamp_max(MAX_RATE_HZ * longest)
        found, amplitude = _least_squares(data, model, start, longest)
        shape, slope = _scaled(model, voxels, found, longest)
        _, passed = rician_mean(amplitude * shape, data.noise)
        aa, ar, rr = _normal(data.of_used(passed * shape), data.of_used(passed * amplitude * slope))
        # sin² of the angle between the derivatives by amplitude and by rate.
        separate = (1 - ar**2 / (aa * rr).clamp_min(tiny)).clamp_min(0)
        deviation = data.noise / (rr * separate).clamp_min(tiny).sqrt()
        rate[chunk] = torch.where(peak > 0, found / longest, 0)
        error[chunk] = torch.where(peak > 0, deviation / longest, MAX_RATE_HZ)
    return rate, error


class _Data(NamedTuple):
    """Voxels of one chunk: echoes and σ relative to the brightest echo, echoes in use, and voxel indices."""

    echoes: Trains
    noise: Values
    used: Trains | None
    voxels: Tensor

    def some(self, here: Tensor) -> _Data:
        """Select some of the voxels."""
        used = None if self.used is None else self.used[:, here]
        return _Data(self.echoes[:, here], self.noise[here], used, self.voxels[here])

    def of_used(self, values: Trains) -> Trains:
        """Set echoes that are not in use to 0, in place."""
        return values if self.used is None else values.mul_(self.used)


def _least_squares(data: _Data, model: DecayModel, rate: Values, longest: float) -> tuple[Values, Values]:
    """Rates in units of 1/(longest TE), and amplitudes.

    Gauss–Newton with Levenberg damping, for all voxels at once. Converged voxels are removed as soon as they
    are the majority.
    """
    tiny = torch.finfo(rate.dtype).tiny
    shape, slope = _scaled(model, data.voxels, rate, longest)
    shown = data.of_used(shape.clone())
    amplitude = (shown * data.echoes).sum(0) / (shown**2).sum(0).clamp_min(tiny)
    mean, passed = rician_mean(amplitude * shape, data.noise)
    residual = data.of_used(data.echoes - mean)
    damping = torch.full_like(rate, 1e-3)
    final_rate, final_amplitude = rate.clone(), amplitude.clone()
    at = torch.arange(len(rate), device=rate.device)
    for _ in range(_ITERATIONS):
        by_amplitude = data.of_used(passed * shape)
        by_rate = data.of_used((passed * amplitude).mul_(slope))
        aa, ar, rr = _normal(by_amplitude, by_rate)
        ga, gr = (by_amplitude * residual).sum(0), (by_rate * residual).sum(0)
        aa, rr = aa * (1 + damping), rr * (1 + damping)
        determinant = (aa * rr - ar**2).clamp_min(tiny)
        # Steps of diverging voxels may overflow; the dictionary has no entry for NaN.
        new_amplitude = torch.nan_to_num(amplitude + (rr * ga - ar * gr) / determinant).clamp_min(0)
        new_rate = torch.nan_to_num(rate + (aa * gr - ar * ga) / determinant)
        new_rate = new_rate.clamp(LEAST_RATE_HZ * longest, MAX_RATE_HZ * longest)
        new_shape, new_slope = _scaled(model, data.voxels, new_rate, longest)
        new_mean, new_passed = rician_mean(new_amplitude * new_shape, data.noise)
        new_residual = data.of_used(data.echoes - new_mean)
        better = (new_residual**2).sum(0) <= (residual**2).sum(0)
        moving = (new_rate - rate).abs() > _TOLERANCE * (1 + rate)
        # Few steps are rejected: the new arrays are kept, with the old values of those voxels.
        worse = (~better).nonzero()[:, 0]
        if len(worse):
            new_rate[worse], new_amplitude[worse] = rate[worse], amplitude[worse]
            for new, old in (
                (new_shape, shape),
                (new_slope, slope),
                (new_passed, passed),
                (new_residual, residual),
            ):
                new[:, worse] = old[:, worse]
        rate, amplitude = new_rate, new_amplitude
        shape, slope, passed, residual = new_shape, new_slope, new_passed, new_residual
        damping = torch.where(better, damping / 10, damping * 10)
        final_rate[at], final_amplitude[at] = rate, amplitude
        if int(moving.sum()) < len(at) / 2:
            on = moving.nonzero()[:, 0]
            at, data = at[on], data.some(on)
            rate, amplitude, damping = rate[on], amplitude[on], damping[on]
            shape, slope, passed = shape[:, on], slope[:, on], passed[:, on]
            residual = residual[:, on]
        if not len(at):
            break
    return final_rate, final_amplitude


def _normal(by_amplitude: Trains, by_rate: Trains) -> tuple[Values, Values, Values]:
    """Entries of the 2 × 2 normal matrix."""
    return (by_amplitude**2).sum(0), (by_amplitude * by_rate).sum(0), (by_rate**2).sum(0)


def _scaled(model: DecayModel, voxels: Tensor, rate: Values, longest: float) -> tuple[Trains, Trains]:
    """Echoes and their derivatives by a rate in units of 1/(longest TE)."""
    values, slope = model(voxels, rate / longest)
    return values, slope / longest


def _log_linear_rate(y: Trains, t: Tensor, left: Attenuation) -> Values:
    """Log-linear fit of the rate, weighted by y² (the inverse variance of a logarithm), at least 0."""
    weight = y**2 * (left > 0)
    total = weight.sum(0).clamp_min(1e-12)
    log_y = torch.log((y / left.clamp_min(LEAST_ATTENUATION)).clamp_min(1e-6))
    mean_t, mean_log = (weight * t).sum(0) / total, (weight * log_y).sum(0) / total
    spread = (weight * (t - mean_t) ** 2).sum(0).clamp_min(1e-12)
    return (-(weight * (t - mean_t) * (log_y - mean_log)).sum(0) / spread).clamp_min(0)
