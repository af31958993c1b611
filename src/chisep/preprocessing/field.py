"""Total field in ppm from wrapped multi-echo phase, with its standard deviation.

Phase of a gradient echo: φ(TE) = φ₀ + 2π γ̄ B0 Δf TE, known up to multiples of 2π. The phase difference
between echoes has no receiver offset φ₀. It is unwrapped in space; every echo is then unwrapped in time
around the phase that the field so far predicts, so that all echoes are consistent. Where odd and even echoes
are read in opposite directions (bipolar), a phase ±ψ that is linear in position is added to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from scipy import ndimage, special
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
from chisep.preprocessing.bipolar import readout_constant, readout_ramp
from chisep.preprocessing.field_checks import field_checks
from chisep.preprocessing.field_map import FieldConfig, FieldMap
from chisep.preprocessing.magnitude_noise import noise_of_differences
from chisep.preprocessing.masked_values import bounding_box, volume_of
from chisep.preprocessing.morphology import largest_component
from chisep.preprocessing.phase_jumps import slice_offsets
from chisep.preprocessing.phase_offset import smoothed_phase
from chisep.preprocessing.unwrapping import unwrap, wrap
from chisep.types import Echoes, Grid, MaskVolume, Volume

_SAME_STEP = 1e-3
_SAME_PLACE = 0.05
"""Distance of an echo from its place among evenly spaced ones, in spacings: times are rounded."""
_BIPOLAR_RAD = 0.1
"""Half the phase (RMS in the mask) between odd and even echoes from which they count as bipolar: less changes
the field by less than a ppb."""
_GAUSS_NEWTON_STEPS = 10
_MOST_WRAPS = 3
"""Whole wraps in the shortest interval that are tried: 600 Hz at an interval of 5 ms."""
_CHANCE = 1e-3
"""Residuals that are less probable than this under noise have another cause: phase that is not linear in
TE."""
_TWO_ECHOES = (
    "two echoes cannot separate the phase of bipolar read-outs from a field: if there is one, the field "
    "has a ramp along the read axis; add --field-map.bipolar False if they are not bipolar"
)
_DIRECTIONS_BY_TIME = (
    "the read-out directions of the echoes follow from the echo times: by the echo numbers, they would "
    "contradict the phase, or echoes that are left out"
)
_ONE_ECHO = (
    "one echo cannot separate the phase of the receiver from a field: the field holds both, and background "
    "removal takes off the smooth part only"
)


# Long because the docstring states the whole contract, and every step needs the results of those before.
def total_field(
    magnitude: Echoes,
    phase_rad: Echoes,
    te_s: Sequence[float],
    b0_t: float,
    mask: MaskVolume,
    grid: Grid,
    config: FieldConfig | None = None,
    echo_numbers: Sequence[int] | None = None,
) -> FieldMap:
    """Unwrap multi-echo phase and combine the echoes to the total field.

    Parameters
    ----------
    magnitude, phase_rad
        Gradient echoes, shape (echo, i, j, k); any scale, and radians.
    te_s
        Echo times in s, increasing.
    b0_t
        Field strength in T.
    mask
        Where to unwrap, shape (i, j, k).
    grid
        Voxel size.
    config
        Options; defaults where None.
    echo_numbers
        Numbers of the echoes in the scan, which tell the direction of bipolar read-outs where echoes are
        missing; 1, 2, 3, … where None.

    Returns
    -------
    FieldMap
        Total field in ppm and intermediate maps.

    Raises
    ------
    InputError
        If echoes and echo times do not fit, or the mask is empty.

    Notes
    -----
    - The phase difference over the shortest echo spacing is unwrapped in space by ROMEO
      (`chisep.preprocessing.unwrapping`). The rest of the first echo's phase is the receiver's offset, which
      is smoothed as a complex number and subtracted (MCPC-3D-S: Eckstein 2018, 10.1002/mrm.26963).
    - Offsets that jump from slice to slice (`slice_offsets`) are subtracted first. Where echoes are unevenly
      spaced, the wrap count of the shortest spacing is the one that agrees with all echoes.
    - Bipolar read-outs add a phase of alternating sign that is linear in position. Its slope along each axis
      is the median over all pairs of neighbours of the part of their phase difference that neither a constant
      nor a field explains. Its constant is the smallest that agrees with all echoes.
    - Linear fit: least squares through φ₀ with weights (magnitude · TE)², the inverse variance of each echo's
      field; for one R2* this is the family TE·exp(−TE·R2*), squared. Non-linear fit: least squares of
      the complex signals over field and offset, with the magnitudes as measured (Liu 2013,
      10.1002/mrm.24272).
    - The noise of a channel is estimated from the residuals of the linear fit, as median over the mask; σ of
      the field follows from it by the curvature of the fit. Where residuals are larger than noise explains, σ
      grows with them.
    - One echo: its unwrapped phase over TE. The receiver's phase stays in the field. σ follows from the noise
      of the magnitude.
    """
    config = config or FieldConfig()
    _check(magnitude, phase_rad, te_s, b0_t, mask)
    numbers = list(echo_numbers) if echo_numbers else list(range(1, len(te_s) + 1))
    if len(te_s) == 1:
        return _of_one_echo(magnitude, phase_rad, te_s[0], b0_t, mask, grid, numbers, config)
    found = _of_echoes(magnitude, phase_rad, te_s, b0_t, mask, grid, numbers, config)
    by_time, gaps = _numbers_by_time(te_s)
    other_directions = any(
        (a - b) % 2 != (numbers[0] - by_time[0]) % 2 for a, b in zip(numbers, by_time, strict=True)
    )
    # Three echoes fit any directions: then the gap tells, unless the names have gaps themselves.
    undetermined = gaps and len(te_s) == 3 and numbers[2] - numbers[0] == 2 and bool(found.bipolar_rad.any())
    if config.bipolar is None and other_directions and (undetermined or _is_doubtful(found)):
        again = _of_echoes(magnitude, phase_rad, te_s, b0_t, mask, grid, by_time, config)
        if undetermined or not _is_doubtful(again):
            return replace(again, warnings=(*again.warnings, _DIRECTIONS_BY_TIME))
    return found


def _numbers_by_time(te_s: Sequence[float]) -> tuple[list[int], bool]:
    """Numbers of the echoes in a scan of even spacing, of which some may be left out; whether all fit."""
    closest = min(after - before for before, after in pairwise(te_s))
    places = [[(te - te_s[0]) / closest * part for te in te_s] for part in (1, 2)]
    fits = [place for place in places if all(abs(one - round(one)) < _SAME_PLACE for one in place)]
    return [1 + round(one) for one in (fits or places)[0]], bool(fits)


def _is_doubtful(found: FieldMap) -> bool:
    return any(check.name == "CoherentResidualRad" and check.level != "green" for check in found.checks)


# Long because the steps share the phase inside the mask, which each of them corrects.
def _of_echoes(
    magnitude: Echoes,
    phase_rad: Echoes,
    te_s: Sequence[float],
    b0_t: float,
    mask: MaskVolume,
    grid: Grid,
    numbers: Sequence[int],
    config: FieldConfig,
) -> FieldMap:
    """Field of two echoes or more, of these numbers in the scan."""
    te = torch.tensor(list(te_s), dtype=phase_rad.dtype, device=phase_rad.device)[:, None]
    weight = (magnitude[:, mask] / magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny)) ** 2
    wrapped = config.phase_sign * phase_rad[:, mask]
    # Volumes in between are of the mask's box; values inside the mask have the same order in both.
    box = bounding_box(mask)
    inside = mask[box]
    # The first echo has the sign +1, and so have those an even number of echoes after it.
    sign = 1 - 2 * ((torch.tensor(numbers, device=te.device) - numbers[0]) % 2).to(te.dtype)[:, None]
    jumps_rad, jump_axis = slice_offsets(wrapped, weight, te, inside)
    if jump_axis is not None:
        wrapped = wrapped - jumps_rad

    bipolar_rad = torch.zeros_like(wrapped[0])
    bipolar = False
    alternates = len(te) > 2 and bool((sign < 0).any())
    if alternates and config.bipolar is not False:
        ramp = readout_ramp(wrapped, weight, te, sign, inside)
        bipolar = config.bipolar is True or float(ramp.square().mean().sqrt()) > _BIPOLAR_RAD
        if bipolar:
            bipolar_rad = ramp
            wrapped = wrapped - sign * ramp

    gained_rad, quality = _gained(wrapped, weight, te, inside, sign if bipolar else None)
    rate = gained_rad[inside] / (te[1:] - te[:-1]).min()
    if bipolar:
        wraps = 0 if _is_even(te) else _MOST_WRAPS
        constant, correction = readout_constant(wrapped, weight, te, sign, rate, wraps)
        bipolar_rad = bipolar_rad + constant
        wrapped = wrapped - sign * constant
        rate = rate + correction
    elif not _is_even(te):
        rate = rate + _missing_wraps(wrapped, weight, te, rate)
    offset = smoothed_phase(
        torch.polar(weight[0], wrapped[0] - rate * te[0]), inside, config.offset_smoothing_mm, grid
    )

    first_rate = rate
    rate, deviation, curvature = _line(wrapped, weight, te, rate, offset)
    variance, excess = _noise(deviation, weight)
    origin = offset
    if config.fit == "nonlinear":
        rate, origin = _line_with_offset(wrapped, weight, te, first_rate)
        rate, origin, curvature = _complex_fit(wrapped, weight, te, rate, origin)
        deviation = wrap(wrapped - origin - rate * te)
        if len(te) > 2:
            variance, excess = _noise(deviation, weight, fitted=2)
    tiny = torch.finfo(te.dtype).tiny
    # At most the standard deviation that two random phases give.
    most = math.sqrt(2 / 3) * math.pi / (te_s[-1] - te_s[0])
    sigma = (excess * variance / curvature.clamp_min(tiny)).sqrt().clamp(max=most)

    share = weight * te**2
    residual = ((share * deviation**2).sum(0) / share.sum(0).clamp_min(tiny)).sqrt()
    smooth = inside & (volume_of(residual, inside) <= config.max_residual_rad)
    smooth &= _largest_phase_step(gained_rad, inside) <= config.max_step_rad
    reliable = _largest_filled(smooth) & inside
    rad_hz_per_ppm = 2 * math.pi * hz_per_ppm(b0_t)
    warnings = [_TWO_ECHOES] if len(te_s) == 2 and config.bipolar is not False else []
    if jump_axis is not None:
        warnings.append(
            f"the phase jumps from slice to slice along axis {jump_axis + 1}, equally in all echoes (as "
            "reconstructions with sign flips and multi-slab scans leave it); the jumps were removed"
        )
    return FieldMap(
        total_field_ppm=volume_of(rate / rad_hz_per_ppm, mask),
        sigma_ppm=volume_of(sigma / rad_hz_per_ppm, mask),
        unwrapped_rad=volume_of(_around_mean(origin, weight[0]) + rate * te + deviation, mask),
        phase_offset_rad=volume_of(wrap(offset + jumps_rad), mask),
        bipolar_rad=volume_of(bipolar_rad, mask),
        residual_rad=volume_of(residual, mask),
        quality=volume_of(quality[inside], mask),
        reliable=volume_of(reliable[inside], mask),
        checks=field_checks(
            deviation,
            weight,
            te,
            inside,
            numbers=numbers,
            reliable=reliable,
            field_ppm=rate / rad_hz_per_ppm,
            sigma_ppm=sigma / rad_hz_per_ppm,
            voxel_mm=grid.voxel_mm,
        ),
        warnings=tuple(warnings),
    )


def _around_mean(offset: Tensor, weight: Tensor) -> Tensor:
    """Move a wrapped offset by whole wraps to within ±π of its mean, so that it has no steps of 2π there."""
    mean = torch.polar(weight, offset).sum().angle()
    return offset - 2 * math.pi * torch.round((offset - mean) / (2 * math.pi))


def _of_one_echo(
    magnitude: Echoes,
    phase_rad: Echoes,
    te_s: float,
    b0_t: float,
    mask: Tensor,
    grid: Grid,
    numbers: Sequence[int],
    config: FieldConfig,
) -> FieldMap:
    """Field of one echo: its phase, unwrapped in space, over TE."""
    box = bounding_box(mask)
    inside = mask[box]
    phase = volume_of(config.phase_sign * phase_rad[0][mask], inside)[None]
    result = unwrap(phase, volume_of(magnitude[0][mask], inside)[None], [te_s], inside)
    phase_rad, quality = result.phase_rad[0], result.quality
    signal = magnitude[0][mask]
    noise = noise_of_differences(magnitude[0][box], inside)
    rad_per_ppm = 2 * math.pi * hz_per_ppm(b0_t) * te_s
    tiny = torch.finfo(signal.dtype).tiny
    sigma_rad = (noise / signal.clamp_min(tiny)).clamp(max=math.pi / math.sqrt(3))
    smooth = inside & (_largest_phase_step(phase_rad, inside) <= config.max_step_rad)
    reliable = _largest_filled(smooth) & inside
    field_ppm, sigma_ppm = phase_rad[inside] / rad_per_ppm, sigma_rad / rad_per_ppm
    zero = torch.zeros_like(magnitude[0])
    return FieldMap(
        total_field_ppm=volume_of(field_ppm, mask),
        sigma_ppm=volume_of(sigma_ppm, mask),
        unwrapped_rad=volume_of(phase_rad[inside], mask)[None],
        phase_offset_rad=zero,
        bipolar_rad=zero,
        residual_rad=zero,
        quality=volume_of(quality[inside], mask),
        reliable=volume_of(reliable[inside], mask),
        checks=field_checks(
            torch.zeros_like(signal)[None],
            (signal**2)[None],
            torch.tensor([[te_s]]),
            inside,
            numbers=numbers,
            reliable=reliable,
            field_ppm=field_ppm,
            sigma_ppm=sigma_ppm,
            voxel_mm=grid.voxel_mm,
        ),
        warnings=(_ONE_ECHO,),
    )


def _largest_filled(mask: Tensor) -> Tensor:
    largest = ndimage.binary_fill_holes(largest_component(mask.cpu().numpy()))
    return torch.from_numpy(largest).to(mask.device)


def _gained(
    wrapped: Tensor, weight: Tensor, te: Tensor, mask: Tensor, sign: Tensor | None
) -> tuple[Volume, Volume]:
    """Unwrap the phase difference over the shortest echo spacing in space; returns it and its quality.

    All spacings as short as the shortest, which wraps least, are averaged; with bipolar read-outs only those
    that begin with the same polarity.
    """
    steps = (te[1:] - te[:-1]).flatten()
    chosen = steps < steps.min() * (1 + _SAME_STEP)
    if sign is not None:
        start, end = sign[:-1, 0], sign[1:, 0]
        shortest = int(steps.argmin())
        chosen &= (start == start[shortest]) & (end == end[shortest])
    product = torch.polar((weight[1:] * weight[:-1]).sqrt(), wrapped[1:] - wrapped[:-1])[chosen].sum(0)
    products, times = [product], [float(steps.min())]
    if len(te) > 2:  # a longer spacing shows whether phase grows in proportion to time
        products.append(torch.polar((weight[2] * weight[0]).sqrt(), wrapped[2] - wrapped[0]))
        times.append(float(te[2] - te[0]))
    echoes = torch.stack(products)
    result = unwrap(volume_of(echoes.angle(), mask), volume_of(echoes.abs().sqrt(), mask), times, mask)
    return result.phase_rad[0], result.quality


def _line(
    wrapped: Tensor, weight: Tensor, te: Tensor, rate: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Unwrap echoes in time around a first rate, and fit a line through the offset.

    Returns the rate, the residual of each echo, and the curvature of the sum of squares along the rate.
    """
    unwrapped = torch.empty_like(wrapped)
    numerator, curvature = torch.zeros_like(rate), torch.zeros_like(rate)
    for echo, time in enumerate(te):
        predicted = offset + rate * time
        unwrapped[echo] = predicted + wrap(wrapped[echo] - predicted)
        numerator += weight[echo] * time * (unwrapped[echo] - offset)
        curvature += weight[echo] * time**2
        # Every echo refines the prediction of the next; voxels without signal keep the first estimate.
        rate = torch.where(curvature > 0, numerator / curvature, rate)
    return rate, unwrapped - offset - rate * te, curvature


