"""QSM by thresholded k-space division (TKD).

    χ(k) = Δf(k) / D(k), with |D(k)| replaced by a threshold where it is smaller

(Shmueli 2009, 10.1002/mrm.22135), divided by the mean of its point-spread function so that it does not
underestimate (Schweser 2013, 10.1002/mrm.24405).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check
from chisep.types import Maps, Susceptibility


@dataclass(frozen=True)
class TkdConfig:
    """Settings of thresholded k-space division."""

    threshold: float = 0.15
    """Smallest |D| in the division, between 0 and 2/3; larger values smooth more."""

    def __post_init__(self) -> None:
        check("threshold", self.threshold, low=0.0, high=2 / 3)


def solve(maps: Maps, config: TkdConfig, progress: Progress | None = None) -> Susceptibility:
    """Dipole inversion by thresholded k-space division.

    Parameters
    ----------
    maps
        Field and mask.
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
    sign = torch.where(kernel < 0, -1.0, 1.0).to(kernel)
    inverse = sign / kernel.abs().clamp(min=config.threshold)
    # The point-spread function of division after convolution is inverse · D; its value at the centre
    # is the recovered fraction of a point.
    inverse /= _volume_mean(inverse * kernel, padded.periodic_grid.shape[2])
    chi = padded.box(dipole.volume(dipole.spectrum(field).mul_(inverse))) * padded.cut(maps.sources_mask)
    if progress is not None:
        progress("susceptibility", 1, 1)
    return Susceptibility(padded.restore(chi))


def _volume_mean(half: torch.Tensor, last_size: int) -> torch.Tensor:
    """Mean over the whole spectrum of a real, even function given on its half spectrum."""
    twice = torch.full((half.shape[-1],), 2.0, dtype=half.dtype, device=half.device)
    twice[0] = 1.0
    if last_size % 2 == 0:
        twice[-1] = 1.0
    return (half * twice).sum() / (half.shape[0] * half.shape[1] * last_size)
