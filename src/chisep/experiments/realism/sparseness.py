"""How sparse χ is in bands of Gaussian filters, compared with a COSMOS map of one volunteer.

Most of a real map is flat, and few structures are strong: its bands have a kurtosis far above the 3 of a
Gaussian random field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from chisep.physics.dipole import Dipole
from chisep.report.figures import MaskArray, VolumeArray
from chisep.simulation import labelmap
from chisep.simulation.structured_errors import (
    BAND_SD_PPB,
    frequencies,
    power_by_angle,
    structured_field_error,
)
from chisep.simulation.tissue import Tissue
from chisep.types import Grid

COSMOS_VOXEL_MM = 1.06
"""Voxel edge of the COSMOS map."""
BAND_SIGMAS_VOXELS = (1.0, 2.0, 4.0)
"""Bands lie below the first, between the first and second, and between the second and third of these σ."""
ROBUST_TOLERANCE, KURTOSIS_FACTOR = 0.25, 1.5
"""Agreement: robust SD within 25 %, kurtosis within a factor of 1.5."""
_ORIENTATIONS, _TILT_DEG = 12, 35.0
_ERODED_MM = 3.0
_LARGEST_VOXEL_MM = 1.3
_SMALLEST_KERNEL = 1e-3


@dataclass(frozen=True)
class Band:
    """Published spread of COSMOS in a band, in ppb: SD, robust SD (1.48 MAD), kurtosis (3: Gaussian)."""

    name: str
    sd: float
    robust_sd: float
    kurtosis: float


COSMOS_BANDS = (
    Band("below 1", 12.8, 8.0, 25.0),
    Band("1–2", 7.4, 4.9, 22.0),
    Band("2–4", 7.8, 5.1, 20.0),
)
"""COSMOS of 12 orientations, one volunteer at 3 T, 1.06 mm; bands by σ in voxels of it."""


def sparseness(tissue: Tissue) -> dict[str, list[dict[str, float]]] | None:
    """Measure SD, robust SD and kurtosis of χ in bands, of the truth and as COSMOS would measure it.

    Parameters
    ----------
    tissue
        A head.

    Returns
    -------
    dict or None
        `truth` and `as_cosmos`, each with one entry per band of `COSMOS_BANDS`; None where voxels are too
        large.

    Notes
    -----
    Bands are in the brain, eroded by 3 mm and without sinuses, as masks of COSMOS are. See `as_cosmos`.
    """
    if max(tissue.grid.voxel_mm) > _LARGEST_VOXEL_MM:
        return None
    mask = tissue.mask.numpy()
    distance = ndimage.distance_transform_edt(mask, sampling=tissue.grid.voxel_mm)
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    mask = mask[box]
    chi = 1000 * (tissue.chi_pos_ppm - tissue.chi_neg_ppm).numpy()[box] * mask
    inside = (distance[box] > _ERODED_MM) & (tissue.labels.numpy()[box] != labelmap.VEIN)
    voxel_mm = tissue.grid.voxel_mm
    measured = as_cosmos(chi, mask, tissue.grid.reshaped(chi.shape), np.random.default_rng(0))
    return {"truth": bands(chi, inside, voxel_mm), "as_cosmos": bands(measured, inside, voxel_mm)}


def as_cosmos(chi_ppb: VolumeArray, mask: MaskArray, grid: Grid, rng: np.random.Generator) -> VolumeArray:
    """Blur χ and add errors as a COSMOS map of 12 orientations has them.

    Parameters
    ----------
    chi_ppb
        True χ, shape (i, j, k), 0 outside the mask.
    mask
        Brain.
    grid
        Voxel size and B0 direction.
    rng
        Draws the error.

    Returns
    -------
    VolumeArray
        χ in ppb, 0 outside the mask.

    Notes
    -----
    Eleven of twelve fields are moved to the first by linear interpolation: a random shift has the mean kernel
    ⅛, ¾, ⅛ along each axis. Errors of the fields are independent, each with the spectrum P of what
    D * COSMOS leaves of the volunteer's local field; their least-squares combination has the spectrum
    Σ D² P / (Σ D²)².
    """
    blurred = chi_ppb
    for axis in range(3):
        blurred = ndimage.convolve1d(blurred, [0.125, 0.75, 0.125], axis=axis, mode="constant")
    mean = (chi_ppb + (_ORIENTATIONS - 1) * blurred) / _ORIENTATIONS
    field = structured_field_error(torch.from_numpy(mask), grid, rng) * math.hypot(*BAND_SD_PPB)
    total, power = torch.zeros(()), torch.zeros(())
    for direction in _directions(grid.b0_direction):
        turned = Grid(grid.shape, grid.voxel_mm, direction, grid.affine)
        square = Dipole(turned, pad=False).kernel.square()
        total, power = total + square, power + square * power_by_angle(frequencies(turned)[1])
    power /= power_by_angle(frequencies(grid)[1])
    spectrum = torch.fft.rfftn(field) * power.sqrt_() / total.clamp_(min=_SMALLEST_KERNEL)
    error = torch.fft.irfftn(spectrum, s=grid.shape)
    return np.asarray((mean + error.numpy()) * mask, dtype=np.float32)


def bands(chi_ppb: VolumeArray, inside: MaskArray, voxel_mm: Sequence[float]) -> list[dict[str, float]]:
    """SD, robust SD and kurtosis of the bands of `COSMOS_BANDS`.

    Parameters
    ----------
    chi_ppb
        The map.
    inside
        Voxels that count.
    voxel_mm
        Voxel edges.
    """
    found, finer = [], chi_ppb
    for sigma in BAND_SIGMAS_VOXELS:
        smooth = ndimage.gaussian_filter(chi_ppb, [sigma * COSMOS_VOXEL_MM / edge for edge in voxel_mm])
        found.append(spread((finer - smooth)[inside]))
        finer = smooth
    return found


def spread(values: VolumeArray) -> dict[str, float]:
    """SD, robust SD (1.4826 times the median absolute deviation) and kurtosis (Gaussian: 3) of values."""
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    sd = math.sqrt(float((centred**2).mean()))
    robust = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    kurtosis = float((centred**4).mean()) / sd**4 if sd else 0.0
    return {"sd": round(sd, 3), "robust_sd": round(robust, 3), "kurtosis": round(kurtosis, 2)}


def agreement(band: Band) -> dict[str, tuple[float, float]]:
    """Range of each statistic that counts as agreement with COSMOS."""
    return {
        "robust_sd": (band.robust_sd * (1 - ROBUST_TOLERANCE), band.robust_sd * (1 + ROBUST_TOLERANCE)),
        "kurtosis": (band.kurtosis / KURTOSIS_FACTOR, band.kurtosis * KURTOSIS_FACTOR),
    }


def sparseness_rows(heads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the bands of heads with COSMOS: one row per band and statistic."""
    known = [head["sparseness"] for head in heads if head.get("sparseness")]
    rows = []
    for number, band in enumerate(COSMOS_BANDS if known else ()):
        for statistic in ("sd", "robust_sd", "kurtosis"):
            values = [head["as_cosmos"][number][statistic] for head in known]
            truth = [head["truth"][number][statistic] for head in known]
            row = {
                "band": band.name,
                "statistic": statistic,
                "published": getattr(band, statistic),
                "mean": round(float(np.mean(values)), 2),
                "smallest": min(values),
                "largest": max(values),
                "truth_mean": round(float(np.mean(truth)), 2),
                "heads": len(values),
            }
            if statistic in (limits := agreement(band)):
                low, high = limits[statistic]
                row |= {"low": round(low, 2), "high": round(high, 2)}
                row["heads_that_agree"] = sum(low <= value <= high for value in values)
            rows.append(row)
    return rows


def _directions(b0: Sequence[float]) -> list[tuple[float, float, float]]:
    """B0 directions of 12 head orientations, spread over a cone around the first."""
    axis = torch.tensor(b0, dtype=torch.float64)
    side = torch.linalg.cross(axis, torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())])
    side /= torch.linalg.vector_norm(side)
    other = torch.linalg.cross(axis, side)
    directions = []
    for number in range(_ORIENTATIONS):
        tilt = math.radians(_TILT_DEG) * math.sqrt(number / (_ORIENTATIONS - 1))
        turn = math.pi * (3 - math.sqrt(5)) * number
        across = math.cos(turn) * side + math.sin(turn) * other
        x, y, z = (math.cos(tilt) * axis + math.sin(tilt) * across).tolist()
        directions.append((x, y, z))
    return directions
