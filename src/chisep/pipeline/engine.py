"""Stages from files to files, skipped when what they made still holds.

When a stage is done it leaves a record of its facts: version, parameters, checksums of its inputs and of its
outputs. The stage is skipped as long as all of them hold, and which one does not is the reason to run it
again. The record is written last, so a stage that was killed has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import chisep
from chisep.errors import ChisepWarning
from chisep.io import bids
from chisep.io.files import checksum, output_gone, remove_leftovers, write_json
from chisep.io.paths import require_inside

log = logging.getLogger("chisep")

COSTS = ("Seconds", "PeakMemoryGB")
"""Fields of sidecars that differ from run to run; all else is the same in two equal runs."""

_LONGEST_VALUE = 60
_LIBRARIES = ("SimpleITK", "nibabel", "numpy", "scikit-image", "scipy", "torch")
_UNITS = {
    "Chimap": "ppm",
    "fieldmap": "ppm",
    "MEGRE": "rad",
    "R2map": "1/s",
    "R2starmap": "1/s",
    "R2primemap": "1/s",
    "TB1map": "arbitrary",
}


@dataclass(frozen=True)
class Stage:
    """A step from files to files.

    Parameters
    ----------
    name
        Of the record and in messages.
    description
        Of the outputs, for their sidecars.
    inputs
        Files it reads.
    outputs
        Files it writes; images get a sidecar.
    parameters
        All that changes its result besides its inputs.
    work
        Writes the outputs; returns what is worth noting beside them.
    """

    name: str
    description: str
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    parameters: Mapping[str, Any]
    work: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Record:
    """What a finished stage left.

    Parameters
    ----------
    version
        Of chisep.
    description
        Of the outputs.
    parameters
        All that changed the result besides the inputs.
    inputs
        BIDS URI, or address of a file elsewhere → SHA-256.
    outputs
        Path relative to the derivatives dataset → checksum as of `output_checksum`.
    facts
        What the stage noted, e.g. its convergence.
    warnings
        What the user should know.
    libraries
        Name → version of what it computed with; told, but no reason to compute again.
    seconds
        How long it took.
    peak_memory_gb
        Most resident memory of the process meanwhile, 10⁹ bytes.
    """

    version: str
    description: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    warnings: Sequence[str]
    libraries: Mapping[str, str]
    seconds: float
    peak_memory_gb: float


class StageCache:
    """Executes the stages of one session and keeps their records.

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

    def do(self, stage: Stage) -> None:
        """Run a stage unless its record still holds.

        Raises
        ------
        ChisepError
            As the stage, or if what it wrote is gone; nothing is recorded then.
        """
        record = self.read(stage.name)
        if record is None or self._changes(stage, record):
            record = self._execute(stage)
        else:
            self.skipped.append(stage.name)
        self.records[stage.name] = record

    def why(self, stage: Stage) -> str | None:
        """Say why a stage would run now; None if it would be skipped. Nothing is written."""
        record = self.read(stage.name)
        if record is not None:
            return "; ".join(self._changes(stage, record)) or None
        return "its record cannot be read" if self._record_of(stage.name).exists() else "never ran"

    def read(self, name: str) -> Record | None:
        """Read the record of a stage; None if there is none that can be read."""
        try:
            content = json.loads(self._record_of(name).read_text(encoding="utf-8"))
            record = Record(**content)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        mappings = (record.parameters, record.inputs, record.outputs, record.facts, record.libraries)
        return record if all(isinstance(m, dict) for m in mappings) else None

    def _record_of(self, name: str) -> Path:
        return self.out / ".chisep" / self.session / f"{name}.json"

    def _changes(self, stage: Stage, record: Record) -> list[str]:
        """Say what is not as a record has it."""
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
        wanted = {str(path.relative_to(self.out)) for path in self._files(stage)}
        changes += [
            f"output {Path(name).name} missing or changed"
            for name in sorted({*record.outputs, *wanted})
            if name not in wanted or record.outputs.get(name) != output_checksum(self.out / name)
        ]
        return changes

    def _inputs(self, stage: Stage) -> dict[str, str]:
        return {self._uri(path): checksum(path) if path.is_file() else "" for path in stage.inputs}

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
        _forget_peak_memory()
        with collected_warnings() as said:
            facts = stage.work()
        record = Record(
            version=chisep.__version__,
            description=stage.description,
            parameters=dict(stage.parameters),
            inputs=inputs,
            outputs={},
            facts=dict(facts),
            warnings=said,
            libraries=library_versions(),
            seconds=round(time.perf_counter() - start, 2),
            peak_memory_gb=round(_peak_memory_gb(), 3),
        )
        for message in said:
            log.warning("%s: %s: %s", self.session, stage.name, message)
        for image in _images(stage):
            write_json(bids.sidecar_of(image), _sidecar(image, record))
        outputs = {str(path.relative_to(self.out)): output_checksum(path) for path in files}
        if gone := [Path(name).name for name, made in outputs.items() if not made]:
            raise output_gone(self.out, ", ".join(gone))
        content = {f.name: getattr(record, f.name) for f in fields(Record)} | {"outputs": outputs}
        write_json(record_file, content)
        return Record(**content)

    def _uri(self, path: Path) -> str:
        """BIDS URI of a file of this dataset or of the raw one; the address of a file elsewhere."""
        path, out, raw = path.absolute(), self.out.absolute(), self.raw.absolute()
        if path.is_relative_to(out):
            return f"bids::{path.relative_to(out)}"
        return f"bids:raw:{path.relative_to(raw)}" if path.is_relative_to(raw) else path.as_uri()


