"""Relaxometry: R2*, R2 and R2' in 1/s from echo magnitudes, each with its standard deviation.

The noise of a magnitude is Rician: late echoes end in a noise floor. Fits compare the measured magnitudes
with the mean of a Rician variable (Koay and Basser 2006, 10.1016/j.jmr.2006.01.016), not with the signal, so
that the floor does not look like a slow decay. The noise of magnitudes is nearly equal in all echoes, so that
unweighted least squares of the magnitudes is near the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.epg import slice_profile
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz
from chisep.preprocessing.arlo import arlo_with_error
from chisep.preprocessing.decay_fit import LEAST_RATE_HZ, MAX_RATE_HZ, exponential, fit_decay
from chisep.preprocessing.epg_fit import EpgTable, transmit_field
from chisep.preprocessing.intravoxel_dephasing import attenuation_by_gradient
from chisep.preprocessing.magnitude_noise import noise_sigma_of_voxels
from chisep.types import Echoes, MaskVolume, Volume

FEWEST_ECHOES = 2
"""Gradient echoes that a fit of R2* needs."""
_UNIFORM = 1e-3
_PULSE_POSITIONS = 16
_MOST_ORDER = 12
_EVEN_TE = 0.01
REGISTRATION_SD_MM = 0.06
"""SD of the registration's error along each axis: makes error/σ of R2 1.0 to 1.1 at the edges of tissues."""
_FARTHEST_BELOW = 3.0
"""Noise makes a difference of two equal rates negative; values below this many σ are not noise."""


@dataclass(frozen=True)
class R2starConfig:
    """Settings of the R2* fit."""

    method: Literal["nonlinear", "arlo"] = "nonlinear"
    """Least-squares fit with noise floor, or ARLO: faster, but the noise floor biases it."""
    correct_field_gradient: bool = True
    """Correct the attenuation of later echoes by the field's gradient across each voxel, where the field is
    known."""
    least_left: float = 0.3
    """Echoes that the field's gradient attenuates below this fraction are not used; the first two always
    are."""

    def __post_init__(self) -> None:
        if not 0 < self.least_left < 1:
            raise InputError(
                "least attenuation factor of an echo (least_left)",
                found=f"{self.least_left}",
                expected="between 0 and 1",
                fix="Usual is 0.3.",
            )


@dataclass(frozen=True)
class R2Config:
    """Settings of the R2 fit, and the pulses of the spin-echo scan."""

    method: Literal["epg", "exponential"] = "epg"
    """Extended phase graphs (EPG: stimulated echoes included, B1 estimated too), or one exponential."""
    excitation_deg: float = 90.0
    """Nominal flip angle of the excitation in degrees."""
    refocusing_deg: float = 180.0
    """Nominal flip angle of the refocusing pulses in degrees."""
    pulse: Literal["sinc", "gaussian", "ideal"] = "sinc"
    """Slice profile of the pulses; ideal for scans without slices (3-D)."""
    refocusing_width: float = 2.0
    """Thickness of the refocused slice over that of the excited slice; 1 where both are equal."""
    time_bandwidth: float = 4.0
    """Time-bandwidth product of sinc pulses."""
    t1_s: float = 1.1
    """T1 of tissue in seconds, for stimulated echoes."""
    b1_order: int = 6
    """Order of the polynomial in space that models B1; use a higher one at 7 T."""

    def __post_init__(self) -> None:
        for name in ("excitation_deg", "refocusing_deg", "refocusing_width", "time_bandwidth", "t1_s"):
            self._require_positive(name)
        if not 0 <= self.b1_order <= _MOST_ORDER:
            raise InputError(
                "b1_order",
                found=f"{self.b1_order}",
                expected=f"0 to {_MOST_ORDER}",
                fix="Usual is 6.",
            )

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(name, found=f"{value}", expected="a number above 0", fix="Correct the option.")


@dataclass(frozen=True, eq=False)
class Rate:
    """A relaxation rate.

    Parameters
    ----------
    rate_hz
        In 1/s, shape (i, j, k), 0 outside the mask. Where it is near 0, noise makes it negative in part of
        the voxels.
    sigma_hz
        Its standard deviation from the scan's noise, at most `MAX_RATE_HZ`, shape (i, j, k), 0 outside the
        mask.
    """

    rate_hz: Volume
    sigma_hz: Volume


