"""The range of scans that a network was trained on, and scans beyond it."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import msgspec
from torch import Tensor

from chisep.networks.brain_box import BrainBox
from chisep.networks.uncertainty import noise_level
from chisep.types import Maps, Volume

_TOLERANCE = 0.1
"""Relative distance beyond a range that does not count: 3 T scanners have 2.89 T, voxel edges are rounded."""

_Positive = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
Range = tuple[_Positive, _Positive]
"""Lowest and highest value."""


class TrainingRange(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """Range of the scans in the training data; None: not known, or nothing that the network depends on.

    Parameters
    ----------
    b0_t
        Field strength.
    voxel_mm
        Voxel edges, along any axis.
    voxel_ratio
        Longest over shortest edge of a voxel.
    tilt_deg
        Largest angle between B0 and the head's long axis.
    dr_hz_per_ppm
        D_r,pos that the network was given, at 3 T: D_r·3/B0.
    dr_ratio
        D_r,neg / D_r,pos that the network was given.
    field_noise_ppb, r2prime_noise_ppb
        Noise of the local field, and of R2'/D_r,pos: median in the brain. Less noise is not beyond the range.
    """

    b0_t: Range | None = None
    voxel_mm: Range | None = None
    voxel_ratio: _Positive | None = None
    tilt_deg: _Positive | None = None
    dr_hz_per_ppm: Range | None = None
    dr_ratio: Range | None = None
    field_noise_ppb: Range | None = None
    r2prime_noise_ppb: Range | None = None

    def pairs(self) -> list[Range]:
        """All ranges with a low and a high end."""
        known = (self.b0_t, self.voxel_mm, self.dr_hz_per_ppm, self.dr_ratio)
        return [ends for ends in (*known, self.field_noise_ppb, self.r2prime_noise_ppb) if ends is not None]

    def texts(self) -> dict[str, str]:
        """Words for each limit, by its quantity."""
        pairs: dict[str, tuple[Range | None, str]] = {
            "field strength": (self.b0_t, " T"),
            "voxel edges": (self.voxel_mm, " mm"),
            "D_r at 3 T": (self.dr_hz_per_ppm, " 1/s/ppm"),
            "D_r,neg/D_r,pos": (self.dr_ratio, ""),
            "noise of the field": (self.field_noise_ppb, " ppb"),
            "noise of R2'/D_r": (self.r2prime_noise_ppb, " ppb"),
        }
        found = {name: _range_text(ends) + unit for name, (ends, unit) in pairs.items() if ends is not None}
        if self.voxel_ratio is not None:
            found["longest over shortest voxel edge"] = f"up to {self.voxel_ratio:g}"
        if self.tilt_deg is not None:
            found["B0 to the head's axis"] = f"up to {self.tilt_deg:g}°"
        return found


def beyond_training(limits: TrainingRange, maps: Maps) -> list[str]:
    """List what of a scan is outside the range of a training.

    Parameters
    ----------
    limits
        Of the training.
    maps
        Of the scan; what they do not state is not compared.

    Returns
    -------
    list of str
        Quantity, its value, and the range; empty if the scan is within.
    """
    texts = limits.texts()

    def compare(quantity: str, value: float | None, ends: Range | None, unit: str = "") -> list[str]:
        if value is None or ends is None or _is_within(value, *ends):
            return []
        return [f"{quantity}: {value:.3g}{unit} (trained: {texts[quantity]})"]

    edges = maps.grid.voxel_mm
    # The head's axes, not those of the file: networks get the head upright.
    b0 = BrainBox(maps.mask, maps.grid).grid.b0_direction
    tilt_deg = math.degrees(math.acos(min(1.0, abs(b0[2]))))
    odd_edge = min(edges, key=lambda edge: _is_within(edge, *(limits.voxel_mm or (edge, edge))))
    d_r, b0_t = maps.relaxivity, maps.b0_t
    d_r_3t = None if d_r is None or b0_t is None else d_r.pos_hz_per_ppm * 3 / b0_t
    field_noise = _noise_ppb(maps.field_sigma_ppm, maps)
    r2prime_noise = None if d_r is None else _noise_ppb(maps.r2prime_sigma_hz, maps, d_r.pos_hz_per_ppm)
    return [
        *compare("field strength", b0_t, limits.b0_t, " T"),
        *compare("voxel edges", odd_edge, limits.voxel_mm, " mm"),
        *compare("longest over shortest voxel edge", max(edges) / min(edges), _up_to(limits.voxel_ratio)),
        *compare("B0 to the head's axis", tilt_deg, _up_to(limits.tilt_deg), "°"),
        *compare("D_r at 3 T", d_r_3t, limits.dr_hz_per_ppm, " 1/s/ppm"),
        *compare("D_r,neg/D_r,pos", None if d_r is None else d_r.ratio, limits.dr_ratio),
        *compare("noise of the field", field_noise, _up_to(_high(limits.field_noise_ppb)), " ppb"),
        *compare("noise of R2'/D_r", r2prime_noise, _up_to(_high(limits.r2prime_noise_ppb)), " ppb"),
    ]


def _noise_ppb(sigma: Volume | float | None, maps: Maps, d_r_hz_per_ppm: float = 1.0) -> float | None:
    """Median noise in the mask; None where it is not given."""
    if sigma is None:
        return None
    level = noise_level(sigma[maps.mask]) if isinstance(sigma, Tensor) else sigma
    return 1000 * level / d_r_hz_per_ppm


def _is_within(value: float, low: float, high: float) -> bool:
    return low / (1 + _TOLERANCE) <= value <= high * (1 + _TOLERANCE)


def _up_to(high: float | None) -> Range | None:
    return None if high is None else (0.0, high)


def _high(ends: Range | None) -> float | None:
    return None if ends is None else ends[1]


def _range_text(ends: Range) -> str:
    low, high = ends
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
