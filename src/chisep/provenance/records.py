"""Stage records: the schema, and the one reader of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from chisep.errors import InputError
from chisep.io.paths import is_directory, is_file

RECORDS = ".chisep"
"""Folder of the records in a derivatives dataset."""
FAILURE = "error"
"""Stem of the file with the error of a failed session, beside its records."""

T = TypeVar("T")
_LARGEST_BYTES = 50_000_000
_EXPONENTIAL = "R2 is that of one exponential"
"""Part of a warning: older records of 0.1.0 say in it, not in a fact, that R2 fell back to an exponential."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished stage leaves; fields that records of older versions lack are empty.

    Parameters
    ----------
    version
        Of chisep.
    description
        Description of the outputs.
    parameters
        All that changed the result besides the inputs.
    inputs
        BIDS URI, or address of a file elsewhere → SHA-256.
    outputs
        Path relative to the derivatives dataset → checksum as of `chisep.pipeline.engine.output_checksum`.
    facts
        Facts that the stage measured, e.g. its convergence.
    warnings
        Warnings for the user.
    libraries
        Name → version of what it computed with; noted, but no reason to compute again.
    seconds
        Wall time.
    peak_memory_gb
        Most resident memory of the process meanwhile, 10⁹ bytes.
    """

    outputs: dict[str, str]
    version: str = ""
    description: str = ""
    parameters: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    facts: dict[str, Any] = {}
    warnings: list[str] = []
    libraries: dict[str, str] = {}
    seconds: float = 0.0
    peak_memory_gb: float = 0.0

    def __post_init__(self) -> None:
        for name in (*self.inputs, *self.outputs):
            place = PurePosixPath(name.rsplit(":", 1)[-1])
            if not name.startswith("file:") and (place.is_absolute() or ".." in place.parts):
                raise ValueError(f"a path that leaves its dataset: {name}")


class Failure(msgspec.Struct, frozen=True):
    """Why a session stopped.

    Parameters
    ----------
    error
        The message.
    """

    error: str = msgspec.field(default="", name="Error")


Records = Mapping[str, Record]
"""Records of one session by stage."""


def record_path(out: Path, session: str, stage: str) -> Path:
    """Path of the record of a stage."""
    return out / RECORDS / session / f"{stage}.json"


def read_record(path: Path) -> Record:
    """Read and check a stage record.

    Raises
    ------
    InputError
        If it cannot be read, or is no record.
    """
    record = _read(path, Record)
    if "R2Model" in record.facts or not any(_EXPONENTIAL in text for text in record.warnings):
        return record
    return msgspec.structs.replace(record, facts={**record.facts, "R2Model": "exponential"})


def read_failure(out: Path, session: str) -> Failure | None:
    """Read the error of a failed session; None if it did not fail or the file cannot be read.

    Parameters
    ----------
    out
        Derivatives dataset.
    session
        Name of the session.
    """
    path = record_path(out, session, FAILURE)
    if not is_file(path):
        return None
    try:
        return _read(path, Failure)
    except InputError:
        return Failure()


def records_of(out: Path, session: str) -> dict[str, Record]:
    """Read the records of one session, by stage.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    return {path.stem: read_record(path) for path in record_files(out, session)}


def record_files(out: Path, session: str) -> list[Path]:
    """List the record files of one session, sorted by stage."""
    return [path for path in sorted((out / RECORDS / session).glob("*.json")) if path.stem != FAILURE]


def sessions_of(out: Path, start: str = "") -> list[str]:
    """Names of sessions that left records, sorted; only those that begin as given."""
    return sorted(folder.name for folder in _session_folders(out, start))


def _session_folders(out: Path, start: str) -> Iterator[Path]:
    yield from (folder for folder in (out / RECORDS).glob(f"{start}*") if is_directory(folder))


def _read(path: Path, kind: type[T]) -> T:
    try:
        if not is_file(path) or path.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"no file of at most {_LARGEST_BYTES // 10**6} MB")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            path,
            found=f"a record that cannot be read ({type(error).__name__}: {error})",
            expected="a record as `chisep run` writes it",
            fix="Remove it and call `chisep run` again: that stage is then made anew.",
        ) from error
