"""Brain extraction by surface evolution (BET: Smith 2002, 10.1002/hbm.10062), without CSF on the surface."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import ConvexHull

from chisep.preprocessing.morphology import closed_and_filled, dilated, distance_inside, eroded
from chisep.types import Grid

_NOISE_SMOOTHING_MM = 1.0
_HEAD_HEIGHT_MM = 130.0
"""Largest distance of the brain from the top of the head; below are neck and shoulders."""
_INWARD_MM, _INWARD_BRIGHT_MM = 20.0, 10.0
_SHARPEST_MM, _FLATTEST_MM = 3.33, 10.0
_SUBDIVISIONS = 3
_STEPS = (400, 150)
"""Steps of the surface with 642 vertices, which is fast, and then with 2562."""
_CSF_OPENING_MM, _SULCUS_MM = 3.0, 4.0
_SURFACE_MM = 15.0
"""CSF deeper below the surface is in ventricles, which belong to the mask."""
_CORE_MM = 10.0
_LATE_SIGNAL = 0.5
"""Signal in the middle of the head, relative to the first echo, in the latest echo that is used."""
_EDGE_MM = 2.0
_EDGE_SIGNAL, _NEARBY_MM = 0.8, 8.0
"""Signal of brain in the first echo relative to the mean of the brain nearby (SD of the Gaussian): CSF and
bone marrow have 0.6 to 0.75. Chosen on two simulated heads."""
_Points = Float[np.ndarray, "_ 3"]
_Faces = Int[np.ndarray, "_ 3"]
_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]


def extract_brain(
    magnitude: NDArray[np.floating], image: _Image, grid: Grid, *, fraction: float, csf_decay: float
) -> _Inside:
    """Brain extraction by surface evolution, without CSF on the brain's surface.

    Parameters
    ----------
    magnitude
        Gradient-echo magnitudes in order of echo time, shape (echo, i, j, k).
    image
        Their root of the sum of squares, shape (i, j, k).
    grid
        Voxel size, and the top of the head.
    fraction
        Where the surface stops: this fraction of the signal inside.
    csf_decay
        Voxels near the surface that decay more slowly than this fraction of the brain's median rate are
        left out; 0 keeps them.

    Returns
    -------
    ndarray of bool
        Shape (i, j, k).
    """
    voxel_mm = np.array(grid.voxel_mm)
    head = ndimage.gaussian_filter(image, _NOISE_SMOOTHING_MM / voxel_mm)
    centre_mm, radius_mm, middle = _middle_of_head(head, grid)
    first, last = (
        ndimage.gaussian_filter(echo, _NOISE_SMOOTHING_MM / voxel_mm)
        for echo in (magnitude[0], magnitude[_late_echo(magnitude, middle)])
    )
    vertices, faces = _evolved(last, voxel_mm, centre_mm, radius_mm, middle, fraction)
    brain = _enclosed(vertices / voxel_mm, faces, image.shape)
    if len(magnitude) > 1 and csf_decay > 0:
        brain = _without_csf(brain, first, last, grid, csf_decay)
        brain = _with_dephased_edge(brain, first, last, grid, csf_decay)
    return brain


def _late_echo(magnitude: NDArray[np.floating], middle: _Inside) -> int:
    """Index of the last echo with enough signal: at 7 T brain near air is lost in late ones."""
    signal = np.array([np.median(echo[middle]) for echo in magnitude])
    strong = np.flatnonzero(signal >= _LATE_SIGNAL * signal[0])
    return int(max(strong[-1], min(1, len(signal) - 1)))


def _robust_range(image: _Image) -> tuple[float, float, float]:
    """Percentiles 2 and 98, and the threshold between air and head, a tenth of the way between."""
    low, high = (float(value) for value in np.percentile(image, (2, 98)))
    return low, low + 0.1 * (high - low), high


def _middle_of_head(image: _Image, grid: Grid) -> tuple[_Points, float, _Inside]:
    """Centre (mm along the voxel axes), radius (mm) and voxels of a ball of the head's volume."""
    _, threshold, high = _robust_range(image)
    x, y, z = (
        axis * edge
        for axis, edge in zip(np.ogrid[tuple(slice(0, n) for n in image.shape)], grid.voxel_mm, strict=True)
    )
    up_x, up_y, up_z = (grid.matrix()[2, :3] / grid.voxel_mm).tolist()
    height = up_x * x + up_y * y + up_z * z
    head = image > threshold
    head &= height > np.percentile(height[head], 99.8) - _HEAD_HEIGHT_MM
    weight = np.where(head, np.minimum(image, high), 0)
    centre = [float((weight * axis).sum() / weight.sum()) for axis in (x, y, z)]
    radius = float((head.sum() * math.prod(grid.voxel_mm) * 0.75 / math.pi) ** (1 / 3))
    square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    return np.array([centre]), radius, head & (square < radius**2)


