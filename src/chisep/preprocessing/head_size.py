"""The head's size: lengths in mm are meant for adult humans, and scale with the heads of small animals."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from chisep.types import Affine, Grid, MaskVolume

Config = TypeVar("Config")
"""A dataclass of options."""

_ADULT_ML = 1300.0
"""Volume of an adult's brain."""
_ADULT_LENGTH_MM = 170.0
"""Longest extent of an adult's brain."""
_ADULT_HEAD_ML, _ADULT_HEAD_MM = 3000.0, 220.0
"""Volume and longest extent of what has signal in a scan of an adult's head."""
_SMALLEST_HUMAN = 0.5
"""Relative length from which a brain counts as human: 160 ml, that of a child born three months early."""
_STEPS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Lengths of small heads are rounded to one of these, so that all animals of a species are treated alike."""
_CUT_SHARE = 0.01
"""A mask is cut by a face of its volume if more than this part of its own cross-section lies on the face."""


def length_scale(mask: MaskVolume, grid: Grid) -> float:
    """Length of a head relative to an adult's: 1 for all humans, about 0.1 for a mouse.

    Parameters
    ----------
    mask
        Brain, shape (i, j, k).
    grid
        Voxel size.

    Returns
    -------
    float
        Cube root of the volume over 1.3 l, or the longest extent over 170 mm if that is more, as in a slab,
        rounded to 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3 or 0.4. It is 1 from 0.5 on, for an empty mask,
        and for a mask that faces of the volume cut along two axes or all: a crop does not tell the head's
        size.
    """
    return _scale(mask, grid, _ADULT_ML, _ADULT_LENGTH_MM)


def head_scale(tissue: MaskVolume, grid: Grid) -> float:
    """Length of a head relative to an adult's by all that has signal, where the brain is not known yet.

    Parameters
    ----------
    tissue
        Voxels with signal, shape (i, j, k).
    grid
        Voxel size.

    Returns
    -------
    float
        As of `length_scale`, with the volume over 3 l and the extent over 220 mm.
    """
    return _scale(tissue, grid, _ADULT_HEAD_ML, _ADULT_HEAD_MM)


def _scale(mask: MaskVolume, grid: Grid, adult_ml: float, adult_mm: float) -> float:
    index = mask.nonzero()
    if not len(index):
        return 1.0
    cut = 0
    widest = 0.0
    for axis, edge in enumerate(grid.voxel_mm):
        low, high = int(index[:, axis].min()), int(index[:, axis].max())
        widest = max(widest, (high - low + 1) * edge)
        sections = index[:, axis].bincount(minlength=mask.shape[axis])
        on_faces = max(int(sections[0]), int(sections[-1]))
        cut += on_faces > _CUT_SHARE * int(sections.max())
    by_volume = math.cbrt(len(index) * math.prod(grid.voxel_mm) / 1000 / adult_ml)
    scale = max(by_volume, widest / adult_mm)
    if cut > 1 or scale >= _SMALLEST_HUMAN:
        return 1.0
    return min(_STEPS, key=lambda step: abs(math.log(step / scale)))


def adult_grid(grid: Grid, scale: float) -> Grid:
    """Grid of the same head enlarged to an adult's, on which lengths in mm are what they are meant to be.

    Parameters
    ----------
    grid
        Of the scan.
    scale
        Length of the head relative to an adult's, as `length_scale` gives it; 1 changes nothing.
    """
    if scale == 1:
        return grid
    i, j, k = grid.voxel_mm
    voxel_mm = (i / scale, j / scale, k / scale)
    return replace(grid, voxel_mm=voxel_mm, affine=adult_affine(grid.matrix(), scale))


def adult_affine(affine: Affine, scale: float) -> Affine:
    """Affine of the same head enlarged to an adult's, shape (4, 4); scale as in `adult_grid`."""
    enlarged = affine.copy()
    enlarged[:3] /= scale
    return enlarged


def adult_lengths(config: Config, scale: float) -> Config:
    """Options for `adult_grid`: lengths that the user chose are of the scan, and are enlarged with it.

    Parameters
    ----------
    config
        Options whose lengths end in `_mm` and volumes in `_ml`; parts that are configs are treated alike.
    scale
        As in `adult_grid`.
    """
    if scale == 1:
        return config
    changed: dict[str, Any] = {}
    of_config: Any = config
    for option in fields(of_config):
        value = getattr(config, option.name)
        usual = option.default if option.default_factory is MISSING else option.default_factory()
        factor = {"_mm": 1 / scale, "_ml": scale**-3}.get(option.name[-3:])
        if hasattr(value, "__dataclass_fields__"):
            changed[option.name] = adult_lengths(value, scale)
        elif factor and value != usual and value is not None:
            changed[option.name] = (
                tuple(one * factor for one in value) if isinstance(value, tuple) else value * factor
            )
    made: Config = replace(of_config, **changed)
    return made


def small_head(scale: float) -> list[str]:
    """Warn where lengths are scaled; nothing for humans."""
    if scale == 1:
        return []
    return [
        f"the head is about {scale:g} times as long as an adult human's: smoothing, rims, radii and all "
        "other lengths that were not chosen by options are scaled with it"
    ]
