"""QSM by Tikhonov regularisation: one division in k-space.

    χ = argmin ‖D χ − Δf‖² + α ‖χ‖²,  so  χ(k) = D(k) Δf(k) / (D(k)² + α)

(Bilgic 2014, 10.1002/jmri.24365, with the identity as regulariser.)
"""

from __future__ import annotations

from dataclasses import dataclass

from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check
from chisep.types import Maps, Susceptibility


@dataclass(frozen=True)
class TikhonovConfig:
    """Settings of the Tikhonov inversion."""

    alpha: float = 0.01
    """Weight α of ‖χ‖² against the misfit of the field; larger values smooth more and underestimate χ
    more."""

    def __post_init__(self) -> None:
        check("alpha", self.alpha, low=0.0)


def solve(maps: Maps, config: TikhonovConfig, progress: Progress | None = None) -> Susceptibility:
    """Dipole inversion with Tikhonov regularisation.

    Parameters
    ----------
    maps
        Field and mask.
    config
        The regularisation.
    progress
        Called once.

    Returns
    -------
    Susceptibility
        χ in ppm, 0 outside the mask of sources.
    """
    padded = PaddedBox(maps.sources_mask, maps.grid, padding=1.0)
    field = padded.cut(maps.field_ppm) * padded.cut(maps.mask)
    dipole = Dipole(padded.periodic_grid, pad=False, dtype=field.dtype, device=field.device)
    inverse = dipole.kernel / (dipole.kernel**2 + config.alpha)
    chi = padded.box(dipole.volume(dipole.spectrum(field).mul_(inverse))) * padded.cut(maps.sources_mask)
    if progress is not None:
        progress("susceptibility", 1, 1)
    return Susceptibility(padded.restore(chi))