def _evolved(
    image: _Image,
    voxel_mm: NDArray[np.float64],
    centre_mm: _Points,
    radius_mm: float,
    middle: _Inside,
    fraction: float,
) -> tuple[_Points, _Faces]:
    """Surface evolution from a sphere; returns vertices in mm along the voxel axes, and faces.

    At every step, three forces move each vertex (Smith 2002): along the surface to the mean of its
    neighbours, along the normal against high curvature, and along the normal outward if the darkest voxel
    within 2 cm inward is brighter than a fraction of the brightest within 1 cm, else inward.
    """
    dark, threshold, _ = _robust_range(image)
    typical = float(np.median(image[middle]))
    depths_mm = np.arange(0, _INWARD_MM + 1e-6, min(1.0, *voxel_mm))
    bright = depths_mm <= _INWARD_BRIGHT_MM
    mean_curvature = (1 / _SHARPEST_MM + 1 / _FLATTEST_MM) / 2
    steepness = 6 / (1 / _SHARPEST_MM - 1 / _FLATTEST_MM)
    last = np.array(image.shape) - 1
    # Half a voxel beyond the first and last: a brain cut by the volume's edge fills it up to there.
    lowest, highest = -0.5 * voxel_mm, (last + 0.5) * voxel_mm
    flat, strides = image.ravel(), np.array(image.strides) // image.itemsize

    sphere, faces = _icosphere(_SUBDIVISIONS)
    positions = centre_mm + sphere * radius_mm / 2
    for stage, steps in enumerate(_STEPS):
        if stage:
            positions, faces = _subdivided(positions, faces)
        mean_of_neighbours, sum_of_faces = _incidence(faces)
        for _ in range(steps):
            corners = positions[faces]
            edge, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
            length = np.linalg.norm(edge, axis=1).mean()
            normal = sum_of_faces @ np.cross(edge, other)
            normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
            shift = mean_of_neighbours @ positions - positions
            outward = np.einsum("vc,vc->v", shift, normal)
            along = shift - outward[:, None] * normal
            curvature = 2 * np.abs(outward) / length**2
            smoothing = (1 + np.tanh(steepness * (curvature - mean_curvature))) / 2

            inward = (positions[:, None] - depths_mm[:, None] * normal[:, None]) / voxel_mm
            values = flat[np.clip(np.rint(inward), 0, last).astype(np.intp) @ strides]
            darkest = np.clip(values.min(1), dark, typical)
            brightest = np.clip(values[:, bright].max(1), threshold, typical)
            edge_signal = dark + fraction * (brightest - dark)
            growth = 0.05 * length * 2 * (darkest - edge_signal) / (brightest - dark)
            positions = positions + 0.5 * along + (smoothing * outward + growth)[:, None] * normal
            positions = np.clip(positions, lowest, highest)
    return positions, faces


def _icosphere(subdivisions: int) -> tuple[_Points, _Faces]:
    """Vertices and faces of a triangulated unit sphere, counter-clockwise from outside."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    vertices = np.array([np.roll(corner, turn) for turn in range(3) for corner in corners])
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    faces = ConvexHull(vertices).simplices
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    inverted = np.einsum("fc,fc->f", np.cross(b - a, c - a), a + b + c) < 0
    faces[inverted] = faces[inverted][:, ::-1]
    for _ in range(subdivisions):
        vertices, faces = _subdivided(vertices, faces)
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return vertices, faces


def _subdivided(vertices: _Points, faces: _Faces) -> tuple[_Points, _Faces]:
    """Subdivide each triangle into four, with new vertices at the midpoints of the edges."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=2)
    unique, number = np.unique(edges.reshape(-1, 2), axis=0, return_inverse=True)
    middle = len(vertices) + number.reshape(-1, 3)
    corners = [np.stack((faces[:, i], middle[:, i], middle[:, i - 1]), axis=1) for i in range(3)]
    return np.concatenate((vertices, vertices[unique].mean(1))), np.concatenate((*corners, middle))