@dataclass(frozen=True, eq=False)
class SpinEchoFit(Rate):
    """R2, and the transmit field estimated with it.

    Parameters
    ----------
    b1
        Transmit field relative to nominal, shape (i, j, k), 0 outside the mask; None from an exponential.
        Where pulses are near 180°, values above and below nominal look alike: either may be reported.
    model
        Signal model of the fit: extended phase graphs, or one exponential.
    warnings
        Why an exponential was fitted although extended phase graphs were requested.
    """

    b1: Volume | None = None
    model: Literal["epg", "exponential"] = "epg"
    warnings: tuple[str, ...] = ()


# Long because the docstring states the whole contract.
def r2star(
    magnitude: Echoes,
    te_s: Sequence[float],
    mask: MaskVolume,
    config: R2starConfig | None = None,
    *,
    total_field_ppm: Volume | None = None,
    field_known: MaskVolume | None = None,
    b0_t: float | None = None,
    noise_sigma: float | None = None,
) -> Rate:
    """Fit R2* to multi-echo gradient-echo magnitudes.

    ARLO (Pei 2015, 10.1002/mrm.25137) needs three uniformly spaced echoes. The non-linear fit takes other
    echo times, voxels without a valid ARLO result, and voxels that lose an echo to the field's gradient. Of
    two echoes it is their ratio, with the noise floor taken into account.

    A field that changes linearly across a voxel attenuates an echo by Π sinc(Δf_x TE) over the three axes,
    where Δf_x is the change across the voxel in Hz (Fernandez-Seara and Wehrli 2000, Magnetic Resonance in
    Medicine 44:358; Hernando 2012, 10.1002/mrm.23306). The field is assumed to change linearly, and the voxel
    to be a box. The most attenuated echoes, where both assumptions matter, are left out.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least two echoes, any scale.
    te_s
        Echo times in s, increasing.
    mask
        Where to fit, shape (i, j, k).
    config
        Options; defaults where None.
    total_field_ppm
        Field with its background, unwrapped, shape (i, j, k). Without it the field's gradient is not
        corrected.
    field_known
        Where the field is known in addition to the mask, shape (i, j, k). At the surface of that region the
        gradient comes from one side only. This is inaccurate where the background changes fast, and σ does
        not include it. A field that is known one voxel beyond the mask avoids it.
    b0_t
        Field strength in T, needed with the field.
    noise_sigma
        Standard deviation of the noise in the scale of the images; estimated from them where None.

    Returns
    -------
    Rate
        R2* within `LEAST_RATE_HZ` and `MAX_RATE_HZ`, and its σ.

    Raises
    ------
    InputError
        If there is one echo only, the echo times do not fit, or the field strength is missing.
    """
    config = config or R2starConfig()
    _check_echoes(magnitude, te_s, at_least=FEWEST_ECHOES, name="R2*")
    signal = magnitude[:, mask].nan_to_num_()  # a copy of its own
    sigma = noise_sigma if noise_sigma is not None else noise_sigma_of_voxels(signal)
    # Squares of tiny scanner units would leave the range of float32.
    scale = float(signal.amax()) if signal.numel() else 0.0
    signal, sigma = signal.div_(scale or 1.0), sigma / (scale or 1.0)
    if config.correct_field_gradient and total_field_ppm is not None:
        known = mask if field_known is None else mask | field_known
        left = attenuation_by_gradient(total_field_ppm, known, mask, te_s, b0_t, config.least_left)
    else:
        left = torch.ones_like(signal)
    steps = [b - a for a, b in pairwise(te_s)]
    uniform = len(te_s) > 2 and max(steps) - min(steps) <= _UNIFORM * max(steps)
    if config.method == "nonlinear" or not uniform:
        rate, error = fit_decay(signal, te_s, sigma, exponential(te_s, left), left)
    else:
        rate, error = arlo_with_error(signal, left, sum(steps) / len(steps), sigma)
        again = ~((rate >= 0) & (rate <= MAX_RATE_HZ) & (left > 0).all(0) & torch.isfinite(error))
        rest = left[:, again]
        rate[again], error[again] = fit_decay(signal[:, again], te_s, sigma, exponential(te_s, rest), rest)
    return Rate(_filled(rate, mask), _filled(error, mask))


