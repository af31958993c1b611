"""Config of one training: recipe, data, machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chisep.training.data import FoldersConfig
from chisep.training.hardware import Precision
from chisep.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Recipe, data and machine of a training."""

    out: Path
    """Folder for checkpoints, logs and weights; an interrupted training in it is resumed."""
    data: FoldersConfig
    """Labelled dataset."""
    recipe: Recipe
    """Network and training settings."""
    start: str = ""
    """Initial weights, of a network of the same shape: a file, or the name of packaged weights; if unset:
    random weights. The statistics of the channels are kept."""
    name: str = "network"
    """Name in the header of the weights."""
    licence: str = "not stated"
    """Licence of the training data, for the header of the weights."""
    accelerator: str = "auto"
    """cpu, gpu or auto."""
    devices: int = 1
    """Number of devices of this machine."""
    nodes: int = 1
    """Number of machines."""
    precision: Precision = "auto"
    """Precision of convolutions; auto: bfloat16 or half where the hardware has it, else single."""
    threads: int | None = None
    """CPU threads; all if not given."""
    workers: int = 0
    """Worker processes that cut crops; 0 cuts them in the main process."""
    minutes: float | None = None
    """Stop at the first checkpoint after so many minutes; the same command resumes."""
