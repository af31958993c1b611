"""How far a scan reaches: the field of a source reaches across slices, so a few of them do not show it."""

from __future__ import annotations

from collections.abc import Sequence

from chisep.errors import InputError
from chisep.types import Grid, MaskVolume

FEWEST_SLICES = 3
_DIPOLE_REACH_MM = 30.0
"""Extent of the brain from which maps are trusted: a slab of 15 mm has 0.3 of the contrast in its QSM."""
_AXES = ("first", "second", "third")


def require_slices(shape: Sequence[int], source: str) -> None:
    """Refuse one slice or two.

    Raises
    ------
    InputError
        If a volume, or what is inside a mask, has fewer than three slices along an axis.
    """
    if min(shape) >= FEWEST_SLICES:
        return
    count, axis = min(shape), _AXES[list(shape).index(min(shape))]
    raise InputError(
        source,
        found=f"{count} slice{'s' * (count > 1)} along the {axis} axis (shape {tuple(shape)})",
        expected=f"a slab of {_DIPOLE_REACH_MM:g} mm or more, at the least {FEWEST_SLICES} slices, since the "
        "field of a source reaches across slices",
        fix="Give all slices of the scan in one volume.",
    )


def thin_slab(mask: MaskVolume, grid: Grid, scale: float = 1.0) -> list[str]:
    """Warn of a brain that reaches less far than the field of its sources.

    Parameters
    ----------
    mask
        Brain, shape (i, j, k).
    grid
        Voxel size.
    scale
        Length of the head relative to an adult's (`chisep.preprocessing.head_size`).

    Returns
    -------
    list of str
        One warning, or none.

    Raises
    ------
    InputError
        If the brain has fewer than three slices.
    """
    index = mask.nonzero()
    if not len(index):
        return []
    count = [int(n) for n in index.amax(0) - index.amin(0) + 1]
    require_slices(count, "brain mask")
    extents_mm = [n * edge for n, edge in zip(count, grid.voxel_mm, strict=True)]
    thinnest = extents_mm.index(min(extents_mm))
    needed_mm = scale * _DIPOLE_REACH_MM
    if extents_mm[thinnest] >= needed_mm:
        return []
    return [
        f"the brain mask reaches over {extents_mm[thinnest]:.3g} mm along the {_AXES[thinnest]} axis "
        f"({count[thinnest]} slices); below {needed_mm:.3g} mm the local field and susceptibility are "
        "underestimated, the more so the thinner the slab"
    ]
