"""One multi-echo series of a BIDS dataset: its sidecars, checked against each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.bids import (
    HIGHEST_B0_T,
    LONGEST_TE_S,
    LOWEST_B0_T,
    SESSION_ENTITIES,
    Series,
    entities,
    read_sidecar,
    sidecar_of,
)
from chisep.io.echoes import EchoImage, FromParts

SAME_TE_S = 2e-6
"""Echo times that differ by no more are equal: sidecars round to single precision or to microseconds. Of the
field such a difference makes no change: at 1000 Hz it is 0.013 rad."""
_MAGNITUDE_AND_PHASE = ("mag", "phase")
_PARTS = (*_MAGNITUDE_AND_PHASE, "real", "imag")
_QUANTITIES = {"mag": "magnitude", "phase": "phase"}
_LONGEST_UNIT = 32
_LONGEST_SAYING = 80
_LONGEST_DIRECTION = 1000


@dataclass(frozen=True)
class _Echo:
    """One echo of a part: its image, and what name and sidecar say."""

    image: EchoImage
    file: Path
    te_s: float


# Long because every check of a series needs the sidecars read before it.
def read_series(root: Path, suffix: str, images: Sequence[Path]) -> Series:
    """Check the sidecars of the images of one series against each other and sort its echoes.

    Magnitude and phase are computed from real and imaginary parts where they are not there themselves.

    Parameters
    ----------
    root
        Root of the dataset.
    suffix
        MEGRE or MESE.
    images
        All images of the series.

    Raises
    ------
    InputError
        If images are there twice, lack their partner, or have unknown parts, or a sidecar lacks, contradicts
        or mis-scales what is needed.
    """
    _check_copies(images)
    parts = _by_part(images)
    _check_duplicates(parts)
    complex_parts = ("real", "imag")
    wanted = ("mag", "phase") if suffix == "MEGRE" else ("mag",)
    computed = [part for part in wanted if part not in parts and any(p in parts for p in complex_parts)]
    used = {*wanted, *(complex_parts if computed else ())}
    notes = [
        f"part-{part} is not read: part-mag{' and part-phase are' if len(wanted) > 1 else ' is'} there"
        for part in parts
        if part not in used and not (part == "phase" and suffix == "MESE")
    ]
    if any(part not in _PARTS for part in parts) and not all(p in parts or p in computed for p in wanted):
        raise _unknown_part(parts)
    facts = {image: read_sidecar(image, root) for part in parts if part in used for image in parts[part]}
    echoes = {
        part: _sorted_echoes([_Echo(i, i, _echo_time(i, facts[i], suffix)) for i in parts[part]])
        for part in parts
        if part in used
    }
    magnitude, phase = (
        _from_parts(images[0].parent, echoes, part) if part in computed else echoes.get(part, [])
        for part in _MAGNITUDE_AND_PHASE
    )
    if computed:
        notes.append(
            f"{' and '.join(_QUANTITIES[p] for p in computed)} computed from part-real and part-imag"
        )
    if suffix == "MEGRE":
        _check_pairs(images[0], magnitude, phase)
    elif not magnitude:
        raise InputError(
            images[0],
            found="spin-echo images without magnitude",
            expected="magnitude images",
            fix="Add them.",
        )
    if len(magnitude) < 2:
        _check_only_echo(magnitude[0].file, suffix)
    _check_order(magnitude)
    _check_order(phase)
    first = magnitude[0].file
    stated = [echo.file for echo in phase if isinstance(echo.image, Path)]
    return Series(
        tuple(echo.image for echo in magnitude),
        tuple(echo.image for echo in phase),
        tuple(echo.te_s for echo in magnitude),
        _field_strength(facts),
        "rad" if "phase" in computed else _phase_units(stated, facts),
        _b0_direction(first, facts[first]),
        tuple(_echo_number(echo.file, alone=len(magnitude) == 1) for echo in magnitude),
        tuple(notes),
    )


def _check_copies(images: Sequence[Path]) -> None:
    """Refuse one image as two files, .nii beside .nii.gz: nothing says which of them is right."""
    known: dict[Path, Path] = {}
    for image in images:
        other = known.setdefault(sidecar_of(image), image)
        if other != image:
            raise InputError(
                image,
                found=f"{other.name} beside {image.name}: one image as two files",
                expected="one of them",
                fix="Keep the one that is right and remove the other.",
            )


def _by_part(images: Sequence[Path]) -> dict[str, list[Path]]:
    """Group images by their part; without this entity an image is a magnitude."""
    parts: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        parts[entities(image.name).get("part", "mag")].append(image)
    return parts


def _check_duplicates(parts: Mapping[str, Sequence[Path]]) -> None:
    """Refuse two images of one echo, and say what tells them apart."""
    for images in parts.values():
        known: dict[str, Path] = {}
        for image in images:
            echo = entities(image.name).get("echo", "")
            other = known.setdefault(echo, image)
            if other == image:
                continue
            names = [entities(path.name) for path in (other, image)]
            differing = sorted(
                key for key in {*names[0], *names[1]} if names[0].get(key) != names[1].get(key)
            )
            if not echo and not differing:
                continue
            apart = ", ".join(f"{key}-" for key in differing) or "nothing"
            raise InputError(
                image,
                found=f"two images of one echo, {other.name} beside {image.name}, told apart by {apart} only",
                expected="one image of each echo; series are told apart by "
                + ", ".join(f"{key}-" for key in SESSION_ENTITIES),
                fix="Choose one with --bids-filter-file, or give the series different acq- labels.",
            )


def _unknown_part(parts: Mapping[str, Sequence[Path]]) -> InputError:
    unknown = [part for part in parts if part not in _PARTS]
    return InputError(
        parts[unknown[0]][0],
        found="the unknown part " + ", ".join(_quoted(f"part-{part}") for part in unknown),
        expected=", ".join(f"part-{part}" for part in _PARTS),
        fix="Rename the images and their sidecars as BIDS does: part-mag and part-phase, or part-real and "
        "part-imag.",
    )


def _sorted_echoes(echoes: Sequence[_Echo]) -> list[_Echo]:
    return sorted(echoes, key=lambda echo: echo.te_s)


def _from_parts(folder: Path, echoes: Mapping[str, Sequence[_Echo]], part: str) -> list[_Echo]:
    """Echoes of magnitude or phase, each of its real and its imaginary part."""
    real, imaginary = echoes.get("real", ()), echoes.get("imag", ())
    if not _same_times(real, imaginary):
        raise InputError(
            folder,
            found=f"part-real at TE {[echo.te_s for echo in real]} s, "
            f"part-imag at TE {[echo.te_s for echo in imaginary]} s",
            expected="a real and an imaginary image (part-real, part-imag) for every echo, "
            "with equal EchoTime",
            fix="Add the missing image or correct the sidecars.",
        )
    return [
        _Echo(FromParts(one.file, other.file, "magnitude" if part == "mag" else "phase"), one.file, one.te_s)
        for one, other in zip(real, imaginary, strict=True)
    ]


def _same_times(one: Sequence[_Echo], other: Sequence[_Echo]) -> bool:
    """Whether two parts have the same echoes; times may be rounded differently."""
    return len(one) == len(other) and all(
        abs(a.te_s - b.te_s) <= SAME_TE_S for a, b in zip(one, other, strict=True)
    )


def _check_only_echo(image: Path, suffix: str) -> None:
    """Refuse an only echo if its file is 4-D and holds the others, or if it is a spin echo.

    One gradient echo still gives a field.
    """
    nifti.require_volume(nifti.read_header(image).shape, str(image))
    if suffix == "MEGRE":
        return
    raise InputError(
        image,
        found=f"the only echo of a {suffix} series",
        expected="at least two echoes",
        fix="Add the others (echo-1, echo-2, …), or remove the series; one echo shows no decay.",
    )


def _echo_time(image: Path, facts: Mapping[str, Any], suffix: str) -> float:
    value = facts.get("EchoTime")
    if isinstance(value, list):
        raise InputError(
            sidecar_of(image),
            found=f"EchoTime {_quoted(value)}, as of one file that holds {len(value)} echoes",
            expected="a 3-D file for each echo (echo-1, echo-2, …), whose EchoTime is one number in seconds",
            fix="Split the file, or bring it in with `chisep import`, which takes 4-D files.",
        )
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


def _check_pairs(anywhere: Path, magnitude: Sequence[_Echo], phase: Sequence[_Echo]) -> None:
    if not magnitude or not _same_times(magnitude, phase):
        of_magnitude, of_phase = ([echo.te_s for echo in echoes] for echoes in (magnitude, phase))
        raise InputError(
            anywhere.parent,
            found=f"magnitude at TE {of_magnitude} s, phase at TE {of_phase} s",
            expected="a magnitude and a phase image (part-mag, part-phase) for every echo, "
            "with equal EchoTime",
            fix="Add the missing image or correct the sidecars.",
        )


def _echo_number(image: Path, *, alone: bool = False) -> int:
    label = entities(image.name).get("echo", "")
    if alone and not label:
        return 1
    if not (label.isascii() and label.isdigit() and len(label) <= _LONGEST_UNIT):
        raise InputError(
            image,
            found=f"echo label {_quoted(label)}" if label else "no echo label",
            expected="a number, as in echo-1",
            fix="Rename the image; split a file that holds all echoes, or use `chisep import`.",
        )
    return int(label)


def _check_order(echoes: Sequence[_Echo]) -> None:
    """Echo numbers and echo times must grow together, no time twice."""
    for before, after in pairwise(echoes):
        numbers = [_echo_number(echo.file) for echo in (before, after)]
        if after.te_s - before.te_s <= SAME_TE_S or numbers[0] >= numbers[1]:
            raise InputError(
                sidecar_of(after.file),
                found=f"echo {numbers[1]} at {after.te_s:g} s beside echo {numbers[0]} at {before.te_s:g} s",
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
