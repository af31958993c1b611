"""Trained networks: load them, and apply them to whole volumes of any shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
import tyro
from torch import Tensor

from chisep.errors import InputError
from chisep.io.weights import load_header, load_weights
from chisep.networks.brain_box import BrainBox
from chisep.networks.config import NOISE, SOURCES, Channel, Network, NetworkConfig, Statistics, build
from chisep.networks.single_pass import OnePass
from chisep.networks.uncertainty import Factors, are_factors, factor_at, noise_level, noise_of
from chisep.networks.unet import PassBatchNorm, UNet, UNetConfig
from chisep.networks.unrolled_gradient import UnrolledConfig
from chisep.networks.unrolled_proximal import ProximalConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.progress import Progress
from chisep.types import Grid, Maps, MaskVolume, Sources, Susceptibility, Volume

Precision = Literal["auto", "single", "bfloat16"]
"""Of convolutions; auto: bfloat16 where the hardware has it."""


C = TypeVar("C", UNetConfig, UnrolledConfig, ProximalConfig)
_LEAST_SIGMA_PPM = 1e-6
_MOST_ENTRIES, _LARGEST_COUNT, _MOST_PASSES = 12, 4096, 100
"""Of a description that is worth building: levels or channels, their width or number, and iterations."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with its weights, ready to be applied.

    Parameters
    ----------
    network
        In evaluation mode.
    config
        Channels that go in and come out.
    header
        All that is known of the weights.
    """

    network: Network
    config: NetworkConfig
    header: Mapping[str, Any]

    @property
    def statistics(self) -> Statistics:
        """Mean and SD in ppm of each channel in the data it was trained on."""
        return _statistics(self.header)

    def to(self, device: torch.device | str) -> Trained:
        """Return the same network on another device."""
        return Trained(self.network.to(device), self.config, self.header)


def shipped() -> dict[str, Path]:
    """Weights that come with chisep, by name."""
    folder = Path(__file__).parent / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_weights(weights: str | Path) -> Path:
    """Path of weights: one of the shipped names, or a file.

    Raises
    ------
    InputError
        If it is neither.
    """
    path = Path(weights)
    if path.is_file():
        return path
    known = shipped()
    if str(weights) in known:
        return known[str(weights)]
    raise InputError(
        "weights",
        found=f"{str(weights)!r}",
        expected=f"a file that `chisep train` wrote, or one of: {', '.join(known) or 'none'}",
        fix="`chisep weights` lists those that come with chisep.",
    )


def load(weights: str | Path) -> Trained:
    """Load a network.

    Parameters
    ----------
    weights
        One of the shipped names, or a file.

    Raises
    ------
    InputError
        If there are no such weights, or they do not fit the network that their header describes.
    """
    path = find_weights(weights)
    tensors, header = load_weights(path)
    try:
        config = network_of(header)
        statistics = _statistics(header)
        with torch.device("meta"):  # takes no memory: a header may describe a network larger than its file
            described = build(config, statistics).state_dict()
        shapes = [{name: tensor.shape for name, tensor in some.items()} for some in (described, tensors)]
        if wrong := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
            raise ValueError(f"other tensors: {', '.join(wrong[:3])}")
        network = build(config, statistics)
        network.load_state_dict(tensors)
    except (
        InputError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise InputError(
            path,
            found=f"weights that do not fit their header ({' '.join(str(error).split())[:300]})",
            expected="weights that `chisep train` of this version wrote",
            fix="Train again, or use the version of chisep that the header names.",
        ) from error
    return Trained(network.eval(), config, header)


def fuse(network: Network) -> Network:
    """Fold the batch norms of a network into its convolutions: the same in evaluation, faster."""
    for module in network.modules():
        if isinstance(module, UNet):
            module.fuse()
    return network


def without_norms(trained: Trained) -> Trained:
    """Return a network without norms that makes the same, from one with batch norms.

    Parameters
    ----------
    trained
        Its batch norms are folded into its convolutions.

    Raises
    ------
    InputError
        If one U-net makes several passes, each with norms of its own.
    """
    if any(isinstance(module, PassBatchNorm) for module in trained.network.modules()):
        raise InputError(
            "network",
            found="norms of each pass in one U-net",
            expected="one U-net each",
            fix="Start from weights of a network whose passes share no U-net, or keep the batch norm.",
        )
    plain = replace(trained.config, unet=replace(trained.config.unet, norm="none"))
    network = build(plain, trained.statistics).eval()
    kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    own, folded = (
        [module for module in some.modules() if isinstance(module, kinds)]
        for some in (network, fuse(trained.network))
    )
    for convolution, other in zip(own, folded, strict=True):
        convolution.load_state_dict(other.state_dict())
    apart = {name: value for name, value in trained.network.state_dict().items() if "." not in name}
    network.load_state_dict(apart, strict=False)
    return Trained(network, plain, trained.header)


def _statistics(header: Mapping[str, Any]) -> Statistics:
    return {name: (float(mean), float(sd)) for name, (mean, sd) in header["statistics"].items()}


def network_of(header: Mapping[str, Any]) -> NetworkConfig:
    """Read the network's config from the header of its weights."""
    facts = header["network"]
    if not isinstance(header.get("training_data", {}), Mapping):
        raise ValueError("training_data that is no object")
    factors = header.get("sigma_factors", {})
    if not (isinstance(factors, Mapping) and all(are_factors(value) for value in factors.values())):
        raise ValueError("sigma_factors that are neither numbers above 0 nor pairs of them of rising noise")
    if not isinstance(facts.get("b0_along_z", False), bool):
        raise ValueError("b0_along_z that is neither true nor false")
    channels = tuple[Channel, ...]
    if not (_fits(facts["inputs"], channels) and _fits(facts["outputs"], channels)):
        raise ValueError("channels that are not known")
    unrolled, proximal = facts["unrolled"], facts.get("proximal")
    counts = [(unrolled, "iterations"), *((proximal, f) for f in ("passes", "inverse_steps", "last_steps"))]
    for physics, count in counts:
        if physics is not None and not physics.get(count, 1) <= _MOST_PASSES:
            raise ValueError(f"more than {_MOST_PASSES} {count}")
    return NetworkConfig(
        tuple(facts["inputs"]),
        tuple(facts["outputs"]),
        _config_of(UNetConfig, facts["unet"]),
        None if unrolled is None else _config_of(UnrolledConfig, unrolled),
        None if proximal is None else _config_of(ProximalConfig, proximal),
        facts.get("b0_along_z", False),
    )


