"""Phase unwrapping by ROMEO: along the maximum spanning tree of edge qualities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Echoes, MaskVolume, Volume

_TWO_PI = 2 * math.pi
_LEAST_FACTOR = 0.01
"""Smallest factor of an edge's quality: no factor alone makes edges equal that others distinguish."""
_BRIGHT_PERCENTILE = 95
_NO_EDGE = 2.0
"""Cost above that of every edge between neighbours."""

Index = NDArray[np.int32]
"""Numbers of voxels, counted within the mask."""
Values = NDArray[np.floating]
"""A value for every voxel of the mask, or for every edge."""


Phase = TypeVar("Phase", Tensor, NDArray[np.floating])
"""Phase in radians, as a tensor or an array."""


def wrap(phase_rad: Phase) -> Phase:
    """Wrap a phase into ±π."""
    return phase_rad - _TWO_PI * (phase_rad / _TWO_PI).round()


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """Phase without wraps; 0 outside the mask.

    Parameters
    ----------
    phase_rad
        Every echo's phase plus multiples of 2π, shape (echo, i, j, k).
    quality
        Mean quality of the edges to a voxel's neighbours, 0 (noise) to 1, shape (i, j, k).
    """

    phase_rad: Echoes
    quality: Volume


@dataclass(frozen=True, eq=False)
class _Edges:
    """Pairs of neighbours along one axis, and the voxels on the same line before and after each pair.

    Where the mask ends, `before` is `a` itself, and `after` is `b`.
    """

    a: Index
    b: Index
    before: Index
    after: Index


# Long because the docstring states the whole contract.
def unwrap(
    phase_rad: Echoes,
    magnitude: Echoes,
    te_s: Sequence[float],
    mask: MaskVolume,
    *,
    template: int = 0,
) -> Unwrapped:
    """Unwrap one echo in space by ROMEO, and the others in time.

    Parameters
    ----------
    phase_rad
        Wrapped phase, shape (echo, i, j, k). With several echoes, free of the receiver's offset: phase is
        taken to grow in proportion to TE.
    magnitude
        Any scale, shape (echo, i, j, k).
    te_s
        Echo times in s.
    mask
        Where to unwrap, shape (i, j, k).
    template
        Number of the echo that is unwrapped in space. The next one (or else the one before) gives
        the coherence of its steps over time.

    Returns
    -------
    Unwrapped
        Phase whose template echo has its median within ±π, and the quality of voxels.

    Raises
    ------
    InputError
        If echoes and echo times do not fit, there is no such template, or the mask is empty.

    Notes
    -----
    ROMEO (Dymerska 2021, 10.1002/mrm.28563) grows a region from a seed along the best edge that
    leaves it, which is Prim's algorithm: whatever the seed, the edges that it takes are the maximum spanning
    tree of edge qualities. SciPy finds that tree, and wrap counts are summed along it by pointer doubling. If
    all steps along the tree are shorter than π, the result is exact everywhere. The quality of an edge is the
    product of the paper's six weights: phase coherence, phase gradient coherence between echoes, phase
    linearity, magnitude coherence, and two that lower the weight of voxels much darker or brighter than
    usual.

    Components of the mask that do not touch are joined where they are nearest, by edges of lower quality than
    all others.
    """
    _check(phase_rad, magnitude, te_s, mask, template)
    inside = mask.cpu().numpy()
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    inside = inside[box]
    wrapped = phase_rad.detach().cpu().numpy()[:, *box][:, inside]
    brightness = magnitude[template].detach().cpu().numpy()[box][inside]
    other = template + 1 if template + 1 < len(te_s) else template - 1
    coherent = None if other < 0 else (wrapped[other], te_s[template] / te_s[other])

    number = np.full(inside.shape, -1, dtype=np.int32)
    number[inside] = np.arange(len(brightness), dtype=np.int32)
    edges = [_edges(number, axis) for axis in range(3)]
    qualities = [_quality(each, wrapped[template], coherent, brightness) for each in edges]
    a, b = np.concatenate([each.a for each in edges]), np.concatenate([each.b for each in edges])
    quality = np.concatenate(qualities)
    bridge_a, bridge_b, length = _bridges(number)
    step = wrap(wrapped[template][bridge_b] - wrapped[template][bridge_a])
    # The shortest bridge is taken; of equal ones that with the smallest step.
    cost = np.concatenate([1 + (1 - quality), _NO_EDGE + length + 0.01 * np.abs(step)])
    counts = _wrap_counts(
        wrapped[template], np.concatenate([a, bridge_a]), np.concatenate([b, bridge_b]), cost.astype(float)
    )

    unwrapped = np.empty_like(wrapped)
    unwrapped[template] = wrapped[template] + _TWO_PI * counts.astype(wrapped.dtype)
    unwrapped[template] -= _TWO_PI * np.round(np.median(unwrapped[template]) / _TWO_PI)
    later = range(template, len(te_s))
    for known, echo in (*pairwise(later), *pairwise(range(template, -1, -1))):
        predicted = unwrapped[known] * (te_s[echo] / te_s[known])
        unwrapped[echo] = predicted + wrap(wrapped[echo] - predicted)

    def volumes(values: NDArray[np.floating]) -> Tensor:
        whole = np.zeros((*values.shape[:-1], *mask.shape), dtype=wrapped.dtype)
        whole[..., *box][..., inside] = values
        return torch.from_numpy(whole).to(phase_rad.device)

    return Unwrapped(volumes(unwrapped), volumes(_voxel_quality(a, b, quality, len(brightness))))


