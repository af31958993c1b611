"""Record of a simulated subject, beside its ground truth: version, head and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from chisep.errors import InputError
from chisep.simulation.session import TRUTH


class SimulationRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="pascal"):
    """Schema of `sub-…_simulation.json`: everything that determines the files of a subject.

    Parameters
    ----------
    generated_by
        Version of chisep.
    head
        Name of the label map.
    head_sha256
        Its checksum; None for the packaged head.
    paint_mm
        Edge of the label voxels, where it was not that of the label map.
    options
        Options of the dataset, in JSON types.
    """

    generated_by: str
    head: str
    head_sha256: str | None
    paint_mm: float | msgspec.UnsetType = msgspec.UNSET
    options: dict[str, Any]


def record_path(root: Path, name: str) -> Path:
    """Path of the record of a subject, `name` without `sub-`, in a dataset."""
    return root / TRUTH / f"sub-{name}" / f"sub-{name}_simulation.json"


def read_record(root: Path, name: str) -> SimulationRecord | None:
    """Read the record of a subject; None if there is none.

    Raises
    ------
    InputError
        If it is damaged, or of another version that has other entries.
    """
    path = record_path(root, name)
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=SimulationRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            path,
            found=f"no record of a simulated subject ({error})",
            expected="the record that `chisep simulate` wrote",
            fix="Remove this participant, or choose another folder.",
        ) from error
