"""Veins: dural sinuses, and trees that drain into them.

A tree is the bundle of shortest paths from points in tissue to a root, over a graph of near neighbours;
radii follow Murray's law (1926, 10.1073/pnas.12.3.207): r³ of a parent is the sum over its children.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from chisep.simulation.labelmap import (
    CAUDATE,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CORONA_RADIATA,
    CSF,
    LATERAL_VENTRICLE,
    LONGITUDINAL,
    OUTSIDE,
    PALLIDUM,
    PUTAMEN,
    THALAMIC_RADIATION,
    THALAMUS,
    VEIN,
    LabelMap,
    Labels,
    Mask,
    PerPoint,
    Points,
    Veins,
    apply_affine,
)
from chisep.types import Affine

Fraction = Float[np.ndarray, "i j k"]
"""Part of each voxel that is blood of veins, 0 to 1."""
Flow = Float[np.ndarray, "3 i j k"]
"""Velocity along each voxel axis."""

_CENTRE_MNI_MM = np.array([0.0, -18.0, 8.0])
_NOT_VEIN = (0, *OUTSIDE)
_NEIGHBOURS = 10
_LONGEST_MM = 12.0
_STEP_MM = 0.2
_PIAL_POINTS, _PIAL_LEAF_MM, _PIAL_MOST_MM = 6000, 0.175, 2.2
_ROOTS = 0.006
"""Part of the pial points that drain into a sinus: some 30 bridging veins."""
_DEEP_POINTS, _DEEP_LEAF_MM, _DEEP_MOST_MM = 7000, 0.085, 1.4
_DRAINED = (
    *CEREBRAL_WHITE,
    *CORONA_RADIATA,
    *THALAMIC_RADIATION,
    *LONGITUDINAL,
    *THALAMUS,
    *CAUDATE,
    *PUTAMEN,
    *PALLIDUM,
)
"""Tissue that deep veins drain; the corpus callosum and the internal capsule have no relevant veins."""
_EASY = 0.35
"""Cost of a step along the ventricle's wall, relative to one through tissue: medullary veins end there."""


def grow_veins(head: LabelMap, to_mni: Affine, rng: np.random.Generator) -> Veins:
    """Grow the trees of pial veins and of deep (medullary, subependymal, internal cerebral) veins.

    Parameters
    ----------
    head
        Labels with dural sinuses (`draw_sinuses`).
    to_mni
        Voxel index to MNI mm.
    rng
        Draws the points that are drained and how winding the veins are.

    Returns
    -------
    Veins
        Connected: every vein reaches a sinus (pial) or the great vein and the straight sinus (deep).
    """
    pial_rng, deep_rng = rng.spawn(2)
    trees = [_pial(head, to_mni, pial_rng), _deep(head, to_mni, deep_rng)]
    return Veins(
        np.concatenate([tree.at_voxel for tree in trees]),
        np.concatenate([tree.radius_mm for tree in trees]),
        np.concatenate([tree.length_mm for tree in trees]),
        np.concatenate([tree.towards for tree in trees if tree.towards is not None]),
    )


def vein_fraction(
    veins: Veins,
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    start_voxel: Sequence[int],
    factors: Sequence[int],
) -> Fraction:
    """Part of each voxel that veins fill; no volume of blood is lost to the grid, only where veins overlap.

    Parameters
    ----------
    veins
        Veins in voxels of the label map.
    shape, voxel_mm
        Of the new grid.
    start_voxel
        Voxel of the label map at which the grid starts (its corner).
    factors
        Voxels of the grid per voxel of the label map.
    """
    filled = _deposited(veins, shape, voxel_mm, start_voxel, factors, np.ones(len(veins.radius_mm)))
    return np.minimum(filled, 1.0).astype(np.float32).reshape(tuple(shape))


def vein_flow(
    veins: Veins,
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    start_voxel: Sequence[int],
    factors: Sequence[int],
) -> Flow:
    """Mean velocity of blood in each voxel, relative to that in a vein of 1 mm radius, in voxel axes.

    Where radii follow Murray's law, velocity grows with the radius.

    Parameters
    ----------
    veins, shape, voxel_mm, start_voxel, factors
        As of `vein_fraction`.

    Raises
    ------
    ValueError
        If the direction of the veins is not known.
    """
    if veins.towards is None:
        raise ValueError("veins without a direction have no flow")
    speeds = veins.towards * veins.radius_mm[:, None]
    summed = [
        _deposited(veins, shape, voxel_mm, start_voxel, factors, speed).reshape(tuple(shape))
        for speed in speeds.T
    ]
    return np.asarray(summed, dtype=np.float32)


