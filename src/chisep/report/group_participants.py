"""Facts of participants from participants.tsv: age and group."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from chisep.io.paths import is_file
from chisep.io.tsv import MISSING, clean_text

COLUMNS_READ = ("age", "group", "diagnosis", "sex")
"""Columns of participants.tsv that are read; others may identify a person and are left alone."""

_MOST_BYTES = 2**24
_LONGEST_LEVEL = 40


def read_participants(path: Path) -> tuple[dict[str, Mapping[str, str]], list[str]]:
    """Read age and groups from participants.tsv; a table that cannot be read is a warning.

    Parameters
    ----------
    path
        The table; it may not exist.

    Returns
    -------
    dict
        Participant → column → text, without missing values.
    list of str
        Warnings.
    """
    if not is_file(path):
        return {}, []
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {
                row["participant_id"]: {
                    column: text
                    for column in COLUMNS_READ
                    if (text := clean_text(row.get(column) or "", _LONGEST_LEVEL)) not in ("", MISSING)
                }
                for row in csv.DictReader(file, delimiter="\t")
            }, []
    except (OSError, ValueError, KeyError, csv.Error) as error:
        said = clean_text(
            f"participants.tsv cannot be read ({error!r}): groups and age are not compared", 200
        )
        return {}, [said]