def _config_of(kind: type[C], facts: Mapping[str, Any]) -> C:
    """Make a config of what a header says, after checking that this is of the types that it wants."""
    hints = get_type_hints(kind)
    wrong = [name for name, value in facts.items() if not _fits(value, hints.get(name, ()))]
    if wrong:
        raise ValueError(f"no such setting of a network: {', '.join(wrong)}")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
    return kind(**settings)


def _fits(value: object, hint: object) -> bool:
    """Whether a value of JSON is of the type of a field of a config, and of a size that can be meant."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in options
    if get_origin(hint) is tuple:
        return (
            isinstance(value, list)
            and len(value) <= _MOST_ENTRIES
            and all(_fits(v, options[0]) for v in value)
        )
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in options)
    if isinstance(value, bool) or value is None:
        return hint is type(value)
    if hint is int:
        return isinstance(value, int) and abs(value) <= _LARGEST_COUNT
    return hint is float and isinstance(value, int | float) and abs(value) <= _LARGEST_COUNT


@torch.no_grad()
def intermediate_estimates(
    trained: Trained,
    channels: Mapping[Channel, Volume],
    mask: MaskVolume,
    grid: Grid,
    *,
    ratio: float = 1.0,
    precision: Precision = "auto",
    last_only: bool = False,
) -> list[Tensor]:
    """Apply a network to a whole volume and return what it makes in every iteration.

    Parameters
    ----------
    trained
        On the device of the maps.
    channels
        Maps in ppm, at least those that go in, shape (i, j, k).
    mask
        Brain.
    grid
        Of the maps.
    ratio
        D_r,neg / D_r,pos.
    precision
        Of convolutions.
    last_only
        Keep the last iteration only, for memory.

    Returns
    -------
    list of Tensor
        One per iteration, shape (channel, i, j, k) in ppm, 0 outside the mask; one for a network of one pass.

    Notes
    -----
    Only the box around the brain is computed on, turned until B0 is along its third axis for networks that
    know no other direction. Sources lie within the mask, so Φ loses nothing but that its dipole is padded to
    twice a smaller box (0.3 to 0.7 % of the field of a head).
    """
    box = BrainBox(mask, grid, b0_along_z=trained.config.b0_along_z)
    y = torch.stack([box.cut(channels[name]) for name in trained.config.inputs]) * box.mask
    low = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(mask.device))
    with torch.autocast(mask.device.type, torch.bfloat16, enabled=low):
        if not isinstance(trained.network, OnePass):
            dipole = Dipole(box.grid, padding=trained.config.padding(whole=True), device=mask.device)
            phi = Separation(dipole, ratio, box.mask[None])
            found = trained.network.intermediate_estimates(y[None], box.mask[None, None], phi)
        else:
            found = [trained.network(y[None], box.mask[None, None])]
    return [box.restore(x[0].float()) for x in (found[-1:] if last_only else found)]


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether convolutions in bfloat16 are faster than in single precision there.

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
    """File of other weights, or name of shipped ones; the method's own if left out."""
    chi_weights: str = "qsmnet"
    """Weights that make χ from the field where no χ map is given."""
    rate_weights: str = "r2s"
    """Weights that make R2' from R2*, where the method goes that way."""
    precision: Precision = "auto"
    """Of convolutions; auto: bfloat16 where the hardware has it."""


