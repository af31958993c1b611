"""Patients: lesions in a digital phantom, or in a crop of one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from chisep.errors import ChisepWarning, InputError
from chisep.simulation.lesions.canvas import Canvas, Patient, PlacedLesion
from chisep.simulation.lesions.kinds import (
    KINDS,
    Kind,
    LesionConfig,
    ParkinsonConfig,
    PatientConfig,
    Place,
    random_lesions,
)
from chisep.simulation.tissue import Tissue


def add_lesions(
    tissue: Tissue,
    lesions: Sequence[LesionConfig | ParkinsonConfig],
    rng: np.random.Generator,
    *,
    separation_mm: float = 0.0,
) -> Patient:
    """Add lesions to a digital phantom, or to a crop of one.

    Lesions neither overlap (spheres around them do not) nor leave the brain mask, nor enter ventricles.
    χ of what replaces the tissue is blended with it by volume; R2' follows from the sources by the tissue's
    D_r, and where the tissue's R2' depends on more than that (fibre angles), what is left of the tissue
    keeps its dependence.

    Parameters
    ----------
    tissue
        Healthy or with lesions; not modified.
    lesions
        What to add, in order of their numbers; all lesions of a subject go into one call.
    rng
        Draws shape, position and texture, from a stream of its own for each lesion.
    separation_mm
        Least distance between spheres around two lesions.

    Returns
    -------
    Patient
        New tissue, lesion labels and table.

    Raises
    ------
    InputError
        If a lesion at a given position overlaps another or reaches outside of the brain.

    Warns
    -----
    ChisepWarning
        If a lesion has no free position; it is left out.
    """
    patient, left_out = _filled(tissue, lesions, rng, separation_mm)
    if left_out:
        warnings.warn(
            f"No room for {len(left_out)} of {len(lesions)} lesions ({', '.join(left_out)}); left out.",
            ChisepWarning,
            stacklevel=2,
        )
    return patient


def same_lesions(patient: Patient, tissue: Tissue) -> Patient:
    """Put the lesions of a patient into the same subject on other voxels, for example finer ones.

    Parameters
    ----------
    patient
        With lesions.
    tissue
        The same subject without lesions, on another grid of the same world coordinates.

    Returns
    -------
    Patient
        New tissue, lesion labels and table; positions, shapes and strengths are those of `patient`.
    """
    canvas = Canvas(tissue, 0.0)
    for body in patient.bodies:
        if isinstance(body, ParkinsonConfig):
            canvas.add_parkinson(body)
        else:
            canvas.paint(body)
    return canvas.patient()


def make_patient(tissue: Tissue, rng: np.random.Generator, config: PatientConfig) -> Patient:
    """Add random lesions to a digital phantom.

    Parameters
    ----------
    tissue
        Healthy tissue; not modified.
    rng
        Draws the lesions from one stream and their positions and shapes from another.
    config
        Kinds, number and ranges.

    Returns
    -------
    Patient
        New tissue, lesion labels and table.
    """
    options_rng, places_rng = rng.spawn(2)
    nigra = [ParkinsonConfig(rise=config.parkinson_rise)] if config.parkinson_rise else []
    drawn = random_lesions(
        options_rng, config.kinds, config.count, size_mm=config.size_mm, strength_ppb=config.strength_ppb
    )
    # The largest lesions are placed first.
    drawn = tuple(sorted(drawn, key=lambda lesion: -lesion.size_mm))
    return add_lesions(tissue, [*nigra, *drawn], places_rng)


def graded_series(
    tissue: Tissue,
    strengths_ppb: Sequence[float],
    kind: Kind,
    rng: np.random.Generator,
    *,
    size_mm: float = 6.0,
    separation_mm: float = 4.0,
    place: Place = "white",
) -> Patient:
    """Add spheres of graded strength, for the slope of predicted against assigned values.

    Parameters
    ----------
    tissue
        Healthy tissue; not modified.
    strengths_ppb
        One lesion each, numbered in this order.
    kind
        Of all lesions.
    rng
        Draws the positions.
    size_mm
        Diameter of the spheres.
    separation_mm
        Least distance between two spheres around lesions.
    place
        Tissue that the centres lie in.

    Returns
    -------
    Patient
        With one row in the table for each strength, in their order.

    Raises
    ------
    InputError
        If some have no free position.
    """
    lesions = [
        KINDS[kind](
            size_mm=size_mm, strength_ppb=strength, place=place, elongation=1.0, irregularity=0.0, texture=0.0
        )
        for strength in strengths_ppb
    ]
    patient, left_out = _filled(tissue, lesions, rng, separation_mm)
    if left_out:
        raise InputError(
            "graded lesions",
            found=f"room for {len(patient.lesions)} of {len(lesions)} in {place} matter",
            expected="room for all",
            fix="Take fewer or smaller lesions, a smaller separation, or a larger part of the head.",
        )
    return patient


def lesion_table(lesions: Iterable[PlacedLesion]) -> str:
    """Table of lesions as tab-separated values, a BIDS look-up table: index, name, …."""
    rows = ["index\tname\tx_mm\ty_mm\tz_mm\tvolume_mm3\tstrength_ppb\tchi_pos_ppb\tchi_neg_ppb"]
    for lesion in lesions:
        numbers = (
            *lesion.position_mm,
            lesion.volume_mm3,
            lesion.strength_ppb,
            lesion.chi_pos_ppb,
            lesion.chi_neg_ppb,
        )
        rows.append("\t".join((str(lesion.label), lesion.kind, *(f"{number:.2f}" for number in numbers))))
    return "\n".join(rows) + "\n"


def _filled(
    tissue: Tissue,
    lesions: Sequence[LesionConfig | ParkinsonConfig],
    rng: np.random.Generator,
    separation_mm: float,
) -> tuple[Patient, list[str]]:
    """Add lesions; return also the kinds of those without a free position."""
    canvas = Canvas(tissue, separation_mm)
    left_out = []
    for config, stream in zip(lesions, rng.spawn(len(lesions)), strict=True):
        if isinstance(config, ParkinsonConfig):
            done = canvas.add_parkinson(config)
        else:
            body = canvas.placed(config, stream)
            done = body is not None
            if body is not None:
                canvas.paint(body)
        if not done:
            left_out.append(config.kind)
    return canvas.patient(), left_out
