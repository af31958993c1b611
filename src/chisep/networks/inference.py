"""Inference: trained networks on whole volumes of any shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.memory import release_memory
from chisep.networks.brain_box import BrainBox
from chisep.networks.config import NOISE, SOURCES, Channel, NetworkConfig
from chisep.networks.single_pass import SinglePass
from chisep.networks.uncertainty import Factors, chi_sigma, factor_at, noise_level, noise_of
from chisep.networks.weights import LoadedNetwork, fuse, load
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.progress import Progress
from chisep.types import Grid, Maps, MaskVolume, Sources, Susceptibility, Volume

Precision = Literal["auto", "single", "bfloat16"]
"""Of convolutions; auto: bfloat16 where the hardware has it."""
_LEAST_SIGMA_PPM = 1e-6


@torch.no_grad()
def intermediate_estimates(
    trained: LoadedNetwork,
    channels: Mapping[Channel, Volume],
    mask: MaskVolume,
    grid: Grid,
    *,
    ratio: float = 1.0,
    precision: Precision = "auto",
    last_only: bool = False,
) -> list[Tensor]:
    """Apply a network to a whole volume; return its estimate after each cascade.

    Parameters
    ----------
    trained
        On the device of the maps.
    channels
        Maps in ppm, at least the inputs, shape (i, j, k).
    mask
        Brain.
    grid
        Of the maps.
    ratio
        D_r,neg / D_r,pos.
    precision
        Of convolutions.
    last_only
        Keep the final estimate only, to save memory.

    Returns
    -------
    list of Tensor
        One per cascade, shape (channel, i, j, k) in ppm, 0 outside the mask; one for a single pass.

    Notes
    -----
    Only the box around the brain is computed. For networks without an input for the B0 direction it is
    rotated until B0 is along the third axis. Sources lie within the mask, so the only loss is the padding of
    the dipole to twice a smaller box (0.3 to 0.7 % of the field of a head).
    """
    box = BrainBox(mask, grid, b0_along_z=trained.config.b0_along_z)
    y = torch.stack([box.cut(channels[name]) for name in trained.config.inputs]) * box.mask
    low = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(mask.device))
    with torch.autocast(mask.device.type, torch.bfloat16, enabled=low):
        if not isinstance(trained.network, SinglePass):
            dipole = Dipole(box.grid, padding=trained.config.padding(whole=True), device=mask.device)
            phi = Separation(dipole, ratio, box.mask[None])
            estimates = trained.network.intermediate_estimates(y[None], box.mask[None, None], phi)
        else:
            estimates = [trained.network(y[None], box.mask[None, None])]
    return [box.restore(x[0].float()) for x in (estimates[-1:] if last_only else estimates)]


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether a device computes convolutions faster in bfloat16 than in single precision.

    Notes
    -----
    A CPU without instructions for bfloat16 emulates it, tens of times slower than single precision
    (measured on AVX2).
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    facts: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


@dataclass(frozen=True)
class NetworkOptions:
    """Settings of a network."""

    weights: str = ""
    """File of other weights, or name of packaged ones; those of the method by default."""
    chi_weights: str = "qsmnet"
    """Weights of the network from field to χ, if no χ map is given."""
    rate_weights: str = "r2s"
    """Weights of the network from R2* to R2', if the method uses one."""
    precision: Precision = "auto"
    """Of convolutions; auto: bfloat16 where the hardware has it."""
    refinement: int = 120
    """Maximum number of iterations of a classical solver that start from the estimate of a network with
    predicted uncertainty and have it as their prior; 0 for the estimate of the network."""

    def __post_init__(self) -> None:
        if self.refinement < 0:
            raise InputError(
                "refinement", found=f"{self.refinement}", expected="0 or more", fix="The default is 120."
            )


def invert(
    maps: Maps, options: NetworkOptions, progress: Progress | None = None, *, weights: str
) -> Susceptibility:
    """Dipole inversion (local field to χ) with a network.

    Parameters
    ----------
    maps
        Local field, mask.
    options
        Weights, precision.
    progress
        Called when it is done.
    weights
        The method's own weights.

    Raises
    ------
    InputError
        If the weights cannot be read, or belong to another kind of network.
    """
    # The volume around the brain would double memory and time.
    box = BrainBox(maps.sources_mask, maps.grid)
    return box.restore_record(_inverted(box.cut_record(maps), options, progress, weights))


