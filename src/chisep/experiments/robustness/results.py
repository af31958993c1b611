"""Means over heads, lines through lesions, and the page and figure that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chisep.experiments.common.lesions import GRADED, fitted, slope_text
from chisep.experiments.common.scores import CHI_METRICS, NAMES, finite, mean_and_sd
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.experiments.robustness.protocols import CONDITIONS, ROWS, UNROLLED, BeyondConfig
from chisep.networks.config import SOURCES
from chisep.report import figures

_METRICS = {"nrmse_percent": ("NRMSE (%)", 2), "psnr_db": ("PSNR (dB)", 2), "ssim": ("SSIM", 4)}


def summarised(config: BeyondConfig, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and SDs over heads of every protocol and method, and the lines of the lesions.

    Parameters
    ----------
    config
        Methods and protocols.
    cells
        Result of every method on every scan.

    Returns
    -------
    dict
        `Scores`: protocol → method → source → metric → mean and SD; `Compared`: method → … of the heads
        that are scanned by other protocols too, under the standard protocol; `Coverage`: coverage of the
        prediction intervals; `Budget`: the error budget under the standard protocol; `Regions`: RMS error of
        regional means; `Lesions`: lines, leak and coverage by method and kind; `Cascades`: lines of each
        cascade.
        `Chi`: of QSM methods, `Scores`, `Coverage` and `Lesions` in the same form.
    """
    return _of_sources(config, cells) | {"Chi": _of_chi(config, cells)}