def _is_even(te: Tensor) -> bool:
    """Whether all intervals are whole multiples of the shortest: whole wraps in it then fit any field."""
    interval = (te[1:] - te[:-1]).flatten()
    ratio = interval / interval.min()
    return bool(((ratio - ratio.round()).abs() < _SAME_STEP).all())


def _missing_wraps(wrapped: Tensor, weight: Tensor, te: Tensor, rate: Tensor) -> float:
    """Whole wraps in the shortest interval that the rate lacks everywhere, as a rate in rad/s."""
    gained = torch.polar((weight * weight[0]).sqrt(), wrapped - wrapped[0] - rate * (te - te[0]))
    total = gained.sum(1)[1:]
    wraps = torch.arange(-_MOST_WRAPS, _MOST_WRAPS + 1, device=te.device)
    per_wrap = 2 * math.pi / float((te[1:] - te[:-1]).min())
    left = total.angle()[:, None] - (te[1:] - te[0]) * per_wrap * wraps
    agreement = (total.abs()[:, None] * left.cos()).sum(0) / total.abs().sum()
    # Of equal agreement the fewest.
    return per_wrap * float(wraps[int((agreement - 1e-4 * wraps.abs()).argmax())])


def _line_with_offset(wrapped: Tensor, weight: Tensor, te: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Unwrap echoes in time around a first rate, and fit a line with an offset of every voxel's own.

    Returns rate and offset.
    """
    offset = wrapped[0] - rate * te[0]
    tiny = torch.finfo(te.dtype).tiny
    w, wt, wtt, wy, wty = (torch.zeros_like(rate) for _ in range(5))
    for echo, time in enumerate(te):
        predicted = offset + rate * time
        phase = predicted + wrap(wrapped[echo] - predicted)
        w, wt, wtt = w + weight[echo], wt + weight[echo] * time, wtt + weight[echo] * time**2
        wy, wty = wy + weight[echo] * phase, wty + weight[echo] * time * phase
        determinant = w * wtt - wt**2
        if echo > 0:
            known = determinant > tiny
            rate = torch.where(known, (w * wty - wt * wy) / determinant.clamp_min(tiny), rate)
            offset = torch.where(known, (wy - rate * wt) / w.clamp_min(tiny), offset)
    return rate, offset


def _noise(deviation: Tensor, weight: Tensor, fitted: int = 1) -> tuple[Tensor, Tensor]:
    """Noise variance of a channel, and by how much a voxel's residuals exceed what such noise explains."""
    # Residuals over the noise's SD, squared and summed, follow χ²; the fitted numbers take some of them.
    freedom = len(deviation) - fitted
    square = (weight * deviation**2).sum(0)
    variance = square.median() / special.chdtri(freedom, 0.5)
    chi2 = square / variance.clamp_min(torch.finfo(square.dtype).tiny)
    return variance, torch.where(chi2 > special.chdtri(freedom, _CHANCE), chi2 / freedom, 1.0)


def _complex_fit(
    wrapped: Tensor, weight: Tensor, te: Tensor, rate: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit rate and offset to the complex signals by least squares; also returns the curvature along the rate.

    Gauss-Newton: the sum of squares Σ 2w(1 − cos δ) never curves more than Σ w δ², so no step makes it worse.
    """
    tiny = torch.finfo(te.dtype).tiny
    total = weight.sum(0).clamp_min(tiny)
    centre = (weight * te).sum(0) / total
    late = te - centre
    curvature = (weight * late**2).sum(0)
    phase = offset + rate * centre
    for _ in range(_GAUSS_NEWTON_STEPS):
        pull = weight * torch.sin(wrapped - phase - rate * late)
        phase = phase + pull.sum(0) / total
        rate = rate + (pull * late).sum(0) / curvature.clamp_min(tiny)
    return rate, phase - rate * centre, curvature


def _check(magnitude: Tensor, phase_rad: Tensor, te_s: Sequence[float], b0_t: float, mask: Tensor) -> None:
    """Check that the inputs belong together."""
    found = None
    if not len(te_s) == len(magnitude) == len(phase_rad):
        found = f"{len(magnitude)} magnitudes, {len(phase_rad)} phases and {len(te_s)} echo times"
    elif te_s[0] <= 0 or any(b <= a for a, b in pairwise(te_s)):
        found = f"echo times {', '.join(f'{te:g}' for te in te_s)} s"
    elif not (math.isfinite(b0_t) and b0_t > 0):
        found = f"a field strength of {b0_t} T"
    elif not bool(mask.any()):
        found = "an empty mask"
    if found:
        raise InputError(
            "field mapping",
            found=found,
            expected="gradient echoes with increasing echo times in s, B0 in T and a mask",
            fix="Give magnitude and phase of all echoes of one multi-echo scan, in order.",
        )


def _largest_phase_step(phase_rad: Tensor, mask: Tensor) -> Tensor:
    """Maximum phase difference to a face neighbour inside the mask."""
    steepest = torch.zeros_like(phase_rad)
    for axis in range(3):
        n = mask.shape[axis] - 1
        both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = torch.where(both, phase_rad.diff(dim=axis).abs(), 0)
        for start in (0, 1):
            part = steepest.narrow(axis, start, n)
            torch.maximum(part, step, out=part)
    return steepest