def _inverted(maps: Maps, options: NetworkOptions, progress: Progress | None, weights: str) -> Susceptibility:
    trained = _loaded(options.weights or weights, maps, (("chi",),), {"field", "field_sigma"})
    made, sigmas, measured = _applied(trained, maps, options)
    estimate = Susceptibility(made[0], chi_sigma_ppm=sigmas.get("chi"))
    if not sigmas or not options.refinement:
        _done(progress)
        return estimate
    from chisep.networks.refinement import refined_chi  # listing methods imports no solver

    return refined_chi(_with_noise(maps, measured), estimate, options.refinement, progress)


def separate(
    maps: Maps, options: NetworkOptions, progress: Progress | None = None, *, weights: str
) -> Sources:
    """χ-separation with a network; negative values become 0.

    Parameters
    ----------
    maps
        Local field, mask, D_r, R2' or R2*, and optionally a χ map; without it, QSMnet computes one.
    options, progress, weights
        As of `invert`.

    Raises
    ------
    InputError
        If the weights cannot be read or are not for χ-separation, or a map that they need is missing.
    """
    box = BrainBox(maps.sources_mask, maps.grid)
    return box.restore_record(_separated(box.cut_record(maps), options, progress, weights))


def _separated(maps: Maps, options: NetworkOptions, progress: Progress | None, weights: str) -> Sources:
    known: set[Channel] = {"field", "qsm", "r2prime", "r2star", *NOISE.values()}
    trained = _loaded(options.weights or weights, maps, (SOURCES,), known)
    made, sigmas, measured = _applied(trained, maps, options)
    pos, neg = made.clamp_min(0)
    if not sigmas:
        _done(progress)
        return Sources(pos, neg)
    of_pos, of_neg = sigmas["chi_pos"], sigmas["chi_neg"]
    estimate = Sources(
        pos,
        neg,
        chi_pos_sigma_ppm=of_pos,
        chi_neg_sigma_ppm=of_neg,
        chi_sigma_ppm=chi_sigma(of_pos, of_neg),
    )
    if not options.refinement or maps.r2prime_hz is None:
        _done(progress)
        return estimate
    from chisep.networks.refinement import refined_sources  # listing methods imports no solver

    return refined_sources(_with_noise(maps, measured), estimate, options.refinement, progress)


def _done(progress: Progress | None) -> None:
    if progress is not None:
        progress("network", 1, 1)


def _with_noise(maps: Maps, measured: Mapping[Channel, Volume]) -> Maps:
    """Return the maps that a network reads, with its noise maps."""
    of_rate = None
    if maps.relaxivity is not None and "r2prime_sigma" in measured:
        of_rate = measured["r2prime_sigma"] * maps.relaxivity.pos_hz_per_ppm
    return replace(
        maps,
        chi_ppm=None,
        magnitude=None,
        field_sigma_ppm=measured.get("field_sigma", maps.field_sigma_ppm),
        r2prime_sigma_hz=maps.r2prime_sigma_hz if of_rate is None else of_rate,
    )


def _applied(
    trained: LoadedNetwork, maps: Maps, options: NetworkOptions
) -> tuple[Tensor, dict[str, Volume], dict[Channel, Volume]]:
    """Apply a network; return its result, (output, i, j, k), standard deviations by output, and its inputs.

    There are no standard deviations if the network has no predicted uncertainty.
    """
    channels = measured_channels(maps, trained.config.inputs, options)
    made = intermediate_estimates(
        trained,
        channels,
        maps.sources_mask,  # maps cover the brain, also where the field is not known
        maps.grid,
        ratio=1.0 if maps.relaxivity is None else maps.relaxivity.ratio,
        precision=options.precision,
        last_only=True,
    )[-1]
    release_memory()  # of the layers; a solver may follow
    outputs, noise = trained.config.outputs, noise_of(trained.config)
    factors: Mapping[str, Factors] = trained.header.get("sigma_factors", {})
    level = math.inf if noise is None else noise_level(channels[noise][maps.mask])
    sigmas: dict[str, Volume] = {
        name: factor_at(factors.get(name, math.sqrt(2)), level) * made[len(outputs) + number]
        for number, name in enumerate(outputs)
        if made.shape[0] > len(outputs)
    }
    return made[: len(outputs)], sigmas, channels


