"""Means over heads, lines through lesions, and the page and figure that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chisep import figures
from chisep.experiments.beyond.scans import CONDITIONS, ROWS, UNROLLED, BeyondConfig
from chisep.experiments.texts import markdown, number, plus_minus
from chisep.experiments.thesis.data import finite
from chisep.experiments.thesis.patients import GRADED, fitted, slope_text
from chisep.experiments.thesis.table import NAMES, mean_and_sd
from chisep.models.network import SOURCES

_METRICS = {"nrmse_percent": ("NRMSE (%)", 2), "psnr_db": ("PSNR (dB)", 2), "ssim": ("SSIM", 4)}


def summarised(config: BeyondConfig, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and SDs over heads of every protocol and method, and the lines of the lesions.

    Parameters
    ----------
    config
        Methods and protocols.
    cells
        What every method made of every scan.

    Returns
    -------
    dict
        `Scores`: protocol → method → source → metric → mean and SD; `Held`: the share of voxels that
        intervals hold; `Budget`: the error budget under the standard protocol; `Regions`: RMS error of
        regional means; `Lesions`: lines, leak and held share by method and kind; `Passes`: lines of each.
    """
    healthy = [cell for cell in cells if "lesions" not in cell]
    patients = [cell for cell in cells if "lesions" in cell]

    def of(name: str, row: str) -> list[Mapping[str, Any]]:
        return [cell for cell in healthy if (cell["condition"], cell["row"]) == (name, row)]

    standard = {row: of("standard", row) for row in config.rows if of("standard", row)}
    lesions = {
        row: [lesion for cell in patients if cell["row"] == row for lesion in cell["lesions"]]
        for row in config.rows
    }
    return {
        "Scores": {name: {row: _scores(of(name, row)) for row in config.rows} for name in config.conditions},
        "Held": {
            name: {
                row: {source: mean_and_sd([x["held"][source] for x in of(name, row)]) for source in SOURCES}
                for row in config.rows
                if all(cell["held"] for cell in of(name, row))
            }
            for name in config.conditions
        },
        "Budget": {
            row: {part: mean_and_sd([x["budget_ppb"][part] for x in some]) for part in some[0]["budget_ppb"]}
            for row, some in standard.items()
        },
        "Regions": {
            row: {source: _region_error(some, source) for source in SOURCES} for row, some in standard.items()
        },
        "Lesions": {
            row: {kind: _lines(some, kind) for kind in GRADED} for row, some in lesions.items() if some
        },
        "Passes": {kind: _pass_lines(lesions.get(UNROLLED, []), kind) for kind in GRADED},
    }


def _scores(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        source: {metric: mean_and_sd([x["scores"][source][metric] for x in cells]) for metric in _METRICS}
        for source in SOURCES
    }


def _region_error(cells: Sequence[Mapping[str, Any]], source: str) -> float:
    errors = [
        made - true
        for cell in cells
        for values in cell["regions_ppb"].values()
        for made, true in (values[source],)
    ]
    return float(np.sqrt(np.mean(np.square(errors))))


def _lines(lesions: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    known = [lesion for lesion in lesions if lesion["kind"] == kind and lesion["predicted_ppb"] is not None]
    assigned = [lesion["assigned_ppb"] for lesion in known]
    held = [lesion["held"] for lesion in known if lesion["held"] is not None]
    leaks = [lesion["leak_ppb"] / lesion["assigned_ppb"] for lesion in known]
    return {
        "lesions": len(known),
        **fitted(assigned, [lesion["predicted_ppb"] for lesion in known]),
        "leak_percent": finite(100 * float(np.mean(leaks))) if leaks else None,
        "largest_leak_percent": finite(100 * float(np.abs(leaks).max())) if leaks else None,
        "held": finite(float(np.mean(held))) if held else None,
    }


def _pass_lines(lesions: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, float | None]]:
    known = [lesion for lesion in lesions if lesion["kind"] == kind and lesion["passes_ppb"]]
    if not known:
        return []
    return [
        fitted([x["assigned_ppb"] for x in known], [x["passes_ppb"][n] for x in known])
        for n in range(len(known[0]["passes_ppb"]))
    ]


