"""Units of maps that are given by hand: recognised by their values, converted where the user states them.

Limits are of typical values in the brain mask: robust ones, which veins, lesions and noise hardly change.
Simulated heads and published values at 3 T: local field 0.006 ppm (RMS, at most 0.02), field with background
0.07 to 0.15 ppm, R2' 2 to 10 1/s, R2* 15 to 25 1/s, χ 0.02 ppm. What no brain has is refused, what is
unlikely is warned of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
from chisep.types import Maps

FieldUnits = Literal["ppm", "ppb", "hz", "rad/s"]
"""Units that a field map may have."""
_LARGEST_FIELD_PPM, _LARGE_FIELD_PPM, _SMALL_FIELD_PPM = 0.2, 0.03, 0.0005
_STRAY_FIELD_PPM = 5.0
"""A single voxel beyond this spoils a dipole inversion; no tissue has it."""
_USUAL_FIELD = "0.003 to 0.02"
_LARGEST_CHI_PPM = 0.5
_NO_BRAIN = 1e-9
_PLAUSIBLE_FIELD_PPM = (0.001, 0.03)
"""Of a local field, to say which unit a map may have."""
_SHARE_CLIPPED = 0.95
_SHARE_NEGATIVE = 1 / 3
"""Of the voxels, in which noise may make R2' negative; fluid and noise of R2' at SNR 25 stay below."""
_QUANTILE_VALUES = 10**6
_REFERENCE_T = 3.0
_EVEN = 0.7
"""Quantile 0.2 over the median: 0.8 for R2*, which R2 keeps from 0, and 0.55 for R2'."""


@dataclass(frozen=True)
class _Rate:
    """Limits of a typical relaxation rate in 1/s at 3 T: impossible below and above, unlikely in between."""

    name: str
    impossible_below: float
    unlikely_below: float
    unlikely_above: float
    impossible_above: float


_R2PRIME = _Rate("R2'", 0.1, 0.2, 12.0, 30.0)
_R2STAR = _Rate("R2*", 0.5, 4.0, 36.0, 44.0)


def check_field_units(units: str | None) -> None:
    """Check the name of a unit of fields.

    Raises
    ------
    InputError
        If it is unknown; capitals count.
    """
    if units is not None and units not in get_args(FieldUnits):
        raise InputError(
            "--units",
            found=f"{units!r}",
            expected=f"a unit of fields: {', '.join(get_args(FieldUnits))}",
            fix="Correct the option; the names are in small letters.",
        )


def ppm_per_unit(units: FieldUnits, b0_t: float | None) -> float:
    """Factor from a unit of the field to ppm.

    Raises
    ------
    InputError
        If the unit needs the field strength, and it is not known.
    """
    if units in ("ppm", "ppb"):
        return 1.0 if units == "ppm" else 1e-3
    if b0_t is None:
        raise InputError(
            "--units",
            found=f"{units} without the field strength",
            expected="B0, which makes a frequency a field in ppm",
            fix="Give --b0 in tesla.",
        )
    return 1 / (hz_per_ppm(b0_t) * (1 if units == "hz" else 2 * math.pi))


def field_in_ppm(maps: Maps, units: FieldUnits | None, b0_t: float | None) -> Maps:
    """Convert the field and its noise to ppm where a unit is stated; the same maps otherwise."""
    if units in (None, "ppm"):
        return maps
    factor = ppm_per_unit(units, b0_t)
    sigma = maps.field_sigma_ppm
    return replace(
        maps,
        field_ppm=maps.field_ppm * factor,
        field_sigma_ppm=None if sigma is None else sigma * factor,
    )


def check_units(maps: Maps, b0_t: float | None, *, stated: bool, needs_local_field: bool = True) -> list[str]:
    """Check that values are those of the units that chisep takes.

    Parameters
    ----------
    maps
        Maps that a user gave.
    b0_t
        Field strength in tesla; None where it is not known.
    stated
        Whether the user states units: what no brain has is then warned of, too.
    needs_local_field
        Whether the field is read.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    InputError
        If values are such as no brain has in these units; it says the factor to apply.
    """
    warnings: list[str] = []
    strength = (b0_t or _REFERENCE_T) / _REFERENCE_T
    found = [*(_field(maps, b0_t) if needs_local_field else ()), *_chi(maps)]
    if maps.r2prime_hz is not None:
        found += _r2prime(maps.r2prime_hz[maps.mask], strength)
    if maps.r2star_hz is not None:
        found += _r2star(maps.r2star_hz[maps.mask], strength)
    for problem in found:
        if isinstance(problem, str):
            warnings.append(problem)
        elif stated:
            warnings.append(f"{problem.source}: {problem.found}; expected {problem.expected}")
        else:
            raise problem
    # R2' is a difference, which noise makes negative in some voxels; R2* is not.
    for name, rate, allowed in (("R2'", maps.r2prime_hz, _SHARE_NEGATIVE), ("R2*", maps.r2star_hz, 0.0)):
        negative = 0 if rate is None else int(torch.count_nonzero(rate[maps.mask] < 0))
        if negative > allowed * int(maps.mask.sum()):
            warnings.append(
                f"{name} is negative in {negative} voxels of the mask; the sources stay 0 at least"
            )
    return warnings


