"""χ of several head orientations: COSMOS, then filtered fields, then the zero of χ in CSF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chisep.pipeline.context import convergence_facts
from chisep.solvers.cosmos import CosmosConfig, Fields, Masks, cosmos
from chisep.solvers.csf_reference import CsfConfig, relative_to_csf
from chisep.solvers.filtered_cosmos import FilteredConfig, filtered_cosmos
from chisep.types import Grid, MaskVolume, Volume

_PPB = 1000.0


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
    """χ of all orientations in ppm, what a record says about it, and warnings."""

    chi_ppm: Volume
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
    first = cosmos(
        inputs.fields_ppm,
        inputs.masks,
        inputs.b0_directions,
        inputs.grid,
        cosmos_config,
        sigmas_ppm=inputs.sigmas_ppm,
        support=inputs.brain,
    )
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
    if inputs.r2star_hz is not None:
        zero = relative_to_csf(
            chi,
            inputs.r2star_hz,
            inputs.masks.all(0),
            inputs.grid,
            csf,
            support=inputs.brain,
        )
        chi = zero.chi_ppm
        warnings = (*warnings, *zero.warnings)
        facts |= {
            "CsfMl": round(zero.csf_ml, 2),
            "CsfOrder": zero.order,
            "CsfRemovedRmsPpb": round(_PPB * zero.removed_ppm, 3),
        }
    return OrientedChi(chi * inputs.brain, facts, warnings)
