"""Denoising of R2': local linear minimum mean square error (LMMSE) estimate from all decay parameters.

The gradient and the spin echoes of a voxel have four decay parameters: the logarithms of their amplitudes,
R2* and R2. The covariance of the noise follows from the fits; the covariance of what is measured, in a small
neighbourhood, is that of tissue plus that of noise. The estimate of R2' = R2* − R2 subtracts the noise that
these covariances predict (Lee 1980, 10.1109/TPAMI.1980.4766994, with several channels). Where neighbours
differ by more than noise, at edges and lesions, little is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chisep.preprocessing.decay_fit import MAX_RATE_HZ
from chisep.preprocessing.epg_fit import Trains, Values
from chisep.preprocessing.relaxometry import Rate, bounded_below
from chisep.types import Echoes, MaskVolume, Volume

_SD_VOXELS = 0.8
"""SD of the Gaussian weights of neighbours, in shortest voxel edges. Larger ones blur lesions of three
voxels."""
_REACH_VOXELS = 2
_HIGHEST_WEIGHT = 4.0
"""Of a voxel with little noise, relative to the typical one."""
_LEAST_SCALE = 1e-3
_TINY = 1e-6

Covariance = Mapping[tuple[int, int], Values]
"""Noise covariance of parameters i ≥ j by their numbers; 0 where a pair is missing."""


class Decay(NamedTuple):
    """Decay parameters of a fit: logarithm of the amplitude, rate, and the covariance of their noise.

    Parameters
    ----------
    log_amplitude, rate_hz
        Shape (i, j, k).
    variance_log, covariance, variance_hz2
        Of both, shape (i, j, k).
    """

    log_amplitude: Volume
    rate_hz: Volume
    variance_log: Volume
    covariance: Volume
    variance_hz2: Volume

    def values(self, mask: MaskVolume) -> tuple[Values, Values]:
        """Both parameters in the voxels of a mask."""
        return self.log_amplitude[mask], self.rate_hz[mask]

    def noise(self, mask: MaskVolume) -> tuple[Values, Values, Values]:
        """Variance of the first, covariance, variance of the second in the voxels of a mask."""
        return self.variance_log[mask], self.covariance[mask], self.variance_hz2[mask]


def decay_parameters(echoes: Echoes, te_s: Sequence[float], fit: Rate, mask: MaskVolume) -> Decay:
    """Logarithm of the amplitude at a fitted rate, by linear least squares, with the noise covariance.

    The covariance is that of a least-squares fit of an exponential, scaled to the σ of the rate.

    Parameters
    ----------
    echoes
        Magnitudes, shape (echo, i, j, k).
    te_s
        Echo times in s.
    fit
        Fit of these echoes.
    mask
        Where it was fitted, shape (i, j, k).
    """
    signal, rate = echoes[:, mask].nan_to_num_(), fit.rate_hz[mask]
    te = signal.new_tensor(list(te_s))[:, None]
    decay = torch.exp(-rate * te)
    power = decay.square()
    total, first, second = power.sum(0), (te * power).sum(0), (te**2 * power).sum(0)
    amplitude = signal.mul_(decay).sum(0) / total
    per_rate = fit.sigma_hz[mask].square() / total
    in_volumes = (
        amplitude.clamp_min(torch.finfo(amplitude.dtype).tiny).log_(),
        per_rate * second,
        per_rate * first,
    )
    log_amplitude, variance_log, covariance = (torch.zeros_like(fit.rate_hz) for _ in in_volumes)
    for volume, values in zip((log_amplitude, variance_log, covariance), in_volumes, strict=True):
        volume[mask] = values
    return Decay(log_amplitude, fit.rate_hz, variance_log, covariance, fit.sigma_hz.square())


def denoised_r2prime(
    gre: Decay, spin_echo: Decay, mask: MaskVolume, voxel_mm: tuple[float, float, float]
) -> Rate:
    """Estimate R2' = R2* − R2 from the decay parameters of a voxel and its neighbours (LMMSE).

    Parameters
    ----------
    gre, spin_echo
        Decays of both scans on one grid.
    mask
        Voxels with both, shape (i, j, k).
    voxel_mm
        Edges of a voxel in mm.

    Returns
    -------
    Rate
        R2' and the standard deviation of its error, which neighbours share in part; 0 outside the mask.
        Voxels without signal keep their values, and values below −3 σ are −3 σ, as of `r2prime`.
    """
    pairs = ((0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3))
    noise = dict(zip(pairs, (*gre.noise(mask), *spin_echo.noise(mask)), strict=True))
    parameters = torch.stack((*gre.values(mask), *spin_echo.values(mask)))
    value, sigma = local_lmmse(parameters, noise, (0.0, 1.0, 0.0, -1.0), mask, voxel_mm)
    rate_hz, sigma_hz = torch.zeros_like(gre.rate_hz), torch.zeros_like(gre.rate_hz)
    rate_hz[mask], sigma_hz[mask] = value, sigma.clamp_max(MAX_RATE_HZ)
    return bounded_below(Rate(rate_hz, sigma_hz))


# Long because its steps share the sums of a neighbourhood.
def local_lmmse(
    parameters: Trains,
    noise: Covariance,
    combination: Sequence[float],
    mask: MaskVolume,
    voxel_mm: tuple[float, float, float],
) -> tuple[Values, Values]:
    """Linear minimum mean square error estimate of a combination of parameters, from a neighbourhood.

    Parameters
    ----------
    parameters
        Measured, of the voxels in the mask, shape (parameter, voxel).
    noise
        Covariance of their noise. Voxels in which a parameter has none, or σ of the combination reaches
        `MAX_RATE_HZ`, are not used and keep their values.
    combination
        Factors c of the parameters in the estimated value.
    mask
        Shape (i, j, k).
    voxel_mm
        Edges of a voxel in mm.

    Returns
    -------
    tuple of Tensor
        The estimate and the standard deviation of its error, both of shape (voxel,).

    Notes
    -----
    With the covariance C of the parameters x around their mean μ in the neighbourhood and that of the noise
    N, the expected noise of cᵀx is n̂ = cᵀN C⁻¹ (x − μ), and the remaining variance is cᵀN c − cᵀN C⁻¹ N c. C
    is estimated from n voxels: it gets 2/n of N more, against too small eigenvalues. The mean and the weights
    of p parameters are estimated from them, too, which adds (p + 1)/n of the variance that is subtracted. The
    ratio of the remaining variance to cᵀN c is averaged over neighbours: a method that weights by inverse
    variance would follow voxels where it is small by chance.
    """
    variances = torch.stack([noise[i, i] for i in range(len(parameters))])
    value = torch.tensor(list(combination)).to(parameters) @ parameters
    of_value = _product(noise, combination)
    own = sum((c * row for c, row in zip(combination, of_value, strict=True)), torch.zeros_like(value))
    known = (variances > 0).all(0) & (own < MAX_RATE_HZ**2) & torch.isfinite(parameters).all(0)
    if not bool(known.any()):
        return value, own.sqrt()
    scale = variances[:, known].median(1).values.sqrt()
    scale = torch.maximum(scale, _LEAST_SCALE * parameters[:, known].std(1, correction=0)).clamp_min(_TINY)
    window = _Neighbourhood(mask, known, own, voxel_mm)
    x = parameters / scale[:, None]
    x = torch.where(known, x - x[:, known].mean(1, keepdim=True), 0)
    away = x - torch.stack([window.mean(row) for row in x])
    covariance = {
        (i, j): window.mean(x[i] * x[j]) - (x[i] - away[i]) * (x[j] - away[j])
        for i in range(len(x))
        for j in range(i + 1)
    }
    for (i, j), values in noise.items():
        in_units = values / (scale[i] * scale[j])
        covariance[i, j] += 2 / window.voxels * in_units
        if i == j:
            covariance[i, j] = torch.maximum(covariance[i, j], in_units)
    rows = [row / factor for row, factor in zip(of_value, scale, strict=True)]
    weights = _solved(covariance, rows)
    explained = sum((w * row for w, row in zip(weights, rows, strict=True)), torch.zeros_like(value))
    share = (own / explained.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1)
    found = share * sum((w * row for w, row in zip(weights, away, strict=True)), torch.zeros_like(value))
    removed = share * explained / own.clamp_min(torch.finfo(own.dtype).tiny)
    left = (1 - (2 - share) * removed + (len(x) + 1) / window.voxels * removed).clamp_min(0)
    left = window.mean(window.mean(left))
    return torch.where(known, value - found, value), (torch.where(known, left, 1) * own).sqrt()


def _product(noise: Covariance, combination: Sequence[float]) -> list[Values]:
    """Noise covariance of every parameter with the combination."""
    some = noise[0, 0]
    rows = [torch.zeros_like(some) for _ in combination]
    for (i, j), values in noise.items():
        rows[i] += combination[j] * values
        if i != j:
            rows[j] += combination[i] * values
    return rows


def _solved(matrix: dict[tuple[int, int], Values], right: Sequence[Values]) -> list[Values]:
    """Solve positive definite systems, one per voxel, by Cholesky's method."""
    count = len(right)
    lower: dict[tuple[int, int], Values] = {}
    for i in range(count):
        for j in range(i + 1):
            rest = matrix[i, j].clone()
            for k in range(j):
                rest -= lower[i, k] * lower[j, k]
            lower[i, j] = rest.clamp_min(_TINY).sqrt() if i == j else rest / lower[j, j]
    solution = [row.clone() for row in right]
    for i in range(count):
        for k in range(i):
            solution[i] -= lower[i, k] * solution[k]
        solution[i] /= lower[i, i]
    for i in reversed(range(count)):
        for k in range(i + 1, count):
            solution[i] -= lower[k, i] * solution[k]
        solution[i] /= lower[i, i]
    return solution


