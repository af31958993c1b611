"""The viewer of the session report: its maps with their windows, rounding, and what to look for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import ndimage

from chisep.pipeline.outputs import BEYOND_RELIABLE_MASK
from chisep.regions.cit168 import nucleus_names
from chisep.report.figures.style import (
    PPB,
    R2PRIME_WINDOW_HZ,
    RATE_NOISE_WINDOW_HZ,
    RATE_WINDOW_HZ,
    SIGMA_WINDOW_PPB,
    SOURCE_WINDOW_PPB,
    TOTAL_WINDOW_PPB,
    MaskArray,
    VolumeArray,
)
from chisep.report.session_images import SessionImages
from chisep.report.viewer import ViewerMap, ViewerScan

_SOURCE_WINDOWS = (SOURCE_WINDOW_PPB, (0.0, 50.0), (0.0, 200.0))
_CHI_WINDOWS = (TOTAL_WINDOW_PPB, (-50.0, 50.0), (-200.0, 200.0))
_SIGMA_WINDOWS = (SIGMA_WINDOW_PPB, (0.0, 10.0), (0.0, 50.0))
_CHI_STEP_PPB, _SIGMA_STEP_PPB, _TOTAL_FIELD_STEP_PPB, _RATE_STEP_HZ = 1.0, 1.0, 5.0, 0.5
_SHADES, _SHADE_STEP = 255.0, 4.0
"""Largest value and rounding of images without a unit."""
_AROUND_MM = 8.0
"""Space around the brain in which images of the head are shown."""

_ARTEFACTS = (
    "Stripes along the magic angle or a bright rim at the edge of the mask are artefacts of the field, not "
    "tissue. " + BEYOND_RELIABLE_MASK
)


def session_scan(name: str, images: SessionImages, region_names: Mapping[int, str]) -> ViewerScan:
    """Collect the maps of a session for the viewer, the separated sources first.

    Parameters
    ----------
    name
        Name of the session.
    images
        Results of the stages.
    region_names
        Label → name.
    """
    return ViewerScan(
        name=name,
        affine=images.affine,
        mask=images.mask,
        maps=[*_susceptibility(images), *_rates(images), *_fields(images), *_anatomy(images)],
        masks={
            "brain mask": images.mask,
            "phase-quality mask": images.phase_mask,
            "reliable mask": images.reliable_mask,
        },
        labels=images.labels,
        region_names=region_names,
        nuclei=nucleus_names(),
    )


def _susceptibility(images: SessionImages) -> Iterator[ViewerMap]:
    group = "Susceptibility"
    sigmas = dict(zip(("chi_pos", "chi_neg", "qsm"), images.chi_sigmas_ppm, strict=False))

    def source(key: str, name: str, values: VolumeArray, look: str, before: str) -> ViewerMap:
        sigma = f"{key}_sigma" if key in sigmas else ""
        return ViewerMap(
            key,
            name,
            values,
            "ppb",
            _CHI_STEP_PPB,
            _SOURCE_WINDOWS,
            group,
            look,
            sigma,
            before,
            fine=True,
            scale=PPB,
        )

    if images.chi_pos_ppm is not None and images.chi_neg_ppm is not None and images.chi_ppm is not None:
        iron = "Iron-rich nuclei are bright. " + _ARTEFACTS
        myelin = "White matter and calcifications are bright; the map is a magnitude. " + _ARTEFACTS
        yield source("chi_pos", "χ_pos (paramagnetic: iron)", images.chi_pos_ppm, iron, "qsm")
        yield source("chi_neg", "χ_neg (diamagnetic: myelin)", images.chi_neg_ppm, myelin, "chi_pos")
    text = (
        "χ_pos − χ_neg, less the mean of the reference region."
        if images.qsm_of_sources
        else "From the local field alone. Iron-rich nuclei are bright. " + _ARTEFACTS
    )
    yield ViewerMap(
        "qsm",
        "QSM (χ, referenced)",
        images.qsm_ppm,
        "ppb",
        _CHI_STEP_PPB,
        _CHI_WINDOWS,
        group,
        text,
        "qsm_sigma" if "qsm" in sigmas else "",
        "local_field",
        difference=("chi_pos", "chi_neg") if images.qsm_of_sources else None,
        fine=True,
        scale=PPB,
    )
    if images.chi_ppm is not None and not images.qsm_of_sources:
        yield ViewerMap(
            "chi",
            "χ = χ_pos − χ_neg",
            images.chi_ppm,
            "ppb",
            _CHI_STEP_PPB,
            _CHI_WINDOWS,
            group,
            "χ of the separation. It should resemble the QSM. " + _ARTEFACTS,
            "",
            "qsm",
            difference=("chi_pos", "chi_neg"),
            scale=PPB,
        )
    names = {"chi_pos": "χ_pos", "chi_neg": "χ_neg", "qsm": "QSM"}
    for key, values in sigmas.items():
        yield ViewerMap(
            f"{key}_sigma",
            f"SD of {names[key]}",
            values,
            "ppb",
            _SIGMA_STEP_PPB,
            _SIGMA_WINDOWS,
            "Uncertainty",
            "Standard deviation of the error that the method predicts. It is large at the rim of the mask, "
            "in and around strong sources, and wherever R2′ is noisy.",
            "",
            key,
            scale=PPB,
        )


def _rates(images: SessionImages) -> Iterator[ViewerMap]:
    inhomogeneity = (
        "Where noise makes R2′ negative, it is black. Bright R2′ above the sinuses is field inhomogeneity, "
        "not iron."
    )
    noise = "Where the noise is as large as R2′ itself, sources depend on the field alone."
    rates = (
        ("r2star", "R2*", images.r2star_hz, RATE_WINDOW_HZ, "", "magnitude", ""),
        ("r2", "R2", images.r2_hz, RATE_WINDOW_HZ, "", "r2star", ""),
        ("r2prime", "R2′", images.r2prime_hz, R2PRIME_WINDOW_HZ, "r2prime_sigma", "r2star", inhomogeneity),
        (
            "r2prime_sigma",
            "Noise of R2′ (SD)",
            images.r2prime_sigma_hz,
            RATE_NOISE_WINDOW_HZ,
            "",
            "r2prime",
            noise,
        ),
    )
    for key, name, values, (low, high), sigma, before, look in rates:
        if values is not None:
            windows = ((low, high), (low, 2 * high), (low, high / 2))
            yield ViewerMap(
                key,
                name,
                values,
                "1/s",
                _RATE_STEP_HZ,
                windows,
                "Relaxation",
                look,
                sigma,
                before,
                difference=("r2star", "r2") if key == "r2prime" else None,
            )


def _fields(images: SessionImages) -> Iterator[ViewerMap]:
    shading = "Slow shading near sinuses and ears in the local field is residual background field."
    fields = (
        (
            "local_field",
            "Local field",
            images.local_field_ppm,
            50.0,
            _CHI_STEP_PPB,
            "local_field_sigma",
            "total_field",
        ),
        ("total_field", "Total field", images.total_field_ppm, 500.0, _TOTAL_FIELD_STEP_PPB, "", "magnitude"),
    )
    for key, name, values, end, step, sigma, before in fields:
        windows = ((-end, end), (-2 * end, 2 * end), (-end / 2, end / 2))
        yield ViewerMap(key, name, values, "ppb", step, windows, "Field", shading, sigma, before, scale=PPB)
    yield ViewerMap(
        "local_field_sigma",
        "Error of the local field (SD)",
        images.local_field_sigma_ppm,
        "ppb",
        _SIGMA_STEP_PPB,
        _SIGMA_WINDOWS,
        "Field",
        "The noise of the echoes and what background removal leaves, which grows to the edge.",
        "",
        "local_field",
        scale=PPB,
    )


def _anatomy(images: SessionImages) -> Iterator[ViewerMap]:
    look = (
        "Switch on the overlay of the brain mask: its outline should follow the brain, without skull inside "
        "and without brain outside. If it does not, give a mask of your own (--masks)."
    )
    edges = np.linalg.norm(images.affine[:3, :3], axis=0)
    near = ndimage.distance_transform_edt(~images.mask, sampling=edges) <= _AROUND_MM
    yield _grey("magnitude", "Gradient-echo magnitude", images.magnitude, near, look, "qsm")
    if images.spin_echo is not None:
        look = (
            "Switch to the gradient echo and back: ventricles and sulci should not move; if they do, the "
            "registration failed."
        )
        yield _grey("spin_echo", "Spin echo, registered", images.spin_echo, images.mask, look, "magnitude")


def _grey(key: str, name: str, values: VolumeArray, shown: MaskArray, look: str, before: str) -> ViewerMap:
    """Image of any scale as grey levels; 0 where it is not shown, since noise of air takes most space."""
    top = float(np.percentile(values[shown], 99.8)) if shown.any() else 0.0
    shades = np.where(shown, np.clip(values * (_SHADES / (top or 1.0)), 0.0, _SHADES), 0.0)
    windows = ((0.0, _SHADES), (0.0, _SHADES / 2))
    return ViewerMap(
        key, name, shades, "a.u.", _SHADE_STEP, windows, "Anatomy", look, before=before, masked=False
    )
