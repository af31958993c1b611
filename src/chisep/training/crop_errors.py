"""Errors of simulated crops beyond thermal noise, and violations of R2' = D_r·χ, with the size of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from chisep.physics.dipole import Dipole
from chisep.training.random_contrast import smooth_random
from chisep.types import Grid, MaskVolume, Volume

_FEWEST_VOXELS = 8
"""Smallest brain in a crop that field errors are scaled for."""
_SMOOTH_MM = 4.0
"""Spacing of the random values that smooth errors are interpolated from."""
_RIM_SPACING_MM = (4.0, 20.0)
_RIM_DECAY_MM = (3.0, 12.0)
_RIM_INSIDE = 0.1
"""Error of background removal far from the edge, relative to that at the edge."""
_UNSTATED = 0.7
"""Part of harmonic and smooth errors in the noise map: their size is never known well."""
_DENOISED_VOXELS = 5
"""Edge in voxels of the neighbourhood of the local linear minimum mean square error estimate."""
_FIBRES_MM = 15.0
"""Spacing of the random fibre directions."""
_DR_SD = 0.2
"""SD of the logarithm of D_r where it varies in space."""
_DR_SPACING_MM = (6.0, 25.0)
_MICROSTRUCTURE_PPB = 8.0
"""Largest shift of the field by microstructure."""
_WHITE_PPM = 0.02
"""χ_neg from which a voxel counts as white matter."""


def field_errors(
    mask: MaskVolume,
    grid: Grid,
    dipole: Dipole,
    sizes_ppb: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[Volume, Volume]:
    """Draw what background removal, anisotropy and motion leave in a local field.

    Parameters
    ----------
    mask
        Brain, shape (i, j, k).
    grid, dipole
        Voxel size, and dipole operator of sources around the brain.
    sizes_ppb
        Largest SD of a residual background field that is harmonic in the brain, of a smooth error without a
        source, and of an error that decreases with the depth in the brain.
    rng
        Random numbers.

    Returns
    -------
    tuple of Volume
        Error in ppm, and its standard deviation, shape (i, j, k).
    """
    error, variance = torch.zeros(mask.shape), torch.zeros(mask.shape)
    if int(mask.sum()) < _FEWEST_VOXELS:
        return error, variance
    background_ppb, unexplained_ppb, rim_ppb = sizes_ppb
    background = _harmonic(grid, rng)
    outside = smooth_random(grid, _SMOOTH_MM, rng) * ~mask
    unexplained = smooth_random(grid, _SMOOTH_MM, rng)
    if bool(outside.any()):
        near = dipole.apply(outside)
        background += near / near[mask].std()
    for each, most_ppb in ((background, background_ppb), (unexplained, unexplained_ppb)):
        size = 1e-3 * rng.uniform(0, most_ppb)
        error += each * (size / float(each[mask].std()))
        variance += (_UNSTATED * size) ** 2
    if rim_ppb:
        profile = 1e-3 * rng.uniform(0, rim_ppb) * _by_depth(mask, grid, rng)
        smooth = smooth_random(grid, log_uniform(_RIM_SPACING_MM, rng), rng)
        error += profile * smooth / float(smooth[mask].square().mean().sqrt())
        variance += profile.square()
    return error, variance.sqrt_()


def _by_depth(mask: MaskVolume, grid: Grid, rng: np.random.Generator) -> Volume:
    """Error by depth relative to that at the edge; the faces of a crop are no edges."""
    if bool(mask.all()):
        return torch.full(mask.shape, _RIM_INSIDE)
    depth = torch.from_numpy(ndimage.distance_transform_edt(mask.numpy(), sampling=grid.voxel_mm)).float()
    return _RIM_INSIDE + (1 - _RIM_INSIDE) * torch.exp(-depth / log_uniform(_RIM_DECAY_MM, rng))


def log_uniform(between: tuple[float, float], rng: np.random.Generator) -> float:
    """Draw from a log-uniform distribution."""
    low, high = between
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _harmonic(grid: Grid, rng: np.random.Generator) -> Volume:
    """Random harmonic polynomials up to the third degree: the field of distant sources."""
    extent = max(n * edge for n, edge in zip(grid.shape, grid.voxel_mm, strict=True))
    x, y, z = (
        (torch.linspace(-1, 1, n) * (n * edge / extent)).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, edge) in enumerate(zip(grid.shape, grid.voxel_mm, strict=True))
    )
    terms = (
        *(x, y, z, x * y, y * z, z * x, x**2 - y**2, 2 * z**2 - x**2 - y**2),
        *(x * y * z, z * (x**2 - y**2), x * (x**2 - 3 * y**2), y * (3 * x**2 - y**2)),
        *(z * (2 * z**2 - 3 * x**2 - 3 * y**2), x * (4 * z**2 - x**2 - y**2), y * (4 * z**2 - x**2 - y**2)),
    )
    total = torch.zeros(grid.shape)
    for term, weight in zip(terms, rng.standard_normal(len(terms)), strict=True):
        total += float(weight) * term
    return total


def misregistered(r2: Volume, largest_voxels: float, rng: np.random.Generator) -> tuple[Volume, Volume]:
    """Shift R2 by a part of a voxel along each axis, as a misregistered spin echo is.

    Parameters
    ----------
    r2
        R2 in 1/s, shape (i, j, k).
    largest_voxels
        Largest shift along an axis.
    rng
        Random numbers.

    Returns
    -------
    tuple of Volume
        Shifted R2, and the standard deviation of its error in 1/s: that of the shifts, times the gradient.
    """
    most = rng.uniform(0, largest_voxels)
    moved = _shifted(r2, rng.uniform(-most, most, 3).tolist())
    square = torch.zeros_like(moved)
    for axis in range(3):
        square += ((moved.roll(-1, axis) - moved.roll(1, axis)) / 2).square_()
    return moved, square.sqrt_() * (most / math.sqrt(3))


def _shifted(volume: Volume, voxels: Sequence[float]) -> Volume:
    """Shift a volume by a fraction of a voxel along each axis, with linear interpolation."""
    for axis, shift in enumerate(voxels):
        fraction = abs(float(shift))
        volume = (1 - fraction) * volume + fraction * volume.roll(1 if shift > 0 else -1, axis)
    return volume


def denoised(noisy: Volume, sigma: Volume, mask: MaskVolume) -> tuple[Volume, Volume]:
    """Local linear minimum mean square error estimate, the denoising of R2' of the pipeline for one map.

    Parameters
    ----------
    noisy, sigma
        A map and the standard deviation of its noise, shape (i, j, k).
    mask
        Brain, shape (i, j, k).

    Returns
    -------
    tuple of Volume
        The estimate, and the standard deviation of its error.
    """
    inside = mask.to(noisy.dtype)
    stack = torch.stack((inside, noisy * inside, noisy.square() * inside, sigma.square() * inside))[None]
    edge = min(_DENOISED_VOXELS, *noisy.shape)
    size = edge - 1 + edge % 2
    count, first, second, noise = functional.avg_pool3d(stack, size, 1, size // 2)[0]
    count = count.clamp_min(1e-6)
    mean, noise = first / count, noise / count
    signal = (second / count - mean.square() - noise).clamp_min(0)
    gain = signal / (signal + noise).clamp_min(1e-12)
    # The mean of a neighbourhood has noise too.
    voxels = (count * size**3).clamp_min(1)
    return mean + gain * (noisy - mean), sigma * (gain + (1 - gain) / voxels).sqrt()


def violated_physics(
    pos: Volume, neg: Volume, grid: Grid, rng: np.random.Generator
) -> tuple[Volume, Volume, Volume]:
    """Draw violations of R2' = D_r,pos·χ_pos + D_r,neg·χ_neg and of the dipole field.

    Either D_r of both sources varies in space; or D_r,neg is proportional to sin²θ, with θ between random
    fibre directions and B0, and in half of these crops microstructure shifts the field of white matter by a
    part of sin²θ.

    Parameters
    ----------
    pos, neg
        Sources in ppm, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    rng
        Random numbers.

    Returns
    -------
    tuple of Volume
        Factors on D_r,pos and D_r,neg of each voxel, and a shift of the field in ppm.
    """
    ones, nothing = torch.ones_like(pos), torch.zeros_like(pos)
    if rng.random() < 0.5:
        factors = [
            torch.exp(_DR_SD * smooth_random(grid, log_uniform(_DR_SPACING_MM, rng), rng)) for _ in range(2)
        ]
        return factors[0], factors[1], nothing
    direction = torch.stack([smooth_random(grid, _FIBRES_MM, rng) for _ in range(3)])
    along = sum(float(b) * d for b, d in zip(grid.b0_direction, direction, strict=True))
    sine2 = 1 - torch.as_tensor(along).square() / direction.square().sum(0).clamp_min(1e-6)
    # The mean of sin² over all directions is 2/3.
    white = neg > _WHITE_PPM
    factor = torch.where(white, 1.5 * sine2, ones)
    if rng.random() < 0.5:
        return ones, factor, nothing
    return ones, factor, -1e-3 * rng.uniform(0, _MICROSTRUCTURE_PPB) * sine2 * white


def noise(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
