"""Anatomy of a digital phantom: a label map of the whole head, with small structures added."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.simulation.labelmap import (
    BRAIN_STEM,
    CALLOSUM_BODY,
    CALLOSUM_GENU,
    CALLOSUM_SPLENIUM,
    CAPSULE_ANTERIOR,
    CAPSULE_POSTERIOR,
    CEREBELLUM,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CHOROID_PLEXUS,
    CINGULUM,
    CORONA_RADIATA,
    CORTICOSPINAL,
    CSF,
    DENTATE,
    LATERAL_VENTRICLE,
    LONGITUDINAL,
    NIGRA,
    OUTSIDE,
    PALLIDUM,
    PALLIDUM_INTERNUM,
    PEDUNCLE,
    PINEAL,
    PULVINAR,
    RED_NUCLEUS,
    SKULL,
    SOFT_TISSUE,
    SUBTHALAMIC,
    THALAMIC_RADIATION,
    THALAMUS,
    THIRD_VENTRICLE,
    VEIN,
    VENTRAL_DC,
    LabelMap,
    Labels,
    box_of,
    brain_mask,
    coordinates_of,
    tilted,
    to_mni_of,
)
from chisep.simulation.outside import cropped, with_outside
from chisep.simulation.packaged import packaged_labels
from chisep.simulation.tracts import draw_tracts
from chisep.simulation.vessels import draw_sinuses, grow_veins
from chisep.types import Affine

__all__ = [
    "BRAIN_STEM",
    "CALLOSUM_BODY",
    "CALLOSUM_GENU",
    "CALLOSUM_SPLENIUM",
    "CAPSULE_ANTERIOR",
    "CAPSULE_POSTERIOR",
    "CEREBELLUM",
    "CEREBRAL_CORTEX",
    "CEREBRAL_WHITE",
    "CINGULUM",
    "CORONA_RADIATA",
    "CORTICOSPINAL",
    "CSF",
    "DENTATE",
    "LONGITUDINAL",
    "NIGRA",
    "OUTSIDE",
    "PALLIDUM_INTERNUM",
    "PEDUNCLE",
    "PINEAL",
    "PULVINAR",
    "RED_NUCLEUS",
    "SKULL",
    "SOFT_TISSUE",
    "SUBTHALAMIC",
    "THALAMIC_RADIATION",
    "VEIN",
    "VENTRAL_DC",
    "LabelMap",
    "Labels",
    "brain_mask",
    "load_labels",
    "packaged_labels",
    "tilted",
    "with_structures",
]


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
            expected="whole label numbers between 0 and 20000",
            fix="Give a segmentation with FreeSurfer numbers, resampled by nearest neighbour if at all.",
        )
    labels = _without_parcels(image.data.astype(np.int16))
    for name, numbers in (("white matter", CEREBRAL_WHITE), ("cortex", CEREBRAL_CORTEX)):
        if not np.isin(labels, numbers).any():
            raise InputError(
                path,
                found=f"no voxel of cerebral {name}",
                expected=f"FreeSurfer's labels, {numbers} for {name}",
                fix="Give a segmentation made by FreeSurfer, SynthSeg or alike.",
            )
    head = LabelMap(labels, image.affine, str(path))
    return cropped(head if np.isin(labels, OUTSIDE).any() else with_outside(head))


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
        Any head; one with too few deep nuclei for registration is returned unchanged, with a warning.
    rng
        Shifts and scales every structure a little, and grows the veins.

    Returns
    -------
    LabelMap
        The same head with substantia nigra, red, subthalamic and dentate nuclei (a folded sheet), pulvinar,
        inner and outer pallidum, calcified pineal gland, choroid plexus, corpus callosum, cingulum,
        cerebral peduncles, corticospinal tract, internal capsule, corona radiata, thalamic radiation,
        superior longitudinal fasciculus and trees of veins; choroid plexus and dural sinuses only where
        the map has none of its own.
    """
    to_mni = to_mni_of(head)
    if to_mni is None:
        warnings.warn(
            f"{head.source}: too few deep nuclei to find positions by; no small nuclei, tracts, veins added.",
            ChisepWarning,
            stacklevel=2,
        )
        return head
    nuclei_rng, tract_rng, vein_rng = rng.spawn(3)
    labels = head.labels.copy()
    for side in (0, 1):
        _split_pallidum(labels, to_mni, side)
    has_plexus = bool(np.isin(labels, _PLEXUS_NUMBERS).any())
    for structure, stream in zip(_STRUCTURES, nuclei_rng.spawn(len(_STRUCTURES)), strict=True):
        if structure.labels != CHOROID_PLEXUS or not has_plexus:
            for side in (0, 1):
                structure.draw(labels, to_mni, side, stream)
    _draw_pineal(labels, to_mni, nuclei_rng)
    draw_tracts(labels, to_mni, head.voxel_mm, tract_rng)
    draw_sinuses(labels, to_mni)
    full = replace(head, labels=labels, to_mni=to_mni)
    return replace(full, veins=grow_veins(full, to_mni, vein_rng))


