"""Quality checks of a field map: residual, noise, reliable part, low spatial frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from chisep.physics.robust import MAD_TO_SD
from chisep.preprocessing.checks import Check
from chisep.preprocessing.masked_values import MaskedVoxels, volume_of
from chisep.preprocessing.unwrapping import wrap

_APART = 3
"""Voxels between the two of a pair: noise of neighbours is correlated where images are interpolated."""
_SMOOTH_MM = 6.0
_SMALL_MM = 60.0
"""In a smaller volume, the smooth part of the field is not checked."""
_NOT_LINEAR = (
    "The phase does not grow in proportion to the echo time. Usual causes: wrong echo times, echoes of "
    "different scans or read-out directions, phase that was filtered or rescaled."
)
_LOW_SIGNAL = (
    "Usual causes: low signal, a mask that holds more than the brain, a field that changes by more than half "
    "a wrap from voxel to voxel."
)
_MEDIAN_OF_CHI2 = 0.4549
"""Median of the square of a standard normal variable."""
_RESIDUAL_RAD = (0.012, 0.1)
_RELIABLE = (0.8, 0.6)
_NOISE_PPB = (8.0, 30.0)
_LOW_FREQUENCY_PPB = (30.0, 12.0)
"""Limits for a warning and for a refusal; docs/decisions/0012-scan-checks.md has their measurements."""
_ODD_ECHO_FALL = 0.5
"""An echo is odd if the others are this much closer to a line without it."""
_BENT_RAD = 0.9
"""Curvature over the echoes that random phase does not reach."""


# Long because every check has its own limits and message.
def field_checks(
    deviation: Tensor,
    weight: Tensor,
    te: Tensor,
    mask: Tensor,
    *,
    numbers: Sequence[int],
    reliable: Tensor,
    field_ppm: Tensor,
    sigma_ppm: Tensor,
    voxel_mm: Sequence[float],
) -> tuple[Check, ...]:
    """Quality checks of a field map: residual, noise, reliable part of the brain, low spatial frequencies.

    Parameters
    ----------
    deviation, weight, te, mask
        As of `coherent_residual_rad`.
    numbers
        Numbers of the echoes in the scan.
    reliable
        Voxels of reliable phase, shape (i, j, k).
    field_ppm, sigma_ppm
        Total field and its noise inside the mask, shape (voxel,).
    voxel_mm
        Voxel edges.
    """
    part = float(reliable.sum() / mask.sum())
    checks = []
    odd = None
    if len(te) > 1:
        residual = coherent_residual_rad(deviation, weight, te, mask)
        cause = _NOT_LINEAR
        if residual >= _RESIDUAL_RAD[0] or part <= _RELIABLE[0]:
            odd = odd_echo(deviation, te)
        if odd is not None:
            cause = (
                f"Echo {numbers[odd]} does not fit the other echoes. Check its image and its EchoTime, or "
                "remove its files."
            )
        checks.append(
            Check(
                "CoherentResidualRad",
                "phase residual shared by neighbouring voxels",
                residual,
                *_RESIDUAL_RAD,
                cause,
                "rad",
            )
        )
    bent = len(te) > 2 and curvature_rad(deviation, te, range(len(te))) > _BENT_RAD
    low_signal = odd is None and not bent and (not checks or checks[0].level == "green")
    checks += [
        Check(
            "ReliablePhasePart",
            "part of the brain with reliable phase",
            part,
            *_RELIABLE,
            _LOW_SIGNAL if low_signal else checks[0].cause,
        ),
        Check(
            "FieldNoisePpb",
            "noise of the field (median)",
            1000 * float(sigma_ppm[reliable[mask]].median()) if bool(reliable.any()) else math.inf,
            *_NOISE_PPB,
            _LOW_SIGNAL if low_signal else checks[0].cause,
            "ppb",
        ),
    ]
    extent_mm = [
        float(at.max() - at.min() + 1) * edge for at, edge in zip(mask.nonzero().T, voxel_mm, strict=True)
    ]
    if min(extent_mm) >= _SMALL_MM:
        low = low_frequency_ppb(field_ppm, mask, voxel_mm)
        checks.append(
            Check(
                "LowFrequencyFieldPpb",
                "field of low spatial frequency (robust SD)",
                low,
                *_LOW_FREQUENCY_PPB,
                "The phase seems to be high-pass filtered (as for SWI, or a homodyne reconstruction), which "
                "removes susceptibility too. Export unfiltered phase.",
                "ppb",
            )
        )
    return tuple(checks)


def low_frequency_ppb(field_ppm: Tensor, mask: Tensor, voxel_mm: Sequence[float]) -> float:
    """Robust standard deviation over the brain of a total field smoothed by a Gaussian, in ppb.

    Sources outside the brain and the shim leave a smooth field. A high-pass filter of the phase removes it.

    Parameters
    ----------
    field_ppm
        Inside the mask, shape (voxel,).
    mask
        Shape (i, j, k).
    voxel_mm
        Voxel edges.
    """
    field = volume_of(field_ppm - field_ppm.median(), mask).cpu().numpy()
    sigma = [_SMOOTH_MM / edge for edge in voxel_mm]
    inside = mask.cpu().numpy()
    smooth = ndimage.gaussian_filter(field, sigma, truncate=2.5)[inside]
    smooth /= np.maximum(
        ndimage.gaussian_filter(inside.astype(field.dtype), sigma, truncate=2.5)[inside], 1e-3
    )
    return 1000 * MAD_TO_SD * float(np.median(np.abs(smooth - np.median(smooth))))


def coherent_residual_rad(deviation: Tensor, weight: Tensor, te: Tensor, mask: Tensor) -> float:
    """Residual phase that neighbouring voxels share, as a standard deviation over the brain.

    Noise differs from voxel to voxel, a wrong model does not. Products of the residuals of two voxels have
    the median 0 for noise; for residuals that both share it is that of a square.

    Parameters
    ----------
    deviation
        Measured minus fitted phase, shape (echo, voxel).
    weight
        Squared magnitude, shape (echo, voxel).
    te
        Echo times in s, shape (echo, 1).
    mask
        Shape (i, j, k).

    Returns
    -------
    float
        RMS over the echoes, weighted as the fit, of the largest over the three axes.
    """
    inside = MaskedVoxels(mask)
    share = (weight.mean(1) * te[:, 0] ** 2).clamp_min(0)
    share = share / share.sum().clamp_min(torch.finfo(share.dtype).tiny)
    largest = 0.0
    for axis in range(3):
        a, b = inside.neighbours(axis, _APART)
        if not len(a):
            continue
        products = (echo.index_select(0, a) * echo.index_select(0, b) for echo in deviation)
        medians = torch.stack([product.median() for product in products])
        variance = float((share * medians.clamp_min(0)).sum()) / _MEDIAN_OF_CHI2
        largest = max(largest, variance)
    return math.sqrt(largest)


def odd_echo(deviation: Tensor, te: Tensor) -> int | None:
    """Find the one echo without which the others agree; None if there is no such echo.

    Two of three echoes always agree, so it needs four. Parameters as of `coherent_residual_rad`.
    """
    echoes = range(len(te))
    if len(te) < 4:
        return None
    left = [curvature_rad(deviation, te, [one for one in echoes if one != echo]) for echo in echoes]
    best = min(echoes, key=left.__getitem__)
    others = [curvature_rad(deviation, te, echoes), sorted(left)[1]]
    return best if left[best] < _ODD_ECHO_FALL * min(others) else None


def curvature_rad(deviation: Tensor, te: Tensor, echoes: Sequence[int]) -> float:
    """How far three echoes are from a line, whatever its offset and slope.

    Where echoes are evenly spaced, whole wraps and a wrong fit do not count. Noise gives its standard
    deviation or so, phase at random 0.6 rad.

    Parameters
    ----------
    deviation, te
        As of `coherent_residual_rad`.
    echoes
        Those to look at, three at least.

    Returns
    -------
    float
        Median over the brain; the largest of three echoes in turn, and of the first two and the last.
    """
    largest = 0.0
    threes = {*zip(echoes[:-2], echoes[1:-1], echoes[2:], strict=True), (echoes[0], echoes[1], echoes[-1])}
    for a, b, c in threes:
        before, after = float(te[b] - te[a]), float(te[c] - te[b])
        shortest = min(before, after)
        one, other = after / shortest, before / shortest
        bend = wrap(one * deviation[a] - (one + other) * deviation[b] + other * deviation[c])
        largest = max(largest, float(bend.abs().median()) / math.hypot(one, one + other, other))
    return largest
