"""Parsing of arguments into the config dataclass of a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        StructFieldSpec,
    )

T = TypeVar("T")


def parse(
    config: type[T],
    command: str,
    arguments: Sequence[str],
    description: str = "",
    *,
    prefixes: bool = False,
    default: T | None = None,
) -> T:
    """Parse arguments into a config.

    Parameters
    ----------
    config
        Dataclass whose fields are the options; their docstrings are the help.
    command
        Name after `chisep`, for usage lines.
    arguments
        Arguments after the name.
    description
        First line of the help.
    prefixes
        Whether options of a part of the config start with its name. Needed where two parts have options of
        one name.
    default
        Values of all options that are not given; those of the config if None.

    Raises
    ------
    SystemExit
        After `--help`, and with status 2 for wrong arguments.
    """
    found: T = with_readable_help(
        config, f"chisep {command}", arguments, description, prefixes=prefixes, default=default
    )
    return found


def with_readable_help(
    config: Any,  # noqa: ANN401
    program: str,
    arguments: Sequence[str],
    description: str = "",
    *,
    prefixes: bool = True,
    default: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Parse arguments of a program by tyro; as `parse`, also for a union of configs."""
    import tyro

    return tyro.cli(
        config,
        prog=program,
        description=description,
        args=list(arguments),
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(
            tyro.conf.AvoidSubcommands,
            tyro.conf.PositionalMetavarFromFieldName,
            *(() if prefixes else (tyro.conf.OmitArgPrefixes,)),
        ),
        registry=_registry(),
    )


def _registry() -> ConstructorRegistry:
    """Rules of tyro, with a help that reads well.

    An option that may be left out takes PATH, not {None}|PATH, and a default that is empty is "unset". tyro
    keeps the line breaks of an indented docstring; here its lines are joined.
    """
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructTypeInfo,
        UnsupportedTypeAnnotationError,
    )

    registry = ConstructorRegistry()
    asks_tyro = False

    @registry.primitive_rule
    def readable(
        info: PrimitiveTypeInfo,
    ) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
        nonlocal asks_tyro
        if asks_tyro:
            return None
        asks_tyro = True
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            asks_tyro = False
        if isinstance(spec, UnsupportedTypeAnnotationError):
            return spec

        def shown(value: object) -> list[str]:
            return ["unset"] if value in (None, "", ()) else spec.str_from_instance(value)

        return replace(spec, metavar=_metavar(spec.metavar), str_from_instance=shown)

    @registry.struct_rule
    def explained(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asks_tyro
        if asks_tyro:
            return None
        asks_tyro = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asks_tyro = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(map(_explained, spec.fields)))

    return registry


def _metavar(metavar: str) -> str:
    """Shorten what tyro calls the values of an option: FLOAT [FLOAT FLOAT], [PATH ...], no {None}."""
    metavar = metavar.removeprefix("{None}|").replace("{None,", "{")
    if metavar.startswith("{["):  # numbers or a word
        metavar = "|".join(part.removeprefix("{").removesuffix("}") for part in metavar.split("}|{"))
        metavar = metavar.replace("[FLOAT [FLOAT ...]]", "[FLOAT ...]")
    metavar = re.sub(r"^\{((\w+)( \2)+)\}$", r"\1", metavar)  # several values; braces are for choices
    metavar = re.sub(r"^(\w+)\|\{\1 (\1( \1)*)\}$", r"\1 [\2]", metavar)
    return re.sub(r"^\[(.*) \[(\1 )?\.\.\.\]\]$", r"[\1 ...]", metavar)


def _explained(field: StructFieldSpec) -> StructFieldSpec:
    """Join the lines of the help."""
    text = field.helptext() if callable(field.helptext) else field.helptext
    return field if text is None else replace(field, helptext=" ".join(text.split()))
