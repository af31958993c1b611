"""The command `evaluate`: metrics of source maps against the ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from chisep import metrics
from chisep.api.files import SOURCE_FILES
from chisep.errors import InputError
from chisep.io import nifti


@dataclass(frozen=True)
class EvaluateConfig:
    """Source maps and their ground truth."""

    pred: Path
    """Folder with the maps to evaluate (desc-…_Chimap.nii.gz)."""
    truth: Path
    """Folder with the true maps, with the same file names."""
    mask: Path
    """Mask of the evaluation (NIfTI)."""


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, float | None]]:
    """Compute all metrics of every map that both folders have.

    Returns
    -------
    dict
        For paramagnetic, diamagnetic and total: all metrics by name; None where one is not defined.

    Raises
    ------
    InputError
        If no map is in both folders, one is there twice, or grids differ.
    """
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
