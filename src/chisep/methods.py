"""The registry of methods, and the two doors they stand behind: `separate` and `invert`.

A new solver or network is a file and an entry here; the command line, the demo and the parametrised tests
find it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from chisep.errors import InputError, unknown_name
from chisep.io.files import checksum
from chisep.networks import inference
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.types import Convergence, Maps, Sources, Susceptibility, Volume

Target = Literal["sources", "chi"]
"""What a method makes: χ_pos and χ_neg, or χ alone."""
Solve = Callable[[Maps, Any, Progress | None], Sources | Susceptibility]
"""The one signature: maps, a config (None for its defaults), progress."""

_WORDS = {
    "field": "field_ppm",
    "r2prime": "r2prime_hz",
    "r2star": "r2star_hz",
    "qsm": "chi_ppm",
    "magnitude": "magnitude",
}


@dataclass(frozen=True)
class MethodsConfig:
    """Settings of the list of methods."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Method:
    """A way to make sources or susceptibility.

    Parameters
    ----------
    name
        As on the command line.
    target
        What it makes.
    needs, uses
        Maps it cannot do without, and maps it uses if they are there.
    source
        Where results come from: a closed form, an iteration, a trained network.
    summary
        What it does, in a line.
    reference
        The paper.
    load
        Returns the solver; called when it is first used, so that listing methods imports none.
    weights
        Shipped weights that a network needs by default: its own, then those that make inputs of it where
        they are not given.
    has_field_term
        Whether it fits the field itself, so that a χ map made of the same field tells it nothing new.
    uses_noise_maps
        Whether it can do with an R2' that is as uncertain as R2* minus one R2 of the whole brain, if it is
        told so.
    """

    name: str
    target: Target
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    source: str
    summary: str
    reference: str
    load: Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]
    weights: tuple[str, ...] = ()
    has_field_term: bool = False
    uses_noise_maps: bool = False

    @property
    def is_network(self) -> bool:
        """Whether results come from trained weights."""
        return bool(self.weights)

    @property
    def missing_weights(self) -> tuple[str, ...]:
        """Weights that it needs by default and that this installation lacks."""
        known = network_weights.shipped() if self.weights else {}
        return tuple(name for name in self.weights if name not in known)

    def row(self) -> dict[str, str]:
        """Texts of the table that `chisep methods` prints."""
        missing = self.missing_weights
        return {
            "name": self.name,
            "makes": "χ_pos, χ_neg" if self.target == "sources" else "χ",
            "inputs": ", ".join([*self.needs, *(f"[{name}]" for name in self.uses)]),
            "source": self.source + (f" (not shipped: {', '.join(missing)})" if missing else ""),
            "what it does": self.summary,
            "reference": self.reference,
        }


def _closed_form() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import closed_form

    return closed_form.solve, closed_form.ClosedFormConfig


def _iterative() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import iterative

    return iterative.solve, iterative.IterativeConfig


def _tikhonov() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tikhonov

    return tikhonov.solve, tikhonov.TikhonovConfig


def _tkd() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tkd

    return tkd.solve, tkd.TkdConfig


def _tv() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tv

    return tv.solve, tv.TvConfig


