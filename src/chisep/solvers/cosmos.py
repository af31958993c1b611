"""COSMOS: susceptibility from several head orientations, and χ-separation of it with R2'.

    min  Σ_n ‖W_n (D_n χ − f_n)‖² + ε ‖χ‖²   over χ that is 0 outside the mask

(Liu 2009, 10.1002/mrm.21828.) W_n is 0 where field n is not known, and otherwise σ₀/σ_n, σ₀ the median of all
σ; 1 without σ. One orientation does not determine χ near the cone where its dipole is 0; the cones of two
meet in lines; those of three or more orientations that differ enough have no direction in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import CgState, cg
from chisep.physics.dipole import Dipole
from chisep.physics.operators import LinearOperator
from chisep.progress import Progress
from chisep.solvers._common import PaddedBox, check, ended
from chisep.types import Grid, MaskVolume, Relaxivity, Sources, Susceptibility, Volume

Fields = Float[Tensor, "orientation i j k"]
"""One local field per head orientation, all on one grid."""
Masks = Bool[Tensor, "orientation i j k"]
"""Where each of them is known."""

_FEWEST_ORIENTATIONS = 2
_SPHERE_POINTS = 20000
_ILL_CONDITIONED = 10.0
_LITTLE_SPREAD_DEG = 15.0
_WEIGHT_OF_MEAN = 0.01
_LARGEST_WEIGHT = 4.0
"""A σ below a quarter of the median is that of a fit that went too well by chance."""


@dataclass(frozen=True)
class CosmosConfig:
    """Settings of COSMOS."""

    iterations: int = 60
    """Maximum number of iterations; the first is the closed form in k-space up to its scale."""
    tolerance: float = 2e-3
    """Relative change of χ at which the iteration stops."""
    tikhonov: float = 1e-4
    """Weight ε of ‖χ‖² relative to one orientation's field term; D² is at most 4/9."""

    def __post_init__(self) -> None:
        check("iterations", float(self.iterations), low=0.0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("tikhonov", self.tikhonov, low=0.0)


def condition_number(b0_directions: Sequence[Sequence[float]]) -> float:
    """Condition number of a set of head orientations without masks: √(max Σ D_n² / min Σ D_n²) over k.

    Parameters
    ----------
    b0_directions
        Unit vectors along B0 in axes of the head.

    Returns
    -------
    float
        At least 1; infinite for one orientation only. Noise in χ grows with it.
    """
    b0 = torch.tensor([list(b) for b in b0_directions], dtype=torch.float64)
    # Directions of k on a spiral from pole to pole, each for an equal area of the sphere.
    index = torch.arange(_SPHERE_POINTS, dtype=torch.float64) + 0.5
    height = 1 - 2 * index / _SPHERE_POINTS
    angle = math.pi * (1 + math.sqrt(5)) * index
    radius = torch.sqrt(1 - height**2)
    k = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle), height))
    total = (1 / 3 - (b0 @ k) ** 2).square().sum(0)
    return float(torch.sqrt(total.max() / total.min()))


def spread_deg(b0_directions: Sequence[Sequence[float]]) -> float:
    """Largest angle in degrees between two of the directions of B0, whatever their sign; 0 to 90.

    Parameters
    ----------
    b0_directions
        Vectors along B0 in axes of the head.
    """
    b0 = torch.tensor([list(b) for b in b0_directions], dtype=torch.float64)
    b0 = b0 / torch.linalg.vector_norm(b0, dim=1, keepdim=True)
    return math.degrees(math.acos(min(1.0, float((b0 @ b0.T).abs().min()))))


