"""Forward models of the independent bench, in numpy alone.

Nothing here is shared with `chisep.simulation`, `chisep.physics` or `chisep.training`: an error there would
otherwise cancel in every score. Maps have shape (i, j, k), voxels are isotropic, B0 is a unit vector in voxel
axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import nnls

Array = NDArray[np.float32]
Bool = NDArray[np.bool_]

B0_DIRECTION = (0.0, 0.0, 1.0)
GYROMAGNETIC_HZ_PER_T = 42.577478e6
GRE_TE_S = (0.004, 0.009, 0.014, 0.019, 0.024, 0.029)
"""Echo times of the gradient echo."""
SE_TE_S = (0.012, 0.024, 0.036, 0.048, 0.060, 0.072)
"""Echo times of the spin echo."""
BANDS_VOXEL = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians between which the bands of a structured field error lie."""
BANDS_PPB = (4.2, 1.3, 1.2, 1.3, 1.0, 0.3)
"""SD in each band of what the dipole field of a 12-orientation COSMOS map leaves of a real local field."""
_CONE_COS2, _CONE_POWER = (0.0, 0.25, 0.42, 1.0), (0.5, 1.6, 1.8, 0.8)
"""Power over the mean by cos² of the angle between k and B0: strongest near the cone, half at the equator."""


