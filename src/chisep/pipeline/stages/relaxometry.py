"""Stages `registration` and `relaxometry`: rigid registration of the spin echo; maps of R2*, R2 and R2'."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.echoes import files_of
from chisep.physics.relaxation import pseudo_r2_hz
from chisep.pipeline.context import SessionContext, judged
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.preprocessing.checks import Check
from chisep.preprocessing.extent import require_slices
from chisep.preprocessing.head_size import adult_grid, length_scale
from chisep.preprocessing.magnitude_checks import check_decay, check_magnitudes
from chisep.preprocessing.magnitude_noise import noise_sigma_of_field
from chisep.preprocessing.rate_denoising import Decay, decay_parameters, denoised_r2prime
from chisep.preprocessing.registration import LEAST_CONTRAST, register
from chisep.preprocessing.relaxometry import (
    FEWEST_ECHOES,
    REGISTRATION_SD_MM,
    Rate,
    pseudo_r2prime,
    r2,
    r2prime,
    r2star,
    with_registration_error,
)
from chisep.preprocessing.resampling import coverage, resample_to

_SPIN_ECHO_PART = (0.99, 0.05)


def registration_stage(context: SessionContext, mese: bids.Series) -> Stage:
    """Rigid registration of the spin echo to the gradient echo."""
    files = context.files

    def work(declared: DeclaredFiles) -> StageResult:
        return _register(context, mese, StageFiles(files, declared))

    return Stage(
        "registration",
        "where the head lay in the spin echo, and the spin echo brought to the gradient echo",
        [*files_of(mese.magnitude), *context.magnitude_files, files["mask"]],
        files.paths("transform", "spin_echo"),
        asdict(context.config.registration),
        work,
    )


def _register(context: SessionContext, mese: bids.Series, files: StageFiles) -> StageResult:
    spin_echoes, image = files.echoes_on_own_grid(mese.magnitude)
    require_slices(image.data.shape[:3], str(mese.first))
    names = [str(path) for path in mese.magnitude]
    check_magnitudes(spin_echoes, names)
    decay = check_decay(spin_echoes, mese.te_s, names, spin_echo=True)
    brain = files.load_mask("mask")
    found = register(
        spin_echoes,
        image.affine,
        files.echoes(context.magnitude),
        files.affine,
        mask=brain,
        config=context.config.registration,
        length_scale=length_scale(brain, files.grid),
    )
    facts = {
        "MovedMm": round(found.displacement_mm, 3),
        "RotationDeg": round(found.rotation_deg, 3),
        "Agreement": round(found.agreement, 4),
        "AgreementByHeaders": round(found.agreement_before, 4),
    }
    contrast = {
        "SharedContrast": _rounded(found.contrast),
        "SharedContrastByHeaders": _rounded(found.contrast_before),
    }
    if found.contrast < LEAST_CONTRAST:
        raise _not_of_this_head(mese, found.contrast)
    transform = found.fixed_to_moving_mm.tolist()
    together = spin_echoes.square().sum(0, keepdim=True).sqrt()
    files.save({"spin_echo": _resampled(together, image, np.asarray(transform), files)[0]})
    files.save_json(
        "transform",
        {
            "Description": "Where points of the head in the MEGRE lie in the MESE, in world mm",
            "MegreToMeseWorldMm": transform,
            **facts,
        },
    )
    return StageResult(facts | contrast, [*_place_notes(image, files), *decay, *found.warnings])


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None  # JSON has no NaN


def _not_of_this_head(mese: bids.Series, contrast: float) -> InputError:
    return InputError(
        mese.first,
        found=f"a spin echo that does not lie on the gradient echo, neither by the headers nor after "
        f"registration (shared contrast {contrast:.2f})",
        expected=f"scans of one head, by their affines within 20 mm and 15° (at least {LEAST_CONTRAST:g})",
        fix="Check the affines of both scans, or remove the spin echo to go on with a pseudo-R2.",
    )


def _place_notes(image: nifti.Image, files: StageFiles) -> list[str]:
    """Say what is to be known of where the spin echo lies, unless it is so of the gradient echo, too."""
    if image.place is None:
        return []
    if image.place.problem:
        name = Path(image.source).name
        return [f"{name}: {image.place.problem}; where it lies relative to the gradient echo is uncertain"]
    same = image.place.note == files.session.header.place.note
    return [] if same else nifti.place_notes(image, b0_given=True)


def relaxometry_stage(context: SessionContext) -> Stage:
    """Relaxometry: fits of R2* and R2, and R2' = R2* − R2."""
    config, mese, files = context.config, context.session.mese, context.files
    spin_echo_files = files_of(mese.magnitude) if mese else []
    inputs = [*context.magnitude_files, *spin_echo_files, *files.paths("mask", "total_field")]
    if _two_echoes(context):
        inputs += files.paths("field_sigma")
    outputs = files.paths("r2star", "r2star_sigma", "r2prime", "r2prime_sigma")
    parameters: dict[str, Any] = {**context.echo_parameters, "R2star": asdict(config.r2star)}
    if mese is None:
        parameters["PseudoR2"] = pseudo_r2_hz(context.b0_t)
    else:
        inputs += files.paths("transform")
        outputs += files.paths("r2", "r2_sigma", *(["b1"] if has_b1(context) else []))
        parameters |= {
            "SpinEchoTime": list(mese.te_s),
            "R2": asdict(config.r2),
            "RegistrationErrorMm": REGISTRATION_SD_MM,
            "Denoise": config.denoise,
        }

    def work(declared: DeclaredFiles) -> StageResult:
        return _relaxation_rates(context, StageFiles(files, declared))

    return Stage(
        "relaxometry", "relaxation rate, or its standard deviation", inputs, outputs, parameters, work
    )


