"""Phase images in radians, whatever the scale in which they are stored."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes, MaskVolume, Volume

_RADIAN_SLACK = 0.05
_SAMPLE = 200_000
_FILL_PART = 0.01
"""An extreme value is a fill value if at least this part of the voxels has it, apart from all others."""
_FILL_GAP = 0.1
"""Distance of a fill value from the other values, as a part of their range."""
_STRAY_PART = 1e-3
_STRAY_GAP = 0.5
"""Stray voxels are at most this part of all at either end, and this part of the others' range apart."""
_SAME_RANGE = 0.05
_WRAP_STEP = 0.75
_WRAP_PART = 3e-4
"""Phase is wrapped if this part of the steps between neighbours exceeds `_WRAP_STEP` of the range: 5e-4 to
0.06 of phase, below 3e-5 of magnitudes in brains."""
_LARGEST_STEP = 1.01
_NARROW_RAD = 0.9 * 2 * math.pi
"""Phase in radians that has wraps spans more."""
_UNWRAPPED_RAD = 1000.0
"""Largest range of unwrapped phase: ±8 ppm at 7 T and 50 ms."""


def phase_in_radians(phase: Echoes, source: str, units: str | None = None) -> tuple[Echoes, str | None]:
    """Recognise the scale of stored phase and convert it to radians.

    Parameters
    ----------
    phase
        Stored values, shape (echo, i, j, k).
    source
        Where they come from, for messages.
    units
        What the sidecar says ("rad", "arbitrary"), if anything. "rad" is believed unless the image
        contradicts it.

    Returns
    -------
    phase_rad : Echoes
        Phase in radians, NaN where the image has a fill value.
    note : str or None
        The scale found and how it was read; None where the values were radians already.

    Raises
    ------
    InputError
        If an echo is constant, or has no wraps and is in no known unit.

    Notes
    -----
    Known scales are radians (within ±2π, spanning more than 1), integers 0…4095 (12 bit) and
    −4096…4095 (12 bit, doubled and centred), degrees (±180 or 0…360), and unwrapped radians: values beyond 2π
    without the jumps that wraps leave. Any other scale is read as linear, its smallest and largest value
    being −π and π: true of images with wraps, and refused without. Echoes whose ranges differ are read one by
    one.

    Fill values (one value of many voxels in all echoes, or apart from all others) and stray voxels (a few,
    far beyond the others) do not count for the range. Fill values become NaN, since the phase there is
    unknown. The phase of stray voxels is set to 0.
    """
    for number, echo in enumerate(phase, start=1):
        if not bool(echo.amax() > echo.amin()):
            raise InputError(
                source if number == 1 else f"{source} and further echoes",
                found=f"phase of one value everywhere in echo {number}",
                expected="a phase image for every echo",
                fix="Check that the phase and not an empty image was exported, or remove this echo.",
            )
    fill = _fill_mask(phase)
    scales = _scale_ranges(phase if fill is None else torch.where(fill, torch.nan, phase))
    radians, note = _by_scales(phase, scales, source, units)
    return radians if fill is None else torch.where(fill, torch.nan, radians), note


def _fill_mask(phase: Echoes) -> MaskVolume | None:
    """Voxels that have one and the same value in all echoes, if they are many, as outside a mask."""
    same = (phase == phase[:1]).all(0)
    if float(same.double().mean()) < _FILL_PART:
        return None
    values, counts = np.unique(phase[0][same].cpu().numpy(), return_counts=True)
    if counts.max() < _FILL_PART * same.numel():
        return None
    fill: MaskVolume = same & (phase[0] == float(values[counts.argmax()]))
    return fill


def _by_scales(
    phase: Echoes, scales: list[tuple[float, float]], source: str, units: str | None
) -> tuple[Echoes, str | None]:
    """Read all echoes by one scale, or each by its own."""
    if len(set(scales)) == 1:
        return _read(phase, scales[0], source, units)
    read = [
        _read(echo[None], bounds, f"{source}, echo {number}", units)
        for number, (echo, bounds) in enumerate(zip(phase, scales, strict=True), start=1)
    ]
    notes = [note for _, note in read if note]
    return torch.cat([echo for echo, _ in read]), "; ".join(notes) or None


def _scale_ranges(phase: Echoes) -> list[tuple[float, float]]:
    """Range of the scale of each echo: one of all echoes, unless echoes that hold every phase differ."""
    ranges = [_range(echo) for echo in phase]
    overall = min(low for low, _ in ranges), max(high for _, high in ranges)
    # An echo without wraps, as a first echo without air, does not reach the ends of its scale.
    full = [r for r, echo in zip(ranges, phase, strict=True) if _has_wraps(echo[None], r[1] - r[0])]
    if not full or all(_is_alike(r, overall) for r in full):
        return [overall] * len(ranges)
    return [r if r in full else next((f for f in full if _holds(f, r)), r) for r in ranges]


def _is_alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    tolerance = _SAME_RANGE * (other[1] - other[0])
    return abs(one[0] - other[0]) <= tolerance and abs(one[1] - other[1]) <= tolerance


def _holds(scale: tuple[float, float], values: tuple[float, float]) -> bool:
    tolerance = _SAME_RANGE * (scale[1] - scale[0])
    return scale[0] - tolerance <= values[0] and values[1] <= scale[1] + tolerance


