"""Several head orientations of many participants: their scans as a cohort, then each participant."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from chisep.execution.cohort import SessionPlan, run_cohort
from chisep.execution.config import ClusterConfig
from chisep.execution.progress import Update, Watch
from chisep.pipeline.engine import DryRunPlanner
from chisep.pipeline.orientations.config import OrientationsConfig
from chisep.pipeline.orientations.groups import find_groups
from chisep.pipeline.orientations.participant import (
    plan_participant,
    process_participant,
    write_descriptions,
)
from chisep.pipeline.run import note_ending, opened
from chisep.pipeline.session import SessionResult, UnexpectedError, as_user_error, process

log = logging.getLogger("chisep")


@dataclass(frozen=True)
class OrientationsCohortConfig:
    """Settings of `chisep orientations`: what to compute, and where."""

    run: Annotated[OrientationsConfig, tyro.conf.arg(name="")]
    """Options of the run."""
    cluster: Annotated[ClusterConfig, tyro.conf.arg(name="")] = field(default_factory=ClusterConfig)
    """Workers for the scans."""
    dry_run: bool = False
    """List for every scan and participant the stages that would run, and why; nothing is written."""
    config: Path | None = None
    """TOML file of options that --save-config wrote; options on the command line prevail over it."""
    save_config: Path | None = None
    """Write all options of this call to a TOML file, then go on; --config FILE repeats the run."""


def run_orientations(
    config: OrientationsConfig, cluster: ClusterConfig | None = None, watch: Watch | None = None
) -> list[SessionResult]:
    """Process the head orientations of all participants.

    Parameters
    ----------
    config
        What to compute.
    cluster
        Where the stages of each scan run; local worker processes if None. The stages of all orientations of a
        participant run in this process.
    watch
        Called with progress updates.

    Returns
    -------
    list of SessionResult
        One per participant, sorted by name; a failed one does not stop the others.

    Raises
    ------
    InputError
        If the dataset as a whole cannot be used, no participant has two orientations, or another run is at
        work on OUT.
    OutputError
        If OUT cannot be written.
    """
    watch = watch or (lambda _update: None)
    config = config.absolute()
    groups = find_groups(config.of_scans())
    of_scans = {result.name: result for result in run_cohort(config.of_scans(), cluster, watch)}
    results = []
    with opened(config.of_scans()) as lock:
        write_descriptions(config.out)
        for group in groups:

            def step(what: str, done: int, total: int, name: str = group.name) -> None:
                watch(Update(name, "running", what.split(": ", 1)[-1], done, total))

            names = [scan.name for scan in group.scans]
            failed = {
                name: error
                for name in names
                if name in of_scans and (error := of_scans[name].error) is not None
            }
            try:
                if group.error is not None:
                    raise group.error
                result = process_participant(config, group, failed, lock, step)
            except Exception as error:
                shown = as_user_error(group.name, error)
                log.error("%s: %s", group.name, shown, exc_info=isinstance(shown, UnexpectedError))
                result = SessionResult(group.name, error=shown)
            note_ending(config.of_scans(), result, lock)
            watch(Update(group.name, "failed" if result.error else "done"))
            results.append(result)
    return results


def plan_orientations(config: OrientationsConfig) -> list[SessionPlan]:
    """Plan `run_orientations` without writing anything (dry run): stages that would run, and why.

    Parameters
    ----------
    config
        What would be computed.

    Returns
    -------
    list of SessionPlan
        One for each scan, then one for its participant, whose stages are named `SCAN: STAGE`. Scans that were
        not registered yet count as registered.

    Raises
    ------
    InputError
        As `run_orientations`.
    """
    config = config.absolute()
    of_scans = config.of_scans()
    plans = []
    for group in find_groups(of_scans):
        written: dict[Path, str] = {}
        failed: dict[str, Exception] = {}
        for session in () if group.error is not None else group.sessions:
            planner = DryRunPlanner(config.bids, config.out, session.name, written)
            error = None
            try:
                process(of_scans, session, cache=planner)
            except Exception as found:  # as in a run: it stops this scan only
                error = failed[session.name] = as_user_error(session.name, found)
            plans.append(SessionPlan(session.name, planner.reasons, error))
        try:
            if group.error is not None:
                raise group.error
            plans.append(SessionPlan(group.name, plan_participant(config, group, failed, written)))
        except Exception as found:
            plans.append(SessionPlan(group.name, error=as_user_error(group.name, found)))
    return plans
