"""White-matter tracts by position, and the direction of their fibres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage

from chisep.simulation.labelmap import (
    BRAIN_STEM,
    CALLOSUM_BODY,
    CALLOSUM_GENU,
    CALLOSUM_SPLENIUM,
    CAPSULE_ANTERIOR,
    CAPSULE_POSTERIOR,
    CAUDATE,
    CEREBRAL_WHITE,
    CINGULUM,
    CORONA_RADIATA,
    CORTICOSPINAL,
    LONGITUDINAL,
    PALLIDUM,
    PALLIDUM_INTERNUM,
    PEDUNCLE,
    PULVINAR,
    PUTAMEN,
    THALAMIC_RADIATION,
    THALAMUS,
    Labels,
    box_of,
    coordinates_of,
)
from chisep.simulation.texture import random_field
from chisep.types import Affine

Directions = Float[np.ndarray, "3 i j k"]
"""A unit vector per voxel."""


@dataclass(frozen=True)
class _Tract:
    """A bundle along a line in MNI space, mirrored to both sides, drawn only inside given labels."""

    labels: tuple[int, int]
    knots_mm: tuple[tuple[int, int, int], ...]
    radius_mm: float
    inside: tuple[int, ...]


TRACTS = (
    _Tract(
        LONGITUDINAL,
        ((33, 26, 22), (36, 6, 28), (36, -20, 30), (38, -42, 28), (43, -54, 14)),
        5.5,
        CEREBRAL_WHITE,
    ),
    _Tract(
        CINGULUM,
        ((7, 34, 0), (8, 34, 10), (9, 24, 23), (9, 4, 34), (9, -16, 37), (9, -34, 34), (11, -46, 20)),
        4.0,
        CEREBRAL_WHITE,
    ),
    _Tract(
        THALAMIC_RADIATION,
        ((25, -30, 2), (31, -44, 5), (31, -60, 8), (24, -78, 7), (15, -86, 4)),
        6.5,
        CEREBRAL_WHITE,
    ),
    _Tract(CORONA_RADIATA, ((21, 30, 10), (24, 12, 24), (25, -8, 27), (25, -26, 28)), 8.0, CEREBRAL_WHITE),
    _Tract(CORTICOSPINAL, ((9, -16, -17), (6, -20, -27), (5, -25, -38), (4, -34, -52)), 4.0, (BRAIN_STEM,)),
)
"""Bundles as lines through the right half of MNI space."""

_CROSSING_MM: tuple[tuple[tuple[int, ...], tuple[float, float, float]], ...] = (
    ((CALLOSUM_SPLENIUM, CALLOSUM_BODY, CALLOSUM_GENU), (1.0, 0.0, 0.0)),
    (PEDUNCLE, (0.1, -0.4, 0.9)),
    (CAPSULE_POSTERIOR, (0.2, -0.1, 1.0)),
    (CAPSULE_ANTERIOR, (0.3, 0.9, 0.3)),
    (CORONA_RADIATA, (0.3, 0.0, 1.0)),
)
"""Direction on the right of tracts whose fibres do not run along a line of `TRACTS`, or run across it."""


def draw_tracts(labels: Labels, to_mni: Affine, voxel_mm: Sequence[float], rng: np.random.Generator) -> None:
    """Draw all tracts into a label map, in place, where there is white matter.

    Parameters
    ----------
    labels
        Labels, changed in place.
    to_mni
        Voxel index to MNI mm.
    voxel_mm
        Voxel edges.
    rng
        Shifts each bundle by about 1 mm and scales its radius by about 8 %.
    """
    for tract in TRACTS:
        for side in (0, 1):
            shift, scale = rng.normal(0, 1.0, 3), np.clip(rng.normal(1, 0.08), 0.8, 1.2)
            _draw_tube(labels, to_mni, tract, side, shift, tract.radius_mm * scale)
    _draw_callosum(labels, to_mni)
    _draw_capsule(labels, voxel_mm)


def fibre_directions(
    labels: Labels, to_mni: Affine, voxel_mm: Sequence[float], rng: np.random.Generator
) -> Directions:
    """Principal fibre direction of every voxel in voxel axes, its sign without meaning.

    Parameters
    ----------
    labels
        Labels with tracts.
    to_mni
        Voxel index to MNI mm.
    voxel_mm
        Voxel edges.
    rng
        Draws the smooth field of white matter outside the tracts.

    Returns
    -------
    Directions
        In tracts along their lines (callosum left–right, corticospinal up–down, superior longitudinal
        fasciculus anterior–posterior); elsewhere a random field, smooth over about 12 mm.
    """
    smooth = [(_SMOOTH_MM,) * 3]
    direction = np.stack(
        [random_field(labels.shape, voxel_mm, smooth, (1.0,), rng).numpy() for _ in range(3)]
    )
    whole = [slice(0, n) for n in labels.shape]
    for tract in TRACTS:
        for side in (0, 1):
            here = np.flatnonzero(labels == tract.labels[side])
            if not here.size:
                continue
            index = np.stack(np.unravel_index(here, labels.shape), axis=-1)
            at = index @ to_mni[:3, :3].T + to_mni[:3, 3]
            along = _nearest_tangent(at, _mirrored(np.array(tract.knots_mm, dtype=np.float64), side))
            direction.reshape(3, -1)[:, here] = _to_voxel_axes(along, to_mni, voxel_mm).T
    for numbers, vector in _CROSSING_MM:
        for side, number in enumerate(numbers if len(numbers) == 2 else ()):
            mirrored = np.array(vector) * ((-1.0, 1.0)[side], 1.0, 1.0)
            direction[:, labels == number] = _to_voxel_axes(mirrored[None], to_mni, voxel_mm).T
    callosum = np.isin(labels, _CROSSING_MM[0][0])
    # Fibres of the callosum fan out: up from the body, forward from the genu, backward from the splenium.
    x, y, z = coordinates_of(to_mni, whole)
    shape = labels.shape
    x, y, z = (np.broadcast_to(c, shape)[callosum] for c in (x, y, z))
    spread = np.clip(np.abs(x) / 15, 0, 1)
    fan = np.stack((np.sign(x), spread * y / 40, spread * np.where(np.abs(y) < 25, 0.8, 0.0)), axis=-1)
    direction[:, callosum] = _to_voxel_axes(fan, to_mni, voxel_mm).T
    length = np.linalg.norm(direction, axis=0)
    return np.asarray(direction / np.maximum(length, 1e-12), dtype=np.float32)


def _to_voxel_axes(
    vectors: NDArray[np.float64], to_mni: Affine, voxel_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Convert MNI directions, shape (n, 3), to unit vectors in voxel axes."""
    rotated = vectors @ np.linalg.inv(to_mni[:3, :3]).T * np.array(voxel_mm)
    return np.asarray(rotated / np.maximum(np.linalg.norm(rotated, axis=-1, keepdims=True), 1e-12))


