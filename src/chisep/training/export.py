"""Export of a training: its best weights and their header."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

import chisep
from chisep.io.weights import save_weights
from chisep.networks.config import build
from chisep.networks.training_range import TrainingRange
from chisep.networks.uncertainty import Factors
from chisep.training.callbacks import BEST
from chisep.training.config import TrainConfig
from chisep.training.conformal import sigma_factors
from chisep.training.data import Example, TrainingScan
from chisep.training.recipes import Recipe
from chisep.training.record import described_data, described_start
from chisep.training.trained_range import range_of_protocols, range_of_scans

WEIGHTS = "weights.safetensors"
"""File in the output folder that holds the best weights."""


def export(
    config: TrainConfig,
    statistics: Mapping[str, tuple[float, float]],
    best_loss: float,
    calibration: ConcatDataset[Example],
    scans: Sequence[TrainingScan],
) -> Path:
    """Write the best weights of a training as safetensors, with their header.

    Parameters
    ----------
    config
        The training.
    statistics
        Mean and SD in ppm of each channel.
    best_loss
        Lowest validation loss.
    calibration
        Calibration set of the predicted uncertainty.
    scans
        Training data.
    """
    checkpoint = torch.load(config.out / BEST, map_location="cpu", weights_only=True)
    prefix = "network."
    tensors = {
        name.removeprefix(prefix): _stored(tensor)
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    header = {
        "name": config.name,
        "summary": config.recipe.summary,
        "reference": config.recipe.reference,
        "network": asdict(config.recipe.network),
        "statistics": {name: list(pair) for name, pair in statistics.items()},
        "recipe": {name: value for name, value in asdict(config.recipe).items() if name != "network"},
        "training_data": described_data(config.data),
        **described_start(config),
        "licence_of_data": config.licence,
        "range": msgspec.to_builtins(_range(config.recipe, scans)),
        "best_step": int(checkpoint["global_step"]),
        **_sigma_factors(config.recipe, statistics, tensors, calibration),
        "metrics": {"validation_loss": best_loss},
        "made_by": {"chisep": chisep.__version__, "commit": _commit()},
    }
    return save_weights(config.out / WEIGHTS, tensors, header)


def _range(recipe: Recipe, scans: Sequence[TrainingScan]) -> TrainingRange:
    if recipe.protocol is None:
        return range_of_scans(scans, recipe.network)
    return range_of_protocols(recipe.protocol, recipe.network)


def _stored(tensor: Tensor) -> Tensor:
    """Convert kernels to half precision, whose rounding error of 2⁻¹¹ is negligible; keep other tensors."""
    return tensor.half() if tensor.ndim == 5 else tensor


def _sigma_factors(
    recipe: Recipe,
    statistics: Mapping[str, tuple[float, float]],
    tensors: Mapping[str, Tensor],
    calibration: ConcatDataset[Example],
) -> dict[str, dict[str, Factors]]:
    proximal = recipe.network.proximal
    if proximal is None or not proximal.uncertainty:
        return {}
    network = build(recipe.network, statistics)
    network.load_state_dict(tensors)
    return {"sigma_factors": sigma_factors(network, recipe.network, calibration)}


def _commit() -> str | None:
    """Commit of the source tree that runs; None in an installed package."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        folder = Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    try:
        # An environment within another repository's folder is not of its commits.
        return git("rev-parse", "HEAD") if git("ls-files", Path(__file__).name) else None
    except (OSError, subprocess.CalledProcessError):
        return None
