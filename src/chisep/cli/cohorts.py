"""What `run` and `orientations` share: options from a file and to a file, results, and plans."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from chisep.cli.arguments import parse
from chisep.cli.config_file import config_option, read_config, write_config
from chisep.cli.run_log import run_log
from chisep.cli.terminal import session_table, sigterm_as_interrupt

if TYPE_CHECKING:
    from chisep.execution.cohort import SessionPlan
    from chisep.execution.progress import Watch
    from chisep.pipeline.session import SessionResult

T = TypeVar("T")

_NOT_SAVED = ("config", "save_config", "dry_run")
"""Options of a call that a config file does not hold."""


def cohort_config(kind: type[T], command: str, arguments: Sequence[str], summary: str) -> T:
    """Parse arguments; those that are not given are from the file of --config, if there is one.

    Parameters
    ----------
    kind
        Class of the options.
    command
        Name of the command.
    arguments
        Arguments after it.
    summary
        First line of the help.
    """
    file = config_option(arguments)
    default = None if file is None or {"-h", "--help"} & {*arguments} else read_config(file, kind)
    return parse(kind, command, arguments, summary, prefixes=True, default=default)


def save_options(path: Path, config: object, command: str) -> None:
    """Write options to the file of --save-config.

    Parameters
    ----------
    path
        TOML file.
    config
        Options, whose paths are absolute.
    command
        Name of the command.
    """
    import chisep

    heading = (
        f"Options of `chisep {command}`, written by chisep {chisep.__version__}.\n"
        f"chisep {command} --config THIS_FILE"
    )
    write_config(path, config, heading, leave_out=_NOT_SAVED)


def print_results(
    out: Path,
    arguments: Sequence[str],
    work: Callable[[Watch], list[SessionResult]],
    kind: str,
    print_next: Callable[[], None] | None = None,
) -> int:
    """Process with a table of progress and a log file, and print the page of each result; 1 if one failed.

    Parameters
    ----------
    out
        Derivatives dataset, which holds the log.
    arguments
        Name of the command, and its arguments.
    work
        Processes all sessions or participants.
    kind
        What results are of, in the plural.
    print_next
        Prints what can be done with results, if there is one.
    """
    with sigterm_as_interrupt(), run_log(out, arguments) as log_file, session_table() as watch:
        results = work(watch)
    for result in results:
        print(f"{result.name}: {result.report if result.error is None else 'FAILED'}")
    if print_next is not None and any(result.error is None for result in results):
        print_next()
    if log_file.is_file():
        print(f"log: {log_file}")
    failed = [result for result in results if result.error]
    if failed:
        print(f"chisep: error: {len(failed)} of {len(results)} {kind} failed:", file=sys.stderr)
        for result in failed:
            print(f"  {result.name}: {result.error}", file=sys.stderr)
    return 1 if failed else 0


def print_plans(plans: Sequence[SessionPlan]) -> int:
    """Print what a dry run found; 1 if something would fail.

    Parameters
    ----------
    plans
        Plan of each session.
    """
    for one in plans:
        would_run = {stage: why for stage, why in one.reasons.items() if why is not None}
        if one.error:
            print(f"{one.name}: would FAIL: {one.error}")
        else:
            kept = len(one.reasons) - len(would_run)
            print(f"{one.name}: {len(would_run)} stages would run, {kept} are kept")
        for stage, why in would_run.items():
            print(f"  {stage}: {why}")
    return 1 if any(one.error for one in plans) else 0