def _deposited(
    veins: Veins,
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    start_voxel: Sequence[int],
    factors: Sequence[int],
    amount: PerPoint,
) -> NDArray[np.float64]:
    """Sum over pieces of veins: part of each voxel that they fill, times an amount of each; flat."""
    scale = np.array(factors)
    at = (veins.at_voxel + 0.5 - np.array(start_voxel)) * scale - 0.5
    volume = amount * np.pi * veins.radius_mm**2 * veins.length_mm / np.prod(voxel_mm)
    filled = np.zeros(int(np.prod(shape)))
    for thick, balls in _SUNFLOWERS.items():
        pieces = np.flatnonzero((veins.radius_mm > _THICK_MM) == thick)
        points = balls.shape[1]
        places, volumes = [np.zeros(0, np.intp)], [np.zeros(0)]
        # Few pieces at a time, which fit into the cache; one sum of all, whose order does not change.
        for some in np.split(pieces, range(_AT_ONCE, len(pieces), _AT_ONCE)):
            flat, inside = np.zeros((len(some), points), np.intp), np.ones((len(some), points), np.bool_)
            for axis, (n, edge) in enumerate(zip(shape, voxel_mm, strict=True)):
                spread = balls[:, :, axis][some % _BALLS] * (veins.radius_mm[some, None] / edge)
                index = np.rint(at[some, axis, None] + spread)
                inside &= (index >= 0) & (index < n)
                flat *= n
                flat += index.astype(np.intp)
            places.append(flat[inside])
            volumes.append(np.broadcast_to(volume[some, None] / points, inside.shape)[inside])
        filled += np.bincount(np.concatenate(places), np.concatenate(volumes), len(filled))
    return filled


def draw_sinuses(labels: Labels, to_mni: Affine) -> None:
    """Label superior sagittal and straight sinus in place, where the map has no veins of its own."""
    if np.any(labels == VEIN):
        return
    t = np.linspace(0, 1, 400)[:, None]
    brain = ~np.isin(labels, (*OUTSIDE, 0, CSF))
    sagittal = _surface(brain, to_mni, 0 * t, np.deg2rad(70 - 180 * t), spread=8.0)
    sagittal = sagittal + 2.0 * _unit(sagittal - _CENTRE_MNI_MM)
    _draw_tube(labels, to_mni, sagittal, 2.5)
    straight = np.array([(0, -43, 5), (0, -64, 0), sagittal[-1]])
    _draw_tube(labels, to_mni, _polyline(straight, t), 2.0)


def _sunflower(n: int) -> NDArray[np.float64]:
    """Spread points over a ball of radius 1 so that many such balls in a row fill a tube uniformly.

    That is so where the density is 1/√(1 − r²): seen from any side, it is the same all over the disc.
    """
    at = np.arange(n) + 0.5
    height, azimuth = 1 - 2 * at / n, np.pi * (1 + 5**0.5) * at
    ring = np.sqrt(1 - height**2)
    angle = np.linspace(0, np.pi / 2, 1000)
    below = (angle - np.sin(angle) * np.cos(angle)) * (2 / np.pi)
    # Steps of √2, so that the radius does not follow height and azimuth.
    radius = np.sin(np.interp(np.sqrt(2) * at % 1.0, below, angle))
    ball = np.stack((ring * np.cos(azimuth), ring * np.sin(azimuth), height), axis=-1)
    return np.asarray(radius[:, None] * ball)


_BALLS = 61
"""Pieces one after the other have other points, or these would draw streaks along a straight vein."""
_THICK_MM = 0.4
_AT_ONCE = 4096
_SUNFLOWERS = {
    thick: np.stack([_sunflower(_BALLS * points)[ball::_BALLS] for ball in range(_BALLS)])
    for thick, points in ((False, 16), (True, 200))
}


