"""Inhomogeneity within regions: random texture, cortical layers, U-fibres, gradients of nuclei.

All are factors of mean 1 over every label, so regional means do not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.simulation.labelmap import (
    CEREBELLAR_CORTEX,
    CEREBELLAR_WHITE,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CSF,
    OUTSIDE,
    PUTAMEN,
    THALAMUS,
    WHITE_MATTER,
    Labels,
    Mask,
    PerPoint,
    coordinates_of,
)
from chisep.types import Affine, Volume

_SCALES_MM, _SCALE_WEIGHTS = (1.2, 3.0, 8.0, 20.0), (0.3, 0.6, 0.55, 0.2)
_PATCH_MM, _PATCH_WEIGHT = 6.0, 0.4
"""Patches: where two smooth fields have the same sign. Their borders are sharp."""
_BUNDLE_MM, _BUNDLE_WEIGHT = (1.3, 9.0), 0.7
"""Bundles: width and length of streaks along the fibres."""

_U_FIBRE_MM, _U_FIBRE_GAIN = 1.5, (0.9, 0.5)
"""Depth of the iron-rich superficial white matter, and its gain of χ_pos and χ_neg."""
_STRIPE_DEPTH, _STRIPE_WIDTH = 0.55, 0.13
"""The outer stripe of Baillarger (Gennari's line in area 17) from the pia, in parts of the thickness."""
_AREAS_MNI_MM = (
    # centre, radii, gain of χ_pos and χ_neg, gain of the stripe: area 17, motor and somatosensory, auditory
    ((8.0, -82.0, 4.0), (18.0, 18.0, 14.0), 0.35, 1.2),
    ((38.0, -22.0, 54.0), (22.0, 12.0, 22.0), 0.45, 0.2),
    ((44.0, -22.0, 8.0), (12.0, 10.0, 8.0), 0.3, 0.4),
)


def random_field(
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    sigmas_mm: Sequence[Sequence[float]],
    weights: Sequence[float],
    rng: np.random.Generator,
) -> Volume:
    """Gaussian random field of mean 0 and SD 1: noise smoothed at several scales.

    Parameters
    ----------
    shape, voxel_mm
        Of the grid.
    sigmas_mm
        For every scale the Gaussian's σ along the three axes.
    weights
        SD that every scale has by itself, relative to the others.
    rng
        Draws the noise.
    """
    wide = [next_fast_len(n, real=axis == 2) for axis, n in enumerate(shape)]
    spectrum = torch.fft.rfftn(torch.from_numpy(rng.standard_normal(wide, dtype=np.float32)))
    transfer = torch.zeros(spectrum.shape)
    for sigma_mm, weight in zip(sigmas_mm, weights, strict=True):
        axes, power = [], 1.0
        for axis, (n, edge, sigma) in enumerate(zip(wide, voxel_mm, sigma_mm, strict=True)):
            full = torch.exp(-2 * (torch.pi * sigma * torch.fft.fftfreq(n, d=edge)) ** 2)
            power *= float((full**2).mean())
            axes.append(full[: spectrum.shape[axis]])
        transfer += axes[0][:, None, None] * axes[1][:, None] * axes[2] * (weight / power**0.5)
    transfer[0, 0, 0] = 0.0
    i, j, k = shape
    field: Tensor = torch.fft.irfftn(spectrum * transfer, s=wide)[:i, :j, :k]
    return field / field.std().clamp(min=1e-12)


def texture(
    labels: Labels, voxel_mm: Sequence[float], directions: Tensor | None, rng: np.random.Generator
) -> Volume:
    """Random texture of SD about 1: smooth at scales of 1 to 20 mm, patches, and bundles in white matter.

    Parameters
    ----------
    labels
        Labels.
    voxel_mm
        Voxel edges.
    directions
        Fibre direction of each voxel in voxel axes, shape (3, i, j, k); without it there are no bundles.
    rng
        Draws all of it.
    """
    shape = labels.shape
    smooth_rng, patch_rng, bundle_rng = rng.spawn(3)
    total = random_field(shape, voxel_mm, [(s,) * 3 for s in _SCALES_MM], _SCALE_WEIGHTS, smooth_rng)
    total *= math.hypot(*_SCALE_WEIGHTS)
    one, two = (random_field(shape, voxel_mm, [(_PATCH_MM,) * 3], (1.0,), patch_rng) for _ in range(2))
    total += _PATCH_WEIGHT * torch.sign(one * two)
    variance = torch.full((), math.hypot(*_SCALE_WEIGHTS, _PATCH_WEIGHT))
    if directions is None:
        return total / variance
    white = torch.from_numpy(np.isin(labels, WHITE_MATTER))
    across, along = _BUNDLE_MM
    bundles = torch.zeros(shape)
    for axis in range(3):
        sigma = [along if a == axis else across for a in range(3)]
        # High powers: streaks along the nearest axis alone, else streaks cross where fibres run oblique.
        bundles += directions[axis] ** 4 * random_field(shape, voxel_mm, [sigma], (1.0,), bundle_rng)
    total += _BUNDLE_WEIGHT * bundles * white
    return total / torch.where(white, math.hypot(float(variance), _BUNDLE_WEIGHT), variance)


def layers(labels: Labels, voxel_mm: Sequence[float], to_mni: Affine | None) -> tuple[Volume, Volume]:
    """Factors of χ_pos and χ_neg by depth in the cortex and below it.

    Iron and myelin grow from the pia to the white matter, with a stripe at half depth that is strongest in
    the primary visual cortex (Fukunaga 2010, 10.1073/pnas.0911177107); the motor cortex has more of both;
    superficial white matter has more iron than deep (Kirilina 2020, 10.1126/sciadv.aaz9281). In the
    putamen iron grows backward, in the thalamus myelin grows laterally.

    Parameters
    ----------
    labels
        Labels.
    voxel_mm
        Voxel edges.
    to_mni
        Voxel index to MNI mm; without it cortical areas and nuclei are uniform.
    """
    shape = labels.shape
    pos, neg = np.ones(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    cortex = np.isin(labels, (*CEREBRAL_CORTEX, *CEREBELLAR_CORTEX))
    fluid = np.isin(labels, (0, CSF, *OUTSIDE))
    to_pia = _distance(fluid, voxel_mm, cortex)
    to_white = _distance(~(cortex | fluid), voxel_mm, cortex)
    depth = to_pia / (to_pia + to_white)
    stripe = np.exp(-0.5 * ((depth - _STRIPE_DEPTH) / _STRIPE_WIDTH) ** 2)
    gain, stripe_gain = np.zeros_like(depth), np.full_like(depth, 0.25)
    if to_mni is not None:
        x, y, z = (np.broadcast_to(c, shape) for c in coordinates_of(to_mni, [slice(0, n) for n in shape]))
        at = [np.abs(x[cortex]), y[cortex], z[cortex]]
        for centre, radii, more, more_stripe in _AREAS_MNI_MM:
            near = np.exp(-0.5 * sum(((a - c) / r) ** 2 for a, c, r in zip(at, centre, radii, strict=True)))
            gain += more * near
            stripe_gain += more_stripe * near
        putamen, thalamus = np.isin(labels, PUTAMEN), np.isin(labels, THALAMUS)
        pos[putamen] = np.exp(-0.02 * y[putamen])
        neg[thalamus] = np.exp(0.06 * (np.abs(x[thalamus]) - 12))
        pos[thalamus] = np.exp(-0.04 * (np.abs(x[thalamus]) - 12))
    pos[cortex] = (1 + gain) * (0.35 + 1.1 * depth + stripe_gain * stripe)
    neg[cortex] = (1 + gain) * (0.15 + 1.7 * depth**1.5 + stripe_gain * stripe)
    white = np.isin(labels, (*CEREBRAL_WHITE, *CEREBELLAR_WHITE))
    near = np.exp(-_distance(cortex, voxel_mm, white) / _U_FIBRE_MM)
    pos[white] = 1 + _U_FIBRE_GAIN[0] * near
    neg[white] = 1 + _U_FIBRE_GAIN[1] * near
    return torch.from_numpy(pos), torch.from_numpy(neg)


def with_mean_one(factor: Volume, labels: Labels) -> Volume:
    """Divide a factor by its mean over each label."""
    numbers, compact = np.unique(labels, return_inverse=True)
    where = torch.from_numpy(compact.reshape(-1))
    count = torch.bincount(where, minlength=len(numbers))
    mean = torch.bincount(where, factor.reshape(-1).double(), minlength=len(numbers)) / count
    return factor / mean.float()[where].reshape(factor.shape)


def _distance(to: Mask, voxel_mm: Sequence[float], at: Mask) -> PerPoint:
    """Distance in mm from voxels of one mask to the surface of another."""
    distance = ndimage.distance_transform_edt(~to, sampling=tuple(voxel_mm))[at]
    # From the voxel's centre to the surface of the other voxel, not to its centre.
    smallest = 0.25 * min(voxel_mm)
    return np.asarray(np.maximum(distance - 2 * smallest, smallest), dtype=np.float32)
