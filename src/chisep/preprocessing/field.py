"""From wrapped phase to the total field in ppm.

Phase of a gradient echo: φ(TE) = φ₀ + 2π γ̄ B0 Δf TE, known up to multiples of 2π. The phase gained
between echoes is free of the receiver offset φ₀; it is unwrapped in space, and every echo is then
unwrapped in time around what the field so far predicts, so that all echoes are consistent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import unwrap_phase
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
from chisep.types import Echoes, Grid, MaskVolume, Volume

_RADIAN_SLACK = 0.05
_SAME_STEP = 1e-3
_SMOOTHING_PASSES = 2


def phase_in_radians(phase: Echoes, source: str, units: str | None = None) -> tuple[Echoes, str | None]:
    """Recognise the scale of stored phase and bring it to radians.

    Parameters
    ----------
    phase
        Stored values, shape (echo, i, j, k).
    source
        Where they come from, for messages.
    units
        What the sidecar says ("rad", "arbitrary"), if anything. "rad" is believed if the values agree.

    Returns
    -------
    phase_rad : Echoes
        Phase in radians.
    note : str or None
        What was found and how it was read; None where the values were radians already.

    Raises
    ------
    InputError
        If an echo is constant.

    Notes
    -----
    Known scales are radians (within ±2π, spanning more than 1), integers 0…4095 (12 bit) and
    −4096…4095 (12 bit, doubled and centred) and degrees (±180 or 0…360). Any other scale is read as
    linear, its smallest and largest value being −π and π: true of whole images, where air holds every
    phase.
    """
    if bool((phase.amax((1, 2, 3)) == phase.amin((1, 2, 3))).any()):
        raise InputError(
            source,
            found="phase of one value everywhere",
            wanted="a phase image for every echo",
            remedy="Check that the phase and not an empty image was exported.",
        )
    low, high = float(phase.min()), float(phase.max())
    span, largest = high - low, max(-low, high)
    named_radians = units is not None and units.lower() in ("rad", "radian", "radians")
    unnamed = units is None or not units.strip()
    within = largest <= 2 * math.pi + _RADIAN_SLACK
    if within and (named_radians or (unnamed and span > 1.0)):
        return phase, None

    whole = span > 1.0 and bool((phase == phase.round()).all())
    if whole and low >= 0 and 3500 < high <= 4096:
        scale, centre, name = 2 * math.pi / 4096, 2048.0, "12-bit integers 0…4095 for −π…π"
    elif whole and -4096 <= low < -3500 and 3500 < high <= 4096:
        scale, centre, name = math.pi / 4096, 0.0, "integers −4096…4095 for −π…π"
    elif 300 < span <= 361 and (largest <= 180.5 or (low >= -0.5 and high <= 360.5)):
        scale, centre, name = math.pi / 180, 0.0, "degrees"
    else:
        scale, centre = 2 * math.pi / span, (low + high) / 2
        name = "a linear scale of unknown unit from −π to π"
    note = f"{source}: phase from {low:g} to {high:g} was read as {name} and brought to radians"
    if named_radians:
        note += ", though its sidecar says radians"
    return (phase - centre) * scale, note


@dataclass(frozen=True)
class FieldConfig:
    """How phase becomes a field."""

    phase_sign: int = 1
    """1 if phase grows with the field, −1 if the scanner stores it the other way round."""
    offset_smoothing_mm: float = 4.0
    """Standard deviation of the Gaussian that smooths the receiver's phase offset."""
    max_residual_rad: float = 0.6
    """Voxels whose echoes deviate more than this (RMS) from one line are not reliable."""
    max_step_rad: float = 2.2
    """Voxels that gain this much more or less phase between echoes than a neighbour are not reliable: the
    true step may be beyond π, which no unwrapping can tell."""

    def __post_init__(self) -> None:
        if self.phase_sign not in (1, -1):
            raise InputError(
                "phase sign",
                found=f"{self.phase_sign}",
                wanted="1 or -1",
                remedy="Leave it at 1 if in doubt.",
            )
        for name in ("offset_smoothing_mm", "max_residual_rad", "max_step_rad"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"field option {name}",
                    found=f"{value}",
                    wanted="a positive number",
                    remedy="Leave it at its default.",
                )


