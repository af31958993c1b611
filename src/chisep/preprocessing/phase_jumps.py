"""Phase offsets that differ from slice to slice or from slab to slab, equal in all echoes."""

from __future__ import annotations

import torch
from torch import Tensor

from chisep.preprocessing.masked_values import MaskedVoxels
from chisep.preprocessing.unwrapping import wrap

_JUMP_RAD = 1.0
"""Step of the mean phase offset between neighbouring slices from which it is an artefact. The receiver phase
of a head coil changes by less than 0.2 rad from slice to slice, bipolar read-outs add up to 0.4 rad; a flip
of the sign is a step of π."""
_COHERENT, _SMALL_SLICE = 0.7, 0.02
"""A step counts if its voxels agree to this part, and have this part of the signal of the largest slice."""


def slice_offsets(wrapped: Tensor, weight: Tensor, te: Tensor, mask: Tensor) -> tuple[Tensor, int | None]:
    """Estimate phase offsets of slices (sign flips of GE reconstructions, slabs of multi-slab scans).

    The step of the phase between neighbouring slices is a + b·TE. A slice's offset changes a, a field changes
    b. The offset is the same in all echoes, so its removal does not change the field.

    Parameters
    ----------
    wrapped, weight
        Phase in radians and squared magnitude inside the mask, shape (echo, voxel); at least two echoes.
    te
        Echo times in s, shape (echo, 1).
    mask
        Shape (i, j, k).

    Returns
    -------
    offset_rad : Tensor
        Offset of every voxel's slice, shape (voxel,); 0 where there are no jumps.
    axis : int or None
        Axis across the slices; None without jumps.
    """
    offset_rad, jump_axis, largest = torch.zeros_like(wrapped[0]), None, _JUMP_RAD
    inside = MaskedVoxels(mask)
    for axis, position in enumerate(inside.positions()):
        steps, clear = _offset_steps(wrapped, weight, te, position, inside, axis)
        step = float(steps[clear].abs().max()) if bool(clear.any()) else 0.0
        if step > largest:
            offset_rad, jump_axis, largest = _cumulative(steps)[position], axis, step
    return offset_rad, jump_axis


def _cumulative(steps: Tensor) -> Tensor:
    return wrap(torch.cat([steps.new_zeros(1), steps.cumsum(0)]))


def _offset_steps(
    wrapped: Tensor, weight: Tensor, te: Tensor, position: Tensor, inside: MaskedVoxels, axis: int
) -> tuple[Tensor, Tensor]:
    """Mean step of the phase offset between neighbouring slices and where it is clear, (slices − 1,)."""
    n = inside.mask.shape[axis] - 1
    a, b = inside.neighbours(axis)
    later = 2 if len(te) > 2 else 1  # bipolar read-outs add the same phase to the first and the third echo
    first, second = (
        wrapped[echo].index_select(0, b) - wrapped[echo].index_select(0, a) for echo in (0, later)
    )
    growth = wrap(second - first) * (te[0] / (te[later] - te[0]))
    one, two, three, four = (weight[echo].index_select(0, at) for echo in (0, later) for at in (a, b))
    strength = (one * two * three * four) ** 0.25
    slices = position.index_select(0, a)
    total = torch.zeros(n, dtype=torch.complex64, device=a.device)
    total.index_add_(0, slices, torch.polar(strength, first - growth).to(total.dtype))
    most = torch.zeros(n, device=a.device).index_add_(0, slices, strength.float())
    clear = (total.abs() > _COHERENT * most) & (most > _SMALL_SLICE * most.max())
    return total.angle().to(wrapped.dtype), clear
