"""COSMOS with the spherical mean value filter in its forward model, and the zero of χ in CSF.

    min  Σ_n ‖W_n S_n (D_n χ − f_n)‖² + λ ‖∇χ‖²   over χ that is 0 outside the support

S_n is the filter of V-SHARP in the mask of field n (`chisep.physics.spherical_mean`). Background removal
takes the part of a local field that is harmonic in the mask for background, so the local field is too weak.
S_n removes that part from the measured field and from the field of χ alike. What one orientation loses is
determined by the others. (A filter in the forward model: Chatnuntawech 2017, 10.1002/nbm.3570.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import CgState, Operator, cg
from chisep.physics.dipole import Dipole
from chisep.physics.operators import Gradient, LinearOperator
from chisep.physics.spherical_mean import (
    SphericalMeanFilter,
    padded_grid,
    reach_mm,
    smallest_radius_mm,
    sphere_radii_mm,
)
from chisep.preprocessing.morphology import depth_mm
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check
from chisep.solvers.cosmos import Fields, Masks, noise_weights
from chisep.types import Convergence, Grid, MaskVolume, Susceptibility, Volume

_DAMPING = 0.004
"""For each orientation, relative to D²: modes with little effect on the filtered fields are fitted late."""


@dataclass(frozen=True)
class FilteredConfig:
    """Settings of COSMOS with filtered fields."""

    iterations: int = 40
    """Iterations, which start at the χ of COSMOS; 0 keeps that χ."""
    smoothness: float = 5e-4
    """Weight λ of ‖∇χ‖² within the support, relative to one orientation's field term: with less, iterations
    amplify noise."""
    max_radius_mm: float = 12.0
    """Radius of the largest sphere of the filter."""

    def __post_init__(self) -> None:
        check("iterations", self.iterations, low=-1)
        check("smoothness", self.smoothness, low=0.0)
        check("max_radius_mm", self.max_radius_mm, low=0.0)


class FilteredDipoles(LinearOperator):
    """Filtered fields of one χ in several orientations: (..., i, j, k) → (..., n, i, j, k).

    Parameters
    ----------
    grid
        Voxel size.
    b0_directions
        Vector along B0 in voxel axes, one for each orientation.
    reaches
        Radius in mm of the largest sphere around each voxel in the mask of each field, shape (n, i, j, k).
    weights
        Weight of each voxel of each field, shape (n, i, j, k).
    support
        Where χ may be, shape (i, j, k).
    max_radius_mm
        Radius of the largest sphere.

    Raises
    ------
    InputError
        If no sphere fits into any mask.
    """

    def __init__(
        self,
        grid: Grid,
        b0_directions: Sequence[Sequence[float]],
        reaches: Tensor,
        weights: Tensor,
        support: MaskVolume,
        max_radius_mm: float = FilteredConfig.max_radius_mm,
    ) -> None:
        smallest = smallest_radius_mm(grid)
        radii = sphere_radii_mm(smallest, max(max_radius_mm, smallest), reaches)
        if not radii:
            raise InputError(
                "masks of the fields",
                found=f"no voxel deeper inside than {float(reaches.max()):.3g} mm",
                expected=f"masks in which a sphere of {smallest:g} mm fits",
                fix="Check the masks, or do without filtered fields (iterations of 0).",
            )
        padded = padded_grid(reaches.shape[1:], grid, 2 * radii[-1])
        self.support, self.voxel_mm = support, grid.voxel_mm
        self.filters: list[SphericalMeanFilter] = []
        for reach, weight in zip(reaches, weights, strict=True):
            shared = self.filters[0].kernels if self.filters else None
            self.filters.append(
                SphericalMeanFilter(reach, grid, padded, radii, weight=weight, kernels=shared)
            )
        self.kernels = [
            Dipole(
                replace(padded, b0_direction=(float(i), float(j), float(k))),
                pad=False,
                dtype=weights.dtype,
                device=weights.device,
            ).kernel
            for i, j, k in b0_directions
        ]
        symbol = torch.full_like(self.kernels[0], _DAMPING * len(weights))
        for kernel in self.kernels:
            symbol.add_((kernel * self.filters[0].kernels[-1]).square_())
        self._symbol = symbol

    def apply(self, x: Tensor) -> Tensor:
        """Compute the filtered field of χ in every orientation."""
        spectrum = self.filters[0].spectrum(x * self.support)
        fields = [
            one.apply(one.volume(spectrum * kernel))
            for one, kernel in zip(self.filters, self.kernels, strict=True)
        ]
        return torch.stack(fields, dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection of filtered fields."""
        parts = [
            one.volume(one.spectrum(one.adjoint(field)) * kernel)
            for one, kernel, field in zip(self.filters, self.kernels, y.unbind(-4), strict=True)
        ]
        return torch.stack(parts).sum(0) * self.support

    def gram(self, x: Tensor) -> Tensor:
        """Adjoint of the filtered fields of χ, one orientation after the other."""
        spectrum = self.filters[0].spectrum(x * self.support)
        total = torch.zeros_like(spectrum)
        for one, kernel in zip(self.filters, self.kernels, strict=True):
            total += one.gram_spectrum(spectrum * kernel).mul_(kernel)
        return self.filters[0].volume(total) * self.support

    def back(self, fields: Sequence[Tensor]) -> Tensor:
        """Back-projection of measured fields, which are filtered first."""
        total = torch.zeros(())
        for one, kernel, field in zip(self.filters, self.kernels, fields, strict=True):
            total = total + one.gram_spectrum(one.spectrum(field)).mul_(kernel)
        return self.filters[0].volume(total) * self.support

    def closed_form(self, tikhonov: float, smoothness: float = 0.0) -> Operator:
        """Approximate inverse of the gram plus ε and λ∇ᵀ∇: division in k-space as deep in the masks."""
        first, divisor = self.filters[0], self._symbol + tikhonov
        if smoothness:
            symbol = Gradient(self.voxel_mm).symbol(
                first.padded_shape, dtype=divisor.dtype, device=divisor.device
            )
            divisor += smoothness * symbol

        def divide(right: Tensor) -> Tensor:
            return first.volume(first.spectrum(right).div_(divisor)) * self.support

        return divide


