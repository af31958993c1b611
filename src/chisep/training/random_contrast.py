"""Domain randomisation of sources: real shapes with random levels, contrasts and structures.

A network that is trained on one tissue model learns its contrasts by heart. As SynthSeg does (Billot 2023,
10.1016/j.media.2023.102789), shapes stay real, and what fills them is random: the level of each source, its
contrast between tissues, its share in the other source, and sparse structure. No Gaussian grain is added: a
network that trains on grain learns to keep noise as anatomy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chisep.errors import InputError
from chisep.types import Grid, MaskVolume, Volume

_SPACING_MM = 20.0
"""Spacing of the random values that smooth fields are interpolated from."""
_MEDIAN_PPM = (0.025, 0.02)
"""Median of the random levels of structures: χ_pos, χ_neg."""
_LABEL_SD = (0.3, 1.0)
"""SD of the logarithm of these levels."""
_STRONG_PPM = 0.15
"""Sources that are stronger are lesions or veins."""
_FLAT_MM = 3.0
"""Edge of the boxes of the filter that removes fine grain."""


@dataclass(frozen=True)
class ContrastConfig:
    """Ranges of random contrasts; a share of the crops keeps the sources of the phantom."""

    share: float = 0.0
    """Share of crops with a random contrast."""
    level_sd: float = 0.35
    """Standard deviation of the logarithm of the level of each source."""
    power: tuple[float, float] = (0.6, 1.25)
    """Exponent of the contrast of each source between tissues."""
    exchange_share: float = 0.33
    """Share of these crops in which a part of one source moves smoothly to the other."""
    floor_ppb: float = 10.0
    """Largest constant that is added to both sources, so that CSF is not always 0."""
    flat_share: float = 0.5
    """Share of these crops in which a Kuwahara filter flattens fine grain."""
    cells_share: float = 0.4
    """Share of these crops with piecewise constant cells: random levels with sharp edges."""
    cells_sd: float = 0.3
    """Standard deviation of the logarithm of the level of a cell."""
    tubes: int = 12
    """Largest number of tubes and sheets of strong sources: veins, bundles, layers."""
    tube_ppb: float = 250.0
    """Largest value of a tube in ppb."""
    labels_share: float = 0.0
    """Share of all crops whose tissue is painted anew by the label map: one random level a structure, with
    sharp edges; lesions stay."""
    geometry_share: float = 0.1
    """Share of these crops that are made of cells and tubes alone, without the shapes of a brain."""

    def __post_init__(self) -> None:
        shares = (
            *(self.share, self.labels_share, self.exchange_share),
            *(self.flat_share, self.cells_share, self.geometry_share),
        )
        sizes = (self.level_sd, self.floor_ppb, self.cells_sd, self.tube_ppb, self.tubes)
        low, high = self.power
        if not all(0 <= s <= 1 for s in shares) or min(sizes) < 0 or not 0 < low <= high < math.inf:
            raise InputError(
                "contrast",
                found=f"{self}",
                expected="shares from 0 to 1, sizes of 0 or more, a range of powers from low to high above 0",
                fix="Correct the options.",
            )


def random_contrast(
    pos: Volume,
    neg: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: ContrastConfig,
    rng: np.random.Generator,
) -> tuple[Volume, Volume]:
    """Randomise the contrast of two sources.

    Parameters
    ----------
    pos, neg
        χ_pos and χ_neg in ppm, shape (i, j, k), 0 or more.
    mask
        Brain mask, shape (i, j, k).
    grid
        Voxel size.
    config
        Ranges.
    rng
        Random numbers.

    Returns
    -------
    tuple of Volume
        χ_pos and χ_neg in ppm, 0 or more, 0 outside the mask. Lesions and other structures stay where they
        are.
    """
    voxels = int(mask.sum())
    if not voxels or rng.random() >= config.share:
        return pos, neg
    if rng.random() < config.geometry_share:
        means = [float(source[mask].mean()) for source in (pos, neg)]
        pos, neg = (mean * _cells(grid, 4 * config.cells_sd, rng) * mask for mean in means)
    else:
        if rng.random() < config.flat_share:
            pos, neg = _flattened(pos, mask, grid), _flattened(neg, mask, grid)
        pos, neg = (_with_power(source, mask, rng.uniform(*config.power)) for source in (pos, neg))
        if rng.random() < config.exchange_share:
            pos, neg = _exchanged(pos, neg, grid, rng)
        if rng.random() < config.cells_share:
            pos, neg = (source * _cells(grid, config.cells_sd, rng) for source in (pos, neg))
    pos, neg = (source * math.exp(config.level_sd * rng.standard_normal()) for source in (pos, neg))
    pos, neg = (source + 1e-3 * rng.uniform(0, config.floor_ppb) for source in (pos, neg))
    for _ in range(int(rng.integers(config.tubes + 1))):
        tube = _tube(grid, rng) * (1e-3 * config.tube_ppb * rng.uniform(0.05, 1) ** 2)
        if rng.random() < 0.5:
            pos = pos + tube
        else:
            neg = neg + 0.4 * tube
    return pos * mask, neg * mask


def label_contrast(
    labels: Volume, pos: Volume, neg: Volume, rng: np.random.Generator
) -> tuple[Volume, Volume]:
    """Paint random levels by a label map, as SynthSeg does; strong sources stay.

    Parameters
    ----------
    labels
        Label map, shape (i, j, k).
    pos, neg
        χ_pos and χ_neg of the phantom in ppm; lesions and veins of them are kept.
    rng
        Random numbers.

    Returns
    -------
    tuple of Volume
        χ_pos and χ_neg in ppm, shape (i, j, k).
    """
    index = labels.round().long().clamp_min(0)
    painted = []
    for source, median in ((pos, _MEDIAN_PPM[0]), (neg, _MEDIAN_PPM[1])):
        spread = rng.uniform(*_LABEL_SD)
        levels = median * np.exp(spread * rng.standard_normal(int(index.max()) + 1))
        level = torch.from_numpy(levels.astype(np.float32))[index]
        painted.append(torch.where(source > _STRONG_PPM, source, level))
    return painted[0], painted[1]


def _with_power(source: Volume, mask: MaskVolume, power: float) -> Volume:
    """Change the contrast between tissues by a power of the value relative to its mean."""
    mean = float(source[mask].mean())
    return mean * (source / mean).clamp_min(0) ** power if mean > 0 else source


def _flattened(source: Volume, mask: MaskVolume, grid: Grid) -> Volume:
    """Kuwahara filter: each voxel takes the mean of that of eight neighbouring boxes which varies least.

    It removes grain and keeps edges between tissues (Kuwahara 1976).
    """
    edge = [max(1, round(_FLAT_MM / voxel / 2)) for voxel in grid.voxel_mm]
    size = [2 * e + 1 if e > 1 else 2 for e in edge]
    inside = mask.to(source.dtype)
    stack = torch.stack((source * inside, source.square() * inside, inside))[None]
    padded = functional.pad(stack, [n for s in size[::-1] for n in (s - 1, s - 1)])
    sums = functional.avg_pool3d(padded, size, stride=1)[0]
    i, j, k = source.shape
    best, least = source, torch.full_like(source, math.inf)
    for corner in range(8):
        shift = [(size[axis] - 1) * ((corner >> axis) & 1) for axis in range(3)]
        part = sums[:, shift[0] : shift[0] + i, shift[1] : shift[1] + j, shift[2] : shift[2] + k]
        count = part[2].clamp_min(1e-6)
        mean = part[0] / count
        variance = (part[1] / count - mean.square()).clamp_min(0)
        take = (variance < least) & (part[2] > 0.3)
        best, least = torch.where(take, mean, best), torch.where(take, variance, least)
    return best * inside


def _exchanged(pos: Volume, neg: Volume, grid: Grid, rng: np.random.Generator) -> tuple[Volume, Volume]:
    """Move a smoothly varying part of one source to the other."""
    part = torch.sigmoid(1.5 * smooth_random(grid, _SPACING_MM, rng)) * rng.uniform(0.2, 0.8)
    if rng.random() < 0.5:
        return pos * (1 - part), neg + part * pos
    return pos + part * neg, neg * (1 - part)


def smooth_random(grid: Grid, spacing_mm: float, rng: np.random.Generator) -> Volume:
    """Interpolate standard normal values on a coarse grid trilinearly to a smooth random field.

    Parameters
    ----------
    grid
        Shape and voxel size.
    spacing_mm
        Spacing of the coarse grid.
    rng
        Random numbers.

    Returns
    -------
    Volume
        Without unit, shape (i, j, k).
    """
    coarse = [max(2, round(n * edge / spacing_mm)) for n, edge in zip(grid.shape, grid.voxel_mm, strict=True)]
    values = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32))
    return functional.interpolate(values[None, None], grid.shape, mode="trilinear", align_corners=True)[0, 0]


def _positions_mm(grid: Grid) -> list[Tensor]:
    return [
        (torch.arange(n, dtype=torch.float32) * v).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, v) in enumerate(zip(grid.shape, grid.voxel_mm, strict=True))
    ]


def _cells(grid: Grid, sd: float, rng: np.random.Generator) -> Volume:
    """Piecewise constant factors in the cells of random, mutually warped planes (a hyperplane mosaic)."""
    index = torch.zeros(grid.shape, dtype=torch.long)
    positions = _positions_mm(grid)
    extent = [n * v for n, v in zip(grid.shape, grid.voxel_mm, strict=True)]
    for _ in range(int(rng.integers(3, 7))):
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        through = [rng.uniform(0, e) for e in extent]
        side = sum(float(c) * (p - t) for c, p, t in zip(normal, positions, through, strict=True))
        index = 2 * index + (side + 4 * smooth_random(grid, _SPACING_MM, rng) > 0)
    factors = np.exp(sd * rng.standard_normal(int(index.max()) + 1)).astype(np.float32)
    return torch.from_numpy(factors)[index]


def _tube(grid: Grid, rng: np.random.Generator) -> Volume:
    """Draw a curved tube, or a sheet, of value 1 with an edge of a voxel."""
    positions = _positions_mm(grid)
    extent = [n * v for n, v in zip(grid.shape, grid.voxel_mm, strict=True)]
    first = rng.standard_normal(3)
    first /= np.linalg.norm(first)
    second = np.cross(first, rng.standard_normal(3))
    second /= np.linalg.norm(second)
    through = [rng.uniform(0, e) for e in extent]
    bend = rng.uniform(0, 4)
    sheet = rng.random() < 0.3
    distance = torch.zeros(())
    for direction in (first,) if sheet else (first, second):
        along = sum(float(c) * (p - t) for c, p, t in zip(direction, positions, through, strict=True))
        distance = distance + (along + bend * smooth_random(grid, _SPACING_MM, rng)).square()
    radius = rng.uniform(0.4, 0.9 if sheet else 1.8)
    return ((radius - distance.sqrt()) / min(grid.voxel_mm) + 0.5).clamp(0, 1)
