"""Anatomical variation: smooth invertible warps of a label map, size of ventricles, cortical thickness.

A warp is the flow of a velocity field that does not change with time, computed by scaling and squaring
(Arsigny 2006, 10.1007/11866565_113).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from chisep.errors import InputError
from chisep.simulation.labelmap import (
    CEREBELLAR_CORTEX,
    CEREBRAL_CORTEX,
    CSF,
    LATERAL_VENTRICLE,
    OUTSIDE,
    THIRD_VENTRICLE,
    LabelMap,
    Labels,
    Mask,
)
from chisep.simulation.refine import NewVolume
from chisep.simulation.texture import random_field

VectorField = Float[Tensor, "3 i2 j2 k2"]
"""A vector per voxel."""

_GRID_MM = 2.0
_VENTRICLE_REACH_MM, _CORTEX_REACH_MM = 6.0, 2.5
_SQUARINGS = 6
_REACH = 3
_SIGMA_VOXELS = 0.6


@dataclass(frozen=True)
class WarpConfig:
    """Anatomical variation of a head relative to its label map."""

    warp_mm: float = 0.0
    """SD of the displacement along each axis in mm; typical between subjects after affine alignment: 3."""
    smoothness_mm: float = 18.0
    """Smoothness of the displacement: σ of a Gaussian in mm."""
    ventricle_mm: float = 0.0
    """Outward displacement of the ventricle walls in mm; negative makes ventricles smaller."""
    cortex_mm: float = 0.0
    """Increase of the cortical thickness in mm; negative makes the cortex thinner."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("warp_mm", 0.0, 8.0),
            ("smoothness_mm", 6.0, 60.0),
            ("ventricle_mm", -3.0, 6.0),
            ("cortex_mm", -1.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    name,
                    found=f"{value} mm",
                    expected=f"a number from {low:g} to {high:g}",
                    fix="Correct the option.",
                )
        if self.warp_mm > self.smoothness_mm / 3:
            raise InputError(
                "warp_mm",
                found=f"{self.warp_mm} mm with a smoothness of {self.smoothness_mm} mm",
                expected="at most a third of the smoothness",
                fix="Make the warp smaller or smoother; tissue would fold.",
            )


def warped(head: LabelMap, config: WarpConfig, rng: np.random.Generator) -> LabelMap:
    """Warp a label map to the anatomy of another subject.

    Parameters
    ----------
    head
        Any head without veins yet: structures are placed after warping.
    config
        How much; a config of zeros returns the head itself.
    rng
        Draws the warp.

    Returns
    -------
    LabelMap
        The same labels on the same grid, moved.
    """
    if not any((config.warp_mm, config.ventricle_mm, config.cortex_mm)):
        return head
    coarse_mm = [max(_GRID_MM, edge) for edge in head.voxel_mm]
    velocity = _velocity(head, coarse_mm, config, rng)
    shift = flow(velocity, coarse_mm)
    fine = interpolate(shift[None], head.labels.shape, mode="trilinear", align_corners=False)[0]
    return replace(head, labels=_moved(head.labels, fine, head.voxel_mm))


def flow(velocity_mm: VectorField, voxel_mm: Sequence[float]) -> VectorField:
    """Integrate a velocity field to a displacement in mm (scaling and squaring).

    Parameters
    ----------
    velocity_mm
        Velocity in mm along each voxel axis.
    voxel_mm
        Voxel edges.
    """
    shift: Tensor = velocity_mm / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        shift = shift + _sampled(shift, shift, voxel_mm)
    return shift


def jacobian(shift_mm: VectorField, voxel_mm: Sequence[float]) -> NewVolume:
    """Return the Jacobian determinant of x → x + shift: how volumes change; > 0 where nothing folds."""
    rows = [
        torch.stack(torch.gradient(component, spacing=[float(e) for e in voxel_mm])) for component in shift_mm
    ]
    matrix = torch.stack(rows).permute(2, 3, 4, 0, 1) + torch.eye(3)
    determinant: Tensor = torch.linalg.det(matrix)
    return determinant


