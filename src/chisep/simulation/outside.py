"""Synthetic surroundings of a brain-only label map: CSF, skull, scalp, face, neck, air spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chisep.simulation.labelmap import (
    CSF,
    SKULL,
    SOFT_TISSUE,
    LabelMap,
    Mask,
    apply_affine,
    box_of,
    coordinates_of,
    to_mni_of,
)

_MARGIN_MM = 8.0
_CUT_FRACTION = 0.2
"""A face of the head's bounding box of which more than this is head is where the scan was cut (the neck)."""
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