def _incidence(faces: _Faces) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Sparse matrices: from vertices to the mean of their neighbours, and from faces to sums at vertices."""
    count = int(faces.max()) + 1
    # Every edge is in two faces, in opposite directions, so each neighbour comes up once.
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    neighbours = sparse.csr_array((np.ones(faces.size), (start, end)), shape=(count, count))
    mean = sparse.diags_array(1 / neighbours.sum(axis=1)) @ neighbours
    number = np.repeat(np.arange(len(faces)), 3)
    total = sparse.csr_array((np.ones(faces.size), (start, number)), shape=(count, len(faces)))
    return mean.tocsr(), total


def _enclosed(vertices: _Points, faces: _Faces, shape: tuple[int, ...]) -> _Inside:
    """Voxelise a closed surface whose vertices are given in voxels.

    Every line of voxels along the third axis enters or leaves the surface where it crosses a triangle.
    Inside, it has entered once more than left, also where the surface folds over itself (winding number).
    """
    # A small shift keeps voxels off edges and corners of triangles, where a crossing could count twice or
    # never.
    a, b, c = (vertices[faces[:, corner]] + (1.3e-4, 2.1e-4, 0.0) for corner in range(3))
    lowest, highest = np.minimum(np.minimum(a, b), c)[:, :2], np.maximum(np.maximum(a, b), c)[:, :2]
    first = np.maximum(np.ceil(lowest), 0).astype(np.intp)
    last = np.minimum(np.floor(highest), np.array(shape[:2]) - 1).astype(np.intp)
    width = (last - first).max(0) + 1
    steps = np.indices(width).reshape(2, -1).T
    lines = first[:, None] + steps
    side_b, side_c, place = (b - a)[:, None], (c - a)[:, None], lines - a[:, None, :2]
    with np.errstate(divide="ignore", invalid="ignore"):  # triangles parallel to the lines cross none
        area = side_b[..., 0] * side_c[..., 1] - side_b[..., 1] * side_c[..., 0]
        share_b = (place[..., 0] * side_c[..., 1] - place[..., 1] * side_c[..., 0]) / area
        share_c = (side_b[..., 0] * place[..., 1] - side_b[..., 1] * place[..., 0]) / area
        crossed = (share_b >= 0) & (share_c >= 0) & (share_b + share_c <= 1) & (lines <= last[:, None]).all(2)
    height = (a[:, None, 2] + share_b * side_b[..., 2] + share_c * side_c[..., 2])[crossed]
    entered = -np.sign(np.broadcast_to(area, crossed.shape)[crossed]).astype(np.int32)
    winding = np.zeros((shape[0], shape[1], shape[2] + 1), dtype=np.int32)
    voxel = np.clip(np.ceil(height), 0, shape[2]).astype(np.intp)
    np.add.at(winding, (lines[crossed][:, 0], lines[crossed][:, 1], voxel), entered)
    return np.cumsum(winding, axis=2)[:, :, :-1] > 0


def _without_csf(brain: _Inside, first: _Image, last: _Image, grid: Grid, decay: float) -> _Inside:
    """Remove CSF from the brain's surface: voxels that hardly decay from the first to the last echo."""
    if not brain.any():
        return brain
    margin = np.ceil(2 * _SULCUS_MM / np.array(grid.voxel_mm)).astype(int)
    box = tuple(
        slice(max(part.start - m, 0), part.stop + m)
        for part, m in zip(ndimage.find_objects(brain.astype(np.int8))[0], margin, strict=True)
    )
    whole, brain, first, last = brain, brain[box], first[box], last[box]
    depth = distance_inside(brain, grid)
    deep = depth > min(_CORE_MM, float(depth.max()) / 2)
    least = max(float(first.max()), float(last.max())) * 1e-6
    decayed = np.log(np.maximum(first, least) / np.maximum(last, least))
    solid = brain & ((decayed > decay * np.median(decayed[deep])) | (depth > _SURFACE_MM))
    # Vessels and membranes in the CSF are thin.
    solid = dilated(eroded(solid, _CSF_OPENING_MM, grid), _CSF_OPENING_MM, grid)
    whole[box] &= closed_and_filled(solid, _SULCUS_MM, grid)
    return whole


def _with_dephased_edge(brain: _Inside, first: _Image, last: _Image, grid: Grid, decay: float) -> _Inside:
    """Add brain at the edge of the mask that the last echo does not show.

    Next to bone and air the field is so steep that the signal of the cortex is gone in the last echo, in
    which the surface stops. In the first echo it is that of brain; fluid there decays too slowly.
    """
    if not brain.any():
        return brain
    margin = np.ceil(_EDGE_MM / np.array(grid.voxel_mm)).astype(int) + 1
    box = tuple(
        slice(max(part.start - m, 0), part.stop + m)
        for part, m in zip(ndimage.find_objects(brain.astype(np.int8))[0], margin, strict=True)
    )
    whole, inside, first, last = brain.copy(), brain[box], first[box], last[box]
    near = distance_inside(~inside, grid) <= _EDGE_MM
    width = _NEARBY_MM / np.array(grid.voxel_mm)
    signal, share = (
        ndimage.gaussian_filter(part.astype(np.float32), width, mode="constant", truncate=2.5)
        for part in (np.where(inside, first, 0), inside)
    )
    least = max(float(first.max()), float(last.max())) * 1e-6
    decayed = np.log(np.maximum(first, least) / np.maximum(last, least))
    alike = first * share > _EDGE_SIGNAL * signal
    alike &= decayed > decay * np.median(decayed[inside])
    whole[box] |= ndimage.binary_propagation(inside, mask=inside | (near & alike))
    return whole
