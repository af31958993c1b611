"""Label map of a head: label numbers, coordinates, positions.

Labels are FreeSurfer's numbers; 502–530 outside the brain are those of the public SynthSeg label maps;
numbers above 20000 are chisep's own, for structures that FreeSurfer does not number. World coordinates
are RAS+ mm; "MNI" coordinates are those of the packaged head (MNI152, ICBM 2009a), to which every other
head is tied by the centres of structures that both have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16
from numpy.typing import NDArray
from scipy import ndimage

from chisep.types import Affine

Labels = Int16[np.ndarray, "i j k"]
"""One label per voxel."""
Mask = Bool[np.ndarray, "i j k"]
"""One flag per voxel."""
Points = Float[np.ndarray, "point 3"]
"""Points, one a row."""
PerPoint = Float[np.ndarray, " point"]
"""One number per point."""

CEREBRAL_WHITE, CEREBRAL_CORTEX = (2, 41), (3, 42)
CSF, BRAIN_STEM, SKULL, VEIN, SOFT_TISSUE = 24, 16, 165, 514, 258
VENTRAL_DC = (28, 60)
LATERAL_VENTRICLE, THIRD_VENTRICLE = (4, 43), 14
THALAMUS, CAUDATE, PUTAMEN, PALLIDUM = (10, 49), (11, 50), (12, 51), (13, 52)
CEREBELLUM = (7, 8, 46, 47)
CEREBELLAR_WHITE, CEREBELLAR_CORTEX = (7, 46), (8, 47)
OUTSIDE = (SKULL, SOFT_TISSUE, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)
"""Labels of the head outside the brain; a map that has none gets a synthetic outside."""

CHOROID_PLEXUS = (31, 63)
CALLOSUM_SPLENIUM, CALLOSUM_BODY, CALLOSUM_GENU = 251, 253, 255
NIGRA = (27, 59)
RED_NUCLEUS, SUBTHALAMIC, DENTATE, PULVINAR = (20001, 20002), (20003, 20004), (20005, 20006), (20007, 20008)
PALLIDUM_INTERNUM = (20009, 20010)
PEDUNCLE, CAPSULE_ANTERIOR, CAPSULE_POSTERIOR = (20011, 20012), (20013, 20014), (20015, 20016)
CORONA_RADIATA, THALAMIC_RADIATION, LONGITUDINAL = (20017, 20018), (20019, 20020), (20021, 20022)
CINGULUM, CORTICOSPINAL = (20023, 20024), (20025, 20026)
PINEAL = 20030
FALX_CALCIFIED, DURA_CALCIFIED = 20031, 20032
WHITE_MATTER = (
    *CEREBRAL_WHITE,
    *CEREBELLAR_WHITE,
    *(251, 252, 253, 254, 255),
    *PEDUNCLE,
    *CAPSULE_ANTERIOR,
    *CAPSULE_POSTERIOR,
    *CORONA_RADIATA,
    *THALAMIC_RADIATION,
    *LONGITUDINAL,
    *CINGULUM,
    *CORTICOSPINAL,
)
"""Labels of tissue that is mostly fibres."""
DEEP_GREY = (
    *THALAMUS,
    *PULVINAR,
    *CAUDATE,
    *PUTAMEN,
    *PALLIDUM,
    *PALLIDUM_INTERNUM,
    *NIGRA,
    *RED_NUCLEUS,
    *SUBTHALAMIC,
    *DENTATE,
)
"""Labels of the nuclei."""

_FEWEST_LANDMARKS = 8


@dataclass(frozen=True, eq=False)
class Veins:
    """Trees of veins as short pieces of tube.

    Parameters
    ----------
    at_voxel
        Middle of each piece in voxel coordinates of the label map.
    radius_mm
        Radius of each piece.
    length_mm
        Length of each piece.
    towards
        Unit vector of each piece towards the root, the direction of flow, in voxel axes; None if unknown.
    """

    at_voxel: Points
    radius_mm: PerPoint
    length_mm: PerPoint
    towards: Points | None = None


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A segmented head.

    Parameters
    ----------
    labels
        Label numbers, shape (i, j, k); 0 is air.
    affine
        Voxel index to world mm, shape (4, 4).
    source
        Where it comes from, for messages and sidecars.
    veins
        Veins too thin for labels.
    to_mni
        Voxel index to MNI mm, shape (4, 4), where it is known.
    """

    labels: Labels
    affine: Affine
    source: str
    veins: Veins | None = None
    to_mni: Affine | None = None

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def tilted(head: LabelMap, tilt_deg: Sequence[float]) -> LabelMap:
    """Rotate a head in the scanner: the voxels stay, their affine rotates about the centre.

    Parameters
    ----------
    head
        Any head.
    tilt_deg
        Rotation about the world's x, y and z axis in degrees, in this order.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(tilt_deg, dtype=np.float64))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[a, b], [a, b]] = np.cos(angle)
        step[b, a], step[a, b] = np.sin(angle), -np.sin(angle)
        matrix = step @ matrix
    centre = apply_affine(head.affine, (np.array(head.labels.shape) - 1) / 2)
    affine = head.affine.copy()
    affine[:3, :3] = matrix @ head.affine[:3, :3]
    affine[:3, 3] = matrix @ (head.affine[:3, 3] - centre) + centre
    return replace(head, affine=affine)


def coarsened(head: LabelMap, edge_mm: float) -> LabelMap:
    """Subsample a label map to voxels of at most `edge_mm`, from the same corner; veins are left out."""
    factors = [max(1, int(edge_mm / edge + 1e-6)) for edge in head.voxel_mm]
    if max(factors) == 1:
        return head
    rest = [(0, -n % factor) for n, factor in zip(head.labels.shape, factors, strict=True)]
    i, j, k = (slice(factor // 2, None, factor) for factor in factors)
    labels = np.pad(head.labels, rest, mode="edge")[i, j, k]
    affine = head.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] = apply_affine(head.affine, (np.array(factors) - 1) / 2)
    return LabelMap(np.ascontiguousarray(labels), affine, head.source)


def brain_mask(head: LabelMap, brain_labels: Iterable[int]) -> Mask:
    """Brain with its ventricles and sulci: brain labels, closed by 3 mm, without holes.

    Parameters
    ----------
    head
        Any head.
    brain_labels
        Labels of brain tissue and ventricles.
    """
    tissue = np.isin(head.labels, list(brain_labels))
    size = [2 * round(3.0 / edge) + 1 for edge in head.voxel_mm]
    closed = ndimage.minimum_filter(
        ndimage.maximum_filter(tissue, size, mode="nearest"), size, mode="nearest"
    )
    return np.asarray(ndimage.binary_fill_holes(closed | tissue), dtype=np.bool_)


LANDMARKS_MNI_MM: dict[int, tuple[float, float, float]] = {
    10: (-11.7, -19.4, 6.3),
    49: (10.9, -18.8, 6.4),
    11: (-13.6, 9.6, 8.8),
    50: (12.9, 9.6, 9.0),
    12: (-25.5, 2.7, -2.6),
    51: (24.5, 3.1, -2.6),
    13: (-20.1, -4.3, -2.2),
    52: (19.2, -4.5, -1.8),
    17: (-26.8, -22.8, -14.6),
    53: (26.3, -22.9, -14.6),
    18: (-24.2, -3.0, -20.9),
    54: (23.0, -3.4, -20.8),
    8: (-23.5, -63.8, -36.7),
    47: (24.0, -63.9, -36.9),
    2: (-28.3, -17.2, 20.5),
    41: (28.4, -17.3, 20.4),
}
"""Centres of structures in the packaged head, RAS+."""


def apply_affine(affine: Affine, points: NDArray[Any]) -> NDArray[np.float64]:
    """Map points, shape (..., 3), by an affine."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def to_mni_of(head: LabelMap) -> Affine | None:
    """Voxel index to MNI mm by least squares over centres of shared structures; None if too few are there."""
    boxes = ndimage.find_objects(head.labels, max(LANDMARKS_MNI_MM))
    voxel, mni = [], []
    for label, centre in LANDMARKS_MNI_MM.items():
        box = boxes[label - 1]
        if box is not None:
            voxel.append([*(np.argwhere(head.labels[box] == label).mean(0) + [s.start for s in box]), 1.0])
            mni.append(centre)
    if len(mni) < _FEWEST_LANDMARKS:
        return None
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(np.array(voxel), np.array(mni), rcond=None)[0].T
    return affine


def box_of(
    to_mni: Affine, shape: Sequence[int], low_mm: Sequence[float], high_mm: Sequence[float]
) -> tuple[slice, ...]:
    """Voxels that hold a box of MNI space, clipped to the volume."""
    corners: NDArray[np.float64] = np.array(np.meshgrid(*zip(low_mm, high_mm, strict=True))).reshape(3, -1).T
    voxel = apply_affine(np.linalg.inv(to_mni), corners)
    start, stop = np.floor(voxel.min(0)).astype(int), np.ceil(voxel.max(0)).astype(int) + 1
    return tuple(slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(start, stop, shape, strict=True))


def coordinates_of(to_mni: Affine, box: Sequence[slice]) -> list[NDArray[np.float32]]:
    """MNI x, y and z of the voxels of a box; each has length 1 along axes that it does not vary along."""
    index = np.ogrid[tuple(box)]
    coordinates = []
    for row in to_mni[:3]:
        value = np.full((1, 1, 1), row[3], dtype=np.float32)
        for axis in np.flatnonzero(row[:3]):
            value = value + (row[axis] * index[axis]).astype(np.float32)
        coordinates.append(value)
    return coordinates
