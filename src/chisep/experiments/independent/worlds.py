"""Worlds of the independent bench: sources on heads, by models that chisep's simulation does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from chisep.experiments.independent.forward import B0_DIRECTION, Array, Bool, dipole_field, smooth_noise
from chisep.experiments.independent.heads import CSF, NAMES, Head
from chisep.experiments.independent.lesions import Lesion, add_lesions
from chisep.experiments.independent.qsm_forward_world import qsm_forward_field, qsm_forward_sources

_PIECES_VOXEL = 22.0
"""Distance between the centres of the pieces that white matter, cortex and CSF are cut into."""
_LEVEL_SPREAD = 0.45
_ATLAS_COPIES, _ATLAS_WARP_VOXEL, _ATLAS_WARP_SD = 16, 9.0, 2.2
_MEAN_PPB: Mapping[str, tuple[float, float]] = {
    "white matter": (16.0, 40.0),
    "grey matter": (30.0, 20.0),
    "CSF": (8.0, 6.0),
    "thalamus": (38.0, 26.0),
    "caudate": (58.0, 14.0),
    "putamen": (62.0, 16.0),
    "pallidum": (140.0, 18.0),
    "red nucleus": (120.0, 18.0),
    "substantia nigra": (135.0, 20.0),
    "dentate nucleus": (115.0, 22.0),
}
"""Centres of the levels of χ_pos and χ_neg of the numpy worlds."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """True sources of a head.

    Parameters
    ----------
    head
        Labels, mask and fibre directions.
    chi_pos_ppm, chi_neg_ppm
        Sources, 0 outside the mask.
    field_ppm
        Dipole field of χ_pos − χ_neg, isotropic.
    lesions
        Lesions with their masks; empty for a healthy head.
    """

    head: Head
    chi_pos_ppm: Array
    chi_neg_ppm: Array
    field_ppm: Array
    lesions: tuple[Lesion, ...] = ()

    @property
    def mask(self) -> Bool:
        """Brain."""
        return self.head.mask


Make = Callable[[Head, np.random.Generator], Phantom]


@dataclass(frozen=True)
class World:
    """A world.

    Parameters
    ----------
    title, about
        Name in tables, and a sentence on how it is made.
    make
        Sources of a head.
    dr_pos_hz_per_ppm, dr_neg_hz_per_ppm
        D_r of both sources; that of χ_neg is the factor of sin²θ if `oriented`.
    oriented
        Whether D_r,neg is proportional to sin²θ in white matter.
    b0_t
        Field strength in tesla.
    """

    title: str
    about: str
    make: Make
    dr_pos_hz_per_ppm: float = 114.0
    dr_neg_hz_per_ppm: float = 114.0
    oriented: bool = False
    b0_t: float = 3.0

    @property
    def needs_qsm_forward(self) -> bool:
        """Whether the package qsm-forward makes it."""
        return self.make in (by_qsm_forward, with_lesions)


def _pieces(inside: Bool, distance_voxel: float, rng: np.random.Generator) -> tuple[NDArray[np.intp], int]:
    """Find the nearest of randomly placed centres for every voxel inside; also return their number."""
    voxels = np.argwhere(inside)
    count = max(1, round(len(voxels) / distance_voxel**3))
    centres = voxels[rng.choice(len(voxels), count, replace=False)]
    return cKDTree(centres).query(voxels)[1], count


def piecewise_constant(head: Head, rng: np.random.Generator) -> Phantom:
    """Draw a level of each source for every label; large tissues are cut into pieces. Edges are sharp."""
    pos, neg = np.zeros(head.mask.shape, np.float32), np.zeros(head.mask.shape, np.float32)
    for label in np.unique(head.labels[head.mask]):
        inside = head.labels == label
        name = NAMES[int(head.classes[inside][0]) - 1]
        large = name in ("white matter", "grey matter", "CSF")
        piece, count = _pieces(inside, _PIECES_VOXEL if large else 1000.0, rng)
        for volume, level_ppb in zip((pos, neg), _MEAN_PPB[name], strict=True):
            levels = level_ppb / 1000 * np.exp(_LEVEL_SPREAD * rng.standard_normal(count))
            volume[inside] = levels[piece]
    return _with_field(head, pos, neg)


def atlas_like(head: Head, rng: np.random.Generator) -> Phantom:
    """Mean of the sources of one head under smooth random warps, as in a map averaged over people."""
    levels = {name: np.array(ppb) * np.exp(0.1 * rng.standard_normal(2)) for name, ppb in _MEAN_PPB.items()}
    table = np.zeros((2, len(NAMES) + 1), np.float32)
    for number, name in enumerate(NAMES, 1):
        table[:, number] = levels[name] / 1000
    axes = np.indices(head.mask.shape, dtype=np.float32)
    total = np.zeros((2, *head.mask.shape), np.float32)
    for _ in range(_ATLAS_COPIES):
        moved = [
            axis + _ATLAS_WARP_SD * smooth_noise(head.mask.shape, _ATLAS_WARP_VOXEL, rng) for axis in axes
        ]
        classes = ndimage.map_coordinates(head.classes, moved, order=0, mode="nearest")
        total += table[:, classes]
    sources = [
        ndimage.gaussian_filter(x / _ATLAS_COPIES, 0.6).astype(np.float32)
        * np.exp(0.12 * smooth_noise(head.mask.shape, 12.0, rng))
        * head.mask
        for x in total
    ]
    return _with_field(head, *(x.astype(np.float32) for x in sources))


def _with_field(head: Head, pos_ppm: Array, neg_ppm: Array) -> Phantom:
    return Phantom(head, pos_ppm, neg_ppm, dipole_field(pos_ppm - neg_ppm, B0_DIRECTION))


def with_lesions(head: Head, rng: np.random.Generator) -> Phantom:
    """Make the sources of qsm-forward, with lesions of other shapes than those of chisep's simulation."""
    pos, neg = qsm_forward_sources(head, rng)
    tissue = (head.classes != CSF) & head.mask
    pos, neg, lesions = add_lesions(pos, neg, tissue, rng)
    return Phantom(head, pos, neg, qsm_forward_field(pos - neg), lesions)


