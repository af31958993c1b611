"""Parsing of arguments into the config dataclass of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

T = TypeVar("T")


def parse(
    config: type[T],
    command: str,
    arguments: Sequence[str],
    description: str = "",
    *,
    prefixes: bool = False,
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

    Raises
    ------
    SystemExit
        After `--help`, and with status 2 for wrong arguments.
    """
    import tyro

    return tyro.cli(
        config,
        prog=f"chisep {command}",
        description=description,
        args=list(arguments),
        config=(tyro.conf.AvoidSubcommands, *(() if prefixes else (tyro.conf.OmitArgPrefixes,))),
        registry=_registry(),
    )


def _registry() -> ConstructorRegistry:
    """Rules of tyro, except that the help shows an option that may be left out as PATH, not as {None}|PATH.

    A default that is empty reads "(default: unset)".
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, UnsupportedTypeAnnotationError

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

        metavar = spec.metavar.removeprefix("{None}|").replace("{None,", "{")
        if " " in metavar:  # several values; braces are for choices
            metavar = metavar.strip("{}")
        return replace(spec, metavar=metavar, str_from_instance=shown)

    return registry