def page(config: BeyondConfig, summary: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    return "\n".join(
        (
            "# Beyond the thesis\n",
            f"{len(config.labels)} heads that no network was trained on; against the truth; mean ± SD.\n",
            _standard_table(summary),
            "## Protocols, without retraining: NRMSE of χ_pos/χ_neg (%)\n\n"
            "Held: share of voxels whose truth lies within the 90 % interval (%).\n",
            _protocol_table(config, summary),
            "## Lesions\n\nSlope of predicted against assigned value; leak: what the other source gains, in "
            "% of the assigned value; held: as above, in the lesions.\n",
            _lesion_table(summary),
            "## Errors of the parts, and of regional means (RMS, ppb)\n",
            _budget_table(summary),
            "## Slope by pass of the unrolled network\n",
            markdown(
                ["pass", *GRADED],
                [
                    [str(n + 1), *(slope_text(summary["Passes"][kind][n]) for kind in GRADED)]
                    for n in range(len(summary["Passes"]["hemorrhage"]))
                ],
            ),
        )
    )


def _standard_table(summary: Mapping[str, Any]) -> str:
    head = ["method", *(f"{NAMES[s]}: {title}" for s in SOURCES for title, _ in _METRICS.values())]
    lines = []
    for row, found in summary["Scores"].get("standard", {}).items():
        cells = [
            (found[source][metric], digits) for source in SOURCES for metric, (_, digits) in _METRICS.items()
        ]
        lines.append([ROWS[row].title, *(plus_minus(c["mean"], c["sd"], digits) for c, digits in cells)])
    return markdown(head, lines)


def _protocol_table(config: BeyondConfig, summary: Mapping[str, Any]) -> str:
    telling = list(next(iter(summary["Held"].values()), {}))
    lines = []
    for name, rows in summary["Scores"].items():
        errors = [
            "/".join(f"{number(x[s]['nrmse_percent']['mean']):.1f}" for s in SOURCES) for x in rows.values()
        ]
        held = [
            "/".join(f"{100 * number(summary['Held'][name][row][s]['mean']):.0f}" for s in SOURCES)
            for row in telling
        ]
        lines.append([CONDITIONS[name].title, *errors, *held])
    titles = [*(ROWS[row].title for row in config.rows), *(f"held: {ROWS[row].title}" for row in telling)]
    return markdown(["protocol", *titles], lines)


def _lesion_table(summary: Mapping[str, Any]) -> str:
    what = ("slope [95 %]", "intercept (ppb)", "leak (%)", "held (%)")
    lines = []
    for row, found in summary["Lesions"].items():
        line = [ROWS[row].title]
        for kind in GRADED:
            fit = found[kind]
            line += [
                slope_text(fit),
                plus_minus(fit["intercept_ppb"], None, 1),
                plus_minus(fit["leak_percent"], None, 1),
                "–" if fit["held"] is None else f"{100 * fit['held']:.0f}",
            ]
        lines.append(line)
    return markdown(["method", *(f"{kind}: {text}" for kind in GRADED for text in what)], lines)


def _budget_table(summary: Mapping[str, Any]) -> str:
    parts = {
        "sum": "χ_pos + χ_neg",
        "noise_of_sum": "R2'/D_r",
        "difference": "χ_pos − χ_neg",
        "difference_in_cone": "of it near the cone",
    }
    lines = [
        [
            ROWS[row].title,
            *(plus_minus(found[part]["mean"], None, 2) for part in parts),
            *(f"{summary['Regions'][row][source]:.1f}" for source in SOURCES),
        ]
        for row, found in summary["Budget"].items()
    ]
    return markdown(["method", *parts.values(), *(f"regions {NAMES[s]}" for s in SOURCES)], lines)


def lesion_figure(summary: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw lesions of every method with their lines; arguments as `summarised` returns and takes them."""
    panels = []
    for row, found in summary["Lesions"].items():
        points: dict[str, tuple[list[float], list[float]]] = {}
        lines: dict[str, tuple[float, float]] = {}
        for kind in GRADED:
            known = [
                (x["assigned_ppb"], x["predicted_ppb"])
                for cell in cells
                if cell["row"] == row
                for x in cell.get("lesions", [])
                if x["kind"] == kind and x["predicted_ppb"] is not None
            ]
            if found[kind]["slope"] is not None:
                points[kind] = ([a for a, _ in known], [p for _, p in known])
                lines[kind] = (found[kind]["slope"], found[kind]["intercept_ppb"])
        panels.append(figures.Lesions(ROWS[row].title, points, lines))
    return figures.lesion_lines(panels)