class DryRunPlanner(StageCache):
    """Says what a cache would do; runs and writes nothing.

    Attributes
    ----------
    reasons
        Stage → why it would run, or None; in order. A stage after one that would run is said to follow it,
        though it will be skipped should its inputs come out as they were.
    """

    def __init__(self, raw: Path, out: Path, session: str) -> None:
        super().__init__(raw, out, session)
        self.reasons: dict[str, str | None] = {}
        self._remade: dict[Path, str] = {}

    def do(self, stage: Stage) -> None:
        """Note what would be done with a stage."""
        record = self.read(stage.name)
        before = sorted({self._remade[path] for path in stage.inputs if path in self._remade})
        if record is None or not before:
            reason = self.why(stage)
        else:
            changed = _changed_parameters(record.parameters, _as_read_back(stage.parameters))
            reason = "; ".join(changed) or f"follows {', '.join(before)}"
        self.reasons[stage.name] = reason
        if reason is not None:
            self._remade |= dict.fromkeys(stage.outputs, stage.name)
        self.records[stage.name] = record or Record("", "", {}, {}, {}, {}, [], {}, 0.0, 0.0)


def output_checksum(path: Path) -> str:
    """SHA-256 of an output; that of a sidecar is of what it says without its costs; "" if it is not there."""
    try:
        content = json.loads(path.read_bytes()) if path.suffix == ".json" else None
        if not isinstance(content, dict) or not set(COSTS) & set(content):
            return checksum(path)
    except (OSError, ValueError, RecursionError):
        return ""
    said = {key: value for key, value in content.items() if key not in COSTS}
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Return name → version of the libraries that results depend on."""
    return {name: version(name) for name in _LIBRARIES}


def _images(stage: Stage) -> list[Path]:
    return [path for path in stage.outputs if path.name.endswith(".nii.gz")]


def _sidecar(image: Path, record: Record) -> dict[str, Any]:
    suffix = image.name.split(".")[0].rsplit("_", 1)[-1]
    units = {"Units": _UNITS[suffix]} if suffix in _UNITS else {}
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
    """Parameters as JSON gives them back: it has no tuples."""
    return dict(json.loads(json.dumps(parameters)))


def _changed_parameters(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which parameters differ, those of parts by their names joined with dots."""
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
    """Let the kernel begin anew with this process's peak; where it may not, peaks are of its whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_gb() -> float:
    """Most resident memory of this process since the last call of `_forget_peak_memory`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024 / 1e9


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what chisep warns of, in order and once each; other warnings pass."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChisepWarning)
        yield said
    for warning in caught:
        if not issubclass(warning.category, ChisepWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in said:
            said.append(str(warning.message))
