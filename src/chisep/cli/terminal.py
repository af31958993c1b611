"""What commands show on the terminal: log lines, progress bars and tables."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from chisep.errors import ChisepWarning

if TYPE_CHECKING:
    from rich.console import Console

    from chisep.execution.progress import Update, Watch
    from chisep.progress import Progress as ShowProgress


def set_up_logging() -> None:
    """Log to standard error; chisep's own warnings are log lines too."""
    from rich.logging import RichHandler

    handler = RichHandler(console=_error_console(), show_time=False, show_path=False, markup=False)
    logger = logging.getLogger("chisep")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:  # noqa: ANN401
        if issubclass(category, ChisepWarning):
            logger.warning("%s", message)
        else:
            plain(message, category, *rest)

    warnings.showwarning = show  # type: ignore[assignment]


@cache
def _error_console() -> Console:
    """Return the console on standard error that log lines, progress bars and the session table share."""
    from rich.console import Console

    return Console(stderr=True)


class Ended(KeyboardInterrupt):
    """The process received SIGTERM, as from a batch system."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that workers end and no temporary files stay."""

    def end(_signal: int, _frame: object) -> None:
        raise Ended

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def duration(seconds: float | None) -> str:
    """Write a time that is left: 40 s, 3 min, 2.5 h; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress_bar() -> Iterator[ShowProgress]:
    """Show a progress bar while there is work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    console = _error_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)
            # Other bars can use the screen when all is done.
            (progress.start if done < total else progress.stop)()

        yield show


@contextmanager
def session_table() -> Iterator[Watch]:
    """Show the running sessions with their stages on a terminal; elsewhere the log names them."""
    from rich.live import Live
    from rich.table import Table

    from chisep.execution.progress import TimeLeft

    running: dict[str, Update] = {}
    ended = {"done": 0, "failed": 0}
    left = TimeLeft()

    def watch(update: Update) -> None:
        left.note(update)
        if update.state in ended:
            running.pop(update.session, None)
            ended[update.state] += 1
        else:
            running[update.session] = update

    def table() -> Table:
        caption = f"{ended['done']} done, {ended['failed']} failed"
        shown = Table(box=None, caption=caption, caption_justify="left")
        for title in ("session", "stage", "of", "time", "left of stage", "left of session", "GB"):
            shown.add_column(title, justify="left" if title in ("session", "stage") else "right")
        for name, now in sorted(running.copy().items()):
            stage = now.stage if now.state == "running" else f"{now.stage} (requeued)"
            at = f"{now.done + 1}/{now.total}" if now.total else ""
            still = map(duration, (left.stage_s(now), left.session_s(now)))
            shown.add_row(name, stage, at, f"{now.seconds:.0f} s", *still, f"{now.memory_gb:.1f}")
        return shown

    console = _error_console()
    if not console.is_terminal:
        yield watch
        return
    with Live(get_renderable=table, console=console, refresh_per_second=2, transient=True):
        yield watch


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    # A pipe has no width of its own: give it what the table needs rather than cut cells.
    Console(width=max(console.width, 200) if not console.is_terminal else None).print(table)
