"""Fields that a scalar susceptibility does not have: of a susceptibility tensor, and of microstructure.

A tensor in white matter follows from the direction d of its fibres: Δχ (d dᵀ − 1/3). Its field along B0 is in
k-space ⅓ b̂ᵀχb̂ − (k·b̂)(kᵀχb̂)/k² (Liu 2010, 10.1002/mrm.22482).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.physics.dipole import half_spectrum, of_half_spectrum
from chisep.types import Grid, Volume

Components = Float[Tensor, "6 i j k"]
"""Components xx, yy, zz, xy, xz, yz of a symmetric tensor in each voxel, in voxel axes."""

COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes of each component."""


def tensor_field(components_ppm: Components, grid: Grid) -> Volume:
    """Field along B0 of a susceptibility tensor, padded as `Dipole` pads.

    Parameters
    ----------
    components_ppm
        Susceptibility tensor in voxel axes.
    grid
        Voxel size and B0 direction.

    Returns
    -------
    Volume
        Field in ppm.
    """
    shape = [next_fast_len(math.ceil(2 * n), real=True) for n in grid.shape]
    b0 = grid.b0_direction
    magnetization = _times(components_ppm, b0)
    k, odd, square = _frequencies(shape, grid.voxel_mm)
    across = sum(odd_axis * b for odd_axis, b in zip(odd, b0, strict=True))
    along = sum(m * b for m, b in zip(magnetization, b0, strict=True))
    spectrum = half_spectrum(torch.as_tensor(along) / 3, shape)
    for axis in range(3):
        # As in `dipole_kernel`, products of two axes are 0 at a Nyquist frequency, which has both signs.
        product = k[axis] ** 2 * b0[axis] + odd[axis] * (across - odd[axis] * b0[axis])
        spectrum -= half_spectrum(magnetization[axis], shape) * (product / square)
    spectrum[0, 0, 0] = 0.0
    return of_half_spectrum(spectrum, shape, grid.shape).contiguous()


def along_b0(components: Components, grid: Grid) -> Volume:
    """Return b̂ᵀχb̂ of a tensor in each voxel."""
    rows = _times(components, grid.b0_direction)
    return torch.stack([row * b for row, b in zip(rows, grid.b0_direction, strict=True)]).sum(0)


def across_b0(components: Components, grid: Grid) -> Volume:
    """Return the trace less b̂ᵀχb̂: sin²θ of a tensor d dᵀ."""
    return components[:3].sum(0) - along_b0(components, grid)


def _times(components: Components, vector: tuple[float, float, float]) -> list[Tensor]:
    """Multiply the tensor of each voxel by a vector."""
    rows = [torch.zeros_like(components[0]) for _ in range(3)]
    for (a, b), component in zip(COMPONENTS, components, strict=True):
        rows[a] += component * vector[b]
        if a != b:
            rows[b] += component * vector[a]
    return rows


def _frequencies(
    shape: list[int], voxel_mm: tuple[float, float, float]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Frequencies along each axis, the same with 0 at Nyquist, and their sum of squares, 1 at the origin."""
    k, odd = [], []
    for axis, (n, edge) in enumerate(zip(shape, voxel_mm, strict=True)):
        make = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        line = make(n, d=edge)
        odd_line = line.clone()
        if n % 2 == 0:
            odd_line[n // 2] = 0.0
        view = [-1 if a == axis else 1 for a in range(3)]
        k.append(line.reshape(view))
        odd.append(odd_line.reshape(view))
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1.0
    return k, odd, square
