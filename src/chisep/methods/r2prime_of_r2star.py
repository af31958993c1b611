"""R2' without a spin echo: from R2* by a network, in the place of one constant R2."""

from __future__ import annotations

import torch

from chisep.networks.inference import NetworkOptions, measured_channels
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.relaxometry import Rate
from chisep.types import Grid, Maps, MaskVolume


def r2prime_of_r2star(rate: Rate, mask: MaskVolume, grid: Grid, b0_t: float) -> Rate:
    """Predict R2' from R2* with the network `r2s` (R2PRIMEnet of χ-sepnet: Kim M. 2025).

    Parameters
    ----------
    rate
        R2* and its σ in 1/s, shape (i, j, k).
    mask
        Brain, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    b0_t
        Field strength in T; the network was trained on rates relative to 114·B0/3.

    Returns
    -------
    Rate
        R2' ≥ 0, and √(σ_R2*² + σ_R2²) with the SD of R2 between tissues, 0 where R2* is not known.

    Raises
    ------
    InputError
        If the weights cannot be read.
    """
    d_r = default_relaxivity(b0_t)
    maps = Maps(
        field_ppm=torch.zeros_like(rate.rate_hz),
        mask=mask,
        grid=grid,
        relaxivity=d_r,
        r2star_hz=rate.rate_hz.clamp_min(0) * mask,
    )
    predicted = measured_channels(maps, ("r2prime",), NetworkOptions())["r2prime"] * d_r.pos_hz_per_ppm
    spread = torch.full_like(rate.sigma_hz, PSEUDO_R2_SD * pseudo_r2_hz(b0_t))
    return Rate(predicted, torch.hypot(rate.sigma_hz, spread) * (rate.sigma_hz > 0))
