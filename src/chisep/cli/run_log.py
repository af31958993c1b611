"""Log file of a run: what its user saw, with the command and the versions, in OUT/logs."""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import chisep
from chisep.errors import ChisepError
from chisep.io.paths import require_inside

FOLDER = "logs"
"""Folder in OUT; `.bidsignore` lists it."""

_MARKUP = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def run_log(out: Path, arguments: Sequence[str]) -> Iterator[Path]:
    """Write messages of chisep to a file of OUT while a run is at work.

    The file appears with the first message: a run that is refused, or finds all up to date, leaves none.

    Parameters
    ----------
    out
        Derivatives dataset.
    arguments
        Arguments after `chisep`, for the first lines.

    Yields
    ------
    Path
        The log file.
    """
    start = datetime.now(UTC)
    handler = _LogFile(out, out / FOLDER / f"chisep-{start:%Y%m%dT%H%M%S%f}.log")
    handler.note(f"chisep {chisep.__version__}, Python {platform.python_version()}, {platform.platform()}")
    handler.note(f"command: {shlex.join(['chisep', *arguments])}")
    logger = logging.getLogger("chisep")
    logger.addHandler(handler)
    try:
        yield handler.path
    finally:
        logger.removeHandler(handler)
        handler.close()


class _LogFile(logging.Handler):
    """Log handler that waits for the first message, and for its dataset, then writes to a file there.

    A log that cannot be written stops no run: after the first error it is given up.

    Parameters
    ----------
    out
        Derivatives dataset.
    path
        Log file.
    """

    def __init__(self, out: Path, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path, self._out, self._waiting, self._is_lost = path, out, list[str](), False

    def note(self, text: str) -> None:
        """Note lines for the file, should there be one; the time in UTC precedes them."""
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        self._waiting.append(f"{stamp} {_MARKUP.sub('', text)}\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        text = f"{record.levelname} {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        self.note(text)
        self._write()

    def _write(self) -> None:
        if self._is_lost or not (self._out / ".chisep").is_dir():
            return
        try:
            require_inside(self._out, self.path)
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(self._waiting)
            self._waiting.clear()
        except (OSError, ChisepError):  # a full disk, a link that leads elsewhere
            self._is_lost = True
