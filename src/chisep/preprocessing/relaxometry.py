"""Relaxation rates R2*, R2 and R2' in 1/s from echo magnitudes, each with its standard deviation.

The noise of a magnitude is Rician: where the signal is gone, a floor is left. Fits compare the measured
magnitudes with the mean of a Rician variable (Koay and Basser 2006, 10.1016/j.jmr.2006.01.016), not with the
signal, so that the floor does not look like a slow decay. In magnitudes the noise is nearly the same in all
echoes: least squares of the magnitudes themselves weighs them as they deserve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.epg import slice_profile
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz
from chisep.physics.signal import hz_per_ppm
from chisep.preprocessing.epg_fit import DecayModel, EpgTable, Trains, Values, transmit_field
from chisep.types import Echoes, MaskVolume, Volume

MAX_RATE_HZ = 500.0
"""Upper end of the rates reported, and of their σ, where it says that nothing is known; the lower end is 0.
Above it, no usual echo time sees a signal."""

Attenuation = Float[Tensor, "echo voxel"]
"""Part of each echo that is left, 0 where too little is left to use it."""
_ITERATIONS = 30
_TOLERANCE = 1e-5
_UNIFORM = 1e-3
_CHUNK = 1 << 16
_LEAST_NOISE = 1e-7
_ASYMPTOTIC = 10.0
_MAD = 1.4826
_ROUNDS = 4
_OUTLIER = 4.0
_LEAST_LEFT = 1e-2
_PULSE_POSITIONS = 16
_MOST_ORDER = 12
_EVEN_TE = 0.01


@dataclass(frozen=True)
class R2starConfig:
    """How R2* is fitted."""

    method: Literal["nonlinear", "arlo"] = "nonlinear"
    """Least-squares fit with noise floor, or ARLO: faster, but the noise floor biases it."""
    correct_field_gradient: bool = True
    """Undo what the field's gradient across each voxel takes off later echoes, where the field is known."""
    least_left: float = 0.3
    """Echoes of which the field's gradient leaves less are not used; the first two always are."""

    def __post_init__(self) -> None:
        if not 0 < self.least_left < 1:
            raise InputError(
                "least part of an echo that is left",
                found=f"{self.least_left}",
                expected="between 0 and 1",
                fix="Usual is 0.3.",
            )