class _Neighbourhood:
    """Weighted means over the neighbours of every voxel in a mask.

    Weights are Gaussian in distance, and inverse variances of the noise.

    Attributes
    ----------
    voxels
        Effective number of neighbours with equal noise.
    """

    def __init__(
        self, mask: MaskVolume, known: Tensor, variance: Values, voxel_mm: tuple[float, float, float]
    ) -> None:
        places = mask.nonzero()
        low, high = places.amin(0), places.amax(0) + 1
        self._box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        self._inside = mask[self._box].flatten().nonzero()[:, 0]
        self._shape = tuple(int(n) for n in high - low)
        self._taps = [_taps(min(voxel_mm) / edge) for edge in voxel_mm]
        counts = [(2 * sum(t) - t[0]) ** 2 / (2 * sum(a**2 for a in t) - t[0] ** 2) for t in self._taps]
        self.voxels = math.prod(counts)
        typical = variance[known].median()
        self._weight = torch.where(known, (typical / variance).clamp_max(_HIGHEST_WEIGHT), 0)
        self._total = self._sum(self._weight).clamp_min(_TINY)

    def mean(self, values: Values) -> Values:
        """Weighted mean around every voxel."""
        return self._sum(values * self._weight) / self._total

    def _sum(self, values: Values) -> Values:
        volume: Volume = values.new_zeros(math.prod(self._shape))
        volume[self._inside] = values
        volume = volume.reshape(self._shape)
        for axis, taps in enumerate(self._taps):
            total, size = volume * taps[0], self._shape[axis]
            for step in range(1, min(len(taps), size)):
                ahead, behind = (total.narrow(axis, first, size - step) for first in (step, 0))
                ahead.add_(volume.narrow(axis, 0, size - step), alpha=taps[step])
                behind.add_(volume.narrow(axis, step, size - step), alpha=taps[step])
            volume = total
        return volume.flatten().index_select(0, self._inside)


def _taps(sd_factor: float) -> list[float]:
    """Gaussian weights from the centre outward, for an SD in units of `_SD_VOXELS`."""
    return [math.exp(-0.5 * (n / (_SD_VOXELS * sd_factor)) ** 2) for n in range(_REACH_VOXELS + 1)]