def _field(maps: Maps, b0_t: float | None) -> Iterator[InputError | str]:
    size = clipped_spread(maps.field_ppm[maps.mask])
    if size > _LARGEST_FIELD_PPM:
        yield InputError(
            "field map",
            found=f"values of typically {size:.3g} (robust RMS in the mask)",
            expected=f"the local field in ppm, typically {_USUAL_FIELD}",
            fix=_field_fix(size, b0_t),
        )
    elif stray := int((maps.field_ppm[maps.mask].abs() > _STRAY_FIELD_PPM).sum()):
        yield InputError(
            "field map",
            found=f"values beyond ±{_STRAY_FIELD_PPM:g} ppm in {stray} voxels of the mask",
            expected=f"the local field in ppm, typically {_USUAL_FIELD}",
            fix="Leave fill values and stray voxels out of the mask.",
        )
    elif size > _LARGE_FIELD_PPM:
        yield (
            f"the field is typically {size:.3g} ppm in the mask, a local field {_USUAL_FIELD}: is it free of "
            "background, and in ppm? --units states another unit"
        )
    elif _NO_BRAIN < size < _SMALL_FIELD_PPM:
        yield (
            f"the field is typically {size:.3g} ppm in the mask, a local field {_USUAL_FIELD}: is it in ppm?"
        )


def _field_fix(size: float, b0_t: float | None) -> str:
    """Say which unit would make the field one of a brain, and by what factor."""
    low, high = _PLAUSIBLE_FIELD_PPM
    if b0_t is None:
        return (
            "State its unit: --units ppb, or --units hz or rad/s with --b0 (ppm = Hz / (42.58 · B0)). A "
            "field in ppm with its background needs background removal first."
        )
    units: tuple[FieldUnits, ...] = ("hz", "rad/s", "ppb")
    factors = {unit: ppm_per_unit(unit, b0_t) for unit in units}
    fitting = [unit for unit in units if low <= size * factors[unit] <= high] or list(units)
    ways = ", or ".join(
        f"--units {unit} if it is in {_WRITTEN[unit]} (× {factors[unit]:.4g})" for unit in fitting
    )
    return (
        f"State its unit: {ways}, at {b0_t:g} T. A field in ppm with its background needs background removal "
        "first."
    )


_WRITTEN = {"hz": "Hz", "rad/s": "rad/s", "ppb": "ppb"}


def _chi(maps: Maps) -> Iterator[InputError]:
    if maps.chi_ppm is not None and (size := clipped_spread(maps.chi_ppm[maps.mask])) > _LARGEST_CHI_PPM:
        yield InputError(
            "susceptibility map",
            found=f"values of typically {size:.3g} (robust RMS in the mask)",
            expected="χ in ppm, typically 0.01 to 0.05",
            fix="If it is in ppb, multiply it by 0.001.",
        )


def _r2prime(values: Tensor, strength: float) -> Iterator[InputError | str]:
    typical = float(values.median())
    if typical > 10 * strength and _quantile(values, 0.2) > _EVEN * typical:
        yield InputError(
            "map of R2'",
            found=f"values of typically {typical:.3g} that hardly come near 0, as those of R2* or T2* do",
            expected=f"R2' in 1/s, typically {2 * strength:.2g} to {10 * strength:.2g}",
            fix="If it is R2*, subtract R2, or give it as --r2star to a method that takes R2*. If it is T2* "
            "in ms, R2* is 1000 / T2*.",
        )
    else:
        yield from _rate(_R2PRIME, values, strength, strength)


def _r2star(values: Tensor, strength: float) -> Iterator[InputError | str]:
    # R2 hardly depends on the field strength: two thirds of R2* at 3 T.
    yield from _rate(_R2STAR, values, min(1.0, strength), max(0.8, (2 + strength) / 3))


def _rate(limits: _Rate, values: Tensor, low: float, high: float) -> Iterator[InputError | str]:
    """Compare the clipped mean of a rate with its limits, scaled by factors for low and high ones."""
    typical = float(values.clamp(max=_quantile(values, _SHARE_CLIPPED)).mean())
    usual = f"{limits.unlikely_below * low:.2g} to {limits.unlikely_above * high:.2g}"
    if typical < -_NO_BRAIN:
        fix = f"{limits.name} is positive, except for noise: check its sign, and what was subtracted."
    elif _NO_BRAIN < typical < limits.impossible_below * low:
        fix = "If it is in 1/ms, multiply it by 1000; if it is a time in s, take 1 / time."
    elif typical > limits.impossible_above * high:
        fix = f"If it is a time in ms, such as T2*, {limits.name} is 1000 / time."
    else:
        fix = ""
    if fix:
        yield InputError(
            f"map of {limits.name}",
            found=f"values of typically {typical:.3g} (mean in the mask)",
            expected=f"{limits.name} in 1/s, typically {usual}",
            fix=fix,
        )
    elif _NO_BRAIN < typical < limits.unlikely_below * low or typical > limits.unlikely_above * high:
        yield (
            f"{limits.name} is typically {typical:.3g} 1/s in the mask, where brains have {usual}: is it "
            f"{limits.name}, and in 1/s?"
        )


def clipped_spread(values: Tensor) -> float:
    """Root mean square about the median, of values that are clipped where the largest 5 % begin."""
    distance = (values - values.median()).abs()
    return float(
        distance.clamp(max=_quantile(distance, _SHARE_CLIPPED)).square().mean(dtype=torch.float64).sqrt()
    )


def _quantile(values: Tensor, share: float) -> float:
    """Quantile of values; of every second, third, … one where they are very many."""
    return float(values[:: 1 + len(values) // _QUANTILE_VALUES].quantile(share))
