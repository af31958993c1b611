"""Sources by qsm-forward (PyPI, GPL-3): an optional package of this experiment alone."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from chisep.errors import InputError
from chisep.experiments.independent.forward import B0_DIRECTION, Array, Bool, smooth_noise
from chisep.experiments.independent.heads import CSF, NAMES, WHITE, Head

_LABEL: dict[str, int] = {
    "white matter": 8,
    "grey matter": 9,
    "CSF": 10,
    "thalamus": 7,
    "caudate": 1,
    "putamen": 3,
    "pallidum": 2,
    "red nucleus": 4,
    "substantia nigra": 6,
    "dentate nucleus": 5,
}
"""Label of qsm-forward's table by tissue."""
_BLOOD = 11
_RATES_HZ: dict[int, tuple[float, float, float, float]] = {
    1: (0.66, 0.05, 32.0, 5.0),
    2: (0.82, 0.06, 62.0, 10.0),
    3: (0.70, 0.05, 40.0, 6.0),
    4: (0.80, 0.05, 52.0, 7.0),
    5: (0.74, 0.05, 50.0, 7.0),
    6: (0.76, 0.05, 54.0, 8.0),
    7: (0.68, 0.05, 34.0, 4.0),
    8: (0.82, 0.05, 33.0, 4.0),
    9: (0.56, 0.06, 27.0, 5.0),
    10: (0.24, 0.03, 4.0, 2.0),
    11: (0.46, 0.04, 60.0, 8.0),
}
"""Mean and SD of R1 and R2* at 7 T by its label; its texture is linear in their differences from the mean."""
_VESSELS = 45
_CELLS_VOXEL = 9.0


def qsm_forward() -> Any:  # noqa: ANN401
    """Import the package.

    Raises
    ------
    InputError
        If it, or what it needs, is not installed.
    """
    try:
        import_module("pywt")
        return import_module("qsm_forward")
    except ImportError as error:
        raise InputError(
            "reproduce independent",
            found=f"no package {error.name}",
            expected="qsm-forward (GPL-3) and PyWavelets, for the worlds that qsm-forward makes",
            fix="pip install 'chisep[bench]', or leave these worlds out: --worlds piecewise atlas",
        ) from error


def qsm_forward_sources(head: Head, rng: np.random.Generator) -> tuple[Array, Array]:
    """χ_pos and χ_neg in ppm by `generate_chisep_maps` on a head with textured R1 and R2*.

    Parameters
    ----------
    head
        The head; vessels are added.
    rng
        Draws vessels and texture.
    """
    package = qsm_forward()
    labels = np.zeros(head.mask.shape, np.int16)
    for number, name in enumerate(NAMES, 1):
        labels[head.classes == number] = _LABEL[name]
    labels[_vessels(head, rng)] = _BLOOD
    r1, r2star = (_textured(labels, 2 * which, head, rng) for which in (0, 1))
    outside = np.zeros(head.mask.shape, np.float32)
    with warnings.catch_warnings():
        # More levels of wavelets than a small volume has; the package fixes them.
        warnings.filterwarnings("ignore", "Level value of", UserWarning)
        pos, neg = package.generate_chisep_maps(
            labels, head.mask, r1, r2star, raw_field=outside, high_grad=outside, voxel_size=(1.0, 1.0, 1.0)
        )
    return np.asarray(pos, np.float32) * head.mask, -np.asarray(neg, np.float32) * head.mask


def qsm_forward_field(chi_ppm: Array) -> Array:
    """Field in ppm by `generate_field`.

    The package pads a volume by little: the field of a box that tissue fills would have an offset of 2 ppb.
    """
    margins = [(n // 2, n // 2) for n in chi_ppm.shape]
    wide = np.pad(chi_ppm, margins)
    field = qsm_forward().generate_field(wide, voxel_size=[1.0, 1.0, 1.0], B0_dir=list(B0_DIRECTION))
    inner = tuple(slice(margin, margin + n) for (margin, _), n in zip(margins, chi_ppm.shape, strict=True))
    return np.asarray(field, np.float32)[inner]


def _textured(labels: Any, which: int, head: Head, rng: np.random.Generator) -> Array:  # noqa: ANN401
    """Rate map: cells of random level, sheets along the fibres, depth, and sparse grain, by tissue."""
    shape = labels.shape
    inside = head.mask
    voxels = np.argwhere(inside)
    centres = voxels[rng.choice(len(voxels), max(1, round(len(voxels) / _CELLS_VOXEL**3)), replace=False)]
    cells = np.zeros(shape, np.float32)
    cells[inside] = rng.standard_t(4, len(centres))[cKDTree(centres).query(voxels)[1]]
    depth = ndimage.distance_transform_edt(head.classes != CSF).astype(np.float32)
    layers = np.sin(0.9 * depth) * np.exp(-depth / 6)
    rough = rng.standard_normal(shape)
    sheets = ndimage.gaussian_filter(rough, (0.6, 2.5, 2.5)) * (np.abs(head.fibre[2]) > 0.6)
    sheets += ndimage.gaussian_filter(rough, (2.5, 2.5, 0.6)) * (np.abs(head.fibre[2]) <= 0.6)
    grain = ndimage.gaussian_filter(rng.standard_t(3, shape), 0.7)
    parts = [(0.6, cells), (0.5, layers), (0.5, sheets), (0.45, grain), (0.4, smooth_noise(shape, 8.0, rng))]
    pattern = np.zeros(shape, np.float32)
    for share, part in parts:
        pattern += share * ((part - part[inside].mean()) / part[inside].std()).astype(np.float32)
    made = np.zeros(shape, np.float32)
    for label, values in _RATES_HZ.items():
        own = labels == label
        made[own] = values[which] + values[which + 1] * pattern[own]
    positive: Array = np.maximum(made, 0.05 * (labels > 0)).astype(np.float32)
    return positive


def _vessels(head: Head, rng: np.random.Generator) -> Bool:
    """Thin curved tubes through the brain, of 0.7 to 1.4 voxels radius."""
    lines = np.ones(head.mask.shape, bool)
    radius = np.zeros(head.mask.shape, np.float32)
    starts = np.argwhere((head.classes == CSF) | (head.classes == WHITE))
    for start in starts[rng.choice(len(starts), _VESSELS)]:
        at, ahead = start.astype(float), rng.standard_normal(3)
        wide = rng.uniform(0.7, 1.4)
        for _ in range(rng.integers(40, 120)):
            ahead += 0.25 * rng.standard_normal(3)
            ahead /= np.linalg.norm(ahead)
            at = at + 0.5 * ahead
            voxel = tuple(int(x) for x in np.rint(at))
            if min(voxel) < 0 or np.any(voxel >= np.array(lines.shape)) or not head.mask[voxel]:
                break
            lines[voxel], radius[voxel] = False, wide
    distance, nearest = ndimage.distance_transform_edt(lines, return_indices=True)
    tubes: Bool = (distance <= radius[tuple(nearest)]) & head.mask
    return tubes
