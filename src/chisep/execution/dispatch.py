"""Dispatch of sessions to the workers of a cluster, and requeueing when a worker dies."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from chisep.errors import InputError
from chisep.execution.clusters import CONNECT_S
from chisep.execution.progress import Update, Watch
from chisep.execution.worker import HEARTBEAT_S, Work, process
from chisep.io import discovery
from chisep.pipeline.run import note_ending
from chisep.pipeline.session import SessionResult

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("chisep")

_COUNT_S = 2.0
_ANSWER_S = 60
_PATIENCE_S = 20.0
_UNRESPONSIVE_S = 600.0
"""Time without a heartbeat after which a worker counts as unresponsive: it or its disk is frozen."""
_OUT_OF_MEMORY_TOPIC = "worker-restart-memory"


@dataclass
class _SessionState:
    """State of a session in the queue.

    Parameters
    ----------
    one
        The session.
    last
        Its last update.
    furthest
        Largest number of stages ever finished.
    furthest_at_setback
        Value of `furthest` when it was last requeued.
    setbacks
        How often it was requeued since it last finished another stage.
    out_of_memory
        Whether a worker of it was killed at its memory limit.
    last_heartbeat
        Time of its last heartbeat on the monotonic clock.
    """

    one: discovery.DiscoveredSession
    last: Update
    furthest: int = 0
    furthest_at_setback: int = -1
    setbacks: int = 0
    out_of_memory: bool = False
    last_heartbeat: float = field(default_factory=time.monotonic)

    def count_setback(self) -> int:
        """Count a setback; return their number since another stage was finished."""
        self.setbacks = 1 if self.furthest > self.furthest_at_setback else self.setbacks + 1
        self.furthest_at_setback = self.furthest
        return self.setbacks


class Dispatcher:
    """Dispatches sessions to workers, and requeues a session when its worker dies.

    At most one session per worker is dispatched, so that the death of a worker affects one session.

    Parameters
    ----------
    client
        Client of the cluster.
    work
        Inputs of the tasks, and how often a session may be requeued without finishing another stage.
    watch
        Called with progress updates.
    """

    def __init__(self, client: Client, work: Work, watch: Watch) -> None:
        self._client, self._work, self._watch = client, work, watch
        # Events and ends of tasks arrive in Dask's thread; the caller's thread does everything else.
        self._news: queue.SimpleQueue[Future[Any] | dict[str, Any]] = queue.SimpleQueue()
        self._states: dict[str, _SessionState] = {}
        self._results: dict[str, SessionResult] = {}
        self._waiting: deque[str] = deque()
        self._running: dict[Future[Any], str] = {}
        self._out_of_memory_workers: set[str] = set()
        self._workers, self._counted, self._since_none = 0, -math.inf, time.monotonic()

    def run(self, sessions: Sequence[discovery.DiscoveredSession]) -> dict[str, SessionResult]:
        """Process sessions; returns results by name.

        Raises
        ------
        InputError
            If the cluster is lost.
        """
        self._states = {one.name: _SessionState(one, Update(one.name, "running")) for one in sessions}
        self._waiting.extend(self._states)
        for topic in (self._work.topic, _OUT_OF_MEMORY_TOPIC):
            self._client.subscribe_topic(topic, self._receive)
        while self._waiting or self._running:
            self._dispatch()
            self._restart_unresponsive_workers()
            try:
                news = self._news.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                continue
            if isinstance(news, dict):
                self._note(news)
            else:
                self._collect(news)
        return self._results

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        self._news.put(event[1])

    def _dispatch(self) -> None:
        self._count_workers()
        while self._waiting and len(self._running) < max(1, self._workers):
            name = self._waiting.popleft()
            future = self._client.submit(
                process,
                self._work,
                self._states[name].one,
                key=f"{name}-{secrets.token_hex(8)}",
                pure=False,
            )
            self._running[future] = name
            self._states[name].last_heartbeat = time.monotonic()
            future.add_done_callback(self._news.put)

    def _count_workers(self) -> None:
        now = time.monotonic()
        if now - self._counted < _COUNT_S or self._client.status != "running":
            return
        with contextlib.suppress(OSError, TimeoutError):  # the tasks report a lost scheduler
            self._workers, self._counted = len(self._client.nthreads()), now
        if self._workers:
            self._since_none = now
        elif now - self._since_none > _PATIENCE_S:
            log.warning("no workers yet; waiting for them")
            self._since_none = math.inf

    def _note(self, message: Mapping[str, Any]) -> None:
        """Process an event: a log line, a progress update, or a worker killed at its memory limit."""
        if "text" in message:
            log.log(message["level"], "%s", message["text"])
        elif "update" in message:
            update = Update(**message["update"])
            state = self._states[update.session]
            state.last, state.furthest = update, max(state.furthest, update.done)
            state.last_heartbeat = time.monotonic()
            self._watch(update)
        else:
            self._out_of_memory_workers.add(str(message.get("worker")))

    def _collect(self, future: Future[Any]) -> None:
        """Collect the result of a finished task, or requeue its session."""
        from distributed import KilledWorker

        name = self._running.pop(future, None)
        if name is None:  # given up
            return
        if future.status not in ("finished", "error"):
            raise self._lost()
        try:
            result = future.result(timeout=_ANSWER_S)
        except KilledWorker as error:
            self._wait_for_reason(name, error.last_worker.address)
            self._requeue(name, "its worker died")
        except (OSError, TimeoutError) as error:
            if self._client.status != "running":
                raise self._lost() from error
            self._requeue(name, f"its result was out of reach ({error})")
        except Exception as error:  # on the worker: chisep is missing there, or has another version
            if future.status not in ("finished", "error"):
                raise self._lost() from error
            self._end(SessionResult(name, error=_unusable_worker(name, error)))
        else:
            self._end(result)

    def _wait_for_reason(self, name: str, worker: str) -> None:
        """Wait briefly for the event that a worker was killed at its memory limit, which may arrive late.

        The worker may have died before its first heartbeat.
        """
        for _ in range(3):
            time.sleep(0.2)
            self._read_events()
            if worker in self._out_of_memory_workers:
                self._out_of_memory_workers.discard(worker)
                self._states[name].out_of_memory = True
                return

    def _restart_unresponsive_workers(self) -> None:
        for future, name in list(self._running.items()):
            state = self._states[name]
            if time.monotonic() - state.last_heartbeat < _UNRESPONSIVE_S:
                continue
            state.last_heartbeat = time.monotonic()
            with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):  # gone by now, or since
                # It may be another worker than that of the last heartbeat, or one without any heartbeat.
                work = self._client.processing().items()
                workers = [worker for worker, keys in work if future.key in keys]
                if not workers:  # it waits for one
                    continue
                log.warning("%s: its worker is unresponsive; it is restarted", name)
                self._client.restart_workers(workers, timeout=CONNECT_S, raise_for_error=False)
            state.last_heartbeat = time.monotonic()  # a worker that starts sends no heartbeats
            if state.count_setback() > self._work.retries:
                del self._running[future]
                future.cancel()
                self._fail(state)

    def _read_events(self) -> None:
        kept = []
        with contextlib.suppress(queue.Empty):
            while True:
                news = self._news.get_nowait()
                if isinstance(news, dict):
                    self._note(news)
                else:
                    kept.append(news)
        for future in kept:
            self._news.put(future)

    def _requeue(self, name: str, why: str) -> None:
        """Requeue a session, or fail it after too many setbacks."""
        state = self._states[name]
        where = f" in stage {state.last.stage}" if state.last.stage else ""
        if state.count_setback() > self._work.retries:
            self._fail(state)
            return
        log.warning("%s: %s%s; the session is requeued", name, why, where)
        self._watch(replace(state.last, state="requeued"))
        self._waiting.appendleft(name)

    def _fail(self, state: _SessionState) -> None:
        """Fail a session whose workers died."""
        where = f" in stage {state.last.stage}" if state.last.stage else ""
        result = SessionResult(state.one.name, error=self._dead_workers(state, where))
        note_ending(self._work.config, result, self._work.lock)
        self._end(result)

    def _end(self, result: SessionResult) -> None:
        self._results[result.name] = result
        if not result.error:
            log.info("%s: done (%d of %d)", result.name, len(self._results), len(self._states))
        elif self._states[result.name].setbacks:
            log.error("%s: %s", result.name, result.error)
        self._watch(Update(result.name, "failed" if result.error else "done"))

    def _dead_workers(self, state: _SessionState, where: str) -> InputError:
        if state.out_of_memory:
            return InputError(
                state.one.name,
                found=f"its worker ended at its memory limit{where}, {state.setbacks} times",
                expected="enough memory for the session",
                fix="Give each worker more (--memory-gb) and take fewer (--workers); "
                "what was finished is kept.",
            )
        return InputError(
            state.one.name,
            found=f"its worker died{where}, {state.setbacks} times, last seen with "
            f"{state.last.memory_gb:.1f} GB",
            expected="a worker that lives until the session is done",
            fix="If the machine ran out of memory, take fewer --workers; what was finished is kept.",
        )

    def _lost(self) -> InputError:
        unfinished = len(self._states) - len(self._results)
        return InputError(
            "--cluster",
            found=f"a lost connection to the scheduler, with {unfinished} of {len(self._states)} sessions "
            "unfinished",
            expected="a scheduler that runs until the end",
            fix="Start it again; the same command goes on from there, what was finished is kept.",
        )


def _unusable_worker(name: str, error: Exception) -> InputError:
    return InputError(
        name,
        found=f"a worker that could not take it ({type(error).__name__}: {error})",
        expected="workers with the same versions of chisep and its libraries as here",
        fix="Install them where the workers run.",
    )