def _pial(head: LabelMap, to_mni: Affine, rng: np.random.Generator) -> Veins:
    """Veins on the cortex, in and over sulci, to the nearest sinus."""
    cortex = np.isin(head.labels, CEREBRAL_CORTEX)
    fluid = head.labels == CSF
    surface = cortex & ndimage.binary_dilation(fluid)
    points = _sample(surface, _PIAL_POINTS, rng)
    sinus = _sample(head.labels == VEIN, 1500, rng)
    if not len(points) or not len(sinus):
        return _tree(points[:0], head, np.zeros(0), 0, 1.6, 0.2, 1.0, rng)
    near, _ = cKDTree(sinus * head.voxel_mm).query(points * head.voxel_mm)
    z = apply_affine(to_mni, points)[:, 2]
    # Only the upper sinuses take veins of the upper half; bridging veins are at most some mm long.
    order = np.argsort(near + 0.05 * np.abs(z - 40))
    roots = max(1, int(_ROOTS * len(points)))
    return _tree(points[order], head, np.ones(len(points)), roots, 1.4, _PIAL_LEAF_MM, _PIAL_MOST_MM, rng)


def _deep(head: LabelMap, to_mni: Affine, rng: np.random.Generator) -> Veins:
    """Veins of white matter and nuclei: to the ventricle's wall, along it to the great vein, to the sinus."""
    t = np.linspace(0, 1, 24)[:, None]
    great = np.concatenate(
        [
            _polyline(np.array(knots, dtype=np.float64), t)
            for knots in (
                ((0, -58, 2), (0, -50, 3), (0, -43, 5)),
                ((0, -43, 5), (1.5, -36, 9), (2.0, -20, 14), (2.5, -2, 13), (8, 2, 12)),
                ((0, -43, 5), (-1.5, -36, 9), (-2.0, -20, 14), (-2.5, -2, 13), (-8, 2, 12)),
            )
        ]
    )
    trunk = apply_affine(np.linalg.inv(to_mni), great)
    tissue = np.isin(head.labels, _DRAINED)
    ventricle = np.isin(head.labels, LATERAL_VENTRICLE)
    wall = tissue & ndimage.binary_dilation(ventricle)
    drained, wall_points = _sample(tissue, _DEEP_POINTS, rng), _sample(wall, 600, rng)
    points = np.concatenate((trunk, wall_points, drained))
    cost = np.concatenate(
        (np.full(len(trunk), _EASY**2), np.full(len(wall_points), _EASY), np.ones(len(drained)))
    )
    return _tree(points, head, cost, 1, 1.1, _DEEP_LEAF_MM, _DEEP_MOST_MM, rng)


def _sample(where: Mask, n: int, rng: np.random.Generator) -> Points:
    """Draw up to n random points within the voxels of a mask, in voxel coordinates."""
    flat = np.flatnonzero(where)
    chosen = rng.choice(flat, min(n, len(flat)), replace=False)
    index = np.stack(np.unravel_index(chosen, where.shape), axis=-1)
    return np.asarray(index + rng.uniform(-0.5, 0.5, index.shape))


