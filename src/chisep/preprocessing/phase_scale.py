"""Phase images in radians, whatever the scale in which they are stored."""

from __future__ import annotations

import math

from chisep.errors import InputError
from chisep.types import Echoes

_RADIAN_SLACK = 0.05


def phase_in_radians(phase: Echoes, source: str, units: str | None = None) -> tuple[Echoes, str | None]:
    """Recognise the scale of stored phase and convert it to radians.

    Parameters
    ----------
    phase
        Stored values, shape (echo, i, j, k).
    source
        Where they come from, for messages.
    units
        Units that the sidecar states ("rad", "arbitrary"), if any. "rad" is accepted if the values agree.

    Returns
    -------
    phase_rad : Echoes
        Phase in radians.
    note : str or None
        The scale found and how it was read; None where the values were radians already.

    Raises
    ------
    InputError
        If an echo is constant.

    Notes
    -----
    Known scales are radians (within ±2π, spanning more than 1), integers 0…4095 (12 bit) and
    −4096…4095 (12 bit, doubled and centred) and degrees (±180 or 0…360). Any other scale is read as linear,
    with −π and π at its smallest and largest value: valid for whole images, where air has every phase.
    """
    if bool((phase.amax((1, 2, 3)) == phase.amin((1, 2, 3))).any()):
        raise InputError(
            source,
            found="phase of one value everywhere",
            expected="a phase image for every echo",
            fix="Check that the phase and not an empty image was exported.",
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
