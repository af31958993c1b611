"""A run: the sessions of a dataset, one after the other, into one derivatives dataset."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from chisep import methods
from chisep.errors import ChisepError
from chisep.io import bids, discovery
from chisep.io.files import Lock, locked, write_json
from chisep.io.paths import require_inside
from chisep.pipeline.config import RunConfig
from chisep.pipeline.session import (
    SessionResult,
    UnexpectedError,
    as_user_error,
    is_transient,
    process,
)
from chisep.progress import Progress
from chisep.provenance.records import FAILURE, record_path
from chisep.report.figure_files import write_figures
from chisep.report.subject import mark_as_earlier

log = logging.getLogger("chisep")


def discover(config: RunConfig) -> list[discovery.DiscoveredSession]:
    """Find the sessions to process and check what they share, before anything is written.

    Raises
    ------
    InputError
        If the dataset as a whole, the device or the weights of a network cannot be used.
    """
    found = config.discovered()
    methods.check_device(config.device)
    config.weights()
    return found


@contextlib.contextmanager
def opened(config: RunConfig) -> Iterator[Lock]:
    """Make OUT a derivatives dataset that no other run writes to meanwhile.

    Raises
    ------
    InputError
        If another run writes to it, or its description is no JSON object.
    OutputError
        If it cannot be written.
    """
    with locked(config.out) as lock:
        if (config.out / bids.DESCRIPTION).exists():
            bids.renew_link(config.out, config.bids)
        else:
            bids.write_dataset_description(config.out, "chisep derivatives", derivative=True, raw=config.bids)
        yield lock


def run(config: RunConfig, progress: Progress | None = None) -> list[SessionResult]:
    """Process every session of the selected participants, one after the other in this process.

    Parameters
    ----------
    config
        Options of the run.
    progress
        Called at every stage.

    Returns
    -------
    list of SessionResult
        One per session; a failed session does not stop the others.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used, or another run is at work.
    OutputError
        If OUT cannot be written.
    """
    found = discover(config)
    with opened(config) as lock:
        return [run_session(config, one, lock, progress) for one in found]


def run_session(
    config: RunConfig, one: discovery.DiscoveredSession, lock: Lock, progress: Progress | None = None
) -> SessionResult:
    """Process one session; its error is part of the result, so that the other sessions continue.

    Parameters
    ----------
    config
        Options of the run.
    one
        Session, or the reason why it cannot be used.
    lock
        Lock on OUT; checked before every stage.
    progress
        Called at every stage.
    """

    def step(what: str, done: int, total: int) -> None:
        lock.check()
        if progress:
            progress(what, done, total)

    try:
        if one.session is None:
            raise one.error or ValueError("neither a session nor an error")
        for note in one.session.notes:
            log.warning("%s: %s", one.name, note)
        result = process(config, one.session, step)
        if result.report is not None:
            write_figures(config.out, result.report, one.session.subject)
    except Exception as error:
        shown = as_user_error(one.name, error)
        log.error("%s: %s", one.name, shown, exc_info=isinstance(shown, UnexpectedError))
        result = SessionResult(one.name, error=shown, may_pass=is_transient(error))
    note_ending(config, result, lock)
    return result


def note_ending(config: RunConfig, result: SessionResult, lock: Lock) -> None:
    """Record the error of a failed session for the group level; remove it after success.

    The report of an earlier run is marked as such after a failure.
    """
    with contextlib.suppress(ChisepError, OSError):  # the result already has the error of a full disk
        path = require_inside(config.out, record_path(config.out, result.name, FAILURE))
        lock.check()
        if result.error is None:
            path.unlink(missing_ok=True)
            return
        write_json(path, {"Error": str(result.error)})
        mark_as_earlier(require_inside(config.out, config.out / f"{result.name}.html"), str(result.error))
