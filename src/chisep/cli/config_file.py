"""Config files: the options of a command as TOML, written by `--save-config` and read by `--config`."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chisep.errors import InputError, printable
from chisep.io.files import write_text

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec

T = TypeVar("T")

_LARGEST_BYTES = 1_000_000
_NONE = "None"
"""How a value that is not set is written where the default is another one: TOML has no null."""


def config_option(arguments: Sequence[str], option: str = "--config") -> Path | None:
    """Return the value of an option before the arguments are parsed; None without it.

    Parameters
    ----------
    arguments
        Arguments of a command.
    option
        Name of the option.
    """
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return Path(arguments[place + 1])
        if argument.startswith(f"{option}="):
            return Path(argument.removeprefix(f"{option}="))
    return None


def write_config(path: Path, config: object, heading: str, leave_out: Sequence[str] = ()) -> Path:
    """Write every option of a config as TOML; the file is complete or absent.

    Parameters
    ----------
    path
        File to write.
    config
        Dataclass of options; parts are dataclasses themselves.
    heading
        Comment at the top of the file.
    leave_out
        Fields that are not written.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    import tomli_w

    values = {name: value for name, value in _as_table(config).items() if name not in leave_out}
    lines = "".join(f"# {line}\n" for line in heading.splitlines())
    return write_text(path, lines + tomli_w.dumps(values))


def read_config(path: Path, kind: type[T]) -> T:
    """Read a config that `write_config` wrote; options that are missing have their defaults.

    Parameters
    ----------
    path
        TOML file.
    kind
        Dataclass of the config.

    Raises
    ------
    InputError
        If it is no such file, or an option does not exist, is missing without a default, or has a value that
        the command line would refuse.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"more than {_LARGEST_BYTES} bytes")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            path,
            found=f"a file that is no TOML ({error})",
            expected="options that `chisep run … --save-config FILE` wrote",
            fix="Check the path, or correct the file.",
        ) from error
    return _from_table(path, kind, content, "")


def _as_table(config: Any) -> dict[str, Any]:  # noqa: ANN401
    table: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            table[each.name] = _as_table(value)
        elif value is not None or each.default is not None:
            table[each.name] = _as_toml(value)
    # TOML wants plain values before tables.
    return dict(sorted(table.items(), key=lambda item: isinstance(item[1], dict)))


def _as_toml(value: object) -> Any:  # noqa: ANN401
    if value is None:
        return _NONE
    if isinstance(value, (list, tuple)):
        return [_as_toml(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _from_table(path: Path, kind: type[T], table: Mapping[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind, include_extras=True)
    known = {each.name: each for each in dataclasses.fields(typing.cast("Any", kind))}
    for name in table:
        if name not in known:
            raise _error(path, f"the option {prefix}{name}", f"one of: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, each in known.items():
        part = _plain(hints[name])
        if dataclasses.is_dataclass(part):
            below = table.get(name, {})
            if not isinstance(below, dict):
                raise _error(path, f"{prefix}{name} = {below!r}", f"a table [{prefix}{name}]")
            values[name] = _from_table(path, typing.cast("type[Any]", part), below, f"{prefix}{name}.")
        elif name in table:
            values[name] = _parsed(path, f"{prefix}{name}", hints[name], table[name])
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise _error(path, f"no option {prefix}{name}", f"a line `{name} = …`")
    return kind(**values)


def _plain(hint: Any) -> Any:  # noqa: ANN401
    return _plain(hint.__origin__) if typing.get_origin(hint) is typing.Annotated else hint


def _parsed(path: Path, name: str, hint: Any, value: object) -> Any:  # noqa: ANN401
    """Value of an option by the rules of the command line, so that both accept the same."""
    from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, UnsupportedTypeAnnotationError

    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(_plain(hint), set()))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        raise TypeError(f"{name}: a type that the command line does not know")
    texts = list(_texts(value))
    shown = f"{name} = {value!r}"
    if spec.choices and any(text not in spec.choices for text in texts):
        raise _error(path, shown, f"one of: {', '.join(spec.choices)}")
    if not _fits(spec, len(texts)):
        counts = spec.nargs if isinstance(spec.nargs, tuple) else (spec.nargs,)
        raise _error(path, shown, f"{counts[-1]} values")
    try:
        return spec.instance_from_str(texts)
    except (ValueError, KeyError, IndexError, AssertionError, TypeError) as error:
        raise _error(path, shown, spec.metavar) from error


def _fits(spec: PrimitiveConstructorSpec[Any], count: int) -> bool:
    if spec.nargs == "*":
        return True
    return count in spec.nargs if isinstance(spec.nargs, tuple) else count == spec.nargs


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    else:
        yield str(value)


def _error(path: Path, found: str, expected: str) -> InputError:
    return InputError(
        path,
        found=printable(found[:200]),
        expected=expected,
        fix="Correct the file; `chisep run --help` explains the options.",
    )
