"""D_r of a scan from its maps: QSM on voxels of about 2 mm, then the estimate of `preprocessing`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from chisep.methods.solve import invert
from chisep.preprocessing.scan_relaxivity import (
    ChosenRelaxivity,
    ScanRelaxivity,
    choose_relaxivity,
    relaxivity_of_scan,
)
from chisep.types import Grid, Maps, MaskVolume, Volume

CoarseVolume = Float[Tensor, "i2 j2 k2"]
CoarseMask = Bool[Tensor, "i2 j2 k2"]
"""On coarse voxels."""
QSM = "unrolled-qsm"
"""The QSM method that the constants of the estimate were measured with."""
_EDGE_MM, _COARSEST_MM = 2.0, 3.0
"""Edge of the voxels of the estimate, and the longest edge of a scan that its constants hold for."""
_SEED = 0


def relaxivity_from(
    maps: Maps, b0_t: float, *, device: str = "cpu", chi_is_true: bool = False
) -> ChosenRelaxivity:
    """Choose D_r by the maps of a scan, as `--dr auto` does; the default where there is no estimate.

    Parameters
    ----------
    maps, device, chi_is_true
        As of `estimate_relaxivity`; R2' may be None.
    b0_t
        Field strength in tesla.
    """
    edge_mm = max(maps.grid.voxel_mm)
    if edge_mm > _COARSEST_MM:
        return choose_relaxivity(
            None, b0_t, f"voxel edges of {edge_mm:.3g} mm are beyond {_COARSEST_MM:g} mm"
        )
    found = None
    if maps.r2prime_hz is not None:
        found = estimate_relaxivity(maps, device=device, chi_is_true=chi_is_true)
    return choose_relaxivity(found, b0_t)


def estimate_relaxivity(maps: Maps, *, device: str = "cpu", chi_is_true: bool = False) -> ScanRelaxivity:
    """Estimate D_r,pos and D_r,neg of a scan from its local field and R2'.

    Parameters
    ----------
    maps
        Local field with its mask, R2', and if known the noise of the field; no D_r is read.
    device
        Where the QSM is computed.
    chi_is_true
        Read χ of the maps, which made the field, in place of a QSM of the field.

    Returns
    -------
    ScanRelaxivity
        D_r of both sources, with intervals.

    Raises
    ------
    InputError
        If the QSM cannot be computed.
    """
    if maps.r2prime_hz is None:
        raise ValueError("no R2'")
    coarse, coarse_r2prime = _coarse(maps, maps.r2prime_hz)
    rng = np.random.default_rng(_SEED)
    if chi_is_true and maps.chi_ppm is not None:
        factor = _factor(maps.grid)
        chi = _mean(maps.chi_ppm, maps.sources_mask, factor)
        return relaxivity_of_scan(coarse_r2prime, chi, coarse.mask, coarse.grid, rng, chi_is_true=True)
    chi = invert(coarse, QSM, device=device).chi_ppm
    return relaxivity_of_scan(coarse_r2prime, chi, coarse.mask, coarse.grid, rng)


def _factor(grid: Grid) -> tuple[int, int, int]:
    """Voxels of the grid in a coarse voxel, along each axis."""
    i, j, k = (max(1, round(_EDGE_MM / edge)) for edge in grid.voxel_mm)
    return i, j, k


def _coarse(maps: Maps, r2prime_hz: Volume) -> tuple[Maps, CoarseVolume]:
    """Field and R2' averaged to voxels of about 2 mm; coarser voxels stay as they are."""
    factor = _factor(maps.grid)
    sigma = maps.field_sigma_ppm
    coarse = replace(
        maps,
        field_ppm=_mean(maps.field_ppm, maps.mask, factor),
        mask=_covered(maps.mask, factor),
        support=_covered(maps.sources_mask, factor),
        grid=_coarse_grid(maps.grid, factor),
        r2prime_hz=None,
        # Errors of neighbours may be the same: the mean of voxels counts as uncertain as one of them.
        field_sigma_ppm=_mean(sigma, maps.mask, factor) if isinstance(sigma, Tensor) else sigma,
        r2prime_sigma_hz=None,
        r2star_hz=None,
        chi_ppm=None,
        magnitude=None,
    )
    return coarse, _mean(r2prime_hz, maps.sources_mask, factor)


def _pooled(volume: Volume, factor: tuple[int, int, int]) -> CoarseVolume:
    i, j, k = (-size % f for size, f in zip(volume.shape, factor, strict=True))
    return avg_pool3d(pad(volume[None, None], (0, k, 0, j, 0, i)), factor)[0, 0]


def _mean(volume: Volume, mask: MaskVolume, factor: tuple[int, int, int]) -> CoarseVolume:
    """Mean over the voxels in the mask, 0 where it covers less than half of a coarse voxel."""
    weight = _pooled(mask.to(volume.dtype), factor)
    return _pooled(volume * mask, factor) / weight.clamp_min(0.5) * (weight >= 0.5)


def _covered(mask: MaskVolume, factor: tuple[int, int, int]) -> CoarseMask:
    return _pooled(mask.float(), factor) >= 0.5


def _coarse_grid(grid: Grid, factor: tuple[int, int, int]) -> Grid:
    affine = np.array(grid.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ ((np.array(factor) - 1) / 2)
    affine[:3, :3] *= factor
    i, j, k = (-(-size // f) for size, f in zip(grid.shape, factor, strict=True))
    di, dj, dk = (edge * f for edge, f in zip(grid.voxel_mm, factor, strict=True))
    return Grid((i, j, k), (di, dj, dk), grid.b0_direction, affine)
