"""PDF: the background field is the projection of the total field onto fields of dipoles outside the mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import cg
from chisep.physics.dipole import Dipole
from chisep.preprocessing.morphology import depth_mm
from chisep.preprocessing.vsharp import LocalField, without_rim
from chisep.types import Grid, MaskVolume, Volume

_LARGEST_WEIGHT = 3.0
"""Largest weight relative to the median: a fitted noise map may be near 0 by chance."""


@dataclass(frozen=True)
class PdfConfig:
    """Settings of PDF."""

    rim_mm: float = 0.0
    """Depth in mm of the rim of the mask that is left out; at most a third of the deepest depth."""
    padding_mm: float = 40.0
    """Padding of the mask's bounding box in mm, both sides together, in which dipoles may lie."""
    iterations: int = 30
    """Maximum number of conjugate-gradient iterations. Too many explain the local field by dipoles near the
    surface."""
    tolerance: float = 1e-3
    """Iterations stop at this gradient, relative to that of the start."""

    def __post_init__(self) -> None:
        depths = (self.rim_mm, self.padding_mm)
        if not (all(math.isfinite(mm) and mm >= 0 for mm in depths) and self.iterations >= 1):
            raise InputError(
                "PDF rim, padding and iterations",
                found=f"{self.rim_mm} mm, {self.padding_mm} mm, {self.iterations}",
                expected="numbers of 0 or more, and at least one step",
                fix="Leave them at their defaults.",
            )
        if not 0 < self.tolerance < 1:
            raise InputError(
                "PDF tolerance",
                found=f"{self.tolerance}",
                expected="between 0 and 1",
                fix="Usual is 0.001.",
            )


def pdf(
    total_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: PdfConfig | None = None,
    *,
    sigma_ppm: Volume | None = None,
) -> LocalField:
    """Remove the background field by projection onto dipole fields (Liu 2011, 10.1002/nbm.1670).

    Sources χ outside the mask are fitted to the field f in it, min ‖W (f − D χ − p)‖² with weights
    W = 1/σ, by conjugate gradients from χ = 0; what they do not explain is the local field. The
    polynomial p of first order, which far sources and the shim make, is fitted exactly at every step.

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
    sigma_ppm
        Standard deviation of the field's noise, shape (i, j, k); uniform noise where None.

    Returns
    -------
    LocalField
        Local field in ppm and the valid-field mask.
    """
    config = config or PdfConfig()
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))
    here = mask[box]
    field = torch.where(here, total_field_ppm[box] - total_field_ppm[mask].mean(), 0)
    weight = here.to(field.dtype) if sigma_ppm is None else _weight(sigma_ppm[box], here)
    local = torch.zeros_like(total_field_ppm)
    local[box] = field - _background(field, here, weight, grid, config)
    depth = depth_mm(mask, grid).to(field.device, field.dtype)
    return without_rim(local, mask, depth, grid, min(config.rim_mm, float(depth.max()) / 3))


def _weight(sigma_ppm: Tensor, mask: Tensor) -> Tensor:
    """1/σ in the mask relative to its median, 0 where σ is not known."""
    known = mask & sigma_ppm.isfinite() & (sigma_ppm > 0)
    weight = torch.where(known, 1 / torch.where(known, sigma_ppm, 1), 0)
    return (weight / weight[known].median()).clamp_(max=_LARGEST_WEIGHT)


def _background(field: Tensor, mask: Tensor, weight: Tensor, grid: Grid, config: PdfConfig) -> Tensor:
    """Least-squares background field: dipoles outside the mask, and a first-order polynomial."""
    sizes = [
        next_fast_len(n + math.ceil(config.padding_mm / v), real=True)
        for n, v in zip(mask.shape, grid.voxel_mm, strict=True)
    ]
    dipole = Dipole(grid.reshaped(sizes), pad=False, dtype=field.dtype, device=field.device)
    corner = tuple(slice(0, n) for n in mask.shape)
    outside = torch.ones(sizes, dtype=field.dtype, device=field.device)
    outside[corner] = ~mask
    in_mask = weight[mask]
    terms = _first_order(mask, grid, field.dtype)
    plane, triangle = torch.linalg.qr(in_mask[:, None] * terms)

    def without_plane(values: Tensor) -> Tensor:
        rest: Tensor = values - plane @ (plane.T @ values)
        return rest

    def seen(chi: Tensor) -> Tensor:
        return without_plane(in_mask * dipole.apply(chi)[corner][mask])

    def back(values: Tensor) -> Tensor:
        volume = torch.zeros_like(outside)
        volume[corner][mask] = in_mask * values
        gradient: Tensor = dipole.adjoint(volume).mul_(outside)
        return gradient

    chi = cg(
        lambda chi: back(seen(chi)),
        back(without_plane(in_mask * field[mask])),
        iterations=config.iterations,
        tolerance=config.tolerance,
    )
    background: Tensor = dipole.apply(chi)[corner]
    rest = plane.T @ (in_mask * (field - background)[mask])
    background[mask] += terms @ torch.linalg.solve_triangular(triangle, rest[:, None], upper=True)[:, 0]
    return background


def _first_order(mask: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Polynomials of order 0 and 1 at the voxels of the mask, shape (voxel, 4)."""
    places = mask.nonzero().to(dtype) * torch.tensor(grid.voxel_mm, dtype=dtype, device=mask.device)
    places -= places.mean(0)
    return torch.cat((torch.ones_like(places[:, :1]), places / places.abs().max().clamp_min(1)), dim=1)
