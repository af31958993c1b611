"""Error of the local field, voxel by voxel: noise of the total field, and what background removal leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, pad

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.robust import MAD_TO_SD
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.lbv import LbvConfig, lbv
from chisep.preprocessing.morphology import depth_mm
from chisep.preprocessing.vsharp import LocalField
from chisep.types import Grid, MaskVolume, Volume

RELIABLE_SIGMA = 0.6
"""Largest σ of the local field in the reliable mask, relative to the robust SD of the local field."""
_MOST_DISAGREEMENT = 1.2
"""Largest ratio of the error to the disagreement: large ones are about equal."""
_NEARBY_MM = 1.5
"""Standard deviation of the Gaussian over which the disagreement of two methods is averaged."""

_MISSING_MM, _COARSE_MM = 8.0, 4.0
"""The same for the field of missing brain, whose sources are not known one by one, and the grid for it."""
_MISSING_CHI = 5.0
"""Susceptibility of brain outside of the mask of the field, relative to S; its field is removed."""
_R2PRIME_PART = 6 / 7
"""R2' in what R2* has above the median; the rest is R2."""
_DEEP_MM = 6.0
"""Depth in the brain below which R2* is that of tissue: near air the field raises it."""


@dataclass(frozen=True)
class ErrorLaw:
    """Law of the error that background removal leaves at a depth d in the mask of the total field.

    σ² = S² (inner + rim·exp(−d / decay))² + min(disagreement · r²/S, 1.2 r)² + m², where S is the robust SD
    of the local field, r the RMS difference to the local field of LBV nearby, and m the RMS field nearby of
    the brain that is outside of this mask. It scales with the field.

    Parameters
    ----------
    inner, rim
        Relative to S.
    decay_mm
        Depth over which the error of the rim decreases to 1/e.
    disagreement
        Factor of r²/S: small differences say little, large ones are as large as the error.
    """

    inner: float
    rim: float
    decay_mm: float
    disagreement: float

    def sigma(
        self, noise: Tensor, depth_mm: Tensor, difference: Tensor, missing: Tensor, typical: float
    ) -> Tensor:
        """σ of noise and residual background, from d, r, m and S in the unit of the noise."""
        by_depth = typical * (self.inner + self.rim * torch.exp(-depth_mm / self.decay_mm))
        variance = noise.square() + by_depth.square_()
        variance += missing.square()
        if typical:
            factor = (self.disagreement / typical * difference).clamp_(max=_MOST_DISAGREEMENT)
            variance += (factor * difference).square_()
        return variance.sqrt_()


ERROR_LAWS: Mapping[str, ErrorLaw] = {
    "vsharp": ErrorLaw(0.02, 0.569, 10.2, 1.301),
    "pdf": ErrorLaw(0.105, 0.909, 7.24, 0.546),
    "lbv": ErrorLaw(0.0, 1.222, 23.5, 0.0),
}
"""By method, as `tools/field_error.py` fits them to simulated scans of 1 mm and SNR 50: V-SHARP to two heads,
the others to one. `inner` of V-SHARP was 0 there; it is a bit more for fields without noise."""


def local_field_sigma(
    method: str,
    local_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    total_field_ppm: Volume,
    sigma_ppm: Volume,
    *,
    known: MaskVolume,
    brain: MaskVolume | None = None,
    hole_chi_ppm: Volume | None = None,
) -> Volume:
    """Estimate the standard deviation of the local field's error: noise and residual background.

    Parameters
    ----------
    method
        Method of background removal, a key of `ERROR_LAWS`.
    local_field_ppm
        Its result, shape (i, j, k).
    mask
        Where the local field is known, shape (i, j, k).
    grid
        Voxel size.
    total_field_ppm, sigma_ppm
        Total field and the standard deviation of its noise, shape (i, j, k).
    known
        Where the total field is known, shape (i, j, k): depths are measured in it.
    brain
        Where there are sources whose field is wanted, shape (i, j, k); that of those outside `known` is
        removed. As `known` where None.
    hole_chi_ppm
        Susceptibility of strong sources among these, shape (i, j, k), as of `chi_of_holes`.

    Returns
    -------
    Volume
        In ppm, 0 outside `mask`, shape (i, j, k).

    Notes
    -----
    The field of sources in the brain and the background are separated by assumptions that differ between
    methods: where V-SHARP or PDF and LBV disagree, at least one is wrong. The disagreement shows errors that
    depth does not: near sinuses of blood inside the mask, at steep fields and rough outlines. Where phase is
    unreliable in a part of the brain, the field of this part is harmonic outside of it, and every method
    removes it.
    """
    law = ERROR_LAWS[method]
    depth, disagreement = error_terms(method, local_field_ppm, mask, grid, total_field_ppm, known=known)
    typical = robust_sd(local_field_ppm[mask])
    missing = torch.zeros_like(local_field_ppm)
    if brain is not None:
        missing = missing_brain(known, brain, grid, typical, hole_chi_ppm).to(local_field_ppm)
    return torch.where(mask, law.sigma(sigma_ppm, depth, disagreement, missing, typical), 0)


