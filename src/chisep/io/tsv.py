"""Tables as tab-separated values: clean texts, cells, and files."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chisep.io.files import write_text

MISSING = "n/a"
"""Missing value in BIDS tables."""

_LONGEST_NAME = 80
_FORMULA = "=+-@'\"|"


def clean_text(text: str, longest: int = _LONGEST_NAME) -> str:
    """Clean a text for the cell of a table.

    White space becomes single spaces; characters that cannot be printed are removed, and so are those
    that make a spreadsheet read a cell as a formula.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split()).lstrip(_FORMULA + " ")[:longest].rstrip()


def slug(name: str) -> str:
    """Name of a region as part of a column's name: ASCII, lower case, one underscore between words."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a tab-separated table; None becomes `n/a`, and numbers have six digits.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell(value) for value in row] for row in rows)
    return write_text(path, text.getvalue())


def cell(value: object) -> str:
    """Text of a value in a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
