"""Which sources dephase: the model of R2' that a scan with a known χ map agrees with, and its D_r.

In chisep both sources dephase in all tissue: R2' = D_r,pos χ_pos + D_r,neg χ_neg. In the benchmark's worlds
χ_neg dephases as the myelin of fibres, in white matter only (static dephasing: Yablonskiy and Haacke 1994,
10.1002/mrm.1910320610; Ridani 2026, 10.1002/mrm.70468). With a known χ the two models differ in how much
χ_neg they find in paramagnetic tissue, where it is known from the atlas (Min 2024, 10.1002/nbm.5226).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from chisep.methods.scan_relaxivity import estimate_relaxivity, relaxivity_from
from chisep.preprocessing.scan_relaxivity import ScanRelaxivity, choose_relaxivity
from chisep.types import Maps, Relaxivity, Volume

_PARAMAGNETIC_PPM, _DIAMAGNETIC_PPM = (0.03, 0.3), (-0.15, -0.015)
"""χ of deep grey matter and of white matter."""
_RIM_MM = 4.0
"""Distance from the edge of the mask."""
_FEWEST_ML = 2.0
"""Smallest volume of each tissue."""
_PARAMAGNETIC_NEG_PPM = 0.0194
"""χ_neg in tissue of χ from 30 to 300 ppb: 19.6 and 19.2 ppb in the phantoms of heads 09 and 10, which have
the sources of the atlas."""
_IRON_NEG = 0.07
"""χ_neg over χ in iron-rich tissue, as in the estimate of D_r."""
_WIDEST_RATIO = 2.5
"""Largest D_r,neg over D_r,pos that is believed with a known χ: it is 2.17 in the benchmark's `3t-iso`."""


@dataclass(frozen=True)
class Dephasing:
    """A model of R2' and its D_r.

    Parameters
    ----------
    relaxivity
        D_r of both sources where they dephase.
    neg_in_diamagnetic_only
        Whether χ_neg dephases in diamagnetic tissue only.
    source
        Where D_r is from.
    warnings
        What was chosen and why.
    """

    relaxivity: Relaxivity
    neg_in_diamagnetic_only: bool
    source: str
    warnings: tuple[str, ...]

    def r2prime_hz(self, maps: Maps) -> Volume | None:
        """R2' that the sources would have if both dephased in all tissue, in 1/s."""
        if not self.neg_in_diamagnetic_only or maps.r2prime_hz is None or maps.chi_ppm is None:
            return maps.r2prime_hz
        pos, neg = self.relaxivity.pos_hz_per_ppm, self.relaxivity.neg_hz_per_ppm
        of_pos = torch.full_like(maps.chi_ppm, pos)
        of_neg = torch.where(maps.chi_ppm > 0, 0.0, neg)
        return equivalent_r2prime(maps.r2prime_hz, maps.chi_ppm, (of_pos, of_neg), self.relaxivity)


def dephasing_of(maps: Maps, b0_t: float, *, chi_is_true: bool) -> Dephasing:
    """Choose the model of R2' and estimate its D_r.

    Parameters
    ----------
    maps
        Local field, R2', mask, and χ if known.
    b0_t
        Field strength in T.
    chi_is_true
        Whether χ of the maps made the field. If not, both sources dephase in all tissue.
    """
    if not chi_is_true or maps.chi_ppm is None or maps.r2prime_hz is None:
        chosen = relaxivity_from(maps, b0_t)
        return Dephasing(chosen.relaxivity, False, chosen.facts["D_r_source"], chosen.warnings)
    found = estimate_relaxivity(maps, chi_is_true=True)
    everywhere = _everywhere(found, b0_t)
    white = _in_white_matter(maps, maps.r2prime_hz, maps.chi_ppm, found)
    if white is None:
        return everywhere
    excess_hz, d_r = white
    both = excess_hz[0] / (everywhere.relaxivity.pos_hz_per_ppm + everywhere.relaxivity.neg_hz_per_ppm)
    alone = excess_hz[1] / d_r.pos_hz_per_ppm
    if min(both, alone) <= 0 or _misfit(both) <= _misfit(alone):
        return everywhere
    text = (
        "χ_neg dephases in diamagnetic tissue only: otherwise paramagnetic tissue has "
        f"{1000 * both:.1f} instead of {1000 * alone:.1f} ppb of it (atlas: "
        f"{1000 * _PARAMAGNETIC_NEG_PPM:.1f}). D_r,pos is {d_r.pos_hz_per_ppm:.0f} and D_r,neg "
        f"{d_r.neg_hz_per_ppm:.0f} 1/s/ppm by this scan"
    )
    return Dephasing(d_r, True, "scan, χ_neg in diamagnetic tissue only", (text,))


