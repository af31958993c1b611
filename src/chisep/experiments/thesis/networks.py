"""Training of the networks of the thesis: QSMnet, its χ maps, then the networks with χ inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from chisep.errors import InputError
from chisep.experiments.common.networks import PRECISION, Clock, trained_weights
from chisep.experiments.thesis.data import ThesisConfig, dataset_of, folders, provenance
from chisep.experiments.thesis.rows import RECIPES, described
from chisep.io.files import make_directory, write_json
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.training.data import FoldersConfig
from chisep.training.export import WEIGHTS
from chisep.training.input_qsm import make_chi_maps, missing_chi_maps
from chisep.training.recipes import Recipe, find
from chisep.training.train import TrainConfig

RecipeName = Literal["qsmnet", "r2s", "thesis-baseline", "thesis-r2s-direct", "thesis-unrolled"]


@dataclass(frozen=True, kw_only=True)
class NetworksConfig(ThesisConfig):
    """Train the networks of the thesis on the four subjects for training."""

    size: Literal["small", "published"] = "small"
    """Recipes for two CPU cores, or those of the papers."""
    only: tuple[RecipeName, ...] = ()
    """Recipes to train; all, in order, if unset."""
    minutes: float | None = None
    """Stop after so many minutes; the same command resumes."""
    epochs: int | None = None
    """Epochs, if other than in the recipe."""
    steps_per_epoch: int | None = None
    """Batches in an epoch, if other than in the recipe."""
    threads: int | None = None
    """CPU threads; all if unset."""
    licence: str = "not stated"
    """Licence of the label maps, for the header of the weights."""

    def recipe(self, name: str) -> Recipe:
        """Recipe with the given options."""
        recipe = find(f"{name}-small" if self.size == "small" else name)
        return replace(
            recipe,
            epochs=self.epochs or recipe.epochs,
            steps_per_epoch=self.steps_per_epoch or recipe.steps_per_epoch,
        )


def train_networks(config: NetworksConfig, progress: Progress | None = None) -> list[Path]:
    """Train the missing networks, until all are done or the time is up.

    Parameters
    ----------
    config
        Networks, folders, time limit.
    progress
        Receives the network that is being trained, or the scan that is being read.

    Returns
    -------
    list of Path
        networks.json (losses, checksums), and the weights of each network that is done.

    Raises
    ------
    InputError
        If the dataset lacks something, a folder holds the training of another recipe, or χ maps are missing
        that QSMnet is yet to make.
    OutputError
        If a result cannot be written.

    Warns
    -----
    ChisepWarning
        If the time was up before all networks were done.
    """
    make_directory(config.out)
    where = folders(dataset_of(config, progress), train=config.train, validation=config.validation)
    clock = Clock(config.minutes)
    chosen = [name for name in RECIPES if not config.only or RECIPES[name] in config.only]
    for done, name in enumerate(chosen):
        recipe = config.recipe(RECIPES[name])
        if progress is not None:
            progress(f"training {RECIPES[name]}", done, len(chosen))
        if "qsm" in recipe.network.inputs:
            _make_qsmnet_maps(config, where, progress)
        trained = trained_weights(
            TrainConfig(
                out=config.out / RECIPES[name],
                data=where,
                recipe=recipe,
                name=name,
                licence=config.licence,
                threads=config.threads,
            ),
            clock,
            progress,
        )
        if trained is None:
            clock.warn(f"{', '.join(RECIPES[n] for n in chosen[done:])} not done")
            break
        if name == "qsmnet":
            _make_qsmnet_maps(config, where, progress)
    if progress is not None:
        progress("networks", len(chosen), len(chosen))
    return _record(config)


def _make_qsmnet_maps(config: NetworksConfig, where: FoldersConfig, progress: Progress | None) -> None:
    """χ maps of all scans by the QSMnet trained here."""
    weights = config.out / RECIPES["qsmnet"] / WEIGHTS
    if weights.is_file():
        make_chi_maps(
            where,
            config.subjects,
            "qsmnet",
            NetworkOptions(weights=str(weights), precision=PRECISION),
            progress=progress,
        )
        return
    missing = missing_chi_maps(where, config.subjects)
    if missing:
        raise InputError(
            missing[0],
            found="no χ map",
            expected="χ maps of QSMnet, which go into this network",
            fix="Train qsmnet first (leave --only out, or add it).",
        )


def _record(config: NetworksConfig) -> list[Path]:
    """Write the summary of the trained networks."""
    done = [name for name in RECIPES if (config.out / RECIPES[name] / WEIGHTS).is_file()]
    record = {**provenance(config), "Networks": described(done, config.out)}
    return [
        write_json(config.out / "networks.json", record),
        *(config.out / RECIPES[name] / WEIGHTS for name in done),
    ]
