"""Phase that bipolar read-outs add to odd and even echoes, with alternating sign."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chisep.preprocessing.masked_values import MaskedVoxels
from chisep.preprocessing.unwrapping import wrap

_STEEPEST_RAMP_RAD = math.pi / 8
"""Per voxel; no read-out is shifted by more samples. A field so steep that its phase wraps between most
neighbours looks like a steeper ramp."""


def readout_ramp(wrapped: Tensor, weight: Tensor, te: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
    """Linear part of the phase of alternating sign, inside the mask."""
    # Differences between neighbours are a constant, a part that grows with TE, and one of alternating sign:
    # this row of the least-squares solution selects the last. Differences beyond π are outliers to the
    # median.
    scale = weight.mean(1, keepdim=True).sqrt()
    parts = torch.cat([torch.ones_like(te), te / te.max(), sign], dim=1)
    contrast = (torch.linalg.pinv(scale * parts) * scale.T)[2]
    ramp = torch.zeros_like(wrapped[0])
    inside = MaskedVoxels(mask)
    for axis, position in enumerate(inside.positions()):
        a, b = inside.neighbours(axis)
        if len(a):
            steps = wrapped.index_select(1, b).sub_(wrapped.index_select(1, a))
            slope = float((contrast @ wrap(steps)).median())
            if abs(slope) < _STEEPEST_RAMP_RAD:
                place = position.to(ramp.dtype)
                ramp += slope * (place - place.mean())
    return ramp


def readout_constant(
    wrapped: Tensor, weight: Tensor, te: Tensor, sign: Tensor, rate: Tensor, wraps: int = 0
) -> tuple[Tensor, Tensor]:
    """Constant ψ of the phase of alternating sign, and the correction of a rate that included that phase.

    An echo's phase difference to the first echo, minus that of the rate, is over the brain (s − s₀)·ψ + (TE −
    TE₀)·correction up to 2π wraps. Several pairs may agree with all echoes; the smallest ψ is taken.
    `wraps` is the number of whole wraps in the shortest echo spacing that are tried on either side.
    """
    gained = torch.polar((weight * weight[0]).sqrt(), wrapped - wrapped[0] - rate * (te - te[0]))
    mean = gained.sum(1)[1:, None, None]
    steps = (te - te[0])[1:, :, None]
    flips = (sign - sign[0])[1:, :, None]
    psi = torch.linspace(-math.pi / 2, math.pi / 2, 181, dtype=te.dtype, device=te.device)
    most = math.pi * (2 * wraps + 1)
    shift = torch.linspace(-most, most, 360 * (2 * wraps + 1) + 1, dtype=te.dtype, device=te.device)
    shift = shift / (te[1:] - te[:-1]).min()
    left = mean.angle() - flips * psi[:, None] - steps * shift
    share = mean.abs() / mean.abs().sum()
    agreement = (share * left.cos()).sum(0) - 1e-3 * psi[:, None] ** 2
    i, j = divmod(int(agreement.argmax()), len(shift))
    # From the nearest point of the grid no echo wraps any more: the rest is a linear fit.
    design = torch.cat([flips[:, 0], steps[:, 0] / te.max()], dim=1) * share[:, 0].sqrt()
    fine = torch.linalg.pinv(design) @ (wrap(left[:, i, j]) * share[:, 0, 0].sqrt())
    return psi[i] + fine[0], shift[j] + fine[1] / te.max()
