"""Brain masks: brain extraction from gradient-echo magnitudes, phase quality, masks of the user's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import ConvexHull
from skimage.filters import threshold_otsu
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes, Grid, MaskVolume, Volume

_DARK_CLASS = 0.3
"""Below this ratio of Otsu's two class means, the darker class is air and not tissue."""
_TISSUE_FRACTION = 0.3
"""Signal that counts as tissue, relative to the median, in a volume without air."""

_NOISE_SMOOTHING_MM = 1.0
_HEAD_HEIGHT_MM = 130.0
"""The brain lies within this distance of the top of the head; below are neck and shoulders."""
_INWARD_MM, _INWARD_BRIGHT_MM = 20.0, 10.0
_SHARPEST_MM, _FLATTEST_MM = 3.33, 10.0
_SUBDIVISIONS = 3
_STEPS = (400, 150)
"""Steps of the surface with 642 vertices, which is fast, and then with 2562."""
_FLUID_OPENING_MM, _SULCUS_MM = 3.0, 4.0
_SURFACE_MM = 15.0
"""Fluid deeper below the surface is in ventricles, which belong to the mask."""
_CORE_MM = 10.0
_LEAST_ML = 1.0

_Points = Float[np.ndarray, "_ 3"]
_Faces = Int[np.ndarray, "_ 3"]
_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]


@dataclass(frozen=True)
class MaskConfig:
    """How the brain is told from the rest of the head."""

    method: Literal["bet", "threshold"] = "bet"
    """A surface that grows to the edge of the brain (BET), or threshold and morphology, which need a brain
    that is apart from muscle and fat. In a volume without air, a crop, all tissue is the mask either way."""
    fraction: float = 0.5
    """For BET: the surface stops where the signal falls below this fraction of that inside; larger values
    make the mask smaller."""
    fluid_decay: float = 0.5
    """For BET: fluid on the brain's surface, which decays more slowly than this fraction of the brain's
    median rate, is left out; 0 keeps it, as a scan of one echo does."""
    erosion_mm: float = 4.0
    """For threshold: erosion that cuts the bridges between brain and scalp; undone afterwards."""
    closing_mm: float = 3.0
    """For threshold: gaps of up to twice this width (veins, sulci) are closed."""
    low_signal: float = 0.1
    """Voxels below this fraction of the brain's median signal are left out: their phase is noise."""

    def __post_init__(self) -> None:
        for name in ("fluid_decay", "erosion_mm", "closing_mm", "low_signal"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"mask option {name}",
                    found=f"{value}",
                    expected="0 or more",
                    fix="Leave it at its default.",
                )
        if not 0 < self.fraction < 1:
            raise InputError(
                "mask option fraction",
                found=f"{self.fraction}",
                expected="between 0 and 1",
                fix="Leave it at its default, or try 0.3 to 0.7.",
            )


@dataclass(frozen=True)
class QualityConfig:
    """Where phase is too poor for background removal."""

    least_quality: float = 0.45
    """Voxels of less phase quality (0 to 1) are poor."""
    vein_mm: float = 2.5
    """Poor voxels that a ball of this radius does not fit in, such as veins, stay in the mask."""
    hole_ml: float = 1.0
    """Poor regions of up to this volume stay if they are enclosed by the mask."""

    def __post_init__(self) -> None:
        for name in ("least_quality", "vein_mm", "hole_ml"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"phase quality option {name}",
                    found=f"{value}",
                    expected="0 or more",
                    fix="Leave it at its default.",
                )


