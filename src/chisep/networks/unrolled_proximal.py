"""Proximal χ-sepnet: exact data steps and U-nets in turn, weighed by the noise of the scan.

    xᵢ = argmin_x ½ ‖W^½ (Φx − y)‖² + ½ ‖Pᵢ₋₁^−½ (x − zᵢ₋₁)‖²,  zᵢ, Pᵢ = xᵢ + U(xᵢ, y, W), V(xᵢ, y, W)

with the rows R2'/D_r and field of Φ. P is how uncertain each source is in each voxel, as the U-net before
tells it: healthy tissue holds on to what is likely, a lesion gives way to what was measured. A gradient step
of one learned size (Eq. 2.5 of the thesis) is stable below 9/13 only and weighs both rows alike, while the
field is known ten times better than R2'; the exact step has a weight for each row and no such limit. W is the
inverse variance of the noise: what the scan states of each voxel, and what is learned of all that no noise
map holds (background field left over, registration, D_r). U and V are the two halves of what a U-net gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from chisep.errors import InputError
from chisep.networks.unet import Scale, UNet, UNetConfig
from chisep.physics.separation import Separation

WHOLE_PADDING = 1.25
"""Size of the grid of data steps over that of a whole volume. What a head does to itself across the edge is
then 0.2 ppb, far below what a field is known to, and transforms have a quarter of the points of those at
twice the size. A crop is full up to its edges and wants more."""
UNKNOWN_PPM = 1.0
"""Noise of what was not measured: that of no map is as large."""
_LARGEST_LOG_SCALE = 6.0
_LEAK = 0.1
"""Slope of a log scale below the smallest: without, what once fell below it would learn no more."""
_SMALLEST_WEIGHT = 1e-12
_NEIGHBOURS = 5
"""Edge in voxels of the neighbourhood in which R2' tells how far off it is."""


@dataclass(frozen=True)
class UnrolledProximalConfig:
    """How often data steps and U-nets take turns, and what the steps start from."""

    passes: int = 2
    """Pairs of a data step and a U-net."""
    tied: bool = False
    """One U-net for all passes instead of one each."""
    data_steps: bool = True
    """Whether there are data steps; without, U-nets follow each other."""
    adaptive: bool = True
    """Whether every voxel's prior is as wide as the U-net before tells its error to be, and in the first step
    as R2' is off beyond its noise; else one for all."""
    inverse_steps: int = 3
    """Field steps of the plain inversion of the field that U-nets are shown; 0 for none."""
    last_steps: int = 1
    """Data steps after the last U-net, which relieve underestimation; further ones move only what is wide."""
    widest: float = 1.0
    """Largest variance of a voxel's χ that the last steps know, over the usual one; 1 for one for all."""
    uncertainty: bool = True
    """Whether U-nets tell how far off each source may be."""
    padding: float = 1.5
    """Size of the grid of data steps over that of a crop."""
    prior_ppb: float = 30.0
    """SD that U-nets are taken to leave sources uncertain by, to start training from."""
    r2prime_error_ppb: float = 5.0
    """Error of R2'/D_r beyond its noise, to start training from."""
    field_error_ppb: float = 2.0
    """Error of the field beyond its noise, to start training from."""

    def __post_init__(self) -> None:
        sizes = (self.prior_ppb, self.r2prime_error_ppb, self.field_error_ppb)
        padded = 1 <= self.padding < math.inf
        counted = self.passes >= 1 and min(self.inverse_steps, self.last_steps) >= 0
        if (
            not counted
            or not 1 <= self.widest < math.inf
            or not padded
            or not all(0 < size < math.inf for size in sizes)
        ):
            raise InputError(
                "proximal",
                found=f"{self}",
                expected="one pass or more, no number of steps below 0, a padding and a widest variance of 1 "
                "or more, and a prior and errors above 0",
                fix="Correct the options.",
            )


