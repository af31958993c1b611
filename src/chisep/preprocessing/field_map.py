"""Settings and result of field mapping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chisep.errors import InputError
from chisep.preprocessing.checks import Check
from chisep.types import Echoes, MaskVolume, Volume


@dataclass(frozen=True)
class FieldConfig:
    """Settings of the field map."""

    phase_sign: int = 1
    """1 if phase grows with the field, −1 if the scanner stores it the other way round."""
    fit: Literal["linear", "nonlinear"] = "linear"
    """Combination of the echoes: a line through the smoothed receiver offset, or a fit of the complex signals
    with an offset per voxel, which does not depend on the smoothed offset but has about twice the noise."""
    bipolar: bool | None = None
    """Whether odd and even echoes are read in opposite directions; by default it is detected from the
    images."""
    offset_smoothing_mm: float = 4.0
    """Standard deviation of the Gaussian that smooths the receiver's phase offset."""
    max_residual_rad: float = 0.6
    """Voxels whose echoes deviate more than this (RMS) from a line are not in the phase-quality mask."""
    max_step_rad: float = 2.2
    """Voxels whose phase difference between echoes differs more than this from that of a neighbour are not in
    the phase-quality mask: the true step may exceed π, which no unwrapping can recover."""
    accept_poor: bool = False
    """Continue with a field that fails a quality check; the check becomes a warning."""

    def __post_init__(self) -> None:
        if self.phase_sign not in (1, -1):
            raise InputError(
                "phase sign",
                found=f"{self.phase_sign}",
                expected="1 or -1",
                fix="Leave it at 1 if in doubt.",
            )
        for name in ("offset_smoothing_mm", "max_residual_rad", "max_step_rad"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"field option {name}",
                    found=f"{value}",
                    expected="a positive number",
                    fix="Leave it at its default.",
                )


@dataclass(frozen=True, eq=False)
class FieldMap:
    """The total field and intermediate maps; everything is 0 (False) outside the mask.

    Parameters
    ----------
    total_field_ppm
        Field of all sources inside and outside the brain, shape (i, j, k), up to one constant.
    sigma_ppm
        Standard deviation of its noise, shape (i, j, k).
    unwrapped_rad
        Phase of every echo without wraps and without the phase of bipolar read-outs, shape (echo, i, j, k).
    phase_offset_rad
        The receiver's phase φ₀, smoothed, within ±π, shape (i, j, k).
    bipolar_rad
        The phase ψ that bipolar read-outs add to the first, third, … echo and subtract from the others, shape
        (i, j, k); 0 where there are none.
    residual_rad
        RMS over the echoes of measured minus fitted phase, weighted as the fit, shape (i, j, k).
    quality
        Phase quality from unwrapping, 0 to 1, shape (i, j, k).
    reliable
        Phase-quality mask: largest connected component of the mask without voxels of large residual or steep
        phase, holes filled, shape (i, j, k).
    checks
        Quality checks of the field.
    warnings
        Messages for the user.
    """

    total_field_ppm: Volume
    sigma_ppm: Volume
    unwrapped_rad: Echoes
    phase_offset_rad: Volume
    bipolar_rad: Volume
    residual_rad: Volume
    quality: Volume
    reliable: MaskVolume
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
