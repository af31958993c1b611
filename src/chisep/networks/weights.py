"""Weights of trained networks: the shipped ones, loading, and folding of batch norms."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import tyro

from chisep.errors import InputError
from chisep.io.files import checksum
from chisep.io.weights import load_header, load_weights
from chisep.networks.config import Network, NetworkConfig, Statistics, build
from chisep.networks.training_range import TrainingRange
from chisep.networks.unet import CascadeBatchNorm, UNet

_SHIPPED = Path(__file__).parent / "shipped"
SHA256SUMS = _SHIPPED / "SHA256SUMS"
"""List of checksums of the weights that come with chisep, as `sha256sum` writes it."""
_MOST_ENTRIES, _LARGEST_COUNT, _MOST_CASCADES = 12, 4096, 100
"""Limits of a header: levels or channels, channels per level or count, and cascades."""
_Positive = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
_Factors = _Positive | Annotated[list[tuple[_Positive, _Positive]], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network with its weights, ready for inference.

    Parameters
    ----------
    network
        In evaluation mode.
    config
        Architecture and channels.
    header
        WeightsHeader of the weights file.
    """

    network: Network
    config: NetworkConfig
    header: Mapping[str, Any]

    @property
    def statistics(self) -> Statistics:
        """Mean and SD in ppm of each channel in the training data."""
        return msgspec.convert(self.header["statistics"], dict[str, tuple[float, float]])

    def to(self, device: torch.device | str) -> LoadedNetwork:
        """Return the same network on another device."""
        return LoadedNetwork(self.network.to(device), self.config, self.header)


class WeightsHeader(msgspec.Struct):
    """Schema of the header of a weights file; a header may have further entries, for people.

    Parameters
    ----------
    network
        Config of the network.
    statistics
        Mean and SD in ppm of each channel in the training data.
    training_data
        Dataset and subjects.
    sigma_factors
        Conformal factors of each output: one number, or pairs of noise level in ppm, rising, and factor.
    training_range
        Range of the scans in the training data (`range` in the header); None: not stated.
    """

    network: NetworkConfig
    statistics: dict[str, tuple[float, float]]
    training_data: dict[str, Any] = {}
    sigma_factors: dict[str, _Factors] = {}
    training_range: TrainingRange | None = msgspec.field(default=None, name="range")


def read_header(header: Mapping[str, Any]) -> WeightsHeader:
    """Validate the header of a weights file, and the size of the network that it describes.

    Raises
    ------
    InputError
        If a config refuses its settings.
    ValueError
        If an entry is missing, of another type, unknown, or larger than the limits.
    """
    _check_size(header.get("network"))
    known = msgspec.convert(header, WeightsHeader)
    network = known.network
    for name in ("unet", "unrolled", "proximal"):
        part: Any = getattr(network, name)
        if part is not None and (unknown := header["network"][name].keys() - {f.name for f in fields(part)}):
            raise ValueError(f"no such setting of a network: {', '.join(sorted(unknown))}")
        for count in ("iterations", "passes", "inverse_steps", "last_steps"):
            if getattr(part, count, 0) > _MOST_CASCADES:
                raise ValueError(f"more than {_MOST_CASCADES} {count}")
    for ends in () if known.training_range is None else known.training_range.pairs():
        if ends[0] > ends[1]:
            raise ValueError("a range from high to low")
    for factors in known.sigma_factors.values():
        if isinstance(factors, list) and any(low[0] >= high[0] for low, high in pairwise(factors)):
            raise ValueError("sigma_factors that are not of rising noise")
    return known


def _check_size(value: object) -> None:
    """Refuse numbers and lists of a network's config above the limits."""
    if isinstance(value, Mapping):
        for part in value.values():
            _check_size(part)
    elif isinstance(value, list):
        if len(value) > _MOST_ENTRIES:
            raise ValueError(f"more than {_MOST_ENTRIES} levels or channels")
        for part in value:
            _check_size(part)
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST_COUNT:
        raise ValueError(f"a setting of a network beyond {_LARGEST_COUNT}")


