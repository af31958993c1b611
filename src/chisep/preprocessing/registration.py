"""Bring images of one session onto one grid."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Affine, Echoes, Grid

Resampled = Float[Tensor, "echo a b c"]
"""Volumes on the grid they were moved to, whose shape is another than that of the input."""

_COVERED = 0.5 - 1e-6


def resample_to(data: Echoes, affine: Affine, grid: Grid, *, source: str = "image") -> Resampled:
    """Resample volumes to a grid through scanner coordinates, linearly; no motion is estimated.

    Parameters
    ----------
    data
        Volumes on their own grid, shape (echo, i, j, k).
    affine
        Voxel index of `data` to scanner mm, shape (4, 4).
    grid
        Where the result lives.
    source
        Name of the data, for messages.

    Returns
    -------
    Resampled
        Shape (echo, *grid.shape); 0 where `data` has no voxel.

    Raises
    ------
    InputError
        If no voxel of the grid lies inside `data`.
    """
    matrix = np.linalg.solve(affine, grid.matrix())
    linear, offset = matrix[:3, :3], matrix[:3, 3]

    def resampled(volume: np.ndarray, mode: str) -> np.ndarray:
        return np.asarray(
            ndimage.affine_transform(volume, linear, offset, output_shape=grid.shape, order=1, mode=mode)
        )

    # A voxel reaches half an edge beyond its centre: there the nearest value holds instead of a fade to 0.
    covered = resampled(np.ones(data.shape[1:], dtype=np.float32), "grid-constant") > _COVERED
    if not covered.any():
        raise InputError(
            source,
            found="a volume that does not overlap the gradient-echo images in scanner coordinates",
            wanted="scans of the same head in one session, with positions in their headers",
            remedy="Check the affines; images moved by another program must be brought back first.",
        )
    volumes = data.detach().cpu().numpy()
    moved = np.stack([np.where(covered, resampled(volume, "nearest"), 0) for volume in volumes])
    return torch.from_numpy(moved.astype(volumes.dtype, copy=False)).to(data.device)