# Long because the docstring states the whole contract.
def r2(
    magnitude: Echoes,
    te_s: Sequence[float],
    mask: MaskVolume,
    config: R2Config | None = None,
    *,
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    noise_sigma: float | None = None,
) -> SpinEchoFit:
    """Fit R2 to multi-echo spin-echo magnitudes.

    A dictionary of extended phase graphs over R2 and B1 includes stimulated echoes. The B1 map, which is
    smooth, is estimated first; R2 is then fitted by interpolation in the dictionary. Echo times that are not
    multiples of the first, or fewer than three echoes, allow only an exponential.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least two echoes, any scale.
    te_s
        Echo times in s, increasing.
    mask
        Where to fit, shape (i, j, k).
    config
        Options; defaults where None.
    voxel_mm
        Edges of a voxel in mm, for the map of B1.
    noise_sigma
        Standard deviation of the noise in the scale of the images; estimated from them where None.

    Returns
    -------
    SpinEchoFit
        R2 within `LEAST_RATE_HZ` and `MAX_RATE_HZ`, its σ, and B1.

    Raises
    ------
    InputError
        If there are fewer than two echoes, or the echo times do not fit.
    """
    config = config or R2Config()
    _check_echoes(magnitude, te_s, at_least=2, name="R2")
    method = config.method
    if method == "epg" and not _fit_for_epg(te_s):
        fallback: tuple[str, ...] = (
            f"spin-echo times {', '.join(f'{te:g}' for te in te_s)} s are not at least three multiples of "
            "the first: R2 is that of one exponential, which stimulated echoes make too small",
        )
        method = "exponential"
    else:
        fallback = ()
    signal = magnitude[:, mask].nan_to_num_()  # a copy of its own
    sigma = noise_sigma if noise_sigma is not None else noise_sigma_of_voxels(signal)
    scale = float(signal.amax()) if signal.numel() else 0.0
    signal, sigma = signal.div_(scale or 1.0), sigma / (scale or 1.0)
    every = torch.ones_like(signal)
    if method == "exponential" or not scale:
        rate, error = fit_decay(signal, te_s, sigma, exponential(te_s, every), every)
        return SpinEchoFit(_filled(rate, mask), _filled(error, mask), model=method, warnings=fallback)
    profile = None
    if config.pulse != "ideal":
        profile = slice_profile(
            config.pulse,
            _PULSE_POSITIONS,
            refocusing_width=config.refocusing_width,
            time_bandwidth=config.time_bandwidth,
        )
    table = EpgTable(
        te_s,
        signal,
        excitation_deg=config.excitation_deg,
        refocusing_deg=config.refocusing_deg,
        profile=profile,
        t1_s=config.t1_s,
    )
    without_floor = signal.square().sub_(sigma**2).clamp_min_(0).sqrt_()
    b1 = transmit_field(table, without_floor, sigma, mask, voxel_mm, config.b1_order)
    del without_floor
    rate, error = fit_decay(signal, te_s, sigma, table.model(b1[mask]), every)
    return SpinEchoFit(_filled(rate, mask), _filled(error, mask), b1)


def r2prime(r2star: Rate, r2: Rate) -> Rate:
    """Compute R2' = R2* − R2, which noise makes negative in part of the voxels, with its σ.

    Parameters
    ----------
    r2star
        R2* and its σ.
    r2
        R2 and its σ.

    Returns
    -------
    Rate
        R2' and √(σ_R2*² + σ_R2²). R2' is not clipped at 0: clipping would make it too large on average
        where it is near 0, by up to 0.4 σ, and its errors would no longer be those that σ states. Values
        below −3 σ are set to −3 σ.
    """
    sigma = torch.hypot(r2star.sigma_hz, r2.sigma_hz).clamp_max(MAX_RATE_HZ)
    return bounded_below(Rate(r2star.rate_hz - r2.rate_hz, sigma))