def _range(echo: Volume) -> tuple[float, float]:
    """Smallest and largest value, without fill values and stray voxels."""
    finite = echo.isfinite()
    values = echo.flatten() if bool(finite.all()) else echo[finite]
    sample = values[:: max(1, len(values) // _SAMPLE)].sort().values
    for end in (0, -1):
        fill = sample[end]
        rest = sample[sample != fill]
        is_common = len(sample) - len(rest) >= max(_FILL_PART * len(sample), 2)
        if is_common and len(rest) and abs(float(rest[end] - fill)) > _FILL_GAP * float(rest[-1] - rest[0]):
            sample = rest
    cut = max(1, int(_STRAY_PART * len(sample)))
    inner = sample[cut : len(sample) - cut] if len(sample) > 2 * cut + 1 else sample
    apart = _STRAY_GAP * float(inner[-1] - inner[0])
    low, high = values.aminmax()
    if low < inner[0] - apart or high > inner[-1] + apart:
        low, high = values[(values >= inner[0] - apart) & (values <= inner[-1] + apart)].aminmax()
    return float(low), float(high)


def _read(
    phase: Echoes, bounds: tuple[float, float], source: str, units: str | None
) -> tuple[Echoes, str | None]:
    """Bring phase of one range to radians, and say how."""
    low, high = bounds
    scale, centre, name = _scale(phase, low, high, source, units)
    if scale == 1.0:  # radians: whole wraps do no harm, so only absurd values are strays
        low, high = -_UNWRAPPED_RAD, _UNWRAPPED_RAD
    outside = (phase < low) | (phase > high)
    count = int(outside.sum())
    notes = []
    if name is not None:
        notes.append(f"phase from {bounds[0]:g} to {bounds[1]:g} was read as {name} and brought to radians")
        if _is_radians(units):
            notes[0] += ", though its sidecar says radians"
        phase = (phase - centre) * scale
    if count > 2 * _STRAY_PART * phase.numel():
        phase = torch.where(outside, torch.nan, phase)
        notes.append(f"{count} voxels with fill values beyond {low:g} to {high:g} are left out")
    elif count:
        phase = torch.where(outside, 0, phase)
        notes.append(f"the phase of {count} voxels beyond {low:g} to {high:g} was set to 0")
    return phase, f"{source}: {'; '.join(notes)}" if notes else None


def _is_radians(units: str | None) -> bool:
    return units is not None and units.lower() in ("rad", "radian", "radians")


def _scale(
    phase: Echoes, low: float, high: float, source: str, units: str | None
) -> tuple[float, float, str | None]:
    """Factor, centre and name of a scale; no name where values are radians by the sidecar or their range."""
    span, largest = high - low, max(-low, high)
    named, unnamed = _is_radians(units), units is None or not units.strip()
    wrapped = _has_wraps(phase, span)
    # Values that jump by nearly their whole range wrap there: radians wrap at 2π only.
    possible = largest <= 2 * math.pi + _RADIAN_SLACK and (span > _NARROW_RAD or not wrapped)
    if possible and (named or (unnamed and span > 1.0)):
        return 1.0, 0.0, None
    whole = span > 1.0 and bool(((phase == phase.round()) | phase.isnan()).all())
    unwrapped = 2 * math.pi < span <= _UNWRAPPED_RAD and not wrapped
    if unwrapped and (named or (not whole and low < 0)):  # magnitudes are never negative
        return 1.0, 0.0, None if named else "unwrapped radians"
    if whole and low >= 0 and 3500 < high <= 4096:
        return 2 * math.pi / 4096, 2048.0, "12-bit integers 0…4095 for −π…π"
    if whole and -4096 <= low < -3500 and 3500 < high <= 4096:
        return math.pi / 4096, 0.0, "integers −4096…4095 for −π…π"
    if 300 < span <= 361 and (largest <= 180.5 or (low >= -0.5 and high <= 360.5)):
        return math.pi / 180, 0.0, "degrees"
    if not wrapped:
        raise InputError(
            source,
            found=f"values from {low:g} to {high:g} without wraps, in no known unit",
            expected="wrapped phase of any linear scale, or unwrapped phase in radians",
            fix="Check that it is phase, not magnitude. Convert unwrapped phase to radians, and write "
            '"Units": "rad" in its sidecars.',
        )
    return 2 * math.pi / span, (low + high) / 2, "a linear scale of unknown unit from −π to π"


def _has_wraps(phase: Tensor, span: float) -> bool:
    """Whether neighbours differ by nearly the whole range, as at wraps and in air."""
    # Every fourth line along each axis is enough.
    lines = (phase[:, :, ::4, ::4], phase[:, ::4, :, ::4], phase[:, ::4, ::4, :])
    steps = (line.diff(dim=axis).abs() for axis, line in enumerate(lines, start=1))
    # Beyond the range are steps to stray voxels.
    counts = [
        (int(((step > _WRAP_STEP * span) & (step <= _LARGEST_STEP * span)).sum()), int(step.isfinite().sum()))
        for step in steps
    ]
    return sum(n for n, _ in counts) > _WRAP_PART * sum(n for _, n in counts)
