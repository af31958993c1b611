"""The command `run`: sessions of a dataset, the group level, the dry run, and what it teaches."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chisep.cli.arguments import parse
from chisep.cli.config_file import config_option, read_config, write_config
from chisep.cli.run_log import run_log
from chisep.cli.terminal import progress_bar, session_table, sigterm_as_interrupt

if TYPE_CHECKING:
    from chisep.execution.cohort import SessionPlan
    from chisep.execution.config import CohortConfig
    from chisep.pipeline.config import RunConfig
    from chisep.pipeline.session import SessionResult

LESSON = """\
chisep run makes maps of iron (χ_pos) and myelin (χ_neg) of every session of a BIDS dataset.

It needs a folder with multi-echo gradient echoes, magnitude and phase; spin echoes make it more accurate:

  BIDS/sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz      and .json, with EchoTime and MagneticFieldStrength
  BIDS/sub-01/anat/sub-01_echo-1_part-phase_MEGRE.nii.gz
  BIDS/sub-01/anat/sub-01_echo-1_MESE.nii.gz                optional

  chisep bids-check BIDS                 what will run, what is missing, what will be assumed
  chisep run BIDS OUT                    all sessions; the same command goes on after an interruption
  chisep run BIDS OUT group              one table and page of all sessions

No dataset yet?  chisep dicom --help     from DICOM files
                 chisep import --help    from single NIfTI files
                 chisep demo             a simulated scan, from raw images to the report

For each session, OUT holds a report (OUT/sub-01.html), maps (OUT/sub-01/anat) and their values in regions.
`chisep run --help` lists all options.
"""

NOT_SAVED = ("config", "save_config", "dry_run")
"""Options of a call that a config file does not hold."""


def run_command(arguments: Sequence[str], summary: str) -> int:
    """Run the command; see `chisep.cli.main` for what it returns.

    Parameters
    ----------
    arguments
        Arguments after `run`.
    summary
        First line of the help.
    """
    if not arguments:
        print(LESSON, end="", file=sys.stderr)
        return 2
    config = _config(arguments, summary)
    if config.save_config is not None:
        _save(config)
    if config.run.level == "group":
        return _group(config.run)
    if config.dry_run:
        return _dry_run(config.run)
    return _participants(config, arguments)


def _config(arguments: Sequence[str], summary: str) -> CohortConfig:
    from chisep.execution.config import CohortConfig

    file = config_option(arguments)
    default = None if file is None or {"-h", "--help"} & {*arguments} else read_config(file, CohortConfig)
    return parse(CohortConfig, "run", arguments, summary, prefixes=True, default=default)


def _save(config: CohortConfig) -> None:
    import chisep
    from chisep.execution.cohort import with_absolute_paths

    if config.save_config is None:
        return
    heading = (
        f"Options of `chisep run`, written by chisep {chisep.__version__}.\nchisep run --config THIS_FILE"
    )
    saved = replace(config, run=with_absolute_paths(config.run))
    write_config(config.save_config, saved, heading, leave_out=NOT_SAVED)


def _participants(config: CohortConfig, arguments: Sequence[str]) -> int:
    from chisep.execution.cohort import run_cohort

    with (
        sigterm_as_interrupt(),
        run_log(config.run.out, ["run", *arguments]) as log_file,
        session_table() as watch,
    ):
        results = run_cohort(config.run, config.cluster, watch)
    for result in results:
        print(f"{result.name}: {result.report if result.error is None else 'FAILED'}")
    if any(result.error is None for result in results):
        _print_next(config.run)
    if log_file.is_file():
        print(f"log: {log_file}")
    failed = [result for result in results if result.error]
    if failed:
        _print_failed(failed, len(results))
    return 1 if failed else 0


def _print_failed(failed: Sequence[SessionResult], count: int) -> None:
    print(f"chisep: error: {len(failed)} of {count} sessions failed:", file=sys.stderr)
    for result in failed:
        print(f"  {result.name}: {result.error}", file=sys.stderr)


def _print_next(config: RunConfig) -> None:
    """Name what a run leaves beside the reports, and the level that summarises them."""
    from chisep.provenance.methods_text import METHODS_FILE

    methods = config.out / METHODS_FILE
    if methods.is_file():
        print(f"methods section of a paper: {methods}")
    command = shlex.join(["chisep", "run", str(config.bids), str(config.out), "group"])
    print(f"table and page of all sessions: {command}")


def _group(config: RunConfig) -> int:
    from chisep.pipeline.group import run_group

    with progress_bar() as show:
        made = run_group(config, show)
    print(made.table, made.page, sep="\n")
    return 0


def _dry_run(config: RunConfig) -> int:
    from chisep.execution.cohort import plan

    return print_plans(plan(config))


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
