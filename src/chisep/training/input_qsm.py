"""Input χ maps of a training dataset: dipole inversion of every local field by a QSM method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chisep import methods
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import write_json
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.training.data import FoldersConfig, acquisition_path, field_maps
from chisep.types import Affine, Maps


# Long because its contract is: the work is one loop.
def make_chi_maps(
    folders: FoldersConfig,
    subjects: tuple[str, ...],
    method: str,
    options: NetworkOptions | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Path]:
    """Dipole inversion of the local fields of subjects; existing maps are kept.

    Parameters
    ----------
    folders
        The dataset; maps are written to its `qsm` folder.
    subjects
        Labels without `sub-`.
    method
        A QSM method.
    options
        Weights, for a network.
    device
        Device to compute on.
    progress
        Receives the map that is being made.

    Returns
    -------
    list of Path
        The χ maps in ppm, one per scan.

    Raises
    ------
    InputError
        If a map is missing or unreadable, there is no such method or weights, or the folder has maps of
        another method.
    OutputError
        If a map cannot be written.
    """
    options = options or NetworkOptions()
    methods.find(method, "chi")
    config = methods.config_for(method, options)
    used = methods.weights_used(method, options, chi_given=False)
    made_by: dict[str, Any] = {"Method": method, **({"Weights": used} if used else {})}
    root = folders.folder("qsm")
    todo = [(subject, path) for subject in subjects for path in field_maps(folders, subject)]
    found = []
    for done, (subject, path) in enumerate(todo):
        target = acquisition_path(folders, "qsm", subject, path)
        found.append(target)
        if target.is_file():
            _refuse_others(target, made_by, folders.dataset)
            continue
        if not (root / bids.DESCRIPTION).is_file():
            bids.write_dataset_description(root, f"χ by {method}", derivative=True)
        if progress is not None:
            progress(target.name, done, len(todo))
        maps, affine, facts = _local_field(folders, subject, path)
        chi = methods.invert(maps, method, config, device=device).chi_ppm
        write_json(bids.sidecar_of(target), {"Units": "ppm", **made_by, **_facts(facts)})
        nifti.save(target, chi.numpy(), affine)
    if progress is not None:
        progress("χ maps", len(todo), len(todo))
    return found


def _local_field(folders: FoldersConfig, subject: str, path: Path) -> tuple[Maps, Affine, dict[str, Any]]:
    """Read a local field within its brain mask, with its affine and sidecar."""
    image = nifti.load(path)
    mask = nifti.load_mask(bids.derivative_path(folders.folder("masks"), subject, "mask", desc="brain"))
    facts = bids.read_sidecar(path, folders.dataset)
    grid = nifti.grid_of(image, facts.get("B0DirectionVoxelAxes"))
    inside = torch.from_numpy(mask.data)
    return Maps(torch.from_numpy(image.data) * inside, inside, grid), image.affine, facts


def missing_chi_maps(folders: FoldersConfig, subjects: tuple[str, ...]) -> list[Path]:
    """List the missing χ maps.

    Raises
    ------
    InputError
        If a subject has no local field.
    """
    targets = [
        acquisition_path(folders, "qsm", subject, path)
        for subject in subjects
        for path in field_maps(folders, subject)
    ]
    return [target for target in targets if not target.is_file()]


def _refuse_others(target: Path, made_by: dict[str, Any], dataset: Path) -> None:
    """Refuse χ maps of another method or weights; maps of other software are accepted."""
    known = bids.read_sidecar(target, dataset)
    if "Method" in known and any(known.get(fact) != value for fact, value in made_by.items()):
        raise InputError(
            target,
            found=f"a map by {known['Method']} or by other weights",
            expected=f"maps by {made_by['Method']} and one set of weights only",
            fix="Give another folder for the χ maps (--data.qsm), or remove the old ones.",
        )


def _facts(sidecar: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in sidecar.items() if k in ("MagneticFieldStrength", "B0DirectionVoxelAxes")}