def _tree(
    points: Points,
    head: LabelMap,
    cost: PerPoint,
    roots: int,
    power: float,
    leaf_mm: float,
    most_mm: float,
    rng: np.random.Generator,
) -> Veins:
    """Drain every point to one of the first `roots` points.

    An edge of length d costs d**power times the mean cost of its ends: powers above 1 prefer many short
    steps, which follow a surface that the points lie on.
    """
    if not len(points):
        return Veins(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
    place = points * head.voxel_mm
    distance, neighbour = cKDTree(place).query(
        place, min(_NEIGHBOURS, len(points)), distance_upper_bound=_LONGEST_MM
    )
    start = np.repeat(np.arange(len(points)), neighbour.shape[1])
    end, length = neighbour.ravel(), distance.ravel()
    real = (end < len(points)) & (end != start)
    start, end, length = start[real], end[real], length[real]
    weight = np.maximum(length, 1e-3) ** power * (cost[start] + cost[end]) / 2
    graph = sparse.coo_array((weight, (start, end)), shape=(len(points),) * 2).tocsr()
    reached, parent, _ = dijkstra(
        graph, directed=False, indices=np.arange(roots), return_predecessors=True, min_only=True
    )
    order = np.argsort(-reached[np.isfinite(reached)])
    order = np.flatnonzero(np.isfinite(reached))[order]
    leaves = np.ones(len(points))
    for node in order:
        if parent[node] >= 0:
            leaves[parent[node]] += leaves[node]
    child = order[parent[order] >= 0]
    radius = np.minimum(leaf_mm * np.cbrt(leaves), most_mm)
    return _pieces(place, child, parent[child], radius, head.voxel_mm, rng)


def _pieces(
    place_mm: Points,
    child: NDArray[np.int64],
    parent: NDArray[np.int32],
    radius_mm: PerPoint,
    voxel_mm: Sequence[float],
    rng: np.random.Generator,
) -> Veins:
    """Cut the edges of a tree into short pieces, bent a little between their ends."""
    edge = place_mm[parent] - place_mm[child]
    length = np.linalg.norm(edge, axis=-1)
    count = np.maximum(np.ceil(length / _STEP_MM).astype(np.int64), 1)
    which = np.repeat(np.arange(len(child)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    t = (np.arange(len(which)) - first + 0.5) / count[which]
    bend = rng.normal(0, 0.12, edge.shape) * length[:, None]
    at = place_mm[child][which] + t[:, None] * edge[which] + np.sin(np.pi * t)[:, None] * bend[which]
    radius, pieces = radius_mm[child][which], length[which] / count[which]
    towards = edge / np.maximum(length, 1e-9)[:, None]
    return Veins(at / np.array(voxel_mm), radius, pieces, towards[which])


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _polyline(knots: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sample a line through knots at t in 0…1."""
    at = np.linspace(0, 1, len(knots))
    return np.stack([np.interp(t[:, 0], at, knots[:, axis]) for axis in range(3)], axis=-1)


def _surface(
    brain: Mask, to_mni: Affine, lateral: NDArray[np.float64], front: NDArray[np.float64], spread: float
) -> NDArray[np.float64]:
    """Follow the brain surface, bridging sulci: MNI points, shape (n, 3), of a path given by two angles.

    `spread` (degrees) also looks to both sides and takes the outermost surface, for a path over a fissure.
    """
    radius_mm = np.arange(110.0, 20.0, -0.5)
    from_mni = np.linalg.inv(to_mni)
    found = []
    for offset in np.deg2rad([-spread, 0.0, spread]):
        side = lateral + offset
        ray = np.concatenate(
            (np.sin(side), np.cos(side) * np.sin(front), np.cos(side) * np.cos(front)), axis=-1
        )
        voxel = np.rint(apply_affine(from_mni, _CENTRE_MNI_MM + radius_mm[:, None, None] * ray)).astype(int)
        voxel = np.clip(voxel, 0, np.array(brain.shape) - 1)
        found.append(radius_mm[np.argmax(brain[tuple(np.moveaxis(voxel, -1, 0))], axis=0)])
    outermost = ndimage.gaussian_filter1d(ndimage.maximum_filter1d(np.max(found, axis=0), 25), 12)
    ray = np.concatenate(
        (np.sin(lateral), np.cos(lateral) * np.sin(front), np.cos(lateral) * np.cos(front)), axis=-1
    )
    return np.asarray(_CENTRE_MNI_MM + outermost[:, None] * ray)


def _draw_tube(labels: Labels, to_mni: Affine, course_mm: NDArray[np.float64], radius_mm: float) -> None:
    """Label as vein what lies within a radius of a path, but neither skull, soft tissue nor air."""
    ticks = np.arange(-radius_mm, radius_mm + 0.2, 0.4)
    ball = np.stack(np.meshgrid(ticks, ticks, ticks), axis=-1).reshape(-1, 3)
    ball = ball[np.linalg.norm(ball, axis=-1) <= radius_mm]
    voxel = np.rint(apply_affine(np.linalg.inv(to_mni), (course_mm[:, None] + ball).reshape(-1, 3))).astype(
        int
    )
    index = tuple(voxel[np.all((voxel >= 0) & (voxel < labels.shape), axis=-1)].T)
    labels[index] = np.where(np.isin(labels[index], _NOT_VEIN), labels[index], VEIN)
