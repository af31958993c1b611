"""Run a method on input maps: `separate` and `invert`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from chisep.errors import InputError
from chisep.methods.registry import Method, find
from chisep.methods.weights_used import range_warnings, weight_files
from chisep.networks.inference import NetworkOptions
from chisep.networks.weights import description_of
from chisep.progress import Progress
from chisep.types import Convergence, Maps, Sources, Susceptibility, Volume

_ATTRIBUTES = {
    "field": "field_ppm",
    "r2prime": "r2prime_hz",
    "r2star": "r2star_hz",
    "qsm": "chi_ppm",
    "magnitude": "magnitude",
}


def check_device(device: str) -> None:
    """Check that a device can be used.

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
    """χ-separation: χ_pos and χ_neg from field and R2'.

    Parameters
    ----------
    maps
        Local field, R2', mask, D_r, and optional maps.
    method
        Name of a separation method.
    config
        Its config; defaults if None.
    device
        Where to compute; results are moved to the CPU.
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
        _on_cpu(result.chi_sigma_ppm),
    )


def invert(
    maps: Maps,
    method: str,
    config: object = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Susceptibility:
    """Dipole inversion: χ from the local field; arguments and errors as of `separate`.

    Returns
    -------
    Susceptibility
        float32, on the CPU.
    """
    result = _solve(find(method, "chi"), maps, config, device, progress)
    convergence: Convergence = result.convergence
    return Susceptibility(result.chi_ppm.cpu(), convergence, _on_cpu(result.chi_sigma_ppm))


def _with_field_sigma(method: Method, maps: Maps, options: NetworkOptions) -> Maps:
    """Estimate σ of the field for networks that read it but no magnitude, which its pattern follows from."""
    from chisep.solvers.field_error import field_error  # listing methods imports no solver

    own = weight_files(method.name, options, chi_given=maps.chi_ppm is not None)[0]
    if "field_sigma" not in description_of(own).config.inputs:
        return maps
    return replace(maps, field_sigma_ppm=field_error(maps).sigma_ppm)


def _on_cpu(volume: Volume | None) -> Volume | None:
    return None if volume is None else volume.cpu()


def _solve(method: Method, maps: Maps, config: object, device: str, progress: Progress | None) -> Any:  # noqa: ANN401
    check_device(device)
    for name, attribute in _ATTRIBUTES.items():
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
    # A method that takes R2* must not read R2': without a spin echo, R2' is an assumption.
    unread: dict[str, Any] = {a: None for n, a in _ATTRIBUTES.items() if n not in method.needs + method.uses}
    solve, default = method.load()
    config = config or default()
    if isinstance(config, NetworkOptions) and maps.field_sigma_ppm is None and maps.magnitude is not None:
        maps = _with_field_sigma(method, maps, config)
    maps = replace(maps, **unread)
    result = solve(maps.to(device), config, progress)
    if not isinstance(config, NetworkOptions):
        return result
    warnings = (*result.convergence.warnings, *range_warnings(method.name, maps, config))
    return replace(result, convergence=replace(result.convergence, warnings=warnings))
