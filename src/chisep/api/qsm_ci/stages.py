"""Stages of the benchmark QSM-CI: from its inputs to results over the whole mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from chisep import methods
from chisep.api.qsm_ci.dephasing import dephasing_of
from chisep.api.qsm_ci.inputs import Inputs
from chisep.methods.given_chi import agrees_with_field, with_chi
from chisep.methods.r2prime_of_r2star import r2prime_of_r2star
from chisep.preprocessing.background import remove_background
from chisep.preprocessing.field import total_field
from chisep.preprocessing.head_size import adult_grid, adult_lengths, length_scale
from chisep.preprocessing.mask import QualityConfig, brain_mask, quality_mask
from chisep.preprocessing.phase_scale import phase_in_radians
from chisep.preprocessing.relaxometry import pseudo_r2prime, r2star
from chisep.types import Maps, MaskVolume, Volume

LEAST = 1e-6
"""Value of voxels of the mask whose result is exactly 0 (ppm or 1/s): the benchmark counts 0 as missing."""
_LARGEST_R2PRIME_HZ_PER_T = 27.0
"""Largest R2' over B0: that of 250 ppb of χ_pos by static dephasing. What is larger is decay in field
gradients of the head, or noise."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of a stage by their names in the benchmark, and warnings."""

    volumes: Mapping[str, Volume | MaskVolume]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Field:
    """A field in ppm, where it is known, and σ of its error; None if unknown."""

    field_ppm: Volume
    known: MaskVolume
    sigma_ppm: Volume | None = None
    warnings: tuple[str, ...] = ()


def field_mapping(inputs: Inputs, _method: str = "") -> Outputs:
    """Phase unwrapping and echo combination: phase to total field in ppm."""
    total = _total_field(inputs)
    return Outputs({"totalfield": whole(total.field_ppm, total.known, inputs.mask)}, total.warnings)


def background_removal(inputs: Inputs, _method: str = "") -> Outputs:
    """Background field removal: total field to local field in ppm."""
    return _local_output(inputs, _Field(inputs.volume("totalfield"), inputs.mask))


def unwrapping_and_background_removal(inputs: Inputs, _method: str = "") -> Outputs:
    """Phase to local field in ppm."""
    return _local_output(inputs, _total_field(inputs))


def dipole_inversion(inputs: Inputs, method: str) -> Outputs:
    """Dipole inversion: local field to χ in ppm."""
    return _inverted(inputs, _Field(inputs.volume("localfield"), inputs.mask), method)


def background_removal_and_dipole_inversion(inputs: Inputs, method: str) -> Outputs:
    """Total field to χ in ppm."""
    return _inverted(inputs, _local_field(inputs, _Field(inputs.volume("totalfield"), inputs.mask)), method)


def end_to_end(inputs: Inputs, method: str) -> Outputs:
    """Phase to χ in ppm."""
    return _inverted(inputs, _local_field(inputs, _total_field(inputs)), method)


def chi_separation(inputs: Inputs, method: str) -> Outputs:
    """χ-separation: local field and R2' to χ_pos and χ_neg in ppm, with D_r estimated from the maps.

    A χ map whose dipole field is the local field determines χ_pos − χ_neg (`chisep.methods.given_chi`) and
    shows whether χ_neg dephases outside of white matter (`dephasing`).
    """
    mask, b0_t = inputs.mask, inputs.parameters.B0
    maps = Maps(
        field_ppm=inputs.volume("localfield") * mask,
        mask=mask,
        grid=inputs.grid,
        r2prime_hz=inputs.volume("r2prime") * mask,
        chi_ppm=inputs.volume("chimap") * mask if inputs.has("chimap") else None,
        magnitude=inputs.combined_magnitude(),
        b0_t=b0_t,
    )
    chi = maps.chi_ppm
    exact = chi is not None and agrees_with_field(maps)
    model = dephasing_of(maps, b0_t, chi_is_true=exact)
    maps = replace(maps, relaxivity=model.relaxivity, r2prime_hz=model.r2prime_hz(maps))
    result = methods.separate(maps, method)
    warnings = (*model.warnings, *result.convergence.warnings)
    if exact and chi is not None:
        result = with_chi(result, chi, mask)
    return Outputs(
        {
            "chi-para": whole(result.chi_pos_ppm, mask, mask),
            "chi-dia": whole(result.chi_neg_ppm, mask, mask),
        },
        warnings,
    )


