"""One multi-echo series of a BIDS dataset: its sidecars, checked against each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from chisep.errors import InputError
from chisep.io.bids import (
    HIGHEST_B0_T,
    LONGEST_TE_S,
    LOWEST_B0_T,
    Series,
    entities,
    read_sidecar,
    sidecar_of,
)

_LONGEST_UNIT = 32
_LONGEST_SAYING = 80
_LONGEST_DIRECTION = 1000


def read_series(root: Path, suffix: str, images: Sequence[Path]) -> Series:
    """Check the sidecars of the images of one series against each other and sort its echoes."""
    facts = {image: read_sidecar(image, root) for image in images}
    parts: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        parts[entities(image.name).get("part", "mag")].append(image)
    te = {image: _echo_time(image, facts[image], suffix) for image in images}
    magnitude = sorted(parts["mag"], key=lambda image: te[image])
    phase = sorted(parts["phase"], key=lambda image: te[image])
    if suffix == "MEGRE":
        _check_pairs(images[0], magnitude, phase, te)
    elif not magnitude:
        raise InputError(
            images[0],
            found="spin-echo images without magnitude",
            expected="magnitude images",
            fix="Add them.",
        )
    if len(magnitude) < 2:
        raise InputError(
            magnitude[0],
            found=f"the only echo of a {suffix} series",
            expected="at least two echoes",
            fix="Add the others (echo-1, echo-2, …), or remove the series; one echo shows no decay.",
        )
    _check_order(magnitude, te)
    _check_order(phase, te)
    return Series(
        tuple(magnitude),
        tuple(phase),
        tuple(te[image] for image in magnitude),
        _field_strength(facts),
        _phase_units(phase, facts),
        _b0_direction(magnitude[0], facts[magnitude[0]]),
        tuple(_echo_number(image) for image in magnitude),
    )


def _echo_time(image: Path, facts: Mapping[str, Any], suffix: str) -> float:
    value = facts.get("EchoTime")
    if value is None:
        raise InputError(
            sidecar_of(image),
            found="no EchoTime",
            expected="EchoTime in seconds",
            fix="Add it to the sidecar.",
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            sidecar_of(image),
            found=f"EchoTime {_quoted(value)}",
            expected="one number in seconds",
            fix="Correct the sidecar.",
        )
    if not 0 < value <= LONGEST_TE_S[suffix]:
        in_milliseconds = 0 < value <= 1000 * LONGEST_TE_S[suffix]
        raise InputError(
            sidecar_of(image),
            found=f"EchoTime {_quoted(value)}",
            expected=f"seconds, above 0 and at most {LONGEST_TE_S[suffix]:g}",
            fix=f"If it is in milliseconds, write {value / 1000:g}."
            if in_milliseconds
            else "Correct the sidecar.",
        )
    return float(value)


def _b0_direction(image: Path, facts: Mapping[str, Any]) -> tuple[float, float, float] | None:
    stated = facts.get("B0DirectionVoxelAxes")
    if stated is None:
        return None
    numbers = [c for c in stated if isinstance(c, int | float)] if isinstance(stated, list) else []
    # A bound, since integers of JSON may be too large for a float.
    usable = len(numbers) == 3 and all(abs(c) <= _LONGEST_DIRECTION for c in numbers)
    if not (usable and len(stated) == 3 and math.hypot(*numbers) >= 1 / _LONGEST_DIRECTION):
        raise InputError(
            sidecar_of(image),
            found=f"B0DirectionVoxelAxes {_quoted(stated)}",
            expected="three numbers, a vector with a length",
            fix="Correct the sidecar, or leave the field out if B0 is along scanner z.",
        )
    i, j, k = (float(component) for component in numbers)
    return i, j, k


def _phase_units(phase: Sequence[Path], facts: Mapping[Path, Mapping[str, Any]]) -> str | None:
    stated = {_units(image, facts[image]["Units"]): image for image in phase if "Units" in facts[image]}
    if len(stated) > 1:
        raise InputError(
            sidecar_of(next(iter(stated.values()))),
            found=f"phase in {' and in '.join(sorted(stated))} within one series",
            expected="one scale",
            fix="Correct Units in the sidecars.",
        )
    return next(iter(stated), None)


def _units(image: Path, stated: object) -> str:
    if not (isinstance(stated, str) and stated.isprintable() and len(stated) <= _LONGEST_UNIT):
        raise InputError(
            sidecar_of(image),
            found=f"Units {_quoted(stated)}",
            expected='a text such as "rad" or "arbitrary"',
            fix="Correct the sidecar, or leave the field out to have the scale recognised.",
        )
    return stated


def _quoted(value: object) -> str:
    """Quote a value from a file, of any type and length, in a message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number without end"
    return text if len(text) <= _LONGEST_SAYING else text[:_LONGEST_SAYING] + "…"


def _check_pairs(
    anywhere: Path, magnitude: Sequence[Path], phase: Sequence[Path], te: Mapping[Path, float]
) -> None:
    if [te[m] for m in magnitude] != [te[p] for p in phase]:
        raise InputError(
            anywhere.parent,
            found=f"magnitude at TE {[te[m] for m in magnitude]} s, phase at TE {[te[p] for p in phase]} s",
            expected="a magnitude and a phase image (part-mag, part-phase) for every echo, "
            "with equal EchoTime",
            fix="Add the missing image or correct the sidecars.",
        )


def _echo_number(image: Path) -> int:
    label = entities(image.name).get("echo", "")
    if not (label.isascii() and label.isdigit() and len(label) <= _LONGEST_UNIT):
        raise InputError(
            image,
            found=f"echo label {_quoted(label)}" if label else "no echo label",
            expected="a number, as in echo-1",
            fix="Rename the image; split a file that holds all echoes, or use `chisep import`.",
        )
    return int(label)


def _check_order(images: Sequence[Path], te: Mapping[Path, float]) -> None:
    """Echo numbers and echo times must grow together, no time twice."""
    for before, after in pairwise(images):
        numbers = [_echo_number(image) for image in (before, after)]
        if te[before] == te[after] or numbers[0] >= numbers[1]:
            raise InputError(
                sidecar_of(after),
                found=f"echo {numbers[1]} at {te[after]:g} s beside echo {numbers[0]} at {te[before]:g} s",
                expected="echo times that grow with the echo number",
                fix="Correct EchoTime in the sidecars or the echo entity in the names.",
            )


def _field_strength(facts: Mapping[Path, Mapping[str, Any]]) -> float | None:
    stated = {
        image: fact["MagneticFieldStrength"]
        for image, fact in facts.items()
        if "MagneticFieldStrength" in fact
    }
    for image, value in stated.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and LOWEST_B0_T <= value <= HIGHEST_B0_T):
            raise InputError(
                sidecar_of(image),
                found=f"MagneticFieldStrength {_quoted(value)}",
                expected="tesla, e.g. 3",
                fix="Correct the sidecar.",
            )
    if len(set(stated.values())) > 1:
        raise InputError(
            sidecar_of(next(iter(stated))),
            found=f"MagneticFieldStrength {sorted(set(stated.values()))} within one series",
            expected="one field strength",
            fix="Correct the sidecars.",
        )
    return float(next(iter(stated.values()))) if stated else None
