"""Refinement: the estimate of a network as the prior of a classical solver.

A network knows what tissue looks like, with an error that it states voxel by voxel. It makes little use of
data that are better than those of its training, and of tissue that is flatter. Total variation, the data with
their noise, and the network's estimate with its predicted uncertainty are one maximum a posteriori estimate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from chisep.physics.dipole import Dipole
from chisep.preprocessing.morphology import depth_mm
from chisep.preprocessing.pdf import PdfConfig, pdf
from chisep.progress import Progress
from chisep.solvers import iterative, tv
from chisep.solvers.field_error import field_error, random_error_ppm
from chisep.solvers.noise import noise_sigma
from chisep.types import (
    Convergence,
    Maps,
    MaskVolume,
    Sources,
    Susceptibility,
    Volume,
    required,
    required_relaxivity,
)

_TOLERANCE = 4e-3
"""Relative change at which `iterative` stops where the network is right, after 8 iterations. Elsewhere it
has its own, after 110 or more."""
_UNLIKE = 2.0
"""Excess of the misfit of R2' from which tissue is unlike that of the training, and the network no prior. In
phantoms of another make it is 2 to 6."""
_NO_PRIOR = 1e3
"""Factor on σ with which a prior counts for nothing."""
_REFINED_FACTOR = 0.9
"""Standard deviation over that of the network where it is right. The refinement takes a sixth of its errors:
with 1 intervals of 90 % cover 94 to 96 %."""
_UNLIKE_WARNING = (
    "the estimate of the network misses R2' {excess:.1f} times more than on phantoms like those of its "
    "training: tissue is unlike theirs, or D_r, σ of R2' or the registration of the spin echo is wrong. The "
    "result is that of iterative χ-separation, and so is its uncertainty"
)
_SURFACE_MM, _SURFACE_FACTOR = 3.0, 0.3
"""Depth from the surface of the brain in which σ of χ_neg counts as this much smaller. The field is worst
there and χ_neg weak: the solver had 75 % in the first millimetre, the network 58."""
_RESIDUAL_BACKGROUND = PdfConfig(iterations=5)
"""If all of it is removed, it takes the field's error on a raw scan of head 09 from 3.16 to 2.68 ppb; 10
iterations to 2.67."""
_LEAST_PART = 0.05
"""Part of the misfit below which removing it is not worth the time."""
_PERTURBED_ITERATIONS = 40
_PERTURBED_FACTOR = 1.4
"""Standard deviation over the change by perturbed data: total variation flattens both alike, and that is an
error too. Found: 1.3 to 1.7 in phantoms with white and structured errors, and without noise."""
_LEAST_PERTURBED = 0.01
"""Least variance of a voxel over the mean."""
_RELATIVE_ERROR = 0.07
"""Part of χ that is unknown since D_r is not the same in all tissue."""
_SEED = 0
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
        With 0.9 times the standard deviations of the network, or those of the solver where R2' shows that the
        network is wrong. It is the estimate itself where the error of R2' is mostly alike over large
        regions, as without a spin echo: to the solver it would be white noise.
    """
    if _has_coarse_error(maps, estimate):
        if progress is not None:
            progress("network", 1, 1)
        return estimate
    excess = _excess(maps, estimate)
    unlike = excess >= _UNLIKE
    misfit = _misfit_of_field(maps, estimate)
    of_field = _field_error(misfit, maps, estimate, excess)
    maps = replace(maps, field_sigma_ppm=of_field.sigma_ppm)
    if of_field.part_of_misfit > _LEAST_PART:
        maps = _without_residual_background(maps, misfit, of_field.part_of_misfit)
    config = iterative.IterativeConfig(iterations=iterations)
    if not unlike:
        config = replace(config, tolerance=_TOLERANCE)
    sigma = (_NO_PRIOR if unlike else excess**2) * _sigma(estimate)
    sigma[1, _surface(maps)] *= _SURFACE_FACTOR
    prior = _with_sigma(estimate, sigma)
    made = iterative.solve(maps, config, progress, prior=prior)
    sigma = _perturbed_sigma(maps, made, progress) if unlike else _REFINED_FACTOR * _sigma(estimate)
    # It starts near its end: whether it has converged is of no interest.
    said = (_UNLIKE_WARNING.format(excess=excess),) if unlike else ()
    return replace(_with_sigma(made, sigma), convergence=Convergence(warnings=said))