@dataclass(frozen=True)
class R2Config:
    """How R2 is fitted, and the pulses of the spin-echo scan."""

    method: Literal["epg", "exponential"] = "epg"
    """Echo trains with stimulated echoes, whose B1 is estimated too, or one exponential."""
    excitation_deg: float = 90.0
    """Nominal flip angle of the excitation in degrees."""
    refocusing_deg: float = 180.0
    """Nominal flip angle of the refocusing pulses in degrees."""
    pulse: Literal["sinc", "gaussian", "ideal"] = "sinc"
    """Slice profile of the pulses; ideal for scans without slices (3-D)."""
    refocusing_width: float = 2.0
    """Thickness of the refocused over that of the excited slice; 1 where the scanner does not widen it."""
    time_bandwidth: float = 4.0
    """Time-bandwidth product of sinc pulses."""
    t1_s: float = 1.1
    """T1 of tissue in seconds, for stimulated echoes."""
    b1_order: int = 6
    """B1 is a polynomial of this order in space; more for a field strength of 7 T."""

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
        In 1/s, shape (i, j, k), 0 outside the mask.
    sigma_hz
        Its standard deviation from the scan's noise, at most `MAX_RATE_HZ`, shape (i, j, k), 0 outside the
        mask. It does not know of bounds: where the rate was clipped, it is that of the rate before.
    """

    rate_hz: Volume
    sigma_hz: Volume


@dataclass(frozen=True, eq=False)
class SpinEchoFit(Rate):
    """R2 and the transmit field found with it.

    Parameters
    ----------
    b1
        Transmit field relative to nominal, shape (i, j, k), 0 outside the mask; None from an exponential.
        Where pulses are near 180°, values above and below nominal look alike: either may be reported.
    model
        Signal model of the fit: extended phase graphs, or one exponential.
    warnings
        Why an exponential was fitted where extended phase graphs were asked for.
    """

    b1: Volume | None = None
    model: Literal["epg", "exponential"] = "epg"
    warnings: tuple[str, ...] = ()


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
    """R2* from multi-echo gradient-echo magnitudes.

    ARLO (Pei 2015, 10.1002/mrm.25137) is for uniformly spaced echoes; other echo times, voxels where it has
    no valid answer and those that lose an echo to the field's gradient go through the non-linear fit.

    A field that changes linearly across a voxel weakens an echo by Π sinc(Δf_x TE) over the three axes, Δf_x
    being the change across the voxel in Hz (Fernandez-Seara and Wehrli 2000, Magnetic Resonance in
    Medicine 44:358; Hernando 2012, 10.1002/mrm.23306). The field is assumed to change linearly, and the
    voxel to be a box; echoes that are weakened most, where both matter, are left out.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least three echoes, any scale.
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
        Where it is known beside the mask, shape (i, j, k). At the surface of what is known the gradient comes
        from one side only, which is a guess where the background changes fast, and σ does not know of it: a
        field known one voxel beyond the mask makes the surface as good as the inside.
    b0_t
        Field strength in T, needed with the field.
    noise_sigma
        Standard deviation of the noise in the scale of the images; estimated from them where None.

    Returns
    -------
    Rate
        R2* within 0 and `MAX_RATE_HZ`, and its σ.

    Raises
    ------
    InputError
        If there are fewer than three echoes, the echo times do not fit, or the field strength is missing.
    """
    config = config or R2starConfig()
    _check_echoes(magnitude, te_s, at_least=3, name="R2*")
    signal = torch.nan_to_num(magnitude[:, mask])
    sigma = noise_sigma if noise_sigma is not None else estimate_noise_sigma(magnitude, mask)
    # Squares of tiny scanner units would leave the range of float32.
    scale = float(signal.amax()) if signal.numel() else 0.0
    signal, sigma = signal / (scale or 1.0), sigma / (scale or 1.0)
    if config.correct_field_gradient and total_field_ppm is not None:
        known = mask if field_known is None else mask | field_known
        left = _left_by_gradient(total_field_ppm, known, mask, te_s, b0_t, config.least_left)
    else:
        left = torch.ones_like(signal)
    steps = [b - a for a, b in pairwise(te_s)]
    if config.method == "nonlinear" or max(steps) - min(steps) > _UNIFORM * max(steps):
        rate, error = _fit(signal, te_s, sigma, _exponential(te_s, left), left)
    else:
        rate, error = _arlo_with_error(signal, left, sum(steps) / len(steps), sigma)
        again = ~((rate >= 0) & (rate <= MAX_RATE_HZ) & (left > 0).all(0) & torch.isfinite(error))
        rest = left[:, again]
        rate[again], error[again] = _fit(signal[:, again], te_s, sigma, _exponential(te_s, rest), rest)
    return Rate(_filled(rate, mask), _filled(error, mask))


def r2(
    magnitude: Echoes,
    te_s: Sequence[float],
    mask: MaskVolume,
    config: R2Config | None = None,
    *,
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    noise_sigma: float | None = None,
) -> SpinEchoFit:
    """R2 from multi-echo spin-echo magnitudes.

    Echo trains with stimulated echoes are matched with a dictionary over R2 and B1; of B1, which is smooth,
    a map is made first, and R2 is then fitted without the steps of the dictionary. Echo times that are not
    multiples of the first, or fewer than three echoes, leave only an exponential.

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
        R2 within 0 and `MAX_RATE_HZ` (200 from echo trains), its σ, and B1.

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
    signal = torch.nan_to_num(magnitude[:, mask])
    sigma = noise_sigma if noise_sigma is not None else estimate_noise_sigma(magnitude, mask)
    scale = float(signal.amax()) if signal.numel() else 0.0
    signal, sigma = signal / (scale or 1.0), sigma / (scale or 1.0)
    every = torch.ones_like(signal)
    if method == "exponential" or not scale:
        rate, error = _fit(signal, te_s, sigma, _exponential(te_s, every), every)
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
    without_floor = (signal**2 - sigma**2).clamp_min(0).sqrt()
    b1 = transmit_field(table, without_floor, sigma, mask, voxel_mm, config.b1_order)
    del without_floor
    rate, error = _fit(signal, te_s, sigma, table.model(b1[mask]), every)
    return SpinEchoFit(_filled(rate, mask), _filled(error, mask), b1)