def uses_noise_maps(config: NetworkConfig) -> bool:
    """Whether the noise maps of the inputs are inputs too."""
    return not set(NOISE.values()).isdisjoint(config.inputs)


def measured_channels(
    maps: Maps, inputs: Sequence[Channel], options: NetworkOptions
) -> dict[Channel, Volume]:
    """Convert maps to the units of the networks; networks compute missing χ and R2' maps.

    Parameters
    ----------
    maps
        Of one subject.
    inputs
        Channels to return.
    options
        Weights for χ from the field, and for R2' from R2*.

    Raises
    ------
    InputError
        If a map is missing.
    """
    channels: dict[Channel, Volume] = {"field": maps.field_ppm * maps.mask}
    rate_maps: dict[Channel, Volume | None] = {"r2prime": maps.r2prime_hz, "r2star": maps.r2star_hz}
    for channel, rate in rate_maps.items():
        if rate is not None and maps.relaxivity is not None:
            channels[channel] = rate / maps.relaxivity.pos_hz_per_ppm
    # Noise makes R2' negative in some voxels; networks without noise maps were trained on R2' clipped at 0.
    if "r2prime" in channels and "r2prime_sigma" not in inputs:
        channels["r2prime"] = channels["r2prime"].clamp_min(0)
    if "r2prime" in inputs and "r2prime" not in channels and "r2star" in channels:
        trained = _loaded(options.rate_weights, maps, (("r2prime",),), {"r2star"})
        channels["r2prime"] = intermediate_estimates(
            trained, channels, maps.sources_mask, maps.grid, precision=options.precision
        )[-1][0]
        channels["r2prime"].clamp_(min=0)
    if "qsm" in inputs:
        channels["qsm"] = (
            invert(maps, replace(options, weights=options.chi_weights), weights="").chi_ppm
            if maps.chi_ppm is None
            else maps.chi_ppm
        )
    if "field_sigma" in inputs:
        channels["field_sigma"] = _noise_map(_sigma_of_field(maps), maps.field_ppm, maps.mask)
    if "r2prime_sigma" in inputs and "r2prime" in channels and maps.relaxivity is not None:
        of_rate = maps.r2prime_sigma_hz
        scaled = None if of_rate is None else of_rate / maps.relaxivity.pos_hz_per_ppm
        channels["r2prime_sigma"] = _noise_map(
            scaled,
            channels["r2prime"],
            maps.sources_mask,
            nonnegative=bool((channels["r2prime"] >= 0).all()),
        )
    missing = [name for name in inputs if name not in channels]
    if missing:
        raise InputError(
            "network",
            found=f"no map or no D_r for {', '.join(missing)}",
            expected=f"{', '.join(inputs)}",
            fix="Give R2' (or R2* to the methods that take it) and D_r or the field strength.",
        )
    return channels


def _sigma_of_field(maps: Maps) -> Volume | float:
    if maps.field_sigma_ppm is not None:
        return maps.field_sigma_ppm
    from chisep.solvers.field_error import field_error  # listing methods imports no solver

    return field_error(maps).sigma_ppm


def _noise_map(
    sigma: Volume | float | None, volume: Volume, mask: MaskVolume, *, nonnegative: bool = False
) -> Volume:
    """Noise map, 0 outside the mask; estimated from the map itself if the noise is unknown."""
    from chisep.solvers.noise import noise_sigma

    if isinstance(sigma, Tensor):
        return sigma * mask
    number = noise_sigma(volume, mask, nonnegative=nonnegative) if sigma is None else sigma
    # A map without noise is still measured.
    return max(number, _LEAST_SIGMA_PPM) * mask.to(volume.dtype)


def _loaded(
    weights: str, maps: Maps, outputs: Sequence[tuple[Channel, ...]], inputs: set[Channel]
) -> LoadedNetwork:
    """Load weights with the given outputs, on the device of the maps."""
    trained = load(weights)
    config = trained.config
    if config.outputs not in outputs or not inputs.issuperset(config.inputs):
        raise InputError(
            weights,
            found=f"a network from {', '.join(config.inputs)} to {', '.join(config.outputs)}",
            expected=f"one to {', '.join(outputs[0])}",
            fix="Choose other weights; `chisep weights` says what each makes.",
        )
    fuse(trained.network)
    return trained.to(maps.field_ppm.device)