def has_b1(context: SessionContext) -> bool:
    """Whether the transmit field is fitted with R2."""
    return context.session.mese is not None and context.config.r2.method == "epg"


def _denoises(context: SessionContext) -> bool:
    """Whether R2' is denoised: that of a pseudo-R2 is uncertain for another reason than noise."""
    return context.session.mese is not None and context.config.denoise == "lmmse"


def _two_echoes(context: SessionContext) -> bool:
    return len(context.session.megre.te_s) == FEWEST_ECHOES


def _noise_of_two_echoes(
    context: SessionContext, magnitude: Tensor, brain: Tensor, files: StageFiles
) -> float | None:
    """Noise of the echoes where they are too few to tell it themselves."""
    if not _two_echoes(context):
        return None
    return noise_sigma_of_field(
        files.load("field_sigma"),
        magnitude,
        context.session.megre.te_s,
        context.b0_t,
        brain,
        offset_fitted=context.config.field_map.fit == "nonlinear",
    )


def _relaxation_rates(context: SessionContext, files: StageFiles) -> StageResult:
    brain, total = files.load_mask("mask"), files.load("total_field")
    magnitude = files.echoes(context.magnitude)
    of_gre = r2star(
        magnitude,
        context.session.megre.te_s,
        brain,
        context.config.r2star,
        total_field_ppm=total,
        field_known=total != 0,
        b0_t=context.b0_t,
        noise_sigma=_noise_of_two_echoes(context, magnitude, brain, files),
    )
    decay = None
    if _denoises(context):
        decay = decay_parameters(magnitude, context.session.megre.te_s, of_gre, brain)
    del magnitude
    if context.session.mese is None:
        difference = pseudo_r2prime(of_gre, context.b0_t)
        facts: dict[str, Any] = {}
        of_spin_echo: dict[str, Tensor] = {}
        warnings = list[str]()
        if context.config.makes_sources:
            pseudo = pseudo_r2_hz(context.b0_t)
            warnings.append(
                f"no spin-echo (MESE) images: R2' is R2* minus a pseudo-R2 of {pseudo:.1f} 1/s everywhere, "
                "an assumption"
            )
    else:
        difference, of_spin_echo, facts, warnings = _r2prime(
            context, context.session.mese, of_gre, decay, brain, files
        )
    if _two_echoes(context):
        median = round(float(of_gre.sigma_hz[brain].median()), 3)
        facts |= {"MedianR2starNoiseHz": median}
        warnings.append(
            f"two gradient echoes: R2* is that of their ratio, with a noise of {median:.1f} 1/s (median), "
            "and nothing tells voxels whose decay is not exponential"
        )
    noise = difference.sigma_hz[difference.sigma_hz > 0]
    if noise.numel():
        facts |= {"MedianR2primeNoiseHz": round(float(noise.median()), 3)}
    files.save(
        {
            "r2star": of_gre.rate_hz.clamp_min(0),
            "r2star_sigma": of_gre.sigma_hz,
            "r2prime": difference.rate_hz,
            "r2prime_sigma": difference.sigma_hz,
            **of_spin_echo,
        }
    )
    return StageResult(facts | context.assumption_facts("relaxometry"), warnings)


def _r2prime(
    context: SessionContext,
    mese: bids.Series,
    of_gre: Rate,
    decay: Decay | None,
    brain: Tensor,
    files: StageFiles,
) -> tuple[Rate, dict[str, Tensor], dict[str, Any], list[str]]:
    """R2' from the spin echo, R2 maps by their keys; 0 outside the field of view of the spin echo."""
    spin_echoes, image = files.echoes_on_own_grid(mese.magnitude)
    transform = np.asarray(files.json("transform")["MegreToMeseWorldMm"], dtype=np.float64)
    i, j, k = spin_echoes.shape[1:]
    covered = coverage((i, j, k), image.affine, files.grid, transform=transform, mask=brain)
    covered = covered.to(brain.device)
    missing = float((brain & ~covered).sum() / brain.sum())
    check = Check(
        "SpinEchoPart",
        "part of the brain that the spin echo covers",
        1 - missing,
        *_SPIN_ECHO_PART,
        "Sources are not separated elsewhere, and their QSM ends there (--qsm for another).",
    )
    warnings = judged(context, [check], "spin echo")
    known = brain & covered
    spin_echoes = _resampled(spin_echoes, image, transform, files, known)
    of_se = r2(
        spin_echoes,
        mese.te_s,
        known,
        context.config.r2,
        voxel_mm=adult_grid(files.grid, length_scale(brain, files.grid)).voxel_mm,
    )
    of_se = with_registration_error(of_se, known, files.grid.voxel_mm)
    maps = {"r2": of_se.rate_hz.clamp_min(0), "r2_sigma": of_se.sigma_hz}
    if has_b1(context):
        maps["b1"] = torch.zeros_like(of_se.rate_hz) if of_se.b1 is None else of_se.b1
    if decay is not None:
        of_echoes = decay_parameters(spin_echoes, mese.te_s, of_se, known)
        difference = denoised_r2prime(decay, of_echoes, known, files.grid.voxel_mm)
    else:
        difference = r2prime(of_gre, of_se)
    return (
        Rate(difference.rate_hz * known, difference.sigma_hz * known),
        maps,
        {"SpinEchoCoverage": round(1 - missing, 4), "R2Model": of_se.model, "Checks": [check.fact()]},
        [*warnings, *of_se.warnings],
    )


def _resampled(
    spin_echoes: Tensor,
    image: nifti.Image,
    transform: NDArray[np.float64],
    files: StageFiles,
    mask: Tensor | None = None,
) -> Tensor:
    return resample_to(
        spin_echoes, image.affine, files.grid, transform=transform, mask=mask, source=image.source
    )