def brain_mask(magnitude: Echoes, grid: Grid, config: MaskConfig | None = None) -> MaskVolume:
    """Find the brain in gradient-echo magnitudes.

    By default a surface grows from the middle of the head to the edge of the brain (BET: Smith 2002,
    10.1002/hbm.10062). It grows in the last echo, in which bone, fat and muscle have decayed more than
    brain and fluid have. What then lies on the surface and hardly decays is fluid between brain and skull,
    and is left out, with sulci closed. Ratios of echoes do not depend on the coil's sensitivity, and BET
    compares signals over 2 cm only.

    Parameters
    ----------
    magnitude
        Gradient-echo magnitudes in order of echo time, shape (echo, i, j, k), any scale.
    grid
        Their grid; its affine says where the top of the head is.
    config
        Options; defaults where None.

    Returns
    -------
    MaskVolume
        True in the brain, shape (i, j, k).

    Raises
    ------
    InputError
        If no voxel is left.
    """
    config = config or MaskConfig()
    image = magnitude.detach().square().sum(0).sqrt().cpu().numpy()
    if not image.max() > image.min():
        raise _nothing("a constant image")
    tissue, has_air = _tissue(image)
    if has_air and config.method == "bet":
        brain = _extracted(magnitude.detach().cpu().numpy(), image, grid, config)
    else:
        brain = _deepest_component(tissue, grid, config) if has_air else tissue
        brain = _closed(brain, config.closing_mm, grid)
    if brain.any():
        brain &= image > config.low_signal * np.median(image[brain])
    if not brain.any():
        raise _nothing(f"no voxel left of {int(tissue.sum())} with signal")
    return torch.from_numpy(brain).to(magnitude.device)


def quality_mask(
    quality: Volume, mask: MaskVolume, grid: Grid, config: QualityConfig | None = None
) -> MaskVolume:
    """Leave out of a mask what has no phase to rely on.

    Background removal reads the field in spheres or along the whole surface of the mask, so one region
    of wrong phase, such as above the nasal sinus, spoils its surroundings. But what is left out becomes
    background: its own field is removed, and so is a rim of brain around every hole. So poor voxels are
    cut at the edge and where they are many; single ones and veins stay, and small holes are filled.

    Parameters
    ----------
    quality
        Reliability of the phase from 0 to 1, shape (i, j, k).
    mask
        Brain, shape (i, j, k).
    grid
        Voxel size.
    config
        Options; defaults where None.

    Returns
    -------
    MaskVolume
        Part of `mask`, connected, shape (i, j, k).

    Raises
    ------
    InputError
        If nothing is left.
    """
    config = config or QualityConfig()
    brain = mask.cpu().numpy()
    good = brain & (quality.detach().cpu().numpy() >= config.least_quality)
    kept = brain & _grown_and_shrunk(good, config.vein_mm, grid)
    holes, _ = ndimage.label(ndimage.binary_fill_holes(kept) & brain & ~kept)
    small = np.bincount(holes.ravel()) * (math.prod(grid.voxel_mm) / 1000) <= config.hole_ml
    kept |= small[holes] & (holes > 0)
    kept = _largest_component(kept)
    if not kept.any():
        raise InputError(
            "phase quality",
            found=f"no voxel of the brain mask with a quality of {config.least_quality:g} or more",
            expected="phase images with signal in the brain",
            fix="Check that magnitude, phase and mask belong together.",
        )
    return torch.from_numpy(kept).to(mask.device)


def checked_mask(mask: Tensor, grid: Grid, source: str) -> MaskVolume:
    """Check a mask that a user gave.

    Parameters
    ----------
    mask
        0 outside and one other value inside, shape (i, j, k).
    grid
        Grid that it must be on.
    source
        Its file, for messages.

    Returns
    -------
    MaskVolume
        True inside.

    Raises
    ------
    InputError
        If the shape differs, there are other values, or the mask is (nearly) empty.
    """
    values = torch.unique(mask)
    inside = mask != 0
    ml = int(inside.sum()) * math.prod(grid.voxel_mm) / 1000
    found = None
    if tuple(mask.shape) != grid.shape:
        found = f"shape {tuple(mask.shape)}"
    elif not bool(values.isfinite().all()) or len(values) > 2 or (len(values) == 2 and values[0] != 0):
        found = f"{len(values)} different values from {float(values[0]):g} to {float(values[-1]):g}"
    elif ml < _LEAST_ML:
        found = f"{ml:.3g} ml"
    if found:
        raise InputError(
            source,
            found=found,
            expected=f"a brain mask of 0 and 1, of shape {grid.shape} and at least {_LEAST_ML:g} ml",
            fix="Make the mask on the grid of the gradient echo, or leave it out to have it made.",
        )
    return inside


