"""Weights that a training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.networks import weights as network_weights
from chisep.networks.config import INITIAL, NetworkConfig, build
from chisep.networks.unrolled_proximal import UnrolledProximal
from chisep.training.recipes import Recipe


def starting_network(weights: str, recipe: Recipe) -> network_weights.LoadedNetwork:
    """Load the initial weights of a training, if the networks have the same shape.

    Weights without an initial estimate as input also start a network that has one; the weights of the new
    inputs are 0.

    Batch norms are folded for a network without norms: in training, a batch norm divides by the strength
    of the lesions in a batch, so the network could not learn it.
    """
    start = network_weights.load(weights)
    if recipe.network.unet.norm == "none" and start.config.unet.norm == "batch":
        start = network_weights.without_norms(start)
    try:
        network = build(recipe.network, start.statistics)
        network.load_state_dict(_with_initial(start.network.state_dict(), start.config, recipe.network))
    except (InputError, RuntimeError) as error:
        raise InputError(
            "--start",
            found=f"weights of another network ({' '.join(str(error).split())[:300]})",
            expected="weights of a network that has the channels and tensors of the recipe's",
            fix="Start from other weights, or give the options of the recipe that these were trained by.",
        ) from error
    learned = _learns_errors(start.config) and not _learns_errors(recipe.network)
    if isinstance(network, UnrolledProximal) and learned:
        network.reset_errors()
    return replace(start, network=network, config=recipe.network)


def _learns_errors(config: NetworkConfig) -> bool:
    return config.proximal is not None and config.proximal.learned_errors


def _with_initial(
    state: Mapping[str, Tensor], config: NetworkConfig, wanted: NetworkConfig
) -> dict[str, Tensor]:
    """Add inputs of weight 0 to each U-net if only the wanted network has an initial estimate."""
    added = tuple(INITIAL[name] for name in wanted.outputs if name in INITIAL)
    widened = dict(state)
    if wanted.inputs != config.inputs + added:
        return widened
    for name, weight in state.items():
        if name.startswith("unets.") and name.endswith(".down.0.0.weight"):
            new = torch.zeros(len(weight), len(added), *weight.shape[2:], dtype=weight.dtype)
            widened[name] = torch.cat((weight, new), 1)
    return widened
