"""Networks with random weights, for tests of what goes on around networks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from chisep.io.weights import save_weights
from chisep.methods import METHODS
from chisep.networks.config import MEASURED_ROWS, NOISE, PHI_ROWS, SOURCES, NetworkConfig, build
from chisep.networks.inference import NetworkOptions
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.networks.unrolled_proximal import UnrolledProximalConfig

_UNET = UNetConfig((4, 8))
CONFIGS = {
    "qsmnet": NetworkConfig(("field",), ("chi",), _UNET),
    "r2s": NetworkConfig(("r2star",), ("r2prime",), _UNET),
    "chi-sepnet-r2p": NetworkConfig(PHI_ROWS, SOURCES, _UNET),
    "chi-sepnet-r2s-direct": NetworkConfig(("qsm", "r2star", "field"), SOURCES, _UNET),
    "unrolled-thesis": NetworkConfig(
        PHI_ROWS, SOURCES, _UNET, UnrolledGradientConfig(iterations=2, alpha=0.4)
    ),
    "unrolled-qsm": NetworkConfig(
        ("field", "field_sigma"), ("chi",), _UNET, proximal=UnrolledProximalConfig(passes=2)
    ),
    "unrolled": NetworkConfig(
        (*MEASURED_ROWS, *NOISE.values()), SOURCES, _UNET, proximal=UnrolledProximalConfig(passes=2)
    ),
}
"""What the weights are that chisep ships by these names, but for their size."""
STATISTICS = {
    "field": (0.0, 0.01),
    "qsm": (0.0, 0.03),
    "chi": (0.0, 0.03),
    "r2prime": (0.05, 0.03),
    "r2star": (0.15, 0.05),
    "chi_pos": (0.03, 0.03),
    "chi_neg": (0.02, 0.01),
}
DATA = "Heads that never were"
LICENCE = "CC0-1.0"


def save_untrained(folder: Path, name: str, seed: int = 0) -> Path:
    """Write random weights with a header as `chisep train` writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(CONFIGS[name], STATISTICS)
    header = {
        "name": name,
        "network": asdict(CONFIGS[name]),
        "statistics": STATISTICS,
        "training_data": {"dataset": DATA, "train": ["01", "02"], "validation": ["03"]},
        "licence_of_data": LICENCE,
        "metrics": {"validation_loss": 1.25},
    }
    return save_weights(folder / f"{name}.safetensors", network.state_dict(), header)


def options_of(folder: Path) -> dict[str, NetworkOptions]:
    """Write random weights for every method that is a network, and return what makes it use them."""
    files = {name: str(save_untrained(folder, name)) for name in CONFIGS}
    return {
        method.name: NetworkOptions(
            files[method.weights[0]], chi_weights=files["qsmnet"], rate_weights=files["r2s"]
        )
        for method in METHODS.values()
        if method.is_network
    }
