"""Lightning's callbacks of a training, and its messages."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar

BEST, LAST = "best.ckpt", "last.ckpt"
"""Checkpoints in the output folder: of the lowest validation loss, and of the last save."""
_EXPECTED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # a resumed training
    "The '.*_dataloader' does not have many workers",  # crops are cut in less time than a step takes
    ".*treespec.*is deprecated",  # Lightning's own code
)


class TimeLimit(pl.Callback):
    """Stop at the end of an epoch of Lightning, after its checkpoint; Lightning's own timer adds up calls."""

    def __init__(self, minutes: float, started: float) -> None:
        self.deadline = started + 60 * minutes

    def on_train_epoch_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Stop all processes together."""
        late = trainer.strategy.broadcast(time.monotonic() > self.deadline)
        trainer.should_stop = trainer.should_stop or late


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the number of the log."""

    def get_metrics(
        self, trainer: pl.Trainer, module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Metrics to show, without the number of the log."""
        shown = super().get_metrics(trainer, module)
        shown.pop("v_num", None)
        return shown


def checkpoints(out: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Save the checkpoint of the lowest validation loss, and the last one to resume from."""
    best = ModelCheckpoint(
        out, filename=Path(BEST).stem, monitor="val_loss", save_last=False, enable_version_counter=False
    )
    last = ModelCheckpoint(
        out,
        filename=Path(LAST).stem,
        save_top_k=1,
        monitor=None,
        every_n_epochs=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return best, last


def weight_average(steps: int) -> EMAWeightAveraging:
    """Average weights exponentially over so many steps.

    Checkpoints then hold the average as the state of the module, and the weights of the step beside it.
    """
    return EMAWeightAveraging(decay=steps / (steps + 1))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's hints and expected warnings from the user."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