@dataclass(frozen=True, eq=False)
class FieldMap:
    """The total field and what it was made from; everything is 0 (False) outside the mask.

    Parameters
    ----------
    total_field_ppm
        Field of all sources inside and outside the brain, shape (i, j, k), up to one constant.
    unwrapped_rad
        Phase of every echo without wraps, shape (echo, i, j, k).
    phase_offset_rad
        The receiver's phase φ₀, smoothed, within ±π, shape (i, j, k).
    residual_rad
        RMS over the echoes of measured minus fitted phase, weighted as the fit, shape (i, j, k).
    reliable
        Largest connected part of the mask without voxels of large residual or steep phase, holes filled,
        shape (i, j, k).
    """

    total_field_ppm: Volume
    unwrapped_rad: Echoes
    phase_offset_rad: Volume
    residual_rad: Volume
    reliable: MaskVolume


def total_field(
    magnitude: Echoes,
    phase_rad: Echoes,
    te_s: Sequence[float],
    b0_t: float,
    mask: MaskVolume,
    grid: Grid,
    config: FieldConfig | None = None,
) -> FieldMap:
    """Unwrap multi-echo phase and combine the echoes to the total field.

    Parameters
    ----------
    magnitude, phase_rad
        Gradient echoes, shape (echo, i, j, k), at least two; any scale, and radians.
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

    Returns
    -------
    FieldMap
        Total field in ppm and its by-products.

    Raises
    ------
    InputError
        If there is one echo only, or echoes and echo times do not fit, or the mask is empty.

    Notes
    -----
    Spatial unwrapping follows the most reliable path (Abdul-Rahman 2007, 10.1364/AO.46.006623). Echoes
    are combined by least squares through φ₀ with weights (magnitude · TE)², the inverse variance of
    each echo's field; for one R2* this is the family TE·exp(−TE·R2*), squared.
    """
    config = config or FieldConfig()
    _check(magnitude, phase_rad, te_s, b0_t, mask)
    te = torch.tensor(list(te_s), dtype=phase_rad.dtype, device=phase_rad.device)[:, None]
    weight = (magnitude[:, mask] / magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny)) ** 2
    wrapped = config.phase_sign * phase_rad[:, mask]

    # The smallest step between echoes wraps least; steps as small as it are averaged.
    steps = te[1:] - te[:-1]
    smallest = (steps < steps.min() * (1 + _SAME_STEP)).flatten()
    gained = wrapped[1:][smallest] - wrapped[:-1][smallest]
    common = (weight[1:] * weight[:-1])[smallest].sqrt()
    gained = torch.polar(common, gained).sum(0).angle()
    gained_rad = _unwrapped(_volume(gained, mask), mask)
    rate = gained_rad[mask] / steps.min()
    offset = _smoothed(
        torch.polar(weight[0], wrapped[0] - rate * te[0]), mask, config.offset_smoothing_mm, grid
    )

    unwrapped = torch.empty_like(wrapped)
    numerator, denominator = torch.zeros_like(rate), torch.zeros_like(rate)
    for echo, time in enumerate(te):
        predicted = offset + rate * time
        unwrapped[echo] = predicted + _wrap(wrapped[echo] - predicted)
        numerator += weight[echo] * time * (unwrapped[echo] - offset)
        denominator += weight[echo] * time**2
        # Every echo sharpens the prediction of the next; voxels without signal keep the first estimate.
        rate = torch.where(denominator > 0, numerator / denominator, rate)

    deviation = unwrapped - offset - rate * te
    share = weight * te**2
    residual = ((share * deviation**2).sum(0) / share.sum(0).clamp_min(torch.finfo(share.dtype).tiny)).sqrt()
    smooth = mask & (_volume(residual, mask) <= config.max_residual_rad)
    smooth &= _steepest_step(gained_rad, mask) <= config.max_step_rad
    return FieldMap(
        total_field_ppm=_volume(rate / (2 * math.pi * hz_per_ppm(b0_t)), mask),
        unwrapped_rad=torch.stack([_volume(echo, mask) for echo in unwrapped]),
        phase_offset_rad=_volume(offset, mask),
        residual_rad=_volume(residual, mask),
        reliable=_largest_part(smooth) & mask,
    )


def _check(magnitude: Tensor, phase_rad: Tensor, te_s: Sequence[float], b0_t: float, mask: Tensor) -> None:
    """Check that the inputs belong together."""
    found = None
    if len(te_s) < 2:
        found = "one echo only"
    elif not len(te_s) == len(magnitude) == len(phase_rad):
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
            wanted="at least two gradient echoes with increasing echo times in s, B0 in T and a mask",
            remedy="Give magnitude and phase of all echoes of one multi-echo scan, in order.",
        )


