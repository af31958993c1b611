"""Heads that differ from the usual: calcified falx and dura, missing structures, resection cavities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage

from chisep.errors import InputError
from chisep.simulation.labelmap import (
    CALLOSUM_BODY,
    CALLOSUM_GENU,
    CALLOSUM_SPLENIUM,
    CAUDATE,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CSF,
    DURA_CALCIFIED,
    FALX_CALCIFIED,
    LATERAL_VENTRICLE,
    OUTSIDE,
    VEIN,
    LabelMap,
    Labels,
    apply_affine,
    box_of,
    brain_mask,
    coordinates_of,
)
from chisep.simulation.tissue_properties import BRAIN_LABELS
from chisep.types import Affine

Missing = Literal["septum", "callosum", "caudate", "hippocampus", "frontal-lobe"]
"""Structures that a head may lack."""

_MEDIAL_TEMPORAL = ((17, 18), (53, 54))
_CALLOSUM = (CALLOSUM_SPLENIUM, CALLOSUM_BODY, CALLOSUM_GENU, 252, 254)
_ATROPHY_MM = 3.0
_CAVITY_MM = (12.0, 18.0)
_DURA_MM = (1.0, 3.0)
"""Distance of the dura from the brain mask."""


@dataclass(frozen=True)
class VariantConfig:
    """Calcifications of the meninges, and structures that are missing."""

    calcified_falx: int = 0
    """Number of calcified plates in the falx, some mm to 2 cm long."""
    calcified_dura: int = 0
    """Number of calcified plates of the dura over the hemispheres, outside the brain mask."""
    missing: tuple[Missing, ...] = ()
    """Missing structures: no septum or callosum, atrophied caudate, resected hippocampus or frontal lobe."""

    def __post_init__(self) -> None:
        for name in ("calcified_falx", "calcified_dura"):
            if not 0 <= (value := getattr(self, name)) <= 50:
                raise InputError(
                    name, found=f"{value}", expected="a number from 0 to 50", fix="Correct the option."
                )


def varied(head: LabelMap, config: VariantConfig, rng: np.random.Generator) -> LabelMap:
    """Take structures out of a head and calcify its meninges.

    Parameters
    ----------
    head
        A head with structures; one without a transform to MNI space is returned unchanged.
    config
        What to change; the default returns the head itself.
    rng
        Draws sides, places and sizes.

    Returns
    -------
    LabelMap
        The same head with changed labels; veins that ran through a cavity stay.
    """
    if config == VariantConfig() or head.to_mni is None:
        return head
    labels = head.labels.copy()
    streams = dict(zip(_REMOVE, rng.spawn(len(_REMOVE)), strict=True))
    for name in sorted(set(config.missing)):
        _REMOVE[name](labels, head, head.to_mni, streams[name])
    falx_rng, dura_rng = rng.spawn(2)
    for _ in range(config.calcified_falx):
        _calcify_falx(labels, head.to_mni, falx_rng)
    if config.calcified_dura:
        _calcify_dura(labels, head, head.to_mni, config.calcified_dura, dura_rng)
    return replace(head, labels=labels)


def _remove_septum(labels: Labels, head: LabelMap, to_mni: Affine, _rng: np.random.Generator) -> None:
    """Turn what lies between the lateral ventricles to fluid."""
    box = box_of(to_mni, labels.shape, (-8.0, -25.0, 2.0), (8.0, 28.0, 24.0))
    view = labels[box]
    x = np.broadcast_to(coordinates_of(to_mni, box)[0], view.shape)
    fluid = np.isin(view, LATERAL_VENTRICLE)
    # Between: a ventricle within 5 mm on either side.
    near = [
        ndimage.distance_transform_edt(~(fluid & side), sampling=head.voxel_mm) < 5
        if (fluid & side).any()
        else np.zeros(view.shape, dtype=np.bool_)
        for side in (x < 0, x >= 0)
    ]
    between = near[0] & near[1] & ~fluid & ~np.isin(view, _CALLOSUM)
    view[between] = np.where(x < 0, *LATERAL_VENTRICLE)[between]


def _remove_callosum(labels: Labels, _head: LabelMap, _to_mni: Affine, _rng: np.random.Generator) -> None:
    """Turn the corpus callosum to fluid, as in agenesis."""
    labels[np.isin(labels, _CALLOSUM)] = CSF


def _shrink_caudate(labels: Labels, head: LabelMap, _to_mni: Affine, _rng: np.random.Generator) -> None:
    """Turn the part of the caudate nucleus near the ventricle to ventricle."""
    for side in (0, 1):
        ventricle = labels == LATERAL_VENTRICLE[side]
        if not ventricle.any():
            continue
        distance = ndimage.distance_transform_edt(~ventricle, sampling=head.voxel_mm)
        near = distance <= max(_ATROPHY_MM, max(head.voxel_mm))
        labels[(labels == CAUDATE[side]) & near] = LATERAL_VENTRICLE[side]


def _resect_hippocampus(labels: Labels, _head: LabelMap, _to_mni: Affine, rng: np.random.Generator) -> None:
    """Turn hippocampus and amygdala of one side to fluid."""
    labels[np.isin(labels, _MEDIAL_TEMPORAL[int(rng.integers(2))])] = CSF


def _resect_frontal(labels: Labels, _head: LabelMap, to_mni: Affine, rng: np.random.Generator) -> None:
    """Cut a cavity into one frontal lobe."""
    side, radius = (-1.0, 1.0)[int(rng.integers(2))], rng.uniform(*_CAVITY_MM)
    centre = np.array([side * 28.0, 42.0, 18.0]) + rng.normal(0, 4, 3)
    box = box_of(to_mni, labels.shape, (centre - radius).tolist(), (centre + radius).tolist())
    square = sum((c - at) ** 2 for c, at in zip(coordinates_of(to_mni, box), centre, strict=True))
    view = labels[box]
    view[(square < radius**2) & ~np.isin(view, (0, *OUTSIDE))] = CSF


_REMOVE = {
    "septum": _remove_septum,
    "callosum": _remove_callosum,
    "caudate": _shrink_caudate,
    "hippocampus": _resect_hippocampus,
    "frontal-lobe": _resect_frontal,
}


def _calcify_falx(labels: Labels, to_mni: Affine, rng: np.random.Generator) -> None:
    """Label a plate in the interhemispheric fissure above the callosum."""
    centre = np.array([rng.normal(0, 0.5), rng.uniform(-50, 40), rng.uniform(42, 62)])
    radii = np.array([1.2, rng.uniform(3, 9), rng.uniform(2, 5)])
    box = box_of(to_mni, labels.shape, (centre - radii).tolist(), (centre + radii).tolist())
    square = sum(
        ((c - at) / r) ** 2 for c, at, r in zip(coordinates_of(to_mni, box), centre, radii, strict=True)
    )
    view = labels[box]
    view[(square < 1) & np.isin(view, (CSF, *CEREBRAL_CORTEX, *CEREBRAL_WHITE, VEIN))] = FALX_CALCIFIED


def _calcify_dura(
    labels: Labels, head: LabelMap, to_mni: Affine, count: int, rng: np.random.Generator
) -> None:
    """Label plates just outside the upper brain."""
    brain = brain_mask(replace(head, labels=labels), BRAIN_LABELS)
    distance = ndimage.distance_transform_edt(~brain, sampling=head.voxel_mm)
    furthest = max(_DURA_MM[1], max(head.voxel_mm))
    shell = np.argwhere((distance >= _DURA_MM[0]) & (distance <= furthest) & (labels != 0))
    upper = shell[apply_affine(to_mni, shell)[:, 2] > 20]
    if not len(upper):
        return
    for _ in range(count):
        centre, radius = upper[rng.integers(len(upper))], rng.uniform(3, 8)
        near = np.linalg.norm((upper - centre) * head.voxel_mm, axis=1) < radius
        labels[tuple(upper[near].T)] = DURA_CALCIFIED
