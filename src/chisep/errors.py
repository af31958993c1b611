"""What chisep says when something is wrong.

Every error a user can cause carries the same four facts: which source, what was found there, what was
wanted, and how to mend it. `chisep.cli` prints the message and exits; everything below only raises.
"""

from __future__ import annotations

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
    wanted
        What chisep needs instead.
    remedy
        How the user mends it.
    """

    def __init__(self, source: str | Path, *, found: str, wanted: str, remedy: str) -> None:
        self.source, self.found, self.wanted, self.remedy = str(source), found, wanted, remedy
        super().__init__(f"{source}: found {found}; wanted {wanted}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the four facts, so that the error survives a process boundary."""
        return _rebuild, (type(self), self.source, self.found, self.wanted, self.remedy)


class OutputError(InputError):
    """A place that cannot be written."""


class ChisepWarning(UserWarning):
    """Something was assumed, repaired or left out; the result stands but the user should know."""


def _rebuild(kind: type[InputError], source: str, found: str, wanted: str, remedy: str) -> InputError:
    return kind(source, found=found, wanted=wanted, remedy=remedy)
