"""QSM by thresholded k-space division (TKD).

    χ(k) = Δf(k) / D(k), with another factor of Δf(k) where |D(k)| is below a threshold t

With a given threshold this factor is sign(D)/t (Shmueli 2009, 10.1002/mrm.22135), and the result is divided
by the mean of its point-spread function so that it does not underestimate (Schweser 2013,
10.1002/mrm.24405). If it is not given, the factor is D/t²: it decreases to 0 on the cone where D is 0 and
the field holds nothing but error, and does not change its sign there by a step. Threshold and scale are then
those at which the expected squared error of χ, bias and noise, is least under the spectra of susceptibility
and error that are estimated from the field (`field_error`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check
from chisep.solvers.field_error import CLOSED_FORM_TAPER_VOXELS, field_spectra, least_of
from chisep.types import Convergence, Maps, Susceptibility

_THRESHOLD_RANGE = (0.01, 0.6)
_USUAL_THRESHOLD = 0.15
"""Where the mask has too few voxels to estimate spectra."""


@dataclass(frozen=True)
class TkdConfig:
    """Settings of thresholded k-space division."""

    threshold: float | None = None
    """Threshold of |D|, between 0 and 2/3: below it, the field is multiplied by sign(D)/threshold. Larger
    values smooth more. If unset: chosen by the error of the field, with the scale of the result, and the
    factor below it is D/threshold²."""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check("threshold", self.threshold, low=0.0, high=2 / 3)


def chosen_threshold(maps: Maps) -> tuple[float, float | None]:
    """Threshold and factor of χ at which the expected squared error of χ is least.

    Parameters
    ----------
    maps
        Field and mask; σ of the field and a magnitude where known.

    Returns
    -------
    tuple of float
        Threshold and factor; None for the factor where the mask has too few voxels to choose.
    """
    spectra = field_spectra(maps, CLOSED_FORM_TAPER_VOXELS)
    if spectra is None:
        return _USUAL_THRESHOLD, None

    def inverse(threshold: float) -> torch.Tensor:
        return _inverse(spectra.kernel, threshold)

    def expected(threshold: float) -> float:
        return spectra.expected_error(inverse(threshold) * spectra.best_gain(inverse(threshold)))

    threshold = least_of(expected, *_THRESHOLD_RANGE)
    return threshold, spectra.best_gain(inverse(threshold))


def solve(maps: Maps, config: TkdConfig, progress: Progress | None = None) -> Susceptibility:
    """Dipole inversion by thresholded k-space division.

    Parameters
    ----------
    maps
        Field and mask; σ of the field and a magnitude where known.
    config
        The threshold.
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
    kernel = dipole.kernel
    threshold, gain = chosen_threshold(maps) if config.threshold is None else (config.threshold, None)
    if gain is None:
        inverse = torch.where(kernel < 0, -1.0, 1.0).to(kernel) / kernel.abs().clamp(min=threshold)
        # The point-spread function of division after convolution is inverse · D; its value at the centre
        # is the recovered fraction of a point.
        inverse /= _volume_mean(inverse * kernel, padded.periodic_grid.shape[2])
    else:
        inverse = gain * _inverse(kernel, threshold)
    chi = padded.box(dipole.volume(dipole.spectrum(field).mul_(inverse))) * padded.cut(maps.sources_mask)
    if progress is not None:
        progress("susceptibility", 1, 1)
    chosen = {} if gain is None else {"threshold": threshold, "scale": gain}
    return Susceptibility(padded.restore(chi), Convergence(chosen=chosen))


def _inverse(kernel: torch.Tensor, threshold: float) -> torch.Tensor:
    """Compute 1/D where |D| is at least the threshold t, D/t² elsewhere."""
    return kernel / kernel.abs().clamp_min(threshold).square()


def _volume_mean(half: torch.Tensor, last_size: int) -> torch.Tensor:
    """Mean over the whole spectrum of a real, even function given on its half spectrum."""
    twice = torch.full((half.shape[-1],), 2.0, dtype=half.dtype, device=half.device)
    twice[0] = 1.0
    if last_size % 2 == 0:
        twice[-1] = 1.0
    return (half * twice).sum() / (half.shape[0] * half.shape[1] * last_size)
