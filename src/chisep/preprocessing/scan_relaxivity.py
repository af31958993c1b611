"""D_r of a scan without a segmentation: from R2' and χ of iron-rich and of diamagnetic tissue.

R2' = D_r,pos χ_pos + D_r,neg χ_neg and χ = χ_pos − χ_neg have more unknowns than equations. D_r follows from
what tissue is known to hold: iron-rich tissue has little χ_neg for its χ, and strongly diamagnetic tissue has
about the same χ_pos in all people (χ-separation atlas, Min 2024, 10.1002/nbm.5226).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.physics.signal import default_relaxivity
from chisep.types import Grid, MaskVolume, Relaxivity, Volume

Numbers = Float[np.ndarray, "i j k"]
Voxels = Bool[np.ndarray, "i j k"]
Counts = Float[np.ndarray, "resample voxels"]
Values = Float[np.ndarray, " resample"]

_SMOOTHING_MM = 1.5
"""SD of the Gaussian that both maps are smoothed with."""
_RIM_MM, _CORE_MM = 4.0, 2.0
"""Distance from the edge of the mask; neighbourhood that has to be of the same kind, which veins are not."""
_LESION_MM = 4.0
"""Distance from voxels beyond the highest |χ|: haemorrhage, calcification."""
_IRON_PPM = (0.06, 0.3)
_DIAMAGNETIC_PPM = (0.015, 0.15)
_IRON_CORE, _DIAMAGNETIC_CORE = 0.6, 0.3
"""Lowest |χ| in the neighbourhood, relative to the lowest |χ|."""
_FEWEST_IRON_ML, _FEWEST_DIAMAGNETIC_ML = 0.3, 2.0
_LOW_QUANTILE = 0.25
"""Of R2'/χ in iron-rich tissue, so that voxels with myelin count little."""
_BLOCK_MM = 6.0
"""Edge of the blocks that are resampled together: errors of neighbours are correlated."""
_RESAMPLES = 400
_WIDEST = 2.0
"""Highest over lowest value of an interval that is narrow enough to be used."""
_Z90 = 1.645
_RATIOS = (0.4, 1.5)
"""D_r,neg over D_r,pos that is believed; the estimate was validated from 0.4 to 1.3."""
_STATIC_RATIO = 0.83
"""D_r,neg over D_r,pos by static dephasing: cylinders of all directions over spheres, 2/3 · 133.77 / 107.84
(Yablonskiy and Haacke 1994, 10.1002/mrm.1910320610)."""

# Measured on digital phantoms with the truth known, see docs/decisions/0018-relaxivity-from-scan.md.
_IRON_NEG = 0.07
"""χ_neg over χ in iron-rich tissue."""
_IRON_SHRINKAGE = 1.058
"""χ over its estimate in iron-rich tissue."""
_DIAMAGNETIC_POS_PPM = 0.017
"""χ_pos in diamagnetic tissue."""
_DIAMAGNETIC_SHRINKAGE = 1.23
"""χ over its estimate in diamagnetic tissue."""
_POS_MODEL_SD, _NEG_MODEL_SD = 0.05, 0.12
"""Relative errors between phantoms, which the bootstrap of one scan cannot see."""


@dataclass(frozen=True)
class Estimate:
    """An estimated D_r.

    Parameters
    ----------
    hz_per_ppm
        D_r in 1/s/ppm; NaN where there is too little tissue.
    interval90
        Its 90 % interval.
    tissue_ml
        Volume of the tissue that it is from.
    """

    hz_per_ppm: float
    interval90: tuple[float, float]
    tissue_ml: float

    @property
    def is_usable(self) -> bool:
        """Whether its interval is narrow: highest over lowest value at most 2."""
        low, high = self.interval90
        return math.isfinite(self.hz_per_ppm) and low > 0 and high <= _WIDEST * low

    @property
    def text(self) -> str:
        """Value and interval in words."""
        if not math.isfinite(self.hz_per_ppm):
            return f"no estimate from {self.tissue_ml:.1f} ml of tissue"
        low, high = self.interval90
        return f"{self.hz_per_ppm:.0f} 1/s/ppm (90 % interval {low:.0f} to {high:.0f})"


@dataclass(frozen=True)
class ScanRelaxivity:
    """D_r,pos and D_r,neg from one scan."""

    pos: Estimate
    neg: Estimate


