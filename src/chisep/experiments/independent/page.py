"""Page and figure of the independent bench, from its summary alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from chisep.experiments.common.texts import markdown
from chisep.experiments.independent.conditions import CONDITIONS
from chisep.experiments.independent.rows import ROWS
from chisep.experiments.independent.worlds import WORLDS

_SOURCES = ("chi_pos", "chi_neg", "chi")
_TITLES = {"chi_pos": "χ_pos", "chi_neg": "χ_neg", "chi": "χ"}
_MOST_COLUMNS = 3


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown.

    Parameters
    ----------
    found
        `Options`, and the summary of `statistics.summarised`.
    """
    options = found["Options"]
    box = options["box"]
    extent = "whole brain" if box is None else f"box of {' × '.join(map(str, box))} voxels in the brain"
    heads = ", ".join(options["labels"])
    alone = (
        "" if options.get("refinement", True) else " The estimates of networks are not refined by a solver."
    )
    return "\n".join(
        [
            "# Independent bench\n",
            f"Written by `chisep reproduce independent`. Label maps: {heads}; 1 mm; {extent}; noise draws: "
            f"{options['draws']}. No world shares code with the simulation or the training of chisep. Values "
            "are means over heads; intervals are 95 % t-intervals over heads, where there are two or more. "
            f"χ and its truth have mean 0.{alone}\n",
            *(_world(found, world) for world in found["Scores"]),
            _lesions(found["Lesions"]),
        ]
    )


def _world(found: Mapping[str, Any], world: str) -> str:
    conditions = found["Scores"][world]
    rows = list(dict.fromkeys(row for some in conditions.values() for row in some))
    of_sources = [row for row in rows if any("chi_pos" in some.get(row, {}) for some in conditions.values())]
    of_chi = [row for row in rows if row not in of_sources]
    parts = [f"## {WORLDS[world].title}\n", f"{_sentence(WORLDS[world].about)}\n"]
    for methods, sources in ((of_sources, _SOURCES), (of_chi, ("chi",))):
        if methods:
            what = "/".join(_TITLES[source] for source in sources)
            parts += [
                f"NRMSE of {what} (%):\n",
                _table(conditions, methods, lambda x, s=sources: _cell(x, s, "nrmse_percent", 1)),
                f"PSNR in the mask of {what} (dB, peak 1 ppm):\n",
                _table(conditions, methods, lambda x, s=sources: _cell(x, s, "psnr_in_mask_db", 1)),
            ]
    differences = found["Differences"].get(world, {})
    compared = [row for row in rows if any(some.get(row) for some in differences.values())]
    if compared:
        reference = _title(found["Options"]["reference"])
        parts += [
            f"NRMSE minus that of {reference}, in percentage points, paired by head (χ_pos; χ_neg; χ):\n",
            _table(differences, compared, _difference_text),
        ]
    for name, what, digits in (
        ("Coverage", "Coverage of the 90 % interval (%), χ_pos/χ_neg/χ", 0),
        ("RegionSlopes", "Slope of regional means over true ones, χ_pos/χ_neg/χ", 2),
    ):
        values = found[name].get(world, {})
        methods = [row for row in rows if any(row in some for some in values.values())]
        if methods:
            parts += [f"{what}:\n", _table(values, methods, lambda x, d=digits: _means(x, d))]
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _title(row: str) -> str:
    return ROWS[row].title if row in ROWS else row


def _table(conditions: Mapping[str, Any], rows: list[str], text: Any) -> str:  # noqa: ANN401
    lines = [
        [_title(row), *(text(some[row]) if row in some else "–" for some in conditions.values())]
        for row in rows
    ]
    return markdown(["method", *(CONDITIONS[name].title for name in conditions)], lines)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cell(scores: Mapping[str, Any], sources: tuple[str, ...], score: str, digits: int) -> str:
    return "/".join(_number(scores[source][score]["mean"], digits) for source in sources)


def _means(values: Mapping[str, Any], digits: int) -> str:
    return "/".join(_number(values[source]["mean"], digits) for source in _SOURCES if source in values)


def _with_interval(x: Mapping[str, Any], digits: int, *, sign: bool = False) -> str:
    if x["mean"] is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    if x["low"] is None:
        return f"{x['mean']:{form}}"
    return f"{x['mean']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"


def _difference_text(values: Mapping[str, Any]) -> str:
    texts = [_with_interval(values[source], 1, sign=True) for source in _SOURCES if source in values]
    return "; ".join(texts) or "–"


def _lesions(lesions: Mapping[str, Any]) -> str:
    lines = []
    for world, conditions in lesions.items():
        for condition, rows in conditions.items():
            for row, found in rows.items():
                line = [WORLDS[world].title, CONDITIONS[condition].title, _title(row)]
                for source in ("chi_pos", "chi_neg"):
                    own = found[source]
                    line += [
                        str(own["lesions"]),
                        _with_interval(own["slope"], 3),
                        _with_interval(own["leak_percent"], 1),
                    ]
                lines.append(line)
    if not lines:
        return ""
    columns = ["world", "condition", "method"]
    for source in ("chi_pos", "chi_neg"):
        columns += [f"lesions of {_TITLES[source]}", "slope", "leak (%)"]
    return (
        "## Lesions\n\nEllipsoids and irregular blobs. Slope of the predicted over the assigned value in "
        "each head, and error of the other source over the assigned value: means over heads, with "
        "intervals.\n\n" + markdown(columns, lines)
    )


def figure(found: Mapping[str, Any]) -> Figure:
    """Draw the NRMSE of χ_pos and χ_neg by method: a panel for each world, a line for each condition."""
    worlds = found["Scores"]
    columns = min(_MOST_COLUMNS, len(worlds))
    lines = -(-len(worlds) // columns)
    most = max(len(conditions) for conditions in worlds.values())
    drawn = Figure(figsize=(4.2 * columns + 1.5, (0.33 * most + 1.1) * lines + 0.8), layout="constrained")
    axes = drawn.subplots(lines, columns, squeeze=False)
    named: dict[str, Any] = {}
    for place, (world, conditions) in zip(axes.flat, worlds.items(), strict=False):
        names = list(conditions)
        for line, condition in enumerate(names):
            methods = [row for row, scores in conditions[condition].items() if "chi_pos" in scores]
            for row in methods:
                colour = f"C{list(dict.fromkeys([*named, row])).index(row)}"
                for source, fill in (("chi_pos", colour), ("chi_neg", "none")):
                    value = conditions[condition][row][source]["nrmse_percent"]["mean"]
                    if value is not None:
                        (marker,) = place.plot([value], [line], "o", color=colour, markerfacecolor=fill, ms=5)
                        if fill != "none":
                            named.setdefault(row, marker)
        place.set_yticks(range(len(names)), [CONDITIONS[name].title for name in names], fontsize=7)
        place.invert_yaxis()
        place.set_xlim(left=0)
        place.set_xlabel("NRMSE (%): χ_pos filled, χ_neg open", fontsize=8)
        place.set_title(WORLDS[world].title, fontsize=9)
        place.grid(alpha=0.3)
    for unused in axes.flat[len(worlds) :]:
        unused.set_axis_off()
    drawn.legend(
        list(named.values()), [_title(row) for row in named], loc="outside lower center", ncols=3, fontsize=8
    )
    return drawn
