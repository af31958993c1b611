"""How far off a network is, against what it says: factors from its scales to standard deviations.

Conformal scaling (Angelopoulos 2021, arXiv 2107.07511): on examples that were not trained on, the 90 %
quantile of |error| / scale is measured, so that 1.645 standard deviations hold the truth in 90 % of voxels,
whatever the distribution of errors is.
"""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from chisep.models.network import Network, NetworkConfig
from chisep.networks import has_fast_bfloat16
from chisep.training.data import Example

HELD = 0.9
"""Share of voxels whose truth the interval is to hold."""
SIGMAS = 1.6449
"""Standard deviations of a normal distribution that hold this share."""
_VALUES_PER_CROP = 20_000


@torch.no_grad()
def sigma_factors(
    network: Network, config: NetworkConfig, crops: Dataset[Example], count: int
) -> dict[str, float]:
    """Measure the factors from scales to standard deviations, by output.

    Parameters
    ----------
    network
        Trained; put into evaluation mode.
    config
        What it is.
    crops
        Examples that were not trained on.
    count
        How many of them.

    Returns
    -------
    dict
        Empty for a network that says nothing of its error.
    """
    network.eval()
    outputs = config.outputs
    ratios: dict[str, list[torch.Tensor]] = {name: [] for name in outputs}
    for number in range(count):
        example = crops[number]
        batch = example.as_batch()
        dipole = batch.dipole(config.padding(whole=False))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu")):
            made = network.iterates(batch.inputs, batch.mask, batch.phi(dipole))[-1][0].float()
        if made.shape[0] == len(outputs):
            return {}
        for channel, name in enumerate(outputs):
            error = (made[channel] - example.targets[channel]).abs()
            ratio = (error / made[len(outputs) + channel].clamp_min(1e-9))[example.mask[0]]
            # Every crop counts by its size, and a large one need not be sorted whole.
            ratios[name].append(ratio[:: max(1, ratio.numel() // _VALUES_PER_CROP)])
    return {name: float(torch.cat(some).quantile(HELD)) / SIGMAS for name, some in ratios.items()}
