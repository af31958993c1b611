"""Progress updates of the sessions of a cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