def depth_mm(mask: MaskVolume, grid: Grid) -> Volume:
    """Distance from each voxel of a mask to the nearest one outside of it.

    Parameters
    ----------
    mask
        Shape (i, j, k); all beyond the edge of the volume is outside.
    grid
        Voxel size.

    Returns
    -------
    Volume
        In mm, 0 outside the mask, shape (i, j, k), on the device of the mask.
    """
    depth = _inside(np.pad(mask.cpu().numpy(), 1), grid)
    return torch.from_numpy(depth[1:-1, 1:-1, 1:-1].astype(np.float32)).to(mask.device)


def _nothing(found: str) -> InputError:
    return InputError(
        "brain mask",
        found=found,
        expected="a gradient-echo magnitude of a head or a part of the brain",
        fix="Check the magnitude images, or give a mask of your own.",
    )


# ---- threshold and morphology ------------------------------------------------------------------------------


def _tissue(image: _Image) -> tuple[_Inside, bool]:
    """Voxels with signal, and whether there is air around them."""
    # Bright fat and vessels would pull the threshold up: the histogram ends at the 99th percentile.
    clipped = np.minimum(image, np.percentile(image, 99))
    threshold = float(threshold_otsu(clipped))
    tissue = clipped > threshold
    has_air = bool(clipped[~tissue].mean() < _DARK_CLASS * clipped[tissue].mean())
    if not has_air:
        tissue = image > _TISSUE_FRACTION * np.median(image)
    return tissue, has_air


def _inside(mask: _Inside, grid: Grid) -> _Image:
    """Distance in mm to the nearest voxel outside the mask; the edge of the volume counts as inside."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    distance = np.zeros(mask.shape)
    if mask.any():
        # The nearest voxel outside lies in the bounding box or next to it.
        lines = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(max(int(at[0]) - 1, 0), int(at[-1]) + 2) for at in lines)
        distance[box] = ndimage.distance_transform_edt(mask[box], sampling=grid.voxel_mm)
    return distance


def _deepest_component(tissue: _Inside, grid: Grid, config: MaskConfig) -> _Inside:
    """Part brain and scalp, keep the component deepest in the head and grow it back within the tissue."""
    parts, count = ndimage.label(_inside(tissue, grid) > config.erosion_mm)
    if count == 0:
        return np.zeros_like(tissue)
    # The scalp may have more voxels than a small brain, but none of them lies deep under the skin.
    head = _closed(tissue, config.erosion_mm, grid)
    depth = ndimage.sum_labels(_inside(head, grid), parts, index=np.arange(1, count + 1))
    core = parts == 1 + int(np.argmax(depth))
    return tissue & (_inside(~core, grid) <= config.erosion_mm)


def _grown_and_shrunk(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological closing with a ball."""
    if not mask.any():
        return mask
    grown = _inside(~mask, grid) <= radius_mm
    return mask | (_inside(grown, grid) > radius_mm)


def _closed(mask: _Inside, radius_mm: float, grid: Grid) -> _Inside:
    """Morphological closing with a ball, then hole filling."""
    return np.asarray(ndimage.binary_fill_holes(_grown_and_shrunk(mask, radius_mm, grid)))


def _largest_component(mask: _Inside) -> _Inside:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: _Inside = mask & (parts == int(np.argmax(sizes)))
    return largest


# ---- brain extraction --------------------------------------------------------------------------------------


