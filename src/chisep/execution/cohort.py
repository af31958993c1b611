"""Cohort run: many sessions in this process, on local processes, or on a cluster.

The unit of work is a session. Tasks share only the file system: when a worker dies, another process continues
at the stage that was interrupted. `pipeline` and the records of the stages decide what a session needs; this
package decides only where and when it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from chisep.errors import ChisepError
from chisep.execution.clusters import connected
from chisep.execution.config import ClusterConfig
from chisep.execution.dispatch import Dispatcher
from chisep.execution.progress import Update, Watch
from chisep.execution.worker import Work, run_with_retries
from chisep.io import discovery
from chisep.io.files import Lock
from chisep.networks.inference import NetworkOptions
from chisep.pipeline.config import RunConfig
from chisep.pipeline.engine import DryRunPlanner
from chisep.pipeline.run import discover, opened
from chisep.pipeline.session import SessionResult, as_user_error, process
from chisep.provenance.methods_text import write_methods

log = logging.getLogger("chisep")


@dataclass(frozen=True)
class SessionPlan:
    """Planned stages of one session.

    Parameters
    ----------
    name
        Name of the session.
    reasons
        Stage → reason to run; None where it would be skipped.
    error
        Error that would stop the session before its first stage.
    """

    name: str
    reasons: Mapping[str, str | None] = field(default_factory=dict)
    error: ChisepError | None = None


def plan(config: RunConfig) -> list[SessionPlan]:
    """Plan a run without writing anything (dry run): stages that would run, and why.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used.
    """
    plans = []
    for one in discover(config):
        planner = DryRunPlanner(config.bids, config.out, one.name)
        try:
            if one.session is None:
                raise one.error or ValueError("neither a session nor an error")
            process(config, one.session, cache=planner)
            plans.append(SessionPlan(one.name, planner.reasons))
        except Exception as error:  # as in a run: it stops this session only
            plans.append(SessionPlan(one.name, planner.reasons, as_user_error(one.name, error)))
    return plans


def run_cohort(
    config: RunConfig, cluster: ClusterConfig | None = None, watch: Watch | None = None
) -> list[SessionResult]:
    """Process all sessions of the selected participants, several at a time.

    Parameters
    ----------
    config
        What to compute.
    cluster
        Where to compute; local worker processes if None. A single session runs in this process.
    watch
        Called with progress updates.

    Returns
    -------
    list of SessionResult
        One per session, sorted by name; a failed session does not stop the others.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used, another run is at work on OUT,
        or the cluster is unreachable or lost.
    OutputError
        If OUT cannot be written.

    Notes
    -----
    A script that calls this with local workers needs the usual guard `if __name__ == "__main__":`, since
    processes start afresh and import it.
    """
    cluster = cluster or ClusterConfig()
    watch = watch or (lambda _update: None)
    out, config = config.out, with_absolute_paths(config)
    found = discover(config)
    usable = [one for one in found if one.session is not None]
    alone = cluster.cluster == "none" or (cluster.cluster == "local" and len(usable) < 2)
    with opened(config) as lock:
        here = found if alone else [one for one in found if one.session is None]
        results = {one.name: _run_here(config, cluster, one, lock, watch) for one in here}
        if len(here) < len(found):
            with connected(cluster, len(usable), config.device) as (client, threads):
                work = Work(config, lock, threads, cluster.retries)
                results |= Dispatcher(client, work, watch).run(usable)
        if any(result.report for result in results.values()):
            _write_methods(config, lock)
    in_order = [results[one.name] for one in found]
    return [r if r.report is None else replace(r, report=out / r.report.name) for r in in_order]


def _write_methods(config: RunConfig, lock: Lock) -> None:
    """Write the methods text of all sessions; an error there is logged and fails no session."""
    try:
        lock.check()
        write_methods(config.out, config.bids)
    except ChisepError as error:
        log.warning("no methods text was written: %s", error)


def _run_here(
    config: RunConfig, cluster: ClusterConfig, one: discovery.DiscoveredSession, lock: Lock, watch: Watch
) -> SessionResult:
    """Process a session in this process."""
    if threads := cluster.threads_per_worker or cluster.nprocs:
        torch.set_num_threads(threads)
    result = run_with_retries(config, one, lock, cluster.retries, watch)
    watch(Update(one.name, "failed" if result.error else "done"))
    return result


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return a config whose paths and files of weights are absolute, for another working directory."""
    paths = {f.name: getattr(config, f.name) for f in fields(config)}
    changes: dict[str, Any] = {
        name: path.absolute() for name, path in paths.items() if isinstance(path, Path)
    }
    weights = {f.name: getattr(config.network, f.name) for f in fields(NetworkOptions)}
    files: dict[str, Any] = {
        name: str(Path(value).absolute())
        for name, value in weights.items()
        if isinstance(value, str) and Path(value).is_file()
    }
    return replace(config, network=replace(config.network, **files), **changes)
