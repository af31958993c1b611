"""Provenance of a file: its stages back to the raw files, each file compared with its checksum.

All facts come from the stage records in OUT/.chisep/SESSION/STAGE.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tyro.conf import Positional

from chisep.errors import InputError
from chisep.io import bids
from chisep.methods import DEFAULTS, METHODS
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.config import RunConfig, default_qsm
from chisep.pipeline.engine import output_checksum
from chisep.provenance.datasets import State, dataset_links, locate, state_of
from chisep.provenance.explanation import Explanation, FileCheck, RawExplanation, Setting, Step, Use
from chisep.provenance.records import RECORDS, Record, Records, records_of, sessions_of
from chisep.provenance.values import flat, unit_of

_REPEATED = {"report": ("Parameters", "Convergence", "Warnings")}
"""Parameters that the report repeats from other stages."""


@dataclass(frozen=True)
class ExplainConfig:
    """File to explain, and its datasets."""

    file: Positional[Path]
    """Image, table or report of `chisep run`, or a raw image; with --methods, a derivatives dataset."""
    raw: Path | None = None
    """Raw dataset, if it was moved after the run."""
    out: Path | None = None
    """For a raw image: derivatives dataset to search for results; if unset: those in BIDS/derivatives."""
    methods: bool = False
    """Write methods.md and references.bib of a derivatives dataset, for a paper."""
    json: bool = False
    """Print JSON instead of text."""


def explain(path: Path, *, raw: Path | None = None, out: Path | None = None) -> Explanation | RawExplanation:
    """Trace the provenance of a file.

    Parameters
    ----------
    path
        Output of a run, or a raw file.
    raw
        Raw dataset, if it was moved after the run.
    out
        For a raw file: derivatives dataset to search for results; None: those in BIDS/derivatives.

    Returns
    -------
    Explanation or RawExplanation
        Of an output, or of a raw file.

    Raises
    ------
    InputError
        If no record lists the file and it is no raw file, or a record cannot be read.
    """
    path = path.absolute()
    if path.is_dir():
        raise InputError(
            path,
            found="a directory",
            expected="a file",
            fix="Name an image, a table or a report; --methods takes a derivatives dataset.",
        )
    home = next((folder for folder in path.parents if (folder / RECORDS).is_dir()), None)
    return _explain_raw(path, out) if home is None else _explain_output(path, home, raw)


def _explain_output(path: Path, out: Path, raw: Path | None) -> Explanation:
    name = path.relative_to(out).as_posix()
    session, records, made_by = _find(name, out)
    links = dataset_links(out, raw)
    makers = {f"bids::{output}": stage for stage, record in records.items() for output in record.outputs}
    steps: dict[str, Step] = {}

    def visit(stage: str) -> None:
        if stage in steps:
            return
        inputs = tuple(_check(uri, sha, links, makers.get(uri)) for uri, sha in records[stage].inputs.items())
        steps[stage] = _step(session, stage, records, inputs)
        for check in inputs:
            if check.stage is not None:
                visit(check.stage)

    visit(made_by)
    known = records[made_by].outputs[name]
    file = FileCheck(f"bids::{name}", str(path), state_of(path, known, output_checksum), known, made_by)
    return Explanation(file, tuple(steps.values()))


def _find(name: str, out: Path) -> tuple[str, dict[str, Record], str]:
    """Session of a file, its records, and the stage that wrote the file."""
    # The name of an output begins with that of its session: only those records are read first.
    likely = [session for session in sessions_of(out) if PurePosixPath(name).name.startswith(session)]
    for session in likely or sessions_of(out):
        records = records_of(out, session)
        for stage, record in records.items():
            if name in record.outputs:
                return session, records, stage
    if PurePosixPath(name).stem == "group":
        raise InputError(
            out / name,
            found="a summary of all sessions, which rests on every one of them",
            expected="a file of one session",
            fix="Explain the table of a session that is in it, e.g. …_regions.tsv.",
        )
    raise InputError(
        out / name,
        found="a file that no record lists: `chisep run` did not make it, or its record is gone",
        expected="an image, sidecar, table or report that a stage of `chisep run` wrote",
        fix=f"Name another file, or run `chisep run` again; records lie in {out / RECORDS}.",
    )


def _check(uri: str, sha256: str, links: Mapping[str, Path], made_by: str | None) -> FileCheck:
    path = locate(uri, links)
    state: State = "not looked for" if path is None else state_of(path, sha256)
    return FileCheck(uri, None if path is None else str(path), state, sha256, made_by)


def _step(session: str, stage: str, records: Records, inputs: tuple[FileCheck, ...]) -> Step:
    record = records[stage]
    parameters = {k: value for k, value in record.parameters.items() if k not in _REPEATED.get(stage, ())}
    weights = parameters.pop("Weights", [])
    return Step(
        session=session,
        stage=stage,
        description=record.description,
        version=record.version,
        libraries=record.libraries,
        settings=tuple(_settings(stage, parameters, records)),
        weights=tuple(dict(used) for used in weights if isinstance(used, Mapping)),
        facts=record.facts,
        warnings=tuple(record.warnings),
        seconds=record.seconds,
        peak_memory_gb=record.peak_memory_gb,
        inputs=inputs,
    )


def _settings(stage: str, parameters: Mapping[str, Any], records: Records) -> Iterator[Setting]:
    defaults = dict(flat(_defaults(stage, parameters, records)))
    for name, value in flat(parameters):
        default = defaults.get(name)
        yield Setting(name, value, unit_of(name), default, name in defaults and value != default)


def _defaults(stage: str, parameters: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """Default parameters of a stage in this version, except those that follow from the data."""
    config = RunConfig(Path("raw"), Path("out"))
    found: dict[str, Any] = {}
    match stage:
        case "mask":
            found = asdict(config.mask)
        case "field":
            found = asdict(config.field_map) | {"Quality": asdict(config.quality)}
        case "background":
            method = str(parameters.get("Method"))
            options = getattr(config.background, method, None)
            found = {"Method": config.background.method} | (asdict(options) if options else {})
        case "registration":
            found = asdict(config.registration)
        case "relaxometry":
            found = {"R2star": asdict(config.r2star), "R2": asdict(config.r2), "Denoise": config.denoise}
        case "qsm":
            found = {"Method": _default_qsm(records)} | (
                {"Reference": config.reference} if "Reference" in parameters else {}
            )
        case "inversion":
            found = {"Method": config.inversion}
        case "labels" if "Registration" in parameters:
            found = {"Registration": asdict(config.registration)}
        case "separation":
            found = {"Method": config.method} | _default_relaxivity(records)
    return dict(json.loads(json.dumps(found)))


def _default_qsm(records: Records) -> str:
    """Default QSM method of a session; a dipole inversion where nothing was separated, as of one echo."""
    separation = records.get("separation")
    name = None if separation is None else separation.parameters.get("Method")
    return default_qsm(METHODS[name]) if name in METHODS else DEFAULTS["chi"]


def _default_relaxivity(records: Records) -> dict[str, float]:
    field = records.get("field")
    b0_t = None if field is None else field.parameters.get("MagneticFieldStrength")
    if not isinstance(b0_t, int | float):
        return {}
    d_r = default_relaxivity(float(b0_t))
    return {"D_r_pos": d_r.pos_hz_per_ppm, "D_r_neg": d_r.neg_hz_per_ppm}


def _explain_raw(path: Path, out: Path | None) -> RawExplanation:
    root = _raw_root(path)
    sidecars = bids.sidecars(path, root)
    facts: dict[str, tuple[Any, str]] = {}
    for sidecar in sidecars:
        for name, value in bids.read_json(sidecar).items():
            facts[name] = (value, sidecar.relative_to(root).as_posix())
    datasets = sorted((root / "derivatives").glob("*")) if out is None else [out.absolute()]
    uses = tuple(use for dataset in datasets for use in _uses(path, root, dataset))
    names = tuple(sidecar.relative_to(root).as_posix() for sidecar in sidecars)
    return RawExplanation(path.relative_to(root).as_posix(), names, facts, uses)


def _raw_root(path: Path) -> Path:
    """Root of the BIDS dataset of a raw file."""
    described = next((p for p in path.parents if (p / bids.DESCRIPTION).is_file()), None)
    named = next((p.parent for p in path.parents if p.name.startswith("sub-") and "_" not in p.name), None)
    root = described or named
    if root is None or not path.is_file():
        raise InputError(
            path,
            found="no such file" if not path.exists() else "a file outside of any dataset that chisep knows",
            expected="a file that `chisep run` made, or one of a BIDS dataset",
            fix=f"Check the path; a derivatives dataset of chisep holds a folder {RECORDS}.",
        )
    return root


def _uses(path: Path, root: Path, out: Path) -> Iterator[Use]:
    name = f"bids:raw:{path.relative_to(root).as_posix()}"
    for session in sessions_of(out, start=path.relative_to(root).parts[0].split("_")[0]):
        records = records_of(out, session)
        resting: set[str] = {name}
        waiting = dict(records)
        # Records are in any order: a stage that reads results of another one is found in a later round.
        while found := [stage for stage, record in waiting.items() if resting & set(record.inputs)]:
            for stage in found:
                record = waiting.pop(stage)
                resting |= {f"bids::{output}" for output in record.outputs}
                recorded = record.inputs.get(name)
                state = None if recorded is None else state_of(path, recorded)
                yield Use(str(out), session, stage, state, tuple(record.outputs))
