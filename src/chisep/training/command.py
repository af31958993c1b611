"""The command that trains: a recipe by its name, χ maps where they are missing, then the training itself."""

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
    """A recipe, the data, the machine, and how missing χ maps are made."""

    chi_method: str = "qsmnet"
    """Method that makes the χ maps a network takes in, where the folder --data.qsm lacks them."""
    chi_weights: str = ""
    """For a network as that method: file of its weights; the shipped ones if left out."""
    chi_device: str = "cpu"
    """Where these maps are made: cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        methods.find(self.chi_method, "chi")
        methods.config_for(self.chi_method, self.chi_network)

    @property
    def chi_network(self) -> NetworkOptions:
        """Options of the network that makes χ maps."""
        return NetworkOptions(weights=self.chi_weights)


def config_of(recipe_name: str) -> type[TrainingConfig]:
    """Class of the config of a training, with the recipe of that name and its options as defaults.

    Raises
    ------
    InputError
        If there is no such recipe.
    """
    found = find(recipe_name)

    @dataclass(frozen=True, kw_only=True)
    class RecipeConfig(TrainingConfig):
        recipe: Recipe = found
        name: str = recipe_name

    RecipeConfig.__doc__ = TrainingConfig.__doc__
    return RecipeConfig


def train_network(
    config: TrainingConfig, progress: Progress | None = None, *, bar: bool = False
) -> TrainingResult:
    """Make the χ maps that are missing, then train; arguments and result as of `chisep.training.train.train`.

    Raises
    ------
    InputError
        As `train`, and if χ maps are missing and cannot be made.
    OutputError
        If a folder cannot be written.
    """
    data = config.data
    subjects = data.train + data.validation
    if "qsm" in config.recipe.network.inputs and missing_chi_maps(data, subjects):
        make_chi_maps(
            data, subjects, config.chi_method, config.chi_network, device=config.chi_device, progress=progress
        )
    return train(config, progress, bar=bar)


def is_first_process() -> bool:
    """Whether this is the process that speaks for all that train together."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank == 0
