"""Signal attenuation by the gradient of the field across a voxel (intravoxel dephasing)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
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
        change_hz = hz_per_ppm(b0_t) * _change_per_voxel(field_ppm, known, axis)[mask]
        for echo, te in enumerate(te_s):
            left[echo] *= torch.sinc(change_hz * te)
    usable = left.cummin(0).values > least
    usable[:2] = True
    # The first two echoes are kept at any attenuation, but never divided by 0.
    return torch.where(usable, left.abs().clamp_min(LEAST_ATTENUATION), 0)


def _change_per_voxel(field: Volume, known: MaskVolume, axis: int) -> Volume:
    """Mean difference to the neighbours along an axis, where they are known; 0 without a known neighbour."""
    change, pairs = torch.zeros_like(field), torch.zeros_like(field)
    n = field.shape[axis]
    if n > 1:
        both = known.narrow(axis, 0, n - 1) & known.narrow(axis, 1, n - 1)
        step = torch.where(both, torch.diff(field, dim=axis), 0)
        for first in (0, 1):
            change.narrow(axis, first, n - 1).add_(step)
            pairs.narrow(axis, first, n - 1).add_(both)
    return change / pairs.clamp_min(1)
