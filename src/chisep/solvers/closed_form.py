"""χ-separation in closed form, voxel by voxel: the baseline for every other method.

    χ_pos = (D_r,neg χ + R2') / (D_r,pos + D_r,neg),  χ_neg = χ_pos − χ,  both clipped at 0

It solves χ = χ_pos − χ_neg and R2' = D_r,pos χ_pos + D_r,neg χ_neg exactly (Shin 2021,
10.1016/j.neuroimage.2021.118371); errors of χ and R2' propagate unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

from chisep.progress import Progress
from chisep.solvers import tikhonov
from chisep.solvers._common import check
from chisep.types import Convergence, Maps, Sources, required, required_relaxivity


@dataclass(frozen=True)
class ClosedFormConfig:
    """Settings of the closed form."""

    alpha: float | None = None
    """Weight α of the Tikhonov inversion that computes χ where no QSM map is given; if unset: chosen by the
    error of the field."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check("alpha", self.alpha, low=0.0)


def solve(maps: Maps, config: ClosedFormConfig, progress: Progress | None = None) -> Sources:
    """Closed-form χ-separation of χ and R2', voxel by voxel.

    Parameters
    ----------
    maps
        With R2' and D_r; χ is taken from the QSM map, or from the field by Tikhonov inversion.
    config
        Inversion that computes χ where it is not given.
    progress
        Called once.

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
    inverted = (
        None if maps.chi_ppm is not None else tikhonov.solve(maps, tikhonov.TikhonovConfig(config.alpha))
    )
    chi = required(maps.chi_ppm if inverted is None else inverted.chi_ppm, "χ")
    d_pos, d_neg = relaxivity.pos_hz_per_ppm, relaxivity.neg_hz_per_ppm
    pos = (d_neg * chi + r2prime_hz).div_(d_pos + d_neg).mul_(maps.sources_mask)
    neg = pos.sub(chi).mul_(maps.sources_mask)
    if progress is not None:
        progress("susceptibility", 1, 1)
    convergence = Convergence() if inverted is None else inverted.convergence
    return Sources(pos.clamp_(min=0), neg.clamp_(min=0), convergence)
