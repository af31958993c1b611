"""Shapes of lesions: ellipsoids whose radius varies with direction, sampled on voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from chisep.simulation.lesions.kinds import LesionConfig, Part

Vector = NDArray[np.float64]
"""Three numbers, or rows of three."""

_FINE_STEPS = 16
"""Samples across the diameter of a lesion, at least: its volume is then right to 1 %."""
_NUMBER_OF_WAVES = 8
_BUMPS = (2.0, 5.0)
"""Lowest and highest frequency, in rad per unit direction, of the waves on a lesion's surface."""


def _directions(count: int) -> Vector:
    """Spread unit vectors uniformly over the sphere (Fibonacci), shape (3, count)."""
    step = np.arange(count) + 0.5
    height, azimuth = 1 - 2 * step / count, step * np.pi * (1 + 5**0.5)
    level = np.sqrt(1 - height**2)
    return np.stack((level * np.cos(azimuth), level * np.sin(azimuth), height))


_SPHERE = _directions(400)
_SPHERE_POINTS = torch.from_numpy(_SPHERE).float()


@dataclass(frozen=True, eq=False)
class Waves:
    """Sum of plane waves of random direction, frequency and phase: mean 0, SD about 1."""

    vectors: Tensor
    phases: Tensor

    @classmethod
    def drawn(cls, rng: np.random.Generator, frequencies: tuple[float, float]) -> Waves:
        """Draw directions, frequencies (rad per unit length) and phases."""
        vectors = rng.standard_normal((_NUMBER_OF_WAVES, 3))
        vectors *= rng.uniform(*frequencies, (_NUMBER_OF_WAVES, 1)) / np.linalg.norm(
            vectors, axis=1, keepdims=True
        )
        phases = rng.uniform(0, 2 * np.pi, (_NUMBER_OF_WAVES, 1))
        return cls(torch.from_numpy(vectors).float(), torch.from_numpy(phases).float())

    def at(self, points: Tensor) -> Tensor:
        """Value at points, shape (3, n) → (n,)."""
        waves = torch.addmm(self.phases, self.vectors, points).cos_()
        value: Tensor = waves.sum(0) * (2 / _NUMBER_OF_WAVES) ** 0.5
        return value


@dataclass(frozen=True, eq=False)
class Shape:
    """A star-shaped body around the origin of world coordinates, in mm."""

    radii_mm: Vector
    axes: Vector
    """Columns: directions of the axes."""
    bumps: Waves | None
    irregularity: float
    largest: float
    """Largest radius over that of the ellipsoid."""

    @classmethod
    def drawn(cls, config: LesionConfig, rng: np.random.Generator) -> Shape:
        """Draw axes and surface of a lesion, with the volume in its config."""
        exponents = np.array((0.5, rng.uniform(-0.5, 0.5), -0.5))
        radii = config.elongation ** (exponents - exponents.mean())
        axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        bumps = Waves.drawn(rng, _BUMPS) if config.irregularity else None
        shape = cls(radii, axes, bumps, config.irregularity, 1.0)
        radius = shape.radius(_SPHERE_POINTS).double()
        radii = radii * (config.size_mm / 2 / float((radius**3).mean()) ** (1 / 3))
        return replace(shape, radii_mm=radii, largest=1.03 * float(radius.max()))

    def radius(self, directions: Tensor) -> Tensor:
        """Radius over that of the ellipsoid, shape (3, n) → (n,); above 0, so the body is star-shaped."""
        if self.bumps is None:
            return torch.ones(directions.shape[1])
        return torch.exp(self.irregularity * self.bumps.at(directions))

    def pointing(self, direction: Vector, rng: np.random.Generator) -> Shape:
        """Rotate the longest axis to a direction."""
        columns = np.column_stack((direction, rng.standard_normal((3, 2))))
        return replace(self, axes=np.linalg.qr(columns)[0])

    @property
    def axes_mm(self) -> Vector:
        """Unit ball to world mm, shape (3, 3)."""
        return np.asarray(self.axes * self.radii_mm)

    @property
    def reach_mm(self) -> float:
        """Radius of the sphere around it."""
        return self.largest * float(self.radii_mm.max())

    def shells_mm(self, outer: float) -> Vector:
        """Points on its surface and half-way to it, scaled by `outer`, shape (3, n)."""
        surface = _SPHERE * self.radius(_SPHERE_POINTS).numpy()
        shells = np.concatenate((surface, surface[:, ::4] / 2), axis=1)
        return np.asarray(self.axes_mm @ shells * outer)


