"""Proximal χ-sepnet: exact data steps and U-nets in turn, each U-net with weights of its own or one for all.

    xᵢ = argmin_x ½ ‖W^½ (Φx − y)‖² + ½ ‖x − zᵢ₋₁‖²,   zᵢ = xᵢ + U_θᵢ(xᵢ, y)

with the rows R2'/D_r and field of Φ. A gradient step of one learned size (Eq. 2.5 of the thesis) is stable
below 9/13 only and weighs both rows alike, while the field is known ten times better than R2'; the exact step
has a weight for each row and no such limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chisep.errors import InputError
from chisep.models.unet import Scale, UNet, UNetConfig
from chisep.physics.separation import Separation


@dataclass(frozen=True)
class ProximalConfig:
    """How often data steps and U-nets take turns, and what the steps start from."""

    passes: int = 3
    """Pairs of a data step and a U-net."""
    tied: bool = False
    """One U-net for all passes instead of one each."""
    last_step: bool = True
    """A data step after the last U-net, which relieves underestimation."""
    r2prime_weight: float = 1.0
    """Weight of R2' to start training from: the prior's variance over that of the noise."""
    field_weight: float = 30.0
    """Weight of the field to start training from."""

    def __post_init__(self) -> None:
        if self.passes < 1 or not all(
            0 < weight < math.inf for weight in (self.r2prime_weight, self.field_weight)
        ):
            raise InputError(
                "proximal",
                found=f"{self}",
                wanted="one pass or more, and weights above 0",
                remedy="Correct the options.",
            )


class Proximal(nn.Module):
    """The network; χ_pos and χ_neg are in ppm, z-scores only inside the U-nets.

    Parameters
    ----------
    unet
        Width, depth, normalisation of each U-net.
    config
        Passes and weights.
    mean_ppm, sd_ppm
        Statistics in the training data of R2'/D_r, field, χ_pos and χ_neg.

    Attributes
    ----------
    log_weights
        Logarithms of the weights of R2' and field in each data step, shape (steps, 2).
    """

    def __init__(
        self, unet: UNetConfig, config: ProximalConfig, mean_ppm: Sequence[float], sd_ppm: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.rows, self.scale = Scale(mean_ppm[:2], sd_ppm[:2]), Scale(mean_ppm[2:], sd_ppm[2:])
        count, each = (1, config.passes) if config.tied else (config.passes, 1)
        self.unets = nn.ModuleList([UNet(4, 2, unet, each) for _ in range(count)])
        start = torch.tensor([config.r2prime_weight, config.field_weight]).log()
        self.log_weights = nn.Parameter(start.repeat(config.passes + config.last_step, 1))

    def forward(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> Tensor:
        """χ_pos and χ_neg of the last pass; arguments as of `iterates`."""
        return self.iterates(y_ppm, mask, phi)[-1]

    def iterates(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> list[Tensor]:
        """Return what each pass makes.

        Parameters
        ----------
        y_ppm
            [R2'/D_r,pos, field], shape (batch, 2, i, j, k).
        mask
            Brain, bool, shape (batch, 1, i, j, k).
        phi
            Φ on this grid, measured within the mask.

        Returns
        -------
        list of Tensor
            Each of shape (batch, 2, i, j, k) in ppm, 0 outside the mask.
        """
        r2prime, field = y_ppm.unbind(1)
        weights = self.log_weights.exp()

        def step(z: Tensor, number: int) -> Tensor:
            return phi.data_step(r2prime, field, z, weights[number, 0], weights[number, 1]) * mask

        rows = self.rows(y_ppm, mask)
        z = self.scale.undo(torch.zeros_like(y_ppm), mask)
        found = []
        for number in range(self.config.passes):
            x = self.scale(step(z, number), mask)
            unet = self.unets[0 if self.config.tied else number]
            z = self.scale.undo(
                x + unet(torch.cat((x, rows), dim=1), number if self.config.tied else 0), mask
            )
            found.append(z)
        if self.config.last_step:
            found[-1] = step(z, self.config.passes)
        return found
