"""The command `run`: sessions of a dataset, the group level, the dry run, and what it teaches."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chisep.cli.cohorts import cohort_config, print_plans, print_results, save_options
from chisep.cli.terminal import progress_bar

if TYPE_CHECKING:
    from chisep.pipeline.config import RunConfig

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
    from chisep.execution.config import CohortConfig

    config = cohort_config(CohortConfig, "run", arguments, summary)
    # After the options, so that the help is quick.
    from chisep.execution.cohort import plan, run_cohort, with_absolute_paths

    if config.save_config is not None:
        save_options(config.save_config, replace(config, run=with_absolute_paths(config.run)), "run")
    if config.run.level == "group":
        return _group(config.run)
    if config.dry_run:
        return print_plans(plan(config.run))
    return print_results(
        config.run.out,
        ["run", *arguments],
        lambda watch: run_cohort(config.run, config.cluster, watch),
        "sessions",
        lambda: _print_next(config.run),
    )


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
