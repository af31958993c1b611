"""Signals of gradient-echo and spin-echo scans, and the constants between units.

Phase grows with field: φ = φ₀ + 2π γ̄ B0 Δf TE, Δf in ppm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chisep.types import ComplexEchoes, Echoes, Relaxivity, Volume

GYROMAGNETIC_HZ_PER_T = 42.577478518e6
"""γ̄ of the proton in Hz/T (CODATA 2018)."""

REFERENCE_D_R_HZ_PER_PPM = 114.0
"""D_r at 3 T, COSMOS-referenced (χ-sepnet: Kim M. 2025, 10.1002/hbm.70136)."""


def default_relaxivity(b0_t: float) -> Relaxivity:
    """D_r of both sources at a field strength: 114 · B0/3 in 1/s/ppm, since D_r grows linearly with B0."""
    d_r = REFERENCE_D_R_HZ_PER_PPM * b0_t / 3.0
    return Relaxivity(d_r, d_r)


def hz_per_ppm(b0_t: float) -> float:
    """Frequency in Hz of a field of 1 ppm at a field strength of `b0_t` tesla."""
    return GYROMAGNETIC_HZ_PER_T * b0_t * 1e-6


def r2prime_of_sources(chi_pos_ppm: Tensor, chi_neg_ppm: Tensor, relaxivity: Relaxivity) -> Tensor:
    """R2' = D_r,pos χ_pos + D_r,neg χ_neg in 1/s (Shin 2021, 10.1016/j.neuroimage.2021.118371)."""
    return relaxivity.pos_hz_per_ppm * chi_pos_ppm + relaxivity.neg_hz_per_ppm * chi_neg_ppm


def _times(te_s: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(te_s), dtype=like.dtype, device=like.device)[:, None, None, None]


def gre_signal(
    m0: Volume,
    r2star_hz: Volume,
    field_ppm: Volume,
    te_s: Sequence[float],
    b0_t: float,
    phase_offset_rad: Volume | None = None,
) -> ComplexEchoes:
    """Multi-echo gradient-echo signal.

    Parameters
    ----------
    m0
        Signal at TE 0, shape (i, j, k).
    r2star_hz
        R2* in 1/s, shape (i, j, k).
    field_ppm
        Total field in ppm, shape (i, j, k).
    te_s
        Echo times in seconds.
    b0_t
        Field strength in tesla.
    phase_offset_rad
        Phase at TE 0 in radians (receiver), shape (i, j, k).

    Returns
    -------
    ComplexEchoes
        Shape (echo, i, j, k).
    """
    te = _times(te_s, m0)
    phase = 2 * torch.pi * hz_per_ppm(b0_t) * field_ppm * te
    if phase_offset_rad is not None:
        phase = phase + phase_offset_rad
    return torch.polar(m0 * torch.exp(-r2star_hz * te), phase)


def se_signal(m0: Volume, r2_hz: Volume, te_s: Sequence[float]) -> Echoes:
    """Multi-echo spin-echo magnitude with ideal refocusing, shape (echo, i, j, k); R2 in 1/s, TE in s."""
    return m0 * torch.exp(-r2_hz * _times(te_s, m0))
