"""Writing so that a file is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chisep.errors import OutputError

_TEMPORARY = ".chisep-tmp"


def make_directory(path: Path) -> Path:
    """Create a directory and its parents, and check that it can be written.

    Raises
    ------
    OutputError
        If it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            path,
            found=f"a place that cannot be written ({error.strerror})",
            wanted="a directory that can be created and written",
            remedy="Choose another output, or mend its permissions.",
        ) from error
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name, flush it to disk, then rename it.

    Raises
    ------
    OutputError
        If the disk refuses; nothing is left behind then.
    """
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            path,
            found=f"a write that failed ({error.strerror})",
            wanted="room and permission to write",
            remedy="Free space or choose another output; nothing half-written was left.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder under temporary names."""
    for leftover in folder.glob(f".*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> Path:
    """Write text in UTF-8 as `write_bytes` does."""
    return write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object, indented, keys in the order given."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
