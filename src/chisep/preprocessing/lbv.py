"""LBV: the background field is the harmonic function that equals the total field on the mask's surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import cg
from chisep.preprocessing.morphology import depth_mm
from chisep.preprocessing.vsharp import LocalField, without_rim
from chisep.types import Grid, MaskVolume, Volume

_DAMPING = 6 / 7
"""Damping of the Jacobi smoother: the best one for the seven-point Laplacian in three dimensions."""
_SAME_EDGE = 1.5
"""Axes whose voxels are longer than this times the shortest edge are not coarsened yet."""
_COARSEST = 4
_SWEEPS, _COARSEST_SWEEPS = 2, 20


@dataclass(frozen=True)
class LbvConfig:
    """Settings of LBV."""

    rim_mm: float = 0.0
    """Depth in mm of the rim of the mask that is left out, at least its outermost layer; at most a third of
    the deepest depth."""
    tolerance: float = 1e-4
    """Iterations stop at this residual, relative to that of the start."""
    iterations: int = 60
    """Maximum number of conjugate-gradient iterations; about ten are enough."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rim_mm) and self.rim_mm >= 0 and self.iterations >= 1):
            raise InputError(
                "LBV rim and iterations",
                found=f"{self.rim_mm} mm, {self.iterations}",
                expected="a depth of 0 or more, and at least one step",
                fix="Leave them at their defaults.",
            )
        if not 0 < self.tolerance < 1:
            raise InputError(
                "LBV tolerance",
                found=f"{self.tolerance}",
                expected="between 0 and 1",
                fix="Usual is 0.0001.",
            )


def lbv(total_field_ppm: Volume, mask: MaskVolume, grid: Grid, config: LbvConfig | None = None) -> LocalField:
    """Remove the background field by a Laplacian boundary value problem (Zhou 2014, 10.1002/nbm.3064).

    On the outermost layer of the mask the whole field is assumed to be background. Inside, the background b
    is harmonic, so the local field l = f − b solves Δl = Δf and is 0 on that layer. That is solved by
    conjugate gradients with one V-cycle of multigrid as preconditioner.

    Parameters
    ----------
    total_field_ppm
        Shape (i, j, k).
    mask
        Where it is known, shape (i, j, k).
    grid
        Voxel size; edges may differ.
    config
        Options; defaults where None.

    Returns
    -------
    LocalField
        Local field in ppm and the valid-field mask.

    Raises
    ------
    InputError
        If the mask has no voxel that is not on its surface.
    """
    config = config or LbvConfig()
    inner = _inner(mask)
    if not bool(inner.any()):
        raise InputError(
            "brain mask",
            found="no voxel with all neighbours in the mask",
            expected="a mask of three voxels' width at least",
            fix="Check the mask.",
        )
    box = tuple(slice(int(at.min()) - 1, int(at.max()) + 2) for at in inner.nonzero(as_tuple=True))
    field = torch.where(mask, total_field_ppm - total_field_ppm[mask].mean(), 0)[box]
    levels = _levels(inner[box].to(field.dtype), grid.voxel_mm)
    right = levels[0].laplacian(field)
    local = torch.zeros_like(total_field_ppm)
    local[box] = cg(
        levels[0].laplacian,
        right,
        iterations=config.iterations,
        tolerance=config.tolerance,
        preconditioner=lambda residual: _v_cycle(residual, levels),
    )
    depth = depth_mm(mask, grid).to(field.device, field.dtype) * inner
    return without_rim(local, mask, depth, grid, min(config.rim_mm, float(depth.max()) / 3))


def _inner(mask: Tensor) -> Tensor:
    """Voxels of the mask whose six neighbours are all in it; beyond the volume is outside."""
    inner = mask.clone()
    for axis in range(3):
        last = mask.shape[axis] - 1
        for step in (-1, 1):
            neighbour = mask.roll(step, axis)
            neighbour.select(axis, last if step == -1 else 0).fill_(False)
            inner &= neighbour
    return inner


