"""χ of several head orientations: COSMOS, then filtered fields, then the zero of χ in CSF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chisep.pipeline.context import convergence_facts
from chisep.preprocessing.morphology import depth_mm
from chisep.solvers.cosmos import CosmosConfig, Fields, Masks, cosmos
from chisep.solvers.csf_reference import CsfConfig, CsfReference, relative_to_csf
from chisep.solvers.filtered_cosmos import FilteredConfig, filtered_cosmos
from chisep.types import Grid, MaskVolume, Susceptibility, Volume

_PPB = 1000.0
_DEEP_MM = 15.0
"""Depth in the brain from which CSF is that of the ventricles."""


@dataclass(frozen=True, eq=False)
class OrientedFields:
    """Registered local fields of one participant, on one grid.

    Parameters
    ----------
    fields_ppm, sigmas_ppm, noise_ppm
        Local fields, the standard deviation of their error, and that of their noise alone, shape
        (orientation, i, j, k).
    masks
        Where each field is known, within the brain, shape (orientation, i, j, k).
    b0_directions
        Vector along B0 in voxel axes of the grid, one per orientation.
    brain
        Brain mask, shape (i, j, k).
    grid
        Voxel size.
    r2star_hz
        R2* of the reference in 1/s, shape (i, j, k); None if there are not echoes enough.
    """

    fields_ppm: Fields
    sigmas_ppm: Fields
    noise_ppm: Fields
    masks: Masks
    b0_directions: Sequence[Sequence[float]]
    brain: MaskVolume
    grid: Grid
    r2star_hz: Volume | None = None


@dataclass(frozen=True, eq=False)
class OrientedChi:
    """χ of all orientations.

    Parameters
    ----------
    chi_ppm
        χ in ppm, shape (i, j, k).
    csf
        Voxels of CSF that set its zero, shape (i, j, k); none without R2*.
    facts
        What a record says about it.
    warnings
        For the user.
    """

    chi_ppm: Volume
    csf: MaskVolume
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]


def chi_of_orientations(
    inputs: OrientedFields, cosmos_config: CosmosConfig, filtered: FilteredConfig, csf: CsfConfig
) -> OrientedChi:
    """Compute χ by COSMOS, refine it with filtered fields, and set its zero in CSF.

    Parameters
    ----------
    inputs
        Fields and masks.
    cosmos_config, filtered, csf
        Settings of the three steps.

    Raises
    ------
    InputError
        As `chisep.solvers.cosmos.cosmos` and `chisep.solvers.filtered_cosmos.filtered_cosmos`.
    """
    return refined(cosmos_of(inputs, cosmos_config), inputs, filtered, csf)


def cosmos_of(inputs: OrientedFields, config: CosmosConfig) -> Susceptibility:
    """COSMOS of the local fields; parameters and errors as of `chi_of_orientations`."""
    return cosmos(
        inputs.fields_ppm,
        inputs.masks,
        inputs.b0_directions,
        inputs.grid,
        config,
        sigmas_ppm=inputs.sigmas_ppm,
        support=inputs.brain,
    )


def refined(
    first: Susceptibility, inputs: OrientedFields, filtered: FilteredConfig, csf: CsfConfig
) -> OrientedChi:
    """Refine a first χ with filtered fields, and set its zero in CSF.

    Parameters
    ----------
    first
        χ to start from.
    inputs, filtered, csf
        As of `chi_of_orientations`.
    """
    chi = filtered_cosmos(
        first.chi_ppm,
        inputs.fields_ppm,
        inputs.masks,
        inputs.b0_directions,
        inputs.grid,
        filtered,
        noise_ppm=inputs.noise_ppm,
        support=inputs.brain,
    ).chi_ppm
    facts: dict[str, Any] = convergence_facts(first.convergence) | {"FilteredIterations": filtered.iterations}
    warnings = first.convergence.warnings
    if inputs.r2star_hz is None:
        if csf.order >= 0:
            warnings = (*warnings, "too few echoes for R2*, which finds CSF: the zero of χ is not set")
        return OrientedChi(chi * inputs.brain, torch.zeros_like(inputs.brain), facts, warnings)
    known = inputs.masks.all(0)
    zero = relative_to_csf(chi, inputs.r2star_hz, known, inputs.grid, csf, support=inputs.brain)
    return OrientedChi(
        zero.chi_ppm * inputs.brain,
        zero.csf,
        facts | _csf_facts(zero, inputs.brain, inputs.grid),
        (*warnings, *zero.warnings),
    )


def _csf_facts(zero: CsfReference, brain: MaskVolume, grid: Grid) -> dict[str, Any]:
    """Say how much CSF lies where, and what was subtracted from χ."""
    ml = math.prod(grid.voxel_mm) / 1000
    deep = zero.csf & (depth_mm(brain, grid) > _DEEP_MM)
    removed = _PPB * zero.removed_ppm[brain]
    return {
        "CsfMl": round(ml * float(zero.csf.sum()), 2),
        "CsfDeepMl": round(ml * float(deep.sum()), 2),
        "CsfOrder": zero.order,
        "CsfRemovedMeanPpb": round(float(removed.mean()), 3),
        "CsfRemovedRangePpb": [round(float(removed.min()), 3), round(float(removed.max()), 3)],
    }
