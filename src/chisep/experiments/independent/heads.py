"""Heads of the independent bench: a label map, its tissue classes, a brain mask and fibre directions.

In numpy and scipy alone; the tables are this bench's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chisep.errors import InputError
from chisep.experiments.independent.forward import Array, Bool, smooth_noise

WHITE, CORTEX, CSF = 1, 2, 3
CLASSES: Mapping[str, tuple[int, ...]] = {
    "white matter": (2, 41, 7, 46, 16, 85, 28, 60, 77, 251, 252, 253, 254, 255),
    "grey matter": (3, 42, 8, 47, 17, 53, 18, 54, 26, 58, 25, 57, 136, 137, 163, 164),
    "CSF": (4, 43, 5, 44, 14, 15, 24, 72, 30, 62),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "red nucleus": (901, 951),
    "substantia nigra": (902, 952),
    "dentate nucleus": (903, 953),
}
"""Label numbers (FreeSurfer's; 901 to 953 are placed) by tissue; the order numbers the classes from 1."""
NAMES: tuple[str, ...] = tuple(CLASSES)
_OUTSIDE = 500
"""Label numbers from here on, below 900, lie outside of the brain."""
_CLOSING_VOXEL = 3
_MARGIN_VOXEL = 6
_FIBRE_VOXEL = 15.0
_FEWEST_VOXELS = 500


@dataclass(frozen=True, eq=False)
class Head:
    """A head of 1 mm in RAS orientation, cut to the brain.

    Parameters
    ----------
    labels
        Label numbers with placed nuclei, 0 outside the mask.
    classes
        Number of the tissue class, 0 outside the mask.
    mask
        Brain.
    fibre
        Unit vectors of fibre directions in white matter, shape (3, i, j, k).
    """

    labels: NDArray[np.int16]
    classes: NDArray[np.uint8]
    mask: Bool
    fibre: Array


def read_head(path: Path, rng: np.random.Generator, box: tuple[int, int, int] | None = None) -> Head:
    """Read a label map of 1 mm.

    Parameters
    ----------
    path
        NIfTI file with FreeSurfer label numbers.
    rng
        Draws fibre directions and the shape of placed nuclei.
    box
        Size in voxels of a box at the centre of the brain; the whole brain if None.

    Raises
    ------
    InputError
        If it is no label map of a brain at 1 mm.
    """
    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))
        labels = np.asarray(image.dataobj).squeeze().astype(np.int16)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(
            str(path),
            found=f"no readable image ({error})",
            expected="a NIfTI label map",
            fix="Check the file.",
        ) from error
    edges = [float(edge) for edge in image.header.get_zooms()[:3]]
    if labels.ndim != 3 or not np.allclose(edges, 1.0, atol=0.02):
        raise InputError(
            str(path),
            found=f"shape {labels.shape}, voxels of {edges} mm",
            expected="a 3-D label map with voxels of 1 mm",
            fix="Resample it with nearest neighbours.",
        )
    known = np.isin(labels, [number for numbers in CLASSES.values() for number in numbers])
    mask = _brain(known & (labels != 24))
    if mask.sum() < _FEWEST_VOXELS or not np.isin(labels, (2, 41)).any():
        raise InputError(
            str(path),
            found="hardly any label of a brain",
            expected="FreeSurfer label numbers (2 and 41: white matter, 3 and 42: cortex, …)",
            fix="Give a whole-brain segmentation.",
        )
    labels = np.where(mask, np.where(known, labels, 24), 0).astype(np.int16)
    where = _box(mask, box)
    labels, mask = labels[where], mask[where]
    _place_nuclei(labels)
    classes = np.zeros(labels.shape, np.uint8)
    for number, members in enumerate(CLASSES.values(), 1):
        classes[np.isin(labels, members)] = number
    return Head(labels, classes, mask, _fibres(classes, rng))


def _brain(tissue: Bool) -> Bool:
    """Tissue with the CSF between it: closed, filled, and its largest component."""
    distance = ndimage.distance_transform_edt(~tissue)
    closed = ndimage.distance_transform_edt(distance <= _CLOSING_VOXEL) > _CLOSING_VOXEL
    parts, count = ndimage.label(closed | tissue)
    if count > 1:
        parts = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    filled: Bool = ndimage.binary_fill_holes(parts > 0)
    return filled


def _box(mask: Bool, box: tuple[int, int, int] | None) -> tuple[slice, ...]:
    if box is None:
        return tuple(
            slice(max(0, int(axis.min()) - _MARGIN_VOXEL), int(axis.max()) + _MARGIN_VOXEL + 1)
            for axis in np.nonzero(mask)
        )
    centre = [round(x) for x in ndimage.center_of_mass(mask)]
    return tuple(
        slice(max(0, c - size // 2), min(n, c - size // 2 + size))
        for c, size, n in zip(centre, box, mask.shape, strict=True)
    )


def _place_nuclei(labels: NDArray[np.int16]) -> None:
    """Add red nucleus, substantia nigra and dentate nucleus as ellipsoids where the label map has none."""
    axes = np.indices(labels.shape).astype(np.float32)
    for side, (ventral, cerebellum) in enumerate(((28, 7), (60, 46))):
        for within, name, offset, radii, tilt in (
            (ventral, 901, (0.35, -1.0, -2.0), (2.6, 2.8, 3.6), 0.0),
            (ventral, 902, (0.0, 2.0, -4.0), (2.0, 5.5, 2.6), 0.6),
            (cerebellum, 903, (0.0, 1.0, 2.0), (2.4, 6.5, 4.2), 0.5),
        ):
            inside = labels == within
            if inside.sum() < _FEWEST_VOXELS:
                continue
            centre = np.array(ndimage.center_of_mass(inside))
            outward = 1.0 if side else -1.0
            x, y, z = (axes[n] - centre[n] - offset[n] * (outward if n == 0 else 1) for n in range(3))
            turned = (
                np.cos(tilt) * x - outward * np.sin(tilt) * y,
                outward * np.sin(tilt) * x + np.cos(tilt) * y,
            )
            ellipsoid = (turned[0] / radii[0]) ** 2 + (turned[1] / radii[1]) ** 2 + (z / radii[2]) ** 2 <= 1
            labels[ellipsoid & (inside | (np.isin(labels, (16, 2, 41, 8, 47))))] = name + 50 * side


def _fibres(classes: NDArray[np.uint8], rng: np.random.Generator) -> Array:
    """Fibre directions: across near the midline, fanning upwards at the sides, and smoothly random."""
    shape = classes.shape
    inside = np.argwhere(classes == WHITE)
    middle = inside.mean(0)
    x = (np.arange(shape[0]) - middle[0])[:, None, None] / 30
    z = (np.arange(shape[2]) - middle[2])[None, None, :] / 30
    near = np.exp(-((x / 0.5) ** 2)) * np.ones_like(z)
    random = np.stack([smooth_noise(shape, _FIBRE_VOXEL, rng) for _ in range(3)])
    made = 0.7 * random
    made[0] += near + 0.5 * np.sign(x) * np.clip(z, 0, 1) * (1 - near)
    made[2] += (1 - near) * 0.8
    made /= np.sqrt((made**2).sum(0, keepdims=True)) + 1e-6
    return made.astype(np.float32)
