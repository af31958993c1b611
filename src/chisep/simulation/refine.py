"""Refinement of labels to finer voxels, and averaging of maps over the voxels of a scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int16
from scipy import ndimage
from torch import Tensor

from chisep.simulation.labelmap import Labels
from chisep.types import Volume

Weights = Float[Tensor, "new old"]
"""Weight of each old voxel along one axis in each new one."""
NewLabels = Int16[np.ndarray, "i2 j2 k2"]
"""One label per voxel of the new grid."""
NewVolume = Float[Tensor, "i2 j2 k2"]
"""One value per voxel of the new grid."""

_SIGMA_VOXELS = 0.6
"""Smoothing of an indicator: enough to round the stairs, too little to lose a sheet of one voxel."""
_REACH = 3
"""Voxels around a label in which its indicator is not 0."""


def refined(labels: Labels, factors: Sequence[int]) -> NewLabels:
    """Divide every voxel into finer ones with smooth surfaces between labels.

    Each label's indicator is smoothed (Gaussian, 0.6 voxels) and interpolated linearly; the largest wins.

    Parameters
    ----------
    labels
        Labels.
    factors
        Fine voxels per voxel along each axis.

    Returns
    -------
    NewLabels
        `factors` times as many voxels from the same corner; the same array where all factors are 1.
    """
    if max(factors) == 1:
        return labels
    shape = [n * factor for n, factor in zip(labels.shape, factors, strict=True)]
    best, winner = torch.zeros(shape), torch.zeros(shape, dtype=torch.int16)
    numbers, compact = np.unique(labels, return_inverse=True)
    # Labels are numbered from 1, so that each has a bounding box.
    numbered = (compact + 1).astype(np.int32).reshape(labels.shape)
    matrices = [_smoothing(n, factor) for n, factor in zip(labels.shape, factors, strict=True)]
    boxes = ndimage.find_objects(numbered)
    for place, box in enumerate(boxes):
        old = [
            slice(max(s.start - _REACH, 0), min(s.stop + _REACH, n))
            for s, n in zip(box, labels.shape, strict=True)
        ]
        new = tuple(slice(s.start * f, s.stop * f) for s, f in zip(old, factors, strict=True))
        indicator = torch.from_numpy(numbered[tuple(old)] == place + 1).float()
        value = pool(indicator, [m[n, o] for m, n, o in zip(matrices, new, old, strict=True)])
        wins = value > best[new]
        best[new] = torch.maximum(best[new], value)
        winner[new][wins] = int(numbers[place])
    return np.asarray(winner.numpy())


def upsampled(volume: Volume, factors: Sequence[int]) -> NewVolume:
    """Interpolate a map linearly on finer voxels from the same corner."""
    if max(factors) == 1:
        return volume
    return pool(volume, [_linear(n, factor) for n, factor in zip(volume.shape, factors, strict=True)])


def overlaps(
    n: int, edge_mm: float, n_new: int, edge_new_mm: float, start_mm: float | None = None
) -> Weights:
    """Weights that average old voxels over new ones along one axis: how much of a new one lies in an old one.

    Parameters
    ----------
    n, edge_mm
        Number and edge of the old voxels.
    n_new, edge_new_mm
        Number and edge of the new ones.
    start_mm
        Where the old ones start, from where the new ones do; nothing is around them. If not given, both
        start together and the last old voxel is continued to where the new ones end.
    """
    old = (start_mm or 0.0) + torch.arange(n + 1, dtype=torch.float64) * edge_mm
    if start_mm is None:
        old[-1] = max(float(old[-1]), n_new * edge_new_mm)
    new = torch.arange(n_new + 1, dtype=torch.float64) * edge_new_mm
    upper = torch.minimum(new[1:, None], old[None, 1:])
    lower = torch.maximum(new[:-1, None], old[None, :-1])
    return ((upper - lower).clamp(min=0) / edge_new_mm).float()


def pool(volume: Volume, weights: Sequence[Tensor]) -> NewVolume:
    """Apply weights along each axis of a volume."""
    along_i, along_j, along_k = weights
    partly = torch.matmul(along_j, torch.tensordot(volume, along_k.T, dims=1))
    pooled: Tensor = torch.tensordot(along_i, partly, dims=1)
    return pooled


def _linear(n: int, factor: int) -> Weights:
    """Linear interpolation at the centres of fine voxels; constant beyond the outer centres."""
    at = ((torch.arange(n * factor) + 0.5) / factor - 0.5).clamp(0, n - 1)
    return (1 - (at[:, None] - torch.arange(n)[None]).abs()).clamp(min=0)


def _smoothing(n: int, factor: int) -> Weights:
    """Smoothing and interpolation weights in one matrix; every row has sum 1."""
    distance = torch.arange(n)[:, None] - torch.arange(n)[None]
    gaussian = torch.exp(-0.5 * (distance / _SIGMA_VOXELS) ** 2) * (distance.abs() <= _REACH)
    return _linear(n, factor) @ (gaussian / gaussian.sum(1, keepdim=True))
