"""Leave-one-orientation-out error: a measure of χ that needs no truth, from several head orientations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chisep import methods
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.networks.inference import NetworkOptions
from chisep.physics.dipole import Dipole
from chisep.physics.signal import default_relaxivity
from chisep.progress import Progress
from chisep.solvers.cosmos import CosmosConfig, cosmos
from chisep.training.data import FoldersConfig, acquisition_path, field_maps, r2prime_path
from chisep.types import Grid, Maps, MaskVolume, Volume

COSMOS = "cosmos"
"""Name of COSMOS among the methods; it reads all orientations but the one that is left out."""
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Scans:
    """Orientations of one participant on one grid.

    Parameters
    ----------
    names
        One per orientation.
    maps
        Measured maps of each; R2' is that of the scan with a spin echo.
    common
        Where every field is known, shape (i, j, k).
    """

    names: Sequence[str]
    maps: Sequence[Maps]
    common: MaskVolume


def read_scans(dataset: Path, subject: str) -> Scans:
    """Read the maps that `chisep orientations`, or `chisep simulate --maps`, wrote of one participant.

    Raises
    ------
    InputError
        If there are fewer than two orientations, or a map is missing, unreadable or on another grid.
    """
    folders = FoldersConfig(dataset, (), ())
    paths = field_maps(folders, subject)
    if len(paths) < _FEWEST:
        raise InputError(
            paths[0],
            found="the only orientation",
            expected="two or more, of which one is left out",
            fix="Give a dataset of `chisep orientations`.",
        )
    mask = nifti.load_mask(bids.derivative_path(folders.folder("masks"), subject, "mask", desc="brain"))
    common = torch.from_numpy(mask.data)
    rates = r2prime_path(folders, subject)

    def read(path: Path) -> Volume | None:
        if not path.is_file():
            return None
        image = nifti.load(path)
        nifti.require_same_grid(mask, image)
        return torch.from_numpy(image.data)

    found = []
    for path in paths:
        field = nifti.load(path)
        nifti.require_same_grid(mask, field)
        facts = bids.read_sidecar(path, dataset)
        b0_t = float(facts.get("MagneticFieldStrength", 3.0))
        known = read(path.with_name(path.name.replace("desc-local_fieldmap", "desc-eroded_mask")))
        inside = common if known is None else known > 0
        found.append(
            Maps(
                field_ppm=torch.from_numpy(field.data),
                mask=inside,
                grid=nifti.grid_of(field, facts.get("B0DirectionVoxelAxes")),
                relaxivity=default_relaxivity(b0_t),
                r2prime_hz=read(rates),
                r2prime_sigma_hz=read(rates.with_name(rates.name.replace("_R2prime", "_stat-std_R2prime"))),
                r2star_hz=read(acquisition_path(folders, "r2star", subject, path)),
                field_sigma_ppm=read(path.with_name(path.name.replace("_fieldmap", "_stat-std_fieldmap"))),
                support=inside,
                b0_t=b0_t,
            )
        )
    return Scans([path.name.split("_desc")[0] for path in paths], found, common)


def prediction_error(chi_ppm: Volume, other: Maps, common: MaskVolume) -> float:
    """NRMSE in % of the field that χ predicts in another orientation, in the common mask."""
    predicted = Dipole(other.grid).apply(chi_ppm)
    measured = other.field_ppm[common]
    error = torch.linalg.vector_norm(predicted[common] - measured)
    return 100 * float(error / torch.linalg.vector_norm(measured))


def left_out_errors(
    scans: Scans,
    names: Sequence[str],
    network: NetworkOptions | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Leave-one-orientation-out error of several methods.

    Parameters
    ----------
    scans
        Orientations of one participant.
    names
        Separation methods, dipole inversions, or `cosmos`. COSMOS reads all orientations but one; any other
        method reads one orientation, and the others are left out in turn.
    network
        Weights for methods that are networks.
    device
        Device of the computation.
    progress
        Called with method and orientation.

    Returns
    -------
    dict
        Method → `nrmse_percent`, the mean over all fields that were left out, and `left_out`: orientation →
        the mean over the predictions of its field.

    Raises
    ------
    InputError
        If a method is not known, or a map that it needs is missing.
    """
    results = {}
    for done, name in enumerate(names):
        errors: dict[str, list[float]] = {scan: [] for scan in scans.names}
        for number, scan in enumerate(scans.names):
            if progress is not None:
                progress(f"{name}: {scan}", done, len(names))
            others = [other for other in range(len(scans.names)) if other != number]
            if name == COSMOS:
                chi = cosmos_of([scans.maps[other] for other in others])
                errors[scan].append(prediction_error(chi, scans.maps[number], scans.common))
                continue
            chi = chi_of(scans.maps[number], name, network or NetworkOptions(), device)
            for other in others:
                error = prediction_error(chi, scans.maps[other], scans.common)
                errors[scans.names[other]].append(error)
        means = {scan: sum(values) / len(values) for scan, values in errors.items()}
        results[name] = {"nrmse_percent": sum(means.values()) / len(means), "left_out": means}
    return results


def cosmos_of(maps: Sequence[Maps]) -> Volume:
    """COSMOS of some orientations, weighted by their σ where it is known."""
    sigmas = [one.field_sigma_ppm for one in maps]
    known = [sigma for sigma in sigmas if isinstance(sigma, Tensor)]
    masks = torch.stack([one.mask for one in maps])
    return cosmos(
        torch.stack([one.field_ppm for one in maps]),
        masks,
        [one.grid.b0_direction for one in maps],
        _plain(maps[0].grid),
        CosmosConfig(),
        sigmas_ppm=torch.stack(known) if len(known) == len(maps) else None,
        support=masks.any(0),
    ).chi_ppm


def _plain(grid: Grid) -> Grid:
    return replace(grid, b0_direction=(0.0, 0.0, 1.0))


def chi_of(maps: Maps, name: str, network: NetworkOptions, device: str) -> Volume:
    """Compute χ of one orientation: by a dipole inversion, or as χ_pos − χ_neg of a separation."""
    method = methods.METHODS.get(name)
    if method is None:
        raise InputError(
            "--methods",
            found=name,
            expected=f"{COSMOS}, or one of: {', '.join(methods.METHODS)}",
            fix="Correct the name.",
        )
    config = methods.config_for(name, network if method.is_network else NetworkOptions())
    if method.target == "chi":
        return methods.invert(maps, name, config, device=device).chi_ppm
    return methods.separate(maps, name, config, device=device).chi_ppm


def as_json(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Round the results of `left_out_errors` for people."""
    return {
        method: {
            "nrmse_percent": round(found["nrmse_percent"], 3),
            "left_out": {scan: round(error, 3) for scan, error in found["left_out"].items()},
        }
        for method, found in results.items()
    }