def r2prime_generation(inputs: Inputs, _method: str = "") -> Outputs:
    """R2' in 1/s from the multi-echo magnitude alone.

    The mean of R2' by the network `r2s`, which is too small where there is much of it, and of R2* less one
    R2, which takes all other decay for R2' and has an upper limit here.
    """
    mask, b0_t = inputs.mask, inputs.parameters.B0
    rate = r2star(inputs.echoes("magnitude"), inputs.te_s, mask)
    of_network = r2prime_of_r2star(rate, mask, inputs.grid, b0_t).rate_hz
    of_constant = pseudo_r2prime(rate, b0_t).rate_hz.clamp_max(_LARGEST_R2PRIME_HZ_PER_T * b0_t)
    return Outputs({"r2prime": whole((of_network + of_constant) / 2, rate.sigma_hz > 0, mask)})


def brain_extraction(inputs: Inputs, _method: str = "") -> Outputs:
    """Brain mask from the magnitude."""
    return Outputs({"mask": brain_mask(inputs.echoes("magnitude"), inputs.grid)})


def whole(volume: Volume, known: MaskVolume, mask: MaskVolume) -> Volume:
    """Extend a result to the whole mask.

    Parameters
    ----------
    volume
        Result, shape (i, j, k).
    known
        Where there is one, shape (i, j, k).
    mask
        Where there has to be one, shape (i, j, k).

    Returns
    -------
    Volume
        0 outside the mask. Voxels of the mask without a result have that of the nearest voxel with one; an
        exact 0 is `LEAST`.
    """
    known = known & mask & volume.isfinite()
    result = torch.where(known, volume, 0)
    missing = mask & ~known
    if bool(missing.any()) and bool(known.any()):
        nearest = ndimage.distance_transform_edt(~known.numpy(), return_distances=False, return_indices=True)
        result = torch.where(missing, result[tuple(torch.from_numpy(np.asarray(nearest)).long())], result)
    return torch.where(mask & (result == 0), LEAST, result)


def _total_field(inputs: Inputs) -> _Field:
    mask, grid = inputs.mask, inputs.grid
    phase, note = phase_in_radians(inputs.echoes("phase"), str(inputs.path("phase")), "rad")
    magnitude = inputs.echoes("magnitude") if inputs.has("magnitude") else torch.ones_like(phase)
    finite = phase.isfinite().all(0)
    scale = length_scale(mask, grid)
    adult = adult_grid(grid, scale)
    found = total_field(
        magnitude, torch.where(finite, phase, 0), inputs.te_s, inputs.parameters.B0, mask & finite, adult
    )
    known = quality_mask(found.quality, found.reliable & mask, adult, adult_lengths(QualityConfig(), scale))
    notes = (note,) if note else ()
    return _Field(found.total_field_ppm, known, found.sigma_ppm, (*notes, *found.warnings))


def _local_field(inputs: Inputs, total: _Field) -> _Field:
    local = remove_background(
        total.field_ppm,
        total.known,
        adult_grid(inputs.grid, length_scale(inputs.mask, inputs.grid)),
        sigma_ppm=total.sigma_ppm,
    )
    return _Field(local.local_field_ppm, local.mask, local.sigma_ppm, total.warnings)


def _local_output(inputs: Inputs, total: _Field) -> Outputs:
    local = _local_field(inputs, total)
    return Outputs({"localfield": whole(local.field_ppm, local.known, inputs.mask)}, local.warnings)


def _inverted(inputs: Inputs, local: _Field, method: str) -> Outputs:
    mask = inputs.mask
    maps = Maps(
        field_ppm=local.field_ppm * local.known,
        mask=local.known,
        support=mask,
        grid=inputs.grid,
        field_sigma_ppm=local.sigma_ppm,
        magnitude=inputs.combined_magnitude(),
        b0_t=inputs.parameters.B0,
    )
    found = methods.invert(maps, method)
    warnings = (*local.warnings, *found.convergence.warnings)
    return Outputs({"chimap": whole(found.chi_ppm, found.chi_ppm != 0, mask)}, warnings)
