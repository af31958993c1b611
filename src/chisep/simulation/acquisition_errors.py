"""Errors of an acquisition beyond a voxel's signal equation: flow, breathing, correlated noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from chisep.simulation.coils import ComplexVolume
from chisep.types import Volume

BREATH_S = 4.0
"""Mean period of breathing."""
_PERIOD_SD = 0.15
_ALIASED = 0.4
"""Weight of the noise of an aliased voxel relative to a voxel's own."""
_G_PER_FACTOR, _G_SIGMA = 0.35, 0.25
"""Rise of the g-factor in the centre per factor of acceleration, and its width in parts of the volume."""

Fluctuation = Float[np.ndarray, "lines"]
"""Field offset in Hz at each phase-encoding step, in the order of acquisition."""


def flow_phase(flow_rad: Volume, echo: int) -> ComplexVolume:
    """Phase factor of flow at an echo (from 0): first moments of a monopolar readout add up, echo by echo.

    Parameters
    ----------
    flow_rad
        Phase per echo, by velocity along the readout.
    echo
        Number of the echo.
    """
    return torch.polar(torch.ones_like(flow_rad), (echo + 1) * flow_rad)


def breathing(lines: int, tr_s: float, sd_hz: float, rng: np.random.Generator) -> Fluctuation:
    """Draw the field offset of breathing at each repetition: a sine whose period varies.

    Parameters
    ----------
    lines
        Number of phase-encoding steps.
    tr_s
        Repetition time.
    sd_hz
        SD of the offset over time.
    rng
        Draws phase and periods.
    """
    breaths = math.ceil(lines * tr_s / BREATH_S * 2) + 4
    periods = BREATH_S * np.exp(_PERIOD_SD * rng.standard_normal(breaths))
    starts = np.concatenate(([0.0], np.cumsum(periods))) - rng.uniform(0, periods[0])
    cycles = np.interp(np.arange(lines) * tr_s, starts, np.arange(len(starts)))
    return np.asarray(math.sqrt(2) * sd_hz * np.sin(2 * np.pi * cycles))


def with_breathing(
    image: ComplexVolume, offset_hz: Fluctuation, te_s: float, read_axis: int
) -> ComplexVolume:
    """Multiply each k-space line by the phase of the field offset at its acquisition: ghosts and blur.

    Parameters
    ----------
    image
        Complex image of one echo.
    offset_hz
        Offset at each line; the first phase-encoding axis runs fastest, each from its lowest frequency.
    te_s
        Echo time.
    read_axis
        Axis of the readout, along which the offset is constant.
    """
    axes = phase_axes(read_axis)
    shape = [image.shape[axis] for axis in axes]
    phase = 2 * math.pi * te_s * torch.from_numpy(offset_hz).float().reshape(shape[1], shape[0]).T
    factor = torch.polar(torch.ones_like(phase), phase)
    # Lines are in order of frequency; the FFT has the lowest in the middle.
    factor = torch.fft.ifftshift(factor)
    factor = factor.unsqueeze(read_axis)
    spectrum = torch.fft.fftn(image, dim=axes)
    ghosted: Tensor = torch.fft.ifftn(spectrum * factor.to(image.dtype), dim=axes)
    return ghosted


def phase_axes(read_axis: int) -> tuple[int, int]:
    """Axes of phase encoding, in order."""
    first, second = (axis for axis in range(3) if axis != read_axis)
    return first, second


def correlated(noise: Volume, acceleration: int, interpolation: float, read_axis: int) -> Volume:
    """Correlate white noise as parallel imaging and interpolation do; its SD stays.

    Parameters
    ----------
    noise
        White noise, shape (i, j, k).
    acceleration
        Factor of parallel imaging along the first phase-encoding axis: noise of voxels that alias is shared.
    interpolation
        Factor of interpolation by zero-filling: k-space has noise only in its central part.
    read_axis
        Axis of the readout.
    """
    if acceleration > 1:
        axis, _ = phase_axes(read_axis)
        n = noise.shape[axis]
        others = sum(noise.roll(round(n * s / acceleration), axis) for s in range(1, acceleration))
        noise = (noise + _ALIASED * others) / math.sqrt(1 + _ALIASED**2 * (acceleration - 1))
    if interpolation > 1:
        spectrum = torch.fft.rfftn(noise)
        kept = torch.ones(())
        share = 1.0
        for axis, n in enumerate(noise.shape):
            frequency = torch.fft.fftfreq(n) if axis < 2 else torch.fft.rfftfreq(n)
            inside = frequency.abs() <= 0.5 / interpolation + 1e-6
            kept = kept * inside.float().reshape([-1 if a == axis else 1 for a in range(3)])
            share *= float((torch.fft.fftfreq(n).abs() <= 0.5 / interpolation + 1e-6).float().mean())
        noise = torch.fft.irfftn(spectrum * kept, s=noise.shape) / math.sqrt(share)
    return noise


def g_factor(shape: Sequence[int], acceleration: int) -> Volume:
    """Amplification of noise by parallel imaging: 1 at the border, largest in the centre.

    Parameters
    ----------
    shape
        Of the volume.
    acceleration
        Factor of parallel imaging; 1 has no amplification.
    """
    square = torch.zeros(())
    for axis, n in enumerate(shape):
        line = torch.linspace(-0.5, 0.5, n) if n > 1 else torch.zeros(1)
        square = square + line.reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
    return 1 + _G_PER_FACTOR * (acceleration - 1) * torch.exp(-square / (2 * _G_SIGMA**2))