class UnrolledProximal(nn.Module):
    """The network; sources are in ppm, z-scores only inside the U-nets.

    Parameters
    ----------
    unet
        Width, depth, normalisation of each U-net.
    config
        Passes and where weights start.
    mean_ppm, sd_ppm
        Statistics in the training data of R2'/D_r, field, χ_pos and χ_neg; of field and χ for a network that
        makes χ of the field alone.
    noise
        Whether maps of the rows' noise come with them, weigh them and are shown to the U-nets.

    Attributes
    ----------
    log_weights
        Logarithms of factors on the weights of the rows in each data step, shape (steps, rows); the last
        ones have one in common.
    log_errors
        Logarithms of the errors in ppm that add to the noise of the rows, shape (rows,).
    """

    def __init__(
        self,
        unet: UNetConfig,
        config: UnrolledProximalConfig,
        mean_ppm: Sequence[float],
        sd_ppm: Sequence[float],
        *,
        noise: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.noise = config, noise
        # As many sources come out as rows go in: χ_pos and χ_neg of R2' and field, or χ of the field.
        rows = self.row_count = len(mean_ppm) // 2
        self.rows, self.scale = Scale(mean_ppm[:rows], sd_ppm[:rows]), Scale(mean_ppm[rows:], sd_ppm[rows:])
        inputs = (3 if noise else 2) * rows + (config.inverse_steps > 0)
        count, each = (1, config.passes) if config.tied else (config.passes, 1)
        outputs = 2 * rows if config.uncertainty else rows
        self.unets = nn.ModuleList([UNet(inputs, outputs, unet, each) for _ in range(count)])
        self.log_weights = nn.Parameter(torch.zeros(config.passes + (config.last_steps > 0), rows))
        errors = (config.r2prime_error_ppb, config.field_error_ppb)[-rows:]
        self.log_errors = nn.Parameter(torch.tensor(errors).div(1000).log())

    def forward(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> Tensor:
        """Return what the last pass makes; arguments as of `intermediate_estimates`."""
        return self.intermediate_estimates(y_ppm, mask, phi)[-1]

    def intermediate_estimates(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> list[Tensor]:
        """Return what each U-net makes, and then what the last data steps make of it.

        Parameters
        ----------
        y_ppm
            The rows [R2'/D_r,pos, field] or [field], then, with `noise`, their standard deviations, 0 where
            nothing was measured; shape (batch, channel, i, j, k).
        mask
            Where sources may be, bool, shape (batch, 1, i, j, k).
        phi
            Φ on this grid, measured within the mask.

        Returns
        -------
        list of Tensor
            Each of shape (batch, source, i, j, k) in ppm, 0 outside the mask. With `uncertainty` the last has
            twice the channels: after the sources the scale b in ppm of the Laplace distribution of the
            error of each.
        """
        count = self.row_count
        measured = mask & (y_ppm[:, count:] > 0) if self.noise else mask
        rows = y_ppm[:, :count] * measured
        sd = self._errors_ppm(y_ppm, measured)
        # The prior's variance over that of the noise.
        weights = (self.config.prior_ppb / 1000 / sd).square() * measured
        shown = [self.rows(rows, measured)]
        if self.config.inverse_steps:
            shown.append(self._inverse(y_ppm, measured, phi) * mask)
        if self.noise:
            shown.append((sd * (1000 / self.config.prior_ppb)).log() * mask)
        z = self.scale.undo(torch.zeros_like(rows), mask)
        found: list[Tensor] = []
        told: Tensor | None = None
        for number in range(self.config.passes):
            if self.config.data_steps:
                z = self._data_step(rows, z, weights, told, number, phi) * mask
            x = self.scale(z, mask)
            tied = self.config.tied
            made = self.unets[0 if tied else number](torch.cat((x, *shown), dim=1), number if tied else 0)
            change = made[:, : self.row_count]
            z = self.scale.undo(x + change, mask)
            found.append(z)
            if self.config.uncertainty:
                told = _bounded(made[:, count:].to(z.dtype))
        for step in range(self.config.last_steps):
            z = self._data_step(rows, z, weights, told, self.config.passes, phi, step > 0) * mask
        if self.config.last_steps:
            found.append(z)
        if told is not None:
            found[-1] = torch.cat((found[-1], told.exp() * (0.1 * self.scale.sd) * mask), dim=1)
        return found

    def _errors_ppm(self, y_ppm: Tensor, measured: Tensor) -> Tensor:
        """SD of all that a row may be wrong by, shape (batch, row, i, j, k)."""
        beyond = self.log_errors.exp().reshape(-1, 1, 1, 1)
        if not self.noise:
            return beyond.expand_as(y_ppm[:, : self.row_count])
        return torch.where(measured, torch.hypot(y_ppm[:, self.row_count :], beyond), UNKNOWN_PPM)

    def _data_step(
        self,
        rows: Tensor,
        z: Tensor,
        weights: Tensor,
        told: Tensor | None,
        number: int,
        phi: Separation,
        further: bool = False,
    ) -> Tensor:
        factors = self.log_weights[number].exp()
        field_weights = weights[:, -1]
        best = field_weights.amax((-3, -2, -1), keepdim=True).clamp_min(_SMALLEST_WEIGHT)
        weight_field, trust = factors[-1] * best, field_weights / best
        if self.row_count == 1:
            return phi.field_step(rows[:, 0], z[:, 0], weight_field, trust).unsqueeze(1)
        prior = None
        if self.config.adaptive:
            prior = self._prior(told, z)
            if told is None:
                prior = prior + self._excess(rows[:, 0] - phi.total(z), weights[:, 0], phi.ratio)
        weight = factors[0] * weights[:, 0]
        widest = self.config.widest if prior is not None and number == self.config.passes else 1.0
        return phi.data_step(
            rows[:, 0], rows[:, 1], z, weight, weight_field, trust, prior, widest, only_wide=further
        )

    def _prior(self, told: Tensor | None, z: Tensor) -> Tensor:
        """Variance of each source over that which the weights are of.

        As the U-net before tells, and before the first one that in the training data.
        """
        variance = (self.scale.sd * (1000 / self.config.prior_ppb)).square()
        return variance.expand_as(z) if told is None else variance * (2 * told).exp()

    def _excess(self, residual: Tensor, weight: Tensor, ratio: float | Tensor) -> Tensor:
        """Variance by which R2' is off beyond its noise, in each source by its variance in the training data.

        As Lee's filter has it (1980, 10.1109/TPAMI.1980.4766994): the noise's variance is taken off the mean
        square in a small neighbourhood, and what is left must be in the sources.
        """
        unit = self.config.prior_ppb / 1000
        known = weight > 0
        excess = torch.where(known, (residual / unit).square() - 1 / weight.clamp_min(_SMALLEST_WEIGHT), 0)
        nearby = torch.stack((excess, known.to(excess.dtype)), 1)
        for axis in range(3):
            wide = _NEIGHBOURS if nearby.shape[axis + 2] >= _NEIGHBOURS else 1
            size = [wide if a == axis else 1 for a in range(3)]
            nearby = functional.avg_pool3d(nearby, size, 1, [n // 2 for n in size])
        mean = nearby[:, 0] / nearby[:, 1].clamp_min(1 / _NEIGHBOURS**3)
        variance = self.scale.sd.square()
        of_total = variance[0] + ratio**2 * variance[1]
        return variance * (mean.clamp_min(0) / of_total).unsqueeze(1)

    @torch.no_grad()
    def _inverse(self, y_ppm: Tensor, measured: Tensor, phi: Separation) -> Tensor:
        """χ by a fixed number of field steps from 0, in units of the sources' SD; learns nothing."""
        last = self.row_count - 1
        sd = torch.full_like(y_ppm[:, last], self.config.field_error_ppb / 1000)
        if self.noise:
            sd = torch.hypot(y_ppm[:, last + self.row_count], sd)
        weight = (self.config.prior_ppb / 1000 / sd).square() * measured[:, -1]
        best = weight.amax((-3, -2, -1), keepdim=True).clamp_min(_SMALLEST_WEIGHT)
        field = y_ppm[:, last] * measured[:, -1]
        trust = weight / best
        chi = phi.field_step(field, None, best, trust)
        for _ in range(1, self.config.inverse_steps):
            chi = phi.field_step(field, chi, best, trust)
        return chi.unsqueeze(1) / self.scale.sd.square().sum().sqrt()


def _bounded(log_scale: Tensor) -> Tensor:
    above = functional.leaky_relu(log_scale + _LARGEST_LOG_SCALE, _LEAK) - _LARGEST_LOG_SCALE
    return above.clamp_max(_LARGEST_LOG_SCALE)
