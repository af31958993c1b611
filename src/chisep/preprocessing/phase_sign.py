"""Does phase grow with the field? Iron says so: where R2* is highest, χ has to be high too."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

_TOP_PERCENT = 2.0
_FEWEST_VOXELS = 500
_CONTRAST_PPB = -3.0
"""Contrast from which the sign is doubted: 10 to 40 ppb on sound scans, the opposite if inverted."""

_Volume = Float[np.ndarray, "i j k"]
_Mask = Bool[np.ndarray, "i j k"]


def iron_contrast_ppb(chi_ppm: _Volume, r2star_hz: _Volume, mask: _Mask, deep_grey: _Mask) -> float | None:
    """Mean χ where iron is expected, less the mean χ of the other voxels, in ppb.

    Parameters
    ----------
    chi_ppm, r2star_hz
        Susceptibility and R2*, shape (i, j, k).
    mask
        Where χ is known.
    deep_grey
        Deep grey nuclei; empty if they are not known. Then the voxels of the highest R2* take their place.

    Returns
    -------
    float or None
        In ppb; None with too few voxels.
    """
    iron = deep_grey & mask
    if np.count_nonzero(iron) * 1000 < np.count_nonzero(mask):
        iron = mask & (r2star_hz > np.percentile(r2star_hz[mask], 100 - _TOP_PERCENT)) if mask.any() else mask
    others = mask & ~iron
    if np.count_nonzero(mask) < _FEWEST_VOXELS or not iron.any() or not others.any():
        return None
    return 1000 * float(chi_ppm[iron].mean() - chi_ppm[others].mean())


def phase_sign_warnings(contrast_ppb: float | None) -> list[str]:
    """Warn if iron looks diamagnetic.

    Parameters
    ----------
    contrast_ppb
        As of `iron_contrast_ppb`.
    """
    if contrast_ppb is None or contrast_ppb > _CONTRAST_PPB:
        return []
    return [
        f"χ is lower by {-contrast_ppb:.0f} ppb where R2* is high (deep grey matter, veins), although iron "
        "raises both: the phase is probably stored with the opposite sign; try --field-map.phase-sign -1"
    ]
