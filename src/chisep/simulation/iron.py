"""Tissue iron by age (Hallgren and Sourander 1958, 10.1111/j.1471-4159.1958.tb12607.x)."""

from __future__ import annotations

import math

from chisep.simulation import labelmap

_IRON_MG = {
    "pallidum": (21.41, 0.09, 0.37),
    "putamen": (14.62, 0.04, 0.46),
    "caudate": (9.66, 0.05, 0.33),
    "white": (3.95, 0.10, 0.31),
}
"""Iron in mg per 100 g of fresh tissue is a (1 − exp(−b age)) + c: a, b and c (Hallgren and Sourander)."""
IRON_CURVES: dict[str, tuple[int, ...]] = {
    # The paper has no curve of age for the nuclei of midbrain and cerebellum: theirs is the pallidum's.
    "pallidum": (
        *labelmap.PALLIDUM,
        *labelmap.PALLIDUM_INTERNUM,
        *labelmap.NIGRA,
        *labelmap.RED_NUCLEUS,
        *labelmap.SUBTHALAMIC,
        *labelmap.DENTATE,
    ),
    # Cortex, hippocampus, amygdala: late and slow, as the putamen.
    "putamen": (
        *labelmap.PUTAMEN,
        *labelmap.CEREBRAL_CORTEX,
        *labelmap.CEREBELLAR_CORTEX,
        *(17, 53, 18, 54, 26, 58),
    ),
    "caudate": labelmap.CAUDATE,
    "white": labelmap.WHITE_MATTER,
}
"""Labels of each curve; other labels (thalamus, fluids, blood) do not depend on age."""
ATLAS_AGE_YEARS = 40.0
"""Age of the regional means: the middle of the age range of the healthy adults in the atlas."""


def iron_of_age(curve: str, age_years: float) -> float:
    """Iron at an age relative to that at the atlas' age (Hallgren and Sourander 1958)."""
    rise, rate, start = _IRON_MG[curve]
    now, then = (rise * (1 - math.exp(-rate * age)) + start for age in (age_years, ATLAS_AGE_YEARS))
    return now / then
