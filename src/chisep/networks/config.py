"""Config of a network, and its construction."""

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
"""Input and output maps, all in ppm: local field; χ of a QSM method; R2'/D_r,pos; R2*/D_r,pos; noise maps of
field and R2'/D_r,pos (SD, 0 in voxels without a measurement); χ; χ_pos; χ_neg."""
Statistics = Mapping[str, tuple[float, float]]
"""Mean and standard deviation in ppm of each channel in the brains of the training data."""
Network = SinglePass | UnrolledGradient | UnrolledProximal
SOURCES: tuple[Channel, Channel] = ("chi_pos", "chi_neg")
PHI_ROWS: tuple[Channel, Channel, Channel] = ("qsm", "r2prime", "field")
"""Rows of Φ in the order of the unrolled gradient network."""
MEASURED_ROWS: tuple[Channel, Channel] = ("r2prime", "field")
"""Rows of Φ without a χ map, for the unrolled proximal network."""
NOISE: Mapping[Channel, Channel] = {"r2prime": "r2prime_sigma", "field": "field_sigma"}
"""Noise map of each input map."""


@dataclass(frozen=True)
class NetworkConfig:
    """Input channels, output channels and architecture."""

    inputs: tuple[Channel, ...]
    """Input maps."""
    outputs: tuple[Channel, ...]
    """Output maps."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """The U-net."""
    unrolled: UnrolledGradientConfig | None = None
    """Unrolled gradient network; a single pass of the U-net if this and `proximal` are None."""
    proximal: UnrolledProximalConfig | None = None
    """Unrolled proximal network: cascades of exact data-consistency (DC) steps and U-nets."""
    b0_along_z: bool = False
    """Whether inputs are rotated until B0 is along the third axis, in training and inference: a U-net has no
    input for the B0 direction."""

    def __post_init__(self) -> None:
        known = {*get_args(Channel)} - ({*NOISE.values()} if self.unrolled else set())
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
                + " for an unrolled network, of one kind",
                fix="Correct the channels.",
            )

    def _channels_of_physics(self) -> list[tuple[tuple[Channel, ...], tuple[Channel, ...]]]:
        """List inputs and outputs that an unrolled network can have; empty for a single pass."""
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
        """Return the padded size of the dipole over the size of a crop or of a whole volume."""
        if self.proximal is None:
            return 2.0
        return WHOLE_PADDING if whole else self.proximal.padding

    @property
    def scaled(self) -> tuple[Channel, ...]:
        """Channels whose statistics the network needs."""
        if self.unrolled is not None:
            return self.outputs
        if self.proximal is None:
            return self.inputs + self.outputs
        return tuple(name for name in self.inputs if name not in NOISE.values()) + self.outputs


def build(config: NetworkConfig, statistics: Statistics) -> Network:
    """Build a network with random weights.

    Parameters
    ----------
    config
        Architecture and channels.
    statistics
        Mean and SD in ppm of all its channels.

    Raises
    ------
    InputError
        If statistics of a channel are missing, or its SD is not above 0.
    """
    scaled = config.scaled
    missing = [name for name in scaled if name not in statistics]
    if missing:
        raise InputError(
            "statistics",
            found=f"none of {', '.join(missing)}",
            expected="mean and SD of every channel",
            fix="Compute them from the training data.",
        )
    for name in scaled:
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
        return UnrolledProximal(config.unet, config.proximal, *of(scaled), noise=noise)
    if config.unrolled is not None:
        return UnrolledGradient(config.unet, config.unrolled, *of(config.outputs))
    return SinglePass(config.unet, *of(config.inputs), *of(config.outputs))