def _network(
    name: str,
    target: Target,
    needs: tuple[str, ...],
    summary: str,
    reference: str,
    weights: tuple[str, ...],
    *,
    has_field_term: bool = False,
) -> Method:
    """Entry of a network; one that makes sources and does not fit the field uses a χ map if there is one."""
    solve = inference.separate if target == "sources" else inference.invert
    return Method(
        name,
        target,
        needs,
        ("qsm",) if target == "sources" and not has_field_term else (),
        "trained",
        summary,
        reference,
        lambda: (partial(solve, weights=weights[0]), NetworkOptions),
        weights,
        has_field_term,
        uses_noise_maps=has_field_term,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "closed-form",
            "sources",
            ("field", "r2prime"),
            ("qsm",),
            "closed-form",
            "two equations a voxel: R2' and a susceptibility map (Tikhonov, if none is given)",
            "Shin 2021, 10.1016/j.neuroimage.2021.118371",
            _closed_form,
        ),
        Method(
            "iterative",
            "sources",
            ("field", "r2prime"),
            ("qsm", "magnitude"),
            "iterative",
            "field and R2' weighed by their noise, total variation, no negative sources",
            "Shin 2021, 10.1016/j.neuroimage.2021.118371",
            _iterative,
            has_field_term=True,
        ),
        Method(
            "tikhonov",
            "chi",
            ("field",),
            (),
            "closed-form",
            "dipole inversion with a quadratic penalty",
            "Bilgic 2014, 10.1002/mrm.25029",
            _tikhonov,
        ),
        Method(
            "tkd",
            "chi",
            ("field",),
            (),
            "closed-form",
            "dipole inversion with a truncated kernel",
            "Shmueli 2009, 10.1002/mrm.22135",
            _tkd,
        ),
        Method(
            "tv",
            "chi",
            ("field",),
            ("magnitude",),
            "iterative",
            "dipole inversion with total variation",
            "Milovic 2018, 10.1002/mrm.27073",
            _tv,
        ),
        _network(
            "qsmnet",
            "chi",
            ("field",),
            "dipole inversion by a U-net",
            "Yoon 2018, 10.1016/j.neuroimage.2018.06.030",
            ("qsmnet",),
        ),
        _network(
            "chi-sepnet-r2p",
            "sources",
            ("field", "r2prime"),
            "a U-net from χ (QSMnet, if none is given), R2' and field",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2p", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s",
            "sources",
            ("field", "r2star"),
            "the same where there is R2* only: a U-net makes R2' of it",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2p", "r2s", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s-direct",
            "sources",
            ("field", "r2star"),
            "a U-net from χ (QSMnet, if none is given), R2* and field",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2s-direct", "qsmnet"),
        ),
        _network(
            "unrolled-thesis",
            "sources",
            ("field", "r2prime"),
            "ten physics steps and passes of one U-net in turn",
            "Kim K.W. 2023, Seoul National University",
            ("unrolled-thesis", "qsmnet"),
        ),
        _network(
            "unrolled-qsm",
            "chi",
            ("field",),
            "exact field steps weighed by noise and U-nets in turn; tells its error",
            "chisep, docs/networks.md",
            ("unrolled-qsm",),
        ),
        _network(
            "unrolled",
            "sources",
            ("field", "r2prime"),
            "exact data steps weighed by noise and U-nets in turn; tells its error",
            "chisep, docs/networks.md",
            ("unrolled",),
            has_field_term=True,
        ),
    )
}

DEFAULTS: Mapping[Target, str] = {"sources": "unrolled", "chi": "unrolled-qsm"}
"""What makes sources, or χ, where nothing else is said."""


def find(name: str, target: Target) -> Method:
    """Look a method up.

    Raises
    ------
    InputError
        If there is none of that name that makes the target; names those there are.
    """
    known = [method.name for method in METHODS.values() if method.target == target]
    if name in known:
        return METHODS[name]
    raise unknown_name("method", name, known, "chisep methods")


def settings(name: str) -> dict[str, Any]:
    """Return the default settings of a solver for a record, as {"Settings": …}; nothing for a network."""
    method = METHODS[name]
    return {} if method.is_network else {"Settings": asdict(method.load()[1]())}


def config_for(name: str, options: NetworkOptions) -> NetworkOptions | None:
    """Config of a method out of what was said on networks; None for a solver, which has its own defaults.

    Raises
    ------
    InputError
        If weights are given to a method that is no network.
    """
    if METHODS[name].is_network:
        return options
    if options.weights:
        raise InputError(
            "--weights",
            found=f"weights for {name}, which is no network",
            expected=f"one of: {', '.join(m.name for m in METHODS.values() if m.is_network)}",
            fix="Choose another method, or leave the weights out.",
        )
    return None


def tells_sigma(name: str, options: NetworkOptions) -> bool:
    """Whether a method tells the SD of its error; arguments and errors as of `weights_used`."""
    method = METHODS[name]
    if config_for(name, options) is None:
        return False
    proximal = network_weights.load(options.weights or method.weights[0]).config.proximal
    return proximal is not None and proximal.uncertainty


def weights_used(name: str, options: NetworkOptions, *, chi_given: bool) -> list[dict[str, str]]:
    """Say which weights a method computes with, for the record; nothing for a solver.

    Parameters
    ----------
    name
        Of the method.
    options
        Weights that were chosen.
    chi_given
        Whether it gets a χ map; a network makes one else.

    Returns
    -------
    list of dict
        Of each file of weights: name, checksum, training data, their licence.

    Raises
    ------
    InputError
        If weights cannot be found or read, or are given to a method that is no network.
    """
    method = METHODS[name]
    if config_for(name, options) is None:
        return []
    own = options.weights or method.weights[0]
    inputs = network_weights.load(own).config.inputs
    files = [own]
    if "r2prime" in inputs and "r2prime" not in method.needs:
        files.append(options.rate_weights)
    if "qsm" in inputs and not chi_given:
        files.append(options.chi_weights)
    return [_record(file) for file in files]


