"""Smoothed phase offset of the receiver (MCPC-3D-S: Eckstein 2018, 10.1002/mrm.26963)."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

from chisep.preprocessing.masked_values import MaskedVoxels
from chisep.preprocessing.unwrapping import wrap
from chisep.types import Grid

_SMOOTHING_PASSES = 2
_TERMS_OF_AXIS = ((0, 3, 6, 7), (1, 4, 6, 8), (2, 5, 7, 8))
"""Terms of the polynomial (x, y, z, x², y², z², xy, xz, yz) that change along each axis."""


def smoothed_phase(phasor: Tensor, mask: Tensor, sigma_mm: float, grid: Grid) -> Tensor:
    """Smooth a phase inside the mask as complex values, weighted by magnitude.

    Smoothing biases a slope at the edge of the mask, where neighbours are missing on one side. Subtracting a
    polynomial first, and smoothing the residual once more, avoids most of that bias.
    """
    inside = MaskedVoxels(mask)
    sigma = [sigma_mm / edge for edge in grid.voxel_mm]
    smooth = _quadratic(phasor, inside, grid)
    for _ in range(_SMOOTHING_PASSES):
        remainder = inside.volume(phasor * torch.polar(torch.ones_like(smooth), -smooth))
        blurred = ndimage.gaussian_filter(remainder.cpu().numpy(), sigma, mode="nearest", truncate=3.0)
        smooth = smooth + inside.values(torch.from_numpy(blurred).to(phasor.device)).angle()
    return wrap(smooth)


def _quadratic(phasor: Tensor, inside: MaskedVoxels, grid: Grid) -> Tensor:
    """Fit a second-order polynomial to the phase differences between neighbours, by least squares.

    Differences, unlike the phase itself, are below π and need no unwrapping.
    """
    axes = [
        torch.arange(n, device=phasor.device).mul(v / 100)
        for n, v in zip(inside.mask.shape, grid.voxel_mm, strict=True)
    ]
    x, y, z = (
        (axis - axis.mean()).index_select(0, position)
        for axis, position in zip(axes, inside.positions(), strict=True)
    )
    terms = torch.stack((x, y, z, x * x, y * y, z * z, x * y, x * z, y * z))
    normal = torch.zeros(9, 9, dtype=torch.float64, device=phasor.device)
    right = torch.zeros(9, dtype=torch.float64, device=phasor.device)
    for axis, varying in enumerate(_TERMS_OF_AXIS):
        a, b = inside.neighbours(axis)
        step = phasor.index_select(0, b) * phasor.index_select(0, a).conj()
        weight = step.abs().double()
        # The other terms are equal in both neighbours.
        design = torch.stack(
            [terms[row].index_select(0, b).sub_(terms[row].index_select(0, a)) for row in varying]
        ).double()
        rows = torch.tensor(varying, device=phasor.device)
        normal[rows[:, None], rows] += (design * weight) @ design.T
        right[rows] += design @ (weight * step.angle())
    # A mask one voxel thin has no differences along an axis: the pseudo-inverse leaves its terms at 0.
    coefficients = torch.linalg.pinv(normal, hermitian=True) @ right
    phase = torch.zeros_like(x)
    for coefficient, term in zip(coefficients, terms, strict=True):
        phase += coefficient.to(phase.dtype) * term
    return phase