# Long because the docstring states the whole contract.
def cosmos(
    fields_ppm: Fields,
    masks: MaskVolume | Masks,
    b0_directions: Sequence[Sequence[float]],
    grid: Grid,
    config: CosmosConfig,
    *,
    sigmas_ppm: Fields | None = None,
    support: MaskVolume | None = None,
    reference: MaskVolume | None = None,
    progress: Progress | None = None,
) -> Susceptibility:
    """COSMOS: joint dipole inversion of several head orientations.

    Parameters
    ----------
    fields_ppm
        Local fields, registered to one grid, shape (orientation, i, j, k).
    masks
        Where each field is known, shape (orientation, i, j, k), or (i, j, k) for all of them. χ is
        computed wherever any field is.
    b0_directions
        Vector along B0 in voxel axes of that grid, one per orientation.
    grid
        Voxel size; its own B0 direction is not read.
    config
        Stopping criteria.
    sigmas_ppm
        Standard deviation of the error of each field, shape (orientation, i, j, k), 0 where nothing was
        measured; equal weights if None.
    support
        Where χ may be, such as the brain, shape (i, j, k); wherever any field is if None.
    reference
        Where the mean of χ is to be 0, such as the ventricles, shape (i, j, k).
    progress
        Called after every iteration.

    Returns
    -------
    Susceptibility
        χ in ppm.

    Raises
    ------
    InputError
        If there are fewer than two orientations, not one B0 direction of some length for each, or a
        mask or the reference is empty.

    The convergence has a warning if the orientations are two, or differ so little that noise is amplified
    much, or if the iteration stops far from convergence.

    Notes
    -----
    Since D(0) = 0, fields do not determine the mean of χ over the whole grid. The constraint that
    χ is 0 outside the mask determines it: inside, χ is relative to the surroundings of the mask. Residual
    background in measured fields makes this uncertain; `reference` sets the zero.
    """
    masks = _checked(len(fields_ppm), masks, b0_directions, reference)
    padded, operator = weighted_dipoles(fields_ppm, masks, b0_directions, grid, sigmas_ppm, support)

    change: list[float] = []

    def record(state: CgState) -> bool:
        size = float(torch.linalg.vector_norm(state.solution))
        moved = abs(state.step) * float(torch.linalg.vector_norm(state.direction))
        change.append(moved / size if size > 0 else 0.0)
        if progress is not None:
            progress("iterations", state.iteration, config.iterations)
        return change[-1] < config.tolerance

    chi = cg(
        lambda chi: operator.gram(chi).add_(chi, alpha=config.tikhonov),
        operator.back([padded.cut(field) for field in fields_ppm]),
        iterations=config.iterations,
        preconditioner=operator.closed_form(config.tikhonov),
        callback=record,
    )
    if not change:  # fields of zero need no iteration
        record(CgState(1, chi, chi, 0.0))
    if reference is not None:
        chi = (chi - chi[padded.cut(reference) & operator.support].mean()) * operator.support
    convergence = ended(change, config.tolerance, "COSMOS")
    convergence = replace(convergence, warnings=(*poor_spread(b0_directions), *convergence.warnings))
    return Susceptibility(padded.restore(chi), convergence)


def separate_by_orientations(
    fields_ppm: Fields,
    masks: MaskVolume | Masks,
    b0_directions: Sequence[Sequence[float]],
    r2prime_hz: Volume,
    relaxivity: Relaxivity,
    grid: Grid,
    config: CosmosConfig,
    *,
    reference: MaskVolume | None = None,
    progress: Progress | None = None,
) -> Sources:
    """χ-separation by COSMOS and R2': the training labels of χ-sepnet.

    Parameters
    ----------
    fields_ppm, masks, b0_directions, grid, config, reference, progress
        As `cosmos`.
    r2prime_hz
        R2' in 1/s, shape (i, j, k).
    relaxivity
        D_r of both sources.

    Returns
    -------
    Sources
        χ_pos and χ_neg in ppm.

    Raises
    ------
    InputError
        As `cosmos`.
    """
    susceptibility = cosmos(
        fields_ppm, masks, b0_directions, grid, config, reference=reference, progress=progress
    )
    inside = masks if masks.ndim == 3 else masks.any(0)
    sources = nonnegative_sources(susceptibility.chi_ppm, r2prime_hz * inside, relaxivity)
    return replace(sources, convergence=susceptibility.convergence)


