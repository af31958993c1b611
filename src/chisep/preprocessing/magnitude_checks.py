"""Checks of multi-echo magnitudes before anything is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes

_NEGATIVE_PART = 0.02
_ROUGHEST = 0.6
"""Squared step between neighbours over twice the variance: 0.05 to 0.1 for magnitudes of a head, 0.3 to 0.4
for crops inside the brain, 0.8 and more for phase, whose air is uniform noise."""
_LEAST_CORRELATION = 0.3
"""Of an echo with the first one: 0.8 to 1 for heads, 0.5 for crops at 7 T, 0 for noise and for phase."""


def check_magnitudes(magnitude: Echoes, sources: Sequence[str]) -> None:
    """Refuse echoes that are empty, noise, or phase.

    Parameters
    ----------
    magnitude
        Shape (echo, i, j, k), any scale.
    sources
        File of each echo, for the message.

    Raises
    ------
    InputError
        If an echo is constant, unlike the others, or looks like a phase image.
    """
    for echo, source in zip(magnitude, sources, strict=True):
        if not bool(echo.amax() > echo.amin()):
            raise InputError(
                source,
                found="one value everywhere",
                expected="the magnitude image of an echo",
                fix="Export the image again, or remove this echo (magnitude and phase).",
            )
    first = magnitude[0]
    if float((first < 0).double().mean()) > _NEGATIVE_PART or _roughness(first) > _ROUGHEST:
        raise InputError(
            sources[0],
            found="an image that looks like phase: values below 0, or noise without dark air",
            expected="a magnitude image",
            fix="Check whether part-mag and part-phase are swapped.",
        )
    for echo, source in zip(magnitude[1:], sources[1:], strict=True):
        if _correlation(first, echo) < _LEAST_CORRELATION:
            raise InputError(
                source,
                found="an image that has little in common with the first echo",
                expected="the same head, darker with every echo",
                fix="Check the image: it may be noise, phase, or of another scan. Or remove this echo "
                "(magnitude and phase).",
            )


def _roughness(image: Tensor) -> float:
    steps = [image.diff(dim=axis).square().mean() for axis, n in enumerate(image.shape) if n > 1]
    variance = image.var().clamp_min(1e-30)
    return float(sum(steps) / len(steps) / (2 * variance))


def _correlation(one: Tensor, other: Tensor) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))
