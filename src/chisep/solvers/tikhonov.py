"""QSM by Tikhonov regularisation: one division in k-space.

    χ = argmin ‖D χ − Δf‖² + α ‖χ‖²,  so  χ(k) = D(k) Δf(k) / (D(k)² + α)

(Bilgic 2014, 10.1002/jmri.24365, with the identity as regulariser.) If α is not given, it is the one at
which the expected squared error of χ, bias and noise, is least under the spectra of susceptibility and error
that are estimated from the field (`field_error`). Where both are white, that is α = σ_f²/σ_χ², as of a Wiener
filter.
"""

from __future__ import annotations

from dataclasses import dataclass

from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check
from chisep.solvers.field_error import CLOSED_FORM_TAPER_VOXELS, field_spectra, least_of
from chisep.types import Convergence, Maps, Susceptibility

_ALPHA_RANGE = (1e-5, 1.0)
_USUAL_ALPHA = 0.01
"""Where the mask has too few voxels to estimate spectra."""


@dataclass(frozen=True)
class TikhonovConfig:
    """Settings of the Tikhonov inversion."""

    alpha: float | None = None
    """Weight α of ‖χ‖² against the misfit of the field; larger values smooth more and underestimate χ
    more. If unset: chosen by the error of the field."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check("alpha", self.alpha, low=0.0)


def chosen_alpha(maps: Maps) -> float:
    """Weight α at which the expected squared error of χ is least.

    Parameters
    ----------
    maps
        Field and mask; σ of the field and a magnitude where known.
    """
    spectra = field_spectra(maps, CLOSED_FORM_TAPER_VOXELS)
    if spectra is None:
        return _USUAL_ALPHA
    kernel = spectra.kernel
    return least_of(lambda alpha: spectra.expected_error(kernel / (kernel**2 + alpha)), *_ALPHA_RANGE)


def solve(maps: Maps, config: TikhonovConfig, progress: Progress | None = None) -> Susceptibility:
    """Dipole inversion with Tikhonov regularisation.

    Parameters
    ----------
    maps
        Field and mask; σ of the field and a magnitude where known.
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
    alpha = chosen_alpha(maps) if config.alpha is None else config.alpha
    inverse = dipole.kernel / (dipole.kernel**2 + alpha)
    chi = padded.box(dipole.volume(dipole.spectrum(field).mul_(inverse))) * padded.cut(maps.sources_mask)
    if progress is not None:
        progress("susceptibility", 1, 1)
    chosen = {} if config.alpha is not None else {"alpha": alpha}
    return Susceptibility(padded.restore(chi), Convergence(chosen=chosen))
