"""Conformal calibration of the predicted uncertainty: factors from Laplace scales to standard deviations.

Conformal scaling (Angelopoulos and Bates 2021, arXiv 2107.07511): the 90 % quantile of |error| / scale is
measured on a calibration set, so that the interval of ±1.645 standard deviations has a coverage of 90 %
of voxels for any distribution of errors. σ is then this half-width divided by 1.645, and not exactly the
standard deviation of the error. Noise levels have factors of their own (Mondrian conformal prediction,
Vovk 2003); with one factor, coverage is too high in scans of low noise and too low in scans of high
noise.
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

COVERAGE = 0.9
"""Nominal coverage: share of voxels whose true value lies in the prediction interval."""
SIGMAS = 1.6449
"""Half-width of an interval of this coverage, in standard deviations of a normal distribution."""
_VALUES_PER_CROP = 20_000
_GROUPS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Quantiles of the noise level that bound the groups of scans with one factor each."""


@torch.no_grad()
def sigma_factors(
    network: Network, config: NetworkConfig, crops: ConcatDataset[Example]
) -> dict[str, Factors]:
    """Measure the conformal factors of each output, by noise level.

    Parameters
    ----------
    network
        Trained network; is put into evaluation mode.
    config
        Its config.
    crops
        Calibration set.

    Returns
    -------
    dict
        Empty for a network without predicted uncertainty.
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
        # Every crop has a weight by its size; a subset of its voxels is enough.
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
    """Measure the conformal factors of one output.

    Parameters
    ----------
    ratio
        |error| / scale of some voxels.
    level_ppm
        Noise level of the scan of each voxel; None for one factor.
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
    return float(np.quantile(ratio.numpy(), COVERAGE)) / SIGMAS
