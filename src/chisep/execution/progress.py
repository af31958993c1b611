"""Progress updates of the sessions of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Update:
    """Progress of one session.

    Parameters
    ----------
    session
        Name of the session.
    state
        `running`; `done` or `failed` at its end; `requeued` after its worker died.
    stage
        The current stage.
    done, total
        Number of finished stages, and of all stages.
    seconds
        Time since the start of the stage.
    memory_gb
        Resident memory of the process in 10⁹ bytes.
    worker
        Address of the worker; empty for this process.
    """

    session: str
    state: Literal["running", "done", "failed", "requeued"]
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    memory_gb: float = 0.0
    worker: str = ""


Watch = Callable[[Update], None]
"""Called at every change and every second, from another thread than the caller's."""

TYPICAL_SECONDS: Mapping[str, float] = {
    "mask": 5.1,
    "field": 9.0,
    "registration": 7.2,
    "relaxometry": 14.3,
    "background": 11.7,
    "separation": 17.9,
    "labels": 4.5,
    "nuclei": 3.3,
    "qsm": 0.1,
    "regions": 1.5,
    "report": 6.7,
}
"""Processor seconds of each stage at 1 mm with one thread (`benchmarks/results/session-one-thread.json`)."""

_SHORTEST_S = 0.5
"""Stages below it were up to date, or tell nothing of the speed of the machine."""


@dataclass
class _Measured:
    """Stages of a session with their seconds, in order."""

    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    current_s: float = 0.0


class TimeLeft:
    """Estimate how long the current stage and the rest of its session take.

    Times come from the sessions that have ended. Before the first one they come from a table of times at
    1 mm, scaled by the stages of this session that are done.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, _Measured] = {}
        self._known: dict[str, float] = {}

    def note(self, update: Update) -> None:
        """Note an update of a session."""
        if update.state in ("failed", "requeued"):
            self._sessions.pop(update.session, None)
            return
        session = self._sessions.setdefault(update.session, _Measured())
        if session.current and session.current != update.stage:
            session.seconds[session.current] = session.current_s
        session.current, session.current_s = update.stage, update.seconds
        if update.state == "done":
            made = {stage: s for stage, s in session.seconds.items() if s >= _SHORTEST_S}
            # A session that was kept as it is tells nothing of those that have to be computed.
            self._known.update(made)
            del self._sessions[update.session]

    def stage_s(self, update: Update) -> float | None:
        """Seconds left of the current stage; None where its time is not known."""
        expected = self._expected(update)
        return None if update.stage not in expected else max(expected[update.stage] - update.seconds, 0.0)

    def session_s(self, update: Update) -> float | None:
        """Seconds left of the session, its current stage included; None where they are not known."""
        stage_s, expected = self.stage_s(update), self._expected(update)
        if stage_s is None:
            return None
        order = list(expected)
        return stage_s + sum(expected[stage] for stage in order[order.index(update.stage) + 1 :])

    def _expected(self, update: Update) -> dict[str, float]:
        """Seconds of every stage, in order."""
        if update.stage in self._known:
            return self._known
        done = self._sessions.get(update.session, _Measured()).seconds
        both = {s: t for s, t in done.items() if s in TYPICAL_SECONDS and t >= _SHORTEST_S}
        typical = sum(TYPICAL_SECONDS[stage] for stage in both)
        if not typical:
            return {}
        rate = sum(both.values()) / typical
        return {stage: rate * seconds for stage, seconds in TYPICAL_SECONDS.items()}
