"""Statistics over heads: means with t-intervals, paired differences, lines through the lesions of a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from chisep.experiments.common.lesions import fitted
from chisep.experiments.common.scores import finite

Cells = Sequence[Mapping[str, Any]]
SCORES = ("nrmse_percent", "psnr_in_mask_db", "xsim", "hfen_percent")


def interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean over heads with its 95 % t-interval; None where a value is missing or heads are too few.

    Parameters
    ----------
    values
        One of each head.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return {"mean": None, "low": None, "high": None, "heads": len(values)}
    mean = float(np.mean(known))
    if len(known) < 2:
        return {"mean": mean, "low": None, "high": None, "heads": len(known)}
    half = float(stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
    return {"mean": mean, "low": mean - half, "high": mean + half, "heads": len(known)}


def by_head(cells: Cells, value: Callable[[Mapping[str, Any]], float | None]) -> dict[str, float | None]:
    """Value of each head, the mean over its noise draws."""
    draws: dict[str, list[float | None]] = {}
    for cell in cells:
        draws.setdefault(cell["head"], []).append(value(cell))
    return {
        head: None if None in some else float(np.mean([x for x in some if x is not None]))
        for head, some in draws.items()
    }


def paired(own: Mapping[str, float | None], other: Mapping[str, float | None]) -> dict[str, Any]:
    """Difference between two methods, own − other: mean over the heads that both have, with its interval."""
    differences: list[float | None] = []
    for head in own.keys() & other.keys():
        a, b = own[head], other[head]
        differences.append(None if a is None or b is None else a - b)
    return interval(differences)


def summarised(cells: Cells, reference: str) -> dict[str, Any]:
    """Summarise the results of all scans.

    Parameters
    ----------
    cells
        Results of `Scan.evaluated`, with the name of the method as `row`.
    reference
        Method that the others are compared with.

    Returns
    -------
    dict
        `Scores`: world → condition → method → source → score → interval; `Differences` (of the NRMSE, method
        minus reference), `Coverage` (in %), `RegionSlopes`: world → condition → method → source → interval;
        `Lesions`: world → condition → method → source → `slope`, `leak_percent` (intervals over heads),
        `lesions`.
    """
    found: dict[str, Any] = {}
    for world in _names(cells, "world"):
        for condition in _names(cells, "condition"):
            scans = [c for c in cells if c["world"] == world and c["condition"] == condition]
            if not scans:
                continue
            of = {row: [c for c in scans if c["row"] == row] for row in _names(scans, "row")}
            for name, summary in _of_scans(of, reference).items():
                found.setdefault(name, {}).setdefault(world, {})[condition] = summary
    return found


def _at(*keys: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Return a function that reads a nested value of a result."""

    def value(cell: Mapping[str, Any]) -> float | None:
        found: Any = cell
        for key in keys:
            found = found[key]
        return None if found is None else float(found)

    return value


def _names(cells: Cells, key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _of_scans(of: Mapping[str, Cells], reference: str) -> dict[str, Any]:
    sources = {row: list(some[0]["scores"]) for row, some in of.items()}
    nrmse = {
        row: {s: by_head(some, _at("scores", s, "nrmse_percent")) for s in sources[row]}
        for row, some in of.items()
    }
    compared = nrmse.get(reference, {})
    return {
        "Scores": {
            row: {
                s: {
                    score: interval(list(by_head(some, _at("scores", s, score)).values())) for score in SCORES
                }
                for s in sources[row]
            }
            for row, some in of.items()
        },
        "Differences": {
            row: {s: paired(values, compared[s]) for s, values in own.items() if s in compared}
            for row, own in nrmse.items()
            if row != reference and compared
        },
        "Coverage": {
            row: {s: interval(list(by_head(some, _at("coverage", s)).values())) for s in some[0]["coverage"]}
            for row, some in of.items()
            if some[0]["coverage"]
        },
        "RegionSlopes": {
            row: {s: interval(list(by_head(some, _at("regions", s, "slope")).values())) for s in sources[row]}
            for row, some in of.items()
        },
        "Lesions": {row: _lesions(some) for row, some in of.items() if some[0]["lesions"]},
    }


def _lesions(cells: Cells) -> dict[str, Any]:
    """Slope and leak of each head, as an interval over heads, by the source of the lesions."""
    found = {}
    for source in ("chi_pos", "chi_neg"):
        of = [[x for x in cell["lesions"] if x["source"] == source] for cell in cells]
        found[source] = {
            "lesions": sum(len(some) for some in of),
            "slope": interval(list(by_head(cells, partial(_slope, source=source)).values())),
            "leak_percent": interval(list(by_head(cells, partial(_leak, source=source)).values())),
        }
    return found


def _slope(cell: Mapping[str, Any], source: str) -> float | None:
    own = [x for x in cell["lesions"] if x["source"] == source and x["predicted_ppb"] is not None]
    slope = fitted([x["assigned_ppb"] for x in own], [x["predicted_ppb"] for x in own])["slope"]
    return None if slope is None else finite(slope)


def _leak(cell: Mapping[str, Any], source: str) -> float | None:
    leaks = [
        100 * x["leak_ppb"] / x["assigned_ppb"]
        for x in cell["lesions"]
        if x["source"] == source and x.get("leak_ppb") is not None
    ]
    return float(np.mean(leaks)) if leaks else None
