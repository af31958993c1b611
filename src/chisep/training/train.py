"""A training run: from labelled maps and a recipe to weights, resumable at any moment."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

import chisep
from chisep.errors import InputError
from chisep.io.files import checksum, make_directory, write_json
from chisep.io.weights import load_header, save_weights
from chisep.networks import inference
from chisep.networks import weights as network_weights
from chisep.networks.config import build
from chisep.networks.uncertainty import Factors
from chisep.progress import Progress
from chisep.training.conformal import sigma_factors
from chisep.training.data import (
    BatchSampler,
    Crops,
    Example,
    FoldersConfig,
    Scan,
    load_scans,
    statistics,
    statistics_of_crops,
)
from chisep.training.module import TrainingModule
from chisep.training.protocols import ProtocolCrops, load_heads
from chisep.training.recipes import Recipe

_Fixed = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
Precision = Literal["auto"] | _Fixed
ScansOfTraining = tuple[list[Scan], list[Scan]]
"""Scans to train on, and scans that choose the best epoch."""
WEIGHTS = "weights.safetensors"
"""File in the output folder that holds the best weights."""
_LAST, _BEST, _RECORD, _LOGS = "last.ckpt", "best.ckpt", "training.json", "logs"
_VALIDATION_SEED, _SCALING_SEED = 0x5EED, 0x5CA1E
_STATISTICS_CROPS = 64
"""Crops that means and SDs are taken from where each is scanned by a protocol of its own."""
_EXPECTED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # a training that goes on
    "The '.*_dataloader' does not have many workers",  # crops are cut in less time than a step takes
    ".*treespec.*is deprecated",  # Lightning's own code
)


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


@dataclass(frozen=True)
class TrainingResult:
    """What a training left.

    Parameters
    ----------
    weights
        File of the best weights; None where the training is not finished.
    epochs
        Epochs done.
    best_loss
        Lowest validation loss.
    seconds
        Time of this call.
    """

    weights: Path | None
    epochs: float
    best_loss: float
    seconds: float = field(compare=False)


class _TimeLimit(pl.Callback):
    """Stops at the end of Lightning's epoch, where a checkpoint is; its own timer counts all calls as one."""

    def __init__(self, minutes: float, started: float) -> None:
        self.deadline = started + 60 * minutes

    def on_train_epoch_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Stop all processes together."""
        late = trainer.strategy.broadcast(time.monotonic() > self.deadline)
        trainer.should_stop = trainer.should_stop or late


class _Bar(TQDMProgressBar):
    """Lightning's bar without the number of the log, which means nothing to who trains."""

    def get_metrics(
        self, trainer: pl.Trainer, module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Leave out what means nothing."""
        shown = super().get_metrics(trainer, module)
        shown.pop("v_num", None)
        return shown


@contextmanager
def _quiet() -> Iterator[None]:
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


@_quiet()
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
        Recipe, data, machine.
    progress
        Told which scans are being read.
    bar
        Whether Lightning shows a progress bar.
    read
        Returns scans that many trainings share, of the data and the `BrainBox` of this one and with the
        channels of its network at least; they are read here if left out.

    Returns
    -------
    TrainingResult
        Weights lie in `out` once all epochs are done.

    Raises
    ------
    InputError
        If the folder holds the training of another recipe, or data are missing or unreadable.
    OutputError
        If the folder cannot be written.

    Notes
    -----
    Checkpoints hold weights, optimiser, schedule and step; crop n is a function of the seed and n. So a run
    that was killed goes on from its last checkpoint as if it had not been.
    """
    started = time.monotonic()
    recipe, out = config.recipe, make_directory(config.out)
    start = _fitting(config.start, recipe) if config.start else None
    _remember(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(config)
    scans, validation = read() if read else read_scans(config.data, recipe, progress)
    count = recipe.epochs * recipe.steps_per_epoch * recipe.batch_size
    crops, seen = (
        _crops(recipe, some, number, seed)
        for some, number, seed in (
            (scans, count, recipe.seed),
            (validation, recipe.validation_crops, _VALIDATION_SEED),
        )
    )
    pl.seed_everything(recipe.seed, verbose=False)
    if start is not None:
        found = start.statistics
    elif recipe.protocol is None:
        found = statistics(scans)
    else:
        found = statistics_of_crops(crops, recipe.network, min(count, _STATISTICS_CROPS))
    module = TrainingModule(recipe.network, found, recipe.loss, recipe.optimiser)
    if start is not None:
        module.network.load_state_dict(start.network.state_dict())
    keep = ModelCheckpoint(
        out, filename="best", monitor="val_loss", save_last=False, enable_version_counter=False
    )
    last = ModelCheckpoint(
        out,
        filename="last",
        save_top_k=1,
        monitor=None,
        every_n_epochs=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    callbacks: list[pl.Callback] = [keep, last]
    if averaged := recipe.optimiser.average_steps:
        # Checkpoints then hold the average as the module's state, and the weights of the step beside it.
        callbacks.append(EMAWeightAveraging(decay=averaged / (averaged + 1)))
    if bar:
        callbacks.append(_Bar())
    if config.minutes is not None:
        callbacks.append(_TimeLimit(config.minutes, started))
    parts = recipe.saves_per_epoch
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(accelerator, config.devices * config.nodes),
        precision=_precision(config, accelerator),
        max_epochs=recipe.epochs * parts,
        check_val_every_n_epoch=parts,
        num_sanity_val_steps=0,
        log_every_n_steps=min(25, recipe.steps_per_epoch // parts),
        callbacks=callbacks,
        logger=[CSVLogger(out, name=_LOGS), TensorBoardLogger(out, name=_LOGS, version="tensorboard")],
        use_distributed_sampler=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
    )
    steps = recipe.steps_per_epoch // parts
    sampler = BatchSampler(
        lambda: trainer.current_epoch * steps,
        steps,
        recipe.batch_size,
        trainer.global_rank,
        trainer.world_size,
    )
    checkpoint = out / _LAST
    trainer.fit(
        module,
        DataLoader(crops, batch_sampler=sampler, num_workers=config.workers),
        DataLoader(
            seen, batch_size=max(1, recipe.batch_size // trainer.world_size), num_workers=config.workers
        ),
        ckpt_path=checkpoint if checkpoint.is_file() else None,
        weights_only=True,
    )
    done = trainer.current_epoch / parts
    best = float("nan") if keep.best_model_score is None else float(keep.best_model_score)
    seconds = time.monotonic() - started
    if done < recipe.epochs:
        return TrainingResult(None, done, best, seconds)
    scaling = _scaling_crops(recipe, validation)
    return TrainingResult(export(config, found, best, scaling), done, best, seconds)


def _fitting(weights: str, recipe: Recipe) -> network_weights.LoadedNetwork:
    """Load the weights that a training starts from, if they are of a network like its own.

    Batch norms are folded for a network without norms: in training a batch norm divides by how strong the
    lesions of its crops are, and so hides it from the network.
    """
    start = network_weights.load(weights)
    if recipe.network.unet.norm == "none" and start.config.unet.norm == "batch":
        start = network_weights.without_norms(start)
    try:
        build(recipe.network, start.statistics).load_state_dict(start.network.state_dict())
    except (InputError, RuntimeError) as error:
        raise InputError(
            "--start",
            found=f"weights of another network ({' '.join(str(error).split())[:300]})",
            expected="weights of a network that has the channels and tensors of the recipe's",
            fix="Start from other weights, or give the options of the recipe that these were trained by.",
        ) from error
    return start


def read_scans(data: FoldersConfig, recipe: Recipe, progress: Progress | None = None) -> ScansOfTraining:
    """Read the scans, or the heads, for training and those for validation.

    Parameters
    ----------
    data
        Where they are.
    recipe
        What of them is wanted.
    progress
        Told what is being read.

    Raises
    ------
    InputError
        As `load_scans` and `load_heads`.
    """
    train_scans, validation_scans = (
        load_scans(data, subjects, recipe.network, progress=progress)
        if recipe.protocol is None
        else load_heads(data, subjects, progress)
        for subjects in (data.train, data.validation)
    )
    return train_scans, validation_scans


def _crops(recipe: Recipe, scans: list[Scan], count: int, seed: int) -> Crops | ProtocolCrops:
    if recipe.protocol is None:
        return Crops(scans, recipe.network, recipe.crops, count, seed)
    return ProtocolCrops(scans, recipe.network, recipe.protocol, recipe.crops.size, count, seed)


def _scaling_crops(recipe: Recipe, scans: list[Scan]) -> ConcatDataset[Example]:
    """Make the crops that scale the error which a network tells: as near to whole scans as they can be.

    At the faces of a crop sources outside are missing, so these have twice the edge of those of training. And
    a scan may be well registered and its R2 well fitted or not, which nothing tells a network, so every crop
    is scanned both ways. Else intervals were too wide for good scans. Twice as many as choose the best epoch,
    since tails are rare.
    """
    large = replace(recipe, crops=replace(recipe.crops, size=2 * recipe.crops.size))
    protocols = [recipe.protocol]
    if recipe.protocol is not None:
        protocols.append(recipe.protocol.with_good_r2prime())
    return ConcatDataset(
        [
            _crops(replace(large, protocol=protocol), scans, 2 * recipe.validation_crops, _SCALING_SEED)
            for protocol in protocols
        ]
    )


def export(
    config: TrainConfig,
    found: Mapping[str, tuple[float, float]],
    best_loss: float,
    scaling: ConcatDataset[Example],
) -> Path:
    """Write the best weights of a training as safetensors with all that is known of them.

    Parameters
    ----------
    config
        The training.
    found
        Statistics of the channels.
    best_loss
        Lowest validation loss.
    scaling
        Crops of the validation subjects that scale what the network says of its error.
    """
    checkpoint = torch.load(config.out / _BEST, map_location="cpu", weights_only=True)
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
        "statistics": {name: list(pair) for name, pair in found.items()},
        "recipe": {name: value for name, value in asdict(config.recipe).items() if name != "network"},
        "training_data": _described(config.data),
        **_start(config),
        "licence_of_data": config.licence,
        "best_step": int(checkpoint["global_step"]),
        **_sigma_factors(config.recipe, found, tensors, scaling),
        "metrics": {"validation_loss": best_loss},
        "made_by": {"chisep": chisep.__version__, "commit": _commit()},
    }
    return save_weights(config.out / WEIGHTS, tensors, header)


def _stored(tensor: Tensor) -> Tensor:
    """Halve the space of kernels, whose rounding by 2⁻¹¹ is lost among them; norms and physics stay whole."""
    return tensor.half() if tensor.ndim == 5 else tensor


def _sigma_factors(
    recipe: Recipe,
    found: Mapping[str, tuple[float, float]],
    tensors: Mapping[str, Tensor],
    scaling: ConcatDataset[Example],
) -> dict[str, dict[str, Factors]]:
    proximal = recipe.network.proximal
    if proximal is None or not proximal.uncertainty:
        return {}
    network = build(recipe.network, found)
    network.load_state_dict(tensors)
    return {"sigma_factors": sigma_factors(network, recipe.network, scaling)}


def course(out: Path, quantity: str) -> list[tuple[int, float]]:
    """Read how a logged quantity went, as (step, value).

    Parameters
    ----------
    out
        Folder of the training.
    quantity
        loss, val_loss, alpha, loss_label, …

    Notes
    -----
    Every call of `train` logs into a folder of its own; where a call did steps again that an earlier one
    had lost, the later counts.
    """
    found: dict[int, float] = {}
    for log in sorted((out / _LOGS).glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:])):
        with log.open(encoding="utf-8", newline="") as file:
            found |= {
                int(row["step"]): float(row[quantity]) for row in csv.DictReader(file) if row.get(quantity)
            }
    return sorted(found.items())


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, for comparing; without those that are None.

    A setting that a later version added is None in the trainings of an earlier one.
    """
    read: dict[str, Any] = json.loads(
        json.dumps(facts),
        object_hook=lambda d: {name: value for name, value in d.items() if value is not None},
    )
    return read


def _described(data: FoldersConfig) -> dict[str, Any]:
    name = "unnamed"
    description = data.dataset / "dataset_description.json"
    if description.is_file():
        name = json.loads(description.read_text(encoding="utf-8")).get("Name", name)
    return {"dataset": name, "train": list(data.train), "validation": list(data.validation)}


def _start(config: TrainConfig) -> dict[str, Any]:
    """Tell which weights a training starts from and what these were trained on."""
    if not config.start:
        return {}
    path = network_weights.find_weights(config.start)
    facts = ("training_data", "best_step", "start", "made_by")
    header = load_header(path)
    return {"start": {"sha256": checksum(path), **{name: header.get(name) for name in facts}}}


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


def _accelerator(config: TrainConfig) -> str:
    if torch.cuda.is_available() or config.accelerator == "cpu":
        return config.accelerator
    if config.accelerator == "gpu":
        raise InputError(
            "--accelerator",
            found="gpu, and none that this torch can use",
            expected="cpu or auto",
            fix="Install a torch build for your GPU.",
        )
    return "cpu" if config.accelerator == "auto" else config.accelerator


def _precision(config: TrainConfig, accelerator: str) -> _Fixed:
    if config.precision != "auto":
        return config.precision
    if accelerator == "cpu":
        return "bf16-mixed" if inference.has_fast_bfloat16("cpu") else "32-true"
    return "bf16-mixed" if inference.has_fast_bfloat16("cuda") else "16-mixed"


def _strategy(accelerator: str, devices: int) -> Any:  # noqa: ANN401
    if devices == 1:
        return "auto"
    return pl.strategies.DDPStrategy(process_group_backend="gloo") if accelerator == "cpu" else "ddp"


def _remember(config: TrainConfig) -> None:
    """Write recipe and data beside the checkpoints; refuse a folder that holds the training of others."""
    wanted = plain({**asdict(config.recipe), "data": _described(config.data), **_start(config)})
    record = config.out / _RECORD
    if record.is_file():
        known = plain(json.loads(record.read_text(encoding="utf-8")))
        if known != wanted:
            different = [name for name in {**wanted, **known} if known.get(name) != wanted.get(name)]
            raise InputError(
                config.out,
                found=f"a training with other {', '.join(different)}",
                expected="an empty folder, or the training of the same recipe",
                fix="Give another --out, or delete this one.",
            )
    write_json(record, wanted)
