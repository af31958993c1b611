"""Results that are cached as JSON files by the key that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import chisep
from chisep.io.files import write_json


def cached_result(path: Path, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result that is stored with an equal key; otherwise compute and store it.

    Parameters
    ----------
    path
        JSON file of the result.
    key
        Everything that the result depends on, in JSON types.
    make
        Computes the result.
    """
    expected = json.loads(json.dumps(key))
    if path.is_file():
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        if stored.pop("key", None) == expected:
            return stored
    result = make()
    write_json(path, {"key": expected, **result})
    return result


@cache
def code_checksum(*packages: str) -> str:
    """SHA-256 of the source files of packages of chisep, so that a cached result is of this code.

    Parameters
    ----------
    packages
        Folders or modules below `chisep`, e.g. `solvers`, `api/qsm_ci`, `methods/given_chi.py`.
    """
    root = Path(chisep.__file__).parent
    digest = hashlib.sha256()
    for package in packages:
        place = root / package
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
