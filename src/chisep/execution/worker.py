"""One session on a worker: its process, heartbeats, and the log that it forwards."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from chisep.execution.progress import Update, Watch
from chisep.io import discovery
from chisep.io.files import Lock
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run_session
from chisep.pipeline.session import SessionResult

if TYPE_CHECKING:
    from distributed import Worker

log = logging.getLogger("chisep")

HEARTBEAT_S = 1.0
"""Interval between two heartbeats of a session."""

_PAUSE_S = 5.0


def run_with_retries(
    config: RunConfig, one: discovery.DiscoveredSession, lock: Lock, retries: int, watch: Watch
) -> SessionResult:
    """Process a session; repeat it after a pause where its error may be temporary."""
    for attempt in range(retries + 1):
        with _Heartbeat(one.name, watch) as heartbeat:
            result = run_session(config, one, lock, heartbeat.step)
        if not result.may_pass or attempt == retries:
            break
        pause_s = _PAUSE_S * 2**attempt
        log.warning("%s: retried in %g s", one.name, pause_s)
        time.sleep(pause_s)
    return result


class _Heartbeat:
    """Heartbeat: reports the progress of a session every second.

    Parameters
    ----------
    session
        Name of the session.
    watch
        Called from a separate thread.
    """

    def __init__(self, session: str, watch: Watch) -> None:
        self._session, self._watch = session, watch
        self._stage, self._done, self._total, self._start = "", 0, 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def step(self, what: str, done: int, total: int) -> None:
        """Note the start of the next stage."""
        self._stage, self._done, self._total = what.split(": ", 1)[-1], done, total
        self._start = time.monotonic()
        self._send()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._send()

    def _send(self) -> None:
        seconds, memory_gb = time.monotonic() - self._start, _resident_gb()
        self._watch(
            Update(self._session, "running", self._stage, self._done, self._total, seconds, memory_gb)
        )


def _resident_gb() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


@dataclass(frozen=True)
class Work:
    """Inputs of a task besides its session.

    Parameters
    ----------
    config, lock
        As in `run_session`.
    threads
        Number of threads for computations.
    retries
        Number of retries after temporary errors.
    topic
        Topic of the Dask events that carry its reports.
    """

    config: RunConfig
    lock: Lock
    threads: int
    retries: int
    topic: str = field(default_factory=lambda: f"chisep-{secrets.token_hex(8)}")


_one_at_a_time = threading.Lock()


def process(work: Work, one: discovery.DiscoveredSession) -> SessionResult:
    """Process a session on a worker: the Dask task."""
    from distributed import get_worker

    worker = get_worker()

    def send(update: Update) -> None:
        worker.log_event(work.topic, {"update": asdict(replace(update, worker=worker.address))})

    # Threads belong to the process: one session at a time, even with several slots.
    with _one_at_a_time, _forwarded_log(worker, work.topic):
        torch.set_num_threads(work.threads)
        return run_with_retries(work.config, one, work.lock, work.retries, send)


@contextlib.contextmanager
def _forwarded_log(worker: Worker, topic: str) -> Iterator[None]:
    """Forward chisep's log to the process that started the run."""
    handler = _ForwardHandler(worker, topic)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class _ForwardHandler(logging.Handler):
    """Log handler that sends records as Dask events."""

    def __init__(self, worker: Worker, topic: str) -> None:
        super().__init__(logging.INFO)
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._worker.log_event(self._topic, {"level": record.levelno, "text": text})
