"""How far off a network is, against what it says: factors from its scales to standard deviations.

Conformal scaling (Angelopoulos 2021, arXiv 2107.07511): on examples that were not trained on, the 90 %
quantile of |error| / scale is measured, so that 1.645 standard deviations hold the truth in 90 % of voxels,
whatever the distribution of errors is. Scans of little and of much noise have factors of their own (Mondrian
conformal prediction, Vovk 2003), else intervals hold it too often in good scans and not often enough in poor
ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from chisep.networks.config import Network, NetworkConfig
from chisep.networks.inference import has_fast_bfloat16
from chisep.networks.uncertainty import Factors, noise_level, noise_of
from chisep.training.data import Example

HELD = 0.9
"""Share of voxels whose truth the interval is to hold."""
SIGMAS = 1.6449
"""Standard deviations of a normal distribution that hold this share."""
_VALUES_PER_CROP = 20_000
_GROUPS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Quantiles of the noise of scans between which they have one factor."""


@torch.no_grad()
def sigma_factors(
    network: Network, config: NetworkConfig, crops: ConcatDataset[Example]
) -> dict[str, Factors]:
    """Measure the factors from scales to standard deviations, by output and noise.

    Parameters
    ----------
    network
        Trained; put into evaluation mode.
    config
        What it is.
    crops
        Examples that were not trained on.

    Returns
    -------
    dict
        Empty for a network that says nothing of its error.
    """
    network.eval()
    outputs, noise_name = config.outputs, noise_of(config)
    ratios: dict[str, list[Tensor]] = {name: [] for name in outputs}
    levels: list[Tensor] = []
    for number in range(len(crops)):
        example = crops[number]
        batch = example.as_batch()
        dipole = batch.dipole(config.padding(whole=False))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu")):
            made = network.intermediate_estimates(batch.inputs, batch.mask, batch.phi(dipole))[-1][0].float()
        if made.shape[0] == len(outputs):
            return {}
        inside = example.mask[0]
        # Every crop counts by its size, and a large one need not be sorted whole.
        some = slice(None, None, max(1, int(inside.sum()) // _VALUES_PER_CROP))
        for channel, name in enumerate(outputs):
            error = (made[channel] - example.targets[channel]).abs()
            ratio = error / made[len(outputs) + channel].clamp_min(1e-9)
            ratios[name].append(ratio[inside][some])
        if noise_name is not None:
            level = noise_level(example.inputs[config.inputs.index(noise_name)][inside])
            levels.append(torch.full_like(ratios[outputs[0]][-1], level))
    known = torch.cat(levels) if levels else None
    return {name: factors_of(torch.cat(some), known) for name, some in ratios.items()}


def factors_of(ratio: Tensor, level_ppm: Tensor | None) -> Factors:
    """Measure the factors of one output.

    Parameters
    ----------
    ratio
        |error| / scale of some voxels.
    level_ppm
        How noisy the scan of each is; None for one factor.
    """
    if level_ppm is None:
        return _factor(ratio)
    edges = np.unique(np.quantile(level_ppm.numpy(), _GROUPS))
    group = torch.bucketize(level_ppm.double(), torch.from_numpy(edges[1:-1]))
    pairs = {
        float(level_ppm[group == number].median()): _factor(ratio[group == number])
        for number in range(max(1, len(edges) - 1))
        if bool((group == number).any())
    }
    return [list(pair) for pair in sorted(pairs.items())]


def _factor(ratio: Tensor) -> float:
    return float(np.quantile(ratio.numpy(), HELD)) / SIGMAS
