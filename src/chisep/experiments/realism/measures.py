"""Statistics, spectra and regional means of the maps of a digital phantom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int16
from scipy import fft, ndimage

from chisep.experiments.realism.sparseness import sparseness
from chisep.experiments.realism.targets import REGION_TARGETS
from chisep.physics.dipole import Dipole
from chisep.report.figures import MaskArray, VolumeArray
from chisep.simulation.tissue import Tissue

LabelArray = Int16[np.ndarray, "i j k"]
"""One label per voxel."""


Values = Float[np.ndarray, " n"]
"""Values of a map, in any order."""


B0_T = 3.0
"""Field strength of the published relaxation rates."""
PERCENTILES = (1, 5, 50, 95, 99)
"""Percentiles of every map over the brain."""
BAND_EDGES_MM = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Wavelengths between which the octave bands of a spectrum lie."""
MAP_UNITS = {
    "chi": "ppb",
    "chi_pos": "ppb",
    "chi_neg": "ppb",
    "field": "ppb",
    "r2prime": "1/s",
    "r2star": "1/s",
    "r2": "1/s",
}
"""Unit of each map that is measured."""
_HISTOGRAM_WINDOWS = {
    "chi": (-120.0, 160.0),
    "chi_pos": (0.0, 200.0),
    "chi_neg": (0.0, 120.0),
    "field": (-50.0, 50.0),
    "r2prime": (0.0, 30.0),
    "r2star": (0.0, 50.0),
}
_BINS = 70


_SPECTRUM_MM = 256.0
"""Least edge of the volume that a spectrum is taken of, so that the longest wavelengths have samples."""


def statistics(values: Values) -> dict[str, float]:
    """Percentiles (p1, p5, p50, p95, p99), mean and standard deviation of values."""
    found = {f"p{p}": value for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
    found |= {"mean": values.mean(dtype=np.float64), "sd": values.std(dtype=np.float64)}
    return {name: _rounded(value) for name, value in found.items()}


def spectrum(
    volume: VolumeArray, mask: MaskArray, voxel_mm: Sequence[float]
) -> list[dict[str, float | None]]:
    """Radially averaged power of a map in a mask, in octave bands of wavelength.

    Parameters
    ----------
    volume
        The map; its mean in the mask is subtracted, and it is 0 outside.
    mask
        Voxels of the spectrum.
    voxel_mm
        Voxel edges.

    Returns
    -------
    list of dict
        For each band its wavelengths `from_mm` and `to_mm`, the mean power `density` (unit of the map
        squared times mm³; noise of SD σ that is independent from voxel to voxel has σ² times the voxel's
        volume in every band) and `rms`, the RMS of the band: the sum of its squares is the variance.
        Both are None in bands below the resolution of the voxels.
    """
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    inside = mask[box]
    masked = np.where(inside, volume[box] - volume[mask].mean(dtype=np.float64), 0).astype(np.float32)
    shape = [
        fft.next_fast_len(max(n, math.ceil(_SPECTRUM_MM / edge)), real=True)
        for n, edge in zip(masked.shape, voxel_mm, strict=True)
    ]
    power = np.abs(fft.rfftn(masked, shape)) ** 2
    axes = [fft.fftfreq(n, edge) for n, edge in zip(shape[:2], voxel_mm, strict=False)]
    axes.append(fft.rfftfreq(shape[2], voxel_mm[2]))
    square = sum(k.astype(np.float32) ** 2 for k in np.ix_(*axes))
    # The half spectrum of a real map: all but its first (and, if even, last) plane stand for two samples.
    weight = np.full(power.shape[2], 2.0)
    weight[0] = 1.0
    if shape[2] % 2 == 0:
        weight[-1] = 1.0
    volume_mm3 = math.prod(voxel_mm)
    to_density = volume_mm3 / int(inside.sum())
    sample = 1 / (math.prod(shape) * volume_mm3)
    bands: list[dict[str, float | None]] = []
    for from_mm, to_mm in pairwise(BAND_EDGES_MM):
        band: dict[str, float | None] = {"from_mm": from_mm, "to_mm": to_mm, "density": None, "rms": None}
        if from_mm >= 2 * max(voxel_mm) * (1 - 1e-6):
            here = (square >= 1 / to_mm**2) & (square < 1 / from_mm**2)
            count = float((here.sum((0, 1)) * weight).sum())
            total = float((np.where(here, power, 0).sum((0, 1), dtype=np.float64) * weight).sum())
            band["density"] = _rounded(to_density * total / count)
            band["rms"] = _rounded(math.sqrt(to_density * total * sample))
        bands.append(band)
    return bands


def region_means(
    chi_pos_ppb: VolumeArray,
    chi_neg_ppb: VolumeArray,
    labels: LabelArray,
    mask: MaskArray,
) -> dict[str, dict[str, float]]:
    """Mean χ_pos and χ_neg of the regions of `REGION_TARGETS` that a head has, with their voxels.

    Parameters
    ----------
    chi_pos_ppb, chi_neg_ppb
        Sources.
    labels
        Label in the centre of each voxel.
    mask
        Brain.
    """
    found = {}
    for region in REGION_TARGETS:
        here = np.isin(labels, region.labels) & mask
        if here.any():
            found[region.name] = {
                "chi_pos": _rounded(chi_pos_ppb[here].mean(dtype=np.float64)),
                "chi_neg": _rounded(chi_neg_ppb[here].mean(dtype=np.float64)),
                "voxels": int(here.sum()),
            }
    return found


def measured(tissue: Tissue) -> tuple[dict[str, Any], dict[str, VolumeArray]]:
    """Measure a head.

    Returns
    -------
    dict
        Statistics, histogram and spectra of its maps over the brain, sparseness of χ, and regional means.
    dict
        The maps by the names of `MAP_UNITS`, each of shape (i, j, k) in its unit, 0 outside the brain.
    """
    brain = tissue.mask
    chi = tissue.chi_pos_ppm - tissue.chi_neg_ppm
    volumes = {
        "chi": 1000 * chi,
        "chi_pos": 1000 * tissue.chi_pos_ppm,
        "chi_neg": 1000 * tissue.chi_neg_ppm,
        "field": 1000 * Dipole(tissue.grid).apply(chi) * brain,
        "r2prime": tissue.r2prime_hz,
        "r2star": (tissue.r2_hz + tissue.r2prime_hz) * brain,
        "r2": tissue.r2_hz * brain,
    }
    maps = {name: volume.numpy() for name, volume in volumes.items()}
    mask = brain.numpy()
    result = {
        "brain_ml": _rounded(float(mask.sum()) * math.prod(tissue.grid.voxel_mm) / 1000),
        "statistics": {name: statistics(volume[mask]) for name, volume in maps.items()},
        "regions": region_means(maps["chi_pos"], maps["chi_neg"], tissue.labels.numpy(), mask),
        "sparseness": sparseness(tissue),
        "spectrum": {name: spectrum(maps[name], mask, tissue.grid.voxel_mm) for name in ("chi", "field")},
        "histogram_percent": {
            name: [
                _rounded(100 * count / mask.sum())
                for count in np.histogram(maps[name][mask], _BINS, window)[0]
            ]
            for name, window in _HISTOGRAM_WINDOWS.items()
        },
    }
    return result, maps


def _rounded(value: float | np.floating[Any]) -> float:
    """Five digits: more would be noise in a file that people read."""
    return float(f"{float(value):.5g}")