def r2prime(r2star: Rate, r2: Rate) -> Rate:
    """R2' = max(R2* − R2, 0), with the σ of the difference before it was clipped.

    Parameters
    ----------
    r2star
        R2* and its σ.
    r2
        R2 and its σ.

    Returns
    -------
    Rate
        R2' and √(σ_R2*² + σ_R2²). Clipping makes R2' of regions where it is near 0 too large on average,
        by up to 0.4 σ; σ itself stays that of the difference, so that a solver weighs a clipped voxel
        like its neighbours.
    """
    sigma = torch.hypot(r2star.sigma_hz, r2.sigma_hz).clamp_max(MAX_RATE_HZ)
    return Rate((r2star.rate_hz - r2.rate_hz).clamp_min(0), sigma)


def pseudo_r2prime(r2star: Rate, b0_t: float) -> Rate:
    """R2' = max(R2* − pseudo-R2, 0), where no spin echo measures R2.

    Parameters
    ----------
    r2star
        R2* and its σ, 0 where R2* is not known.
    b0_t
        Field strength in T, which the pseudo-R2 grows with (`pseudo_r2_hz`).

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


def estimate_noise_sigma(magnitude: Echoes, mask: MaskVolume) -> float:
    """Noise of a magnitude channel from the echoes of the brain.

    Decays of all tissues span few dimensions: of three or more echoes there is a contrast in which they
    have almost no signal. What is there is noise, and its median deviation does not see vessels and edges.
    Air is not asked: reconstruction often sets it to zero, and combining coils makes its noise another.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), at least two echoes, any scale.
    mask
        Brain, shape (i, j, k).

    Returns
    -------
    float
        Standard deviation in the scale of the images; 0 without a voxel that has signal. Of two echoes, whose
        contrast shows tissue, from differences between neighbouring voxels: rather too large.
    """
    signal = magnitude[:, mask]
    signal = signal[:, (signal > 0).all(0)]
    if not signal.shape[1]:
        return 0.0
    scale = float(signal.amax())
    signal = signal / scale
    unit = signal / signal.norm(dim=0)
    kept = unit
    for _ in range(_ROUNDS):
        # eigh sorts by size: the first vector is the contrast with the least signal.
        contrast = torch.linalg.eigh((kept @ kept.T).double())[1][:, 0].to(signal.dtype)
        along = contrast @ unit
        kept = unit[:, along.abs() <= _OUTLIER * _MAD * along.abs().median()]
    along = contrast @ signal
    if len(signal) == 2 and len(along) > 1:
        along = torch.diff(along) / math.sqrt(2)
    sigma = _MAD * float(along.abs().median())
    return scale * sigma / _floor_narrowing(signal.median(dim=1).values, contrast, sigma)


def _floor_narrowing(levels: Tensor, contrast: Tensor, sigma: float) -> float:
    """How much narrower than its channels' noise a contrast of magnitudes is, some of which are at the floor.

    `levels` are typical magnitudes of the echoes, shape (echo,). At a signal s and a noise of 1, the variance
    of a Rician variable is 2 + s² less its squared mean; its squared median is 2 ln 2 at s = 0.
    """
    narrowing = 1.0
    for _ in range(_ROUNDS if sigma > 0 else 0):
        power = ((levels * narrowing / sigma) ** 2 - 2 * math.log(2)).clamp_min(0)
        mean, _ = _rician_mean(power.sqrt()[:, None], power.new_ones(1))
        variance = torch.where(power > _ASYMPTOTIC**2, 1, 2 + power - mean[:, 0] ** 2)
        narrowing = float((contrast**2 * variance).sum().sqrt())
    return narrowing


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
    volume[mask] = values.clamp(0, MAX_RATE_HZ)
    return volume


# ---- what the field's gradient leaves of echoes ------------------------------------------------------------


def _left_by_gradient(
    field_ppm: Volume,
    known: MaskVolume,
    mask: MaskVolume,
    te_s: Sequence[float],
    b0_t: float | None,
    least: float,
) -> Attenuation:
    """Part of each echo that is left in the voxels of the mask; 0 where it is less than `least`."""
    if b0_t is None:
        raise InputError(
            "correction of the field's gradient",
            found="a field in ppm without B0",
            expected="the field strength in T",
            fix="Give b0_t.",
        )
    left = field_ppm.new_ones((len(te_s), int(mask.sum())))
    for axis in range(3):
        change_hz = hz_per_ppm(b0_t) * _change_per_voxel(field_ppm, known, axis)[mask]
        for echo, te in enumerate(te_s):
            left[echo] *= torch.sinc(change_hz * te)
    usable = left.cummin(0).values > least
    usable[:2] = True
    # An early echo is kept whatever is left of it, but not divided by nothing.
    return torch.where(usable, left.abs().clamp_min(_LEAST_LEFT), 0)


def _change_per_voxel(field: Volume, known: MaskVolume, axis: int) -> Volume:
    """Mean difference to the neighbours along an axis where the field is known, 0 where there is none."""
    change, pairs = torch.zeros_like(field), torch.zeros_like(field)
    n = field.shape[axis]
    if n > 1:
        both = known.narrow(axis, 0, n - 1) & known.narrow(axis, 1, n - 1)
        step = torch.where(both, torch.diff(field, dim=axis), 0)
        for first in (0, 1):
            change.narrow(axis, first, n - 1).add_(step)
            pairs.narrow(axis, first, n - 1).add_(both)
    return change / pairs.clamp_min(1)


# ---- fits --------------------------------------------------------------------------------------------------


def _arlo(signal: Tensor, step_s: float) -> Tensor:
    """ARLO with Simpson's rule; signal (echo, voxel) → rate (voxel), NaN where there is no signal."""
    third = step_s / 3
    first, middle, last = signal[:-2], signal[1:-1], signal[2:]
    integral = third * (first + 4 * middle + last)
    drop = first - last
    mixed = (integral * drop).sum(0)
    return (mixed + third * (drop**2).sum(0)) / ((integral**2).sum(0) + third * mixed)


