"""Iterative χ-separation: field and R2' weighted by their noise, and total variation.

    min  ½ ‖M (D * (χ_pos − χ_neg) − Δf)‖² / σ_f²  +  ½ ‖M (χ_pos + r χ_neg − R2'/D_r,pos)‖² / σ_r²
       + ½ ‖M (χ_pos − χ_neg − χ_QSM)‖² / σ_q²     +  (λ / σ_r) TV(χ_pos, χ_neg)
       + ½ κ ‖(χ_pos − z_pos) / σ_pos‖²  +  ½ κ ‖(χ_neg − z_neg) / σ_neg‖²
    over χ_pos, χ_neg ≥ 0, both 0 outside the mask M; r = D_r,neg / D_r,pos

(Shin 2021, 10.1016/j.neuroimage.2021.118371, with the noise of the maps as weights: σ_f and σ_r are maps
where they are known voxel by voxel, and their medians in front of TV.) The third term is present only when a
QSM map is given, the last two only with a prior: an estimate z of both sources with its σ, as a network makes
it. A coarse error of the field is part of its model (`coarse_error`); σ_f is then that of the
white part. σ_f and σ_r are estimated where they are not given; λ is σ_r over a scale of |∇χ| that
follows from the spectrum of the field (`field_error`). The unknowns are t = (χ_pos + χ_neg)/√2 and
c = (χ_pos − χ_neg)/√2: the field depends on c alone, so that the two decouple in k-space. This rotation
changes neither the lengths in TV nor the distances in a proximal step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chisep.physics.operators import Gradient
from chisep.progress import Progress
from chisep.solvers import closed_form
from chisep.solvers._admm import PENALTY_VOXEL, SLAB, minimise
from chisep.solvers._common import (
    LEAST_PRIOR_SIGMA_PPM,
    PaddedBox,
    check,
    edge_mask,
    ended,
    least_noise_ppm,
)
from chisep.solvers.field_error import FieldError, coarse_error, field_error, gradient_scale_ppm
from chisep.solvers.noise import known_noise, noise_sigma
from chisep.types import Maps, Sources, required, required_relaxivity

_PENALTY_FIELD = 0.04
"""With it and the penalties of `_admm` 40 iterations reach more than 120 do with a quarter of each: 25.5/29.1
instead of 26.0/29.8 % on a phantom with structured errors of the field."""
_PENALTY_CLEAN_FIELD = 0.01
"""The same where the noise of the field is below `_CLEAN` of its root mean square: a small penalty resolves
modes near the cone, where D is 0, which a clean field determines. Without noise 120 iterations from the
estimate of a network reach 3.6/4.4 % with it, 4.4/5.2 with the larger one."""
_CLEAN = 0.02
_SCALE_OVER_RMS = 0.25
"""Scale of the gradients of both sources over the root mean square of |∇χ|; 0.2 to 0.7 differ little."""
_PRIOR_WEIGHT = 0.3
"""κ: errors of a network are alike in neighbouring voxels, so that each counts less than a measurement. On a
simulated session 0.2 and 0.3 differ by 0.3 % in χ_neg."""
_USUAL_WEIGHT = 0.6
"""λ where the mask has too few voxels to estimate spectra."""


@dataclass(frozen=True)
class IterativeConfig:
    """Settings of iterative χ-separation."""

    tv_weight: float | None = None
    """Weight λ of total variation, in units of the noise of R2'/D_r; smooths more when larger. If unset: that
    noise over the scale of |∇χ_pos|, |∇χ_neg|."""
    iterations: int = 120
    """Maximum number of iterations."""
    tolerance: float = 1e-4
    """Relative change of both maps at which the iteration stops."""
    qsm_sigma_ppm: float = 0.03
    """Assumed standard deviation σ_q of a given QSM map, in ppm."""
    edge_fraction: float = 0.3
    """Share of voxels taken as edges of a given magnitude image, where maps are not smoothed."""

    def __post_init__(self) -> None:
        if self.tv_weight is not None:
            check("tv-weight", self.tv_weight, low=0.0)
        check("iterations", self.iterations, low=0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("qsm-sigma-ppm", self.qsm_sigma_ppm, low=0.0)
        check("edge-fraction", self.edge_fraction, low=0.0, high=1.0)


# Long because the docstring states the whole contract.
def solve(
    maps: Maps, config: IterativeConfig, progress: Progress | None = None, prior: Sources | None = None
) -> Sources:
    """Separate the sources of field and R2' iteratively (χ-separation).

    Parameters
    ----------
    maps
        With R2' and D_r; a QSM map and a magnitude are used where given.
    config
        Weights and stopping criteria.
    progress
        Called after every iteration.
    prior
        Estimate of both sources with its standard deviations, where the iteration starts; the closed form is
        the start without one.

    Returns
    -------
    Sources
        χ_pos and χ_neg in ppm.

    Raises
    ------
    InputError
        If R2' or D_r is missing.
    """
    r2prime_hz = required(maps.r2prime_hz, "R2'")
    relaxivity = required_relaxivity(maps.relaxivity)
    padded = PaddedBox(maps.sources_mask, maps.grid, padding=0.1)
    mask, support = padded.cut(maps.mask), padded.cut(maps.sources_mask)
    field = padded.cut(maps.field_ppm) * mask
    target = padded.cut(r2prime_hz) * support / relaxivity.pos_hz_per_ppm
    qsm = None if maps.chi_ppm is None else padded.cut(maps.chi_ppm) * mask
    magnitude = None if maps.magnitude is None else padded.cut(maps.magnitude)

    # All weights are relative to that of the typical voxel of the field, 1/σ_f², σ_f of the white part.
    error = field_error(maps)
    (sigma_f, weight_f), (sigma_r, relative_r) = _noise_ppm(maps, padded, field, target, error)
    clean = sigma_f < _CLEAN * float(field[mask].square().mean().sqrt())
    coarse = coarse_error(error, padded.periodic_grid)
    sigma_f *= coarse.white_part
    scale_ppm = gradient_scale_ppm(error, _SCALE_OVER_RMS)
    usual_weight = _USUAL_WEIGHT if scale_ppm is None else sigma_r / scale_ppm
    tv_weight = usual_weight if config.tv_weight is None else config.tv_weight
    weight_r = relative_r * (sigma_f / sigma_r) ** 2
    weight_q = mask * (0.0 if qsm is None else (sigma_f / config.qsm_sigma_ppm) ** 2)
    start = closed_form.solve(maps, closed_form.ClosedFormConfig()) if prior is None else prior
    first = torch.stack((padded.cut(start.chi_pos_ppm), padded.cut(start.chi_neg_ppm)))
    voxelwise = VoxelStep(
        target,
        qsm,
        support,
        relaxivity.ratio,
        weight_r,
        weight_q,
        prior=first,
        weight_prior=None if prior is None else sigma_f**2 * _prior_weight(prior, padded),
    )
    x, change = minimise(
        padded=padded,
        grid=maps.grid,
        field_ppm=field,
        weight=weight_f,
        start=rotated(first),
        field_gain=math.sqrt(2),
        tv_weight=tv_weight * sigma_f**2 / sigma_r,
        tv_mask=edge_mask(support, Gradient(maps.grid.voxel_mm), magnitude, config.edge_fraction),
        voxelwise=voxelwise.on_rotated,
        penalty_field=_PENALTY_CLEAN_FIELD if clean else _PENALTY_FIELD,
        coarse_power=coarse.power,
        iterations=config.iterations,
        tolerance=config.tolerance,
        progress=progress,
    )
    pos, neg = rotated(x).clamp_(min=0).mul_(support)
    convergence = ended(change, config.tolerance, "iterative")
    if config.tv_weight is None:
        convergence = replace(convergence, chosen={"tv_weight": tv_weight})
    restored = Sources(padded.restore(pos), padded.restore(neg), convergence)
    if prior is None:
        return restored
    # The data make it smaller; by how much is not known.
    return replace(
        restored,
        chi_pos_sigma_ppm=prior.chi_pos_sigma_ppm,
        chi_neg_sigma_ppm=prior.chi_neg_sigma_ppm,
        chi_sigma_ppm=prior.chi_sigma_ppm,
    )


def rotated(x: Tensor) -> Tensor:
    """(χ_pos, χ_neg) → (χ_pos + χ_neg, χ_pos − χ_neg)/√2, and back: the rotation is its own inverse."""
    return torch.stack((x[0] + x[1], x[0] - x[1])).mul_(math.sqrt(0.5))


def _noise_ppm(
    maps: Maps, padded: PaddedBox, field: Tensor, target: Tensor, error: FieldError
) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """Typical noise in ppm and relative weights, of the field and of R2'/D_r; estimated if not given."""
    mask, support = padded.cut(maps.mask), padded.cut(maps.sources_mask)
    d_r_hz_per_ppm = required_relaxivity(maps.relaxivity).pos_hz_per_ppm
    if maps.r2prime_sigma_hz is None:
        of_rate: Tensor | float = noise_sigma(target, mask, nonnegative=bool((target >= 0).all()))
    else:
        of_rate = padded.cut_noise(maps.r2prime_sigma_hz) / d_r_hz_per_ppm
    sigma_r, weight_r = known_noise(of_rate, support, least_noise_ppm(target, mask))
    sigma_f, weight_f = known_noise(padded.cut_noise(error.sigma_ppm), mask, least_noise_ppm(field, mask))
    return (sigma_f, weight_f.to(field)), (sigma_r, weight_r.to(target))


