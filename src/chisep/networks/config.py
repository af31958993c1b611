"""What a network is, in a config; and how to build it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from chisep.errors import InputError
from chisep.networks.single_pass import SinglePass
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradient, UnrolledGradientConfig
from chisep.networks.unrolled_proximal import WHOLE_PADDING, UnrolledProximal, UnrolledProximalConfig

Channel = Literal[
    "field", "qsm", "r2prime", "r2star", "field_sigma", "r2prime_sigma", "chi", "chi_pos", "chi_neg"
]
"""Maps that go in or come out, all in ppm: local field; χ made by a QSM method; R2'/D_r,pos; R2*/D_r,pos;
standard deviations of the noise of field and R2'/D_r,pos, 0 where nothing was measured; χ; χ_pos; χ_neg."""
Statistics = Mapping[str, tuple[float, float]]
"""Mean and standard deviation in ppm of each channel in the brains that a network was trained on."""
Network = SinglePass | UnrolledGradient | UnrolledProximal
SOURCES: tuple[Channel, Channel] = ("chi_pos", "chi_neg")
PHI_ROWS: tuple[Channel, Channel, Channel] = ("qsm", "r2prime", "field")
"""Order of the rows of Φ, which the unrolled network needs."""
MEASURED_ROWS: tuple[Channel, Channel] = ("r2prime", "field")
"""Rows of Φ without a χ map, which the proximal network needs."""
NOISE: Mapping[Channel, Channel] = {"r2prime": "r2prime_sigma", "field": "field_sigma"}
"""Maps → maps of their noise."""


@dataclass(frozen=True)
class NetworkConfig:
    """Channels in, channels out, and what lies between."""

    inputs: tuple[Channel, ...]
    """Maps that go in."""
    outputs: tuple[Channel, ...]
    """Maps that come out."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """The U-net."""
    unrolled: UnrolledGradientConfig | None = None
    """Physics steps and passes of the U-net in turn; one pass without physics if None."""
    proximal: UnrolledProximalConfig | None = None
    """Exact data steps and passes of U-nets in turn."""
    b0_along_z: bool = False
    """Whether it knows heads turned so that B0 is along the third axis, in training and after: a U-net is not
    told where B0 is."""

    def __post_init__(self) -> None:
        known = {*get_args(Channel)} - (set() if self.proximal else {*NOISE.values()})
        unknown = {*self.inputs, *self.outputs} - known
        empty = not self.inputs or not self.outputs
        allowed = self._channels_of_physics()
        wrong = bool(allowed) and (self.inputs, self.outputs) not in allowed
        both = self.unrolled is not None and self.proximal is not None
        if unknown or empty or wrong or both:
            raise InputError(
                "network",
                found=f"inputs {self.inputs}, outputs {self.outputs}",
                expected="channels out of " + ", ".join(name for name in get_args(Channel) if name in known)
                if unknown or empty
                else " or ".join(f"{rows} to {sources}" for rows, sources in allowed)
                + " for a network with physics, of one kind",
                fix="Correct the channels.",
            )

    def _channels_of_physics(self) -> list[tuple[tuple[Channel, ...], tuple[Channel, ...]]]:
        """List inputs and outputs that a network with physics can have; none for one without."""
        if self.proximal is not None:
            rows: list[tuple[tuple[Channel, ...], tuple[Channel, ...]]] = [
                (MEASURED_ROWS, SOURCES),
                (("field",), ("chi",)),
            ]
            return [
                (some, sources)
                for known, sources in rows
                for some in (known, known + tuple(NOISE[row] for row in known))
            ]
        return [] if self.unrolled is None else [(PHI_ROWS, SOURCES)]

    def padding(self, *, whole: bool) -> float:
        """Size that the dipole of its physics is padded to, over that of a crop or of a whole volume."""
        if self.proximal is None:
            return 2.0
        return WHOLE_PADDING if whole else self.proximal.padding

    @property
    def scaled(self) -> tuple[Channel, ...]:
        """Channels whose statistics a network needs."""
        if self.unrolled is not None:
            return self.outputs
        return tuple(name for name in self.inputs if name not in NOISE.values()) + self.outputs


def build(config: NetworkConfig, statistics: Statistics) -> Network:
    """Make a network with random weights.

    Parameters
    ----------
    config
        What it is.
    statistics
        Mean and SD in ppm of all its channels.

    Raises
    ------
    InputError
        If statistics of a channel are missing, or its SD is not above 0.
    """
    wanted = config.scaled
    missing = [name for name in wanted if name not in statistics]
    if missing:
        raise InputError(
            "statistics",
            found=f"none of {', '.join(missing)}",
            expected="mean and SD of every channel",
            fix="Compute them from the training data.",
        )
    for name in wanted:
        mean, sd = statistics[name]
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise InputError(
                "statistics",
                found=f"mean {mean:g}, SD {sd:g} ppm of {name}",
                expected="finite numbers, and maps that are not of one value everywhere",
                fix="Look at the maps of this channel.",
            )

    def of(names: tuple[Channel, ...]) -> tuple[list[float], list[float]]:
        return [statistics[name][0] for name in names], [statistics[name][1] for name in names]

    if config.proximal is not None:
        noise = not {*NOISE.values()}.isdisjoint(config.inputs)
        return UnrolledProximal(config.unet, config.proximal, *of(wanted), noise=noise)
    if config.unrolled is not None:
        return UnrolledGradient(config.unet, config.unrolled, *of(config.outputs))
    return SinglePass(config.unet, *of(config.inputs), *of(config.outputs))
