"""QSM by total variation.

    min  ½ ‖M (σ_f/σ) (D * χ + e − Δf)‖² + ½ Σ |e(k)|²/P(k) + λ σ_f TV(χ) + ½ κ ‖(σ_f/σ_z) (χ − z)‖²,
    χ = 0 outside the mask M

(FANSI: Milovic 2018, 10.1002/mrm.27073; with a magnitude image TV does not act on its edges, as in MEDI: Liu
2011, 10.1002/mrm.22816.) σ is the error of each voxel of the field, given or estimated (`field_error`), σ_f
its median. e is the coarse part of this error, P its spectrum over σ_f² (`coarse_error`); σ and σ_f are then
those of the white part. If λ is not given, it is σ_f/b: the maximum a posteriori where |∇χ| has a density
proportional to exp(−|∇χ|/b). b is 0.4 of the root mean square of |∇χ|, which follows from the spectrum of the
field, and up to four times as much where the error is coarse. So twice the error is four times the smoothing,
and a field without error is hardly smoothed. The last term is present only with a prior: an estimate z of χ
with its σ_z, as a network makes it (`iterative`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chisep.physics.operators import Gradient
from chisep.progress import Progress
from chisep.solvers._admm import PENALTY_VOXEL, minimise
from chisep.solvers._common import (
    LEAST_PRIOR_SIGMA_PPM,
    PaddedBox,
    check,
    edge_mask,
    ended,
    least_noise_ppm,
)
from chisep.solvers.field_error import coarse_error, field_error, gradient_scale_ppm
from chisep.solvers.noise import known_noise
from chisep.solvers.tikhonov import TikhonovConfig
from chisep.solvers.tikhonov import solve as solve_tikhonov
from chisep.types import Maps, Susceptibility, required

# With a smaller one the iteration is unstable for strong smoothing.
_PENALTY_FIELD = 0.05
_SCALE_OVER_RMS = 0.4
"""b over the root mean square of |∇χ|; 0.3 to 0.7 differ little."""
_PRIOR_WEIGHT = 0.1
"""κ. On a simulated session 0.1 and 0.3 are alike (43.8 and 43.5 %), on a phantom of another make 0.1 is
better (15.9 and 19.2 %)."""
_USUAL_WEIGHT = 0.05
"""λ where the mask has too few voxels to estimate spectra."""


@dataclass(frozen=True)
class TvConfig:
    """Settings of the total-variation inversion."""

    tv_weight: float | None = None
    """Weight λ of total variation, in units of the error of the field; smooths more when larger. If unset:
    that error over a scale of |∇χ|."""
    iterations: int = 120
    """Maximum number of iterations."""
    tolerance: float = 1e-3
    """Relative change of χ at which the iteration stops."""
    edge_fraction: float = 0.3
    """Share of voxels taken as edges of a given magnitude image, where χ is not smoothed."""

    def __post_init__(self) -> None:
        if self.tv_weight is not None:
            check("tv-weight", self.tv_weight, low=0.0)
        check("iterations", self.iterations, low=0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("edge-fraction", self.edge_fraction, low=0.0, high=1.0)


def solve(
    maps: Maps, config: TvConfig, progress: Progress | None = None, prior: Susceptibility | None = None
) -> Susceptibility:
    """Dipole inversion with total variation.

    Parameters
    ----------
    maps
        Field and mask; a magnitude is used where given.
    config
        Weight and stopping criteria.
    progress
        Called after every iteration.
    prior
        Estimate of χ with its standard deviation, where the iteration starts; that is χ of Tikhonov without
        one.

    Returns
    -------
    Susceptibility
        χ in ppm, 0 outside the mask of sources.
    """
    padded = PaddedBox(maps.sources_mask, maps.grid, padding=0.1)
    mask, support = padded.cut(maps.mask), padded.cut(maps.sources_mask)
    field = padded.cut(maps.field_ppm) * mask
    magnitude = None if maps.magnitude is None else padded.cut(maps.magnitude)
    error = field_error(maps)
    typical, weight = known_noise(padded.cut_noise(error.sigma_ppm), mask, least_noise_ppm(field, mask))
    coarse = coarse_error(error, padded.periodic_grid)
    tv_weight = config.tv_weight
    if tv_weight is None:
        usual_ppm = gradient_scale_ppm(error, _SCALE_OVER_RMS)
        tv_weight = _USUAL_WEIGHT if usual_ppm is None else typical / usual_ppm

    start = solve_tikhonov(maps, TikhonovConfig()) if prior is None else prior
    first = padded.cut(start.chi_ppm)[None]
    if prior is None:
        weight_z = torch.zeros(())
    else:
        sigma_z = padded.cut(required(prior.chi_sigma_ppm, "σ")).clamp_min(LEAST_PRIOR_SIGMA_PPM)
        weight_z = _PRIOR_WEIGHT * (typical * coarse.white_part / sigma_z).square()

    def voxelwise(z: Tensor) -> Tensor:
        return (PENALTY_VOXEL * z + weight_z * first) / (PENALTY_VOXEL + weight_z) * support

    x, change = minimise(
        padded=padded,
        grid=maps.grid,
        field_ppm=field,
        weight=weight.to(field),
        start=first,
        field_gain=1.0,
        tv_weight=tv_weight * typical * coarse.white_part**2,
        tv_mask=edge_mask(support, Gradient(maps.grid.voxel_mm), magnitude, config.edge_fraction),
        voxelwise=voxelwise,
        penalty_field=_PENALTY_FIELD,
        coarse_power=coarse.power,
        iterations=config.iterations,
        tolerance=config.tolerance,
        progress=progress,
    )
    convergence = ended(change, config.tolerance, "the tv inversion")
    if config.tv_weight is None:
        convergence = replace(convergence, chosen={"tv_weight": tv_weight})
    sigma = None if prior is None else prior.chi_sigma_ppm
    return Susceptibility(padded.restore(x[0] * support), convergence, sigma)
