"""Venous sinuses inside a brain mask: blood between the folds of the dura, which is no brain."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.morphology import depth_mm
from chisep.types import Grid, MaskVolume, Volume

FIT_ITERATIONS = 14
"""Iterations of the fit of `fitted_sources` that shows a sinus."""
_LEAST_CHI_PPM = 0.06
"""χ of a sinus as that fit shows it, smoothed over `_SMOOTHING_MM`: that of venous blood is
three times this or more, but the fit is too weak. With more iterations brain is above it too."""
_SMOOTHING_MM = 1.0
_LEAST_R2STAR, _LEAST_AROUND = 1.2, 0.5
"""R2* of venous blood, and of its partial volume with CSF or brain, relative to the median of the brain. So
tissue where the fit overshoots, next to a calcification, is no blood."""
_LEAST_ML = 0.1
_SURFACE_VOXELS = 2.0
"""A sinus comes as near to the surface of the mask, in voxels."""
_Image = Float[np.ndarray, "i j k"]
_Inside = Bool[np.ndarray, "i j k"]


def venous_sinuses(
    chi_ppm: Volume, mask: MaskVolume, grid: Grid, r2star_hz: Volume, b0_t: float
) -> MaskVolume:
    """Find the blood of venous sinuses in a brain mask.

    Brain extraction keeps the sinuses that lie between brain on two sides: their signal is that of brain.
    Their field is strong, and background removal takes it for a local field.

    Parameters
    ----------
    chi_ppm
        Sources that `FIT_ITERATIONS` of V-SHARP fit to the total field (`fitted_sources`), shape (i, j, k).
    mask
        Where the field is known, shape (i, j, k).
    grid
        Voxel size.
    r2star_hz
        In 1/s, 0 where it is not known, shape (i, j, k).
    b0_t
        Field strength in T.

    Returns
    -------
    MaskVolume
        Part of `mask`, shape (i, j, k).

    Notes
    -----
    A sinus is strongly paramagnetic, but has a small R2': blood is a fluid whose molecules move between the
    fields of its cells. Tissue with sources of both signs has an R2' of D_r·(χ_pos + χ_neg), at least D_r·χ,
    and so has the old blood of a haemorrhage. So voxels count whose χ, as the fit shows it, is above
    0.06 ppm, and whose R2* is more than 1.2 times the brain's median and less than the median plus D_r·χ.
    Connected ones of 0.1 ml or more that reach the surface of the mask are a sinus, with the voxels next to
    it that decay like blood.
    """
    known = mask & (r2star_hz > 0)
    if not bool(known.any()):
        return torch.zeros_like(mask)
    chi = chi_ppm.cpu().numpy()
    rate, inside = r2star_hz.cpu().numpy(), mask.cpu().numpy()
    typical_hz = float(r2star_hz[known].median())
    dr = default_relaxivity(b0_t).pos_hz_per_ppm
    smooth = _smoothed(chi, inside, grid)
    blood = inside & (smooth > _LEAST_CHI_PPM)
    blood &= (rate > _LEAST_R2STAR * typical_hz) & (rate < typical_hz + dr * smooth)
    blood = _large_at_the_surface(blood, depth_mm(mask, grid).cpu().numpy(), grid)
    if blood.any():
        strongest = float(np.quantile(smooth[blood], 0.9))
        around = inside & (chi > 0) & (rate > _LEAST_AROUND * typical_hz)
        around &= rate < typical_hz + dr * strongest
        blood = ndimage.binary_dilation(blood, mask=around) | blood
    return torch.from_numpy(blood).to(mask.device)


def _smoothed(values: _Image, inside: _Inside, grid: Grid) -> _Image:
    """Mean within a Gaussian over voxels inside."""
    width = [_SMOOTHING_MM / edge for edge in grid.voxel_mm]
    total, share = (
        ndimage.gaussian_filter(part.astype(np.float32), width, mode="constant") for part in (values, inside)
    )
    made: _Image = np.divide(total, share, out=np.zeros_like(total), where=inside)
    return made


def _large_at_the_surface(blood: _Inside, depth: _Image, grid: Grid) -> _Inside:
    """Keep connected components of some volume that come near the surface of the mask."""
    parts, count = ndimage.label(blood)
    numbers = np.arange(count + 1)
    ml = np.bincount(parts.ravel(), minlength=count + 1) * (math.prod(grid.voxel_mm) / 1000)
    kept = ml >= _LEAST_ML
    kept &= ndimage.minimum(depth, parts, numbers) <= 1.001 * _SURFACE_VOXELS * max(grid.voxel_mm)
    kept[0] = False
    return np.asarray(kept[parts])