def invert(
    maps: Maps, options: NetworkOptions, progress: Progress | None = None, *, weights: str
) -> Susceptibility:
    """Make χ from the local field with a network of one pass.

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
        If the weights cannot be read, or are not of a network from field to χ.
    """
    trained = _loaded(options.weights or weights, maps, (("chi",),), {"field", "field_sigma"})
    made, sigmas = _applied(trained, maps, options)
    if progress is not None:
        progress("network", 1, 1)
    return Susceptibility(made[0], chi_sigma_ppm=sigmas.get("chi"))


def separate(
    maps: Maps, options: NetworkOptions, progress: Progress | None = None, *, weights: str
) -> Sources:
    """Make χ_pos and χ_neg with a network; what it makes below 0 becomes 0.

    Parameters
    ----------
    maps
        Local field, mask, D_r, R2' or R2*, and a χ map if there is one; QSMnet makes one else.
    options, progress, weights
        As of `invert`.

    Raises
    ------
    InputError
        If the weights cannot be read or make no sources, or a map is missing that they need.
    """
    known: set[Channel] = {"field", "qsm", "r2prime", "r2star", *NOISE.values()}
    trained = _loaded(options.weights or weights, maps, (SOURCES,), known)
    made, sigmas = _applied(trained, maps, options)
    if progress is not None:
        progress("network", 1, 1)
    pos, neg = made.clamp_min(0)
    return Sources(
        pos,
        neg,
        chi_pos_sigma_ppm=sigmas.get("chi_pos"),
        chi_neg_sigma_ppm=sigmas.get("chi_neg"),
    )


def _applied(trained: Trained, maps: Maps, options: NetworkOptions) -> tuple[Tensor, dict[str, Volume]]:
    """Return what a network makes of maps in the end, (output, i, j, k), and standard deviations by output.

    The latter are none for a network that does not tell its error.
    """
    channels = measured_channels(maps, trained.config.inputs, options)
    made = intermediate_estimates(
        trained,
        channels,
        # Networks that know the noise of every voxel take sources where the field is lost.
        maps.sources_mask if uses_noise_maps(trained.config) else maps.mask,
        maps.grid,
        ratio=1.0 if maps.relaxivity is None else maps.relaxivity.ratio,
        precision=options.precision,
        last_only=True,
    )[-1]
    outputs, noise = trained.config.outputs, noise_of(trained.config)
    factors: Mapping[str, Factors] = trained.header.get("sigma_factors", {})
    level = math.inf if noise is None else noise_level(channels[noise][maps.mask])
    sigmas: dict[str, Volume] = {
        name: factor_at(factors.get(name, math.sqrt(2)), level) * made[len(outputs) + number]
        for number, name in enumerate(outputs)
        if made.shape[0] > len(outputs)
    }
    return made[: len(outputs)], sigmas


