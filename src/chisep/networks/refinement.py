"""Refinement: the estimate of a network as the prior of a classical solver.

A network knows what tissue looks like, with an error that it states voxel by voxel. It makes little use of
data that are better than those of its training, and of tissue that is flatter. Total variation, the data with
their noise, and the network's estimate with its predicted uncertainty are one maximum a posteriori estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from chisep.networks.brain_box import BrainBox
from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.solvers import iterative, tv
from chisep.solvers.noise import noise_sigma
from chisep.types import Maps, MaskVolume, Sources, Susceptibility, Volume

_Record = TypeVar("_Record", Maps, Sources, Susceptibility)
_TOLERANCE = 2e-3
"""Relative change at which `iterative` stops: after 15 iterations where the network is right, after 40 to 60
where it is not."""
_NEIGHBOURS = 5
"""Edge in voxels of the neighbourhoods over which a misfit is averaged: their means hardly have noise."""
_USUAL_MISFIT = 0.26
"""Squared misfit of R2' over the variance that `unrolled` states, on a phantom like those of its training
(a raw scan of head 09). It is 1.1 to 1.5 on phantoms of another make."""
_MEAN_SQUARE_DIPOLE = 4 / 45
"""Mean of D² over all directions."""
_LEAST_VARIANCE = 1e-12
_LEAST_WHITE = 0.5
"""Least white part of the variance of R2'. In a simulated session it is 0.79 with, 0.27 without spin echo."""


def refined_sources(maps: Maps, estimate: Sources, iterations: int, progress: Progress | None) -> Sources:
    """Estimate both sources by iterative χ-separation with a network's estimate as prior.

    Parameters
    ----------
    maps
        Local field, R2', D_r, and the noise maps.
    estimate
        Of the network, with its standard deviations.
    iterations
        Largest number of iterations of the solver.
    progress
        Called after every iteration.

    Returns
    -------
    Sources
        With the standard deviations of the network. It is the estimate itself where the error of R2' is
        mostly alike over large regions, as without a spin echo: to the solver it would be white noise.
    """
    if _has_coarse_error(maps, estimate):
        if progress is not None:
            progress("network", 1, 1)
        return estimate
    # The volume around the brain would double memory and time.
    box = BrainBox(maps.sources_mask, maps.grid)
    whole, estimate, maps = estimate, _cropped(estimate, box), _cropped(maps, box, grid=box.grid)
    prior = estimate
    sigmas = (estimate.chi_pos_sigma_ppm, estimate.chi_neg_sigma_ppm)
    if sigmas[0] is not None and sigmas[1] is not None and min(maps.grid.shape) >= _NEIGHBOURS:
        known = _reliability(maps, estimate, torch.stack((sigmas[0], sigmas[1])))
        wider = math.sqrt(known.excess)
        prior = replace(estimate, chi_pos_sigma_ppm=wider * sigmas[0], chi_neg_sigma_ppm=wider * sigmas[1])
        maps = replace(maps, field_sigma_ppm=known.field_sigma_ppm)
    config = iterative.IterativeConfig(iterations=iterations, tolerance=_TOLERANCE)
    made = iterative.solve(maps, config, progress, prior=prior)
    # It starts near its end: whether it has converged is of no interest.
    pos, neg = box.restore(torch.stack((made.chi_pos_ppm, made.chi_neg_ppm)))
    return replace(whole, chi_pos_ppm=pos, chi_neg_ppm=neg)


def refined_chi(
    maps: Maps, estimate: Susceptibility, iterations: int, progress: Progress | None
) -> Susceptibility:
    """Estimate χ by total variation with a network's estimate as prior; arguments as of `refined_sources`."""
    box = BrainBox(maps.sources_mask, maps.grid)
    small = _cropped(maps, box, grid=box.grid)
    made = tv.solve(small, tv.TvConfig(iterations=iterations), progress, prior=_cropped(estimate, box))
    return replace(estimate, chi_ppm=box.restore(made.chi_ppm[None])[0])


def _cropped(record: _Record, box: BrainBox, **changes: Any) -> _Record:
    """Crop every volume of a record to the brain."""
    values = ((field.name, getattr(record, field.name)) for field in fields(record))
    volumes = {name: box.cut(value) for name, value in values if isinstance(value, Tensor)}
    return replace(record, **volumes, **changes)


