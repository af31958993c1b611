"""Fine-tuning of a shipped network on one participant without labels, by fields of other orientations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from chisep import metrics
from chisep.api.left_out_orientation import Scans, prediction_error
from chisep.networks.brain_box import BrainBox
from chisep.networks.inference import NetworkOptions, intermediate_estimates, measured_channels
from chisep.networks.weights import LoadedNetwork, load
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.progress import Progress
from chisep.types import Maps, Volume

METHOD = "unrolled"


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of the fine-tuning on one participant."""

    adaptation_steps: int = 0
    """Steps of each fine-tuning; 0 for none."""
    adaptation_left_out: int = 1
    """Number of orientations that are left out in turn, from the last one."""
    adaptation_rate: float = 3e-5
    """Learning rate of Adam."""


def adapted_errors(
    scans: Scans, true: Mapping[str, Volume], config: AdaptationConfig, progress: Progress | None = None
) -> dict[str, Any]:
    """Leave one orientation out, adapt the network to the others, and predict its field before and after.

    Parameters
    ----------
    scans
        Orientations of one participant.
    true
        True `chi_pos` and `chi_neg` in ppm, shape (i, j, k).
    config
        Settings.
    progress
        Called before every orientation.

    Returns
    -------
    dict
        Errors in % of the field that was left out and of the sources, before and after: the mean over the
        orientations that the network saw. `Change`: after minus before, mean over the orientations that were
        left out with its 95 % t-interval where there are two or more.
    """
    rows: list[dict[str, Any]] = []
    count = min(config.adaptation_left_out, len(scans.names))
    for number in reversed(range(len(scans.names) - count, len(scans.names))):
        name = scans.names[number]
        if progress is not None:
            progress(f"adaptation without {name}", len(rows), count)
        seen = [maps for other, maps in enumerate(scans.maps) if other != number]
        network = load(METHOD)
        field_before, before = _errors(network, seen, scans.maps[number], scans.common, true)
        losses = _adapt(network, seen, scans.common, config)
        field_after, after = _errors(network, seen, scans.maps[number], scans.common, true)
        rows.append(
            {
                "LeftOut": name,
                "FieldBefore": field_before,
                "FieldAfter": field_after,
                "Before": before,
                "After": after,
                "Loss": [round(loss, 4) for loss in losses],
            }
        )
    changes = {
        "field": [row["FieldAfter"] - row["FieldBefore"] for row in rows],
        **{key: [row["After"][key] - row["Before"][key] for row in rows] for key in ("chi_pos", "chi_neg")},
    }
    return {
        "Method": METHOD,
        "Steps": config.adaptation_steps,
        "Orientations": rows,
        "Change": {key: _with_interval(values) for key, values in changes.items()},
    }


def _with_interval(values: Sequence[float]) -> dict[str, float | None]:
    mean, low, high = sum(values) / len(values), None, None
    if len(values) > 1:
        low, high = (float(x) for x in stats.ttest_1samp(values, 0).confidence_interval())
    return {key: x if x is None else round(x, 3) for key, x in (("mean", mean), ("low", low), ("high", high))}


class _Batch:
    """Input of the network for one orientation, in its box."""

    def __init__(self, trained: LoadedNetwork, maps: Maps) -> None:
        self.box = BrainBox(maps.sources_mask, maps.grid)
        channels = measured_channels(maps, trained.config.inputs, NetworkOptions())
        self.y = torch.stack([self.box.cut(channels[name]) for name in trained.config.inputs]) * self.box.mask
        dipole = Dipole(self.box.grid, padding=trained.config.padding(whole=True))
        ratio = 1.0 if maps.relaxivity is None else maps.relaxivity.ratio
        self.phi, self.ratio = Separation(dipole, ratio, self.box.mask[None]), ratio

    def sources(self, trained: LoadedNetwork) -> Tensor:
        """χ_pos and χ_neg in ppm, shape (2, i, j, k), with a gradient."""
        mask = self.box.mask[None, None]
        estimates = trained.network.intermediate_estimates(self.y[None], mask, self.phi)
        return self.box.restore(estimates[-1][0, :2])


def _adapt(
    trained: LoadedNetwork, seen: Sequence[Maps], common: Volume, config: AdaptationConfig
) -> list[float]:
    """Fine-tune in place; returns the loss of every step."""
    inputs = trained.config.inputs
    batches = [_Batch(trained, maps) for maps in seen]
    dipoles = [Dipole(maps.grid) for maps in seen]
    optimizer = torch.optim.Adam(trained.network.parameters(), lr=config.adaptation_rate)
    losses = []
    for step in range(config.adaptation_steps):
        batch = batches[step % len(batches)]
        made = batch.sources(trained)
        chi = made[0] - made[1]
        loss = torch.zeros(())
        for maps, dipole in zip(seen, dipoles, strict=True):
            residual = (dipole.apply(chi) - maps.field_ppm)[common] / _sigma(maps)[common]
            loss = loss + _robust(residual) / len(seen)
        whole = batch.box.restore(batch.y)
        rate, of_rate = (whole[inputs.index(name)][common] for name in ("r2prime", "r2prime_sigma"))
        total = (made[0] + batch.ratio * made[1])[common]
        loss = loss + _robust((total - rate) / of_rate.clamp_min(1e-4))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained.network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _sigma(maps: Maps) -> Volume:
    if not isinstance(maps.field_sigma_ppm, Tensor):
        raise TypeError("aligned fields have a map of σ")
    typical = float(maps.field_sigma_ppm[maps.mask].median())
    return maps.field_sigma_ppm.clamp_min(0.25 * typical)


def _robust(residual: Tensor) -> Tensor:
    """Charbonnier loss: quadratic for small residuals, linear for large ones."""
    return (residual.square() + 1).sqrt().sub(1).mean()


def _errors(
    trained: LoadedNetwork, seen: Sequence[Maps], left_out: Maps, common: Volume, true: Mapping[str, Volume]
) -> tuple[float, dict[str, float]]:
    """Mean errors in % of the predicted field, and of χ_pos and χ_neg."""
    of_field, of_sources = [], []
    for maps in seen:
        channels = measured_channels(maps, trained.config.inputs, NetworkOptions())
        ratio = 1.0 if maps.relaxivity is None else maps.relaxivity.ratio
        found = intermediate_estimates(
            trained, channels, maps.sources_mask, maps.grid, ratio=ratio, last_only=True
        )[-1][:2].clamp_min(0)
        of_field.append(prediction_error(found[0] - found[1], left_out, common))
        of_sources.append(
            [
                metrics.nrmse_percent(one.numpy(), true[key].numpy(), common.numpy())
                for one, key in zip(found, ("chi_pos", "chi_neg"), strict=True)
            ]
        )
    pos, neg = (sum(values) / len(values) for values in zip(*of_sources, strict=True))
    means = {"chi_pos": round(pos, 3), "chi_neg": round(neg, 3)}
    return round(sum(of_field) / len(of_field), 3), means
