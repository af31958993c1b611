"""Lesions of graded strength: their options, regression of predicted on assigned values, panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chisep.errors import InputError
from chisep.experiments.common.scores import finite
from chisep.metrics import lesion_slope
from chisep.report import figures
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.kinds import KINDS, Kind
from chisep.types import Volume

GRADED: Mapping[Kind, str] = {"hemorrhage": "chi_pos", "calcification": "chi_neg"}
"""Kind of lesion → its source."""
_FEWEST = 3


_SIGN = {"hemorrhage": 1.0, "calcification": -1.0}


@dataclass(frozen=True, kw_only=True)
class LesionsConfig:
    """Spheres of graded strength in white matter."""

    strengths_ppb: tuple[float, ...] = (50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0)
    """χ_pos of each hemorrhage, χ_neg of each calcification in a head, in ppb."""
    size_mm: float = 8.0
    """Their diameter in mm."""
    separation_mm: float = 4.0
    """Least distance between two lesions in mm, oedema included."""

    def __post_init__(self) -> None:
        if len(self.strengths_ppb) < _FEWEST or min(self.strengths_ppb) <= 0:
            raise InputError(
                "strengths_ppb",
                found=f"{self.strengths_ppb}",
                expected=f"{_FEWEST} numbers above 0, or more",
                fix="Correct the option.",
            )
        for kind in GRADED:
            self.lesion(kind, self.strengths_ppb[0])

    def lesion(self, kind: Kind, strength_ppb: float) -> Any:  # noqa: ANN401
        """One lesion's options: a sphere without texture."""
        return KINDS[kind](
            size_mm=self.size_mm, strength_ppb=strength_ppb, elongation=1.0, irregularity=0.0, texture=0.0
        )


def lesion_options(config: LesionsConfig) -> dict[str, Any]:
    """Options of the lesions only."""
    return {name: asdict(config)[name] for name in ("strengths_ppb", "size_mm", "separation_mm")}


def lesion_pairs(cells: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[float, float]]:
    """Pair the assigned and predicted value, in ppb, of every predicted lesion of a kind."""
    return [
        (lesion["assigned_ppb"], lesion["predicted_ppb"])
        for cell in cells
        for lesion in cell["lesions"]
        if lesion["kind"] == kind and lesion["predicted_ppb"] is not None
    ]


def fitted(assigned_ppb: Sequence[float], predicted_ppb: Sequence[float]) -> dict[str, float | None]:
    """Slope, its 95 % interval, and intercept of the line through lesions; None where not defined."""
    if len(assigned_ppb) < _FEWEST:
        return dict.fromkeys(("slope", "slope_low", "slope_high", "intercept_ppb"))
    line = lesion_slope(assigned_ppb, predicted_ppb)
    return {
        "slope": finite(line.slope),
        "slope_low": finite(line.slope_low),
        "slope_high": finite(line.slope_high),
        "intercept_ppb": finite(line.intercept),
    }


def slope_text(fit: Mapping[str, Any]) -> str:
    """Write a slope with its interval."""
    if fit["slope"] is None:
        return "–"
    if fit["slope_low"] is None or fit["slope_high"] is None:
        return f"{fit['slope']:.3f}"
    return f"{fit['slope']:.3f} [{fit['slope_low']:.3f}, {fit['slope_high']:.3f}]"


def lesion_panel(
    title: str, cells: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
) -> figures.Lesions:
    """Points and lines of one method; kinds with too few lesions for a line are left out.

    Parameters
    ----------
    title
        Name of the method.
    cells
        Its lesions, a cell a subject.
    found
        The line of each kind, as `fitted` returns it.
    """
    known = [kind for kind in GRADED if found[kind]["slope"] is not None]
    pairs = {kind: lesion_pairs(cells, kind) for kind in known}
    return figures.Lesions(
        title,
        {kind: ([a for a, _ in pairs[kind]], [p for _, p in pairs[kind]]) for kind in known},
        {kind: (found[kind]["slope"], found[kind]["intercept_ppb"]) for kind in known},
    )


def read_chi(patient: Patient, true_ppm: Volume, made_ppm: Volume) -> list[dict[str, Any]]:
    """Mean assigned and predicted χ of each lesion in ppb, −χ of calcifications."""
    labels, made, true = patient.labels.numpy(), made_ppm.numpy(), true_ppm.numpy()
    lesions = []
    for row in patient.lesions:
        here = labels == row.label
        assigned, predicted = (
            1000 * _SIGN[row.kind] * float(chi[here].mean(dtype=np.float64)) for chi in (true, made)
        )
        lesions.append({"kind": row.kind, "assigned_ppb": assigned, "predicted_ppb": finite(predicted)})
    return lesions