def nonnegative_sources(chi_ppm: Volume, r2prime_hz: Volume, relaxivity: Relaxivity) -> Sources:
    """Solve χ_pos − χ_neg = χ, χ_pos + r χ_neg = R2'/D_r,pos voxel by voxel, both sources ≥ 0.

    Parameters
    ----------
    chi_ppm
        Susceptibility in ppm, shape (i, j, k).
    r2prime_hz
        R2' in 1/s, shape (i, j, k).
    relaxivity
        D_r of both sources; r = D_r,neg / D_r,pos.

    Returns
    -------
    Sources
        The non-negative least-squares solution with both equations in ppm, each of weight 1.

    Notes
    -----
    Exact: where the unconstrained solution has a negative source, that source is 0 and the other
    one minimises the rest. Where both are negative (R2' < 0 only), at most one of these minima is positive.
    """
    ratio = relaxivity.ratio
    total = r2prime_hz / relaxivity.pos_hz_per_ppm
    free_pos = (ratio * chi_ppm + total) / (1 + ratio)
    free_neg = (total - chi_ppm) / (1 + ratio)
    only_pos = (chi_ppm + total) / 2
    only_neg = (ratio * total - chi_ppm) / (1 + ratio**2)
    return Sources(
        torch.where(free_neg < 0, only_pos, free_pos).clamp_(min=0),
        torch.where(free_pos < 0, only_neg, free_neg).clamp_(min=0),
    )


