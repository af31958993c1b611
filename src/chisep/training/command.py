"""Command `chisep train`: look up the recipe, compute missing χ maps, train."""

from __future__ import annotations

from dataclasses import dataclass

from pytorch_lightning.utilities import rank_zero_only

from chisep import methods
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.training.input_qsm import make_chi_maps, missing_chi_maps
from chisep.training.recipes import Recipe, find
from chisep.training.train import TrainConfig, TrainingResult, train


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """Recipe, data and machine of a training, and the method of missing χ maps."""

    chi_method: str = "qsmnet"
    """QSM method for χ maps that the network needs and the folder --data.qsm lacks."""
    chi_weights: str = ""
    """If that method is a network: file of its weights; the packaged ones if unset."""
    chi_device: str = "cpu"
    """Device that computes these maps: cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        methods.find(self.chi_method, "chi")
        methods.config_for(self.chi_method, self.chi_network)

    @property
    def chi_network(self) -> NetworkOptions:
        """Options of the network for χ maps."""
        return NetworkOptions(weights=self.chi_weights)


def config_of(recipe_name: str) -> type[TrainingConfig]:
    """Config class of a training, with the options of a recipe as defaults.

    Raises
    ------
    InputError
        If there is no such recipe.
    """
    default = find(recipe_name)

    @dataclass(frozen=True, kw_only=True)
    class RecipeConfig(TrainingConfig):
        recipe: Recipe = default
        name: str = recipe_name

    RecipeConfig.__doc__ = TrainingConfig.__doc__
    return RecipeConfig


def train_network(
    config: TrainingConfig, progress: Progress | None = None, *, bar: bool = False
) -> TrainingResult:
    """Compute missing χ maps, then train; arguments and result as of `chisep.training.train.train`.

    Raises
    ------
    InputError
        As `train`, and if missing χ maps cannot be computed.
    OutputError
        If a folder cannot be written.
    """
    data = config.data
    subjects = data.train + data.validation
    of_scans = config.recipe.protocol is None  # other crops get their χ map when they are drawn
    if of_scans and "qsm" in config.recipe.network.inputs and missing_chi_maps(data, subjects):
        make_chi_maps(
            data, subjects, config.chi_method, config.chi_network, device=config.chi_device, progress=progress
        )
    return train(config, progress, bar=bar)


def is_first_process() -> bool:
    """Whether this is the first of the parallel processes of a training, which prints."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank == 0