def _volume(values: Tensor, mask: Tensor) -> Tensor:
    """Values inside the mask as a volume, 0 outside."""
    volume = values.new_zeros(mask.shape)
    volume[mask] = values
    return volume


def _wrap(phase_rad: Tensor) -> Tensor:
    """Bring a phase into ±π."""
    return phase_rad - 2 * math.pi * torch.round(phase_rad / (2 * math.pi))


def _unwrapped(phase_rad: Tensor, mask: Tensor) -> Tensor:
    """Unwrap a volume in space; the median of every connected part of the mask comes within ±π."""
    outside = ~mask.cpu().numpy()
    box = ndimage.find_objects((~outside).astype(np.uint8))[0]
    wrapped = np.ma.masked_array(phase_rad.cpu().numpy()[box], outside[box])
    # The seed orders voxels at the edge of the volume, which have no reliability of their own.
    continuous = np.ma.getdata(unwrap_phase(wrapped, rng=0))
    parts, count = ndimage.label(~outside[box])
    medians = ndimage.median(continuous, parts, index=np.arange(count + 1))
    turns = np.round(np.asarray(medians) / (2 * math.pi))
    volume = np.zeros(outside.shape, dtype=continuous.dtype)
    volume[box] = np.where(parts > 0, continuous - 2 * math.pi * turns[parts], 0)
    return torch.from_numpy(volume).to(phase_rad.device, phase_rad.dtype)


def _steepest_step(phase_rad: Tensor, mask: Tensor) -> Tensor:
    """Largest step to a face neighbour inside the mask."""
    steepest = torch.zeros_like(phase_rad)
    for axis in range(3):
        n = mask.shape[axis] - 1
        both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = torch.where(both, phase_rad.diff(dim=axis).abs(), 0)
        for start in (0, 1):
            part = steepest.narrow(axis, start, n)
            torch.maximum(part, step, out=part)
    return steepest


def _largest_part(mask: Tensor) -> Tensor:
    """Largest connected part of a mask, holes filled."""
    parts, count = ndimage.label(mask.cpu().numpy())
    if count == 0:
        return mask
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return torch.from_numpy(ndimage.binary_fill_holes(largest)).to(mask.device)


def _smoothed(phasor: Tensor, mask: Tensor, sigma_mm: float, grid: Grid) -> Tensor:
    """Phase inside the mask of complex values smoothed within it; bright voxels count more.

    Smoothing bends a slope at the edge of the mask, where neighbours are missing on one side. Most of
    that bias is avoided by taking a polynomial out first, and by smoothing once more what a pass left.
    """
    sigma = [sigma_mm / edge for edge in grid.voxel_mm]
    smooth = _quadratic(_volume(phasor, mask), mask, grid)
    for _ in range(_SMOOTHING_PASSES):
        remainder = _volume(phasor * torch.polar(torch.ones_like(smooth), -smooth), mask).cpu().numpy()
        blurred = ndimage.gaussian_filter(remainder, sigma, mode="nearest", truncate=3.0)
        smooth = smooth + torch.from_numpy(blurred).to(mask.device)[mask].angle()
    return _wrap(smooth)


def _quadratic(phasor: Tensor, mask: Tensor, grid: Grid) -> Tensor:
    """Phase inside the mask of the second-order polynomial that fits all steps between neighbours best.

    Steps, unlike the phase itself, are short of π and so need no unwrapping.
    """
    axes = [
        torch.arange(n, device=mask.device).mul(v / 100)
        for n, v in zip(mask.shape, grid.voxel_mm, strict=True)
    ]
    x, y, z = torch.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij")
    terms = (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    normal = torch.zeros(9, 9, dtype=torch.float64, device=mask.device)
    right = torch.zeros(9, dtype=torch.float64, device=mask.device)
    for axis in range(3):
        n = mask.shape[axis] - 1
        both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = (phasor.narrow(axis, 1, n) * phasor.narrow(axis, 0, n).conj())[both]
        weight = step.abs().double()
        design = torch.stack([term.diff(dim=axis)[both] for term in terms]).double()
        normal += (design * weight) @ design.T
        right += design @ (weight * step.angle())
    # A mask one voxel thin has no steps along an axis: the pseudo-inverse leaves its terms at 0.
    coefficients = torch.linalg.pinv(normal, hermitian=True) @ right
    phase = torch.zeros_like(phasor.real[mask])
    for coefficient, term in zip(coefficients, terms, strict=True):
        phase += coefficient.to(phase.dtype) * term[mask]
    return phase
