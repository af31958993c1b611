"""How a file came to be: the stages behind it, back to the raw files, each file checked by its checksum.

All facts are those of the records that stages leave in OUT/.chisep/SESSION/STAGE.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from tyro.conf import Positional

from chisep.errors import InputError
from chisep.io import bids
from chisep.io.files import checksum
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.config import RunConfig
from chisep.pipeline.engine import output_checksum
from chisep.provenance.records import RECORDS, Record, records_of, sessions_of

State = Literal["unchanged", "changed since", "missing", "not looked for"]
"""What became of a file since it was read or written; `not looked for`: its dataset is not known."""

_UNITS = {
    "EchoTime": "s",
    "SpinEchoTime": "s",
    "MagneticFieldStrength": "T",
    "PseudoR2": "1/s",
    "D_r_pos": "1/s/ppm",
    "D_r_neg": "1/s/ppm",
    "MedianFieldNoisePpb": "ppb",
    "ErosionMm": "mm",
    "ErosionMl": "ml",
    "MovedMm": "mm",
    "RotationDeg": "°",
}
_UNITS_BY_ENDING = {
    "_mm": "mm",
    "_ml": "ml",
    "_s": "s",
    "_deg": "°",
    "_rad": "rad",
    "_ppm": "ppm",
    "_hz": "1/s",
}
_REPEATED = {"report": ("Parameters", "Convergence", "Warnings")}
"""What a report repeats of the stages that it rests on."""
_LONG = 8


@dataclass(frozen=True)
class ExplainConfig:
    """Which file, and where its datasets are."""

    file: Positional[Path]
    """Image, table or report that `chisep run` made, or a raw image; with --methods a derivatives dataset."""
    raw: Path | None = None
    """Raw dataset, where it does not lie as it did during the run."""
    out: Path | None = None
    """For a raw image: derivatives dataset that may rest on it; left out, those in BIDS/derivatives."""
    methods: bool = False
    """Write methods.md and references.bib of a derivatives dataset, for a paper."""
    json: bool = False
    """Print JSON instead of text."""


Records = Mapping[str, Record]
"""Records of one session by stage."""


@dataclass(frozen=True)
class FileCheck:
    """A file and what became of it.

    Parameters
    ----------
    name
        As in the record.
    path
        Where it is; None if its dataset is not known.
    state
        What became of it.
    sha256
        As recorded.
    stage
        That made it; None for a raw file.
    """

    name: str
    path: str | None
    state: State
    sha256: str | None
    stage: str | None


@dataclass(frozen=True)
class Setting:
    """One parameter of a stage.

    Parameters
    ----------
    name
        With the names of the groups it is in, joined by dots.
    value
        As recorded.
    unit
        Empty if it has none.
    default
        Of this version; None where the data determine it.
    differs
        Whether the value is another than the default.
    """

    name: str
    value: Any
    unit: str
    default: Any
    differs: bool


@dataclass(frozen=True)
class Step:
    """One stage of how a file came to be; what its record does not hold is empty.

    Parameters
    ----------
    session, stage
        Whose it is.
    description
        What it made.
    version
        Of chisep.
    libraries
        Name → version of what it computed with.
    settings
        Its parameters.
    weights
        Of each trained network: name, checksum, training data.
    facts
        What it noted.
    warnings
        What it warned of.
    seconds, peak_memory_gb
        What it cost; 0 if that is not recorded.
    inputs
        Files it read.
    """

    session: str
    stage: str
    description: str
    version: str
    libraries: Mapping[str, str]
    settings: tuple[Setting, ...]
    weights: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]
    seconds: float
    peak_memory_gb: float
    inputs: tuple[FileCheck, ...]


@dataclass(frozen=True)
class Explanation:
    """How an output came to be.

    Parameters
    ----------
    file
        The output.
    steps
        The stage that made it first, then those that its inputs rest on, each once.
    """

    file: FileCheck
    steps: tuple[Step, ...]

    @property
    def holds(self) -> bool:
        """Whether the file and all that it rests on are as they were."""
        files = [self.file, *(check for step in self.steps for check in step.inputs)]
        return all(check.state == "unchanged" for check in files)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"holds": self.holds, **asdict(self)}

    def lines(self) -> list[str]:
        """Text: a tree of files and stages, then each stage in full."""
        steps = {step.stage: step for step in self.steps}
        tree = [
            f"{self.file.name.removeprefix('bids::')}: {self.file.state}",
            *_tree(self.file.stage, steps, set(), ""),
        ]
        return [_plain(line) for line in (*tree, *(line for step in self.steps for line in _details(step)))]


@dataclass(frozen=True)
class Use:
    """A stage that read a raw file, or rests on one that did.

    Parameters
    ----------
    dataset
        Derivatives dataset.
    session, stage
        Whose it is.
    state
        Whether the raw file is as the stage read it; None for a stage that rests on another one.
    outputs
        What it made.
    """

    dataset: str
    session: str
    stage: str
    state: State | None
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class RawExplanation:
    """What is known of a raw file, and what rests on it.

    Parameters
    ----------
    file
        The file.
    sidecars
        JSON files that apply to it, the nearest last.
    facts
        Field → its value and the sidecar that it is from.
    uses
        Stages that rest on it.
    """

    file: str
    sidecars: tuple[str, ...]
    facts: Mapping[str, tuple[Any, str]]
    uses: tuple[Use, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Text: fields with the sidecars they are from, then what rests on the file."""
        lines = [
            self.file,
            "",
            f"Fields, from {', '.join(self.sidecars) or 'no sidecar'} (the last one wins)",
        ]
        width = max(map(len, self.facts), default=0)
        lines += [
            f"  {name:<{width}}  {_text(value)}  ({file})" for name, (value, file) in self.facts.items()
        ]
        lines += ["", "What rests on it" if self.uses else "No result that rests on it was found"]
        for use in self.uses:
            state = f" read it: {use.state}" if use.state else ""
            lines.append(f"  {use.dataset}: {use.session}: {use.stage}{state}")
            lines += [f"    {name}" for name in use.outputs]
        return [_plain(line) for line in lines]


