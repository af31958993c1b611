"""What a network is, in a config; and how to build it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from chisep.errors import InputError
from chisep.models.chisepnet import OnePass
from chisep.models.proximal import Proximal, ProximalConfig
from chisep.models.unet import UNetConfig
from chisep.models.unrolled import Unrolled, UnrolledConfig

Channel = Literal["field", "qsm", "r2prime", "r2star", "chi", "chi_pos", "chi_neg"]
"""Maps that go in or come out, all in ppm: local field; χ made by a QSM method; R2'/D_r,pos; R2*/D_r,pos;
χ; χ_pos; χ_neg."""
Statistics = Mapping[str, tuple[float, float]]
"""Mean and standard deviation in ppm of each channel in the brains that a network was trained on."""
Network = OnePass | Unrolled | Proximal
SOURCES: tuple[Channel, Channel] = ("chi_pos", "chi_neg")
PHI_ROWS: tuple[Channel, Channel, Channel] = ("qsm", "r2prime", "field")
"""Order of the rows of Φ, which the unrolled network needs."""
MEASURED_ROWS: tuple[Channel, Channel] = ("r2prime", "field")
"""Rows of Φ without a χ map, which the proximal network needs."""


@dataclass(frozen=True)
class NetworkConfig:
    """Channels in, channels out, and what lies between."""

    inputs: tuple[Channel, ...]
    """Maps that go in."""
    outputs: tuple[Channel, ...]
    """Maps that come out."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """The U-net."""
    unrolled: UnrolledConfig | None = None
    """Physics steps and passes of the U-net in turn; one pass without physics if None."""
    proximal: ProximalConfig | None = None
    """Exact data steps and passes of U-nets in turn."""
    b0_along_z: bool = False
    """Whether it knows heads turned so that B0 is along the third axis, in training and after: a U-net is not
    told where B0 is."""

    def __post_init__(self) -> None:
        unknown = {*self.inputs, *self.outputs} - set(get_args(Channel))
        empty = not self.inputs or not self.outputs
        rows = PHI_ROWS if self.proximal is None else MEASURED_ROWS
        physics = self.unrolled is not None or self.proximal is not None
        wrong = physics and (self.inputs, self.outputs) != (rows, SOURCES)
        both = self.unrolled is not None and self.proximal is not None
        if unknown or empty or wrong or both:
            raise InputError(
                "network",
                found=f"inputs {self.inputs}, outputs {self.outputs}",
                wanted="channels out of " + ", ".join(get_args(Channel))
                if unknown or empty
                else f"{rows} to {SOURCES} for a network with physics, of one kind",
                remedy="Correct the channels.",
            )


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
    wanted = SOURCES if config.unrolled is not None else config.inputs + config.outputs
    missing = [name for name in wanted if name not in statistics]
    if missing:
        raise InputError(
            "statistics",
            found=f"none of {', '.join(missing)}",
            wanted="mean and SD of every channel",
            remedy="Compute them from the training data.",
        )
    for name in wanted:
        mean, sd = statistics[name]
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise InputError(
                "statistics",
                found=f"mean {mean:g}, SD {sd:g} ppm of {name}",
                wanted="finite numbers, and maps that are not of one value everywhere",
                remedy="Look at the maps of this channel.",
            )

    def of(names: tuple[Channel, ...]) -> tuple[list[float], list[float]]:
        return [statistics[name][0] for name in names], [statistics[name][1] for name in names]

    if config.proximal is not None:
        return Proximal(config.unet, config.proximal, *of(config.inputs + config.outputs))
    if config.unrolled is not None:
        return Unrolled(config.unet, config.unrolled, *of(config.outputs))
    return OnePass(config.unet, *of(config.inputs), *of(config.outputs))