class MaskedDipoles(LinearOperator):
    """Fields of one χ in several orientations, each where it is known: (..., i, j, k) → (..., n, i, j, k).

    Parameters
    ----------
    grids
        The grid once per orientation, with its B0 direction.
    known
        Where each field is known, shape (n, i, j, k), or the weight of each voxel, 0 where it is not known.
    dtype
        Precision.
    support
        Where χ may be; wherever any field is known if None.
    """

    def __init__(
        self,
        grids: Sequence[Grid],
        known: Masks | Fields,
        dtype: torch.dtype,
        support: MaskVolume | None = None,
    ) -> None:
        self.dipoles = [Dipole(grid, dtype=dtype, device=known.device) for grid in grids]
        self.known, self.b0_directions = known, [grid.b0_direction for grid in grids]
        self.support = (known > 0).any(0) if support is None else support

    def weighted(self, fields: Sequence[Tensor]) -> Tensor:
        """Fields with the weight of each voxel, shape (n, i, j, k)."""
        return torch.stack(list(fields)) * self.known

    def back(self, fields: Sequence[Tensor]) -> Tensor:
        """Back-projection of measured fields with the weight of each voxel."""
        return self.adjoint(self.weighted(fields))

    def closed_form(self, tikhonov: float) -> ClosedForm:
        """Approximate inverse of the gram plus ε."""
        return ClosedForm(self, tikhonov)

    def apply(self, x: Tensor) -> Tensor:
        """Fields of χ; it is transformed once for all orientations."""
        spectrum = self.dipoles[0].spectrum(x * self.support)
        fields = [
            dipole.volume(spectrum * dipole.kernel) * weight
            for dipole, weight in zip(self.dipoles, self.known, strict=True)
        ]
        return torch.stack(fields, dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection of all fields, summed in k-space."""
        parts = zip(self.dipoles, self.known, y.unbind(-4), strict=True)
        total = sum(
            (dipole.spectrum(field * weight).mul_(dipole.kernel) for dipole, weight, field in parts),
            torch.zeros(()),
        )
        return self.dipoles[0].volume(total) * self.support

    def gram(self, x: Tensor) -> Tensor:
        """Adjoint of the fields of χ, one orientation after the other: their stack is never in memory."""
        spectrum = self.dipoles[0].spectrum(x * self.support)
        total = torch.zeros_like(spectrum)
        for dipole, weight in zip(self.dipoles, self.known, strict=True):
            field = dipole.volume(spectrum * dipole.kernel) * weight
            total += dipole.spectrum(field * weight).mul_(dipole.kernel)
        return self.dipoles[0].volume(total) * self.support


def weighted_dipoles(
    fields_ppm: Fields,
    masks: Masks,
    b0_directions: Sequence[Sequence[float]],
    grid: Grid,
    sigmas_ppm: Fields | None = None,
    support: MaskVolume | None = None,
) -> tuple[PaddedBox, MaskedDipoles]:
    """Bounding box and operator of several orientations with noise weights; arguments as of `cosmos`."""
    sources = masks.any(0) if support is None else support
    padded = PaddedBox(masks.any(0) | sources, grid, padding=0.0)
    grids = [replace(padded.box_grid, b0_direction=_three(b)) for b in b0_directions]
    known = torch.stack([padded.cut(mask) for mask in masks])
    if sigmas_ppm is not None:
        known = known * torch.stack([padded.cut(weight) for weight in noise_weights(sigmas_ppm, masks)])
    return padded, MaskedDipoles(grids, known, fields_ppm.dtype, padded.cut(sources))


def noise_weights(sigmas_ppm: Fields, masks: Masks) -> Fields:
    """Amplitude weights σ₀/σ with the median σ₀ of all orientations, 0 where σ is unknown."""
    measured = masks & (sigmas_ppm > 0)
    if not bool(measured.flatten(1).any(1).all()):
        raise InputError(
            "noise maps of the fields",
            found="one without any value above 0 in its mask",
            expected="the standard deviation of the error in every voxel of each field",
            fix="Leave them out for equal weights.",
        )
    typical = float(sigmas_ppm[measured].median())
    return typical / sigmas_ppm.clamp_min(typical / _LARGEST_WEIGHT) * measured


class ClosedForm:
    """COSMOS without masks: division by Σ w_n D_n² + ε at every point of k-space, then the support.

    w_n is the mean square of the weights of orientation n where its field is known.
    """

    def __init__(self, operator: MaskedDipoles, tikhonov: float) -> None:
        self.dipole, self.support = operator.dipoles[0], operator.support
        self.symbol = torch.full_like(self.dipole.kernel, tikhonov)
        for dipole, weight in zip(operator.dipoles, operator.known, strict=True):
            of_field = 1.0 if weight.dtype == torch.bool else float(weight[weight > 0].square().mean())
            self.symbol += of_field * dipole.kernel**2
        # At k = 0 all D_n are 0, but the edge of the support determines the mean of χ weakly. This weight was
        # found on heads, where it halves the iterations; the solution is the same.
        self.symbol[0, 0, 0] = _WEIGHT_OF_MEAN * self.symbol.mean()

    def __call__(self, right: Tensor) -> Tensor:
        """Divide in k-space; 0 outside the support."""
        return self.dipole.volume(self.dipole.spectrum(right).div_(self.symbol)).mul_(self.support)


def _three(vector: Sequence[float]) -> tuple[float, float, float]:
    i, j, k = vector
    return float(i), float(j), float(k)


def _checked(
    orientations: int,
    masks: MaskVolume | Masks,
    b0_directions: Sequence[Sequence[float]],
    reference: MaskVolume | None,
) -> Masks:
    """Check the inputs; returns one mask per orientation."""
    if orientations < _FEWEST_ORIENTATIONS:
        raise InputError(
            "COSMOS",
            found=f"fields of {orientations} head orientations",
            expected=f"at least {_FEWEST_ORIENTATIONS}",
            fix="Use a single-orientation inversion.",
        )
    if len(b0_directions) != orientations or any(len(b) != 3 for b in b0_directions):
        raise InputError(
            "B0 directions",
            found=f"{[list(b) for b in b0_directions]}",
            expected=f"{orientations} vectors of three numbers, one for each field",
            fix="Give the direction of B0 in axes of the common grid for every orientation.",
        )
    each = masks.expand(orientations, *masks.shape[-3:]) if masks.ndim == 3 else masks
    if not each.flatten(1).any(1).all() or (reference is not None and not (reference & each.any(0)).any()):
        raise InputError(
            "COSMOS",
            found="a mask or a reference without any voxel inside",
            expected="voxels in every mask, some of them in the reference",
            fix="Draw it again.",
        )
    return each


def poor_spread(b0_directions: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """Warnings if the head orientations do not determine χ well.

    Parameters
    ----------
    b0_directions
        Vectors along B0 in axes of the head.
    """
    grids = [Grid((1, 1, 1), (1.0, 1.0, 1.0), _three(b)) for b in b0_directions]
    unit = [grid.b0_direction for grid in grids]
    warnings = []
    if (spread := spread_deg(unit)) < _LITTLE_SPREAD_DEG:
        warnings.append(
            f"the head orientations differ by {spread:.1f}° at most, expected {_LITTLE_SPREAD_DEG:g}° or "
            "more; χ is noisy where their dipoles are all near 0"
        )
    if len(unit) == _FEWEST_ORIENTATIONS:
        warnings.append(
            "two head orientations: their dipoles are both 0 along lines in k-space, where χ is not "
            "determined; expected three or more"
        )
    elif (condition := condition_number(unit)) > _ILL_CONDITIONED:
        warnings.append(
            f"the head orientations differ too little for COSMOS: condition number {condition:.1f}, "
            f"expected below {_ILL_CONDITIONED:.0f}; χ is noisy where their dipoles are all near 0"
        )
    return tuple(warnings)