def filtered_dipoles(
    masks: Masks,
    b0_directions: Sequence[Sequence[float]],
    grid: Grid,
    config: FilteredConfig,
    *,
    noise_ppm: Fields | None,
    support: MaskVolume,
    dtype: torch.dtype = torch.float32,
) -> tuple[PaddedBox, FilteredDipoles]:
    """Bounding box and operator of filtered fields; arguments as of `filtered_cosmos`."""
    padded = PaddedBox(masks.any(0) | support, grid, padding=0.0)
    depths = [reach_mm(depth_mm(mask, grid)).to(dtype) for mask in masks]
    weights = masks.to(dtype) if noise_ppm is None else noise_weights(noise_ppm, masks)
    return padded, FilteredDipoles(
        padded.box_grid,
        b0_directions,
        torch.stack([padded.cut(depth) for depth in depths]),
        torch.stack([padded.cut(weight) for weight in weights]),
        padded.cut(support),
        config.max_radius_mm,
    )


def filtered_cosmos(
    chi_ppm: Volume,
    fields_ppm: Fields,
    masks: Masks,
    b0_directions: Sequence[Sequence[float]],
    grid: Grid,
    config: FilteredConfig,
    *,
    noise_ppm: Fields | None = None,
    support: MaskVolume,
    progress: Progress | None = None,
) -> Susceptibility:
    """Refine χ of COSMOS by fields that the spherical mean value filter of V-SHARP has filtered.

    Parameters
    ----------
    chi_ppm
        χ to start from, by COSMOS, shape (i, j, k).
    fields_ppm, masks
        Local fields on one grid and where they are known, shape (orientation, i, j, k). Sources outside the
        masks do not matter.
    b0_directions
        Vector along B0 in voxel axes of that grid, one per orientation.
    grid
        Voxel size; its own B0 direction is not read.
    config
        Settings.
    noise_ppm
        Standard deviation of the noise of each field, without the error of background removal, which the
        filter removes; shape (orientation, i, j, k); equal weights if None.
    support
        Where χ may be, such as the brain, shape (i, j, k).
    progress
        Called after every iteration.

    Returns
    -------
    Susceptibility
        χ in ppm. Stopping early is intended: it suppresses noise, and there is no warning of it.

    Raises
    ------
    InputError
        If no sphere fits into any mask.

    Notes
    -----
    χ = a + b·x + c|x|² in a mask has a harmonic field there, whatever the direction of B0: no background
    removal and no orientation determines these five numbers. Their values are those of `chi_ppm`;
    `chisep.solvers.csf_reference` finds them from CSF.
    """
    if not config.iterations:
        return Susceptibility(chi_ppm)
    padded, operator = filtered_dipoles(
        masks, b0_directions, grid, config, noise_ppm=noise_ppm, support=support, dtype=fields_ppm.dtype
    )
    changes: list[float] = []

    def record(state: CgState) -> None:
        size = float(torch.linalg.vector_norm(state.solution))
        moved = abs(state.step) * float(torch.linalg.vector_norm(state.direction))
        changes.append(moved / size if size > 0 else 0.0)
        if progress is not None:
            progress("filtered fields", state.iteration, config.iterations)

    gradient = Gradient(grid.voxel_mm)
    # Differences within the support only: χ may jump at its edge.
    inside = (gradient.apply(operator.support.to(chi_ppm)) == 0) & operator.support

    def gram(chi: Volume) -> Volume:
        smooth = gradient.adjoint(gradient.apply(chi).mul_(inside))
        return operator.gram(chi).add_(smooth, alpha=config.smoothness)

    chi = cg(
        gram,
        operator.back([padded.cut(field) for field in fields_ppm]),
        iterations=config.iterations,
        initial=padded.cut(chi_ppm * support),
        preconditioner=operator.closed_form(0.0, config.smoothness),
        callback=record,
    )
    return Susceptibility(padded.restore(chi), Convergence(len(changes), True, tuple(changes)))