def _spectral_axes(shape: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Frequencies in cycles per voxel of a real transform, each of a shape that broadcasts."""
    i, j, k = shape
    return (
        np.fft.fftfreq(i)[:, None, None].astype(np.float32),
        np.fft.fftfreq(j)[None, :, None].astype(np.float32),
        np.fft.rfftfreq(k)[None, None, :].astype(np.float32),
    )


def _k2_and_k_b(shape: Sequence[int], b0: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    ki, kj, kk = _spectral_axes(shape)
    k2 = ki**2 + kj**2 + kk**2
    k2[0, 0, 0] = 1.0
    return k2, ki * b0[0] + kj * b0[1] + kk * b0[2]


def dipole_field(chi_ppm: Array, b0: Sequence[float]) -> Array:
    """Field in ppm of an isotropic χ, zero-padded to twice the size: (1/3 − (k·b)²/k²) χ̂."""
    padded = [fft.next_fast_len(2 * n, real=True) for n in chi_ppm.shape]
    k2, k_b = _k2_and_k_b(padded, b0)
    kernel = (1 / 3 - k_b**2 / k2).astype(np.float32)
    kernel[0, 0, 0] = 0.0
    field = fft.irfftn(fft.rfftn(chi_ppm.astype(np.float32), padded) * kernel, padded)
    return _cut(field, chi_ppm.shape)


def tensor_field(chi_ppm: Array, delta_ppm: Array, fibre: Array, b0: Sequence[float]) -> Array:
    """Field in ppm of an axially symmetric χ tensor: ⅓ b·χb − (k·b)(k·χb)/k², exact.

    Parameters
    ----------
    chi_ppm
        Isotropic part, a third of the trace.
    delta_ppm
        χ along minus χ across the fibre.
    fibre
        Unit vectors, shape (3, i, j, k).
    b0
        Unit vector.
    """
    along = sum(fibre[axis] * b0[axis] for axis in range(3))
    padded = [fft.next_fast_len(2 * n, real=True) for n in chi_ppm.shape]
    k2, k_b = _k2_and_k_b(padded, b0)
    total = np.zeros(k2.shape, np.complex64)
    for axis, k in enumerate(_spectral_axes(padded)):
        of_axis = chi_ppm * b0[axis] + delta_ppm * (along * fibre[axis] - b0[axis] / 3)
        kernel = (b0[axis] / 3 - k_b * k / k2).astype(np.float32)
        kernel[0, 0, 0] = 0.0
        total += fft.rfftn(of_axis.astype(np.float32), padded) * kernel
    return _cut(fft.irfftn(total, padded), chi_ppm.shape)


def _cut(volume: NDArray[Any], shape: Sequence[int]) -> Array:
    i, j, k = shape
    return np.ascontiguousarray(volume[:i, :j, :k], dtype=np.float32)


def structured_error_ppm(
    shape: Sequence[int], sd_ppb: float, b0: Sequence[float], rng: np.random.Generator
) -> Array:
    """Band-limited field error in ppm, strongest near the cone.

    The power of the bands is solved for, since filters between Gaussians overlap: the error, filtered as the
    real one was, has the ratios of `BANDS_PPB`.

    Parameters
    ----------
    shape
        Of the volume.
    sd_ppb
        Standard deviation of the whole error.
    b0
        Unit vector.
    rng
        Random numbers.
    """
    ki, kj, kk = _spectral_axes(shape)
    k2, k_b = _k2_and_k_b(shape, b0)
    cone = np.interp(k_b**2 / k2, _CONE_COS2, _CONE_POWER)
    wave2 = (2 * np.pi) ** 2 * (ki**2 + kj**2 + kk**2)
    smooth = [np.ones_like(wave2), *(np.exp(-0.5 * wave2 * size**2) for size in BANDS_VOXEL)]
    filters2 = [(a - b) ** 2 for a, b in zip(smooth, [*smooth[1:], np.zeros_like(wave2)], strict=True)]
    # A real transform holds half of the frequencies: those inside stand for two.
    doubled = np.where((kk > 0) & (kk < 0.5), 2.0, 1.0)
    gains = np.array([[(doubled * cone * one * two).mean() for one in filters2] for two in filters2])
    powers, _ = nnls(gains, np.square(BANDS_PPB))
    spectrum = fft.rfftn(rng.standard_normal(tuple(shape)).astype(np.float32))
    spectrum *= np.sqrt(cone * sum(power * part for power, part in zip(powers, filters2, strict=True)))
    error = fft.irfftn(spectrum, tuple(shape))
    scaled: Array = (error * (sd_ppb / 1000 / error.std())).astype(np.float32)
    return scaled


def smooth_noise(shape: Sequence[int], size_voxel: float, rng: np.random.Generator) -> Array:
    """Gaussian random field of mean 0 and SD 1, smoothed with a Gaussian of SD `size_voxel`."""
    ki, kj, kk = _spectral_axes(shape)
    spectrum = fft.rfftn(rng.standard_normal(tuple(shape)).astype(np.float32))
    spectrum *= np.exp(-2 * (np.pi * size_voxel) ** 2 * (ki**2 + kj**2 + kk**2))
    field = fft.irfftn(spectrum, tuple(shape))
    made: Array = ((field - field.mean()) / field.std()).astype(np.float32)
    return made


def shifted(volume: Array, shift_voxel: Sequence[float]) -> Array:
    """Shift a volume by a fraction of a voxel, in k-space."""
    phase = sum(k * s for k, s in zip(_spectral_axes(volume.shape), shift_voxel, strict=True))
    moved = fft.irfftn(fft.rfftn(volume) * np.exp(-2j * np.pi * phase), volume.shape)
    made: Array = moved.astype(np.float32)
    return made


def field_noise_ppm(
    magnitude: NDArray[Any], r2star_hz: Array, b0_t: float, noise_sd: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Error of a field fitted to the phases of a noisy gradient echo, and its σ, both in ppm.

    The signal is turned so that its true phase is 0: its phase is then the error, and does not wrap. The fit
    is that of a line through the origin, weighted by the squared magnitude.
    """
    radians_per_ppm = 2 * np.pi * GYROMAGNETIC_HZ_PER_T * 1e-6 * b0_t * np.asarray(GRE_TE_S)
    top, bottom = np.zeros_like(r2star_hz), np.zeros_like(r2star_hz)
    information = np.zeros_like(r2star_hz)
    for te, gain in zip(GRE_TE_S, radians_per_ppm, strict=True):
        signal = magnitude * np.exp(-te * r2star_hz)
        noisy = signal + noise_sd * _complex_noise(signal.shape, rng)
        top += np.abs(noisy) ** 2 * gain * np.angle(noisy)
        bottom += np.abs(noisy) ** 2 * gain**2
        information += (signal * gain) ** 2
    return (top / bottom).astype(np.float32), (noise_sd / np.sqrt(information)).astype(np.float32)


def rate_fit_hz(
    magnitude: NDArray[Any],
    rate_hz: Array,
    te_s: Sequence[float],
    noise_sd: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Rate fitted to noisy magnitudes (log-linear, weighted by the squared magnitude), and its σ, in 1/s."""
    sums = [np.zeros(rate_hz.shape) for _ in range(5)]
    known = [np.zeros(rate_hz.shape) for _ in range(3)]
    for te in te_s:
        signal = magnitude * np.exp(-te * rate_hz)
        noisy = np.abs(signal + noise_sd * _complex_noise(signal.shape, rng))
        weight, log = noisy**2, np.log(noisy)
        for total, value in zip(sums, (1.0, te, te**2, log, te * log), strict=True):
            total += weight * value
        for total, value in zip(known, (1.0, te, te**2), strict=True):
            total += signal**2 * value
    w, wt, wtt, wl, wtl = sums
    fitted = -(w * wtl - wt * wl) / (w * wtt - wt**2)
    precision = known[2] - known[1] ** 2 / known[0]
    return fitted.astype(np.float32), (noise_sd / np.sqrt(precision)).astype(np.float32)


def _complex_noise(shape: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
    both = rng.standard_normal((2, *shape)).astype(np.float32)
    made: NDArray[Any] = both[0] + 1j * both[1]
    return made