def _has_coarse_error(maps: Maps, estimate: Sources) -> bool:
    """Whether R2' has an error that does not show from voxel to voxel, larger than the estimate's."""
    rate, known, sigma_pos = maps.r2prime_hz, maps.sources_mask, estimate.chi_pos_sigma_ppm
    if rate is None or maps.relaxivity is None or sigma_pos is None or not bool(known.any()):
        return True
    variance = float(_volume(maps.r2prime_sigma_hz, rate)[known].median()) ** 2
    fine = noise_sigma(rate * known, known, nonnegative=bool((rate[known] >= 0).all()))
    own = (maps.relaxivity.pos_hz_per_ppm * float(sigma_pos[known].median())) ** 2
    # It is 0 where the mask is too small for an estimate.
    return 0 < fine**2 < _LEAST_WHITE * variance and variance > own


@dataclass(frozen=True, eq=False)
class _Reliability:
    """Reliability of a network's estimate, and of the field.

    Parameters
    ----------
    excess
        Factor on the variance that the network states.
    field_sigma_ppm
        Standard deviation of the field, with the error that its noise map does not state.
    """

    excess: float
    field_sigma_ppm: Volume


def _reliability(maps: Maps, estimate: Sources, sigma: Tensor) -> _Reliability:
    """Compare a network's estimate with R2' and the field, in means over small neighbourhoods.

    Where it misses R2' by more than it states, as in tissue unlike that of its training, its variance is
    larger: by the square of the excess, since its errors are then alike over large regions. Only where it
    does not, what it misses of the field is an error of the field, like those of background removal, which
    noise maps of thermal noise do not state.
    """
    if maps.relaxivity is None or maps.r2prime_hz is None:
        return _Reliability(1.0, _volume(maps.field_sigma_ppm, maps.field_ppm))
    pos, neg = estimate.chi_pos_ppm, estimate.chi_neg_ppm
    dr_hz_per_ppm, ratio = maps.relaxivity.pos_hz_per_ppm, maps.relaxivity.ratio
    of_field = _volume(maps.field_sigma_ppm, maps.field_ppm)
    of_rate = _volume(maps.r2prime_sigma_hz, maps.field_ppm) / dr_hz_per_ppm
    variance_pos, variance_neg = sigma.square()
    missed, stated = _mean_squares(
        maps.r2prime_hz / dr_hz_per_ppm - pos - ratio * neg,
        of_rate,
        variance_pos + ratio**2 * variance_neg,
        maps.sources_mask & (of_rate > 0),
    )
    excess = max(1.0, missed / max(_USUAL_MISFIT * stated, _LEAST_VARIANCE)) ** 2
    missed, stated = _mean_squares(
        maps.field_ppm - Dipole(maps.grid, dtype=pos.dtype, device=pos.device).apply(pos - neg),
        of_field,
        _MEAN_SQUARE_DIPOLE * (variance_pos + variance_neg),
        maps.mask & (of_field > 0),
    )
    unstated = max(0.0, missed - _USUAL_MISFIT * stated) / excess**4
    return _Reliability(excess, (of_field.square() + unstated).sqrt_() * (of_field > 0))


def _mean_squares(
    residual: Volume, sigma: Volume, variance: Volume, known: MaskVolume
) -> tuple[float, float]:
    """Mean square in ppm² of a residual's local means, less that of white noise; mean of a variance."""
    stack = torch.stack((known.to(residual), residual * known, sigma.square() * known, variance * known))
    # Axis by axis, 15 sums a voxel instead of 125.
    for window in ((_NEIGHBOURS, 1, 1), (1, _NEIGHBOURS, 1), (1, 1, _NEIGHBOURS)):
        stack = functional.avg_pool3d(stack, window, 1)
    whole, missed, noise, stated = stack
    inner = whole > 1 - 0.5 / _NEIGHBOURS**3
    if not bool(inner.any()):
        return 0.0, 0.0
    excess = missed[inner].square() - noise[inner] / _NEIGHBOURS**3
    return float(excess.mean()), float(stated[inner].mean())


def _volume(sigma: Volume | float | None, like: Volume) -> Volume:
    """Noise map of a number; 0, not known, without one."""
    return sigma if isinstance(sigma, Tensor) else torch.full_like(like, sigma or 0.0)
