"""The command `evaluate`: metrics of source maps against the truth, or of methods without a truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from chisep import metrics
from chisep.api.files import SOURCE_FILES
from chisep.api.left_out_orientation import COSMOS, as_json, left_out_errors, read_scans
from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.discovery import participant_folders
from chisep.networks.inference import NetworkOptions


@dataclass(frozen=True)
class EvaluateConfig:
    """Source maps and their ground truth, or several head orientations, which need no truth."""

    pred: Path | None = None
    """Folder with the maps to evaluate (desc-…_Chimap.nii.gz)."""
    truth: Path | None = None
    """Folder with the true maps, with the same file names."""
    mask: Path | None = None
    """Mask of the evaluation (NIfTI)."""
    orientations: Path | None = None
    """Dataset of `chisep orientations` (or `chisep simulate --maps`): instead of maps and truth, methods are
    evaluated by how well χ of one head orientation predicts the field of the others."""
    methods: tuple[str, ...] = (COSMOS, "unrolled", "iterative", "closed-form", "unrolled-qsm", "tikhonov")
    """With --orientations: methods, by name; cosmos reads all orientations but the one that is left out."""
    participant_label: tuple[str, ...] = ()
    """With --orientations: participants, with or without `sub-`; if unset: all."""
    device: str = "cpu"
    """With --orientations: device of the computation: cpu, cuda, cuda:1, …"""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    """With --orientations: for methods that are networks."""

    def __post_init__(self) -> None:
        maps = (self.pred, self.truth, self.mask)
        if (self.orientations is None) == all(path is None for path in maps) or (
            self.orientations is None and None in maps
        ):
            raise InputError(
                "chisep evaluate",
                found="--orientations and maps, or neither, or one of --pred, --truth and --mask alone",
                expected="--pred, --truth and --mask, or --orientations",
                fix="Give the folders of maps and truth, and the mask; or a dataset of orientations.",
            )


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Compute all metrics of every map that both folders have, or leave-one-orientation-out errors.

    Returns
    -------
    dict
        For paramagnetic, diamagnetic and total: all metrics by name; None where one is not defined. With
        orientations: for every participant its errors as of `left_out_errors`.

    Raises
    ------
    InputError
        If no map is in both folders, one is there twice, or grids differ; with orientations as
        `chisep.api.left_out_orientation.left_out_errors`.
    """
    if config.orientations is not None:
        return _without_truth(config, config.orientations)
    if config.pred is None or config.truth is None or config.mask is None:
        raise ValueError("maps were checked to be given")
    mask = nifti.load_mask(config.mask)
    scores: dict[str, dict[str, float | None]] = {}
    for source, name in SOURCE_FILES.items():
        paths = [_only(folder, name) for folder in (config.pred, config.truth)]
        if None in paths:
            continue
        pred, truth = (nifti.load(path) for path in paths if path)
        for image in (truth, mask):
            nifti.require_same_grid(pred, image)
        values = metrics.evaluate(pred.data, truth.data, mask.data)
        scores[source] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    if not scores:
        raise InputError(
            config.pred,
            found="no map that is also in " + str(config.truth),
            expected=", ".join(SOURCE_FILES.values()),
            fix="Give the folders that hold the maps of one subject.",
        )
    return scores


def _without_truth(config: EvaluateConfig, dataset: Path) -> dict[str, dict[str, Any]]:
    """Leave-one-orientation-out errors of every participant."""
    folder = dataset / "derivatives" / "maps"
    found = participant_folders(folder)
    chosen = [f"sub-{label.removeprefix('sub-')}" for label in config.participant_label] or found
    if not found or not set(chosen) <= set(found):
        raise InputError(
            folder,
            found=f"participants: {', '.join(found) or 'none'}",
            expected=", ".join(chosen) or "sub-…, as `chisep orientations` writes them",
            fix="Check the dataset and --participant-label.",
        )
    return {
        name: as_json(
            left_out_errors(
                read_scans(dataset, name.removeprefix("sub-")),
                config.methods,
                config.network,
                device=config.device,
            )
        )
        for name in chosen
    }


def _only(folder: Path, name: str) -> Path | None:
    """Return the one file of that name, possibly after subject and session, in a folder or below it."""
    found = sorted(folder.rglob(f"*{name}"))
    if len(found) > 1:
        raise InputError(
            folder,
            found=f"{len(found)} files *{name}",
            expected="one",
            fix="Give the folder of one subject.",
        )
    return found[0] if found else None