def error_terms(
    method: str,
    local_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    total_field_ppm: Volume,
    *,
    known: MaskVolume,
) -> tuple[Volume, Volume]:
    """Depth in mm and disagreement with LBV in ppm, the terms of the error law; parameters as above."""
    depth = depth_mm(known, grid).to(local_field_ppm.device, local_field_ppm.dtype)
    nothing = torch.zeros_like(local_field_ppm)
    if not ERROR_LAWS[method].disagreement:
        return depth, nothing
    try:
        other = lbv(total_field_ppm, known, grid, LbvConfig(rim_mm=0.0)).local_field_ppm
    except InputError:  # a mask too thin for LBV
        return depth, nothing
    difference = local_field_ppm - other
    difference -= difference[mask].median()
    return depth, _nearby_rms(difference, mask, grid)


def chi_of_holes(known: MaskVolume, brain: MaskVolume, grid: Grid, r2star_hz: Volume, b0_t: float) -> Volume:
    """Estimate χ of strong sources deep in the brain whose phase is unreliable, from R2*.

    Parameters
    ----------
    known, brain
        Masks of the total field and of the brain, shape (i, j, k).
    grid
        Voxel size.
    r2star_hz
        In 1/s, shape (i, j, k).
    b0_t
        Field strength in T.

    Returns
    -------
    Volume
        In ppm, shape (i, j, k): what R2' has above that of the brain, over D_r; 0 in `known`, outside the
        brain, and down to 6 mm below its surface.

    Notes
    -----
    At a high field strength the signal of nuclei and veins is lost first: at 7 T and 2 mm the brain that is
    missing deeper than 6 mm has 140 to 200 ppb RMS, and this estimate has a correlation of 0.95 with it.
    """
    typical_hz = r2star_hz[known & (r2star_hz > 0)].median() if bool((r2star_hz[known] > 0).any()) else 0.0
    chi = _R2PRIME_PART * (r2star_hz - typical_hz).clamp(min=0) / default_relaxivity(b0_t).pos_hz_per_ppm
    deep = brain & ~known & (depth_mm(brain, grid) > _DEEP_MM)
    return chi * deep


def missing_brain(
    known: MaskVolume, brain: MaskVolume, grid: Grid, typical_ppm: float, hole_chi_ppm: Volume | None = None
) -> Volume:
    """Compute the RMS field nearby of the brain outside `known`, in ppm; arguments as above and S.

    It is smooth, so it is made on a grid of some mm and interpolated.
    """
    if not bool((brain & ~known).any()):
        return torch.zeros(known.shape)
    chi = (_MISSING_CHI * typical_ppm) * (brain & ~known).float().cpu()
    if hole_chi_ppm is not None:
        chi = torch.maximum(chi, hole_chi_ppm.cpu() * (chi > 0))
    factor = [max(1, int(_COARSE_MM / edge)) for edge in grid.voxel_mm]
    shape = [math.ceil(n / f) for n, f in zip(known.shape, factor, strict=True)]
    i, j, k = (edge * f for edge, f in zip(grid.voxel_mm, factor, strict=True))
    coarse = Grid((shape[0], shape[1], shape[2]), (i, j, k), grid.b0_direction)
    more = [end for n, m, f in zip(known.shape, shape, factor, strict=True) for end in (m * f - n, 0)][::-1]

    field = Dipole(coarse).apply(avg_pool3d(pad(chi[None], more), factor)[0])
    nearby = _nearby_rms(field, torch.ones(coarse.shape, dtype=torch.bool), coarse, _MISSING_MM)
    size = [n * f for n, f in zip(shape, factor, strict=True)]
    fine = interpolate(nearby[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
    return fine[tuple(slice(0, n) for n in known.shape)]


def reliable_mask(local: LocalField, grid: Grid) -> MaskVolume:
    """Reliable mask: where the local field is more certain than a part of its own strength.

    Parameters
    ----------
    local
        Local field with its σ.
    grid
        Voxel size.

    Returns
    -------
    MaskVolume
        Part of `local.mask`: σ, averaged nearby, is at most `RELIABLE_SIGMA` times the robust SD of the local
        field; shape (i, j, k).
    """
    most = RELIABLE_SIGMA * robust_sd(local.local_field_ppm[local.mask])
    return local.mask & (_nearby_rms(local.sigma_ppm, local.mask, grid) <= most)


def robust_sd(values: Tensor) -> float:
    """Robust SD: 1.4826 times the median absolute deviation; 0 without values."""
    return MAD_TO_SD * float((values - values.median()).abs().median()) if values.numel() else 0.0


def _nearby_rms(values: Tensor, mask: Tensor, grid: Grid, nearby_mm: float = _NEARBY_MM) -> Tensor:
    """Root of the mean square within a Gaussian, of voxels in the mask."""
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))
    inside = mask[box].to(values.dtype)
    width = [nearby_mm / edge for edge in grid.voxel_mm]

    def smooth(volume: Tensor) -> Tensor:
        made = ndimage.gaussian_filter(volume.cpu().numpy(), width, mode="constant", truncate=3.0)
        return torch.from_numpy(made).to(values.device)

    mean = smooth(values[box].square() * inside) / smooth(inside).clamp_min_(math.ulp(1.0))
    rms = torch.zeros_like(values)
    rms[box] = mean.clamp_min_(0).sqrt_() * inside
    return rms
