"""Phase offsets that differ from slice to slice or from slab to slab, equal in all echoes."""

from __future__ import annotations

import torch
from torch import Tensor

from chisep.preprocessing.masked_values import volume_of
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
    number = volume_of(torch.arange(wrapped.shape[1], device=mask.device), mask)
    for axis, position in enumerate(mask.nonzero(as_tuple=True)):
        steps, clear = _offset_steps(wrapped, weight, te, mask, number, axis)
        step = float(steps[clear].abs().max()) if bool(clear.any()) else 0.0
        if step > largest:
            offset_rad, jump_axis, largest = _cumulative(steps)[position], axis, step
    return offset_rad, jump_axis


def _cumulative(steps: Tensor) -> Tensor:
    return wrap(torch.cat([steps.new_zeros(1), steps.cumsum(0)]))


def _offset_steps(
    wrapped: Tensor, weight: Tensor, te: Tensor, mask: Tensor, number: Tensor, axis: int
) -> tuple[Tensor, Tensor]:
    """Mean step of the phase offset between neighbouring slices and where it is clear, (slices − 1,)."""
    n = mask.shape[axis] - 1
    both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
    a, b = number.narrow(axis, 0, n)[both], number.narrow(axis, 1, n)[both]
    later = 2 if len(te) > 2 else 1  # bipolar read-outs add the same phase to the first and the third echo
    first, second = (wrapped[echo, b] - wrapped[echo, a] for echo in (0, later))
    growth = wrap(second - first) * (te[0] / (te[later] - te[0]))
    strength = (weight[0, a] * weight[0, b] * weight[later, a] * weight[later, b]) ** 0.25
    slices = both.nonzero(as_tuple=True)[axis]
    total = torch.zeros(n, dtype=torch.complex64, device=mask.device)
    total.index_add_(0, slices, torch.polar(strength, first - growth).to(total.dtype))
    most = torch.zeros(n, device=mask.device).index_add_(0, slices, strength.float())
    clear = (total.abs() > _COHERENT * most) & (most > _SMALL_SLICE * most.max())
    return total.angle().to(wrapped.dtype), clear
