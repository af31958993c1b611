"""What a run left behind, for comparing runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

COSTS = {"Seconds", "PeakMemoryGB", "seconds", "peak_memory_gb"}
"""Fields of sidecars and of records that differ from run to run, the only ones."""


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file, of JSON files without what a run cost, links to datasets by where they lead.

    Logs tell when and where a run was called, so they differ.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(_without_costs(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "logs"
    }


def _without_costs(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    fields = {key: value for key, value in json.loads(content).items() if key not in COSTS}
    links = fields.get("DatasetLinks", {})
    fields |= {"DatasetLinks": {name: str((path.parent / link).resolve()) for name, link in links.items()}}
    return json.dumps(fields).encode()
