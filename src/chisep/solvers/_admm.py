"""Alternating direction method of multipliers (ADMM) of `tv` and `iterative`, with closed-form steps.

    min over x   ½ ‖W^½ (g D x_c − Δf)‖² + λ TV(x) + h(x)

where x has one or two channels, x_c is the last of them, W is 0 outside the mask, and h contains all
voxelwise terms (other data, bounds, zero outside the mask). The field, the differences and the voxelwise term
are split (alternating direction method of multipliers, in the form of Douglas and Rachford, with
over-relaxation; Eckstein and Bertsekas 1992, 10.1007/BF01581204). So the weights of the field are exact, and
terms that couple voxels are solved in k-space (as in FANSI: Milovic 2018, 10.1002/mrm.27073).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chisep.memory import release_memory
from chisep.physics.dipole import Dipole
from chisep.physics.operators import Gradient
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, relative_change
from chisep.types import Grid

PENALTY_VOXEL = 8e-3
"""Penalty of the voxelwise split, relative to the weight of the field."""
PENALTY_TV = 2e-3
"""Penalty of the split differences, relative to the weight of the field."""
_RELAXATION = 1.7
_FEWEST_ITERATIONS = 5
_FIRST_CORRECTION = 10
"""Iteration at which the wrapped field is corrected again; then at twice that, and so on."""
SLAB = 16
"""Layers of a volume that are in memory at a time where intermediate results are many volumes."""
_RELEASE_EVERY = 5
"""Iterations after which freed memory is returned: a heap of temporary volumes grows by a tenth in each."""


# Long because the steps of one iteration update the same tensors in place, and delete theirs, to save memory.
def minimise(
    *,
    padded: PaddedBox,
    grid: Grid,
    field_ppm: Tensor,
    weight: Tensor,
    start: Tensor,
    field_gain: float,
    tv_weight: float,
    tv_mask: Tensor,
    voxelwise: Callable[[Tensor], Tensor],
    penalty_field: float,
    coarse_power: Tensor | None,
    iterations: int,
    tolerance: float,
    progress: Progress | None,
) -> tuple[Tensor, list[float]]:
    """Minimise field misfit, total variation and a voxelwise term by ADMM.

    Parameters
    ----------
    padded
        Box of the mask; all volumes here are in the box.
    grid
        The whole grid, on which the zero-padded dipole is the forward model.
    field_ppm
        Local field, 0 outside the mask, shape (i, j, k).
    weight
        W: of each voxel of the field, 1 for the typical one and 0 outside the mask, shape (i, j, k).
    start
        First x, shape (channel, i, j, k).
    field_gain
        g: the field is g · D * (last channel of x).
    tv_weight
        λ, relative to the typical weight of the field.
    tv_mask
        Where TV acts, bool, shape (3, i, j, k); one length is taken over axes and channels.
    voxelwise
        z ↦ argmin h(x) + ½ PENALTY_VOXEL ‖x − z‖²; must give 0 outside the mask.
    penalty_field
        Penalty of the split field, relative to its weight. Compare it with D² (at most 4/9): a small one
        resolves modes near the cone where D is 0, a large one makes the iteration stable.
    coarse_power
        Power P of a coarse error e of the field, on the half spectrum of the padded box, relative to the
        white variance of the typical voxel; None without one. The field is then g D x_c + e, with
        ½ Σ |e(k)|²/P(k) as a further term.
    iterations, tolerance
        Maximum number of iterations, and the relative change at which to stop.
    progress
        Called after every iteration.

    Returns
    -------
    tuple of Tensor and list of float
        x after the voxelwise step, shape (channel, i, j, k), and its relative changes.
    """
    dtype, device = field_ppm.dtype, field_ppm.device
    coarse_power = None if coarse_power is None else coarse_power.to(field_ppm)
    dipole = Dipole(padded.periodic_grid, pad=False, dtype=dtype, device=device)
    gradient = Gradient(grid.voxel_mm)
    channels = len(start)
    normal = (
        gradient.symbol(padded.periodic_grid.shape, dtype=dtype, device=device)
        .mul_(PENALTY_TV)
        .add_(PENALTY_VOXEL)
    )
    normal = normal.repeat(channels, 1, 1, 1)
    # e is eliminated from the normal equations: it takes a share of each misfit, the rest is for x.
    unexplained = None if coarse_power is None else (1 + penalty_field * coarse_power).reciprocal_()
    of_field = penalty_field * field_gain**2 * dipole.kernel**2
    normal[-1] += of_field if unexplained is None else of_field * unexplained

    mask = weight > 0
    shrink = weight / (weight + penalty_field)
    # Each block A stores w − A x (`rest`) instead of w. It stays 0 wherever the block has no term, so no
    # copies of the field and of the differences are needed, and x is updated from these rests.
    solution = start
    x_hat = dipole.spectrum(start)
    voxel_rest = start.new_zeros((channels, *padded.periodic_grid.shape))
    tv_rest = torch.zeros((channels, 3, *weight.shape), dtype=dtype, device=device)
    field_rest = torch.zeros_like(field_ppm)
    coarse_hat = None if unexplained is None else torch.zeros_like(x_hat[-1])
    data = field_ppm
    correct_at = 0
    change: list[float] = []
    for iteration in range(iterations):
        if iteration % _RELEASE_EVERY == 0:
            release_memory()
        if iteration == correct_at:
            # With little padding the periodic dipole wraps around. The wrapped field is smooth and converges
            # early: it is added to the data at a few iterations.
            chi = solution[-1]
            periodic = padded.box(dipole.volume(dipole.spectrum(chi).mul_(dipole.kernel)))
            free_space = Dipole(grid, dtype=dtype, device=device)  # eight volumes, rarely needed
            wrapped = periodic - padded.cut(free_space.apply(padded.restore(chi)))
            del periodic, free_space
            data = field_ppm + wrapped.mul_(field_gain).mul_(mask)
            del wrapped
            correct_at = max(_FIRST_CORRECTION, 2 * iteration)

        x = dipole.volume(x_hat)
        tv_push = _tv_step(padded.box(x), tv_rest, gradient, tv_weight / PENALTY_TV, tv_mask)

        made_hat = (x_hat[-1] * dipole.kernel).mul_(field_gain)
        if coarse_hat is not None:
            made_hat.add_(coarse_hat)
        field_dual = padded.box(dipole.volume(made_hat)).add(field_rest)
        del made_hat
        field_dual.sub_(data).mul_(shrink)
        push_hat = dipole.spectrum(field_rest.sub(field_dual, alpha=2))
        field_rest.lerp_(field_dual, _RELAXATION)
        del field_dual

        voxel_dual = x.add_(voxel_rest)
        before, solution = solution, voxelwise(padded.box(voxel_dual))
        padded.box(voxel_dual).sub_(solution)
        push = voxel_rest.sub(voxel_dual, alpha=2).mul_(PENALTY_VOXEL)
        voxel_rest.lerp_(voxel_dual, _RELAXATION)
        del voxel_dual, x

        padded.box(push).add_(tv_push, alpha=PENALTY_TV)
        del tv_push
        step_hat = dipole.spectrum(push)
        del push
        if coarse_hat is None or unexplained is None:
            step_hat[-1].add_(push_hat.mul_(dipole.kernel), alpha=penalty_field * field_gain)
            step_hat.div_(normal)
        else:
            weighted = (push_hat + coarse_hat).mul_(unexplained)
            step_hat[-1].add_(weighted.mul_(dipole.kernel), alpha=penalty_field * field_gain)
            step_hat.div_(normal)
            explained = 1 - unexplained
            coarse_step = (push_hat - step_hat[-1] * (field_gain * dipole.kernel)).mul_(explained)
            coarse_hat.add_(coarse_step.sub_(coarse_hat * unexplained), alpha=_RELAXATION)
            del weighted, explained, coarse_step
        x_hat.add_(step_hat, alpha=_RELAXATION)
        del step_hat, push_hat

        change.append(relative_change(solution, before))
        if progress is not None:
            progress("iterations", iteration + 1, iterations)
        if iteration >= _FEWEST_ITERATIONS and change[-1] < tolerance:
            break
    return solution, change


def _tv_step(x: Tensor, rest: Tensor, gradient: Gradient, longest: float, tv_mask: Tensor) -> Tensor:
    """Dual step of isotropic TV: update the differences' `rest` in place, and return ∇ᵀ(rest − 2 dual).

    Slab by slab along the first axis, since all differences of a volume are six volumes. The last layer of
    the box is empty (`PaddedBox`), so nothing wraps around.
    """
    push = torch.empty_like(x)
    before = rest.new_zeros(rest[..., :1, :, :].shape)
    for first in range(0, x.shape[-3], SLAB):
        here = slice(first, first + SLAB)
        own = rest[..., here, :, :]
        count = own.shape[-3]
        with_next = gradient.apply(x[..., first : first + count + 1, :, :])[..., :count, :, :]
        dual = _shortened(with_next.add_(own), longest, tv_mask[..., here, :, :])
        pushed = torch.cat((before, own.sub(dual, alpha=2)), dim=-3)
        push[..., here, :, :] = gradient.adjoint(pushed)[..., 1:, :, :]
        before = pushed[..., -1:, :, :].clone()
        own.lerp_(dual, _RELAXATION)
    return push


def _shortened(differences: Tensor, longest: float, tv_mask: Tensor) -> Tensor:
    """Limit difference vectors to a maximum length, in place."""
    differences.mul_(tv_mask)
    # torch.linalg.vector_norm over the first axis takes five times as long.
    square = torch.zeros_like(differences[0, 0])
    for row in differences.flatten(0, 1):
        square.addcmul_(row, row)
    return differences.mul_(square.sqrt_().clamp_(min=longest).reciprocal_().mul_(longest))
