"""An explanation of a file: its stages and checks, and its text."""

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
