"""Maps of a simulated subject: those of the pipeline, and the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chisep.io import bids, nifti
from chisep.types import Affine, Grid

SUBJECT = "01"
"""Label of the subject: a simulated dataset of an experiment has one."""


class MapReader:
    """Maps of the subject, of the pipeline and of the truth, on one grid.

    Parameters
    ----------
    truth, derivatives
        Derivatives datasets of the truth and of the pipeline.
    """

    def __init__(self, truth: Path, derivatives: Path) -> None:
        self.truth, self.derivatives = truth, derivatives

    def path(self, root: Path, name: str) -> Path:
        """Path of a map."""
        return root / f"sub-{SUBJECT}" / "anat" / f"sub-{SUBJECT}_{name}.nii.gz"

    def has(self, name: str) -> bool:
        """Whether the pipeline wrote a map."""
        return self.path(self.derivatives, name).is_file()

    def made(self, name: str) -> NDArray[np.float32]:
        """Map of the pipeline."""
        return nifti.load(self.path(self.derivatives, name)).data

    def true(self, name: str) -> NDArray[np.float32]:
        """Map of the truth."""
        return nifti.load(self.path(self.truth, name)).data

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Mask of the pipeline."""
        return nifti.load_mask(self.path(self.derivatives, name)).data

    def true_mask(self, name: str) -> NDArray[np.bool_]:
        """Mask of the truth."""
        return nifti.load_mask(self.path(self.truth, name)).data

    def sidecar(self, root: Path, name: str) -> dict[str, Any]:
        """Metadata beside an image."""
        path = bids.sidecar_of(self.path(root, name))
        return dict(json.loads(path.read_text(encoding="utf-8")))

    @property
    def affine(self) -> Affine:
        """Affine of the grid."""
        return nifti.load_mask(self.path(self.truth, "desc-brain_mask")).affine

    @property
    def grid(self) -> Grid:
        """Grid of the scan, with the B0 direction of its sidecar."""
        name = "desc-local_fieldmap"
        return nifti.grid_of(
            nifti.load(self.path(self.truth, name)),
            self.sidecar(self.truth, name).get("B0DirectionVoxelAxes"),
        )