def _arlo_with_error(signal: Trains, left: Attenuation, step_s: float, sigma: float) -> tuple[Values, Values]:
    """ARLO of echoes made whole, and the noise that a linear approximation carries to the rate."""
    rates, errors = [], []
    for first in range(0, signal.shape[1], _CHUNK):
        chunk = slice(first, first + _CHUNK)
        with torch.enable_grad():
            whole = (signal[:, chunk] / left[:, chunk].clamp_min(_LEAST_LEFT)).requires_grad_()
            rate = _arlo(whole, step_s)
            (slope,) = torch.autograd.grad(rate.sum(), whole)
        rates.append(rate.detach())
        errors.append(sigma * (slope / left[:, chunk].clamp_min(_LEAST_LEFT)).norm(dim=0))
    return torch.cat(rates or [signal[0]]), torch.cat(errors or [signal[0]])


def _exponential(te_s: Sequence[float], left: Attenuation) -> DecayModel:
    """Model of ideal decays, of whose echoes a part is left."""
    t = left.new_tensor(list(te_s))[:, None]

    def decay(voxels: Tensor, rate_hz: Tensor) -> tuple[Tensor, Tensor]:
        values = left[:, voxels] * torch.exp(-rate_hz * t)
        return values, -t * values

    return decay


def _fit(
    signal: Trains, te_s: Sequence[float], sigma: float, model: DecayModel, left: Attenuation
) -> tuple[Values, Values]:
    """Least-squares rate of a train of free amplitude, and the σ that its curvature gives, in 1/s.

    Echoes of which nothing is left do not count. Where there is no signal, the rate is 0 and its σ
    `MAX_RATE_HZ`. Times are in units of the longest TE and signals in units of the brightest echo, so that
    both unknowns are of order 1.
    """
    longest, tiny = te_s[-1], torch.finfo(signal.dtype).tiny
    t = signal.new_tensor([te / longest for te in te_s])[:, None]
    rate, error = torch.zeros_like(signal[0]), torch.zeros_like(signal[0])
    for first in range(0, signal.shape[1], _CHUNK):
        voxels = torch.arange(first, min(first + _CHUNK, signal.shape[1]), device=signal.device)
        peak = signal[:, voxels].amax(0)
        scale = torch.where(peak > 0, peak, 1)
        data = _Data(
            signal[:, voxels] / scale, (sigma / scale).clamp_min(_LEAST_NOISE), left[:, voxels] > 0, voxels
        )
        start = _log_linear_rate(data.echoes, t, left[:, voxels]).clamp_max(MAX_RATE_HZ * longest)
        found, amplitude = _least_squares(data, model, start, longest)
        shape, slope = _scaled(model, voxels, found, longest)
        _, passed = _rician_mean(amplitude * shape, data.noise)
        aa, ar, rr = _normal(passed * shape * data.used, passed * amplitude * slope * data.used)
        # The derivatives by amplitude and rate tell them apart by the angle between them: sin² of it.
        separate = (1 - ar**2 / (aa * rr).clamp_min(tiny)).clamp_min(0)
        deviation = data.noise / (rr * separate).clamp_min(tiny).sqrt()
        rate[voxels] = torch.where(peak > 0, found / longest, 0)
        error[voxels] = torch.where(peak > 0, deviation / longest, MAX_RATE_HZ)
    return rate, error