@dataclass(frozen=True, eq=False)
class Body:
    """A lesion at its position, independent of voxels."""

    config: LesionConfig
    shape: Shape
    centre_mm: Vector
    """In world coordinates."""
    texture: Waves


@dataclass(frozen=True, eq=False)
class Raster:
    """A lesion sampled on the voxels of a box."""

    box: tuple[slice, slice, slice]
    fractions: tuple[Tensor, ...]
    """Part of each voxel that each part of the lesion fills."""
    depth: Tensor
    """1 in the centre, falling to 0 at the border and beyond."""
    unit: Tensor
    """Voxels in coordinates where the ellipsoid is the unit ball, shape (3, i, j, k)."""


def rasterise(
    shape: Shape, parts: Sequence[Part], centre: Vector, to_world: Vector, volume_shape: Sequence[int]
) -> Raster:
    """Sample a lesion finer than the voxels, and average.

    Parameters
    ----------
    shape, parts
        The lesion.
    centre
        In voxel indices.
    to_world
        Voxel steps in world mm, shape (3, 3).
    volume_shape
        Of the volume that the box is clipped to.
    """
    outer = shape.largest * max(part.outer for part in parts)
    half = outer * np.linalg.norm(np.linalg.inv(to_world) @ shape.axes_mm, axis=1)
    box = [
        (max(math.floor(c - h + 0.5), 0), min(math.floor(c + h + 0.5) + 1, n))
        for c, h, n in zip(centre, half, volume_shape, strict=True)
    ]
    samples = _samples_per_voxel(shape, to_world)
    to_unit = torch.from_numpy(np.linalg.inv(shape.axes_mm) @ to_world).float()

    def unit_coordinates(per_voxel: Sequence[int]) -> Tensor:
        ticks = [
            torch.arange(a * n, b * n).add(0.5).div(n).sub(0.5 + c)
            for (a, b), n, c in zip(box, per_voxel, centre.tolist(), strict=True)
        ]
        i, j, k = (to_unit[:, axis, None] * tick for axis, tick in enumerate(ticks))
        return i[:, :, None, None] + j[:, None, :, None] + k[:, None, None, :]

    unit = unit_coordinates(samples)
    length = unit.square().sum(0).sqrt_()
    radius = torch.full_like(length, torch.inf).ravel()
    near = torch.nonzero(length.ravel() < outer)[:, 0]
    directions = unit.flatten(1)[:, near] / length.ravel()[near].clamp(min=1e-6)
    radius[near] = length.ravel()[near] / shape.radius(directions)
    radius = radius.reshape(length.shape)

    def averaged(fine: Tensor) -> Tensor:
        return avg_pool3d(fine[None, None], samples)[0, 0]

    return Raster(
        box=(slice(*box[0]), slice(*box[1]), slice(*box[2])),
        fractions=tuple(averaged(((radius >= part.inner) & (radius < part.outer)).float()) for part in parts),
        depth=averaged((2 - 2 * radius**2).clamp_(0, 1)),
        unit=unit_coordinates((1, 1, 1)),
    )


def _samples_per_voxel(shape: Shape, to_world: Vector) -> tuple[int, int, int]:
    """Count samples along each voxel axis: many where a lesion is small, two where voxels are."""
    diameter = 2 * float(np.prod(shape.radii_mm)) ** (1 / 3)
    i, j, k = np.ceil(_FINE_STEPS * np.linalg.norm(to_world, axis=0) / diameter).astype(int)
    return max(2, int(i)), max(2, int(j)), max(2, int(k))
