"""Results that are cached as JSON files by the key that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
