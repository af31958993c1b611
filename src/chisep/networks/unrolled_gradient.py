"""Unrolled χ-sepnet-R2': gradient steps that alternate with one shared U-net.

    x̂₀ = 0,  x̂ᵢ₊₁ = P_θ(α Φᴴy + (I − α ΦᴴΦ) x̂ᵢ)

(Eq. 2.5 of Kim K.W., "Enhanced χ-sepnet with Physics-Informed Unrolling", Seoul National University,
2023; the scheme, and α = 4 to start from, are LPCNN's: Lai 2020, 10.1007/978-3-030-59713-9_13.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chisep.errors import InputError
from chisep.networks.unet import CascadeBatchNorm, Scale, UNet, UNetConfig
from chisep.physics.separation import Separation


@dataclass(frozen=True)
class UnrolledGradientConfig:
    """Number of cascades (unrolled iterations), and how they are trained."""

    iterations: int = 10
    """Cascades: pairs of a gradient step and the U-net."""
    alpha: float = 4.0
    """Initial step size α; a gradient step alone is stable below 9/13."""
    qsm_row: bool = True
    """Whether the gradient step uses χ_QSM, the first row of y."""
    checkpoint: bool = False
    """Gradient checkpointing: recompute the activations in the backward pass, to save memory."""
    gradient_iterations: int | None = None
    """Iterations, counted from the last, that gradients flow through; all if None."""

    def __post_init__(self) -> None:
        last = self.gradient_iterations
        if self.iterations < 1 or (last is not None and not 1 <= last <= self.iterations):
            raise InputError(
                "iterations",
                found=f"{self.iterations}, gradients through {'all' if last is None else last}",
                expected="1 or more, and gradients through 1 to all of them",
                fix="Correct the options.",
            )


class UnrolledGradient(nn.Module):
    """The unrolled network; between iterations χ_pos and χ_neg are in ppm, z-scores only inside P_θ.

    Parameters
    ----------
    unet
        Width, depth, normalisation of the one U-net of all iterations.
    config
        Number of iterations, start of α.
    mean_ppm, sd_ppm
        Statistics of χ_pos and χ_neg in the training data.

    Attributes
    ----------
    alpha
        The learned step size, a parameter without axes.
    """

    def __init__(
        self,
        unet: UNetConfig,
        config: UnrolledGradientConfig,
        mean_ppm: Sequence[float],
        sd_ppm: Sequence[float],
    ) -> None:
        super().__init__()
        self.config = config
        self.scale = Scale(mean_ppm, sd_ppm)
        self.unet = UNet(len(mean_ppm), len(mean_ppm), unet, config.iterations)
        self.alpha = nn.Parameter(torch.tensor(float(config.alpha)))

    def forward(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> Tensor:
        """χ_pos and χ_neg after the last iteration; arguments as of `intermediate_estimates`."""
        return self.intermediate_estimates(y_ppm, mask, phi)[-1]

    def intermediate_estimates(self, y_ppm: Tensor, mask: Tensor, phi: Separation) -> list[Tensor]:
        """Every x̂ᵢ from i = 1.

        Parameters
        ----------
        y_ppm
            [χ_QSM, R2'/D_r,pos, field], the rows of Φ, shape (batch, 3, i, j, k).
        mask
            Brain, bool, shape (batch, 1, i, j, k).
        phi
            Φ on this grid, measured within the mask.

        Returns
        -------
        list of Tensor
            Each of shape (batch, 2, i, j, k) in ppm, 0 outside the mask.
        """
        rows = y_ppm.new_tensor([float(self.config.qsm_row), 1.0, 1.0]).reshape(3, 1, 1, 1)

        def step(x: Tensor, number: int) -> Tensor:
            # Eq. 2.5 with Φᴴ drawn together. Physics stays in single precision whatever the network runs in.
            descended = x + self.alpha * phi.adjoint(rows * (y_ppm - phi.apply(x)))
            return self.scale.undo(self.unet(self.scale(descended, mask), number), mask)

        config = self.config
        trained_from = config.iterations - (config.gradient_iterations or config.iterations)
        x = torch.zeros_like(y_ppm[:, :2])
        estimates: list[Tensor] = []
        for number in range(config.iterations):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= trained_from):
                if config.checkpoint and torch.is_grad_enabled():
                    x = checkpoint(step, x, number, use_reentrant=False, context_fn=self._checkpoint_contexts)
                else:
                    x = step(x, number)
            estimates.append(x)
        return estimates

    def _checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _kept_statistics(self.unet)


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics of batch norm while activations that they have seen are computed again."""
    norms = [m for m in module.modules() if isinstance(m, CascadeBatchNorm | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