def _velocity(
    head: LabelMap, coarse_mm: Sequence[float], config: WarpConfig, rng: np.random.Generator
) -> VectorField:
    """Velocity on a coarse grid: random, plus away from ventricles, plus into white matter."""
    shape = [
        math.ceil(n * e / c) for n, e, c in zip(head.labels.shape, head.voxel_mm, coarse_mm, strict=True)
    ]
    sigma = [(config.smoothness_mm,) * 3]
    velocity = torch.stack(
        [config.warp_mm * random_field(shape, coarse_mm, sigma, (1.0,), rng) for _ in range(3)]
    )
    ventricles = np.isin(head.labels, (*LATERAL_VENTRICLE, THIRD_VENTRICLE))
    cortex = np.isin(head.labels, (*CEREBRAL_CORTEX, *CEREBELLAR_CORTEX))
    outside = np.isin(head.labels, (0, CSF, *OUTSIDE))
    for mask, amount_mm, edge in (
        (ventricles, config.ventricle_mm, _VENTRICLE_REACH_MM),
        (~(cortex | outside | ventricles), -config.cortex_mm, _CORTEX_REACH_MM),
    ):
        if amount_mm:
            # Sampling at x + shift moves tissue the other way.
            velocity += amount_mm * _inward(mask, coarse_mm, shape, edge)
    return velocity


def _inward(mask: Mask, coarse_mm: Sequence[float], shape: Sequence[int], smooth_mm: float) -> VectorField:
    """Make vectors of length 1 into a mask at its surface, fading away from it over `smooth_mm`."""
    weight = interpolate(torch.from_numpy(mask).float()[None, None], tuple(shape), mode="area")[0, 0]
    near = (weight > 0.5).numpy()
    if not near.any():
        return torch.zeros(3, *shape)
    distance = ndimage.distance_transform_edt(~near, sampling=coarse_mm)
    distance = distance - ndimage.distance_transform_edt(near, sampling=coarse_mm)
    smooth = torch.from_numpy(ndimage.gaussian_filter(distance, 1.0).astype(np.float32))
    gradient = torch.stack(torch.gradient(smooth, spacing=[float(c) for c in coarse_mm]))
    unit = gradient / torch.linalg.vector_norm(gradient, dim=0).clamp(min=0.5)
    inward: Tensor = -unit * torch.exp(-0.5 * (smooth / smooth_mm) ** 2)
    return inward


def _sampled(volume: Tensor, shift_mm: VectorField, voxel_mm: Sequence[float]) -> Tensor:
    """Trilinear samples of channels at x + shift; border values continue outside."""
    sampled: Tensor = grid_sample(
        volume[None], _positions(shift_mm, voxel_mm), align_corners=True, padding_mode="border"
    )[0]
    return sampled


def _positions(shift_mm: VectorField, voxel_mm: Sequence[float]) -> Tensor:
    """Coordinates x + shift for grid_sample: from −1 to 1, last axis first."""
    axes = []
    for axis, (n, edge) in enumerate(zip(shift_mm.shape[1:], voxel_mm, strict=True)):
        index = torch.arange(n, dtype=torch.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        axes.append((index + shift_mm[axis] / edge) * (2 / max(n - 1, 1)) - 1)
    return torch.stack(axes[::-1], dim=-1)[None]


def _moved(labels: Labels, shift_mm: VectorField, voxel_mm: Sequence[float]) -> Labels:
    """Labels at x + shift: the largest of the smoothed indicators there."""
    reach = [
        math.ceil(float(component.abs().max()) / edge) + _REACH
        for component, edge in zip(shift_mm, voxel_mm, strict=True)
    ]
    best, winner = torch.zeros(labels.shape), torch.zeros(labels.shape, dtype=torch.int16)
    numbers, compact = np.unique(labels, return_inverse=True)
    numbered = (compact + 1).astype(np.int32).reshape(labels.shape)
    for place, box in enumerate(ndimage.find_objects(numbered)):
        wide = tuple(
            slice(max(s.start - r, 0), min(s.stop + r, n))
            for s, r, n in zip(box, reach, labels.shape, strict=True)
        )
        indicator = ndimage.gaussian_filter((numbered[wide] == place + 1).astype(np.float32), _SIGMA_VOXELS)
        value = _sampled(torch.from_numpy(indicator)[None], shift_mm[(slice(None), *wide)], voxel_mm)[0]
        wins = value > best[wide]
        best[wide] = torch.maximum(best[wide], value)
        winner[wide][wins] = int(numbers[place])
    return np.asarray(winner.numpy())
