"""A training: from labelled maps and a recipe to weights, resumable at any checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from chisep.io.files import make_directory
from chisep.networks.config import Network, Statistics
from chisep.networks.unrolled_proximal import UnrolledProximal
from chisep.networks.weights import LoadedNetwork
from chisep.progress import Progress
from chisep.training.callbacks import LAST, ProgressBar, TimeLimit, checkpoints, quiet, weight_average
from chisep.training.config import TrainConfig
from chisep.training.data import BatchSampler, RandomCrops, TrainingScan, statistics, statistics_of_crops
from chisep.training.examples import ScansOfTraining, calibration_crops, crops_of, read_scans
from chisep.training.export import export
from chisep.training.hardware import choose_accelerator, choose_precision, choose_strategy
from chisep.training.history import LOGS, history
from chisep.training.module import TrainingModule
from chisep.training.recipes import Recipe
from chisep.training.record import check_record
from chisep.training.start import starting_network

_VALIDATION_SEED = 0x5EED
_STATISTICS_CROPS = 64
"""Crops that means and SDs are computed from, if protocols are random."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Parameters
    ----------
    weights
        File of the best weights; None if the training is not finished.
    epochs
        Number of epochs done.
    best_loss
        Lowest validation loss.
    seconds
        Duration of this call.
    """

    weights: Path | None
    epochs: float
    best_loss: float
    seconds: float = field(compare=False)


# Long because every option of the config takes effect here, in this order.
@quiet()
def train(
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    bar: bool = False,
    read: Callable[[], ScansOfTraining] | None = None,
) -> TrainingResult:
    """Train until the recipe's epochs are done, or the time is up.

    Parameters
    ----------
    config
        Recipe, data and machine.
    progress
        Receives the scan that is being read.
    bar
        Whether Lightning shows a progress bar.
    read
        Returns scans that several trainings share, from the same data and `BrainBox` and with at least the
        channels of this network; the scans are read here if left out.

    Returns
    -------
    TrainingResult
        The weights are in `out` once all epochs are done.

    Raises
    ------
    InputError
        If the folder holds the training of another recipe, or data are missing or unreadable.
    OutputError
        If the folder cannot be written.

    Notes
    -----
    Checkpoints contain weights, optimiser, schedule and step, and crop n depends on the seed and n only. So
    an interrupted training that resumes from its last checkpoint equals one without interruption.
    """
    started = time.monotonic()
    recipe, out = config.recipe, make_directory(config.out)
    start = starting_network(config.start, recipe) if config.start else None
    check_record(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = choose_accelerator(config.accelerator)
    scans, validation = read() if read else read_scans(config.data, recipe, progress)
    count = recipe.epochs * recipe.steps_per_epoch * recipe.batch_size
    crops = crops_of(recipe, scans, count, recipe.seed)
    validation_crops = crops_of(recipe, validation, recipe.validation_crops, _VALIDATION_SEED)
    pl.seed_everything(recipe.seed, verbose=False)
    channel_statistics = _statistics(recipe, start, scans, crops)
    module = TrainingModule(recipe.network, channel_statistics, recipe.loss, recipe.optimiser)
    if start is not None:
        module.network.load_state_dict(start.network.state_dict())
        _reset_learned_errors(module.network, start)
    best, last = checkpoints(out)
    callbacks: list[pl.Callback] = [best, last]
    if recipe.optimiser.average_steps:
        callbacks.append(weight_average(recipe.optimiser.average_steps))
    if bar:
        callbacks.append(ProgressBar())
    if config.minutes is not None:
        callbacks.append(TimeLimit(config.minutes, started))
    trainer = _trainer(config, accelerator, callbacks, bar=bar)
    _fit(trainer, module, config, crops, validation_crops)
    done = trainer.current_epoch / recipe.saves_per_epoch
    best_loss = float("nan") if best.best_model_score is None else float(best.best_model_score)
    seconds = time.monotonic() - started
    if done < recipe.epochs:
        return TrainingResult(None, done, best_loss, seconds)
    calibration = calibration_crops(recipe, validation)
    return TrainingResult(
        export(config, channel_statistics, best_loss, calibration, scans), done, best_loss, seconds
    )


def _reset_learned_errors(network: Network, start: LoadedNetwork) -> None:
    """Reset errors beyond the noise that the starting weights learned and this training keeps constant."""
    if not isinstance(network, UnrolledProximal) or not isinstance(start.network, UnrolledProximal):
        return
    if start.network.config.learned_errors and not network.config.learned_errors:
        network.reset_errors()


def _statistics(
    recipe: Recipe, start: LoadedNetwork | None, scans: list[TrainingScan], crops: RandomCrops
) -> Statistics:
    """Mean and SD of each channel: of the weights that the training starts from, else of its data."""
    if start is not None:
        return start.statistics
    if recipe.protocol is None:
        return statistics(scans)
    return statistics_of_crops(crops, recipe.network, min(len(crops), _STATISTICS_CROPS))


def _trainer(config: TrainConfig, accelerator: str, callbacks: list[pl.Callback], *, bar: bool) -> pl.Trainer:
    """Lightning's trainer; one of its epochs ends at every checkpoint of the recipe's epoch."""
    recipe, out = config.recipe, config.out
    saves = recipe.saves_per_epoch
    return pl.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=choose_strategy(accelerator, config.devices * config.nodes),
        precision=choose_precision(config.precision, accelerator),
        max_epochs=recipe.epochs * saves,
        check_val_every_n_epoch=saves,
        num_sanity_val_steps=0,
        log_every_n_steps=min(25, recipe.steps_per_epoch // saves),
        callbacks=callbacks,
        logger=[CSVLogger(out, name=LOGS), TensorBoardLogger(out, name=LOGS, version="tensorboard")],
        use_distributed_sampler=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
    )


def _fit(
    trainer: pl.Trainer,
    module: TrainingModule,
    config: TrainConfig,
    crops: RandomCrops,
    validation_crops: RandomCrops,
) -> None:
    """Train from the last checkpoint, if there is one."""
    recipe = config.recipe
    steps = recipe.steps_per_epoch // recipe.saves_per_epoch
    sampler = BatchSampler(
        lambda: trainer.current_epoch * steps,
        steps,
        recipe.batch_size,
        trainer.global_rank,
        trainer.world_size,
    )
    validation_batch = max(1, recipe.batch_size // trainer.world_size)
    checkpoint = config.out / LAST
    trainer.fit(
        module,
        DataLoader(crops, batch_sampler=sampler, num_workers=config.workers),
        DataLoader(validation_crops, batch_size=validation_batch, num_workers=config.workers),
        ckpt_path=checkpoint if checkpoint.is_file() else None,
        weights_only=True,
    )


__all__ = ["ScansOfTraining", "TrainConfig", "TrainingResult", "history", "read_scans", "train"]
