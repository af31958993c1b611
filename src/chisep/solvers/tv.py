"""QSM by total variation.

    min  ½ ‖M (σ_f/σ) (D * χ − Δf)‖² + λ σ_f TV(χ),  χ = 0 outside the mask M

(FANSI: Milovic 2018, 10.1002/mrm.27073; with a magnitude image TV does not act on its edges, as in MEDI: Liu
2011, 10.1002/mrm.22816.) σ is the noise of each voxel of the field where that is known, σ_f its median: λ is
relative to it, so that a field without noise is hardly smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from chisep.physics.operators import Gradient
from chisep.progress import Progress
from chisep.solvers._admm import minimise
from chisep.solvers._common import (
    PaddedBox,
    check,
    edge_mask,
    ended,
    least_noise_ppm,
)
from chisep.solvers.noise import known_noise, noise_sigma
from chisep.solvers.tikhonov import TikhonovConfig
from chisep.solvers.tikhonov import solve as solve_tikhonov
from chisep.types import Maps, Susceptibility

# With a smaller one the iteration is unstable for strong smoothing.
_PENALTY_FIELD = 0.05


@dataclass(frozen=True)
class TvConfig:
    """Settings of the total-variation inversion."""

    tv_weight: float = 0.05
    """Weight λ of total variation, in units of the noise of the field; smooths more when larger."""
    iterations: int = 120
    """Maximum number of iterations."""
    tolerance: float = 1e-3
    """Relative change of χ at which the iteration stops."""
    edge_fraction: float = 0.3
    """Share of voxels taken as edges of a given magnitude image, where χ is not smoothed."""

    def __post_init__(self) -> None:
        check("tv-weight", self.tv_weight, low=0.0)
        check("iterations", self.iterations, low=0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("edge-fraction", self.edge_fraction, low=0.0, high=1.0)


def solve(maps: Maps, config: TvConfig, progress: Progress | None = None) -> Susceptibility:
    """Dipole inversion with total variation.

    Parameters
    ----------
    maps
        Field and mask; a magnitude is used where given.
    config
        Weight and stopping criteria.
    progress
        Called after every iteration.

    Returns
    -------
    Susceptibility
        χ in ppm, 0 outside the mask of sources.
    """
    padded = PaddedBox(maps.sources_mask, maps.grid, padding=0.1)
    mask, support = padded.cut(maps.mask), padded.cut(maps.sources_mask)
    field = padded.cut(maps.field_ppm) * mask
    magnitude = None if maps.magnitude is None else padded.cut(maps.magnitude)
    if maps.field_sigma_ppm is None:
        sigma: Tensor | float = noise_sigma(field, mask)
    else:
        sigma = padded.cut_noise(maps.field_sigma_ppm)
    typical, weight = known_noise(sigma, mask, least_noise_ppm(field, mask))

    def inside(z: Tensor) -> Tensor:
        return z * support

    x, change = minimise(
        padded=padded,
        grid=maps.grid,
        field_ppm=field,
        weight=weight.to(field),
        start=padded.cut(solve_tikhonov(maps, TikhonovConfig()).chi_ppm)[None],
        field_gain=1.0,
        tv_weight=config.tv_weight * typical,
        tv_mask=edge_mask(support, Gradient(maps.grid.voxel_mm), magnitude, config.edge_fraction),
        voxelwise=inside,
        penalty_field=_PENALTY_FIELD,
        iterations=config.iterations,
        tolerance=config.tolerance,
        progress=progress,
    )
    return Susceptibility(padded.restore(x[0] * support), ended(change, config.tolerance, "the tv inversion"))