@dataclass(frozen=True)
class ChosenRelaxivity:
    """D_r that a scan is processed with.

    Parameters
    ----------
    relaxivity
        D_r of both sources.
    facts
        Values, intervals and where they are from, for records and sidecars.
    warnings
        What was chosen and why.
    """

    relaxivity: Relaxivity
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def choose_relaxivity(
    found: ScanRelaxivity | None, b0_t: float, why_none: str = "there is no measured R2'"
) -> ChosenRelaxivity:
    """Choose the D_r of a scan where it is certain enough, else the default of the field strength.

    Parameters
    ----------
    found
        Estimate; None where there is none.
    b0_t
        Field strength in tesla.
    why_none
        Why there is none.
    """
    default = default_relaxivity(b0_t)
    instead = f"{default.pos_hz_per_ppm:.4g} 1/s/ppm (114·B0/3) for both sources"
    if found is None:
        text = f"no D_r from this scan, as {why_none}; {instead} is used"
        return ChosenRelaxivity(default, _facts(default, "default"), (text,))
    pos, neg = found.pos, found.neg
    if not pos.is_usable:
        text = f"D_r of this scan is too uncertain, D_r,pos: {pos.text}; {instead} is used"
        return ChosenRelaxivity(default, _facts(default, "default", found), (text,))
    if not neg.is_usable:
        text = f"D_r,pos is {pos.text} by this scan; D_r,neg is too uncertain, {neg.text}: D_r,pos is used"
        used = Relaxivity(pos.hz_per_ppm, pos.hz_per_ppm)
        return ChosenRelaxivity(used, _facts(used, "scan, D_r,pos for both sources", found), (text,))
    if not _RATIOS[0] <= neg.hz_per_ppm / pos.hz_per_ppm <= _RATIOS[1]:
        used = Relaxivity(pos.hz_per_ppm, _STATIC_RATIO * pos.hz_per_ppm)
        text = (
            f"D_r,pos is {pos.text} by this scan; D_r,neg would be {neg.text}, which is not {_RATIOS[0]:g} "
            f"to {_RATIOS[1]:g} times D_r,pos: {_STATIC_RATIO:g} times D_r,pos is used (static dephasing)"
        )
        return ChosenRelaxivity(used, _facts(used, "scan, D_r,neg by static dephasing", found), (text,))
    used = Relaxivity(pos.hz_per_ppm, neg.hz_per_ppm)
    text = f"D_r,pos is {pos.text} and D_r,neg {neg.text} by this scan, in place of {instead}"
    return ChosenRelaxivity(used, _facts(used, "scan", found), (text,))


def _facts(used: Relaxivity, source: str, found: ScanRelaxivity | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "D_r_source": source,
        "D_r_pos": used.pos_hz_per_ppm,
        "D_r_neg": used.neg_hz_per_ppm,
    }
    for name, one in {} if found is None else {"pos": found.pos, "neg": found.neg}.items():
        if math.isfinite(one.hz_per_ppm):
            low, high = one.interval90
            facts |= {
                f"D_r_{name}_estimate": one.hz_per_ppm,
                f"D_r_{name}_low90": low,
                f"D_r_{name}_high90": high,
            }
        facts[f"D_r_{name}_tissue_ml"] = one.tissue_ml
    return facts


def source_text(facts: Mapping[str, Any]) -> str:
    """Describe where the D_r of a scan is from, with the intervals of its estimates.

    Parameters
    ----------
    facts
        Of `choose_relaxivity`.
    """
    texts = [
        f"χ_{name} {facts[f'D_r_{name}_low90']:.4g} to {facts[f'D_r_{name}_high90']:.4g} 1/s/ppm"
        for name in ("pos", "neg")
        if f"D_r_{name}_low90" in facts
    ]
    return f"{facts['D_r_source']}; 90 % intervals: {', '.join(texts) or 'no estimate'}"


def relaxivity_of_scan(
    r2prime_hz: Volume,
    chi_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    rng: np.random.Generator,
    *,
    chi_is_true: bool = False,
) -> ScanRelaxivity:
    """Estimate D_r,pos and D_r,neg from R2' and χ.

    In iron-rich tissue (χ of 60 to 300 ppb) χ_neg is some 7 % of χ, so that the lower quartile of R2'/χ is
    D_r,pos + 0.07 (D_r,pos + D_r,neg). In diamagnetic tissue (χ of −15 to −150 ppb) χ_pos is some 17 ppb, so
    that the mean of R2' is 17 ppb D_r,pos + (17 ppb + |χ|) D_r,neg. Both equations are linear in both D_r.

    Parameters
    ----------
    r2prime_hz
        R2' in 1/s, shape (i, j, k).
    chi_ppm
        Susceptibility by `unrolled-qsm` on voxels of about 2 mm, shape (i, j, k). Other methods or
        resolutions have another bias than the constants here.
    mask
        Where both are known, shape (i, j, k).
    grid
        Voxel edges.
    rng
        Draws the resamples.
    chi_is_true
        χ is not underestimated, as that of a QSM is.

    Returns
    -------
    ScanRelaxivity
        With intervals from a bootstrap over blocks of 6 mm and from the errors in digital phantoms.

    Notes
    -----
    Veins (thin), the surroundings of |χ| beyond the range (lesions) and 2 mm at the edge of the mask are left
    out. Without enough diamagnetic tissue D_r,neg counts as D_r,pos in the first equation.
    """
    rates, chi, iron, diamagnetic = _tissues(
        r2prime_hz.double().cpu().numpy(), chi_ppm.double().cpu().numpy(), mask.cpu().numpy(), grid.voxel_mm
    )
    of_iron, of_dia = (_Sample(rates, chi, where, grid.voxel_mm) for where in (iron, diamagnetic))
    if of_iron.millilitre < _FEWEST_IRON_ML:
        return ScanRelaxivity(_none(of_iron), _none(of_dia))
    iron_shrinkage, dia_shrinkage = (1.0, 1.0) if chi_is_true else (_IRON_SHRINKAGE, _DIAMAGNETIC_SHRINKAGE)
    ratio = of_iron.low_ratios(rng) / iron_shrinkage
    if of_dia.millilitre < _FEWEST_DIAMAGNETIC_ML:
        return ScanRelaxivity(
            _estimate(ratio / (1 + 2 * _IRON_NEG), _POS_MODEL_SD, of_iron.millilitre), _none(of_dia)
        )
    rate, chi_dia = of_dia.means(rng)
    of_neg = _DIAMAGNETIC_POS_PPM + dia_shrinkage * np.abs(chi_dia)
    determinant = (1 + _IRON_NEG) * of_neg - _IRON_NEG * _DIAMAGNETIC_POS_PPM
    pos = (of_neg * ratio - _IRON_NEG * rate) / determinant
    neg = ((1 + _IRON_NEG) * rate - _DIAMAGNETIC_POS_PPM * ratio) / determinant
    return ScanRelaxivity(
        _estimate(pos, _POS_MODEL_SD, of_iron.millilitre), _estimate(neg, _NEG_MODEL_SD, of_dia.millilitre)
    )


