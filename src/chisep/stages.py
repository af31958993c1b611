"""Stages from files to files, skipped when what they made still holds.

When a stage is done it leaves a record: a key (version, parameters, checksums of its inputs) and the
checksums of its outputs. The stage is skipped as long as both hold. The record is written last, so a stage
that was killed has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chisep
from chisep.errors import ChisepWarning
from chisep.io import bids
from chisep.io.files import remove_leftovers, write_json

log = logging.getLogger("chisep")

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
    key
        Checksum of version, parameters and inputs.
    outputs
        Path relative to the derivatives dataset → checksum.
    facts
        What the stage noted, e.g. its convergence.
    warnings
        What the user should know.
    """

    key: str
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    warnings: Sequence[str]


class Ledger:
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
        self._folder = out / ".chisep" / session
        remove_leftovers(self._folder)

    def do(self, stage: Stage) -> None:
        """Run a stage unless its record still holds.

        Raises
        ------
        ChisepError
            As the stage; nothing is recorded then.
        """
        record = self._fresh(stage)
        if record is None:
            record = self._execute(stage)
        else:
            self.skipped.append(stage.name)
        self.records[stage.name] = record

    def _fresh(self, stage: Stage) -> Record | None:
        """Record of a stage that need not run again, else None."""
        try:
            record = Record(**json.loads((self._folder / f"{stage.name}.json").read_text()))
            whole = all(checksum(self.out / path) == known for path, known in record.outputs.items())
        except (OSError, ValueError, TypeError):
            return None
        return record if whole and record.key == self._key(stage) else None

    def _key(self, stage: Stage) -> str:
        facts = {
            "version": chisep.__version__,
            "stage": stage.name,
            "parameters": stage.parameters,
            "inputs": [checksum(path) for path in stage.inputs],
            "outputs": [str(path.relative_to(self.out)) for path in stage.outputs],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _execute(self, stage: Stage) -> Record:
        log.info("%s: %s", self.session, stage.name)
        for path in stage.outputs:
            remove_leftovers(path.parent)
        key = self._key(stage)
        with _collected_warnings() as said:
            facts = stage.work()
        for message in said:
            log.warning("%s: %s: %s", self.session, stage.name, message)
        images = [path for path in stage.outputs if path.name.endswith(".nii.gz")]
        for image in images:
            self._write_sidecar(image, stage, facts, said)
        files = [*stage.outputs, *map(bids.sidecar_of, images)]
        record = Record(key, {str(path.relative_to(self.out)): checksum(path) for path in files}, facts, said)
        write_json(self._folder / f"{stage.name}.json", vars(record))
        return record

    def _write_sidecar(
        self, image: Path, stage: Stage, facts: Mapping[str, Any], said: Sequence[str]
    ) -> None:
        suffix = image.name.split(".")[0].rsplit("_", 1)[-1]
        content: dict[str, Any] = {"Description": stage.description}
        if suffix in _UNITS:
            content["Units"] = _UNITS[suffix]
        content |= {
            "Sources": [self._uri(source) for source in stage.inputs],
            "Parameters": dict(stage.parameters),
            **facts,
            "Warnings": list(said),
            "SoftwareVersion": f"chisep {chisep.__version__}",
        }
        write_json(bids.sidecar_of(image), content)

    def _uri(self, path: Path) -> str:
        """BIDS URI of a file of this dataset or of the raw one."""
        if path.is_relative_to(self.out):
            return f"bids::{path.relative_to(self.out)}"
        return f"bids:raw:{path.relative_to(self.raw)}"


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
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


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
