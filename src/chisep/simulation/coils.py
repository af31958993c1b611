"""RF coils of the scanner: transmit field, receive sensitivity and noise.

Coordinates are millimetres along the voxel axes from the centre of the brain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from chisep.physics.signal import hz_per_ppm
from chisep.types import ComplexEchoes, Grid, MaskVolume, Volume

ComplexVolume = Complex[Tensor, "i j k"]
"""One complex map on a grid."""

_LIGHT_MM_PER_S = 2.998e11
_PERMITTIVITY = 60.0
"""Of brain relative to vacuum at 128 to 300 MHz."""
_LEAST_B1 = 0.05
_SIDES_SHARE = 0.3
_COIL_DISTANCE = 1.5
_COIL_PHASE_RAD = 1.0


@dataclass(frozen=True, eq=False)
class Coils:
    """Transmit and receive maps of a session, each of shape (i, j, k).

    Parameters
    ----------
    b1
        Transmit field relative to nominal: scales every flip angle.
    receive
        Combined sensitivity: magnitude around 1 in the brain, and the phase that it adds.
    """

    b1: Volume
    receive: ComplexVolume


def transmit_field(
    grid: Grid, mask: MaskVolume, b0_t: float, spread: float, rng: np.random.Generator
) -> Volume:
    """Transmit field B1+ relative to nominal: bright in the middle of the head, dark at its sides.

    Parameters
    ----------
    grid
        Voxel size.
    mask
        Brain, where the mean of B1 is 1.
    b0_t
        Field strength in tesla.
    spread
        Standard deviation in the brain at 3 T; it grows linearly with B0.
    rng
        Draws where the middle is, and a slope across the head.

    Returns
    -------
    Volume
        At least 0.05.

    Notes
    -----
    The pattern is a spherical standing wave, sin(kr)/kr, at the wavelength in brain: 30 cm at 3 T, 13 cm
    at 7 T, where the dark ring reaches the temporal lobes (Vaughan 2001, Magnetic Resonance in Medicine
    46:24).
    """
    centre = rng.normal(0.0, 8.0, 3)
    slope = rng.standard_normal(3)
    axes = _axes_mm(grid, mask)
    wavelength_mm = _LIGHT_MM_PER_S / (hz_per_ppm(b0_t) * 1e6 * math.sqrt(_PERMITTIVITY))
    wave = _standard(torch.sinc(2 * _distance_mm(axes, centre) / wavelength_mm), mask)
    sides = _standard(_linear(axes, slope).expand(grid.shape), mask)
    pattern = _standard(wave.add_(sides, alpha=_SIDES_SHARE), mask)
    return pattern.mul_(spread * b0_t / 3.0).add_(1.0).clamp_(min=_LEAST_B1)


def coil_sensitivities(
    grid: Grid, mask: MaskVolume, count: int, rng: np.random.Generator
) -> Iterator[ComplexVolume]:
    """Complex sensitivities of coils that lie around the head, one after the other.

    Parameters
    ----------
    grid
        Voxel size.
    mask
        Brain, which the coils are centred on.
    count
        Number of coils.
    rng
        Turns the array, and draws the phase of every coil.

    Yields
    ------
    ComplexVolume
        Magnitude as on the axis of a loop, (1 + d²/w²)^(−3/2) at distance d; the phase is linear.
    """
    axes = _axes_mm(grid, mask)
    radius_mm = _COIL_DISTANCE * (float(mask.sum()) * math.prod(grid.voxel_mm) * 0.75 / math.pi) ** (1 / 3)
    width_mm = radius_mm * min(1.0, 2.0 / math.sqrt(count))
    start = rng.uniform(0, 2 * math.pi)
    for n in range(count):
        # A spiral from pole to pole spaces the coils uniformly.
        height = 1 - (2 * n + 1) / count
        azimuth = start + math.pi * (1 + math.sqrt(5)) * n
        ring = math.sqrt(1 - height**2)
        direction = np.array([ring * math.cos(azimuth), ring * math.sin(azimuth), height])
        steepness = _COIL_PHASE_RAD / radius_mm * (direction + rng.normal(0, 0.2, 3))
        ratio = _distance_mm(axes, direction * radius_mm) / width_mm
        magnitude = (1 + ratio**2) ** -1.5
        yield torch.polar(magnitude, _linear(axes, steepness) + rng.uniform(-math.pi, math.pi))


def combined_sensitivity(grid: Grid, mask: MaskVolume, count: int, rng: np.random.Generator) -> ComplexVolume:
    """Sensitivity of the combined coils: √Σ|S|², with the phase of a virtual reference coil.

    Parameters
    ----------
    grid, mask, count, rng
        As `coil_sensitivities`.

    Returns
    -------
    ComplexVolume
        Mean magnitude 1 in the mask.

    Notes
    -----
    The virtual reference coil is the sum of all coils after their phases were made equal in the middle of
    the brain (Parker 2014, 10.1002/mrm.24932), so that the phase of the combined image is smooth.
    """
    power = torch.zeros(grid.shape)
    reference = torch.zeros(grid.shape, dtype=torch.complex64)
    i, j, k = (int(line.abs().argmin()) for line in _axes_mm(grid, mask))
    for sensitivity in coil_sensitivities(grid, mask, count, rng):
        power += sensitivity.abs().square()
        reference += sensitivity * torch.polar(torch.ones(()), -sensitivity[i, j, k].angle())
    magnitude = power.sqrt_()
    return torch.polar(magnitude / magnitude[mask].mean(), reference.angle())


def with_noise(
    signal: ComplexEchoes,
    sigma: float,
    rng: np.random.Generator,
    *,
    more_coils: int = 0,
    shape_noise: Callable[[Volume], Volume] | None = None,
) -> ComplexEchoes:
    """Add the noise of the combined coil image, in place.

    Parameters
    ----------
    signal
        Combined signal without noise.
    sigma
        Standard deviation of each coil's noise in each channel.
    rng
        Draws the noise.
    more_coils
        0 for an adaptive (matched-filter) combination. For a sum of squares of N coils N − 1: these add
        their noise power to the magnitude whatever the signal is.
    shape_noise
        Correlates and amplifies white noise of SD 1; None leaves it white.

    Returns
    -------
    ComplexEchoes
        Signal with noise.

    Notes
    -----
    N coils of independent, equal noise can be turned, voxel by voxel, into one that has all the signal and
    N − 1 that have none (Roemer 1990, 10.1002/mrm.1910160203). The matched filter is the one with the
    signal; the sum of squares adds the χ² of 2(N − 1) degrees of freedom of the others. So no coil needs
    an image of its own.
    """
    for echo in signal:
        channels = torch.view_as_real(echo)
        noise = torch.from_numpy(rng.standard_normal(channels.shape, dtype=np.float32))
        if shape_noise is not None:
            noise = torch.stack([shape_noise(part) for part in noise.unbind(-1)], dim=-1)
        channels += sigma * noise
        if more_coils:
            power = 2 * sigma**2 * rng.standard_gamma(more_coils, size=echo.shape, dtype=np.float32)
            square = echo.abs().square()
            echo *= torch.sqrt(1 + torch.from_numpy(power) / square.clamp_min(torch.finfo(square.dtype).tiny))
    return signal


def _axes_mm(grid: Grid, mask: MaskVolume) -> tuple[Tensor, Tensor, Tensor]:
    """Millimetres from the centre of the mask along each voxel axis, each broadcastable to the grid."""
    lines = []
    for axis, (n, edge) in enumerate(zip(grid.shape, grid.voxel_mm, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        weight = mask.sum(others).double()
        index = torch.arange(n, dtype=torch.float64)
        centre = float((weight * index).sum() / weight.sum())
        lines.append(((index - centre) * edge).float().reshape([-1 if a == axis else 1 for a in range(3)]))
    i, j, k = lines
    return i, j, k


def _distance_mm(axes: tuple[Tensor, Tensor, Tensor], point_mm: np.ndarray) -> Volume:
    i, j, k = ((line - float(p)).square() for line, p in zip(axes, point_mm, strict=True))
    return (i + j + k).sqrt_()


def _linear(axes: tuple[Tensor, Tensor, Tensor], slope: np.ndarray) -> Volume:
    i, j, k = (line * float(s) for line, s in zip(axes, slope, strict=True))
    return i + j + k


def _standard(volume: Volume, mask: MaskVolume) -> Volume:
    """Shift and scale to mean 0 and standard deviation 1 in the mask."""
    inside = volume[mask]
    return (volume - inside.mean()) / inside.std()
