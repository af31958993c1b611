"""What interpolation takes from maps on a turned grid, in bands of the spatial frequency."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from chisep import metrics

_ANGLES_DEG = (20.0, -12.0, 8.0)
_ZERO_FILLING = 2
_TAPS = 4
_BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MARGIN = 12
_LARGEST = 64
"""Voxels of the box along each axis: more of a fine map costs time and adds nothing."""
Image = Float[np.ndarray, "i j k"]
Inside = Bool[np.ndarray, "i j k"]
_Method = Callable[[Image, np.ndarray, np.ndarray, tuple[int, ...]], Image]


def interpolation_losses(maps: Mapping[str, Image], inside: Inside) -> dict[str, Any]:
    """Measure how much of each map several interpolations keep.

    Parameters
    ----------
    maps
        Name → map on one grid.
    inside
        Brain mask.

    Returns
    -------
    dict
        Gain by method, map and band of the spatial frequency, relative to that of the voxels, and NRMSE.

    Notes
    -----
    A map goes to the turned grid by Fourier interpolation and comes back by each method, so what is lost on
    the way there is lost in every row; the row `Fourier` shows it.
    """
    box = tuple(_middle(int(at.min()), int(at.max()) + 1) for at in np.nonzero(inside))
    mask = np.pad(inside[box], _MARGIN)
    matrix = Rotation.from_euler("xyz", _ANGLES_DEG, degrees=True).as_matrix()
    middle = (np.array(mask.shape) - 1) / 2
    offset = middle - matrix @ middle + np.array([0.3, -0.4, 0.2])
    back = np.linalg.inv(matrix)
    gains: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    errors: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for name, volume in maps.items():
        true = np.pad(volume[box] * inside[box], _MARGIN).astype(np.float32)
        there = _fourier(true, matrix, offset, true.shape)
        for method, interpolate in METHODS.items():
            made = interpolate(there, back, -back @ offset, true.shape)
            gains[method][name] = _gains(true, made)
            errors[method][name] = round(metrics.nrmse_percent(made, true, mask), 2)
    return {
        "AngleDeg": round(math.degrees(Rotation.from_matrix(matrix).magnitude()), 1),
        "BandsOfNyquist": [f"{low:g} to {high:g}" for low, high in itertools.pairwise(_BANDS)],
        "Gain": gains,
        "ErrorPercent": errors,
    }


def _middle(first: int, after: int) -> slice:
    """Range of voxels of an axis, at most `_LARGEST` of its middle."""
    more = max(0, after - first - _LARGEST)
    return slice(first + more // 2, after - (more - more // 2))


def _gains(true: Image, made: Image) -> list[float]:
    """Regression of the made on the true spectrum, in bands of |k|."""
    axes = [2 * np.fft.fftfreq(n) for n in true.shape]
    k = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))
    of_true, of_made = np.fft.fftn(true), np.fft.fftn(made)
    found = []
    for low, high in itertools.pairwise(_BANDS):
        band = (k >= low) & (k < high)
        product = float((of_made[band] * of_true[band].conj()).real.sum())
        found.append(round(product / float(np.square(np.abs(of_true[band])).sum()), 4))
    return found


def _spline(order: int) -> _Method:
    def interpolate(image: Image, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Image:
        return np.asarray(
            ndimage.affine_transform(image, matrix, offset, output_shape=shape, order=order, mode="nearest")
        )

    return interpolate


def _fourier(image: Image, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Image:
    """Zero-filled spectrum, then splines of fifth order between the finer samples."""
    spectrum = np.fft.fftshift(np.fft.fftn(image))
    before = [_ZERO_FILLING * n // 2 - n // 2 for n in image.shape]
    width = [(first, (_ZERO_FILLING - 1) * n - first) for first, n in zip(before, image.shape, strict=True)]
    fine = np.fft.ifftn(np.fft.ifftshift(np.pad(spectrum, width))).real * _ZERO_FILLING**3
    return _spline(5)(fine.astype(np.float32), _ZERO_FILLING * matrix, _ZERO_FILLING * offset, shape)


def _windowed_sinc(image: Image, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> Image:
    """Sinc with a Lanczos window over four voxels to each side."""
    index = np.indices(shape, dtype=np.float64).reshape(3, -1)
    points = matrix @ index + offset[:, None]
    first = np.floor(points).astype(int)
    taps = np.arange(1 - _TAPS, _TAPS + 1)
    weights, places = [], []
    for axis, n in enumerate(image.shape):
        distance = points[axis] - first[axis] - taps[:, None]
        weight = np.sinc(distance) * np.sinc(distance / _TAPS)
        weights.append(weight / weight.sum(0))
        places.append(np.clip(first[axis] + taps[:, None], 0, n - 1))
    made = np.zeros(points.shape[1])
    for i, j, k in itertools.product(range(len(taps)), repeat=3):
        weight = weights[0][i] * weights[1][j] * weights[2][k]
        made += image[places[0][i], places[1][j], places[2][k]] * weight
    return made.reshape(shape).astype(np.float32)


METHODS: Mapping[str, _Method] = {
    "linear": _spline(1),
    "cubic splines": _spline(3),
    "splines of order 5": _spline(5),
    "windowed sinc": _windowed_sinc,
    "Fourier": _fourier,
}
"""Interpolations that are compared."""
