"""Spherical mean value filter: what is harmonic in a mask is removed, as in SHARP and V-SHARP.

A harmonic function equals its mean over any sphere around a voxel, so the difference to that mean is 0. Each
voxel has the largest sphere that fits into the mask (Wu 2012, 10.1002/mrm.23000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.physics.dipole import half_spectrum, of_half_spectrum
from chisep.physics.operators import LinearOperator
from chisep.types import Grid

_NEXT_RADIUS = 2.5
"""Ratio of one radius to the next smaller one, about."""
_SMALLEST_MM = 1.5
_ROUNDING = 1e-4
"""Relative difference of lengths that is rounding."""


def smallest_radius_mm(grid: Grid) -> float:
    """Radius of the smallest sphere whose mean over voxels is near that over a sphere.

    With a radius of √3 voxels the weights of `sphere_spectrum` are 1, 2/3 and 1/3 for a voxel, its face
    neighbours and its edge neighbours, and 0 beyond: the mean of every harmonic polynomial of a degree below
    6 is then exact.

    Parameters
    ----------
    grid
        Voxel size.
    """
    return max(_SMALLEST_MM, math.sqrt(3) * max(grid.voxel_mm))


def reach_mm(depth_mm: Tensor) -> Tensor:
    """Radius in mm of the largest sphere around each voxel, from its depth in the mask.

    √3 voxels is also a depth of voxels: whether it counts must not depend on the last digits of the affine.

    Parameters
    ----------
    depth_mm
        Distance to the nearest voxel outside, 0 outside, shape (i, j, k).
    """
    return depth_mm * (1 + _ROUNDING)


def sphere_radii_mm(smallest_mm: float, largest_mm: float, reach: Tensor) -> list[float]:
    """Radii of spheres from the smallest to the largest, each about 2.5 times the one before.

    Parameters
    ----------
    smallest_mm, largest_mm
        Smallest and largest radius.
    reach
        Radius of the largest sphere around each voxel: radii that fit nowhere are left out.
    """
    count = max(1, round(math.log(largest_mm / smallest_mm) / math.log(_NEXT_RADIUS)))
    radii = np.geomspace(smallest_mm, largest_mm, count + 1).tolist()
    return [radius for radius in radii if radius <= float(reach.max())]


def padded_grid(shape: Sequence[int], grid: Grid, border_mm: float) -> Grid:
    """Pad a shape so that periodic convolutions do not wrap around.

    Parameters
    ----------
    shape
        Number of voxels.
    grid
        Voxel size and B0 direction.
    border_mm
        Zeros after each axis.
    """
    sizes = [
        next_fast_len(n + math.ceil(border_mm / v), real=True)
        for n, v in zip(shape, grid.voxel_mm, strict=True)
    ]
    return grid.reshaped(sizes)


def sphere_spectrum(radius_mm: float, shape: tuple[int, ...], grid: Grid, like: Tensor) -> Tensor:
    """Half spectrum of a sphere of sum 1 around voxel 0, real because the sphere is even.

    Parameters
    ----------
    radius_mm
        Radius.
    shape
        Number of voxels of the periodic grid.
    grid
        Voxel size.
    like
        Tensor of the same precision on the same device.
    """
    square = torch.zeros((), dtype=like.dtype, device=like.device)
    for axis, (n, edge) in enumerate(zip(shape, grid.voxel_mm, strict=True)):
        position = torch.fft.fftfreq(n, d=1 / (n * edge), device=like.device, dtype=like.dtype)
        square = square + position.reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
    # Any weight that depends on the distance alone has the mean value property; on a grid a soft edge
    # approximates it better than a ball of whole voxels.
    sphere = 1 - square / radius_mm**2
    sphere.clamp_(min=0)
    # The sum is in double precision: in single precision the last digits depend on the number of threads.
    return half_spectrum(sphere / float(sphere.sum(dtype=torch.float64)), shape).real


class SphericalMeanFilter(LinearOperator):
    """Difference of each voxel to the mean over the largest sphere that fits; shapes (..., i, j, k).

    Parameters
    ----------
    reach
        Radius in mm of the largest sphere around each voxel, as `reach_mm` gives it; 0 outside the mask,
        shape (i, j, k).
    grid
        Voxel size.
    padded
        Periodic grid, larger than the volume by the largest radius or more (`padded_grid`).
    radii_mm
        Radii of the spheres, the smallest first; voxels where that does not fit are 0 in the result.
    weight
        Factor of each voxel of the result, shape (i, j, k); 1 if None.
    kernels
        Those of another filter of equal radii, to share its memory.
    """

    def __init__(
        self,
        reach: Tensor,
        grid: Grid,
        padded: Grid,
        radii_mm: Sequence[float],
        *,
        weight: Tensor | None = None,
        kernels: Sequence[Tensor] | None = None,
    ) -> None:
        self.shape, self.padded_shape = tuple(reach.shape), padded.shape
        self.kernels = kernels or [1 - sphere_spectrum(r, padded.shape, grid, like=reach) for r in radii_mm]
        """1 minus the spectrum of each sphere, the smallest first."""
        self.places = [
            ((reach >= radius) & (reach < next_radius)).contiguous()
            for radius, next_radius in zip(radii_mm, [*radii_mm[1:], math.inf], strict=True)
        ]
        self.weights = self.places if weight is None else [weight * place for place in self.places]

    def spectrum(self, x: Tensor) -> Tensor:
        """Transform a volume to its half spectrum on the periodic grid."""
        return half_spectrum(x, self.padded_shape)

    def volume(self, spectrum: Tensor) -> Tensor:
        """Transform a half spectrum back to the volume."""
        return of_half_spectrum(spectrum, self.padded_shape, self.shape)

    def gram_spectrum(self, spectrum: Tensor) -> Tensor:
        """Compute SᵀS of a volume that its half spectrum states; returns a half spectrum."""
        total = torch.zeros_like(spectrum)
        for kernel, weight in zip(self.kernels, self.weights, strict=True):
            square = weight if weight.dtype == torch.bool else weight * weight
            total += self.spectrum(self.volume(spectrum * kernel) * square).mul_(kernel)
        return total

    def apply(self, x: Tensor) -> Tensor:
        """Filter a volume."""
        spectrum, filtered = self.spectrum(x), torch.zeros_like(x)
        for kernel, weight in zip(self.kernels, self.weights, strict=True):
            filtered = filtered + self.volume(spectrum * kernel) * weight
        return filtered

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose of the filter."""
        parts = [
            self.spectrum(y * weight).mul(kernel)
            for kernel, weight in zip(self.kernels, self.weights, strict=True)
        ]
        return self.volume(torch.stack(parts).sum(0))

    def gram(self, x: Tensor) -> Tensor:
        """Filter and its transpose."""
        return self.volume(self.gram_spectrum(self.spectrum(x)))