def _mirrored(knots_mm: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Knots on one side: 0 left, 1 right."""
    return knots_mm * ((-1.0, 1.0)[side], 1.0, 1.0)


def _nearest_tangent(at: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Direction of the line through knots where it is nearest to each point; smooth across the knots."""
    t = np.linspace(0, len(knots) - 1, 12 * len(knots))
    line = np.stack([np.interp(t, np.arange(len(knots)), knots[:, a]) for a in range(3)], axis=-1)
    line = ndimage.gaussian_filter1d(line, 6.0, axis=0, mode="nearest")
    tangent = np.gradient(line, axis=0)
    square = (at**2).sum(1)[:, None] - 2 * at @ line.T + (line**2).sum(1)
    return np.asarray(tangent[square.argmin(1)])


def _draw_tube(
    labels: Labels,
    to_mni: Affine,
    tract: _Tract,
    side: int,
    shift: NDArray[np.float64],
    radius_mm: float,
) -> None:
    knots = _mirrored(np.array(tract.knots_mm) + shift, side)
    box = box_of(
        to_mni, labels.shape, (knots.min(0) - radius_mm).tolist(), (knots.max(0) + radius_mm).tolist()
    )
    x, y, z = coordinates_of(to_mni, box)
    view = labels[box]
    near = np.zeros(view.shape, dtype=np.bool_)
    for start, end in pairwise(knots):
        step = end - start
        t = np.clip(
            ((x - start[0]) * step[0] + (y - start[1]) * step[1] + (z - start[2]) * step[2]) / (step @ step),
            0,
            1,
        )
        square = sum((c - s - t * d) ** 2 for c, s, d in zip((x, y, z), start, step, strict=True))
        near |= square < radius_mm**2
    view[near & np.isin(view, tract.inside)] = tract.labels[side]


_SMOOTH_MM = 12.0
_CALLOSUM_YZ_MM = (
    (18.0, -4.0),
    (28.0, 2.0),
    (30.0, 9.0),
    (24.0, 18.0),
    (8.0, 25.0),
    (-14.0, 26.0),
    (-29.0, 21.0),
    (-38.0, 12.0),
    (-37.0, 6.0),
)


def _draw_callosum(labels: Labels, to_mni: Affine) -> None:
    """Label white matter near the midline that lies along the callosal arch."""
    box = box_of(to_mni, labels.shape, (-15.0, -50.0, -10.0), (15.0, 40.0, 38.0))
    _, y, z = coordinates_of(to_mni, box)
    view = labels[box]
    near = np.zeros(view.shape, dtype=np.bool_)
    for (y0, z0), (y1, z1) in pairwise(_CALLOSUM_YZ_MM):
        length = (y1 - y0) ** 2 + (z1 - z0) ** 2
        t = np.clip(((y - y0) * (y1 - y0) + (z - z0) * (z1 - z0)) / length, 0, 1)
        near |= (y - y0 - t * (y1 - y0)) ** 2 + (z - z0 - t * (z1 - z0)) ** 2 < 6.5**2
    near &= np.isin(view, CEREBRAL_WHITE)
    part = np.where(y > 15, CALLOSUM_GENU, np.where(y < -29, CALLOSUM_SPLENIUM, CALLOSUM_BODY))
    view[near] = np.broadcast_to(part, view.shape)[near]


def _draw_capsule(labels: Labels, voxel_mm: Sequence[float]) -> None:
    """Label white matter between lentiform nucleus and caudate (anterior limb) or thalamus (posterior)."""
    for side in (0, 1):
        thalamus, caudate, lentiform = (
            (THALAMUS[side], PULVINAR[side]),
            (CAUDATE[side],),
            (PUTAMEN[side], PALLIDUM[side], PALLIDUM_INTERNUM[side]),
        )
        boxes = ndimage.find_objects(np.isin(labels, (*thalamus, *caudate, *lentiform)).astype(np.int8))
        if not boxes:
            continue
        view = labels[boxes[0]]
        distance = [
            ndimage.distance_transform_edt(~np.isin(view, nucleus), sampling=voxel_mm)
            for nucleus in (thalamus, caudate, lentiform)
        ]
        limb = np.isin(view, CEREBRAL_WHITE) & (np.minimum(distance[0], distance[1]) < 9) & (distance[2] < 9)
        posterior = distance[0] < distance[1]
        view[limb & posterior] = CAPSULE_POSTERIOR[side]
        view[limb & ~posterior] = CAPSULE_ANTERIOR[side]
