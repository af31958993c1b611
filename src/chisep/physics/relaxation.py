"""R2 of the brain and its dependence on the field strength."""

from __future__ import annotations

import math

from torch import Tensor

from chisep.errors import InputError

REFERENCE_R2_HZ = 12.7
"""Mean R2 of the brain at 3 T (training statistics published with χ-sepnet, Human Brain Mapping 2025)."""
R2_SLOPE_HZ_PER_T = 1.8
"""Growth of the brain's mean R2 with B0, in 1/s per tesla."""
PSEUDO_R2_SD = 0.2
"""SD of R2 between the tissues of a brain, relative to its mean: the error of one R2 for all."""


def pseudo_r2_hz(b0_t: float) -> float:
    """Mean R2 of the brain in 1/s, assumed where no spin echo measures R2.

    R2 = 12.7 + 1.8 · (B0 − 3): linear in B0, as measured at 1.5, 3 and 7 T (Cox and Gowland 2010,
    10.1002/mrm.22522). One number for the whole brain: regional differences of R2 end up in R2'.

    Parameters
    ----------
    b0_t
        Field strength in T.

    Returns
    -------
    float
        R2 in 1/s.

    Raises
    ------
    InputError
        If the field strength is not positive.
    """
    if not (math.isfinite(b0_t) and b0_t > 0):
        raise InputError(
            "B0",
            found=f"{b0_t} T",
            expected="a positive field strength",
            fix="Correct MagneticFieldStrength.",
        )
    return REFERENCE_R2_HZ + R2_SLOPE_HZ_PER_T * (b0_t - 3.0)


def r2_at_field_hz(r2_hz_at_3t: Tensor, b0_t: float) -> Tensor:
    """R2 of a tissue at a field strength, by the relative growth of the brain's mean R2.

    Parameters
    ----------
    r2_hz_at_3t
        R2 at 3 T in 1/s, of any shape.
    b0_t
        Field strength in T.

    Returns
    -------
    Tensor
        R2 at this field in 1/s, of the same shape; equal at 3 T.

    Raises
    ------
    InputError
        If the field strength is not positive.
    """
    return r2_hz_at_3t * (pseudo_r2_hz(b0_t) / REFERENCE_R2_HZ)