def _of(
    config: BeyondConfig, cells: Sequence[Mapping[str, Any]], name: str, target: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Select results on healthy heads under a protocol, by method."""
    healthy = [cell for cell in cells if "lesions" not in cell and cell["condition"] == name]
    return {
        row: [cell for cell in healthy if cell["row"] == row]
        for row in config.rows_under(name)
        if ROWS[row].target == target
    }


def _of_chi(config: BeyondConfig, cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"Scores": {}, "Coverage": {}, "Lesions": {}}
    for name in config.conditions:
        own = _of(config, cells, name, "chi")
        found["Scores"][name] = {
            row: {metric: mean_and_sd([x["scores"]["chi"][metric] for x in some]) for metric in CHI_METRICS}
            for row, some in own.items()
        }
        found["Coverage"][name] = {
            row: mean_and_sd([x["coverage"]["chi"] for x in some])
            for row, some in own.items()
            if all(x["coverage"] for x in some)
        }
    lesions = _lesions(config, cells, "chi")
    found["Lesions"] = {row: {kind: _line(some, kind) for kind in GRADED} for row, some in lesions.items()}
    return found


def _lesions(
    config: BeyondConfig, cells: Sequence[Mapping[str, Any]], target: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Select results in lesions, by method."""
    patients = [cell for cell in cells if "lesions" in cell]
    found = {
        row: [lesion for cell in patients if cell["row"] == row for lesion in cell["lesions"]]
        for row in config.rows
        if ROWS[row].target == target
    }
    return {row: some for row, some in found.items() if some}


def _of_sources(config: BeyondConfig, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of = {name: _of(config, cells, name, "sources") for name in config.conditions}
    standard = of.get("standard", {})
    lesions = _lesions(config, cells, "sources")
    return {
        "Scores": {name: {row: _scores(some) for row, some in rows.items()} for name, rows in of.items()},
        "Compared": {
            row: _scores([cell for cell in some if cell["head"] <= config.heads_of_conditions])
            for row, some in standard.items()
            if row in config.rows_of_conditions
        },
        "Coverage": {
            name: {
                row: {source: mean_and_sd([x["coverage"][source] for x in some]) for source in SOURCES}
                for row, some in rows.items()
                if all(cell["coverage"] for cell in some)
            }
            for name, rows in of.items()
        },
        "Budget": {
            row: {part: mean_and_sd([x["budget_ppb"][part] for x in some]) for part in some[0]["budget_ppb"]}
            for row, some in standard.items()
        },
        "Regions": {
            row: {source: _region_error(some, source) for source in SOURCES} for row, some in standard.items()
        },
        "Lesions": {row: {kind: _lines(some, kind) for kind in GRADED} for row, some in lesions.items()},
        "Cascades": {kind: _cascade_lines(lesions.get(UNROLLED, []), kind) for kind in GRADED},
    }


def _scores(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        source: {metric: mean_and_sd([x["scores"][source][metric] for x in cells]) for metric in _METRICS}
        for source in SOURCES
    }


def _region_error(cells: Sequence[Mapping[str, Any]], source: str) -> float:
    """RMS over the regions of all heads."""
    regions = [cell["regions_ppb"] for cell in cells]
    squares = [some[source] ** 2 for some in regions]
    return float(np.sqrt(np.average(squares, weights=[some["count"] for some in regions])))


def _lines(lesions: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    known = [lesion for lesion in lesions if lesion["kind"] == kind and lesion["predicted_ppb"] is not None]
    leaks = [lesion["leak_ppb"] / lesion["assigned_ppb"] for lesion in known]
    return {
        **_line(known, kind),
        "leak_percent": finite(100 * float(np.mean(leaks))) if leaks else None,
        "largest_leak_percent": finite(100 * float(np.abs(leaks).max())) if leaks else None,
        "coverage": _mean_coverage(known, "coverage"),
        "coverage_other": _mean_coverage(known, "coverage_other"),
    }


def _mean_coverage(lesions: Sequence[Mapping[str, Any]], which: str) -> float | None:
    coverage = [lesion[which] for lesion in lesions if lesion[which] is not None]
    return finite(float(np.mean(coverage))) if coverage else None


def _line(lesions: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    known = [lesion for lesion in lesions if lesion["kind"] == kind and lesion["predicted_ppb"] is not None]
    return {
        "lesions": len(known),
        **fitted([lesion["assigned_ppb"] for lesion in known], [lesion["predicted_ppb"] for lesion in known]),
    }


def _cascade_lines(lesions: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, float | None]]:
    known = [lesion for lesion in lesions if lesion["kind"] == kind and lesion["cascades_ppb"]]
    if not known:
        return []
    return [
        fitted([x["assigned_ppb"] for x in known], [x["cascades_ppb"][n] for x in known])
        for n in range(len(known[0]["cascades_ppb"]))
    ]


def page(config: BeyondConfig, summary: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    return "\n".join(
        (
            "# Beyond the thesis\n",
            f"{len(config.labels)} phantoms that no network was trained on; against the truth; mean ± SD.\n",
            _standard_table(summary),
            "## Protocols, without retraining: NRMSE of χ_pos/χ_neg (%)\n\n"
            f"Number of phantoms: {config.heads_of_conditions}. Coverage: share of voxels whose truth lies "
            "within the 90 % interval; under the standard protocol in all phantoms.\n",
            _protocol_table(config, summary),
            "## Lesions\n\nSlope of predicted against assigned value; leak: increase of the other source, in "
            "% of the assigned value; coverage: as above, in the lesions, of their source/the other.\n",
            _lesion_table(summary),
            "## Errors of sum and difference, and of regional means (RMS, ppb)\n",
            _budget_table(summary),
            "## Slopes of the intermediate estimates of the unrolled network\n\n"
            "After each cascade, and after the final data-consistency (DC) steps.\n",
            markdown(
                ["after", *GRADED],
                [
                    [str(n + 1), *(slope_text(summary["Cascades"][kind][n]) for kind in GRADED)]
                    for n in range(len(summary["Cascades"]["hemorrhage"]))
                ],
            ),
            *_chi_part(summary["Chi"]),
        )
    )


def _chi_part(chi: Mapping[str, Any]) -> list[str]:
    """Tables of methods that make χ alone; none if there are none."""
    methods = list(next(iter(chi["Scores"].values()), {}))
    if not methods:
        return []
    lines = [
        [
            CONDITIONS[name].title,
            *(_chi_text(rows.get(row)) for row in methods),
            *(f"{100 * number(share['mean']):.0f}" for share in chi["Coverage"][name].values()),
        ]
        for name, rows in chi["Scores"].items()
    ]
    titles = [ROWS[row].title for row in methods]
    with_intervals = [f"{ROWS[row].title}: coverage (%)" for row in next(iter(chi["Coverage"].values()))]
    metrics = "/".join(title for title, _ in CHI_METRICS.values())
    return [
        f"## χ alone: {metrics}\n\n"
        "Mean 0 in the brain, since a field does not determine it; coverage: as above.\n",
        markdown(["protocol", *titles, *with_intervals], lines),
        "Slopes of lesions (−χ of calcifications):\n",
        markdown(
            ["method", *GRADED],
            [
                [ROWS[row].title, *(slope_text(found[kind]) for kind in GRADED)]
                for row, found in chi["Lesions"].items()
            ],
        ),
    ]


def _chi_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return "/".join(f"{number(found[m]['mean']):.{digits}f}" for m, (_, digits) in CHI_METRICS.items())


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
    compared = summary["Compared"]
    columns = [
        row for row in config.rows_of_conditions if ROWS[row].target == "sources" and row in config.rows
    ]
    with_intervals = [row for row in next(iter(summary["Coverage"].values()), {}) if row in columns]
    lines = []
    for name, rows in summary["Scores"].items():
        own = compared if name == "standard" else rows
        coverage = [
            "/".join(f"{100 * number(summary['Coverage'][name][row][s]['mean']):.0f}" for s in SOURCES)
            for row in with_intervals
        ]
        lines.append(
            [
                CONDITIONS[name].title,
                *("/".join(f"{_nrmse(own[row], s):.1f}" for s in SOURCES) for row in columns),
                *(_over(own[row], compared.get(row)) for row in with_intervals),
                *coverage,
            ]
        )
    titles = [
        *(ROWS[row].title for row in columns),
        *(f"{ROWS[row].title}: change from the standard (%)" for row in with_intervals),
        *(f"{ROWS[row].title}: coverage (%)" for row in with_intervals),
    ]
    return markdown(["protocol", *titles], lines)


def _nrmse(found: Mapping[str, Any], source: str) -> float:
    return number(found[source]["nrmse_percent"]["mean"])


def _over(found: Mapping[str, Any], standard: Mapping[str, Any] | None) -> str:
    if standard is None:
        return "–"
    return "/".join(f"{100 * (_nrmse(found, s) / _nrmse(standard, s) - 1):+.0f}" for s in SOURCES)


def _lesion_table(summary: Mapping[str, Any]) -> str:
    what = ("slope [95 %]", "intercept (ppb)", "leak (%)", "coverage (%)")
    lines = []
    for row, found in summary["Lesions"].items():
        line = [ROWS[row].title]
        for kind in GRADED:
            fit = found[kind]
            line += [
                slope_text(fit),
                plus_minus(fit["intercept_ppb"], None, 1),
                plus_minus(fit["leak_percent"], None, 1),
                "–"
                if fit["coverage"] is None
                else f"{100 * fit['coverage']:.0f}/{100 * fit['coverage_other']:.0f}",
            ]
        lines.append(line)
    return markdown(["method", *(f"{kind}: {text}" for kind in GRADED for text in what)], lines)


def _budget_table(summary: Mapping[str, Any]) -> str:
    parts = {
        "sum": "χ_pos + χ_neg",
        "noise_of_sum": "R2'/D_r",
        "difference": "χ_pos − χ_neg",
        "difference_in_cone": "χ_pos − χ_neg near the cone",
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
