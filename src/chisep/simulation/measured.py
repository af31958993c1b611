"""Map-level simulation: fields and R2' with the noise of a scan session, without its signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chisep.physics.signal import hz_per_ppm, se_signal
from chisep.simulation.acquisition_errors import correlated, flow_phase, g_factor, with_breathing
from chisep.simulation.fields import Fields, Points, dephasing, residual_background, total_field
from chisep.simulation.scanner import ScannerConfig, breathing_offset_hz, recovered, steady_state
from chisep.simulation.tissue import Tissue
from chisep.types import Echoes, MaskVolume, Volume

_NO_PHASE_SD_RAD = math.pi / math.sqrt(3)
"""Standard deviation of a random phase."""


@dataclass(frozen=True, eq=False)
class MeasuredMaps:
    """Simulated measured maps of a session, of shape (i, j, k) and 0 outside the mask.

    Parameters
    ----------
    fields
        Without noise.
    local_ppm, total_ppm
        Fields with noise, the same in both; the residual background is in the local field.
    r2star_hz, r2_hz
        R2* and R2 with noise, ≥ 0.
    r2prime_hz
        R2' = max(R2* − R2, 0), of these two.
    field_sigma_ppm, r2star_sigma_hz, r2prime_sigma_hz
        Standard deviation of the noise in each voxel.
    """

    fields: Fields
    local_ppm: Volume
    total_ppm: Volume
    r2star_hz: Volume
    r2_hz: Volume
    r2prime_hz: Volume
    field_sigma_ppm: Volume
    r2star_sigma_hz: Volume
    r2prime_sigma_hz: Volume


def measured_maps(
    tissue: Tissue, config: ScannerConfig, rng: np.random.Generator, implants_mm: Points | None = None
) -> MeasuredMaps:
    """Map-level simulation of fields and R2' with the noise of a session, without its signals.

    Parameters
    ----------
    tissue
        Sources and relaxation, on the grid of the scan.
    config
        Echo and repetition times, flip angle, SNR, dephasing, residual background.
    rng
        Draws the noise.
    implants_mm
        World coordinates of dental implants.

    Returns
    -------
    MeasuredMaps
        Without effects of coils, pulses, motion and the k-space of the spin echo.

    Notes
    -----
    A weighted straight-line fit of the phase over the echo times, with free phase at TE 0 and weights
    w = |S|², has the variance σ²/Σ w (TE − ⟨TE⟩_w)², where σ = mean |S₁| in the brain / SNR is the noise in
    each channel and |S| the noise-free signal (phase noise of an echo: σ/|S|); so has the log-linear fit of
    R2*, and, with the signals of the spin echo, that of R2. The variances of R2* and R2 add up to that of
    R2' = max(R2* − R2, 0). A rate is never less certain than that of two random phases.
    """
    fields, mask = total_field(tissue, implants_mm), tissue.mask
    field_ppm = fields.total_ppm
    steady = steady_state(tissue, config, torch.ones(tissue.grid.shape))
    gre = se_signal(steady, tissue.r2_hz + tissue.r2prime_hz, config.te_gre_s)
    if config.dephasing:
        for echo, te_s in zip(gre, config.te_gre_s, strict=True):
            echo *= dephasing(field_ppm, te_s, tissue.b0_t)
    gre_sigma = rate_sigma_hz(gre, mask, config.te_gre_s, config.snr)
    field_rng, rate_rng, background_rng, breath_rng = rng.spawn(4)
    errors = _acquisition_errors(gre, field_ppm, tissue, config, breath_rng)
    del gre
    start = recovered(tissue, config)
    spin_echoes = se_signal(start, tissue.r2_hz, config.te_se_s)
    se_sigma = rate_sigma_hz(spin_echoes, mask, config.te_se_s, config.snr)
    del spin_echoes
    if config.acceleration > 1:
        amplified = g_factor(mask.shape, config.acceleration)
        gre_sigma, se_sigma = gre_sigma * amplified, se_sigma * amplified
    field_sigma = gre_sigma / (2 * torch.pi * hz_per_ppm(tissue.b0_t))
    error = field_sigma * _normal(field_rng, mask, config)
    residue = residual_background(tissue, config.residual_background_ppb, background_rng)
    r2 = tissue.r2_hz * mask
    r2star = r2 + tissue.r2prime_hz * mask + gre_sigma * _normal(rate_rng, mask, config)
    r2 += se_sigma * _normal(rate_rng, mask, config)
    if errors is not None:
        error += errors[0] * mask
        r2star += errors[1] * mask
    return MeasuredMaps(
        fields=fields,
        local_ppm=(fields.local_ppm * mask).add_(error).add_(residue),
        total_ppm=(field_ppm * mask).add_(error),
        r2prime_hz=(r2star - r2).clamp_(min=0),
        r2star_hz=r2star.clamp_(min=0),
        r2_hz=r2.clamp_(min=0),
        field_sigma_ppm=field_sigma,
        r2star_sigma_hz=gre_sigma,
        r2prime_sigma_hz=torch.hypot(gre_sigma, se_sigma),
    )


def rate_sigma_hz(magnitude: Echoes, mask: MaskVolume, te_s: Sequence[float], snr: float) -> Volume:
    """Noise SD of a fitted rate (decay in 1/s, or phase in rad/s), by the equation in `measured_maps`.

    Parameters
    ----------
    magnitude
        Noise-free signal, shape (echo, i, j, k).
    mask
        Brain, shape (i, j, k); 0 outside.
    te_s
        Echo times in seconds, at least two.
    snr
        Mean magnitude of the first echo in the brain over the noise's SD in each channel.
    """
    zeros = torch.zeros_like(magnitude[0])
    total, first, second = zeros.clone(), zeros.clone(), zeros
    for echo, te in zip(magnitude, te_s, strict=True):
        weight = echo.square()
        total += weight
        first += te * weight
        second += te**2 * weight
    tiny = torch.finfo(total.dtype).tiny
    precision = (second - first.square() / total.clamp_min(tiny)).clamp_min(tiny)
    sigma = float(magnitude[0][mask].mean()) / snr
    most = math.sqrt(2) * _NO_PHASE_SD_RAD / (te_s[-1] - te_s[0]) if sigma else 0.0
    return (sigma / precision.sqrt()).clamp_(max=most) * mask


def _acquisition_errors(
    magnitude: Echoes, field_ppm: Volume, tissue: Tissue, config: ScannerConfig, rng: np.random.Generator
) -> tuple[Volume, Volume] | None:
    """Errors of the fitted field (ppm) and R2* (1/s) by flow and breathing; None where there are neither.

    The same weighted fits as in `measured_maps`, of the changes of phase and log magnitude.
    """
    if tissue.flow_rad is None and not config.breathing_hz:
        return None
    weights = magnitude.square()
    tiny = torch.finfo(weights.dtype).tiny
    total = weights.sum(0).clamp_min(tiny)
    te_s = torch.tensor(config.te_gre_s).reshape(-1, 1, 1, 1)
    mean = (weights * te_s).sum(0) / total
    spread = (weights * (te_s - mean) ** 2).sum(0).clamp_min(tiny)
    rate_hz, decay_hz = torch.zeros_like(field_ppm), torch.zeros_like(field_ppm)
    offset_hz = breathing_offset_hz(field_ppm.shape, config, rng) if config.breathing_hz else None
    for number, te in enumerate(config.te_gre_s):
        clean = torch.polar(magnitude[number], 2 * torch.pi * te * hz_per_ppm(tissue.b0_t) * field_ppm)
        changed = clean
        if tissue.flow_rad is not None:
            changed = changed * flow_phase(tissue.flow_rad[config.read_axis], number)
        if offset_hz is not None:
            changed = with_breathing(changed, offset_hz, te, config.read_axis)
        along = weights[number] * (te - mean) / spread
        rate_hz += along * (changed * clean.conj()).angle()
        decay_hz -= along * torch.log(changed.abs().clamp_min(tiny) / magnitude[number].clamp_min(tiny))
    return rate_hz / (2 * torch.pi * hz_per_ppm(tissue.b0_t)), decay_hz


def _normal(rng: np.random.Generator, mask: MaskVolume, config: ScannerConfig) -> Volume:
    """Noise of SD 1, correlated where parallel imaging or interpolation correlate it."""
    noise = torch.from_numpy(rng.standard_normal(mask.shape, dtype=np.float32))
    return correlated(noise, config.acceleration, config.noise_interpolation, config.read_axis)
