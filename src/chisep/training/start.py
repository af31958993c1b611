"""Weights that a training starts from."""

from __future__ import annotations

from chisep.errors import InputError
from chisep.networks import weights as network_weights
from chisep.networks.config import build
from chisep.training.recipes import Recipe


def starting_network(weights: str, recipe: Recipe) -> network_weights.LoadedNetwork:
    """Load the initial weights of a training, if the networks have the same shape.

    Batch norms are folded for a network without norms: in training, a batch norm divides by the strength
    of the lesions in a batch, so the network could not learn it.
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
