"""Acquisition resolution: cropped k-space of a finer image."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from chisep.simulation.coils import ComplexVolume
from chisep.types import Volume

Window = Literal["none", "tukey", "hamming"]
"""Window of k-space before the inverse transform."""

CoarseComplex = Complex[Tensor, "i2 j2 k2"]
"""One complex map on a coarser grid."""
CoarseVolume = Float[Tensor, "i2 j2 k2"]
"""One real map on a coarser grid."""

_TUKEY_SHARE = 0.5
"""Fraction of k-space over which a Tukey window tapers."""


def crop_kspace(image: ComplexVolume, factor: int, window: Window = "none") -> CoarseComplex:
    """Reduce the resolution of an image by cropping its k-space.

    Parameters
    ----------
    image
        Fine image.
    factor
        How many fine voxels a new voxel holds along each axis; an axis that is no multiple of it is
        continued by zeros.
    window
        Weighting against ringing: none, a Tukey window (flat in the middle half), or a Hamming window.

    Returns
    -------
    Tensor
        Shape (⌈i/factor⌉, ⌈j/factor⌉, ⌈k/factor⌉); voxels cover the fine ones from the same corner. The
        mean is that of the (continued) fine image for every window.
    """
    for axis, n in enumerate(image.shape):
        coarse = -(-n // factor)
        fine = coarse * factor
        frequency = torch.fft.fftfreq(coarse, d=1 / coarse, dtype=torch.float64)
        spectrum = torch.fft.fft(image, n=fine, dim=axis)
        kept = spectrum.index_select(axis, frequency.long() % fine)
        # Centres of new voxels lie between fine ones: the phase ramp moves the samples there.
        ramp = torch.polar(
            _weights(frequency / coarse, window) / factor, torch.pi * frequency / fine * (factor - 1)
        )
        shape = [-1 if a == axis else 1 for a in range(3)]
        image = torch.fft.ifft(kept.mul_(ramp.to(image.dtype).reshape(shape)), dim=axis)
    return image


def block_mean(volume: Volume, factor: int) -> CoarseVolume:
    """Mean over blocks of voxels, on the grid of `crop_kspace`; border values continue beyond the volume."""
    widths = [w for n in reversed(volume.shape) for w in (0, -n % factor)]
    padded = pad(volume[None, None], widths, mode="replicate")
    return avg_pool3d(padded, factor)[0, 0]


def _weights(frequency: Tensor, window: Window) -> Tensor:
    """Window at frequencies from −½ to ½; 1 at 0."""
    if window == "hamming":
        return 0.54 + 0.46 * torch.cos(2 * torch.pi * frequency)
    if window == "tukey":
        beyond = (frequency.abs() - (1 - _TUKEY_SHARE) / 2).clamp_min(0) / (_TUKEY_SHARE / 2)
        return 0.5 + 0.5 * torch.cos(torch.pi * beyond)
    return torch.ones_like(frequency)