def refined_chi(
    maps: Maps, estimate: Susceptibility, iterations: int, progress: Progress | None
) -> Susceptibility:
    """Estimate χ by total variation with a network's estimate as prior; arguments as of `refined_sources`."""
    made = tv.solve(maps, tv.TvConfig(iterations=iterations), progress, prior=estimate)
    return replace(estimate, chi_ppm=made.chi_ppm)


def _surface(maps: Maps) -> MaskVolume:
    """Find the surface layer of the brain."""
    layer: MaskVolume = (depth_mm(maps.sources_mask, maps.grid) <= _SURFACE_MM) & maps.sources_mask
    return layer


def _sigma(estimate: Sources) -> Tensor:
    """Stack the standard deviations of χ_pos, χ_neg and χ, shape (3, i, j, k)."""
    volumes = estimate.chi_pos_sigma_ppm, estimate.chi_neg_sigma_ppm, estimate.chi_sigma_ppm
    return torch.stack([required(volume, "σ") for volume in volumes])


def _with_sigma(estimate: Sources, sigma: Tensor) -> Sources:
    pos, neg, chi = sigma
    return replace(estimate, chi_pos_sigma_ppm=pos, chi_neg_sigma_ppm=neg, chi_sigma_ppm=chi)


def _perturbed_sigma(maps: Maps, made: Sources, progress: Progress | None) -> Tensor:
    """Estimate standard deviations of both sources and χ, shape (3, i, j, k), by randomize-then-optimize.

    Errors of the stated σ, drawn once, are added to field and R2'. The change of the solution is a draw from
    its distribution (Bardsley 2014, 10.1137/140964023); its mean square over a neighbourhood is the variance.
    """
    rate = required(maps.r2prime_hz, "R2'")
    generator = torch.Generator().manual_seed(_SEED)
    of_rate = torch.randn(maps.grid.shape, generator=generator).to(maps.field_ppm)
    perturbed = replace(
        maps,
        field_ppm=maps.field_ppm + random_error_ppm(field_error(maps), maps, generator),
        r2prime_hz=rate + of_rate.mul_(_volume(maps.r2prime_sigma_hz, rate)),
    )
    config = iterative.IterativeConfig(iterations=_PERTURBED_ITERATIONS)
    # It starts at `made`, which has the σ of no prior.
    other = iterative.solve(perturbed, config, progress, prior=made)
    values = torch.stack((made.chi_pos_ppm, made.chi_neg_ppm, made.chi_ppm))
    changes = torch.stack((other.chi_pos_ppm, other.chi_neg_ppm, other.chi_ppm)).sub_(values)
    inside = maps.sources_mask.to(values)
    *squares, whole = _means(torch.cat((changes.square_(), inside[None])), padding=_NEIGHBOURS // 2)
    variance = torch.stack(squares).div_(whole.clamp_min(_LEAST_VARIANCE)).mul_(_PERTURBED_FACTOR**2)
    variance.add_(values.mul_(_RELATIVE_ERROR).square_())
    # Where the bound at 0 holds in both solutions nothing changes.
    least = _LEAST_PERTURBED * variance[:, maps.sources_mask].mean(1)
    return torch.maximum(variance, least[:, None, None, None]).sqrt_().mul_(inside)


def _has_coarse_error(maps: Maps, estimate: Sources) -> bool:
    """Whether R2' has an error that does not show from voxel to voxel, larger than the estimate's."""
    rate, known = required(maps.r2prime_hz, "R2'"), maps.sources_mask
    if not bool(known.any()):
        return True
    variance = float(_volume(maps.r2prime_sigma_hz, rate)[known].median()) ** 2
    fine = noise_sigma(rate * known, known, nonnegative=bool((rate[known] >= 0).all()))
    sigma_pos = float(_sigma(estimate)[0][known].median())
    own = (required_relaxivity(maps.relaxivity).pos_hz_per_ppm * sigma_pos) ** 2
    # It is 0 where the mask is too small for an estimate.
    return 0 < fine**2 < _LEAST_WHITE * variance and variance > own


def _excess(maps: Maps, estimate: Sources) -> float:
    """Compute the squared misfit of R2' over that on phantoms like those of the training, 1 or more.

    Where a network misses R2' by more than it states, in means over small neighbourhoods, the tissue is
    unlike that of its training.
    """
    if min(maps.grid.shape) < _NEIGHBOURS:
        return 1.0
    relaxivity = required_relaxivity(maps.relaxivity)
    variance_pos, variance_neg, _ = _sigma(estimate).square_()
    of_rate = _volume(maps.r2prime_sigma_hz, maps.field_ppm) / relaxivity.pos_hz_per_ppm
    made = estimate.chi_pos_ppm + relaxivity.ratio * estimate.chi_neg_ppm
    missed, stated = _mean_squares(
        required(maps.r2prime_hz, "R2'") / relaxivity.pos_hz_per_ppm - made,
        of_rate,
        variance_pos + relaxivity.ratio**2 * variance_neg,
        maps.sources_mask & (of_rate > 0),
    )
    return max(1.0, missed / max(_USUAL_MISFIT * stated, _LEAST_VARIANCE))


class _FieldError(NamedTuple):
    """Error of the field, as what a network misses of it shows.

    `sigma_ppm` is its noise map, with the error that its own does not state. `part_of_misfit` is the part of
    the misfit that is an error of the field, and not of the network.
    """

    sigma_ppm: Volume
    part_of_misfit: float


def _field_error(misfit: Volume, maps: Maps, estimate: Sources, excess: float) -> _FieldError:
    """Estimate the error of the field from what a network misses of it beyond its stated uncertainty.

    Where R2' does not show that the network is wrong, that is an error of the field, like those of background
    removal, which noise maps of thermal noise do not state.
    """
    of_field = _volume(maps.field_sigma_ppm, maps.field_ppm)
    if min(maps.grid.shape) < _NEIGHBOURS:
        return _FieldError(of_field, 0.0)
    variance_pos, variance_neg, _ = _sigma(estimate).square_()
    missed, stated = _mean_squares(
        misfit,
        of_field,
        _MEAN_SQUARE_DIPOLE * (variance_pos + variance_neg),
        maps.mask & (of_field > 0),
    )
    unstated = max(0.0, missed - _USUAL_MISFIT * stated) / excess**8
    part = unstated / max(missed, _LEAST_VARIANCE)
    return _FieldError((of_field.square() + unstated).sqrt_() * (of_field > 0), part)


def _misfit_of_field(maps: Maps, estimate: Sources) -> Volume:
    dipole = Dipole(maps.grid, dtype=maps.field_ppm.dtype, device=maps.field_ppm.device)
    return (maps.field_ppm - dipole.apply(estimate.chi_ppm)).mul_(maps.mask)


def _without_residual_background(maps: Maps, misfit: Volume, part: float) -> Maps:
    """Remove the residual background field: what sources outside of the brain explain of the misfit.

    Background removal has to tell the fields of sources inside and outside apart by assumptions. An estimate
    of the sources inside leaves a misfit in which the outside has a larger part. Errors of the estimate are
    in it too: only the part that is an error of the field is removed.
    """
    sigma = _volume(maps.field_sigma_ppm, misfit)
    local = pdf(misfit, maps.mask, maps.grid, _RESIDUAL_BACKGROUND, sigma_ppm=sigma)
    background = (misfit - local.local_field_ppm).mul_(local.mask)
    return replace(maps, field_ppm=maps.field_ppm - part * background)


def _mean_squares(
    residual: Volume, sigma: Volume, variance: Volume, known: MaskVolume
) -> tuple[float, float]:
    """Mean square in ppm² of a residual's local means, less that of white noise; mean of a variance."""
    volumes = known.to(residual), residual * known, sigma.square() * known, variance * known
    whole, missed, noise, stated = _means(torch.stack(volumes))
    inner = whole > 1 - 0.5 / _NEIGHBOURS**3
    if not bool(inner.any()):
        return 0.0, 0.0
    excess = missed[inner].square() - noise[inner] / _NEIGHBOURS**3
    return float(excess.mean()), float(stated[inner].mean())


def _means(volumes: Tensor, padding: int = 0) -> Tensor:
    """Average (c, i, j, k) over neighbourhoods: those that lie in the volume or, with padding, all."""
    # Axis by axis, 15 sums a voxel instead of 125.
    for axis in range(3):
        edges, padded = [1, 1, 1], [0, 0, 0]
        edges[axis], padded[axis] = _NEIGHBOURS, padding
        volumes = functional.avg_pool3d(volumes, edges, 1, padded)
    return volumes


def _volume(sigma: Volume | float | None, like: Volume) -> Volume:
    """Noise map of a number; 0, not known, without one."""
    return sigma if isinstance(sigma, Tensor) else torch.full_like(like, sigma or 0.0)
