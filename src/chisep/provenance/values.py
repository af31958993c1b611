"""Format values of records and sidecars with their units, for Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_STATED = "not stated in the sidecar"


NOT_RECORDED = "not recorded"


NOT_AT_HAND = "not known, as the raw image is not at hand"


_UNITS = {
    "EchoTime": "s",
    "SpinEchoTime": "s",
    "MagneticFieldStrength": "T",
    "PseudoR2": "1/s",
    "D_r_pos": "1/s/ppm",
    "D_r_neg": "1/s/ppm",
    "MedianFieldNoisePpb": "ppb",
    "ReferencePpb": "ppb",
    "ReferenceSigmaPpb": "ppb",
    "ReferenceSdPpb": "ppb",
    "ErosionMm": "mm",
    "ErosionMl": "ml",
    "SinusesMl": "ml",
    "MovedMm": "mm",
    "RotationDeg": "°",
}


_UNITS_BY_ENDING = {
    "_mm": "mm",
    "_ml": "ml",
    "_s": "s",
    "_deg": "°",
    "_rad": "rad",
    "_ppm": "ppm",
    "_hz": "1/s",
}


_MOST_LETTERS = 300


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested mappings, names joined by dots."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unit_of(name: str) -> str:
    """Return the unit of a parameter or fact from its name; empty if it has none."""
    last = name.rsplit(".", 1)[-1]
    if last in _UNITS:
        return _UNITS[last]
    return next((unit for ending, unit in _UNITS_BY_ENDING.items() if last.endswith(ending)), "")


def value_text(value: Any, unit: str = "", scale: float = 1.0) -> str:  # noqa: ANN401
    """Format a value of a sidecar or record; empty for a value without content."""
    if value is None or isinstance(value, Mapping):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return ""
        # Counts in full; a double of JSON may be 0.30000000000000004.
        number = str(value) if isinstance(value, int) and scale == 1 else f"{value * scale:.6g}"
        return f"{number} {unit}".replace(" °", "°").rstrip()
    if isinstance(value, list | tuple):
        texts = [value_text(entry, "", scale) for entry in value]
        return f"{', '.join(filter(None, texts))} {unit}".strip()
    return escaped(str(value))


def escaped(text: str) -> str:
    """Escape untrusted text for Markdown: one line of limited length, without markup or citations."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > _MOST_LETTERS:
        line = line[:_MOST_LETTERS] + "…"
    return re.sub(r"([\\`*_{}\[\]<>()#|@!~$&])", r"\\\1", line)


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural if needed."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def enumerated(texts: Sequence[str]) -> str:
    """Join texts with commas and a final "and"."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
