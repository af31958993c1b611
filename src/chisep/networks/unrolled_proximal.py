"""Unrolled proximal χ-sepnet: exact data-consistency (DC) steps and U-nets, weighted by the scan's noise.

    xᵢ = argmin_x ½ ‖W^½ (Φx − y)‖² + ½ ‖Pᵢ₋₁^−½ (x − zᵢ₋₁)‖²,  zᵢ, Pᵢ = xᵢ + U(xᵢ, y, W), V(xᵢ, y, W)

with the rows R2'/D_r and field of Φ. P is the predicted variance of each source in each voxel, from the
preceding U-net: where it is small (healthy tissue) the prior dominates, where it is large (a lesion) the
measurement does. A gradient step of one learned size (Eq. 2.5 of the thesis) is stable below 9/13 only and
weights both rows alike, although the field is ten times more precise than R2'. The exact DC step has a weight
for each row and no such limit. W is the inverse variance of the noise: the noise map of the scan, plus a
learned variance of errors that no noise map contains (residual background field, registration, D_r). U and V
are the two halves of the output of a U-net.
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
"""Padded size of DC steps over the size of a whole volume. Wrap-around of the field is then 0.2 ppb, far
below the noise of a field, and transforms have a quarter of the points of those at twice the size. A crop has
sources up to its edges and needs more padding."""
UNKNOWN_PPM = 1.0
"""Noise SD of voxels without a measurement; larger than in any map."""
_LARGEST_LOG_SCALE = 6.0
_LEAK = 0.1
"""Slope of the log scale below its minimum; with slope 0, values below it would get no gradient."""
_SMALLEST_WEIGHT = 1e-12
_NEIGHBOURS = 5
"""Edge in voxels of the neighbourhood from which the excess error of R2' is estimated."""


@dataclass(frozen=True)
class UnrolledProximalConfig:
    """Cascades of DC steps and U-nets, and the initial weights of the steps."""

    passes: int = 2
    """Cascades: pairs of a DC step and a U-net."""
    tied: bool = False
    """One U-net for all cascades instead of one each."""
    data_steps: bool = True
    """Whether cascades have a DC step; without, U-nets follow each other."""
    adaptive: bool = True
    """Whether the prior variance of each voxel is that predicted by the preceding U-net (in the first step:
    the error of R2' beyond its noise); otherwise one variance for all voxels."""
    inverse_steps: int = 3
    """Field steps of the unregularised field inversion that is an input of the U-nets; 0 for none."""
    last_steps: int = 1
    """Final DC steps, which reduce underestimation; those after the first act on high-uncertainty voxels
    only."""
    widest: float = 1.0
    """Maximum prior variance ratio of a voxel in the final DC steps; 1 for one variance in all voxels."""
    uncertainty: bool = True
    """Whether U-nets predict the uncertainty of each source."""
    padding: float = 1.5
    """Padded size of DC steps over the size of a crop."""
    learned_errors: bool = True
    """Whether the errors beyond the noise are learned; otherwise they keep their initial values."""
    cg_iterations: int = 0
    """Conjugate-gradient iterations after each closed-form DC step, to solve it with the noise of every voxel
    and the prior variance of every voxel; 0 for the closed form alone."""
    data_weight: float = 1.0
    """Initial factor on the weights of the rows in each DC step; learned."""
    last_cg_iterations: int | None = None
    """The same for the final DC steps; `cg_iterations` if None."""
    prior_ppb: float = 30.0
    """Initial SD of the prior: the uncertainty of sources after a U-net."""
    r2prime_error_ppb: float = 5.0
    """Initial error of R2'/D_r beyond its noise."""
    field_error_ppb: float = 2.0
    """Initial error of the field beyond its noise."""

    def __post_init__(self) -> None:
        sizes = (self.prior_ppb, self.r2prime_error_ppb, self.field_error_ppb, self.data_weight)
        padded = 1 <= self.padding < math.inf
        counts = (self.inverse_steps, self.last_steps, self.cg_iterations, self.last_cg_iterations or 0)
        counted = self.passes >= 1 and min(counts) >= 0
        if (
            not counted
            or not 1 <= self.widest < math.inf
            or not padded
            or not all(0 < size < math.inf for size in sizes)
        ):
            raise InputError(
                "proximal",
                found=f"{self}",
                expected="one cascade (passes) or more, no number of steps below 0, a padding and a maximum "
                "prior variance ratio (widest) of 1 or more, and a prior, errors and a weight above 0",
                fix="Correct the options.",
            )


