"""Lesions blended into the maps of a digital phantom, and the search for free positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import r2prime_of_sources
from chisep.simulation import anatomy
from chisep.simulation.lesions.kinds import LesionConfig, Millimetres, ParkinsonConfig, Part, Place
from chisep.simulation.lesions.shapes import Body, Raster, Shape, Vector, Waves, rasterise
from chisep.simulation.tissue import LabelVolume, Tissue
from chisep.simulation.tissue_properties import REGIONS

_R2_OF_IRON_HZ_PER_PPM = 60.0
"""R2 that 1 ppm of χ_pos adds at 3 T: half of what deep grey matter shows, since the iron of blood is
clumped, which dephases more than it relaxes."""
_MOST_TRIES = 200
"""Number of centres to try before a lesion is left out."""
_DRAWN_VOXELS = 8192
"""Number of random voxels that are candidates for centres."""
_BESIDE_MM = 3.0
"""Gap to the ventricle up to which a plaque counts as periventricular."""


@dataclass(frozen=True)
class PlacedLesion:
    """A row of the table of lesions.

    Parameters
    ----------
    label
        Its number in the lesion label map.
    kind
        Of the lesion.
    position_mm
        Its centre in world coordinates (RAS+).
    volume_mm3
        Its volume, without oedema.
    strength_ppb
        What was assigned; in Parkinson's disease the mean rise of χ_pos.
    chi_pos_ppb, chi_neg_ppb
        Mean of the sources over its label: what a perfect method reads there.
    """

    label: int
    kind: str
    position_mm: Millimetres
    volume_mm3: float
    strength_ppb: float
    chi_pos_ppb: float
    chi_neg_ppb: float


@dataclass(frozen=True, eq=False)
class Patient:
    """A digital subject with lesions.

    Parameters
    ----------
    tissue
        Maps with the lesions in them; its `labels` are still those of the healthy subject.
    labels
        Number of the lesion in each voxel, 0 elsewhere, shape (i, j, k). A lesion's label has the voxels
        that lie wholly in it or, if there is none, the fullest one: so it reads the strength.
    lesions
        One row for each lesion.
    bodies
        What `same_lesions` needs to make them again.
    """

    tissue: Tissue
    labels: LabelVolume
    lesions: tuple[PlacedLesion, ...]
    bodies: tuple[Body | ParkinsonConfig, ...]


def _flags(labels: Iterable[int]) -> NDArray[np.bool_]:
    """One flag for every number that a label can be."""
    flags = np.zeros(np.iinfo(np.int16).max + 1, dtype=np.bool_)
    flags[list(labels)] = True
    return flags


def _labels_named(*words: str) -> NDArray[np.bool_]:
    return _flags(
        label for region in REGIONS if any(word in region.name for word in words) for label in region.labels
    )


# Fluid and white matter are found by their tissue parameters, so that new regions fall in their class.
_FLUID = _flags(label for region in REGIONS if region.brain and region.r2_hz < 2 for label in region.labels)
_WHITE = _flags(
    label
    for region in REGIONS
    if region.brain and region.chi_neg_ppb > region.chi_pos_ppb and region.t1_s < 0.95
    for label in region.labels
)
_LATERAL_VENTRICLES = (4, 43)
_CORTEX = _flags(anatomy.CEREBRAL_CORTEX)
_DEEP_GREY = _labels_named("thalamus", "pulvinar", "caudate", "putamen", "pallidum", "accumbens")
_PLACES: dict[Place, NDArray[np.bool_]] = {
    "white": _WHITE,
    "deep-grey": _DEEP_GREY,
    "cortex": _CORTEX,
    "lobar": _CORTEX | _flags(anatomy.CEREBRAL_WHITE),
    "deep": _DEEP_GREY | _labels_named("brain stem", "internal capsule"),
    "periventricular": _WHITE,
}


class Canvas:
    """Copies of a tissue's maps, and what has been put into them."""

    def __init__(self, tissue: Tissue, separation_mm: float) -> None:
        self._tissue = tissue
        self._affine = np.asarray(tissue.grid.matrix(), dtype=np.float64)
        self._to_world = self._affine[:3, :3]
        self._from_world = np.linalg.inv(self._to_world)
        self._voxel_mm3 = abs(float(np.linalg.det(self._to_world)))
        # Lesions whose spheres are a voxel's diagonal apart have no voxel in common.
        self._gap_mm = separation_mm + math.hypot(*tissue.grid.voxel_mm)
        self._mask, self._anatomy = tissue.mask.numpy(), tissue.labels.numpy()
        self._maps = {
            name: getattr(tissue, name).clone()
            for name in ("chi_pos_ppm", "chi_neg_ppm", "r2_hz", "r2prime_hz", "t1_s", "m0")
        }
        self._voxels: dict[Place, NDArray[np.intp]] = {}
        self._labels = torch.zeros(tissue.labels.shape, dtype=torch.int16)
        self._spheres: list[tuple[Vector, float]] = []
        self._rows: list[PlacedLesion] = []
        self._bodies: list[Body | ParkinsonConfig] = []

    def patient(self) -> Patient:
        """Return the patient."""
        tissue = replace(self._tissue, **self._maps)
        return Patient(tissue, self._labels, tuple(self._rows), tuple(self._bodies))

    # -- shaped lesions --

    def placed(self, config: LesionConfig, rng: np.random.Generator) -> Body | None:
        """Draw a lesion and find a free position; None if there is none."""
        shape_rng, place_rng, texture_rng = rng.spawn(3)
        found = self._place(config, Shape.drawn(config, shape_rng), place_rng)
        if found is None:
            return None
        centre, shape = found
        return Body(config, shape, self._world(centre), Waves.drawn(texture_rng, config.texture_frequencies))

    def paint(self, body: Body) -> None:
        """Put a lesion into the maps, the labels and the table."""
        config, parts = body.config, body.config.parts()
        centre = self._voxel(body.centre_mm)
        raster = rasterise(body.shape, parts, centre, self._to_world, self._labels.shape)
        # A few voxels can overlap another lesion or leave the brain: these do not change.
        anatomy_there = self._anatomy[raster.box]
        allowed = torch.from_numpy(self._mask[raster.box] & ~_FLUID[anatomy_there])
        fractions = [fraction * allowed for fraction in raster.fractions]
        solid = sum((f for f, part in zip(fractions, parts, strict=True) if part.outer <= 1), torch.zeros(()))
        inside = (solid >= solid.max() - 1e-6) & (solid > 0)
        self._blend(raster, parts, fractions, inside, config.texture, body.texture)
        self._labels[raster.box][inside] = len(self._rows) + 1
        self._spheres.append((body.centre_mm, body.shape.reach_mm * parts[-1].outer))
        self._bodies.append(body)
        volume = float(solid.sum())
        self._note(config.kind, raster.box, inside, centre, volume, strength_ppb=config.strength_ppb)

    def _place(
        self, config: LesionConfig, shape: Shape, rng: np.random.Generator
    ) -> tuple[Vector, Shape] | None:
        """Find a free centre in voxel indices; the shape may be rotated there."""
        outer = config.parts()[-1].outer
        reach_mm, shells = shape.reach_mm * outer, self._from_world @ shape.shells_mm(outer)
        if config.position_mm is not None:
            centre = self._voxel(np.array(config.position_mm, dtype=np.float64))
            if not self._has_room(centre, reach_mm, shells):
                raise InputError(
                    f"{config.kind} at {config.position_mm} mm",
                    found="no room for it there",
                    expected="a lesion within the brain, not in a ventricle, apart from other lesions",
                    fix="Move it or make it smaller.",
                )
            return centre, shape
        candidates = self._candidates(config.place, rng)
        centres = candidates + rng.uniform(-0.5, 0.5, candidates.shape)
        directions = np.empty((0, 3))
        if config.place == "periventricular":
            centres, directions = self._near_ventricle(centres, outer * float(shape.radii_mm.max()))
        for number, centre in enumerate(centres[:_MOST_TRIES]):
            if number < len(directions):
                shape = shape.pointing(directions[number], rng)
                shells = self._from_world @ shape.shells_mm(outer)
            if self._has_room(centre, reach_mm, shells):
                return centre, shape
        return None

    def _candidates(self, place: Place, rng: np.random.Generator) -> Vector:
        """Draw random voxels of a location, in random order, shape (n, 3)."""
        flags = _PLACES[place]
        # Most locations are large: a test of some voxels is faster than of all.
        drawn = rng.integers(self._mask.size, size=_DRAWN_VOXELS)
        found = drawn[flags[self._anatomy.ravel()[drawn]] & self._mask.ravel()[drawn]]
        if len(found) < _MOST_TRIES:
            found = rng.permutation(self._voxels_of(place))[:_DRAWN_VOXELS]
        return np.stack(np.unravel_index(found, self._mask.shape), axis=-1).astype(np.float64)

    def _voxels_of(self, place: Place) -> NDArray[np.intp]:
        """Find all voxels of a location as flat indices; cached."""
        if place not in self._voxels:
            self._voxels[place] = np.flatnonzero(_PLACES[place][self._anatomy] & self._mask)
        return self._voxels[place]

    @cached_property
    def _lateral_ventricles(self) -> cKDTree | None:
        """Voxels of the lateral ventricles in mm from voxel 0; None where there are none."""
        left, right = _LATERAL_VENTRICLES
        voxels = np.argwhere((self._anatomy == left) | (self._anatomy == right))
        return cKDTree(voxels @ self._to_world.T, balanced_tree=False) if len(voxels) else None

    def _near_ventricle(self, centres: Vector, half_length_mm: float) -> tuple[Vector, Vector]:
        """Put centres first from where a lesion reaches a lateral ventricle; add the directions away from it.

        Without directions where there is no lateral ventricle.
        """
        tree = self._lateral_ventricles
        if tree is None:
            return centres, np.empty((0, 3))
        centres = centres[: 3 * _MOST_TRIES]
        world = centres @ self._to_world.T
        distance, nearest = tree.query(world)
        order = np.argsort(distance > half_length_mm + _BESIDE_MM, kind="stable")
        return centres[order], (world - tree.data[nearest])[order]

    def _has_room(self, centre: Vector, reach_mm: float, shells: Vector) -> bool:
        """Check whether a lesion around a voxel index stays in the brain and apart from the others.

        `shells` are points of the lesion in voxels from its centre, shape (3, n).
        """
        world = self._world(centre)
        for other, other_reach_mm in self._spheres:
            if np.linalg.norm(world - other) < reach_mm + other_reach_mm + self._gap_mm:
                return False
        i, j, k = np.rint(centre[:, None] + shells).astype(np.intp)
        for index, size in zip((i, j, k), self._mask.shape, strict=True):
            if index.min() < 0 or index.max() >= size:
                return False
        return bool(self._mask[i, j, k].all() and not _FLUID[self._anatomy[i, j, k]].any())

    def _blend(
        self,
        raster: Raster,
        parts: Sequence[Part],
        fractions: Sequence[Tensor],
        inside: Tensor,
        texture: float,
        waves: Waves,
    ) -> None:
        """Blend the materials of a lesion with the tissue, by volume."""
        materials = [part.material for part in parts]

        def mixed(values: Sequence[float]) -> Tensor:
            volume = torch.zeros(inside.shape)
            for fraction, value in zip(fractions, values, strict=True):
                volume += value * fraction
            return volume

        filled = mixed([1.0] * len(parts)).clamp_(max=1)  # rounding must not make sources negative
        added_pos = mixed([m.chi_pos_ppb / 1000 for m in materials])
        added_neg = mixed([m.chi_neg_ppb / 1000 for m in materials])
        if texture:
            pattern = torch.tanh(waves.at(raster.unit.flatten(1))).reshape(inside.shape)
            # In the label only and weighted so that its mean stays: reading and mass are as without texture.
            weight = raster.depth * (added_pos + added_neg) * inside
            total = float(weight.sum())
            mean = float((weight * pattern).sum()) / total if total > 0 else 0.0
            factor = 1 + texture * raster.depth * (pattern - mean) * inside
            added_pos, added_neg = added_pos * factor, added_neg * factor

        box = raster.box
        kept_pos = self._maps["chi_pos_ppm"][box] * (1 - filled + mixed([m.keep_pos for m in materials]))
        kept_neg = self._maps["chi_neg_ppm"][box] * (1 - filled + mixed([m.keep_neg for m in materials]))
        r2_ratio = 1 - filled + mixed([m.r2_ratio for m in materials])
        self._set_sources(box, kept_pos, kept_neg, added_pos, added_neg, r2_ratio)
        for name, values in (("t1_s", [m.t1_s for m in materials]), ("m0", [m.m0 for m in materials])):
            self._maps[name][box] = self._maps[name][box] * (1 - filled) + mixed(values)

    def _set_sources(
        self,
        box: tuple[slice, ...],
        kept_pos: Tensor,
        kept_neg: Tensor,
        added_pos: Tensor,
        added_neg: Tensor,
        r2_ratio: Tensor | float,
    ) -> None:
        """Set χ, R2 and R2' of a box from the remaining sources of the tissue and those of the lesion."""
        maps, relaxivity = self._maps, self._tissue.relaxivity
        expected = r2prime_of_sources(maps["chi_pos_ppm"][box], maps["chi_neg_ppm"][box], relaxivity)
        orientation = torch.where(expected > 0, maps["r2prime_hz"][box] / expected, 1.0)
        maps["r2prime_hz"][box] = orientation * r2prime_of_sources(
            kept_pos, kept_neg, relaxivity
        ) + r2prime_of_sources(added_pos, added_neg, relaxivity)
        maps["chi_pos_ppm"][box] = kept_pos + added_pos
        maps["chi_neg_ppm"][box] = kept_neg + added_neg
        iron_hz_per_ppm = _R2_OF_IRON_HZ_PER_PPM * self._tissue.b0_t / 3.0
        maps["r2_hz"][box] = maps["r2_hz"][box] * r2_ratio + iron_hz_per_ppm * added_pos

    # -- Parkinson's disease --

    def add_parkinson(self, config: ParkinsonConfig) -> bool:
        """Raise χ_pos of the substantia nigra; False if the volume has none."""
        sides = {"left": (0,), "right": (1,), "both": (0, 1)}[config.side]
        done = [self._raise_nigra(anatomy.NIGRA[side], config) for side in sides]
        if any(done):
            self._bodies.append(config)
        return any(done)

    def _raise_nigra(self, label: int, config: ParkinsonConfig) -> bool:
        nigra = (self._anatomy == label) & self._mask
        if not nigra.any():
            return False
        voxels = np.argwhere(nigra)
        centre = voxels.mean(0)
        low, high = voxels.min(0), voxels.max(0) + 1
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        offset = (voxels - centre) @ self._to_world.T
        # World y points forwards; nigrosome 1 lies in the back of the nigra and gains most.
        behind = -offset[:, 1] / max(float(abs(offset[:, 1]).max()), 1e-6)
        gain = torch.zeros(nigra.shape)[box]
        inside = torch.from_numpy(np.ascontiguousarray(nigra[box]))
        gain[inside] = torch.from_numpy(1 + 0.5 * behind).float()
        chi_pos, chi_neg = self._maps["chi_pos_ppm"][box], self._maps["chi_neg_ppm"][box]
        iron = float(chi_pos[inside].sum())
        gain *= iron / max(float((gain * chi_pos).sum()), 1e-12)
        self._set_sources(box, chi_pos, chi_neg, config.rise * gain * chi_pos, torch.zeros_like(chi_neg), 1.0)
        self._labels[box][inside] = len(self._rows) + 1
        self._spheres.append((self._world(centre), float(np.linalg.norm(offset, axis=1).max())))
        rise_ppb = 1000 * config.rise * iron / len(voxels)
        self._note(config.kind, box, inside, centre, float(len(voxels)), strength_ppb=rise_ppb)
        return True

    # -- both --

    def _voxel(self, world_mm: Vector) -> Vector:
        return np.asarray(self._from_world @ (world_mm - self._affine[:3, 3]))

    def _world(self, voxel: Vector) -> Vector:
        return np.asarray(self._to_world @ voxel + self._affine[:3, 3])

    def _note(
        self,
        kind: str,
        box: tuple[slice, slice, slice],
        inside: Tensor,
        centre: Vector,
        voxels: float,
        *,
        strength_ppb: float,
    ) -> None:
        x, y, z = (float(c) for c in self._world(centre))
        self._rows.append(
            PlacedLesion(
                label=len(self._rows) + 1,
                kind=kind,
                position_mm=(x, y, z),
                volume_mm3=float(voxels) * self._voxel_mm3,
                strength_ppb=strength_ppb,
                chi_pos_ppb=1000 * float(self._maps["chi_pos_ppm"][box][inside].mean()),
                chi_neg_ppb=1000 * float(self._maps["chi_neg_ppm"][box][inside].mean()),
            )
        )