def _tissues(
    rates: Numbers, chi: Numbers, mask: Voxels, voxel_mm: tuple[float, float, float]
) -> tuple[Numbers, Numbers, Voxels, Voxels]:
    """Smoothed R2' and χ, iron-rich and diamagnetic tissue."""
    sigma = [_SMOOTHING_MM / edge for edge in voxel_mm]
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(np.float64), sigma), 1e-3)
    smooth_rates, smooth_chi = (
        ndimage.gaussian_filter(np.where(mask, volume, 0.0), sigma) / weight for volume in (rates, chi)
    )
    # Outside of the volume is outside of the mask.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=voxel_mm)[1:-1, 1:-1, 1:-1]
    size = [2 * round(_CORE_MM / edge) + 1 for edge in voxel_mm]

    def tissue(paramagnetic: Numbers, low: float, high: float, core: float) -> Voxels:
        beyond = mask & (paramagnetic > high)
        near = beyond
        if beyond.any():
            near = ndimage.distance_transform_edt(~beyond, sampling=voxel_mm) <= _LESION_MM
        inner = ndimage.minimum_filter(paramagnetic, size) > core * low
        return np.asarray((depth > _RIM_MM) & (paramagnetic > low) & inner & ~near)

    iron = tissue(smooth_chi, *_IRON_PPM, _IRON_CORE)
    diamagnetic = tissue(-smooth_chi, *_DIAMAGNETIC_PPM, _DIAMAGNETIC_CORE)
    return smooth_rates, smooth_chi, iron, diamagnetic


class _Sample:
    """Voxels of one tissue, in blocks that are resampled together.

    Attributes
    ----------
    millilitre
        Volume.
    """

    def __init__(
        self, rates: Numbers, chi: Numbers, where: Voxels, voxel_mm: tuple[float, float, float]
    ) -> None:
        self._rates, self._chi = rates[where], chi[where]
        places = np.argwhere(where) * np.array(voxel_mm) // _BLOCK_MM
        _, block = np.unique(places, axis=0, return_inverse=True)
        self._block = block.ravel()
        self.millilitre = self._rates.size * math.prod(voxel_mm) / 1000

    def _times(self, rng: np.random.Generator) -> Counts:
        """How often each voxel counts: once first, then in each resample."""
        blocks = int(self._block.max()) + 1
        drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=_RESAMPLES)
        return np.concatenate([np.ones((1, blocks)), drawn])[:, self._block]

    def low_ratios(self, rng: np.random.Generator) -> Values:
        """Lower quartile of R2'/χ, of all voxels and of each resample."""
        ratios = self._rates / self._chi
        order = np.argsort(ratios)
        share = np.cumsum(self._times(rng)[:, order], axis=1)
        first = (share >= _LOW_QUANTILE * share[:, -1:]).argmax(axis=1)
        return np.asarray(ratios[order][first])

    def means(self, rng: np.random.Generator) -> tuple[Values, Values]:
        """Means of R2' and χ, of all voxels and of each resample."""
        times = self._times(rng)
        total = times.sum(1)
        return times @ self._rates / total, times @ self._chi / total


def _none(sample: _Sample) -> Estimate:
    return Estimate(math.nan, (math.nan, math.nan), sample.millilitre)


def _estimate(values: Values, model_sd: float, millilitre: float) -> Estimate:
    """Estimate with its interval from the value of the scan (first) and those of its resamples."""
    value, resampled = float(values[0]), values[1:]
    if not (math.isfinite(value) and value > 0 and (resampled > 0).all()):
        return Estimate(math.nan, (math.nan, math.nan), millilitre)
    sd = math.hypot(model_sd, float(np.log(resampled).std()))
    factor = math.exp(_Z90 * sd)
    return Estimate(value, (value / factor, value * factor), millilitre)
