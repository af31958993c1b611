"""Checks of multi-echo magnitudes before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes

_NEGATIVE_PART = 0.02
_ROUGHEST = 0.6
"""Squared step between neighbours over twice the variance: 0.05 to 0.1 for magnitudes of a head, 0.3 to 0.4
for crops inside the brain, 0.8 and more for phase, whose air is uniform noise."""
_LEAST_CORRELATION = 0.3
"""Of an echo with the first one: 0.8 to 1 for heads, 0.5 for crops at 7 T, 0 for noise and for phase."""
_BRIGHT = 0.75
"""The decay is that of voxels whose first echo is above this quantile."""
_OFF_DECAY = (0.1, 0.25)
"""Distance of one echo's logarithm from the line of the others, for a warning and for a refusal: below
0.015 in simulated scans from 1.5 to 7 T, and in real crops."""
_OFF_DECAY_SPIN_ECHO = (0.4, 0.7)
_DECAY_HZ = ((3.0, 120.0), (-10.0, 300.0))
"""Range of the decay rate without a warning, and without a refusal: 16 to 50 1/s from 1.5 to 7 T."""


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
    for echo, source in zip(magnitude, sources, strict=True):
        negative = int((echo < 0).sum()) > _NEGATIVE_PART * echo.numel()
        if negative or _roughness(echo) > _ROUGHEST:
            raise InputError(
                source,
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
    steps = []
    for axis, n in enumerate(image.shape):
        if n > 1:
            # Every second line along the axis is enough.
            lines = image.movedim(axis, 0)[:, ::2, ::2]
            steps.append(lines.diff(dim=0).square().mean())
    variance = image[::2, ::2, ::2].var().clamp_min(1e-30)
    return float(sum(steps) / len(steps) / (2 * variance))


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = one[::2, ::2, ::2], other[::2, ::2, ::2]
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))


def check_decay(
    magnitude: Echoes, te_s: Sequence[float], sources: Sequence[str], *, spin_echo: bool = False
) -> list[str]:
    """Check that magnitudes fall with the echo time as one signal does, with one scale for all echoes.

    Parameters
    ----------
    magnitude
        Echoes, shape (echo, i, j, k), any scale.
    te_s
        Echo times in s, increasing.
    sources
        File of each echo, for the message.
    spin_echo
        Whether stimulated echoes, which are no exponential, are among them.

    Returns
    -------
    list of str
        A warning where the decay is unlikely.

    Raises
    ------
    InputError
        If the decay is impossible.
    """
    if len(te_s) < 2:
        return []
    level = _log_signal(magnitude)
    rate = (level[0] - level[-1]) / (te_s[-1] - te_s[0])
    distance, echo = _off_the_decay(level, te_s)
    where = sources[echo] if echo is not None else sources[0]
    unlikely, impossible = _OFF_DECAY_SPIN_ECHO if spin_echo else _OFF_DECAY
    if distance >= unlikely:
        name = f"the magnitude of {where}" if echo is not None else "the magnitude of one of three echoes"
        found = (
            f"{name} is typically {math.exp(distance):.3g} times as bright, or as dark, as the decay of the "
            "other echoes says"
        )
        worst = distance >= impossible
    elif not spin_echo and not _DECAY_HZ[0][0] <= rate <= _DECAY_HZ[0][1]:
        found = f"the magnitudes decay by typically {rate:.3g} 1/s, where brains have 15 to 50"
        worst = not _DECAY_HZ[1][0] <= rate <= _DECAY_HZ[1][1]
    else:
        return []
    fix = (
        "Relaxation rates are wrong if echoes are scaled one by one, or echo times are wrong. Export all "
        "magnitudes with one scale, check EchoTime, and whether part-mag and part-phase are swapped."
    )
    if worst:
        raise InputError(
            where, found=found, expected="magnitudes of one scale, darker with every echo", fix=fix
        )
    return [f"{found}. {fix}"]


def _log_signal(magnitude: Echoes) -> list[float]:
    """Median logarithm of each echo over the first one, where that is bright."""
    first = magnitude[0]
    sample = first.flatten()[:: max(1, first.numel() // 100_000)]
    bright = first > sample.quantile(_BRIGHT)
    if not bool(bright.any()):
        bright = first > 0
    tiny = torch.finfo(first.dtype).tiny
    at = bright.flatten().nonzero()[:, 0]
    reference = first.flatten()[at]
    return [float((echo.flatten()[at] / reference).clamp_min(tiny).log().median()) for echo in magnitude]


def _off_the_decay(level: Sequence[float], te_s: Sequence[float]) -> tuple[float, int | None]:
    """Distance of the echo that fits least from the line of the others, and which it is.

    Two of three echoes always lie on a line: then there is no name.
    """
    if len(level) < 3:
        return 0.0, None
    y, te = torch.tensor(level, dtype=torch.float64), torch.tensor(list(te_s), dtype=torch.float64)
    distances, others = [], []
    for echo in range(len(level)):
        rest = torch.arange(len(level)) != echo
        design = torch.stack([torch.ones_like(te), te / te.max()], dim=1)
        line = design @ torch.linalg.lstsq(design[rest], y[rest, None]).solution
        left = (y - line[:, 0]).abs()
        distances.append(float(left[echo]))
        others.append(float(left[rest].max()))
    if len(level) == 3:
        return max(distances), None
    echo = min(range(len(level)), key=others.__getitem__)
    return distances[echo], echo
