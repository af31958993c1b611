"""Provenance report of a file: stages, checks of files, and text output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chisep.provenance.datasets import State
from chisep.provenance.values import flat, unit_of

_LONG = 8


@dataclass(frozen=True)
class FileCheck:
    """File and its state.

    Parameters
    ----------
    name
        As in the record.
    path
        Path; None if its dataset is not known.
    state
        State since it was read or written.
    sha256
        As recorded.
    stage
        Stage that wrote it; None for a raw file.
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
        Name, after those of its groups, joined by dots.
    value
        As recorded.
    unit
        Empty if it has none.
    default
        Default of this version; None if it follows from the data.
    differs
        Whether the value differs from the default.
    """

    name: str
    value: Any
    unit: str
    default: Any
    differs: bool


@dataclass(frozen=True)
class Step:
    """One stage in the provenance of a file; missing fields of its record are empty.

    Parameters
    ----------
    session, stage
        Session and stage.
    description
        Description of its outputs.
    version
        Version of chisep.
    libraries
        Library → version.
    settings
        Parameters.
    weights
        Name, checksum and training data of each trained network.
    facts
        Measured facts.
    warnings
        Warnings.
    seconds, peak_memory_gb
        Time and memory; 0 if not recorded.
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
    """Provenance of an output.

    Parameters
    ----------
    file
        The output.
    steps
        Stage that wrote it, then the stages of its inputs, each once.
    """

    file: FileCheck
    steps: tuple[Step, ...]

    @property
    def holds(self) -> bool:
        """Whether the file and all files in its provenance are unchanged."""
        files = [self.file, *(check for step in self.steps for check in step.inputs)]
        return all(check.state == "unchanged" for check in files)

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return {"holds": self.holds, **asdict(self)}

    def lines(self) -> list[str]:
        """Lines of text: a tree of files and stages, then each stage in full."""
        steps = {step.stage: step for step in self.steps}
        tree = [
            f"{self.file.name.removeprefix('bids::')}: {self.file.state}",
            *_tree(self.file.stage, steps, set(), ""),
        ]
        return [_plain(line) for line in (*tree, *(line for step in self.steps for line in _details(step)))]


@dataclass(frozen=True)
class Use:
    """Stage that read a raw file, or results that depend on it.

    Parameters
    ----------
    dataset
        Derivatives dataset.
    session, stage
        Session and stage.
    state
        State of the raw file since the stage read it; None for a stage that reads only results.
    outputs
        Files it wrote.
    """

    dataset: str
    session: str
    stage: str
    state: State | None
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class RawExplanation:
    """Sidecar fields of a raw file, and the results that depend on it.

    Parameters
    ----------
    file
        The file.
    sidecars
        JSON files that apply to it, the nearest last.
    facts
        Field → value and sidecar.
    uses
        Stages that depend on it.
    """

    file: str
    sidecars: tuple[str, ...]
    facts: Mapping[str, tuple[Any, str]]
    uses: tuple[Use, ...]

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Lines of text: fields with their sidecars, then the results that depend on the file."""
        lines = [
            self.file,
            "",
            f"Fields, from {', '.join(self.sidecars) or 'no sidecar'} (the last one wins)",
        ]
        width = max(map(len, self.facts), default=0)
        lines += [
            f"  {name:<{width}}  {_text(value)}  ({file})" for name, (value, file) in self.facts.items()
        ]
        lines += ["", "Results that depend on it" if self.uses else "No result that depends on it was found"]
        for use in self.uses:
            state = f" read it: {use.state}" if use.state else ""
            lines.append(f"  {use.dataset}: {use.session}: {use.stage}{state}")
            lines += [f"    {name}" for name in use.outputs]
        return [_plain(line) for line in lines]


def _tree(stage: str | None, steps: Mapping[str, Step], shown: set[str], indent: str) -> Iterator[str]:
    """Tree of the input files of a stage, each with the stage that wrote it below."""
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
    """Names for the tree; echoes of one series with the same state share a line."""
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
    """Escape control characters, which untrusted names and sidecars may contain."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
