"""χ maps of a training dataset: what a QSM method makes of every local field, written beside the maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from chisep import methods
from chisep.io import bids, nifti
from chisep.io.files import write_json
from chisep.training.data import FoldersConfig, acquisition_path, field_maps
from chisep.types import Maps

Progress = Callable[[str, int, int], None]
"""Called with what is being made, how many are done, and of how many."""


def make_chi_maps(
    folders: FoldersConfig,
    subjects: tuple[str, ...],
    method: str,
    config: object = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Path]:
    """Invert the local fields of some subjects; maps that are there are kept.

    Parameters
    ----------
    folders
        The dataset; maps are written to its `qsm` folder.
    subjects
        Labels without `sub-`.
    method
        A method that makes χ.
    config
        Its config; defaults if None.
    device
        Where to compute.
    progress
        Told which map is being made.

    Returns
    -------
    list of Path
        The χ maps in ppm, one per scan.

    Raises
    ------
    InputError
        If a map is missing or unreadable, or there is no such method.
    OutputError
        If a map cannot be written.
    """
    root = folders.folder("qsm")
    bids.write_dataset_description(root, f"χ by {method}", derivative=True)
    todo = [(subject, path) for subject in subjects for path in field_maps(folders, subject)]
    found = []
    for done, (subject, path) in enumerate(todo):
        target = acquisition_path(folders, "qsm", subject, path)
        found.append(target)
        if target.is_file():
            continue
        if progress is not None:
            progress(target.name, done, len(todo))
        image = nifti.load(path)
        mask = nifti.load_mask(bids.derivative_path(folders.folder("masks"), subject, "mask", desc="brain"))
        facts = bids.read_sidecar(path, folders.dataset)
        grid = nifti.grid_of(image, facts.get("B0DirectionVoxelAxes"))
        inside = torch.from_numpy(mask.data)
        maps = Maps(torch.from_numpy(image.data) * inside, inside, grid)
        chi = methods.invert(maps, method, config, device=device).chi_ppm
        write_json(bids.sidecar_of(target), {"Units": "ppm", "Method": method, **_facts(facts)})
        nifti.save(target, chi.numpy(), image.affine)
    if progress is not None:
        progress("χ maps", len(todo), len(todo))
    return found


def _facts(sidecar: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in sidecar.items() if k in ("MagneticFieldStrength", "B0DirectionVoxelAxes")}