def _extracted(magnitude: NDArray[np.floating], image: _Image, grid: Grid, config: MaskConfig) -> _Inside:
    """Brain by surface evolution, without fluid on it."""
    voxel_mm = np.array(grid.voxel_mm)
    first, last = (
        ndimage.gaussian_filter(echo, _NOISE_SMOOTHING_MM / voxel_mm)
        for echo in (magnitude[0], magnitude[-1])
    )
    head = ndimage.gaussian_filter(image, _NOISE_SMOOTHING_MM / voxel_mm)
    centre_mm, radius_mm, middle = _middle_of_head(head, grid)
    vertices, faces = _evolved(last, voxel_mm, centre_mm, radius_mm, middle, config.fraction)
    brain = _enclosed(vertices / voxel_mm, faces, image.shape)
    if len(magnitude) > 1 and config.fluid_decay > 0:
        brain = _without_fluid(brain, first, last, grid, config.fluid_decay)
    return brain


def _robust_range(image: _Image) -> tuple[float, float, float]:
    """Percentiles 2 and 98, and what is a tenth of the way between: above is head, below air."""
    low, high = (float(value) for value in np.percentile(image, (2, 98)))
    return low, low + 0.1 * (high - low), high


def _middle_of_head(image: _Image, grid: Grid) -> tuple[_Points, float, _Inside]:
    """Centre (mm along the voxel axes), radius (mm) and voxels of a ball as large as head less neck."""
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
    """Grow a sphere to the edge of the brain; returns its vertices in mm along the voxel axes, and its faces.

    At every step, three forces move each vertex (Smith 2002): along the surface to the middle of its
    neighbours, along the normal against sharp curvature, and along the normal outward or inward by whether
    the darkest voxel within 2 cm inward is brighter than a fraction of the brightest within 1 cm.
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
    places = centre_mm + sphere * radius_mm / 2
    for stage, steps in enumerate(_STEPS):
        if stage:
            places, faces = _subdivided(places, faces)
        mean_of_neighbours, sum_of_faces = _incidence(faces)
        for _ in range(steps):
            corners = places[faces]
            edge, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
            length = np.linalg.norm(edge, axis=1).mean()
            normal = sum_of_faces @ np.cross(edge, other)
            normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
            shift = mean_of_neighbours @ places - places
            outward = np.einsum("vc,vc->v", shift, normal)
            along = shift - outward[:, None] * normal
            curvature = 2 * np.abs(outward) / length**2
            smoothing = (1 + np.tanh(steepness * (curvature - mean_curvature))) / 2

            inward = (places[:, None] - depths_mm[:, None] * normal[:, None]) / voxel_mm
            values = flat[np.clip(np.rint(inward), 0, last).astype(np.intp) @ strides]
            darkest = np.clip(values.min(1), dark, typical)
            brightest = np.clip(values[:, bright].max(1), threshold, typical)
            edge_signal = dark + fraction * (brightest - dark)
            growth = 0.05 * length * 2 * (darkest - edge_signal) / (brightest - dark)
            places = places + 0.5 * along + (smoothing * outward + growth)[:, None] * normal
            places = np.clip(places, lowest, highest)
    return places, faces


def _icosphere(subdivisions: int) -> tuple[_Points, _Faces]:
    """Vertices and faces of a unit sphere made of triangles, seen from outside counter-clockwise."""
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
    """Four triangles in place of each, with new vertices in the middle of the edges."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=2)
    unique, number = np.unique(edges.reshape(-1, 2), axis=0, return_inverse=True)
    middle = len(vertices) + number.reshape(-1, 3)
    corners = [np.stack((faces[:, i], middle[:, i], middle[:, i - 1]), axis=1) for i in range(3)]
    return np.concatenate((vertices, vertices[unique].mean(1))), np.concatenate((*corners, middle))


