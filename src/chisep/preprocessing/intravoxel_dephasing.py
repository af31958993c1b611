"""Signal attenuation by the gradient of the field across a voxel (intravoxel dephasing)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
from chisep.preprocessing.epg_fit import Values
from chisep.types import MaskVolume, Volume

Attenuation = Float[Tensor, "echo voxel"]
"""Attenuation factor of each echo, 1 without attenuation; 0 where the echo is not used."""
LEAST_ATTENUATION = 1e-2


def attenuation_by_gradient(
    field_ppm: Volume,
    known: MaskVolume,
    mask: MaskVolume,
    te_s: Sequence[float],
    b0_t: float | None,
    least: float,
) -> Attenuation:
    """Attenuation factor of each echo in the voxels of the mask; 0 where it is less than `least`."""
    if b0_t is None:
        raise InputError(
            "correction of the field's gradient",
            found="a field in ppm without B0",
            expected="the field strength in T",
            fix="Give b0_t.",
        )
    left = field_ppm.new_ones((len(te_s), int(mask.sum())))
    for axis in range(3):
        change_hz = hz_per_ppm(b0_t) * _change_per_voxel(field_ppm, known, mask, axis)
        for echo, te in enumerate(te_s):
            left[echo] *= torch.sinc(change_hz * te)
    usable = left > least
    for before, after in pairwise(usable):
        after &= before
    usable[:2] = True
    # The first two echoes are kept at any attenuation, but never divided by 0.
    return torch.where(usable, left.abs().clamp_min(LEAST_ATTENUATION), 0)


def _change_per_voxel(field: Volume, known: MaskVolume, mask: MaskVolume, axis: int) -> Values:
    """Mean difference to the neighbours along an axis, where they are known; 0 without a known neighbour.

    Returns values of the voxels in the mask, in memory order; the field is known in the mask.
    """
    flat, stride = mask.flatten().nonzero()[:, 0], math.prod(field.shape[axis + 1 :])
    here = field.flatten().index_select(0, flat)
    change, pairs = torch.zeros_like(here), torch.zeros_like(here)
    last = field.shape[axis] - 1
    for step, edge in ((1, last), (-1, 0)):
        # At the edge of the volume there is no neighbour: its own index stands in for it.
        has_next = known.roll(-step, axis)
        has_next.select(axis, edge).fill_(False)
        both = has_next.flatten().index_select(0, flat)
        there = torch.where(both, flat + step * stride, flat)
        difference = field.flatten().index_select(0, there) - here
        change += difference if step == 1 else -difference
        pairs += both
    return change / pairs.clamp_min(1)
