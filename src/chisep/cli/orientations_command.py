"""The command `orientations`: several head orientations of each participant, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chisep.cli.cohorts import cohort_config, print_plans, print_results, save_options


def orientations_command(arguments: Sequence[str], summary: str) -> int:
    """Run the command; see `chisep.cli.main` for what it returns.

    Parameters
    ----------
    arguments
        Arguments after `orientations`.
    summary
        First line of the help.
    """
    from chisep.execution.orientations import (
        OrientationsCohortConfig,
        plan_orientations,
        run_orientations,
    )

    config = cohort_config(OrientationsCohortConfig, "orientations", arguments, summary)
    if config.save_config is not None:
        save_options(config.save_config, replace(config, run=config.run.absolute()), "orientations")
    if config.dry_run:
        return print_plans(plan_orientations(config.run))
    return print_results(
        config.run.out,
        ["orientations", *arguments],
        lambda watch: run_orientations(config.run, config.cluster, watch),
        "participants",
    )
