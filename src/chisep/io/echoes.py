"""Images of echoes: a file, or magnitude or phase computed from a real and an imaginary part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chisep.errors import InputError

Values = NDArray[np.float32]


@dataclass(frozen=True)
class FromParts:
    """Magnitude or phase of one echo that is stored as a real and an imaginary part.

    Parameters
    ----------
    real, imaginary
        The two files.
    quantity
        What is computed from them.
    """

    real: Path
    imaginary: Path
    quantity: Literal["magnitude", "phase"]

    def __str__(self) -> str:
        """Name both files, for messages."""
        return f"{self.real} with {self.imaginary.name}"

    def computed(self, real: Values, imaginary: Values) -> Values:
        """Magnitude, or phase in radians.

        Raises
        ------
        InputError
            If a part has no negative value: it is no part of a complex image, or its offset is missing.
        """
        for path, values in ((self.real, real), (self.imaginary, imaginary)):
            if values.min() >= 0 and values.any():
                raise InputError(
                    path,
                    found="no negative value",
                    expected="a real or imaginary part, which is negative in about half of the voxels",
                    fix="Add the scanner's offset (scl_inter of the header), or give magnitude and phase.",
                )
        if self.quantity == "magnitude":
            return np.hypot(real, imaginary)
        return np.arctan2(imaginary, real)


EchoImage: TypeAlias = Path | FromParts
"""One volume of a series, as a file or computed from two."""


def files_of(images: Iterable[EchoImage]) -> list[Path]:
    """Files that images are read from, each once."""
    found: dict[Path, None] = {}
    for image in images:
        found |= dict.fromkeys([image.real, image.imaginary] if isinstance(image, FromParts) else [image])
    return list(found)


def read_echo(image: EchoImage, read: Callable[[Path], Values]) -> Values:
    """Read a volume, computed from its parts where it is stored so.

    Parameters
    ----------
    image
        What to read.
    read
        Reads one file.

    Raises
    ------
    InputError
        As `FromParts.computed`, and as `read`.
    """
    if isinstance(image, FromParts):
        return image.computed(read(image.real), read(image.imaginary))
    return read(image)
