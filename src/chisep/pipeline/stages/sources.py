"""Stages `inversion` (or `qsm`), `calibration` and `separation`: dipole inversion, D_r, source separation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chisep import methods
from chisep.errors import InputError
from chisep.methods import scan_relaxivity
from chisep.networks.inference import NetworkOptions
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.context import SessionContext, convergence_facts
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.preprocessing.relaxivity import AUTO, calibrate_relaxivity, relaxivity
from chisep.preprocessing.scan_relaxivity import choose_relaxivity
from chisep.regions.reference import no_reference_facts
from chisep.types import Maps, Relaxivity

_CALIBRATION_SEED = 0


def session_relaxivity(context: SessionContext, files: StageFiles) -> Relaxivity:
    """D_r from the options, or from the stage `calibration`.

    Parameters
    ----------
    context
        Context of the session.
    files
        Files of the stage.
    """
    config = context.config
    if config.dr == AUTO:
        found = files.json("calibration")
        return Relaxivity(found["D_r_pos"], found["D_r_neg"])
    if config.calibrate_dr:
        of_both = files.json("calibration")["hz_per_ppm"]
        return Relaxivity(of_both, of_both)
    return relaxivity(config.dr, context.b0_t)


def inversion_stage(context: SessionContext) -> Stage:
    """Dipole inversion of the local field: the stage `qsm`, or `inversion` if its map is not yet the QSM."""
    config, files, key = context.config, context.files, context.chi_key
    method, network = config.inversion, config.inversion_network
    uses_magnitude = _uses_magnitude(methods.METHODS[method])
    predicts = methods.tells_sigma(method, network) and not context.qsm_from_sources
    sigma = ["qsm_sigma"] if predicts else []

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        maps = _maps(context, own, uses_magnitude=uses_magnitude)
        result = methods.invert(maps, method, methods.config_for(method, network), device=config.device)
        volumes = {key: result.chi_ppm, **dict.fromkeys(sigma, result.chi_sigma_ppm)}
        own.save({name: volume for name, volume in volumes.items() if volume is not None})
        unreferenced = no_reference_facts() if key == "qsm" else {}
        facts = convergence_facts(result.convergence) | context.assumption_facts("qsm") | unreferenced
        return StageResult(facts, result.convergence.warnings)

    return Stage(
        key,
        "magnetic susceptibility from dipole inversion of the local field",
        [
            *files.paths("local_field", "local_field_sigma", "eroded_mask", "mask"),
            *(context.magnitude_files if uses_magnitude else ()),
        ],
        files.paths(key, *sigma),
        {
            "Method": method,
            **methods.settings(method),
            **context.weight_parameters("qsm"),
            **context.b0_parameters,
        },
        work,
    )


def calibration_stage(context: SessionContext) -> Stage:
    """Calibration of D_r in deep grey matter.

    Raises
    ------
    InputError
        If there is no segmentation.
    """
    files = context.files
    if context.segmentation is None:
        raise InputError(
            context.config.bids / "derivatives",
            found=f"no segmentation of {context.session.name}",
            expected="…_dseg.nii.gz or aseg.mgz with FreeSurfer's numbers, for --calibrate-dr",
            fix="Add one, or give D_r by --dr.",
        )

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        found = calibrate_relaxivity(
            own.load("r2prime"),
            own.load(context.chi_key),
            torch.from_numpy(own.labels()),
            own.load_mask("eroded_mask"),
            np.random.default_rng(_CALIBRATION_SEED),
        )
        own.save_json("calibration", asdict(found))
        low, high = found.interval95
        default = default_relaxivity(context.b0_t).pos_hz_per_ppm
        return StageResult(
            warnings=[
                f"D_r is {found.hz_per_ppm:.0f} 1/s/ppm by this person's own deep grey matter (95 % interval "
                f"{low:.0f} to {high:.0f}), in place of {default:.0f}"
            ]
        )

    return Stage(
        "calibration",
        "D_r from deep grey matter",
        files.paths("r2prime", context.chi_key, "eroded_mask", "labels"),
        files.paths("calibration"),
        {},
        work,
    )


def scan_relaxivity_stage(context: SessionContext) -> Stage:
    """Estimate of D_r from field and R2' (`--dr auto`)."""
    config, files = context.config, context.files
    measured = context.session.mese is not None

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        if measured:
            maps = _with_measured_r2prime(_maps(context, own, uses_magnitude=False), own)
            chosen = scan_relaxivity.relaxivity_from(maps, context.b0_t, device=config.device)
        else:
            chosen = choose_relaxivity(None, context.b0_t)
        own.save_json("calibration", chosen.facts)
        return StageResult(chosen.facts, chosen.warnings)

    inputs = ("local_field", "local_field_sigma", "eroded_mask", "mask", "r2prime", "r2prime_sigma")
    return Stage(
        "calibration",
        "D_r from R2' and χ of iron-rich and of diamagnetic tissue",
        files.paths(*inputs) if measured else [],
        files.paths("calibration"),
        {
            "Method": "scan",
            "Weights": methods.weights_used(scan_relaxivity.QSM, NetworkOptions(), chi_given=False),
            "MagneticFieldStrength": context.b0_t,
            **context.b0_parameters,
        },
        work,
    )


