"""What chisep says when something is wrong.

Every error a user can cause carries the same four facts: the source, what was found there, what was
expected, and the fix. `chisep.cli` prints the message and exits; everything below only raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class ChisepError(Exception):
    """Base of all errors that a user can mend; never a bug in chisep."""


class InputError(ChisepError):
    """An input that cannot be used.

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
    """A place that cannot be written."""


class ChisepWarning(UserWarning):
    """Something was assumed, repaired or left out; the result stands but the user should know."""


def printable(text: str) -> str:
    """Escape what a terminal would act on, or could not show: names and texts of files may hold anything."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text
    )


def unknown_name(what: str, name: str, known: Iterable[str], command: str) -> InputError:
    """Error for a name that is none of those known.

    Parameters
    ----------
    what
        What was to be named, such as "method".
    name
        What the user wrote.
    known
        All names there are.
    command
        Command that explains them, for a name that is like none of them.
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
