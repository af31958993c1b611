"""What hostile input has to meet: a result or an error that can be mended, soon, in little memory."""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chisep.errors import ChisepError, InputError

LONGEST_S = 20.0
"""For one case, on a machine that does other work as well."""
SPARE_BYTES = 16 * 2**20
"""Of memory that any case may take, whatever the size of its file: buffers, parsers, imports."""
CASES: Counter[str] = Counter()
"""Cases by target, for the summary."""


class Hang(BaseException):
    """Raised in the middle of a case that takes too long; no `except` of the code under test stops it."""


def _hang(*_: object) -> None:
    raise Hang(f"more than {LONGEST_S:g} s")


@contextmanager
def soon() -> Iterator[None]:
    """Interrupt what takes too long."""
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ends_well(call: Callable[[], Any], *, honest_bytes: int = 0, factor: int = 20) -> Any:
    """Call with a hostile input; return its result, or the `ChisepError` that it ended with.

    Parameters
    ----------
    call
        Reads the hostile input. Any other exception fails the test.
    honest_bytes
        What the input really holds, decompressed.
    factor
        How many times that may be taken at once.
    """
    tracemalloc.start()
    try:
        with soon():
            try:
                result = call()
            except ChisepError as error:
                result = error
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= SPARE_BYTES + factor * honest_bytes, f"{peak} bytes for {honest_bytes}"
    if isinstance(result, InputError):
        explains_itself(result)
    return result


def explains_itself(error: InputError) -> None:
    """All four facts are there, and none is endless."""
    for fact in (error.source, error.found, error.expected, error.fix):
        assert fact
    assert len(error.found) < 2000
    assert len(str(error)) < 10_000


def names(folder: Path) -> set[Path]:
    """All paths below a folder, links not followed."""
    return {Path(where, name) for where, *below in os.walk(folder) for names in below for name in names}


def nothing_half_written(folder: Path) -> None:
    """No temporary names are left."""
    assert not [name for name in names(folder) if name.name.endswith("tmp")]