def separation_stage(context: SessionContext) -> Stage:
    """Separation of χ_pos from χ_neg."""
    config, files, method = context.config, context.files, context.method
    uses_magnitude = _uses_magnitude(method)
    sigmas = source_sigmas(context)
    if config.dr == AUTO or config.calibrate_dr:
        d_r: Mapping[str, Any] = {"D_r": AUTO if config.dr == AUTO else "calibrated"}
    else:
        known = relaxivity(config.dr, context.b0_t)
        d_r = {"D_r_pos": known.pos_hz_per_ppm, "D_r_neg": known.neg_hz_per_ppm}
    inputs = [
        *files.paths(
            "local_field", "local_field_sigma", *([] if method.has_field_term else [context.chi_key])
        ),
        *files.paths("eroded_mask", "mask"),
        *(context.magnitude_files if uses_magnitude else ()),
        *_rate_inputs(context),
        *files.paths(*(["calibration"] if config.measures_dr else [])),
    ]

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        maps = _maps(context, own, uses_magnitude=uses_magnitude)
        maps, warnings = _with_rates(context, replace(maps, relaxivity=session_relaxivity(context, own)), own)
        if not method.has_field_term:
            maps = replace(maps, chi_ppm=own.load(context.chi_key))
        options = methods.config_for(config.method, config.network)
        result = methods.separate(maps, config.method, options, device=config.device)
        volumes = {
            "chi_pos": result.chi_pos_ppm,
            "chi_neg": result.chi_neg_ppm,
            "chi": result.chi_ppm,
            "chi_pos_sigma": result.chi_pos_sigma_ppm,
            "chi_neg_sigma": result.chi_neg_sigma_ppm,
        }
        own.save({key: volume for key, volume in volumes.items() if volume is not None})
        facts = convergence_facts(result.convergence) | context.assumption_facts("separation")
        facts |= own.json("calibration") if config.dr == AUTO else {}
        return StageResult(facts, [*warnings, *result.convergence.warnings])

    return Stage(
        "separation",
        "separated susceptibility: paramagnetic, diamagnetic (as a positive magnitude), total",
        inputs,
        files.paths("chi_pos", "chi_neg", "chi", *sigmas),
        {
            "Method": config.method,
            **methods.settings(config.method),
            **context.weight_parameters("separation"),
            **d_r,
            **context.b0_parameters,
        },
        work,
    )


def source_sigmas(context: SessionContext) -> list[str]:
    """Keys of the uncertainty maps of χ_pos and χ_neg, if the method predicts them."""
    known = methods.tells_sigma(context.config.method, context.config.network)
    return ["chi_pos_sigma", "chi_neg_sigma"] if known else []


def _uses_magnitude(method: methods.Method) -> bool:
    return "magnitude" in (*method.needs, *method.uses)


def _rate_inputs(context: SessionContext) -> list[Path]:
    """Relaxation rate maps that the separation reads."""
    if not context.reads_r2prime:
        return context.files.paths("r2star")
    measured = context.session.mese is not None or context.method.uses_noise_maps
    return context.files.paths("r2prime", *(["r2prime_sigma"] if measured else []))


def _maps(context: SessionContext, files: StageFiles, *, uses_magnitude: bool) -> Maps:
    magnitude = files.echoes(context.magnitude).square().sum(0).sqrt() if uses_magnitude else None
    return Maps(
        field_ppm=files.load("local_field"),
        mask=files.load_mask("eroded_mask"),
        support=files.load_mask("mask"),
        grid=files.grid,
        magnitude=magnitude,
        field_sigma_ppm=files.load("local_field_sigma"),
        b0_t=context.b0_t,
    )


def _with_rates(context: SessionContext, maps: Maps, files: StageFiles) -> tuple[Maps, list[str]]:
    """Add the relaxation rate maps that the method reads; also return warnings of assumptions."""
    if not context.reads_r2prime:
        return replace(maps, r2star_hz=files.load("r2star")), []
    maps = replace(maps, r2prime_hz=files.load("r2prime"))
    if context.session.mese is not None:  # sources need a measured R2 here
        return _with_measured_r2prime(maps, files), []
    if context.method.uses_noise_maps:
        maps = replace(maps, r2prime_sigma_hz=files.load("r2prime_sigma"))
    return maps, [
        f"χ_pos and χ_neg depend on the pseudo-R2: {context.config.method} reads R2', and there are no "
        "spin-echo (MESE) images; methods that take R2* do not need it"
    ]


def _with_measured_r2prime(maps: Maps, files: StageFiles) -> Maps:
    """Add R2' with its noise, and restrict the masks to where the spin echo covers the brain."""
    sigma = files.load("r2prime_sigma")
    covered = sigma > 0
    return replace(
        maps,
        mask=maps.mask & covered,
        support=maps.sources_mask & covered,
        r2prime_hz=files.load("r2prime"),
        r2prime_sigma_hz=sigma,
    )
