"""Brain mask from gradient-echo magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from chisep.errors import InputError
from chisep.types import Echoes, Grid, MaskVolume

_DARK_CLASS = 0.3
"""Below this ratio of Otsu's two class means, the darker class is air and not tissue."""
_TISSUE_FRACTION = 0.3
"""Signal that counts as tissue, relative to the median, in a volume without air."""


@dataclass(frozen=True)
class MaskConfig:
    """How the brain is told from the rest of the head."""

    erosion_mm: float = 4.0
    """Erosion that cuts the bridges between brain and scalp; undone afterwards."""
    closing_mm: float = 3.0
    """Gaps of up to twice this width (veins, sulci) are closed."""
    low_signal: float = 0.1
    """Voxels below this fraction of the brain's median signal are left out: their phase is noise."""

    def __post_init__(self) -> None:
        for name in ("erosion_mm", "closing_mm", "low_signal"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"mask option {name}",
                    found=f"{value}",
                    wanted="0 or more",
                    remedy="Leave it at its default.",
                )


def brain_mask(magnitude: Echoes, grid: Grid, config: MaskConfig | None = None) -> MaskVolume:
    """Find the brain by threshold and morphology.

    Otsu's threshold tells tissue from air and bone; an erosion parts brain and scalp, the component
    deepest inside the head is kept and grown back. A volume without air around (a crop inside the
    brain) has no scalp to be cut off: all its tissue is the mask.

    Parameters
    ----------
    magnitude
        Gradient-echo magnitudes, shape (echo, i, j, k), any scale.
    grid
        Their grid.
    config
        Options; defaults where None.

    Returns
    -------
    MaskVolume
        True in the brain, shape (i, j, k).

    Raises
    ------
    InputError
        If no voxel is left.
    """
    config = config or MaskConfig()
    image = magnitude.detach().square().sum(0).sqrt().cpu().numpy()
    if not image.max() > image.min():
        raise _nothing("a constant image")
    tissue, has_air = _tissue(image)
    brain = _deepest_component(tissue, grid, config) if has_air else tissue
    brain = _closed(brain, config.closing_mm, grid)
    if brain.any():
        brain &= image > config.low_signal * np.median(image[brain])
    if not brain.any():
        raise _nothing(f"no voxel left of {int(tissue.sum())} with signal")
    return torch.from_numpy(brain).to(magnitude.device)


def _nothing(found: str) -> InputError:
    return InputError(
        "brain mask",
        found=found,
        wanted="a gradient-echo magnitude of a head or a part of the brain",
        remedy="Check the magnitude images, or give a mask of your own.",
    )


def _tissue(image: NDArray[np.floating]) -> tuple[NDArray[np.bool_], bool]:
    """Voxels with signal, and whether there is air around them."""
    # Bright fat and vessels would pull the threshold up: the histogram ends at the 99th percentile.
    clipped = np.minimum(image, np.percentile(image, 99))
    threshold = float(threshold_otsu(clipped))
    tissue = clipped > threshold
    has_air = bool(clipped[~tissue].mean() < _DARK_CLASS * clipped[tissue].mean())
    if not has_air:
        tissue = image > _TISSUE_FRACTION * np.median(image)
    return tissue, has_air


def _inside(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.floating]:
    """Distance in mm to the nearest voxel outside the mask; the edge of the volume counts as inside."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=grid.voxel_mm))


def _deepest_component(tissue: NDArray[np.bool_], grid: Grid, config: MaskConfig) -> NDArray[np.bool_]:
    """Part brain and scalp, keep the component deepest in the head and grow it back within the tissue."""
    parts, count = ndimage.label(_inside(tissue, grid) > config.erosion_mm)
    if count == 0:
        return np.zeros_like(tissue)
    # The scalp may have more voxels than a small brain, but none of them lies deep under the skin.
    head = ndimage.binary_fill_holes(_closed(tissue, config.erosion_mm, grid))
    depth = ndimage.sum_labels(_inside(head, grid), parts, index=np.arange(1, count + 1))
    core = parts == 1 + int(np.argmax(depth))
    return tissue & (_inside(~core, grid) <= config.erosion_mm)


def _closed(mask: NDArray[np.bool_], radius_mm: float, grid: Grid) -> NDArray[np.bool_]:
    """Morphological closing with a ball, then hole filling."""
    if not mask.any():
        return mask
    grown = _inside(~mask, grid) <= radius_mm
    return np.asarray(ndimage.binary_fill_holes(mask | (_inside(grown, grid) > radius_mm)))
