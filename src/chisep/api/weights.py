"""The command `weights`: descriptions of trained weights."""

from __future__ import annotations

from typing import Any

from chisep.networks import weights as network_weights
from chisep.networks.weights import WeightsConfig

_SHIPPED_TRUST = "trained on simulated subjects, not validated in vivo"
_OTHER_TRUST = "not part of chisep; whoever trained them knows on whom, and whether they were validated"


def weight_cards(config: WeightsConfig) -> dict[str, dict[str, Any]]:
    """Describe the packaged weights, or one file.

    Returns
    -------
    dict
        By name: the header of the weights (network, statistics, recipe, training data, metrics, …), number
        of parameters, size in bytes, and how the weights were validated.

    Raises
    ------
    InputError
        If there are no such weights, or they cannot be read.
    """
    known = network_weights.shipped()
    cards = {}
    for name, header in network_weights.describe(config).items():
        path = network_weights.find_weights(config.name or name)
        network = network_weights.load(path).network
        cards[name] = {
            **header,
            "parameters": sum(tensor.numel() for tensor in network.parameters()),
            "bytes": path.stat().st_size,
            "trust": _SHIPPED_TRUST if path == known.get(name) else _OTHER_TRUST,
        }
    return cards