@dataclass(frozen=True)
class _Structure:
    """An ellipsoid in MNI space, mirrored to both sides, drawn only inside given labels."""

    labels: tuple[int, int]
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    inside: tuple[int, ...]
    turn_deg: float = 0.0
    """Rotation of the first axis from lateral towards anterior, in degrees."""
    sheet: float = 0.0
    """Thickness as a part of the radius of a folded sheet that is open to its medial side; 0: a solid."""

    def draw(self, labels: Labels, to_mni: Affine, side: int, rng: np.random.Generator) -> None:
        """Draw the structure of one side (0 left, 1 right) into `labels`."""
        centre = np.array(self.centre_mm) + rng.normal(0, 0.7, 3)
        radii = np.array(self.radii_mm) * np.clip(rng.normal(1, 0.08, 3), 0.8, 1.2)
        phase = rng.uniform(0, 2 * np.pi, 2)
        sign = (-1.0, 1.0)[side]
        reach = np.full(3, (1 + _FOLD) * radii.max())
        low, high = sorted((sign * (centre[0] - reach[0]), sign * (centre[0] + reach[0])))
        box = box_of(to_mni, labels.shape, (low, *(centre - reach)[1:]), (high, *(centre + reach)[1:]))
        x, y, z = coordinates_of(to_mni, box)
        dx, dy, dz = sign * x - centre[0], y - centre[1], z - centre[2]
        cos, sin = np.cos(np.deg2rad(self.turn_deg)), np.sin(np.deg2rad(self.turn_deg))
        a, b, c = (cos * dx + sin * dy) / radii[0], (cos * dy - sin * dx) / radii[1], dz / radii[2]
        radius = np.sqrt(a**2 + b**2 + c**2)
        shape = radius < 1
        if self.sheet:
            fold = np.cos(_FOLDS * np.arctan2(c, b) + phase[0]) * np.cos(_FOLDS * 0.7 * a + phase[1])
            outer = 1 + _FOLD * (fold - 1)
            shape = (radius < outer) & (radius > outer - self.sheet) & (dx > -0.5 * radii[0])
        view = labels[box]
        view[shape & np.isin(view, self.inside)] = self.labels[side]


_FOLDS, _FOLD = 7.0, 0.12
"""Folds around a folded sheet, and their depth as a part of its radius."""
_PLEXUS_NUMBERS = (*CHOROID_PLEXUS, 136, 137, 163, 164)
_MIDBRAIN = (*VENTRAL_DC, BRAIN_STEM)
_STRUCTURES = (
    _Structure(NIGRA, (10.0, -17.5, -11.5), (7.0, 2.3, 5.0), _MIDBRAIN, turn_deg=-50.0),
    _Structure(RED_NUCLEUS, (5.0, -20.5, -8.5), (3.3, 3.5, 4.5), _MIDBRAIN),
    _Structure(SUBTHALAMIC, (11.0, -13.5, -6.5), (5.5, 2.7, 3.2), _MIDBRAIN, turn_deg=-45.0),
    _Structure(PEDUNCLE, (13.5, -14.5, -15.0), (8.0, 5.0, 8.0), _MIDBRAIN, turn_deg=-50.0),
    _Structure(PULVINAR, (14.0, -29.0, 6.0), (9.0, 7.0, 8.0), THALAMUS),
    _Structure(DENTATE, (16.0, -58.0, -34.0), (7.5, 10.0, 7.0), CEREBELLUM, turn_deg=-30.0, sheet=0.32),
    _Structure(CHOROID_PLEXUS, (23.0, -39.0, 12.0), (3.5, 8.0, 5.0), LATERAL_VENTRICLE),
)


def _split_pallidum(labels: Labels, to_mni: Affine, side: int) -> None:
    """Label the medial two fifths of the pallidum as its inner segment."""
    index = np.argwhere(labels == PALLIDUM[side])
    if not len(index):
        return
    x, y, _ = (index @ to_mni[:3, :3].T + to_mni[:3, 3]).T
    # The lamina between the segments runs parallel to the capsule: forward and outward.
    lateral = np.abs(x) + 0.5 * y
    inner = index[lateral < np.quantile(lateral, 0.4)]
    labels[tuple(inner.T)] = PALLIDUM_INTERNUM[side]


def _draw_pineal(labels: Labels, to_mni: Affine, rng: np.random.Generator) -> None:
    """Label the calcified part of the pineal gland, 2 to 4 mm wide."""
    centre, radius = np.array([0.0, -32.0, 0.0]) + rng.normal(0, 0.5, 3), rng.uniform(1.2, 2.2)
    box = box_of(to_mni, labels.shape, (centre - radius).tolist(), (centre + radius).tolist())
    square = sum((c - at) ** 2 for c, at in zip(coordinates_of(to_mni, box), centre, strict=True))
    view = labels[box]
    view[(square < radius**2) & np.isin(view, (CSF, THIRD_VENTRICLE, *_MIDBRAIN, *CEREBRAL_WHITE))] = PINEAL
