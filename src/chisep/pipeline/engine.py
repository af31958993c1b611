"""Stages from files to files, skipped while their outputs are up to date.

A finished stage leaves a record: version, parameters, checksums of its inputs and of its outputs. The stage
is skipped as long as all of them match; any that differs is the reason to run it again. The record is
written last, so a stage that was killed has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

import chisep
from chisep.errors import InputError
from chisep.io import bids
from chisep.io.files import Checksums, checksum, output_gone, remove_leftovers, write_json
from chisep.io.paths import require_inside
from chisep.memory import release_memory
from chisep.pipeline.outputs import UNITS
from chisep.provenance.records import Record, read_record, record_path

log = logging.getLogger("chisep")

COSTS = ("Seconds", "PeakMemoryGB")
"""Sidecar fields that differ between equal runs; all other fields are the same."""

_RECORD_KEYS = (
    *("version", "description", "parameters", "inputs", "outputs", "facts", "warnings", "libraries"),
    *("seconds", "peak_memory_gb"),
)
"""Order of the keys in a record file."""
_LONGEST_VALUE = 60
_LIBRARIES = ("SimpleITK", "nibabel", "numpy", "scikit-image", "scipy", "torch")


@dataclass(frozen=True)
class StageResult:
    """Facts and warnings of a stage.

    Parameters
    ----------
    facts
        Facts that it measured, for the sidecars and the record.
    warnings
        Warnings for the user.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class DeclaredFiles:
    """Declared files of a stage; it can read and write no others.

    Parameters
    ----------
    name
        Name of the stage.
    inputs, outputs
        Files that it reads and writes.
    """

    def __init__(self, name: str, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
        self.name, self._inputs, self._outputs = name, frozenset(inputs), frozenset(outputs)

    def read(self, path: Path) -> Path:
        """Return a path to read from.

        Raises
        ------
        ValueError
            If the stage does not declare it: a bug in chisep, since a change of the file would be missed.
        """
        if path not in self._inputs and path not in self._outputs:
            raise ValueError(f"stage {self.name} reads {path.name}, which is none of its inputs")
        return path

    def write(self, path: Path) -> Path:
        """Return a path to write to; errors as of `read`."""
        if path not in self._outputs:
            raise ValueError(f"stage {self.name} writes {path.name}, which is none of its outputs")
        return path


@dataclass(frozen=True)
class Stage:
    """One processing step, from files to files.

    Parameters
    ----------
    name
        Name of the record and in messages.
    description
        Description of the outputs, for their sidecars.
    inputs
        Files it reads.
    outputs
        Files it writes; images get a sidecar.
    parameters
        Everything besides its inputs that changes its result.
    work
        Function that writes the outputs; its argument is the declared files.
    """

    name: str
    description: str
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    parameters: Mapping[str, Any]
    work: Callable[[DeclaredFiles], StageResult]


class StageCache:
    """Stage cache: runs the stages of one session and keeps their records.

    Parameters
    ----------
    raw, out
        Raw and derivatives dataset.
    session
        Name of the session.
    """

    def __init__(self, raw: Path, out: Path, session: str) -> None:
        self.raw, self.out, self.session = raw, out, session
        self.records: dict[str, Record] = {}
        self.skipped: list[str] = []
        self._checksum = Checksums()

    def do(self, stage: Stage) -> None:
        """Run a stage unless its record is up to date.

        Raises
        ------
        ChisepError
            As the stage, or if an output is missing afterwards; nothing is recorded then.
        """
        record = self.read(stage.name)
        if record is None or self._changes(stage, record):
            record = self._execute(stage)
        else:
            self.skipped.append(stage.name)
        self.records[stage.name] = record

    def why(self, stage: Stage) -> str | None:
        """Reason to run a stage now; None if it would be skipped. Nothing is written."""
        record = self.read(stage.name)
        if record is not None:
            return "; ".join(self._changes(stage, record)) or None
        return "its record cannot be read" if self._record_of(stage.name).exists() else "never ran"

    def read(self, name: str) -> Record | None:
        """Read the record of a stage; None if it is missing or unreadable."""
        try:
            return read_record(self._record_of(name))
        except InputError:
            return None

    def _record_of(self, name: str) -> Path:
        return record_path(self.out, self.session, name)

    def _changes(self, stage: Stage, record: Record) -> list[str]:
        """Differences from a record."""
        changes = []
        if record.version != chisep.__version__:
            changes.append(f"version {record.version} → {chisep.__version__}")
        changes += _changed_parameters(record.parameters, _as_read_back(stage.parameters))
        inputs = self._inputs(stage)
        for uri in sorted({*record.inputs, *inputs}):
            if record.inputs.get(uri) != inputs.get(uri):
                verb = "is new" if uri not in record.inputs else "is no longer one"
                if uri in record.inputs and uri in inputs:
                    verb = "changed" if inputs[uri] else "missing"
                changes.append(f"input {re.split('[/:]', uri)[-1]} {verb}")
        expected = {str(path.relative_to(self.out)) for path in self._files(stage)}
        changes += [
            f"output {Path(name).name} missing or changed"
            for name in sorted({*record.outputs, *expected})
            if name not in expected
            or record.outputs.get(name) != output_checksum(self.out / name, self._checksum)
        ]
        return changes

    def _inputs(self, stage: Stage) -> dict[str, str]:
        return {self._uri(path): self._checksum(path) if path.is_file() else "" for path in stage.inputs}

    def _files(self, stage: Stage) -> list[Path]:
        """List outputs with the sidecars of images."""
        return [*stage.outputs, *map(bids.sidecar_of, _images(stage))]

    def _execute(self, stage: Stage) -> Record:
        log.info("%s: %s", self.session, stage.name)
        record_file, files = self._record_of(stage.name), self._files(stage)
        for path in (record_file, *files):
            remove_leftovers(require_inside(self.out, path))
        inputs = self._inputs(stage)
        start = time.perf_counter()
        release_memory()
        _forget_peak_memory()
        result = stage.work(DeclaredFiles(stage.name, stage.inputs, stage.outputs))
        record = Record(
            version=chisep.__version__,
            description=stage.description,
            parameters=dict(stage.parameters),
            inputs=inputs,
            outputs={},
            facts=dict(result.facts),
            warnings=list(dict.fromkeys(result.warnings)),
            libraries=library_versions(),
            seconds=round(time.perf_counter() - start, 2),
            peak_memory_gb=round(_peak_memory_gb(), 3),
        )
        for message in record.warnings:
            log.warning("%s: %s: %s", self.session, stage.name, message)
        for image in _images(stage):
            write_json(bids.sidecar_of(image), _sidecar(image, record))
        outputs = {str(path.relative_to(self.out)): output_checksum(path, self._checksum) for path in files}
        if gone := [Path(name).name for name, made in outputs.items() if not made]:
            raise output_gone(self.out, ", ".join(gone))
        record = msgspec.structs.replace(record, outputs=outputs)
        write_json(record_file, {name: getattr(record, name) for name in _RECORD_KEYS})
        return record

    def _uri(self, path: Path) -> str:
        """BIDS URI of a file of this dataset or of the raw one; the address of a file elsewhere."""
        path, out, raw = path.absolute(), self.out.absolute(), self.raw.absolute()
        if path.is_relative_to(out):
            return f"bids::{path.relative_to(out)}"
        return f"bids:raw:{path.relative_to(raw)}" if path.is_relative_to(raw) else path.as_uri()


class DryRunPlanner(StageCache):
    """Dry-run planner: lists what the stage cache would do; runs and writes nothing.

    Parameters
    ----------
    raw, out, session
        As of `StageCache`.
    remade
        File → stage that would write it again; planners that share it know of each other.

    Attributes
    ----------
    reasons
        Stage → reason to run, or None; in order. A stage whose inputs would be written again "follows" that
        stage; it will be skipped if these inputs do not change.
    """

    def __init__(self, raw: Path, out: Path, session: str, remade: dict[Path, str] | None = None) -> None:
        super().__init__(raw, out, session)
        self.reasons: dict[str, str | None] = {}
        self._remade = {} if remade is None else remade

    def do(self, stage: Stage) -> None:
        """Note whether a stage would run."""
        record = self.read(stage.name)
        before = sorted({self._remade[path] for path in stage.inputs if path in self._remade})
        if record is None or not before:
            reason = self.why(stage)
        else:
            changed = _changed_parameters(record.parameters, _as_read_back(stage.parameters))
            reason = "; ".join(changed) or f"follows {', '.join(before)}"
        self.reasons[stage.name] = reason
        if reason is not None:
            self._remade.update(dict.fromkeys(stage.outputs, stage.name))
        self.records[stage.name] = record or Record(outputs={})


def output_checksum(path: Path, measure: Callable[[Path], str] = checksum) -> str:
    """SHA-256 of an output, "" if it is missing; for a sidecar without time and memory.

    Parameters
    ----------
    path
        Path of the output.
    measure
        Function that computes the SHA-256 of a file.
    """
    try:
        content = json.loads(path.read_bytes()) if path.suffix == ".json" else None
        if not isinstance(content, dict) or not set(COSTS) & set(content):
            return measure(path)
    except (OSError, ValueError, RecursionError):
        return ""
    said = {key: value for key, value in content.items() if key not in COSTS}
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {name: version(name) for name in _LIBRARIES}


def _images(stage: Stage) -> list[Path]:
    return [path for path in stage.outputs if path.name.endswith(".nii.gz")]


def _sidecar(image: Path, record: Record) -> dict[str, Any]:
    suffix = image.name.split(".")[0].rsplit("_", 1)[-1]
    units = {"Units": UNITS[suffix]} if suffix in UNITS else {}
    return {
        "Description": record.description,
        **units,
        "SkullStripped": suffix != "MESE",
        "Sources": list(record.inputs),
        "SourcesSHA256": record.inputs,
        "Parameters": record.parameters,
        **record.facts,
        "Warnings": record.warnings,
        "SoftwareVersion": f"chisep {record.version}",
        "Libraries": record.libraries,
        **dict(zip(COSTS, (record.seconds, record.peak_memory_gb), strict=True)),
    }


def _as_read_back(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters after a round trip through JSON, which has no tuples."""
    return dict(json.loads(json.dumps(parameters)))


def _changed_parameters(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Parameters that differ; names of nested ones are joined by dots."""
    changes = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after and (name in old) == (name in new):
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            changes += _changed_parameters(before, after, f"{prefix}{name}.")
        elif name == "Weights":
            changes.append(f"weights {_weights_text(before)} → {_weights_text(after)}")
        else:
            changes.append(f"parameter {prefix}{name}: {_short(before)} → {_short(after)}")
    return changes


def _weights_text(used: Any) -> str:  # noqa: ANN401
    """Names of weights, each with the start of its checksum."""
    try:
        return ", ".join(f"{one['Name']} ({one['SHA256'][:8]})" for one in used or ()) or "none"
    except (TypeError, KeyError):
        return _short(used)


def _short(value: Any) -> str:  # noqa: ANN401
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _forget_peak_memory() -> None:
    """Reset the peak memory of this process; without permission the peak covers its whole lifetime."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_gb() -> float:
    """Peak resident memory of this process since the last call of `_forget_peak_memory`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024 / 1e9