def equivalent_r2prime(
    r2prime_hz: Volume, chi_ppm: Volume, true_hz_per_ppm: tuple[Volume, Volume], relaxivity: Relaxivity
) -> Volume:
    """R2' that the sources of a scan with D_r of every voxel would have with one D_r, shape (i, j, k).

    Parameters
    ----------
    r2prime_hz, chi_ppm
        R2' in 1/s and the known χ in ppm, shape (i, j, k).
    true_hz_per_ppm
        D_r,pos and D_r,neg of every voxel, shape (i, j, k).
    relaxivity
        D_r of all voxels.
    """
    of_pos, of_neg = true_hz_per_ppm
    pos = (r2prime_hz + of_neg * chi_ppm) / (of_pos + of_neg).clamp_min(1e-6)
    pos = torch.maximum(pos, chi_ppm.clamp_min(0))
    return relaxivity.pos_hz_per_ppm * pos + relaxivity.neg_hz_per_ppm * (pos - chi_ppm)


def _misfit(neg_ppm: float) -> float:
    return abs(math.log(neg_ppm / _PARAMAGNETIC_NEG_PPM))


def _everywhere(found: ScanRelaxivity, b0_t: float) -> Dephasing:
    """D_r if both sources dephase in all tissue."""
    chosen = choose_relaxivity(found, b0_t)
    pos, neg = found.pos.hz_per_ppm, found.neg.hz_per_ppm
    if found.pos.is_usable and found.neg.is_usable and pos < neg <= _WIDEST_RATIO * pos:
        text = f"D_r,pos is {found.pos.text} and D_r,neg {found.neg.text} by this scan"
        return Dephasing(Relaxivity(pos, neg), False, "scan", (text,))
    return Dephasing(chosen.relaxivity, False, chosen.facts["D_r_source"], chosen.warnings)


def _in_white_matter(
    maps: Maps, r2prime_hz: Volume, chi_ppm: Volume, found: ScanRelaxivity
) -> tuple[tuple[float, float], Relaxivity] | None:
    """R2' of paramagnetic tissue beyond D_r,pos χ with the D_r,pos of both models, and D_r of the second one.

    D_r,pos is from iron-rich tissue without χ_neg. D_r,neg is the slope of R2' on |χ| in diamagnetic tissue,
    since χ there differs by χ_neg. None where there is too little tissue.
    """
    if not (math.isfinite(found.pos.hz_per_ppm) and math.isfinite(found.neg.hz_per_ppm)):
        return None
    depth = ndimage.distance_transform_edt(np.pad(maps.mask.numpy(), 1), sampling=maps.grid.voxel_mm)
    inner = torch.from_numpy(depth[1:-1, 1:-1, 1:-1] > _RIM_MM)
    tissues = [
        inner & (chi_ppm > low) & (chi_ppm < high) for low, high in (_PARAMAGNETIC_PPM, _DIAMAGNETIC_PPM)
    ]
    fewest = 1000 * _FEWEST_ML / math.prod(maps.grid.voxel_mm)
    if min(int(tissue.sum()) for tissue in tissues) < fewest:
        return None
    (rate, chi), (rate_white, chi_white) = (
        (r2prime_hz[tissue].double(), chi_ppm[tissue].double()) for tissue in tissues
    )
    pos = found.pos.hz_per_ppm + _IRON_NEG / (1 + _IRON_NEG) * found.neg.hz_per_ppm
    covariance = torch.cov(torch.stack((rate_white, -chi_white)))
    neg = float(covariance[0, 1] / covariance[1, 1])
    if neg <= 0:
        return None
    excess_both, excess = (float((rate - d_r * chi).mean()) for d_r in (found.pos.hz_per_ppm, pos))
    return (excess_both, excess), Relaxivity(pos, neg)
