"""Losses: label, its gradients, and its forward-modelled measurements, all as mean |·| in the brain.

All terms are in ppm: R2' is divided by D_r, so that units do not weight the terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from chisep.errors import InputError
from chisep.networks.config import SOURCES, Channel
from chisep.physics.dipole import Dipole

UNIT_PPM = 0.03
"""Unit of the losses: about the SD of χ_pos and χ_neg in a brain."""
_SMALLEST_SCALE_PPM = 1e-5
_SMALLEST_LOSS = 1e-3
"""Added to the loss of a volume before a power of it is taken, whose slope is infinite at 0."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms."""

    label: float = 1.0
    """|x̂ − x| of the outputs."""
    gradient: float = 0.1
    """|∇(x̂ − x)| between neighbouring voxels."""
    field: float = 0.5
    """|D * (χ̂ − χ)|, the local field; only for networks with output χ or sources."""
    chi: float = 0.5
    """|χ̂ − χ| of χ = χ_pos − χ_neg; only for networks with output sources."""
    r2prime: float = 0.5
    """|s − ŝ| of s = χ_pos + χ_neg, that is R2'/D_r; only for networks with output sources."""
    passes: float | None = None
    """Mean |x̂ − x| of the intermediate estimates of earlier cascades; only for unrolled networks."""
    uncertainty: float | None = None
    """Negative log-likelihood of the predicted uncertainty (Laplace distribution); only for networks that
    predict it. The term has no gradient with respect to the sources."""
    power: float = 1.0
    """Exponent of the sum of the other terms of each volume. Below 1, scans of little noise, whose errors are
    small, count more."""

    def __post_init__(self) -> None:
        weights = [weight or 0.0 for name, weight in vars(self).items() if name != "power"]
        valid = all(0 <= weight < math.inf for weight in weights) and any(weights)
        if not valid or not 0 < self.power <= 1:
            raise InputError(
                "loss",
                found=f"{self}",
                expected="weights of 0 or more, one of them above 0, and a power above 0, at most 1",
                fix="Correct them.",
            )


def loss_terms(
    predicted_ppm: Tensor,
    label_ppm: Tensor,
    mask: Tensor,
    outputs: tuple[Channel, ...],
    dipole: Dipole,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Compute each term, unweighted, in units of `UNIT_PPM`.

    Parameters
    ----------
    predicted_ppm, label_ppm
        Shape (batch, channel, i, j, k).
    mask
        Brain, bool, shape (batch, 1, i, j, k).
    outputs
        Names of the channels.
    dipole
        Dipole operator of the batch.
    config
        Terms of weight 0 are omitted.

    Returns
    -------
    dict
        Mean over the brain of each volume, shape (batch,).
    """
    error = (predicted_ppm - label_ppm) * mask
    terms = {}
    if config.label:
        terms["label"] = label_loss(predicted_ppm, label_ppm, mask)
    if config.gradient:
        terms["gradient"] = _gradient(error, mask)
    if outputs == SOURCES:
        chi = error[:, :1] - error[:, 1:]
        if config.chi:
            terms["chi"] = _mean(chi, mask)
        if config.r2prime:
            terms["r2prime"] = _mean(error.sum(1, keepdim=True), mask)
    elif outputs == ("chi",):
        chi = error
    else:
        return terms
    if config.field:
        terms["field"] = _mean(dipole.apply(chi.squeeze(1)).unsqueeze(1) * mask, mask)
    return terms


def label_loss(predicted_ppm: Tensor, label_ppm: Tensor, mask: Tensor) -> Tensor:
    """Compute the label term; arguments as of `loss_terms`."""
    return _mean((predicted_ppm - label_ppm) * mask, mask)


def laplace_loss(predicted_ppm: Tensor, scale_ppm: Tensor, label_ppm: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the error under Laplace distributions, in units of their scale.

    Parameters
    ----------
    predicted_ppm, label_ppm, mask
        As of `loss_terms`; there is no gradient with respect to the prediction.
    scale_ppm
        Scale b of each voxel's distribution, shape (batch, channel, i, j, k).
    """
    b = scale_ppm.clamp_min(_SMALLEST_SCALE_PPM)
    error = (predicted_ppm.detach() - label_ppm).abs()
    return _over_brain((error / b + (b / UNIT_PPM).log()) * mask, mask)


def total_loss(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Weighted sum of the terms of each volume, mean over volumes.

    The mean of volumes is the same when a batch is split over devices. The likelihood of the uncertainty can
    be negative, so the power does not apply to it.
    """
    nothing = next(iter(terms.values())) * 0
    errors = sum((getattr(config, n) * t for n, t in terms.items() if n != "uncertainty"), start=nothing)
    if config.power != 1:
        errors = (errors + _SMALLEST_LOSS) ** config.power
    return (errors + (config.uncertainty or 0) * terms.get("uncertainty", nothing)).mean()


def _mean(error: Tensor, mask: Tensor) -> Tensor:
    return _over_brain(error.abs(), mask) / UNIT_PPM


def _over_brain(each: Tensor, mask: Tensor) -> Tensor:
    """Mean over the brain and the channels of each volume; 0 outside."""
    voxels = mask.flatten(1).sum(1).clamp_min(1) * each.shape[1]
    return each.flatten(1).sum(1) / voxels


def _gradient(error: Tensor, mask: Tensor) -> Tensor:
    """Mean |difference of neighbours| within the brain, over the three axes."""
    total = error.new_zeros(len(error))
    for axis in (-3, -2, -1):
        n = error.shape[axis]
        pairs = mask.narrow(axis, 1, n - 1) & mask.narrow(axis, 0, n - 1)
        difference = (error.narrow(axis, 1, n - 1) - error.narrow(axis, 0, n - 1)) * pairs
        total = total + _mean(difference, pairs)
    return total / 3