class UnrolledProximal(nn.Module):
    """Unrolled proximal network; sources are in ppm, z-scores only inside the U-nets.

    Parameters
    ----------
    unet
        Width, depth, normalisation of each U-net.
    config
        Cascades and initial weights.
    mean_ppm, sd_ppm
        Statistics in the training data of R2'/D_r, field, χ_pos and χ_neg; of field and χ for a network from
        the field to χ.
    noise
        Whether noise maps of the rows are inputs: they weight the rows, and the U-nets see them.

    Attributes
    ----------
    log_weights
        Logarithms of factors on the weights of the rows in each DC step, shape (steps, rows); the final steps
        share one.
    log_errors
        Logarithms of the errors in ppm that are added to the noise of the rows, shape (rows,).
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
        # As many sources as rows: χ_pos and χ_neg from R2' and field, or χ from the field.
        rows = self.row_count = len(mean_ppm) // 2
        self.rows, self.scale = Scale(mean_ppm[:rows], sd_ppm[:rows]), Scale(mean_ppm[rows:], sd_ppm[rows:])
        inputs = (3 if noise else 2) * rows + (config.inverse_steps > 0)
        count, each = (1, config.passes) if config.tied else (config.passes, 1)
        outputs = 2 * rows if config.uncertainty else rows
        self.unets = nn.ModuleList([UNet(inputs, outputs, unet, each) for _ in range(count)])
        self.log_weights = nn.Parameter(torch.zeros(config.passes + (config.last_steps > 0), rows))
        self.log_errors = nn.Parameter(torch.zeros(rows), requires_grad=config.learned_errors)
        self.reset_errors()

    def reset_errors(self) -> None:
        """Set the errors beyond the noise, and the weights of the rows, to those of the config."""
        errors = (self.config.r2prime_error_ppb, self.config.field_error_ppb)[-self.row_count :]
        with torch.no_grad():
            # On the CPU: division on the meta device imports torch's compiler, which takes 3 s.
            self.log_errors.copy_(torch.tensor(errors, device="cpu").div(1000).log())
            self.log_weights.fill_(math.log(self.config.data_weight))

    def forward(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> Tensor:
        """Return the final estimate; arguments as of `intermediate_estimates`."""
        return self.intermediate_estimates(y_ppm, mask, phi)[-1]

    def intermediate_estimates(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> list[Tensor]:
        """Return the estimate after each U-net, then that after the final DC steps.

        Parameters
        ----------
        y_ppm
            The rows [R2'/D_r,pos, field] or [field], then, with `noise`, their standard deviations, 0 where
            nothing was measured; shape (batch, channel, i, j, k).
        mask
            Voxels that may have sources, bool, shape (batch, 1, i, j, k).
        phi
            Φ on this grid, measured within the mask.

        Returns
        -------
        list of Tensor
            Each of shape (batch, source, i, j, k) in ppm, 0 outside the mask. With `uncertainty` the last has
            twice the channels: the sources, then the predicted uncertainty of each, the scale b in ppm of a
            Laplace distribution.
        """
        count = self.row_count
        measured = mask & (y_ppm[:, count:] > 0) if self.noise else mask
        rows = y_ppm[:, :count] * measured
        sd = self._errors_ppm(y_ppm, measured)
        # The prior's variance over that of the noise.
        weights = (self.config.prior_ppb / 1000 / sd).square() * measured
        unet_inputs = [self.rows(rows, measured)]
        if self.config.inverse_steps:
            unet_inputs.append(self._inverse(y_ppm, measured, phi) * mask)
        if self.noise:
            unet_inputs.append((sd * (1000 / self.config.prior_ppb)).log() * mask)
        z = self.scale.undo(torch.zeros_like(rows), mask)
        estimates: list[Tensor] = []
        log_scale: Tensor | None = None
        for number in range(self.config.passes):
            if self.config.data_steps:
                z = self._dc_step(rows, z, weights, log_scale, number, phi) * mask
            x = self.scale(z, mask)
            tied = self.config.tied
            unet, cascade = (0, number) if tied else (number, 0)
            made = self.unets[unet](torch.cat((x, *unet_inputs), dim=1), cascade)
            change = made[:, : self.row_count]
            z = self.scale.undo(x + change, mask)
            estimates.append(z)
            if self.config.uncertainty:
                log_scale = _bounded(made[:, count:].to(z.dtype))
        for step in range(self.config.last_steps):
            z = self._dc_step(rows, z, weights, log_scale, self.config.passes, phi, step > 0) * mask
        if self.config.last_steps:
            estimates.append(z)
        if log_scale is not None:
            estimates[-1] = torch.cat((estimates[-1], log_scale.exp() * (0.1 * self.scale.sd) * mask), dim=1)
        return estimates

    def _errors_ppm(self, y_ppm: Tensor, measured: Tensor) -> Tensor:
        """SD of the total error of a row, shape (batch, row, i, j, k)."""
        beyond = self.log_errors.exp().reshape(-1, 1, 1, 1)
        if not self.noise:
            return beyond.expand_as(y_ppm[:, : self.row_count])
        return torch.where(measured, torch.hypot(y_ppm[:, self.row_count :], beyond), UNKNOWN_PPM)

    def _dc_step(
        self,
        rows: Tensor,
        z: Tensor,
        weights: Tensor,
        log_scale: Tensor | None,
        number: int,
        phi: Separation,
        high_uncertainty_only: bool = False,
    ) -> Tensor:
        factors = self.log_weights[number].exp()
        field_weights = weights[:, -1]
        max_weight = field_weights.amax((-3, -2, -1), keepdim=True).clamp_min(_SMALLEST_WEIGHT)
        weight_field, inverse_variance = factors[-1] * max_weight, field_weights / max_weight
        prior = self._prior(log_scale, z) if self.config.adaptive else None
        if self.row_count == 1:
            made = phi.field_step(rows[:, 0], z[:, 0], weight_field, inverse_variance).unsqueeze(1)
            return self._solved(rows, z, factors.reshape(-1, 1, 1, 1) * weights, prior, made, number, phi)
        if prior is not None and log_scale is None:
            prior = prior + self._excess(rows[:, 0] - phi.total(z), weights[:, 0], phi.ratio)
        weight = factors[0] * weights[:, 0]
        max_ratio = self.config.widest if prior is not None and number == self.config.passes else 1.0
        made = phi.data_step(
            rows[:, 0],
            rows[:, 1],
            z,
            weight,
            weight_field,
            inverse_variance,
            prior,
            max_ratio,
            only_wide=high_uncertainty_only,
        )
        return self._solved(rows, z, factors.reshape(-1, 1, 1, 1) * weights, prior, made, number, phi)

    def _solved(
        self,
        rows: Tensor,
        z: Tensor,
        weights: Tensor,
        prior: Tensor | None,
        initial: Tensor,
        number: int,
        phi: Separation,
    ) -> Tensor:
        """Solve the DC step further by conjugate gradients, from its closed form."""
        iterations = self.config.cg_iterations
        if number == self.config.passes and self.config.last_cg_iterations is not None:
            iterations = self.config.last_cg_iterations
        if not iterations:
            return initial
        return phi.posterior_mean(rows, z, weights, prior, initial, iterations)

    def _prior(self, log_scale: Tensor | None, z: Tensor) -> Tensor:
        """Prior variance of each source, relative to that in the weights.

        From the predicted uncertainty of the preceding U-net; before the first one, the variance in the
        training data.
        """
        variance = (self.scale.sd * (1000 / self.config.prior_ppb)).square()
        return variance.expand_as(z) if log_scale is None else variance * (2 * log_scale).exp()

    def _excess(self, residual: Tensor, weight: Tensor, ratio: float | Tensor) -> Tensor:
        """Excess variance of R2' beyond its noise, divided among sources by their variance in training data.

        As in Lee's filter (1980, 10.1109/TPAMI.1980.4766994): the noise variance is subtracted from the mean
        square in a small neighbourhood; the remainder is attributed to the sources.
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
        """χ by a fixed number of field steps from 0, in units of the sources' SD; no gradient."""
        last = self.row_count - 1
        sd = torch.full_like(y_ppm[:, last], self.config.field_error_ppb / 1000)
        if self.noise:
            sd = torch.hypot(y_ppm[:, last + self.row_count], sd)
        weight = (self.config.prior_ppb / 1000 / sd).square() * measured[:, -1]
        max_weight = weight.amax((-3, -2, -1), keepdim=True).clamp_min(_SMALLEST_WEIGHT)
        field = y_ppm[:, last] * measured[:, -1]
        inverse_variance = weight / max_weight
        chi = phi.field_step(field, None, max_weight, inverse_variance)
        for _ in range(1, self.config.inverse_steps):
            chi = phi.field_step(field, chi, max_weight, inverse_variance)
        return chi.unsqueeze(1) / self.scale.sd.square().sum().sqrt()


def _bounded(log_scale: Tensor) -> Tensor:
    above = functional.leaky_relu(log_scale + _LARGEST_LOG_SCALE, _LEAK) - _LARGEST_LOG_SCALE
    return above.clamp_max(_LARGEST_LOG_SCALE)
