"""Config of one training: recipe, data, machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chisep.training.data import FoldersConfig
from chisep.training.hardware import Precision
from chisep.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe, the data, the machine."""

    out: Path
    """Folder for checkpoints, logs and weights; a training that was interrupted there goes on."""
    data: FoldersConfig
    """Labelled maps."""
    recipe: Recipe
    """What is trained, and how."""
    start: str = ""
    """Weights to start from instead of random ones, of a network of the same shape: a file, or the name of
    shipped ones. The channels keep their statistics."""
    name: str = "network"
    """Name in the header of the weights."""
    licence: str = "not stated"
    """Licence of the training data, for the header of the weights."""
    accelerator: str = "auto"
    """cpu, gpu or auto."""
    devices: int = 1
    """Devices of this machine to train on."""
    nodes: int = 1
    """Machines to train on."""
    precision: Precision = "auto"
    """Of convolutions; auto: bfloat16 or half where the hardware has it, else single."""
    threads: int | None = None
    """Threads of the CPU; all of them if not given."""
    workers: int = 0
    """Processes that cut crops beside the training; 0 cuts them in it."""
    minutes: float | None = None
    """Stop at the first checkpoint after so many minutes, to be resumed by the same command."""
