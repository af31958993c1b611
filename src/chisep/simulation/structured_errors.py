"""Structured errors of a local field: what neither thermal noise nor a source in the brain explains.

In a real scan (one public 3 T volunteer, 1.06 mm) the dipole field of a COSMOS map leaves 6.2 ppb of the
local field unexplained. This remainder has most of its power below one voxel, some in every coarser band, and
more near the cone on which the dipole kernel is 0 than near its equator.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from chisep.physics.dipole import half_spectrum, of_half_spectrum
from chisep.types import Grid, MaskVolume, Volume

BAND_EDGES_VOXELS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations in voxels of the Gaussian filters between the bands."""
BAND_SD_PPB = (4.2, 1.3, 1.2, 1.3, 1.0, 0.3)
"""Standard deviation of the error in each band, from fine to coarse; only their ratios are used."""
_COS2 = (0.0, 0.15, 0.25, 0.42, 0.6, 1.0)
_POWER = (0.5, 1.0, 1.7, 1.7, 1.0, 1.0)
"""Power by cos² of the angle to B0: 1.6 to 1.8 times the mean at 0.25 to 0.42, half of it at the equator."""


def structured_field_error(mask: MaskVolume, grid: Grid, rng: np.random.Generator) -> Volume:
    """Draw a band-limited random field with the spectrum of structured field errors.

    Parameters
    ----------
    mask
        Brain mask, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    rng
        Random numbers.

    Returns
    -------
    Volume
        Shape (i, j, k), 0 outside the mask, mean square 1 in it.
    """
    white = torch.from_numpy(rng.standard_normal(grid.shape, dtype=np.float32))
    spectrum = half_spectrum(white, grid.shape)
    square, cos2 = frequencies(grid)
    spectrum *= power_by_angle(cos2).sqrt_()
    error = torch.zeros(grid.shape)
    for number, deviation in enumerate(BAND_SD_PPB):
        band = of_half_spectrum(spectrum * _band(square, number), grid.shape, grid.shape)
        error += band * (deviation / float(band.square().mean().sqrt()))
    error *= mask
    voxels = max(int(mask.sum()), 1)
    size = math.sqrt(float(error.square().sum(dtype=torch.float64)) / voxels)
    return error / size if size else error


def frequencies(grid: Grid) -> tuple[Tensor, Tensor]:
    """Squared angular frequency per voxel of the geometric mean edge, and cos² of the angle to B0."""
    edge = math.prod(grid.voxel_mm) ** (1 / 3)
    square, along = torch.zeros(()), torch.zeros(())
    for axis, (n, voxel, b) in enumerate(zip(grid.shape, grid.voxel_mm, grid.b0_direction, strict=True)):
        make = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        k = (2 * math.pi * edge * make(n, d=voxel)).reshape([-1 if a == axis else 1 for a in range(3)])
        square, along = square + k**2, along + b * k
    return square, along**2 / square.clamp_min(1e-12)


def _band(square: Tensor, number: int) -> Tensor:
    """Transfer function of a band: the difference of two Gaussian filters."""
    finer = torch.ones(()) if number == 0 else torch.exp(-square * (BAND_EDGES_VOXELS[number - 1] ** 2 / 2))
    if number == len(BAND_EDGES_VOXELS):
        return finer
    return finer - torch.exp(-square * (BAND_EDGES_VOXELS[number] ** 2 / 2))


def power_by_angle(cos2: Tensor) -> Tensor:
    """Power of the error relative to its mean, by cos² of the angle between k and B0."""
    power = np.interp(cos2.numpy(), _COS2, _POWER)
    return torch.from_numpy(power.astype(np.float32))
