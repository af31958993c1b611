"""Resampling of volumes to another grid through world coordinates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Affine, Echoes, Grid, MaskVolume

Resampled = Float[Tensor, "echo2 i2 j2 k2"]
"""Volumes on the grid they were moved to, whose shape is another than that of the input."""
_COVERED = 0.5 - 1e-6


def coverage(
    shape: tuple[int, int, int],
    affine: Affine,
    grid: Grid,
    *,
    transform: Affine | None = None,
    mask: MaskVolume | None = None,
) -> MaskVolume:
    """Coverage: which voxels of a grid lie inside a volume.

    Parameters
    ----------
    shape
        Number of voxels of the volume.
    affine
        Its voxel index to world mm, shape (4, 4).
    grid
        Grid of the result.
    transform
        World mm of the grid to world mm of the volume, as `Rigid.fixed_to_moving_mm`; None for none.
    mask
        Voxels of the grid to test, shape grid.shape; all if None.

    Returns
    -------
    MaskVolume
        Shape grid.shape, False outside `mask`. A voxel reaches half an edge beyond its centre.
    """
    matrix, offset = _pull(affine, grid, transform)
    ones = np.ones(shape, dtype=np.float32)
    if mask is None:
        part = ndimage.affine_transform(
            ones, matrix, offset, output_shape=grid.shape, order=1, mode="grid-constant"
        )
        return torch.from_numpy(np.asarray(part) > _COVERED)
    covered = mask.cpu().numpy().copy()
    points = _voxels(covered, matrix, offset)
    covered[covered] = ndimage.map_coordinates(ones, points, order=1, mode="grid-constant") > _COVERED
    return torch.from_numpy(covered)


# Long because the docstring states the whole contract.
def resample_to(
    data: Echoes,
    affine: Affine,
    grid: Grid,
    *,
    transform: Affine | None = None,
    interpolation: Literal["linear", "cubic", "quintic"] = "cubic",
    mask: MaskVolume | None = None,
    source: str = "image",
) -> Resampled:
    """Resample volumes to a grid through world coordinates, in one interpolation.

    Parameters
    ----------
    data
        Volumes on their own grid, shape (echo, i, j, k).
    affine
        Voxel index of `data` to scanner mm, shape (4, 4).
    grid
        Grid of the result.
    transform
        World mm of the grid to world mm of the data, as `Rigid.fixed_to_moving_mm`; None: positions of
        the headers hold.
    interpolation
        Cubic splines keep the resolution, those of order 5 up to the finest detail; linear interpolation
        blurs but does not overshoot.
    mask
        Voxels of the grid to resample, all within `data` (see `coverage`), shape grid.shape; all that
        `data` covers if None.
    source
        Name of the data, for messages.

    Returns
    -------
    Resampled
        Shape (echo, *grid.shape); 0 where `data` has no voxel and outside `mask`, and nowhere negative if
        `data` is not.

    Raises
    ------
    InputError
        If no mask is given and no voxel of the grid lies inside `data`.
    """
    i, j, k = data.shape[1:]
    if mask is None:
        inside = coverage((i, j, k), affine, grid, transform=transform).numpy()
    else:
        inside = mask.cpu().numpy()
    if mask is None and not inside.any():
        raise no_overlap(source)
    matrix, offset = _pull(affine, grid, transform)
    # Where most voxels are resampled, a list of their positions would only take time and memory.
    points = None if mask is None else _voxels(inside, matrix, offset)
    order = {"linear": 1, "cubic": 3, "quintic": 5}[interpolation]
    volumes = data.detach().cpu().numpy()
    lowest = 0.0 if volumes.min() >= 0 else -np.inf
    moved = np.zeros((len(volumes), *grid.shape), dtype=volumes.dtype)

    def resample(echo: int) -> None:
        # Beyond the edge the nearest value is used instead of 0.
        if points is None:
            ndimage.affine_transform(
                volumes[echo], matrix, offset, output=moved[echo], order=order, mode="nearest"
            )
            np.maximum(moved[echo], lowest, out=moved[echo])
            moved[echo][~inside] = 0
        else:
            values = ndimage.map_coordinates(volumes[echo], points, order=order, mode="nearest")
            moved[echo][inside] = np.maximum(values, lowest)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(resample, range(len(volumes))))
    return torch.from_numpy(moved).to(data.device)


def no_overlap(source: str) -> InputError:
    """Say that a volume lies elsewhere than the gradient echo; the caller raises it."""
    return InputError(
        source,
        found="a volume that does not overlap the gradient-echo images in scanner coordinates",
        expected="scans of the same head in one session, with positions in their headers",
        fix="Check the affines; images moved by another program must be brought back first.",
    )


def _voxels(mask: NDArray[np.bool_], matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Map the voxels of a mask by an affine transform; shape (3, voxel)."""
    index = np.nonzero(mask)
    points = np.repeat(offset[:, None], len(index[0]), axis=1)
    # Summed in this order, the coordinates are those of ndimage.affine_transform to the last bit.
    for row, factors in zip(points, matrix, strict=True):
        for factor, along in zip(factors, index, strict=True):
            row += factor * along
    return points


def _pull(affine: Affine, grid: Grid, transform: Affine | None) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from voxels of the grid to voxels of a volume."""
    placed = grid.matrix() if transform is None else transform @ grid.matrix()
    matrix = np.linalg.solve(affine, placed)
    return matrix[:3, :3], matrix[:3, 3]