def _prior_weight(prior: Sources, padded: PaddedBox) -> Tensor:
    """κ over the variance of each source, shape (2, i, j, k)."""
    sigmas = [required(sigma, "σ") for sigma in (prior.chi_pos_sigma_ppm, prior.chi_neg_sigma_ppm)]
    sigma = torch.stack([padded.cut(volume) for volume in sigmas])
    return _PRIOR_WEIGHT / sigma.clamp_min(LEAST_PRIOR_SIGMA_PPM).square()


class VoxelStep:
    """Proximal step of the voxelwise terms, with χ_pos, χ_neg ≥ 0 and the mask.

    Per voxel it minimises ½w_r(p + r n − R)² + ½w_q(p − n − q)² + ½ρ(p − z_p)² + ½ρ(n − z_n)² over p, n ≥ 0,
    with two more such terms for a prior: the unconstrained minimum where that is allowed, else the minimum on
    the violated bound.
    """

    def __init__(
        self,
        target: Tensor,
        qsm: Tensor | None,
        mask: Tensor,
        ratio: float,
        weight_r: Tensor,
        weight_q: Tensor,
        penalty: float = PENALTY_VOXEL,
        *,
        prior: Tensor | None = None,
        weight_prior: Tensor | None = None,
    ) -> None:
        self.mask, self.penalty = mask, penalty
        self.constant = weight_r * torch.stack((target, ratio * target))
        if qsm is not None:
            self.constant += weight_q * torch.stack((qsm, -qsm))
        seen = weight_q + penalty
        self.pp, self.pn, self.nn = weight_r + seen, weight_r * ratio - weight_q, weight_r * ratio**2 + seen
        if prior is not None and weight_prior is not None:
            self.constant += weight_prior * prior
            self.pp, self.nn = self.pp + weight_prior[0], self.nn + weight_prior[1]

    def on_rotated(self, z: Tensor) -> Tensor:
        """Proximal step from `rotated` z and back, slab by slab: intermediate results are many volumes."""
        made = torch.empty_like(z)
        for first in range(0, z.shape[1], SLAB):
            layers = slice(first, first + SLAB)
            made[:, layers] = rotated(self(rotated(z[:, layers]), layers))
        return made

    def __call__(self, z: Tensor, layers: slice = slice(None)) -> Tensor:
        """Proximal step from z, shape (2, i, j, k), of some layers of the volume along the first axis."""
        pp, pn, nn = self.pp[layers], self.pn[layers], self.nn[layers]
        pos, neg = torch.add(self.constant[:, layers], z, alpha=self.penalty).mul_(self.mask[layers])
        determinant = pp * nn - pn**2
        free_pos = (nn * pos - pn * neg).div_(determinant)
        free_neg = (pp * neg - pn * pos).div_(determinant)
        return torch.stack(
            (
                torch.where(free_neg < 0, pos / pp, free_pos).clamp_(min=0),
                torch.where(free_pos < 0, neg / nn, free_neg).clamp_(min=0),
            )
        )