class _Data(NamedTuple):
    """Voxels of one chunk: echoes and σ relative to the brightest echo, which echoes count, which voxels."""

    echoes: Trains
    noise: Values
    used: Tensor
    voxels: Tensor

    def some(self, here: Tensor) -> _Data:
        """Return some of the voxels."""
        return _Data(self.echoes[:, here], self.noise[here], self.used[:, here], self.voxels[here])


def _least_squares(data: _Data, model: DecayModel, rate: Values, longest: float) -> tuple[Values, Values]:
    """Rates in units of 1/(longest TE), and amplitudes.

    Gauss–Newton with Levenberg's damping, all voxels at once; those that have come to rest are left out as
    soon as they are the most.
    """
    tiny = torch.finfo(rate.dtype).tiny
    shape, slope = _scaled(model, data.voxels, rate, longest)
    shown = shape * data.used
    amplitude = (shown * data.echoes).sum(0) / (shown**2).sum(0).clamp_min(tiny)
    mean, passed = _rician_mean(amplitude * shape, data.noise)
    residual = (data.echoes - mean) * data.used
    damping = torch.full_like(rate, 1e-3)
    final_rate, final_amplitude = rate.clone(), amplitude.clone()
    at = torch.arange(len(rate), device=rate.device)
    for _ in range(_ITERATIONS):
        by_amplitude, by_rate = passed * shape * data.used, passed * amplitude * slope * data.used
        aa, ar, rr = _normal(by_amplitude, by_rate)
        ga, gr = (by_amplitude * residual).sum(0), (by_rate * residual).sum(0)
        aa, rr = aa * (1 + damping), rr * (1 + damping)
        determinant = (aa * rr - ar**2).clamp_min(tiny)
        # Steps of lost voxels may overflow; a table has no entry for what is not a number.
        new_amplitude = torch.nan_to_num(amplitude + (rr * ga - ar * gr) / determinant).clamp_min(0)
        new_rate = torch.nan_to_num(rate + (aa * gr - ar * ga) / determinant)
        new_rate = new_rate.clamp(0, MAX_RATE_HZ * longest)
        new_shape, new_slope = _scaled(model, data.voxels, new_rate, longest)
        new_mean, new_passed = _rician_mean(new_amplitude * new_shape, data.noise)
        new_residual = (data.echoes - new_mean) * data.used
        better = (new_residual**2).sum(0) <= (residual**2).sum(0)
        moving = (new_rate - rate).abs() > _TOLERANCE * (1 + rate)
        rate = torch.where(better, new_rate, rate)
        amplitude = torch.where(better, new_amplitude, amplitude)
        shape, slope = torch.where(better, new_shape, shape), torch.where(better, new_slope, slope)
        passed = torch.where(better, new_passed, passed)
        residual = torch.where(better, new_residual, residual)
        damping = torch.where(better, damping / 10, damping * 10)
        final_rate[at], final_amplitude[at] = rate, amplitude
        if int(moving.sum()) < len(at) / 2:
            at, data = at[moving], data.some(moving)
            rate, amplitude, damping = rate[moving], amplitude[moving], damping[moving]
            shape, slope, passed = shape[:, moving], slope[:, moving], passed[:, moving]
            residual = residual[:, moving]
        if not len(at):
            break
    return final_rate, final_amplitude


