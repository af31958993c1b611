"""Errors and warnings for users.

Every error that a user can cause has the same four facts: the source, what was found there, what was
expected, and the fix. `chisep.cli` prints the message and exits; all other modules only raise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class ChisepError(Exception):
    """Base of all errors that a user can fix; never a bug in chisep."""


class InputError(ChisepError):
    """Input that cannot be used.

    Parameters
    ----------
    source
        The file, directory or option that is wrong.
    found
        What is there.
    expected
        What chisep needs instead.
    fix
        What the user can do.
    """

    def __init__(self, source: str | Path, *, found: str, expected: str, fix: str) -> None:
        self.source, self.found, self.expected, self.fix = str(source), found, expected, fix
        super().__init__(printable(f"{source}: found {found}; expected {expected}. {fix}"))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the four facts, so that the error survives a process boundary."""
        return _rebuild, (type(self), self.source, self.found, self.expected, self.fix)


class OutputError(InputError):
    """Output that cannot be written."""


class ResultError(InputError):
    """Result that cannot be right; nothing of it is written."""


class ChisepWarning(UserWarning):
    """The result is valid, but something was assumed, repaired or left out."""


def printable(text: str) -> str:
    """Escape control characters and what a terminal cannot show: text of files is untrusted."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text
    )


def unknown_name(what: str, name: str, known: Iterable[str], command: str) -> InputError:
    """Error for an unknown name.

    Parameters
    ----------
    what
        Kind of name, such as "method".
    name
        Name that the user gave.
    known
        Known names.
    command
        Command that lists them, named in the fix if no known name is similar.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return InputError(
        what,
        found=repr(name),
        expected=f"one of: {', '.join(names)}",
        fix=f"Did you mean {close[0]}?" if close else f"`{command}` explains them.",
    )


def _rebuild(kind: type[InputError], source: str, found: str, expected: str, fix: str) -> InputError:
    return kind(source, found=found, expected=expected, fix=fix)
