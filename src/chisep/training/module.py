"""Lightning module: training and validation steps, optimiser, learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, StepLR

from chisep.errors import InputError
from chisep.networks.config import NetworkConfig, Statistics, build
from chisep.networks.unrolled_gradient import UnrolledGradient
from chisep.training.data import Example
from chisep.training.losses import LossConfig, label_loss, laplace_loss, loss_terms, total_loss

_PHYSICS = ("alpha", "log_weights", "log_errors")
"""Parameters of gradient and DC steps."""


@dataclass(frozen=True)
class OptimiserConfig:
    """RMSprop with a stepwise decay of the learning rate."""

    learning_rate: float = 3e-4
    """Initial learning rate of the network's weights."""
    alpha_learning_rate: float = 1e-2
    """Initial learning rate of the step size α, or of the weights of DC steps, which form their own parameter
    group: they hardly change at the rate of the network."""
    decay: float = 0.98
    """Decay factor of both learning rates after every `decay_steps` steps."""
    decay_steps: int = 1000
    """Steps between two decays."""
    warm_up_steps: int | None = None
    """Warm-up: steps over which both learning rates rise to their initial value. The first steps of RMSprop
    are up to ten times as long as later ones, which harms weights that are already trained."""
    average_steps: int | None = None
    """Exponential moving average of weights and norms over about so many of the last steps; the average is
    evaluated and saved."""

    def __post_init__(self) -> None:
        if min(value for value in vars(self).values() if value is not None) <= 0:
            raise InputError(
                "optimiser", found=f"{self}", expected="numbers above 0", fix="Correct the option."
            )


class TrainingModule(pl.LightningModule):
    """Train a network.

    Parameters
    ----------
    network
        Config; the network is built here with random weights.
    statistics
        Mean and SD in ppm of its channels.
    loss
        Weights of the terms.
    optimiser
        Learning rates.
    """

    def __init__(
        self, network: NetworkConfig, statistics: Statistics, loss: LossConfig, optimiser: OptimiserConfig
    ) -> None:
        super().__init__()
        self.config, self.loss_config, self.optimiser = network, loss, optimiser
        self.network = build(network, statistics)

    def training_step(self, batch: Example, _: int) -> Tensor:
        """Compute the loss of a batch."""
        terms = self._terms(batch)
        loss = total_loss(terms, self.loss_config)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.mask))
        means = {f"loss_{name}": term.mean() for name, term in terms.items()}
        self.log_dict(means, batch_size=len(batch.mask))
        if isinstance(self.network, UnrolledGradient):
            self.log("alpha", self.network.alpha.detach().clone(), prog_bar=True)
        return loss

    def validation_step(self, batch: Example, _: int) -> None:
        """Compute the loss of a validation batch."""
        loss = total_loss(self._terms(batch), self.loss_config)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch.mask), sync_dist=True)

    def _terms(self, batch: Example) -> dict[str, Tensor]:
        dipole = batch.dipole(self.config.padding(whole=False))
        *earlier, last = self.network.intermediate_estimates(batch.inputs, batch.mask, batch.phi(dipole))
        count = len(self.config.outputs)
        terms = loss_terms(
            last[:, :count], batch.targets, batch.mask, self.config.outputs, dipole, self.loss_config
        )
        if self.loss_config.passes and earlier:
            losses = [label_loss(x, batch.targets, batch.mask) for x in earlier]
            terms["passes"] = torch.stack(losses).mean(0)
        if self.loss_config.uncertainty and last.shape[1] > count:
            terms["uncertainty"] = laplace_loss(last[:, :count], last[:, count:], batch.targets, batch.mask)
        return terms

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """RMSprop with a group for the parameters of DC steps; warm-up, if any, then stepwise decay."""
        alpha = [p for name, p in self.network.named_parameters() if name in _PHYSICS]
        rest = [p for name, p in self.network.named_parameters() if name not in _PHYSICS]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": self.optimiser.learning_rate}]
        if alpha:
            groups.append({"params": alpha, "lr": self.optimiser.alpha_learning_rate})
        optimiser = torch.optim.RMSprop(groups)
        schedule: LRScheduler = StepLR(optimiser, self.optimiser.decay_steps, self.optimiser.decay)
        if (steps := self.optimiser.warm_up_steps or 1) > 1:
            rise = LinearLR(optimiser, start_factor=1 / steps, total_iters=steps - 1)
            schedule = ChainedScheduler([schedule, rise], optimiser)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
