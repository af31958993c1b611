"""Locate the files in stage records, and compare them with their checksums."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from chisep.io import bids
from chisep.io.files import checksum

State = Literal["unchanged", "changed since", "missing", "not looked for"]
"""State of a file since it was read or written; `not looked for`: its dataset is not known."""


def dataset_links(out: Path, raw: Path | None = None) -> dict[str, Path]:
    """Folders of the datasets in the records of a derivatives dataset.

    Parameters
    ----------
    out
        Derivatives dataset.
    raw
        Raw dataset, if it is known; else that of `DatasetLinks`, or the dataset around OUT.

    Returns
    -------
    dict
        Name (`raw`, or empty for the dataset itself) → folder.
    """
    try:
        content = json.loads((out / bids.DESCRIPTION).read_text(encoding="utf-8"))
        stated = content.get("DatasetLinks", {}).items()
    except (OSError, ValueError, AttributeError):
        stated = ()
    links = {str(name): out / str(place).removeprefix("file://") for name, place in stated}
    if out.parent.name == "derivatives":
        links.setdefault("raw", out.parent.parent)
    if raw is not None:
        links["raw"] = raw
    return {name: place for name, place in links.items() if place.is_dir()} | {"": out}


def locate(name: str, links: Mapping[str, Path]) -> Path | None:
    """Path of a file from its name in a record; None if its dataset is not known."""
    if name.startswith("file://"):
        return Path(unquote(name.removeprefix("file://")))
    if not name.startswith("bids:"):
        return links[""] / name
    _, dataset, place = name.split(":", 2)
    return links[dataset] / place if dataset in links else None


def state_of(path: Path, sha256: str, measure: Callable[[Path], str] = checksum) -> State:
    """Compare a file with its checksum."""
    try:
        # Reading a pipe or a device would not end.
        if not path.is_file():
            return "missing"
        return "unchanged" if measure(path) == sha256 else "changed since"
    except OSError:
        return "missing"
