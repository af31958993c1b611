"""Checks of single maps against each other: what shows a mistake that no map shows alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from chisep.api.units import clipped_spread
from chisep.errors import InputError
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.mask import is_inverted
from chisep.types import Maps, MaskVolume, Relaxivity, Volume

_DIPOLE_RMS = math.sqrt(4 / 45)
"""Root mean square of D over all directions of k."""
_LARGE_CHI_PPM = 0.045
"""Spread of χ, twice that of simulated heads (0.015 to 0.021) and of published maps."""
_USUAL_DR = 5.0
"""Largest ratio of D_r to its default, and of the default to it, without a warning."""
_DARKER = 0.5
"""Median magnitude in the mask over that outside, below which the mask misses the head."""
_LARGEST_NOISE = 3.0
"""σ of the field over the spread of the field: σ² is a part of its square."""


def check_maps(maps: Maps, b0_t: float | None) -> list[str]:
    """Check that maps fit each other and the mask.

    Parameters
    ----------
    maps
        Maps that a user gave, the field in ppm.
    b0_t
        Field strength in tesla; None where it is not known.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    InputError
        If the mask is inverted, or a magnitude has negative values.
    """
    _check_mask(maps.mask)
    warnings: list[str] = []
    if maps.magnitude is not None:
        _check_magnitude(maps.magnitude)
        warnings += _outside_is_brighter(maps.magnitude, maps.mask)
    return [*warnings, *_field_and_rate(maps, b0_t), *_noise_of_field(maps)]


def _check_mask(mask: MaskVolume) -> None:
    if is_inverted(mask):
        raise InputError(
            "mask",
            found="all corners of the volume inside, and other voxels outside",
            expected="a brain mask: 1 in the brain, 0 around it",
            fix="It seems to be inverted: swap 0 and 1.",
        )


def _check_magnitude(magnitude: Tensor) -> None:
    negative = float((magnitude < 0).float().mean())
    if negative > 0.01:
        raise InputError(
            "magnitude",
            found=f"negative values in {100 * negative:.0f} % of the voxels",
            expected="a magnitude image, 0 or more",
            fix="Give the magnitude; this may be a phase image.",
        )


def _outside_is_brighter(magnitude: Tensor, mask: MaskVolume) -> Iterator[str]:
    inside, outside = magnitude[mask], magnitude[~mask & (magnitude > 0)]
    if not len(inside) or not len(outside):
        return
    ratio = float(inside.median()) / float(outside.median())
    if ratio < _DARKER:
        yield (
            f"the magnitude in the mask is {ratio:.2g} of that outside (medians), where a brain is brighter: "
            "do mask and magnitude belong together?"
        )


def _field_and_rate(maps: Maps, b0_t: float | None) -> Iterator[str]:
    """Compare field and R2': no field is larger than that of sources of one sign that make all of R2'."""
    if maps.r2prime_hz is None or b0_t is None:
        return
    rate = maps.r2prime_hz[maps.mask].clamp(min=0)
    most = _DIPOLE_RMS * float(rate.square().mean().sqrt()) / default_relaxivity(b0_t).pos_hz_per_ppm
    found = clipped_spread(maps.field_ppm[maps.mask])
    if found > most > 0:
        yield (
            f"the field is typically {found:.2g} ppm in the mask, but sources that make this R2' have at "
            f"most {most:.2g} ppm: is the field in ppm, without background, and R2' in 1/s (not a time)?"
        )


def _noise_of_field(maps: Maps) -> Iterator[str]:
    if maps.field_sigma_ppm is None:
        return
    sigma = torch.as_tensor(maps.field_sigma_ppm).expand(maps.mask.shape)[maps.mask]
    known = sigma[sigma > 0]
    spread = clipped_spread(maps.field_ppm[maps.mask])
    if not len(known):
        yield "the σ map of the field is 0 in the mask: no voxel of the field is known"
    elif spread > 0 and (typical := float(known.median())) > _LARGEST_NOISE * spread:
        yield (
            f"σ of the field is typically {typical:.2g} ppm, the field itself {spread:.2g} ppm: is σ in the "
            "unit of the field?"
        )


def check_relaxivity(given: Relaxivity, b0_t: float) -> list[str]:
    """Warn of a D_r that is far from its default at a field strength."""
    usual = default_relaxivity(b0_t).pos_hz_per_ppm
    values = (given.pos_hz_per_ppm, given.neg_hz_per_ppm)
    if all(usual / _USUAL_DR <= value <= usual * _USUAL_DR for value in values):
        return []
    return [
        f"D_r is {values[0]:g} and {values[1]:g}, where {usual:.3g} is usual at {b0_t:g} T: is it in 1/s/ppm?"
    ]


def check_susceptibility(chi_ppm: Volume, mask: MaskVolume) -> list[str]:
    """Warn of a χ map whose values are typically larger than those of brains, shape (i, j, k)."""
    found = clipped_spread(chi_ppm[mask])
    if found <= _LARGE_CHI_PPM:
        return []
    return [
        f"χ is typically {found:.2g} ppm (robust RMS in the mask), where brains have 0.01 to 0.04: is the "
        "field in ppm and free of background?"
    ]