def bounded_below(difference: Rate) -> Rate:
    """Set values of R2' below −3 σ, which are not noise, to −3 σ."""
    return replace(
        difference, rate_hz=torch.maximum(difference.rate_hz, -_FARTHEST_BELOW * difference.sigma_hz)
    )


def with_registration_error(
    r2: SpinEchoFit, mask: MaskVolume, voxel_mm: tuple[float, float, float]
) -> SpinEchoFit:
    """Add to the σ of R2 what the error of a rigid registration makes of its gradient.

    Parameters
    ----------
    r2
        Of spin echoes that were registered and resampled.
    mask
        Where it was fitted, shape (i, j, k).
    voxel_mm
        Edges of a voxel in mm.

    Returns
    -------
    SpinEchoFit
        With √(σ² + s² |∇R2|²), s = 0.06 mm along each axis.
    """
    rate, variance = r2.rate_hz, r2.sigma_hz.square()
    for axis, edge_mm in enumerate(voxel_mm):
        inside = mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(axis, 0, mask.shape[axis] - 1)
        steps = rate.diff(dim=axis) * inside
        total, count = torch.zeros_like(rate), torch.zeros_like(rate)
        for first in (0, 1):
            total.narrow(axis, first, steps.shape[axis]).add_(steps)
            count.narrow(axis, first, steps.shape[axis]).add_(inside)
        variance += (REGISTRATION_SD_MM / edge_mm * total / count.clamp_min(1)).square()
    return replace(r2, sigma_hz=variance.sqrt().clamp_max(MAX_RATE_HZ) * mask)


def pseudo_r2prime(r2star: Rate, b0_t: float) -> Rate:
    """Compute a pseudo-R2' = max(R2* − pseudo-R2, 0), where no spin echo measures R2.

    Unlike R2' of a measured R2 it is clipped: where R2* is below the pseudo-R2, the error is that of the
    assumption, not of noise, and negative values would lower both sources around fluid.

    Parameters
    ----------
    r2star
        R2* and its σ, 0 where R2* is not known.
    b0_t
        Field strength in T; the pseudo-R2 grows with it (`pseudo_r2_hz`).

    Returns
    -------
    Rate
        R2', and √(σ_R2*² + σ_R2²) where R2* is known, with the SD of R2 between tissues as σ_R2.

    Raises
    ------
    InputError
        If the field strength is not positive.
    """
    r2 = pseudo_r2_hz(b0_t)
    sigma = torch.hypot(r2star.sigma_hz, torch.full_like(r2star.sigma_hz, PSEUDO_R2_SD * r2))
    return Rate((r2star.rate_hz - r2).clamp_min(0), sigma * (r2star.sigma_hz > 0))


def _fit_for_epg(te_s: Sequence[float]) -> bool:
    uneven = any(abs(te - (n + 1) * te_s[0]) > _EVEN_TE * te_s[0] for n, te in enumerate(te_s))
    return len(te_s) >= 3 and not uneven


def _check_echoes(magnitude: Tensor, te_s: Sequence[float], *, at_least: int, name: str) -> None:
    """Check that echoes and echo times belong together and suffice."""
    found = None
    if len(te_s) != len(magnitude):
        found = f"{len(magnitude)} echoes and {len(te_s)} echo times"
    elif len(te_s) < at_least:
        found = f"{len(te_s)} echo" + ("es" if len(te_s) > 1 else "")
    elif te_s[0] <= 0 or any(b <= a for a, b in pairwise(te_s)):
        found = f"echo times {', '.join(f'{te:g}' for te in te_s)} s"
    if found:
        raise InputError(
            f"echoes for {name}",
            found=found,
            expected=f"at least {at_least} echoes, each with its echo time in s, positive and increasing",
            fix="Give all echoes of one multi-echo scan, in order.",
        )


def _filled(values: Tensor, mask: Tensor) -> Tensor:
    volume = values.new_zeros(mask.shape)
    volume[mask] = values.clamp(LEAST_RATE_HZ, MAX_RATE_HZ)
    return volume
