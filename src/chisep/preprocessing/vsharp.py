"""V-SHARP: background field removal by the spherical mean value property."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import CgState, cg
from chisep.physics.dipole import Dipole, half_spectrum, of_half_spectrum
from chisep.physics.spherical_mean import (
    SphericalMeanFilter,
    padded_grid,
    reach_mm,
    smallest_radius_mm,
    sphere_radii_mm,
    sphere_spectrum,
)
from chisep.preprocessing.morphology import depth_mm
from chisep.types import Grid, MaskVolume, Volume

# Relative to the largest value of D² (4/9): modes with little effect on the field are fitted late.
_DAMPING = 0.02


@dataclass(frozen=True)
class VsharpConfig:
    """Settings of V-SHARP: radii, and the deconvolution of its filter."""

    max_radius_mm: float = 12.0
    """Radius of the largest sphere, used deep inside the brain."""
    min_radius_mm: float | None = None
    """Radius of the smallest sphere, used at the edge; by default √3 voxels, but 1.5 mm or more."""
    rim_mm: float = 0.0
    """Depth in mm of the rim of the mask that is left out; at most a third of the deepest depth, so that a
    thin slab is not removed completely. By default no rim is left out, but σ of the local field is larger
    there."""
    iterations: int = 20
    """Iterations that fit sources in the mask to the filtered field; 0 uses truncated deconvolution instead,
    as first published."""
    threshold: float = 0.05
    """For the deconvolution: frequencies that the largest sphere passes by less than this are left out."""

    def __post_init__(self) -> None:
        smallest = self.max_radius_mm if self.min_radius_mm is None else self.min_radius_mm
        if not (math.isfinite(self.max_radius_mm) and 0 < smallest <= self.max_radius_mm):
            raise InputError(
                "V-SHARP radii",
                found=f"{self.min_radius_mm} to {self.max_radius_mm} mm",
                expected="0 < smallest ≤ largest",
                fix="Usual is one voxel to 12 mm.",
            )
        if not (math.isfinite(self.rim_mm) and self.rim_mm >= 0 and self.iterations >= 0):
            raise InputError(
                "V-SHARP rim and iterations",
                found=f"{self.rim_mm} mm, {self.iterations}",
                expected="numbers of 0 or more",
                fix="Usual are 0 mm and 20.",
            )
        if not 0 < self.threshold < 1:
            raise InputError(
                "V-SHARP threshold",
                found=f"{self.threshold}",
                expected="between 0 and 1",
                fix="Usual is 0.05.",
            )


@dataclass(frozen=True, eq=False)
class LocalField:
    """Field of the sources inside the brain.

    Parameters
    ----------
    local_field_ppm
        Shape (i, j, k), 0 outside `mask`.
    mask
        Where the local field is known: the mask of the total field less a rim, shape (i, j, k).
    erosion_mm
        Depth of that rim in mm: required by the method, or set in its options.
    erosion_ml
        Volume of the rim in ml.
    sigma_ppm
        Standard deviation of the local field's error, shape (i, j, k), 0 outside `mask`; 0 everywhere until
        `remove_background` estimates it.
    """

    local_field_ppm: Volume
    mask: MaskVolume
    erosion_mm: float
    erosion_ml: float
    sigma_ppm: Volume


class FittedSources(NamedTuple):
    """Sources in the mask that V-SHARP fits to the filtered field; both volumes in ppm, shape (i, j, k).

    `chi_ppm` is smooth and too weak. `field_ppm` is its field, the local field, in the box around the mask.
    """

    chi_ppm: Volume
    field_ppm: Volume


def vsharp(
    total_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: VsharpConfig | None = None,
    fitted: FittedSources | None = None,
) -> LocalField:
    """Remove the background field by the spherical mean value property, with spheres of varying radius.

    The field of outside sources is harmonic in the brain, so it equals its mean over any sphere that
    fits in: the difference to that mean comes from inside. Each voxel uses the largest sphere that
    fits (Wu 2012, 10.1002/mrm.23000). The filter takes the harmonic part of the local field as well. To get
    that back, sources in the mask are fitted to the filtered field (as in Chatnuntawech 2017,
    10.1002/nbm.3570, without a prior but early stopping), and the field they make is the local field, also
    in the rim where no sphere fits.

    Parameters
    ----------
    total_field_ppm
        Shape (i, j, k).
    mask
        Where it is known, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    config
        Options; defaults where None.
    fitted
        Result of `fitted_sources` with the same arguments, if it is there already.

    Returns
    -------
    LocalField
        Local field in ppm and the valid-field mask.

    Raises
    ------
    InputError
        If no sphere fits into the mask.
    """
    config = config or VsharpConfig()
    smallest = _smallest_radius_mm(config, grid)
    depth = depth_mm(mask, grid).to(total_field_ppm.device, total_field_ppm.dtype)
    rim_mm = min(config.rim_mm, float(depth.max()) / 3)
    if not config.iterations:  # without sources nothing is known where no sphere fits
        rim_mm = max(smallest, rim_mm)
    reach = reach_mm(depth)
    if not bool(((reach >= smallest) & (depth > rim_mm)).any()):
        raise InputError(
            "brain mask",
            found=f"no voxel deeper inside than {float(depth.max()):.3g} mm",
            expected=f"a mask in which a sphere of {smallest:g} mm fits",
            fix="Check the mask, or choose a smaller radius.",
        )
    if config.iterations:
        fitted = fitted or _fitted(total_field_ppm, mask, reach, grid, config)
        return without_rim(fitted.field_ppm, mask, depth, grid, rim_mm)
    box, field = _boxed(total_field_ppm, mask)
    local = torch.zeros_like(total_field_ppm)
    local[box] = _deconvolved(field, mask[box], reach[box], grid, smallest, config)
    return without_rim(local, mask, depth, grid, rim_mm)


def fitted_sources(
    total_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: VsharpConfig | None = None,
    stop: Callable[[int, Volume], bool] | None = None,
) -> FittedSources:
    """Fit sources in the mask to the field after the filter of V-SHARP: the first step of `vsharp`.

    Parameters
    ----------
    total_field_ppm
        Shape (i, j, k).
    mask
        Where it is known, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    config
        Options; its iterations make the result sharper. Defaults where None.

    stop
        Called with the number of iterations done and χ after each; True ends the fit.

    Returns
    -------
    FittedSources
        0 everywhere where no sphere fits into the mask.
    """
    config = config or VsharpConfig()
    reach = reach_mm(depth_mm(mask, grid).to(total_field_ppm.device, total_field_ppm.dtype))
    if not bool((reach >= _smallest_radius_mm(config, grid)).any()):
        return FittedSources(torch.zeros_like(total_field_ppm), torch.zeros_like(total_field_ppm))
    return _fitted(total_field_ppm, mask, reach, grid, config, stop)


def _fitted(
    total_field_ppm: Volume,
    mask: MaskVolume,
    reach: Volume,
    grid: Grid,
    config: VsharpConfig,
    stop: Callable[[int, Volume], bool] | None = None,
) -> FittedSources:
    box, field = _boxed(total_field_ppm, mask)
    made = FittedSources(torch.zeros_like(total_field_ppm), torch.zeros_like(total_field_ppm))
    smallest = _smallest_radius_mm(config, grid)

    def stops(state: CgState) -> bool:
        if stop is None:
            return False
        made.chi_ppm[box] = state.solution
        return stop(state.iteration, made.chi_ppm)

    made.chi_ppm[box], made.field_ppm[box] = _sources_and_field(
        field, mask[box], reach[box], grid, smallest, config, stops
    )
    return made


def _boxed(total_field_ppm: Volume, mask: MaskVolume) -> tuple[tuple[slice, ...], Tensor]:
    """Bounding box of the mask, and the field less its mean in it.

    The filter removes constants anyway; without a large one less precision is lost.
    """
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))
    mean = float(total_field_ppm[mask].mean(dtype=torch.float64))
    return box, torch.where(mask, total_field_ppm - mean, 0)[box]


def without_rim(local_ppm: Volume, mask: MaskVolume, depth: Volume, grid: Grid, rim_mm: float) -> LocalField:
    """Leave a rim of the mask out of a local field.

    Parameters
    ----------
    local_ppm
        Local field in ppm, shape (i, j, k).
    mask
        Brain, shape (i, j, k).
    depth
        Depth in the mask in mm, as `depth_mm` gives it, shape (i, j, k).
    grid
        Voxel size.
    rim_mm
        Depth of the rim.
    """
    known = mask & (depth > rim_mm)
    lost_ml = int((mask & ~known).sum()) * math.prod(grid.voxel_mm) / 1000
    local_ppm = torch.where(known, local_ppm, 0)
    return LocalField(local_ppm, known, rim_mm, lost_ml, torch.zeros_like(local_ppm))


def _deconvolved(
    field: Tensor, mask: Tensor, depth: Tensor, grid: Grid, smallest: float, config: VsharpConfig
) -> Tensor:
    """Filter with many radii, then truncated deconvolution with the largest sphere."""
    shape = padded_grid(mask.shape, grid, config.max_radius_mm).shape
    spectrum = half_spectrum(field, shape)
    step, deepest = max(grid.voxel_mm), float(depth.max())
    count = max(1, round((config.max_radius_mm - smallest) / step)) + 1
    filtered = torch.zeros_like(field)
    for radius in np.linspace(smallest, config.max_radius_mm, count).tolist():
        if radius < deepest:
            kernel = 1 - sphere_spectrum(radius, shape, grid, like=field)
            here = depth > radius
            filtered[here] = of_half_spectrum(spectrum * kernel, shape, mask.shape)[here]
    passed = kernel.abs() > config.threshold
    inverse = torch.where(passed, 1 / torch.where(passed, kernel, 1), 0)
    return of_half_spectrum(half_spectrum(filtered, shape) * inverse, shape, mask.shape)


def _sources_and_field(
    field: Tensor,
    mask: Tensor,
    depth: Tensor,
    grid: Grid,
    smallest: float,
    config: VsharpConfig,
    stops: Callable[[CgState], bool],
) -> tuple[Tensor, Tensor]:
    """Fit sources χ in the mask to the filtered data; also returns their field.

    With S the filter, min ‖S (D χ − field)‖² over χ in the mask, by a few conjugate-gradient iterations,
    preconditioned with the inverse of the operator deep in the brain.
    """
    padded = padded_grid(mask.shape, grid, 2 * config.max_radius_mm)
    dipole = Dipole(padded, pad=False, dtype=field.dtype, device=field.device)
    reach = depth * mask
    radii = sphere_radii_mm(smallest, config.max_radius_mm, reach)
    filtered = SphericalMeanFilter(reach, grid, padded, radii)
    spectrum, volume, inside = filtered.spectrum, filtered.volume, mask.contiguous()

    def seen(x: Tensor) -> Tensor:
        """DᵀSᵀS of a field given by its spectrum, in the mask."""
        return volume(filtered.gram_spectrum(x).mul_(dipole.kernel)) * inside

    weight = (dipole.kernel * filtered.kernels[-1]).square_().add_(_DAMPING).reciprocal_()
    chi = cg(
        lambda chi: seen(spectrum(chi).mul_(dipole.kernel)),
        seen(spectrum(field)),
        iterations=config.iterations,
        preconditioner=lambda residual: volume(spectrum(residual).mul_(weight)) * inside,
        callback=stops,
    )
    return chi, volume(spectrum(chi).mul_(dipole.kernel))


def _smallest_radius_mm(config: VsharpConfig, grid: Grid) -> float:
    return config.min_radius_mm or min(config.max_radius_mm, smallest_radius_mm(grid))