def _incidence(faces: _Faces) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Matrices that take vertices to the mean of their neighbours, and faces to sums at their vertices."""
    count = int(faces.max()) + 1
    # Every edge is in two faces, in opposite directions, so each neighbour comes up once.
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    neighbours = sparse.csr_array((np.ones(faces.size), (start, end)), shape=(count, count))
    mean = sparse.diags_array(1 / neighbours.sum(axis=1)) @ neighbours
    number = np.repeat(np.arange(len(faces)), 3)
    total = sparse.csr_array((np.ones(faces.size), (start, number)), shape=(count, len(faces)))
    return mean.tocsr(), total


def _enclosed(vertices: _Points, faces: _Faces, shape: tuple[int, ...]) -> _Inside:
    """Voxels inside a closed surface whose vertices are given in voxels.

    Along every line of voxels in the third axis, the surface is entered or left where a triangle is crossed;
    inside, it was entered once more than left, also where it folds over itself.
    """
    # Voxels are kept off edges and corners of triangles, where a crossing could count twice or never.
    a, b, c = (vertices[faces[:, corner]] + (1.3e-4, 2.1e-4, 0.0) for corner in range(3))
    lowest, highest = np.minimum(np.minimum(a, b), c)[:, :2], np.maximum(np.maximum(a, b), c)[:, :2]
    first = np.maximum(np.ceil(lowest), 0).astype(np.intp)
    last = np.minimum(np.floor(highest), np.array(shape[:2]) - 1).astype(np.intp)
    width = (last - first).max(0) + 1
    steps = np.indices(width).reshape(2, -1).T
    lines = first[:, None] + steps
    side_b, side_c, place = (b - a)[:, None], (c - a)[:, None], lines - a[:, None, :2]
    with np.errstate(divide="ignore", invalid="ignore"):  # triangles seen from their edge cross no line
        area = side_b[..., 0] * side_c[..., 1] - side_b[..., 1] * side_c[..., 0]
        share_b = (place[..., 0] * side_c[..., 1] - place[..., 1] * side_c[..., 0]) / area
        share_c = (side_b[..., 0] * place[..., 1] - side_b[..., 1] * place[..., 0]) / area
        crossed = (share_b >= 0) & (share_c >= 0) & (share_b + share_c <= 1) & (lines <= last[:, None]).all(2)
    height = (a[:, None, 2] + share_b * side_b[..., 2] + share_c * side_c[..., 2])[crossed]
    entered = -np.sign(np.broadcast_to(area, crossed.shape)[crossed]).astype(np.int32)
    turns = np.zeros((shape[0], shape[1], shape[2] + 1), dtype=np.int32)
    voxel = np.clip(np.ceil(height), 0, shape[2]).astype(np.intp)
    np.add.at(turns, (lines[crossed][:, 0], lines[crossed][:, 1], voxel), entered)
    return np.cumsum(turns, axis=2)[:, :, :-1] > 0


def _without_fluid(brain: _Inside, first: _Image, last: _Image, grid: Grid, decay: float) -> _Inside:
    """Leave out what lies on the surface of the brain and hardly decays from the first to the last echo."""
    if not brain.any():
        return brain
    margin = np.ceil(2 * _SULCUS_MM / np.array(grid.voxel_mm)).astype(int)
    box = tuple(
        slice(max(part.start - m, 0), part.stop + m)
        for part, m in zip(ndimage.find_objects(brain.astype(np.int8))[0], margin, strict=True)
    )
    whole, brain, first, last = brain, brain[box], first[box], last[box]
    depth = _inside(brain, grid)
    deep = depth > min(_CORE_MM, float(depth.max()) / 2)
    least = max(float(first.max()), float(last.max())) * 1e-6
    decayed = np.log(np.maximum(first, least) / np.maximum(last, least))
    solid = brain & ((decayed > decay * np.median(decayed[deep])) | (depth > _SURFACE_MM))
    # Vessels and membranes in the fluid are thin.
    solid = _inside(~(_inside(solid, grid) > _FLUID_OPENING_MM), grid) <= _FLUID_OPENING_MM
    whole[box] &= _closed(solid, _SULCUS_MM, grid)
    return whole