def shipped() -> dict[str, Path]:
    """Weights that come with chisep, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}


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


@dataclass(frozen=True, eq=False)
class WeightsDescription:
    """Description of weights that can be loaded.

    Parameters
    ----------
    config, header
        As of `LoadedNetwork`.
    """

    config: NetworkConfig
    header: Mapping[str, Any]


def description_of(weights: str | Path) -> WeightsDescription:
    """Load a network once in a process, and keep its description; parameters and errors as of `load`."""
    path = find_weights(weights)
    try:
        state = path.stat()
    except OSError:
        return _described(path, 0, 0)
    return _described(path, state.st_size, state.st_mtime_ns)


@cache
def _described(path: Path, _size: int, _mtime_ns: int) -> WeightsDescription:
    loaded = load(path)
    return WeightsDescription(loaded.config, loaded.header)


def load(weights: str | Path) -> LoadedNetwork:
    """Load a network.

    Parameters
    ----------
    weights
        One of the shipped names, or a file.

    Raises
    ------
    InputError
        If there are no such weights, they do not fit the network that their header describes, a value is NaN
        or infinite, or weights that come with chisep were changed.
    """
    path = find_weights(weights)
    if path.parent == _SHIPPED:
        state = path.stat()
        _check_shipped(path, state.st_size, state.st_mtime_ns)
    tensors, header = load_weights(path)
    try:
        known = read_header(header)
        config, statistics = known.network, known.statistics
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
    _require_finite(path, network)
    return LoadedNetwork(network.eval(), config, header)


def _require_finite(path: Path, network: Network) -> None:
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise InputError(
                path,
                found=f"tensor {name} with {count} of {tensor.numel()} values that are NaN or infinite",
                expected="finite numbers",
                fix="The file is damaged, or its training diverged: copy it again, or train again.",
            )


@cache
def _check_shipped(path: Path, _size: int, _modified_ns: int) -> None:
    """Compare weights that come with chisep with the list of checksums, once for each state of a file."""
    listed = checksums().get(path.name)
    if listed != checksum(path):
        raise InputError(
            path,
            found="other weights than this version of chisep came with (another SHA-256)",
            expected=f"SHA-256 {listed}" if listed else f"a line in {SHA256SUMS.name} beside it",
            fix="Install chisep again; give weights of your own by --weights FILE.",
        )


def checksums() -> dict[str, str]:
    """SHA-256 of the weights that come with chisep, by file name, as listed."""
    lines = SHA256SUMS.read_text(encoding="ascii").splitlines()
    return {name: listed for listed, name in (line.split() for line in lines)}


def fuse(network: Network) -> Network:
    """Fold the batch norms of a network into its convolutions: same result, faster inference."""
    for module in network.modules():
        if isinstance(module, UNet):
            module.fuse()
    return network


def without_norms(trained: LoadedNetwork) -> LoadedNetwork:
    """Return an equivalent network without norms, from one with batch norms.

    Parameters
    ----------
    trained
        Its batch norms are folded into its convolutions.

    Raises
    ------
    InputError
        If several cascades share one U-net, each with norms of its own.
    """
    if any(isinstance(module, CascadeBatchNorm) for module in trained.network.modules()):
        raise InputError(
            "network",
            found="norms of each cascade in one U-net",
            expected="one U-net for each cascade",
            fix="Start from weights of a network whose cascades share no U-net, or keep the batch norm.",
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
    return LoadedNetwork(network, plain, trained.header)


@dataclass(frozen=True)
class WeightsConfig:
    """Weights that come with chisep."""

    name: tyro.conf.Positional[str] = ""
    """Weights to describe in full; a table of all if unset."""
    json: bool = False
    """Print JSON."""
    card: bool = False
    """Print model cards in Markdown."""


def describe(config: WeightsConfig) -> dict[str, dict[str, Any]]:
    """Headers of the packaged weights, or of one file, by name."""
    if config.name:
        path = find_weights(config.name)
        return {path.stem: load_header(path)}
    return {name: load_header(path) for name, path in shipped().items()}
