"""Error budget of χ of several head orientations: each cause of an error switched off in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from chisep.pipeline.orientations.chi import OrientedFields, chi_of_orientations, refined
from chisep.preprocessing.head_orientation import to_reference
from chisep.simulation.motion import Pose
from chisep.solvers.cosmos import CosmosConfig, Fields
from chisep.solvers.csf_reference import CsfConfig
from chisep.solvers.filtered_cosmos import FilteredConfig
from chisep.types import Affine, Grid, Susceptibility, Volume

_SEED = 0


def error_budget(
    inputs: OrientedFields,
    true_fields_ppm: Fields,
    true_chi_ppm: Volume,
    there_and_back: Callable[[Volume, int], Volume],
    filtered: FilteredConfig,
    csf: CsfConfig,
) -> Mapping[str, Volume]:
    """Compute χ from fields in which causes of an error are switched off.

    Parameters
    ----------
    inputs
        Fields as they were measured, their noise and masks.
    true_fields_ppm
        True local fields on the same grid, shape (orientation, i, j, k).
    true_chi_ppm
        True χ, shape (i, j, k).
    there_and_back
        Interpolates a true field to the grid of a scan, by its number, and back.
    filtered, csf
        Settings of the solver.

    Returns
    -------
    mapping of str to Volume
        χ in ppm by what is switched off. Masks, weights and CSF are always those that were measured.
    """
    noise = torch.randn(true_fields_ppm.shape, generator=torch.Generator().manual_seed(_SEED))
    noise = noise.to(true_fields_ppm) * inputs.noise_ppm
    start = Susceptibility(true_chi_ppm * inputs.brain)
    interpolated = torch.stack([there_and_back(field, n) for n, field in enumerate(true_fields_ppm)])

    def solved(fields_ppm: Fields) -> Volume:
        known = replace(inputs, fields_ppm=fields_ppm * inputs.masks)
        return chi_of_orientations(known, CosmosConfig(), filtered, csf).chi_ppm

    return {
        "true χ as the start, measured fields": refined(start, inputs, filtered, csf).chi_ppm,
        "true fields, interpolated, with noise": solved(interpolated + noise),
        "true fields, interpolated, no noise": solved(interpolated),
        "true fields, not interpolated, with noise": solved(true_fields_ppm + noise),
        "true fields, not interpolated, no noise": solved(true_fields_ppm),
    }


def interpolated_there_and_back(field_ppm: Volume, scan: Grid, reference: Grid, transform: Affine) -> Volume:
    """Interpolate a field as the simulated scanner interpolates the head, then as `chisep orientations` does.

    Parameters
    ----------
    field_ppm
        Field on the grid of the reference, continued beyond the brain, shape reference.shape.
    scan, reference
        Both grids.
    transform
        World mm of the reference to world mm of the scan, shape (4, 4).
    """
    there = Pose(transform, scan.matrix(), scan.shape).seen(field_ppm, reference.matrix())
    everywhere = torch.ones(scan.shape, dtype=torch.bool)
    return to_reference(there, everywhere, scan, reference, transform)[0]