def uses_noise_maps(config: NetworkConfig) -> bool:
    """Whether a network wants to be told the noise of its inputs."""
    return not set(NOISE.values()).isdisjoint(config.inputs)


def measured_channels(
    maps: Maps, wanted: Sequence[Channel], options: NetworkOptions
) -> dict[Channel, Volume]:
    """Bring maps to the units of the networks; χ and R2' are made by networks where they are not given.

    Parameters
    ----------
    maps
        Of one subject.
    wanted
        Which channels.
    options
        Weights for χ from the field, and for R2' from R2*.

    Raises
    ------
    InputError
        If a map is missing.
    """
    found: dict[Channel, Volume] = {"field": maps.field_ppm}
    rates: dict[Channel, Volume | None] = {"r2prime": maps.r2prime_hz, "r2star": maps.r2star_hz}
    for channel, rate in rates.items():
        if rate is not None and maps.relaxivity is not None:
            found[channel] = rate / maps.relaxivity.pos_hz_per_ppm
    if "r2prime" in wanted and "r2prime" not in found and "r2star" in found:
        trained = _loaded(options.rate_weights, maps, (("r2prime",),), {"r2star"})
        found["r2prime"] = intermediate_estimates(
            trained, found, maps.mask, maps.grid, precision=options.precision
        )[-1][0]
        found["r2prime"].clamp_(min=0)
    if "qsm" in wanted:
        found["qsm"] = (
            invert(maps, replace(options, weights=options.chi_weights), weights="").chi_ppm
            if maps.chi_ppm is None
            else maps.chi_ppm
        )
    if "field_sigma" in wanted:
        found["field"] = maps.field_ppm * maps.mask
        found["field_sigma"] = _noise_map(maps.field_sigma_ppm, maps.field_ppm, maps.mask)
    if "r2prime_sigma" in wanted and "r2prime" in found and maps.relaxivity is not None:
        of_rate = maps.r2prime_sigma_hz
        scaled = None if of_rate is None else of_rate / maps.relaxivity.pos_hz_per_ppm
        found["r2prime_sigma"] = _noise_map(scaled, found["r2prime"], maps.sources_mask, nonnegative=True)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            "network",
            found=f"no map or no D_r for {', '.join(missing)}",
            expected=f"{', '.join(wanted)}",
            fix="Give R2' (or R2* to the methods that take it) and D_r or the field strength.",
        )
    return found


def _noise_map(
    sigma: Volume | float | None, volume: Volume, mask: MaskVolume, *, nonnegative: bool = False
) -> Volume:
    """Noise as a map, 0 outside the mask; estimated from the map it is of where it is not known."""
    from chisep.solvers.noise import noise_sigma  # listing methods imports no solver

    if isinstance(sigma, Tensor):
        return sigma * mask
    number = noise_sigma(volume, mask, nonnegative=nonnegative) if sigma is None else sigma
    # A map without noise is still measured.
    return max(number, _LEAST_SIGMA_PPM) * mask.to(volume.dtype)


def _loaded(
    weights: str, maps: Maps, outputs: Sequence[tuple[Channel, ...]], inputs: set[Channel]
) -> Trained:
    """Load weights that make what is wanted, on the device of the maps."""
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


@dataclass(frozen=True)
class WeightsConfig:
    """Weights that come with chisep."""

    name: tyro.conf.Positional[str] = ""
    """Weights to describe in full; a table of all if left out."""
    json: bool = False
    """Print JSON."""
    card: bool = False
    """Print model cards in Markdown."""


def describe(config: WeightsConfig) -> dict[str, dict[str, Any]]:
    """Headers of the shipped weights, or of one file, by name."""
    if config.name:
        path = find_weights(config.name)
        return {path.stem: load_header(path)}
    return {name: load_header(path) for name, path in shipped().items()}
