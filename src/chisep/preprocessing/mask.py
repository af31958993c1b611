"""Brain masks: brain extraction from gradient-echo magnitudes, phase-quality masks, and given masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from chisep.errors import InputError
from chisep.preprocessing.bet import extract_brain
from chisep.preprocessing.head_size import adult_grid, adult_lengths, head_scale
from chisep.preprocessing.morphology import (
    closed_and_filled,
    closing,
    dilated,
    distance_inside,
    eroded,
    largest_component,
)
from chisep.types import Echoes, Grid, MaskVolume, Volume

_DARK_CLASS = 0.3
"""Below this ratio of Otsu's two class means, the darker class is air and not tissue."""
_TISSUE_FRACTION = 0.3
"""Signal that counts as tissue, relative to the median, in a volume without air."""
_LEAST_OUTSIDE = 0.05
"""Part of the volume outside a mask with all corners in it, from which on that is a brain cut out."""
_LEAST_ML, _LEAST_VOXELS = 1.0, 1000
"""A mask that a user gives has this volume, or for a small animal this many voxels."""
_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]


@dataclass(frozen=True)
class MaskConfig:
    """Settings of the brain extraction."""

    method: Literal["bet", "threshold"] = "bet"
    """Surface evolution (BET), or threshold and morphology, which need a brain that is separate from muscle
    and fat. In a volume without air (a crop) all tissue is the mask in both cases."""
    fraction: float = 0.5
    """For BET: the surface stops where the signal falls below this fraction of the signal inside; larger
    values make the mask smaller."""
    fluid_decay: float = 0.5
    """For BET: CSF on the brain's surface, which decays more slowly than this fraction of the brain's median
    rate, is left out; 0 keeps it. It is kept where there is one echo only."""
    erosion_mm: float = 4.0
    """For threshold: erosion in mm that separates brain and scalp; undone afterwards."""
    closing_mm: float = 3.0
    """For threshold: gaps of up to twice this width (veins, sulci) are closed."""
    low_signal: float = 0.1
    """Voxels below this fraction of the brain's median signal are left out: their phase is noise."""

    def __post_init__(self) -> None:
        for name in ("fluid_decay", "erosion_mm", "closing_mm", "low_signal"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"mask option {name}",
                    found=f"{value}",
                    expected="0 or more",
                    fix="Leave it at its default.",
                )
        if not 0 < self.fraction < 1:
            raise InputError(
                "mask option fraction",
                found=f"{self.fraction}",
                expected="between 0 and 1",
                fix="Leave it at its default, or try 0.3 to 0.7.",
            )


