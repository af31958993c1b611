"""Stages `field` and `background`: from phase to the total field, and to the local field."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.functional import max_pool3d

from chisep.pipeline.context import SessionContext, judged
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.preprocessing.background import local_field_checks, reliable_mask, remove_background
from chisep.preprocessing.extent import thin_slab
from chisep.preprocessing.field import total_field
from chisep.preprocessing.field_error import ERROR_LAWS, chi_of_holes
from chisep.preprocessing.head_size import adult_grid, adult_lengths, length_scale
from chisep.preprocessing.magnitude_checks import check_decay, check_magnitudes
from chisep.preprocessing.mask import quality_mask
from chisep.preprocessing.phase_scale import phase_in_radians
from chisep.preprocessing.sinuses import FIT_ITERATIONS, venous_sinuses
from chisep.preprocessing.vsharp import FittedSources, VsharpConfig, fitted_sources
from chisep.types import Grid, MaskVolume, Volume

_MISSING_PHASE = 0.01
_LITTLE_TRUSTED = 0.25
NOT_MADE_OF_ONE_ECHO = ("R2*", "R2'", "sources")
ONE_ECHO_ONLY = (
    "one gradient echo: there are no R2*, no R2' and no sources (χ_pos, χ_neg), since one echo tells no "
    "decay; the brain mask, the field, the susceptibility map (QSM) and its region values are made"
)
"""What is missing of a session with one gradient echo, and why."""


def field_stage(context: SessionContext) -> Stage:
    """Phase unwrapping and combination of the echoes to the total field."""
    config, megre, files = context.config, context.session.megre, context.files

    def work(declared: DeclaredFiles) -> StageResult:
        return _total_field(context, StageFiles(files, declared))

    return Stage(
        "field",
        "unwrapped phase without receiver offset, the total field with its noise, and how far the "
        "phase is to be trusted",
        [*megre.files, files["mask"]],
        files.paths("unwrapped", "residual", "quality", "total_field", "field_sigma", "phase_mask"),
        context.echo_parameters
        | asdict(config.field_map)
        | {"PhaseUnits": megre.phase_units, "Quality": asdict(config.quality)},
        work,
    )


def _total_field(context: SessionContext, files: StageFiles) -> StageResult:
    config, megre = context.config, context.session.megre
    brain = files.load_mask("mask")
    # One layer of voxels around the brain, so that R2* has the field gradient at its surface.
    around = max_pool3d(brain[None].float(), 3, stride=1, padding=1)[0] > 0
    scale = length_scale(brain, files.grid)
    magnitude = files.echoes(megre.magnitude)
    names = [str(path) for path in megre.magnitude]
    check_magnitudes(magnitude, names)
    decay = check_decay(magnitude, megre.te_s, names)
    phase, note = phase_in_radians(files.echoes(megre.phase), str(megre.phase[0]), megre.phase_units)
    known = phase.isfinite().all(0)
    result = total_field(
        magnitude,
        torch.where(known, phase, 0),
        megre.te_s,
        context.b0_t,
        around & known,
        adult_grid(files.grid, scale),
        adult_lengths(config.field_map, scale),
        megre.echo_numbers,
    )
    poor = judged(context, result.checks, "field")
    reliable = quality_mask(
        result.quality,
        result.reliable & brain,
        adult_grid(files.grid, scale),
        adult_lengths(config.quality, scale),
    )
    files.save(
        {
            "unwrapped": result.unwrapped_rad.movedim(0, -1),
            "residual": result.residual_rad,
            "quality": result.quality,
            "total_field": result.total_field_ppm,
            "field_sigma": result.sigma_ppm,
            "phase_mask": reliable,
        }
    )
    facts = {
        "BipolarReadout": bool(result.bipolar_rad.any()),
        "MedianResidualPhaseRad": round(float(result.residual_rad[reliable].median()), 4),
        "MedianFieldNoisePpb": round(1000 * float(result.sigma_ppm[reliable].median()), 3),
        "ReliablePartOfBrain": round(float(reliable.sum() / brain.sum()), 4),
        "Checks": [check.fact() for check in result.checks],
        **context.assumption_facts("field"),
    }
    notes = [note, *decay] if note else decay
    missing = float((brain & ~known).sum() / brain.sum())
    if missing > _MISSING_PHASE:
        notes.append(
            f"the phase images have a fill value in {100 * missing:.0f} % of the brain mask; the field is "
            "not known there"
        )
    warnings = [*notes, *result.warnings, *poor]
    if not context.fits_r2star:
        facts["NotMade"] = list(NOT_MADE_OF_ONE_ECHO)
        warnings.append(ONE_ECHO_ONLY)
    return StageResult(facts, warnings)


def _sinuses(
    total: Volume, known: MaskVolume, grid: Grid, r2star_hz: Volume, b0_t: float
) -> tuple[FittedSources | None, MaskVolume]:
    """Find venous sinuses; without any, the sources that V-SHARP fitted on the way are those it needs."""
    blood = torch.zeros_like(known)

    def found(iteration: int, chi: Volume) -> bool:
        if iteration == FIT_ITERATIONS:
            blood.logical_or_(venous_sinuses(chi, known, grid, r2star_hz, b0_t))
        return bool(blood.any())

    fitted = fitted_sources(total, known, grid, stop=found)
    return (None if bool(blood.any()) else fitted), blood


def background_stage(context: SessionContext) -> Stage:
    """Background field removal."""
    config, files = context.config.background, context.files
    finds_sinuses = config.leave_out_sinuses and context.fits_r2star

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        total, known = own.load("total_field"), own.load_mask("phase_mask")
        brain = own.load_mask("mask")
        scale = length_scale(brain, own.grid)
        grid = adult_grid(own.grid, scale)
        warnings = thin_slab(brain, own.grid, scale)
        facts: dict[str, Any] = {}
        lengths = adult_lengths(config, scale)
        tissue, of_holes, fitted = brain, None, None
        if context.fits_r2star:
            of_holes = chi_of_holes(known, brain, grid, own.load("r2star"), context.b0_t)
        if finds_sinuses:
            fitted, blood = _sinuses(total, known, grid, own.load("r2star"), context.b0_t)
            known, tissue = known & ~blood, brain & ~blood
            if lengths.vsharp != VsharpConfig():
                fitted = None  # it is of other options
            voxel_ml = math.prod(own.grid.voxel_mm) / 1000
            facts["SinusesMl"] = round(float(blood.sum()) * voxel_ml, 2 if scale == 1 else 5)
        local = remove_background(
            total,
            known,
            grid,
            lengths,
            sigma_ppm=own.load("field_sigma"),
            brain=tissue,
            hole_chi_ppm=of_holes,
            fitted=fitted,
        )
        checks = local_field_checks(local, brain)
        poor = judged(context, checks, "local field")
        reliable = reliable_mask(local, grid)
        part = float(reliable.sum() / brain.sum())
        if part < _LITTLE_TRUSTED:
            poor.append(
                f"susceptibility maps can be trusted in {100 * part:.0f} % of the brain only "
                "(desc-reliable_mask): elsewhere the error of the local field is as large as the field; "
                "usual causes are one echo, noise, and large voxels"
            )
        own.save(
            {
                "local_field": local.local_field_ppm,
                "local_field_sigma": local.sigma_ppm,
                "eroded_mask": local.mask,
                "reliable_mask": reliable,
            }
        )
        facts |= {
            "MedianLocalFieldSigmaPpb": round(1000 * float(local.sigma_ppm[local.mask].median()), 3),
            "TrustedPartOfBrain": round(part, 4),
            "ErosionMm": round(local.erosion_mm * scale, 2),
            "ErosionMl": round(local.erosion_ml * scale**3, 1 if scale == 1 else 4),
            "Checks": [check.fact() for check in checks],
            **context.assumption_facts("background"),
        }
        return StageResult(facts, [*warnings, *poor])

    return Stage(
        "background",
        "local field after background removal with its error, the mask in which it is known, and the mask "
        "in which maps can be trusted",
        files.paths(
            "total_field", "field_sigma", "phase_mask", "mask", *(["r2star"] if context.fits_r2star else [])
        ),
        files.paths("local_field", "local_field_sigma", "eroded_mask", "reliable_mask"),
        {
            "Method": config.method,
            "ErrorLaw": asdict(ERROR_LAWS[config.method]),
            "LeaveOutSinuses": config.leave_out_sinuses,
        }
        | asdict(getattr(config, config.method))
        | context.b0_parameters,
        work,
    )