def by_qsm_forward(head: Head, rng: np.random.Generator) -> Phantom:
    """Make sources by the tissue table and texture model of qsm-forward."""
    pos, neg = qsm_forward_sources(head, rng)
    return Phantom(head, pos, neg, qsm_forward_field(pos - neg))


_BY_QSM_FORWARD = "sources by the tissue table and texture model of qsm-forward on a label map"
WORLDS: Mapping[str, World] = {
    "qsm-forward": World(
        "qsm-forward",
        f"{_BY_QSM_FORWARD}; its D_r, 137 1/s/ppm for both sources",
        by_qsm_forward,
        137.0,
        137.0,
    ),
    "piecewise": World(
        "piecewise constant",
        "random levels of each source for every label, large tissues cut into pieces of 22 mm, sharp edges",
        piecewise_constant,
    ),
    "atlas": World(
        "atlas-like",
        "the mean of one head's tissue levels under 16 smooth random warps, with smooth trends",
        atlas_like,
    ),
    "lesions": World(
        "qsm-forward with lesions",
        "ellipsoids and irregular blobs of 100 to 800 ppb of either source",
        with_lesions,
        137.0,
        137.0,
    ),
    "mc": World(
        "D_r of QSM-CI, chisep-mc",
        f"{_BY_QSM_FORWARD}; D_r,pos 320, D_r,neg 397·sin²θ",
        by_qsm_forward,
        320.0,
        397.0,
        oriented=True,
    ),
    "ridani-3t": World(
        "D_r of QSM-CI, ridani-3t",
        f"{_BY_QSM_FORWARD}; D_r,pos 323.5, D_r,neg 401.3·sin²θ",
        by_qsm_forward,
        323.5,
        401.3,
        oriented=True,
    ),
    "ridani-7t": World(
        "D_r of QSM-CI, ridani-7t",
        f"{_BY_QSM_FORWARD}; 7 T, D_r,pos 755, D_r,neg 936.4·sin²θ",
        by_qsm_forward,
        755.0,
        936.4,
        oriented=True,
        b0_t=7.0,
    ),
}
"""Worlds by name."""