class _Level:
    """The negative seven-point Laplacian on one grid of the hierarchy, 0 outside `inner`."""

    def __init__(self, inner: Tensor, voxel_mm: Sequence[float]) -> None:
        self.inner = inner
        self.weights = [edge**-2 for edge in voxel_mm]
        self.diagonal = 2 * sum(self.weights)
        # Long voxels couple weakly: the other axes are halved until all edges are similar.
        self.axes = [axis for axis, edge in enumerate(voxel_mm) if edge < _SAME_EDGE * min(voxel_mm)]

    def laplacian(self, x: Tensor) -> Tensor:
        """−Δx in `inner`."""
        y = self.diagonal * x
        for axis, weight in enumerate(self.weights):
            n = x.shape[axis] - 1
            y.narrow(axis, 1, n).sub_(x.narrow(axis, 0, n), alpha=weight)
            y.narrow(axis, 0, n).sub_(x.narrow(axis, 1, n), alpha=weight)
        return y.mul_(self.inner)

    def smoothed(self, x: Tensor, right: Tensor, sweeps: int) -> Tensor:
        """Damped Jacobi sweeps for −Δx = right, in place."""
        for _ in range(sweeps):
            x.add_(right - self.laplacian(x), alpha=_DAMPING / self.diagonal)
        return x


def _levels(inner: Tensor, voxel_mm: Sequence[float]) -> list[_Level]:
    """Multigrid hierarchy, from the finest grid to one of a few voxels."""
    levels = [_Level(inner, voxel_mm)]
    while max(inner.shape) > _COARSEST:
        axes = levels[-1].axes
        inner = (_coarser(inner, axes) >= 0.5).to(inner.dtype)
        voxel_mm = [2 * edge if axis in axes else edge for axis, edge in enumerate(voxel_mm)]
        if not bool(inner.any()):
            break
        levels.append(_Level(inner, voxel_mm))
    return levels


def _coarser(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Restriction to the coarser grid, linearly weighted: the transpose of `_finer`, scaled."""
    for axis in axes:
        if x.shape[axis] % 2:
            x = torch.cat((x, torch.zeros_like(x.narrow(axis, 0, 1))), dim=axis)
        even, odd = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :]).unbind(axis + 1)
        x = 0.375 * (even + odd)
        n = x.shape[axis] - 1
        x.narrow(axis, 0, n).add_(even.narrow(axis, 1, n), alpha=0.125)
        x.narrow(axis, 1, n).add_(odd.narrow(axis, 0, n), alpha=0.125)
    return x


def _finer(x: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Prolongation to the finer grid by linear interpolation; 0 beyond the coarse grid."""
    for axis in axes:
        even = 0.75 * x
        odd = even.clone()
        n = x.shape[axis] - 1
        even.narrow(axis, 1, n).add_(x.narrow(axis, 0, n), alpha=0.25)
        odd.narrow(axis, 0, n).add_(x.narrow(axis, 1, n), alpha=0.25)
        x = torch.stack((even, odd), axis + 1).flatten(axis, axis + 1).narrow(axis, 0, shape[axis])
    return x


def _v_cycle(right: Tensor, levels: Sequence[_Level]) -> Tensor:
    """V-cycle of multigrid for −Δx = right; linear in `right` and symmetric."""
    level = levels[0]
    if len(levels) == 1:
        return level.smoothed(torch.zeros_like(right), right, _COARSEST_SWEEPS)
    x = level.smoothed(right * (_DAMPING / level.diagonal), right, _SWEEPS - 1)
    rest = _coarser(right - level.laplacian(x), level.axes)
    correction = _v_cycle(rest.mul_(levels[1].inner), levels[1:])
    x.add_(_finer(correction, level.axes, x.shape).mul_(level.inner))
    return level.smoothed(x, right, _SWEEPS)
