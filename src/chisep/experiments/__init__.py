"""Experiments whose tables and figures one command makes again: `chisep reproduce NAME OUT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""
Function = Callable[[Any, Progress | None], list[Path]]
"""Takes the experiment's config and returns the files to look at."""


@dataclass(frozen=True)
class Experiment:
    """An experiment by name.

    Parameters
    ----------
    summary
        What it shows, in a line.
    load
        Imports the experiment; returns the class of its config and its function.
    """

    summary: str
    load: Callable[[], tuple[type[Any], Function]]


def _realism() -> tuple[type[Any], Function]:
    from chisep.experiments.realism import RealismConfig, realism

    return RealismConfig, realism


EXPERIMENTS = {
    "realism": Experiment("digital heads beside what was measured in people", _realism),
}
