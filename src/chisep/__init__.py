"""χ-separation: maps of paramagnetic (iron) and diamagnetic (myelin) susceptibility from MRI.

The commands from Python, imported when first used: `separate`, `qsm` and `cosmos` on single maps
(NIfTI paths, nibabel images or arrays), `run` on a BIDS dataset, `simulate`, `evaluate`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chisep.api.evaluate import EvaluateConfig, evaluate
    from chisep.api.maps import InversionOptions, SeparationOptions, qsm, separate
    from chisep.api.orientations import CosmosOptions, cosmos
    from chisep.execution.orientations import run_orientations as orientations
    from chisep.pipeline.config import RunConfig
    from chisep.pipeline.orientations.config import OrientationsConfig
    from chisep.pipeline.run import run
    from chisep.simulation.dataset import SimulateConfig, simulate

__version__ = "0.1.0"

_OWNERS = {
    "CosmosOptions": "chisep.api.orientations",
    "EvaluateConfig": "chisep.api.evaluate",
    "InversionOptions": "chisep.api.maps",
    "OrientationsConfig": "chisep.pipeline.orientations.config",
    "RunConfig": "chisep.pipeline.config",
    "SeparationOptions": "chisep.api.maps",
    "SimulateConfig": "chisep.simulation.dataset",
    "cosmos": "chisep.api.orientations",
    "evaluate": "chisep.api.evaluate",
    "orientations": "chisep.execution.orientations",
    "qsm": "chisep.api.maps",
    "run": "chisep.pipeline.run",
    "separate": "chisep.api.maps",
    "simulate": "chisep.simulation.dataset",
}

_NAMES = {"orientations": "run_orientations"}
"""Names in the module of the owner, where they differ."""

__all__ = [
    "CosmosOptions",
    "EvaluateConfig",
    "InversionOptions",
    "OrientationsConfig",
    "RunConfig",
    "SeparationOptions",
    "SimulateConfig",
    "cosmos",
    "evaluate",
    "orientations",
    "qsm",
    "run",
    "separate",
    "simulate",
]


def __getattr__(name: str) -> object:
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OWNERS[name]), _NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
