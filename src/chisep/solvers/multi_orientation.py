"""Iterative χ-separation of several head orientations: the field rows of all of them, and R2'.

    min  ½ Σ_n ‖W_n (D_n (χ_pos − χ_neg) − f_n)‖² / σ₀²  +  ½ ‖(χ_pos + r χ_neg − R2'/D_r,pos) / σ_r‖²
    over χ_pos, χ_neg ≥ 0, both 0 outside the support; r = D_r,neg / D_r,pos

(Shin 2021, 10.1016/j.neuroimage.2021.118371, with the noise of the maps as weights.) Three or more
orientations determine χ_pos − χ_neg without a regulariser. With the spherical mean value filter S_n of
`chisep.solvers.filtered_cosmos`, the field rows are W_n S_n (D_n (χ_pos − χ_neg) − f_n). Alternating
direction method of multipliers (ADMM): fields act on the difference of the sources alone and are solved by
conjugate gradients; R2' and the bounds are solved voxel by voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chisep.physics.cg import cg
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check, ended, least_noise_ppm, relative_change
from chisep.solvers.cosmos import Fields, MaskedDipoles, Masks, nonnegative_sources, weighted_dipoles
from chisep.solvers.filtered_cosmos import FilteredConfig, FilteredDipoles, filtered_dipoles
from chisep.solvers.iterative import VoxelStep, rotated
from chisep.solvers.noise import known_noise
from chisep.types import Grid, MaskVolume, Relaxivity, Sources, Volume

_INNER_ITERATIONS = 2


@dataclass(frozen=True)
class MultiOrientationConfig:
    """Settings of iterative χ-separation of several head orientations."""

    iterations: int = 20
    """Maximum number of iterations."""
    tolerance: float = 2e-3
    """Relative change of both maps at which the iteration stops."""
    penalty: float = 0.02
    """Penalty of the voxelwise split, relative to the weight of one field."""

    def __post_init__(self) -> None:
        check("iterations", self.iterations, low=0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("penalty", self.penalty, low=0.0)


# Long because the docstring states the whole contract.
def separate_orientations(
    fields_ppm: Fields,
    masks: Masks,
    b0_directions: Sequence[Sequence[float]],
    r2prime_hz: Volume,
    relaxivity: Relaxivity,
    grid: Grid,
    config: MultiOrientationConfig,
    *,
    sigmas_ppm: Fields,
    r2prime_sigma_hz: Volume,
    support: MaskVolume,
    chi_ppm: Volume,
    filtered: FilteredConfig | None = None,
    progress: Progress | None = None,
) -> Sources:
    """Separate the sources of several fields and R2' iteratively (multi-orientation χ-separation).

    Parameters
    ----------
    fields_ppm, masks
        Local fields on one grid and where they are known, shape (orientation, i, j, k).
    b0_directions
        Vector along B0 in voxel axes of that grid, one per orientation.
    r2prime_hz
        R2' in 1/s, shape (i, j, k).
    relaxivity
        D_r of both sources.
    grid
        Voxel size.
    config
        Stopping criteria.
    sigmas_ppm, r2prime_sigma_hz
        Standard deviation of fields and of R2', 0 where nothing was measured; with `filtered`, that of the
        noise of the fields alone.
    support
        Where sources may be, shape (i, j, k).
    chi_ppm
        First χ, by COSMOS, shape (i, j, k).
    filtered
        Settings of filtered field rows, of which the radius is read; plain field rows if None.
    progress
        Called after every iteration.

    Returns
    -------
    Sources
        χ_pos and χ_neg in ppm.

    Raises
    ------
    InputError
        As `chisep.solvers.cosmos.cosmos`.
    """
    padded: PaddedBox
    operator: MaskedDipoles | FilteredDipoles
    if filtered is None:
        padded, operator = weighted_dipoles(fields_ppm, masks, b0_directions, grid, sigmas_ppm, support)
    else:
        padded, operator = filtered_dipoles(
            masks,
            b0_directions,
            grid,
            filtered,
            noise_ppm=sigmas_ppm,
            support=support,
            dtype=fields_ppm.dtype,
        )
    inside = padded.cut(support)
    target = padded.cut(r2prime_hz) * inside / relaxivity.pos_hz_per_ppm
    sigma_r, relative_r = known_noise(
        padded.cut(r2prime_sigma_hz) / relaxivity.pos_hz_per_ppm, inside, least_noise_ppm(target, inside)
    )
    measured = masks & (sigmas_ppm > 0)
    weight_r = relative_r * (float(sigmas_ppm[measured].median()) / sigma_r) ** 2
    voxelwise = VoxelStep(
        target, None, inside, relaxivity.ratio, weight_r, torch.zeros_like(target), penalty=config.penalty
    )
    first = nonnegative_sources(padded.cut(chi_ppm), target * relaxivity.pos_hz_per_ppm, relaxivity)
    # On (t, c) = (χ_pos ± χ_neg)/√2, fields read √2 c: as of one χ with twice the weight.
    back = operator.back([padded.cut(field) for field in fields_ppm]).mul_(math.sqrt(2))
    divide = operator.closed_form(config.penalty / 2)
    solution = torch.stack((first.chi_pos_ppm, first.chi_neg_ppm)) * inside
    x = rotated(solution)
    dual = torch.zeros_like(x)
    change: list[float] = []
    for iteration in range(config.iterations):
        aim = rotated(solution) - dual
        x[0] = aim[0]
        x[1] = cg(
            lambda c: operator.gram(c).mul_(2).add_(c, alpha=config.penalty),
            back + config.penalty * aim[1],
            iterations=_INNER_ITERATIONS,
            initial=x[1],
            preconditioner=lambda right: divide(right).div_(2),
        )
        before, solution = solution, voxelwise(rotated(x + dual)) * inside
        dual += x - rotated(solution)
        change.append(relative_change(solution, before))
        if progress is not None:
            progress("iterations", iteration + 1, config.iterations)
        if change[-1] < config.tolerance:
            break
    pos, neg = solution
    convergence = ended(change, config.tolerance, "multi-orientation χ-separation")
    return Sources(padded.restore(pos), padded.restore(neg), convergence)