def residual_jumps(phase_rad: Volume, mask: MaskVolume) -> int:
    """Count the steps between neighbours that still contain a 2π wrap.

    Parameters
    ----------
    phase_rad
        Unwrapped phase, shape (i, j, k).
    mask
        Where it is known, shape (i, j, k).

    Returns
    -------
    int
        Number of face neighbours in the mask that differ by more than π, and whose wrapped difference is
        within π/2 of the mean of the steps before and after on the same line. So steps of a field that steep
        do not count, nor do steps that no multiple of 2π makes consistent (noise), nor those at the end of a
        line. Between poles of the wrapped phase, where a sheet of steps beyond π is unavoidable, some remain.
    """
    count = 0
    for axis in range(3):
        line = phase_rad.movedim(axis, -1)
        known = mask.movedim(axis, -1)
        steps, both = line.diff(dim=-1), known[..., 1:] & known[..., :-1]
        if steps.shape[-1] < 3:
            continue
        step = steps[..., 1:-1]
        trend = (steps[..., :-2] + steps[..., 2:]) / 2
        rewrapped = step - _TWO_PI * torch.round(step / _TWO_PI)
        jumps = (
            (step.abs() > math.pi)
            & ((step - trend).abs() > math.pi)
            & ((rewrapped - trend).abs() < math.pi / 2)
        )
        count += int((jumps & both[..., 1:-1] & both[..., :-2] & both[..., 2:]).sum())
    return count


def _check(phase_rad: Tensor, magnitude: Tensor, te_s: Sequence[float], mask: Tensor, template: int) -> None:
    """Check that the inputs belong together."""
    found = None
    if not len(te_s) == len(magnitude) == len(phase_rad):
        found = f"{len(magnitude)} magnitudes, {len(phase_rad)} phases and {len(te_s)} echo times"
    elif not 0 <= template < len(te_s):
        found = f"template echo {template} of {len(te_s)}"
    elif min(te_s) <= 0:
        found = f"echo times {', '.join(f'{te:g}' for te in te_s)} s"
    elif not bool(mask.any()):
        found = "an empty mask"
    if found:
        raise InputError(
            "phase unwrapping",
            found=found,
            expected="as many magnitudes, phases and positive echo times in s, one as template; a mask",
            fix="Give magnitude and phase of all echoes of one scan, in order.",
        )


