"""ARLO: auto-regression on linear operations (Pei 2015, 10.1002/mrm.25137), a fast fit of R2*."""

from __future__ import annotations

import torch
from torch import Tensor

from chisep.preprocessing.epg_fit import Trains, Values
from chisep.preprocessing.intravoxel_dephasing import LEAST_ATTENUATION, Attenuation

_CHUNK = 1 << 16


def _arlo(signal: Tensor, step_s: float) -> Tensor:
    """ARLO by Simpson's rule; signal (echo, voxel) → rate (voxel), NaN where there is no signal."""
    third = step_s / 3
    first, middle, last = signal[:-2], signal[1:-1], signal[2:]
    integral = third * (first + 4 * middle + last)
    drop = first - last
    mixed = (integral * drop).sum(0)
    return (mixed + third * (drop**2).sum(0)) / ((integral**2).sum(0) + third * mixed)


def arlo_with_error(signal: Trains, left: Attenuation, step_s: float, sigma: float) -> tuple[Values, Values]:
    """ARLO of echoes corrected for attenuation, with σ of the rate by linear error propagation."""
    rates, errors = [], []
    for first in range(0, signal.shape[1], _CHUNK):
        chunk = slice(first, first + _CHUNK)
        with torch.enable_grad():
            whole = (signal[:, chunk] / left[:, chunk].clamp_min(LEAST_ATTENUATION)).requires_grad_()
            rate = _arlo(whole, step_s)
            (slope,) = torch.autograd.grad(rate.sum(), whole)
        rates.append(rate.detach())
        errors.append(sigma * (slope / left[:, chunk].clamp_min(LEAST_ATTENUATION)).norm(dim=0))
    return torch.cat(rates or [signal[0]]), torch.cat(errors or [signal[0]])