@dataclass(frozen=True)
class QualityConfig:
    """Settings of the phase-quality mask for background removal."""

    least_quality: float = 0.45
    """Voxels with a lower phase quality (0 to 1) are poor."""
    vein_mm: float = 2.5
    """Poor regions that do not contain a ball of this radius in mm, such as veins, stay in the mask."""
    hole_ml: float = 1.0
    """Poor regions of up to this volume in ml stay if the mask encloses them."""

    def __post_init__(self) -> None:
        for name in ("least_quality", "vein_mm", "hole_ml"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(
                    f"phase quality option {name}",
                    found=f"{value}",
                    expected="0 or more",
                    fix="Leave it at its default.",
                )


def brain_mask(magnitude: Echoes, grid: Grid, config: MaskConfig | None = None) -> MaskVolume:
    """Brain extraction from gradient-echo magnitudes.

    By default a surface grows from the middle of the head to the edge of the brain (BET: Smith 2002,
    10.1002/hbm.10062). It grows in the last echo with enough signal, in which bone, fat and muscle have
    decayed more than brain and CSF. Voxels near the surface that hardly decay are CSF between brain and
    skull, and are left out, with sulci closed. Cortex that is dephased in that echo is added.
    Ratios of echoes do not depend on the coil's sensitivity, and BET compares signals over 2 cm
    only. Lengths scale with the head where it is that of a small animal.

    Parameters
    ----------
    magnitude
        Gradient-echo magnitudes in order of echo time, shape (echo, i, j, k), any scale.
    grid
        Their grid; its affine gives the top of the head.
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
        raise _no_brain("a constant image")
    tissue, has_air = _tissue(image)
    scale = head_scale(torch.from_numpy(tissue), grid) if has_air else 1.0
    grid, config = adult_grid(grid, scale), adult_lengths(config, scale)
    if has_air and config.method == "bet":
        brain = extract_brain(
            magnitude.detach().cpu().numpy(),
            image,
            grid,
            fraction=config.fraction,
            csf_decay=config.fluid_decay,
        )
    else:
        brain = _deepest_component(tissue, grid, config) if has_air else tissue
        brain = closed_and_filled(brain, config.closing_mm, grid)
    if brain.any():
        brain &= image > config.low_signal * np.median(image[brain])
    if not brain.any():
        raise _no_brain(f"no voxel left of {int(tissue.sum())} with signal")
    return torch.from_numpy(brain).to(magnitude.device)


def quality_mask(
    quality: Volume, mask: MaskVolume, grid: Grid, config: QualityConfig | None = None
) -> MaskVolume:
    """Phase-quality mask: a mask without regions of unreliable phase.

    Background removal reads the field in spheres or along the whole surface of the mask, so one region of
    wrong phase, such as above the nasal sinus, affects its surroundings. But what is left out becomes
    background: its own field is removed, and so is a rim of brain around every hole. So poor voxels are
    removed at the edge and in large clusters; single ones and veins stay, and small holes are filled.

    Parameters
    ----------
    quality
        Phase quality from 0 to 1, shape (i, j, k).
    mask
        Brain, shape (i, j, k).
    grid
        Voxel size.
    config
        Options; defaults where None.

    Returns
    -------
    MaskVolume
        Part of `mask`, connected, shape (i, j, k).

    Raises
    ------
    InputError
        If nothing is left.
    """
    config = config or QualityConfig()
    brain = mask.cpu().numpy()
    good = brain & (quality.detach().cpu().numpy() >= config.least_quality)
    kept = brain & closing(good, config.vein_mm, grid)
    holes, _ = ndimage.label(ndimage.binary_fill_holes(kept) & brain & ~kept)
    small = np.bincount(holes.ravel()) * (math.prod(grid.voxel_mm) / 1000) <= config.hole_ml
    kept |= small[holes] & (holes > 0)
    kept = largest_component(kept)
    if not kept.any():
        raise InputError(
            "phase quality",
            found=f"no voxel of the brain mask with a quality of {config.least_quality:g} or more",
            expected="phase images with signal in the brain",
            fix="Check that magnitude, phase and mask belong together.",
        )
    return torch.from_numpy(kept).to(mask.device)


def is_inverted(mask: MaskVolume) -> bool:
    """Whether a mask has all corners of the volume inside, and a brain outside; shape (i, j, k)."""
    corners = mask[:: _last(mask, 0), :: _last(mask, 1), :: _last(mask, 2)]
    return bool(corners.all()) and float((~mask).float().mean()) > _LEAST_OUTSIDE


def _last(mask: MaskVolume, axis: int) -> int:
    """Step from the first to the last index."""
    return max(1, mask.shape[axis] - 1)


def checked_mask(mask: Tensor, grid: Grid, source: str) -> MaskVolume:
    """Check a given mask.

    Parameters
    ----------
    mask
        0 outside and one other value inside, shape (i, j, k).
    grid
        Grid that it must be on.
    source
        Its file, for messages.

    Returns
    -------
    MaskVolume
        True inside.

    Raises
    ------
    InputError
        If the shape differs, there are other values, or the mask is (nearly) empty.
    """
    values = torch.unique(mask)
    inside = mask != 0
    ml = int(inside.sum()) * math.prod(grid.voxel_mm) / 1000
    found = None
    if tuple(mask.shape) != grid.shape:
        found = f"shape {tuple(mask.shape)}"
    elif not bool(values.isfinite().all()) or len(values) > 2 or (len(values) == 2 and values[0] != 0):
        found = f"{len(values)} different values from {float(values[0]):g} to {float(values[-1]):g}"
    elif ml < _LEAST_ML and int(inside.sum()) < _LEAST_VOXELS:
        found = f"{ml:.3g} ml"
    elif is_inverted(inside):
        found = "a mask with all corners of the volume inside and other voxels outside, as if inverted"
    if found:
        raise InputError(
            source,
            found=found,
            expected=f"a brain mask of 0 and 1, of shape {grid.shape} and at least {_LEAST_ML:g} ml",
            fix="Make the mask on the grid of the gradient echo, or leave it out to extract the brain.",
        )
    return inside


def _no_brain(found: str) -> InputError:
    return InputError(
        "brain mask",
        found=found,
        expected="a gradient-echo magnitude of a head or a part of the brain",
        fix="Check the magnitude images, or give a mask of your own.",
    )


def _tissue(image: _Image) -> tuple[_Inside, bool]:
    """Threshold the signal (Otsu); also returns whether there is air around the tissue."""
    # Bright fat and vessels would raise the threshold: the histogram ends at the 99th percentile.
    clipped = np.minimum(image, np.percentile(image, 99))
    threshold = float(threshold_otsu(clipped))
    tissue = clipped > threshold
    has_air = bool(clipped[~tissue].mean() < _DARK_CLASS * clipped[tissue].mean())
    if not has_air:
        tissue = image > _TISSUE_FRACTION * np.median(image)
    return tissue, has_air


def _deepest_component(tissue: _Inside, grid: Grid, config: MaskConfig) -> _Inside:
    """Erode, keep the component deepest in the head, and dilate it within the tissue."""
    parts, count = ndimage.label(eroded(tissue, config.erosion_mm, grid))
    if count == 0:
        return np.zeros_like(tissue)
    # The scalp may have more voxels than a small brain, but none of them lies deep under the skin.
    head = closed_and_filled(tissue, config.erosion_mm, grid)
    depth = ndimage.sum_labels(distance_inside(head, grid), parts, index=np.arange(1, count + 1))
    core = parts == 1 + int(np.argmax(depth))
    brain: _Inside = tissue & dilated(core, config.erosion_mm, grid)
    return brain