def _normal(by_amplitude: Trains, by_rate: Trains) -> tuple[Values, Values, Values]:
    """Entries of the normal matrix."""
    return (by_amplitude**2).sum(0), (by_amplitude * by_rate).sum(0), (by_rate**2).sum(0)


def _scaled(model: DecayModel, voxels: Tensor, rate: Values, longest: float) -> tuple[Trains, Trains]:
    """Echoes and their derivatives by a rate in units of 1/(longest TE)."""
    values, slope = model(voxels, rate / longest)
    return values, slope / longest


def _rician_mean(signal: Trains, noise: Values) -> tuple[Trains, Trains]:
    """Mean of the magnitude of a signal in complex noise, and its derivative by the signal, (echo, voxel).

    √(π/2) [(1 + 2z) I₀(z) + 2z I₁(z)] exp(−z) at a noise of 1, z = signal²/4; far above the noise by its
    asymptotic series, which keeps what is left of the precision.
    """
    ratio = signal / noise
    inverse = 1 / ratio.clamp_min(_ASYMPTOTIC)
    excess, slope = inverse / 2 + inverse**3 / 8, 1 - inverse**2 / 2
    close = ~(ratio > _ASYMPTOTIC)
    near = ratio[close]
    if len(near):
        z = near**2 / 4
        even, odd = torch.special.i0e(z), torch.special.i1e(z)
        root = math.sqrt(math.pi / 2)
        excess[close] = root * (even + 2 * z * (even + odd)) - near
        slope[close] = root / 2 * near * (even + odd)
    return signal + noise * excess, slope


def _log_linear_rate(y: Trains, t: Tensor, left: Attenuation) -> Values:
    """Rate of the line through log y, weighted by y² (the inverse variance of a logarithm), at least 0."""
    weight = y**2 * (left > 0)
    total = weight.sum(0).clamp_min(1e-12)
    log_y = torch.log((y / left.clamp_min(_LEAST_LEFT)).clamp_min(1e-6))
    mean_t, mean_log = (weight * t).sum(0) / total, (weight * log_y).sum(0) / total
    spread = (weight * (t - mean_t) ** 2).sum(0).clamp_min(1e-12)
    return (-(weight * (t - mean_t) * (log_y - mean_log)).sum(0) / spread).clamp_min(0)