def explain(path: Path, *, raw: Path | None = None, out: Path | None = None) -> Explanation | RawExplanation:
    """Say how a file came to be.

    Parameters
    ----------
    path
        Output of a run, or a raw file.
    raw
        Raw dataset, where it does not lie as it did during the run.
    out
        For a raw file: derivatives dataset that may rest on it; None: those in BIDS/derivatives.

    Returns
    -------
    Explanation or RawExplanation
        Of an output, or of a raw file.

    Raises
    ------
    InputError
        If no record knows the file and it is no raw file either, or a record cannot be read.
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


# Datasets --------------------------------------------------------------------------------------------


def dataset_links(out: Path, raw: Path | None = None) -> dict[str, Path]:
    """Folders of the datasets that records of a derivatives dataset name.

    Parameters
    ----------
    out
        Derivatives dataset.
    raw
        The raw one, if it is known; else it is what `DatasetLinks` says, or the dataset around OUT.

    Returns
    -------
    dict
        Name (`raw`, or empty for the dataset itself) → folder.
    """
    try:
        content = json.loads((out / bids.DESCRIPTION).read_text(encoding="utf-8"))
        stated = content.get("DatasetLinks", {}).items()
    except (OSError, ValueError, AttributeError):
        stated = ()
    links = {str(name): out / str(place).removeprefix("file://") for name, place in stated}
    if out.parent.name == "derivatives":
        links.setdefault("raw", out.parent.parent)
    if raw is not None:
        links["raw"] = raw
    return {name: place for name, place in links.items() if place.is_dir()} | {"": out}


def locate(name: str, links: Mapping[str, Path]) -> Path | None:
    """Path of a file by its name in a record; None if its dataset is not known."""
    if name.startswith("file://"):
        return Path(unquote(name.removeprefix("file://")))
    if not name.startswith("bids:"):
        return links[""] / name
    _, dataset, place = name.split(":", 2)
    return links[dataset] / place if dataset in links else None


# Outputs ---------------------------------------------------------------------------------------------


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
    """Find the session that a file is of, its records, and the stage that made the file."""
    # Names of outputs begin with that of their session: no need to read thousands of others.
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


def state_of(path: Path, sha256: str, measure: Callable[[Path], str] = checksum) -> State:
    """Compare a file with its checksum."""
    try:
        # A pipe or a device would be read for ever.
        if not path.is_file():
            return "missing"
        return "unchanged" if measure(path) == sha256 else "changed since"
    except OSError:
        return "missing"


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
    """Parameters that this version gives a stage by default, as far as the data do not determine them."""
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
            found = {"R2star": asdict(config.r2star), "R2": asdict(config.r2)}
        case "qsm":
            found = {"Method": config.qsm}
        case "labels" if "Registration" in parameters:
            found = {"Registration": asdict(config.registration)}
        case "separation":
            found = {"Method": config.method} | _default_relaxivity(records)
    return dict(json.loads(json.dumps(found)))


def _default_relaxivity(records: Records) -> dict[str, float]:
    field = records.get("field")
    b0_t = None if field is None else field.parameters.get("MagneticFieldStrength")
    if not isinstance(b0_t, int | float):
        return {}
    d_r = default_relaxivity(float(b0_t))
    return {"D_r_pos": d_r.pos_hz_per_ppm, "D_r_neg": d_r.neg_hz_per_ppm}


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested groups, the names joined by dots."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unit_of(name: str) -> str:
    """Tell the unit of a parameter or fact by its name; empty if it has none."""
    last = name.rsplit(".", 1)[-1]
    if last in _UNITS:
        return _UNITS[last]
    return next((unit for ending, unit in _UNITS_BY_ENDING.items() if last.endswith(ending)), "")


# Raw files -------------------------------------------------------------------------------------------


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
    """Root of the BIDS dataset around a raw file."""
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
        # Stages in any order: one that rests on another one is found in a later round.
        while found := [stage for stage, record in waiting.items() if resting & set(record.inputs)]:
            for stage in found:
                record = waiting.pop(stage)
                resting |= {f"bids::{output}" for output in record.outputs}
                recorded = record.inputs.get(name)
                state = None if recorded is None else state_of(path, recorded)
                yield Use(str(out), session, stage, state, tuple(record.outputs))


# Text ------------------------------------------------------------------------------------------------


def _tree(stage: str | None, steps: Mapping[str, Step], shown: set[str], indent: str) -> Iterator[str]:
    """Lines of the files that a stage read, each with the stage that made it below."""
    if stage is None or stage in shown:
        return
    shown.add(stage)
    yield f"{indent}└─ {stage}"
    lines = _grouped(steps[stage].inputs)
    for number, (name, check) in enumerate(lines, start=1):
        last = number == len(lines)
        maker = f" ({check.stage}, above)" if check.stage in shown else ""
        yield f"{indent}   {'└─' if last else '├─'} {name}: {check.state}{maker}"
        yield from _tree(check.stage, steps, shown, f"{indent}   {'   ' if last else '│  '}")


def _grouped(checks: Sequence[FileCheck]) -> list[tuple[str, FileCheck]]:
    """Names for the tree; echoes of one series that are in one state share a line."""
    groups: dict[tuple[str, State], list[FileCheck]] = {}
    for check in checks:
        groups.setdefault((re.sub(r"_echo-\d+_", "_echo-*_", check.name), check.state), []).append(check)
    lines = []
    for (pattern, _), group in groups.items():
        name = group[0].name if len(group) == 1 else f"{pattern} ({len(group)} files)"
        lines.append((name.removeprefix("bids::").replace("bids:raw:", "raw: "), group[0]))
    return lines


def _details(step: Step) -> Iterator[str]:
    yield ""
    yield f"{step.stage} of {step.session}" + (f": {step.description}" if step.description else "")
    libraries = ", ".join(f"{name} {version}" for name, version in step.libraries.items())
    yield f"  chisep {step.version or '(version not recorded)'}" + (
        f", with {libraries}" if libraries else ""
    )
    if step.seconds:
        yield f"  {step.seconds:.3g} s, {step.peak_memory_gb:.3g} GB at most"
    width = max((len(setting.name) for setting in step.settings), default=0)
    for setting in step.settings:
        default = f"  (default {_with_unit(setting.default, setting.unit)})" if setting.differs else ""
        yield f"  {setting.name:<{width}}  {_with_unit(setting.value, setting.unit)}{default}"
    for used in step.weights:
        yield "  weights: " + ", ".join(f"{name} {_text(value)}" for name, value in used.items())
    for name, value in flat(step.facts):
        yield f"  found: {name} {_with_unit(value, unit_of(name))}"
    for text in step.warnings:
        yield f"  warning: {text}"


def _with_unit(value: Any, unit: str) -> str:  # noqa: ANN401
    return _text(value) if value is None or not unit else f"{_text(value)} {unit}"


def _text(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "automatic"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        if len(value) > _LONG:
            return f"{_text(value[0])}, … {_text(value[-1])} ({len(value)} values)"
        return ", ".join(_text(entry) for entry in value)
    return str(value)


def _plain(text: str) -> str:
    """Text without control characters, which names and sidecars of strangers may hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