def _record(weights: str) -> dict[str, str]:
    path, header = network_weights.find_weights(weights), network_weights.load(weights).header
    return {
        "Name": str(header.get("name", path.stem)),
        "SHA256": checksum(path),
        "TrainingData": str(header.get("training_data", {}).get("dataset", "not stated")),
        "LicenceOfTrainingData": str(header.get("licence_of_data", "not stated")),
    }


def check_device(device: str) -> None:
    """Check that tensors can live on a device.

    Raises
    ------
    InputError
        If the name is unknown or the device is not there.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            "--device",
            found=f"{device!r}, which cannot be used here ({str(error).splitlines()[0]})",
            expected="cpu, or a GPU of this machine such as cuda or cuda:0",
            fix="Choose cpu, or install a torch build for your GPU.",
        ) from error


def separate(
    maps: Maps,
    method: str,
    config: object = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Sources:
    """Separate χ_pos from χ_neg.

    Parameters
    ----------
    maps
        Local field, R2', mask, D_r, and what else there is.
    method
        Name of a method that makes sources.
    config
        Its config; defaults if None.
    device
        Where to compute; results come back to the CPU.
    progress
        Called during iterations.

    Returns
    -------
    Sources
        float32, on the CPU.

    Raises
    ------
    InputError
        If the method is unknown, a map it needs is missing or of another shape, or the device is absent.
    """
    result = _solve(find(method, "sources"), maps, config, device, progress)
    return Sources(
        result.chi_pos_ppm.cpu(),
        result.chi_neg_ppm.cpu(),
        result.convergence,
        _on_cpu(result.chi_pos_sigma_ppm),
        _on_cpu(result.chi_neg_sigma_ppm),
    )


def invert(
    maps: Maps,
    method: str,
    config: object = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Susceptibility:
    """Make a susceptibility map from the local field; arguments and errors as of `separate`.

    Returns
    -------
    Susceptibility
        float32, on the CPU.
    """
    result = _solve(find(method, "chi"), maps, config, device, progress)
    convergence: Convergence = result.convergence
    return Susceptibility(result.chi_ppm.cpu(), convergence, _on_cpu(result.chi_sigma_ppm))


def _on_cpu(volume: Volume | None) -> Volume | None:
    return None if volume is None else volume.cpu()


def _solve(method: Method, maps: Maps, config: object, device: str, progress: Progress | None) -> Any:  # noqa: ANN401
    check_device(device)
    for name, attribute in _WORDS.items():
        volume = getattr(maps, attribute)
        if volume is None and name in method.needs:
            raise InputError(
                method.name,
                found=f"no {name} map",
                expected=f"{', '.join(method.needs)}",
                fix="Give the map.",
            )
        if volume is not None and tuple(volume.shape) != maps.grid.shape:
            raise InputError(
                f"{name} map",
                found=f"shape {tuple(volume.shape)}",
                expected=f"shape {maps.grid.shape} of the grid",
                fix="Resample it to the grid of the field.",
            )
        if volume is not None and not bool(torch.isfinite(volume).all()):
            raise InputError(
                f"{name} map",
                found="NaN or infinite values",
                expected="finite numbers everywhere",
                fix="Replace them (0 outside the head).",
            )
    if tuple(maps.mask.shape) != maps.grid.shape:
        raise InputError(
            "mask",
            found=f"shape {tuple(maps.mask.shape)}",
            expected=f"shape {maps.grid.shape} of the grid",
            fix="Resample it to the grid of the field.",
        )
    if not bool(maps.mask.any()):
        raise InputError("mask", found="no voxel inside", expected="a brain mask", fix="Check the mask.")
    # A method that takes R2* must not find R2': where there was no spin echo, it is an assumption.
    unread: dict[str, Any] = {a: None for n, a in _WORDS.items() if n not in method.needs + method.uses}
    solve, default = method.load()
    return solve(replace(maps, **unread).to(device), config or default(), progress)
