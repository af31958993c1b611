"""Smoothed phase offset of the receiver (MCPC-3D-S: Eckstein 2018, 10.1002/mrm.26963)."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

from chisep.preprocessing.masked_values import volume_of
from chisep.preprocessing.unwrapping import wrap
from chisep.types import Grid

_SMOOTHING_PASSES = 2


def smoothed_phase(phasor: Tensor, mask: Tensor, sigma_mm: float, grid: Grid) -> Tensor:
    """Smooth a phase inside the mask as complex values, weighted by magnitude.

    Smoothing biases a slope at the edge of the mask, where neighbours are missing on one side. Subtracting a
    polynomial first, and smoothing the residual once more, avoids most of that bias.
    """
    sigma = [sigma_mm / edge for edge in grid.voxel_mm]
    smooth = _quadratic(volume_of(phasor, mask), mask, grid)
    for _ in range(_SMOOTHING_PASSES):
        remainder = volume_of(phasor * torch.polar(torch.ones_like(smooth), -smooth), mask).cpu().numpy()
        blurred = ndimage.gaussian_filter(remainder, sigma, mode="nearest", truncate=3.0)
        smooth = smooth + torch.from_numpy(blurred).to(mask.device)[mask].angle()
    return wrap(smooth)


def _quadratic(phasor: Tensor, mask: Tensor, grid: Grid) -> Tensor:
    """Fit a second-order polynomial to the phase differences between neighbours, by least squares.

    Differences, unlike the phase itself, are below π and need no unwrapping.
    """
    axes = [
        torch.arange(n, device=mask.device).mul(v / 100)
        for n, v in zip(mask.shape, grid.voxel_mm, strict=True)
    ]
    x, y, z = torch.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij")
    terms = (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    normal = torch.zeros(9, 9, dtype=torch.float64, device=mask.device)
    right = torch.zeros(9, dtype=torch.float64, device=mask.device)
    for axis in range(3):
        n = mask.shape[axis] - 1
        both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = (phasor.narrow(axis, 1, n) * phasor.narrow(axis, 0, n).conj())[both]
        weight = step.abs().double()
        design = torch.stack([term.diff(dim=axis)[both] for term in terms]).double()
        normal += (design * weight) @ design.T
        right += design @ (weight * step.angle())
    # A mask one voxel thin has no differences along an axis: the pseudo-inverse leaves its terms at 0.
    coefficients = torch.linalg.pinv(normal, hermitian=True) @ right
    phase = torch.zeros_like(phasor.real[mask])
    for coefficient, term in zip(coefficients, terms, strict=True):
        phase += coefficient.to(phase.dtype) * term[mask]
    return phase
