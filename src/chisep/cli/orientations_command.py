"""The command `orientations`: several head orientations of each participant, and its plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chisep.cli.arguments import parse
from chisep.cli.config_file import config_option, read_config, write_config
from chisep.cli.run_command import NOT_SAVED, print_plans
from chisep.cli.run_log import run_log
from chisep.cli.terminal import session_table, sigterm_as_interrupt

if TYPE_CHECKING:
    from chisep.execution.orientations import OrientationsCohortConfig


def orientations_command(arguments: Sequence[str], summary: str) -> int:
    """Run the command; see `chisep.cli.main` for what it returns.

    Parameters
    ----------
    arguments
        Arguments after `orientations`.
    summary
        First line of the help.
    """
    from chisep.execution.orientations import plan_orientations

    config = _config(arguments, summary)
    if config.save_config is not None:
        _save(config)
    if config.dry_run:
        return print_plans(plan_orientations(config.run))
    return _participants(config, arguments)


def _config(arguments: Sequence[str], summary: str) -> OrientationsCohortConfig:
    from chisep.execution.orientations import OrientationsCohortConfig

    file = config_option(arguments)
    reads = file is not None and not {"-h", "--help"} & {*arguments}
    default = read_config(file, OrientationsCohortConfig) if file is not None and reads else None
    return parse(OrientationsCohortConfig, "orientations", arguments, summary, prefixes=True, default=default)


def _save(config: OrientationsCohortConfig) -> None:
    import chisep

    if config.save_config is None:
        return
    heading = (
        f"Options of `chisep orientations`, written by chisep {chisep.__version__}.\n"
        "chisep orientations --config THIS_FILE"
    )
    saved = replace(config, run=config.run.absolute())
    write_config(config.save_config, saved, heading, leave_out=NOT_SAVED)


def _participants(config: OrientationsCohortConfig, arguments: Sequence[str]) -> int:
    from chisep.execution.orientations import run_orientations

    with (
        sigterm_as_interrupt(),
        run_log(config.run.out, ["orientations", *arguments]) as log_file,
        session_table() as watch,
    ):
        results = run_orientations(config.run, config.cluster, watch)
    for result in results:
        print(f"{result.name}: {result.report if result.error is None else 'FAILED'}")
    if log_file.is_file():
        print(f"log: {log_file}")
    failed = [result for result in results if result.error]
    if failed:
        print(f"chisep: error: {len(failed)} of {len(results)} participants failed:", file=sys.stderr)
        for result in failed:
            print(f"  {result.name}: {result.error}", file=sys.stderr)
    return 1 if failed else 0