def _edges(number: NDArray[np.int32], axis: int) -> _Edges:
    """Pairs of face neighbours within the mask along one axis."""
    line = np.moveaxis(number, axis, -1)
    both = (line[..., :-1] >= 0) & (line[..., 1:] >= 0)
    a, b = line[..., :-1][both], line[..., 1:][both]
    missing = np.full((*line.shape[:-1], 1), -1, dtype=line.dtype)
    before = np.concatenate([missing, line[..., :-2]], axis=-1)[both]
    after = np.concatenate([line[..., 2:], missing], axis=-1)[both]
    return _Edges(a, b, np.where(before < 0, a, before), np.where(after < 0, b, after))


def _quality(
    edges: _Edges, phase: Values, coherent: tuple[Values, float] | None, magnitude: Values
) -> Values:
    """Quality of edges, 0 to 1: the product of ROMEO's six weights."""
    a, b = edges.a, edges.b
    step = wrap(phase[b] - phase[a])
    quality = 1 - np.abs(step) / math.pi
    if coherent is not None:
        other, ratio = coherent
        quality *= np.maximum(_LEAST_FACTOR, 1 - np.abs(step - ratio * wrap(other[b] - other[a])))
    for first, middle, last in ((edges.before, a, b), (a, b, edges.after)):
        bent = np.abs(wrap(phase[first] - 2 * phase[middle] + phase[last]))
        bent[(first == middle) | (middle == last)] = 0
        quality *= np.maximum(_LEAST_FACTOR, 1 - bent / 2)
    dark, bright = np.minimum(magnitude[a], magnitude[b]), np.maximum(magnitude[a], magnitude[b])
    tiny = np.finfo(magnitude.dtype).tiny
    usual = max(0.5 * float(np.percentile(magnitude, _BRIGHT_PERCENTILE)), float(tiny))
    quality *= np.maximum(_LEAST_FACTOR, (dark / np.maximum(bright, tiny)) ** 2)
    quality *= 0.5 + 0.5 * np.minimum(1, dark / usual)
    quality *= 0.5 + 0.5 * np.minimum(1, usual / np.maximum(bright, tiny))
    return np.asarray(quality)


def _bridges(number: NDArray[np.int32]) -> tuple[Index, Index, Values]:
    """Edges between components of the mask that do not touch, and their lengths in voxels.

    Every voxel outside the mask belongs to the nearest voxel inside; where two such regions of different
    components meet, a bridge joins the two voxels.
    """
    parts, count = ndimage.label(number >= 0)
    if count < 2:
        none = np.zeros(0, dtype=np.int32)
        return none, none, np.zeros(0)
    nearest = ndimage.distance_transform_edt(number < 0, return_distances=False, return_indices=True)
    owner, part = number[tuple(nearest)], parts[tuple(nearest)]
    place = np.argwhere(number >= 0)
    pairs = []
    for axis in range(3):
        owners, their_parts = np.moveaxis(owner, axis, -1), np.moveaxis(part, axis, -1)
        meet = their_parts[..., 1:] != their_parts[..., :-1]
        pairs.append(np.stack([owners[..., :-1][meet], owners[..., 1:][meet]], axis=-1))
    a, b = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).T
    return a, b, np.linalg.norm(place[a] - place[b], axis=1)


def _wrap_counts(phase: Values, a: Index, b: Index, cost: Values) -> Index:
    """Wrap count to add to each voxel so that no step along the minimum spanning tree is longer than π."""
    graph = coo_array((cost, (a, b)), shape=(len(phase), len(phase))).tocsr()
    tree = minimum_spanning_tree(graph, overwrite=True)
    _, parent = breadth_first_order(tree, 0, directed=False)
    parent[0] = 0
    count = np.round((phase[parent] - phase) / _TWO_PI).astype(np.int32)
    # Every pass doubles the part of the way to the root that is summed.
    while parent.any():
        count += count[parent]
        parent = parent[parent]
    return np.asarray(count)


def _voxel_quality(a: Index, b: Index, quality: Values, count: int) -> Values:
    """Mean quality of the edges at each voxel; 0 for a voxel without neighbours."""
    total = np.bincount(a, quality, count) + np.bincount(b, quality, count)
    edges = np.bincount(a, minlength=count) + np.bincount(b, minlength=count)
    return np.asarray(total / np.maximum(edges, 1))
