"""Page of the experiment, from its rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chisep.experiments.common.texts import markdown
from chisep.experiments.qsm_ci.definitions import PUBLISHED
from chisep.experiments.qsm_ci.rows import DEFAULT, METHODS, NO_CHI
from chisep.experiments.qsm_ci.special import BUDGET, LABEL_NULL, NULL, TUNED_TV

Row = Mapping[str, Any]

_TITLES = {
    "xsim": ("xSIM", 3),
    "nrmse": ("NRMSE %", 1),
    "nrmse_detrend": ("detrended %", 1),
    "hfen": ("HFEN %", 1),
    "mspe": ("MSPE %", 2),
    "coverage": ("coverage", 3),
    "dice": ("Dice", 3),
}
_OF_HEADS = ("xsim", "nrmse", "mspe", "dice")
"""Metrics of the table of more than one head."""
_SHORT = {"chi-para": "χ_pos ", "chi-dia": "χ_neg "}
_MC_XSIM, _MC_MSPE = (0.85, 0.78), 2.0
_LARGEST_DR_ERROR = 0.15
_END_TO_END_XSIM = 0.40


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown: aims, a table for each stage, error budget, D_r, runner's reports."""
    rows = found["Rows"]
    parts = [
        "# QSM-CI on simulated worlds\n",
        f"Head {str(found['Head']).removesuffix('_dseg.nii.gz')}, {found['VoxelMm']:g} mm, scored by the "
        "metrics of QSM-CI over the whole mask. Worlds by qsm-forward have the benchmark's own tissues and "
        "D_r maps, worlds by chisep those of its digital phantoms. The default is the submission, run by "
        "QSM-CI's local runner.\n",
        f"{_of_code(found)}\n",
        "## Aims\n",
        markdown(["aim", "head", "world", "made by", "found", "met"], _aims_of_heads(found)),
        _published(rows),
        _heads(rows, found.get("FurtherHeads", [])),
    ]
    for stage in METHODS:
        here = [one for one in rows if one["Stage"] == stage and one["Method"] not in BUDGET]
        if here:
            parts += [f"## {stage}\n", _table(here)]
    budget = [one for one in rows if one["Method"] in (DEFAULT, *BUDGET) and one["Stage"] == "chi-separation"]
    if any(one["Method"] in BUDGET for one in budget):
        parts += [
            "## Error budget of chi-separation\n",
            "The default with perfect knowledge of D_r in turn. In worlds by qsm-forward χ_pos dephases "
            "outside of white matter only and χ_neg in white matter only, by the fibre angle. “Both sources "
            "dephase everywhere” is the default without the choice of the model.\n",
            _table(budget),
        ]
    relaxivities = [one for one in rows if "D_r" in one]
    if relaxivities:
        parts += ["## D_r found\n", _relaxivity_table(relaxivities)]
    reports = [one for one in rows if "Runner" in one]
    if reports:
        parts += ["## Reports of the benchmark's local runner\n", *_reports(reports)]
    return "\n".join(parts)


def _of_code(found: Mapping[str, Any]) -> str:
    rows = [*found["Rows"], *found.get("FurtherHeads", [])]
    weights = {
        one["Name"]: one["SHA256"][:12]
        for row in rows
        if row["Method"] == DEFAULT
        for one in row.get("Weights", [])
    }
    listed = ", ".join(f"`{name}` {digest}" for name, digest in sorted(weights.items()))
    codes = Counter(row["Code"][:12] for row in rows if row["Method"] not in (NULL, LABEL_NULL))
    of = ", ".join(f"{code} ({count} rows)" for code, count in codes.most_common())
    return f"Code (SHA-256 of the source of all stages): {of}. Weights: {listed or 'none'}."


def _find(
    rows: Sequence[Row], world: str, maker: str, stage: str, method: str, *, noisy: bool = False
) -> Any:  # noqa: ANN401
    for one in rows:
        key = (one["World"], one["Maker"], one["Stage"], one["Method"], one["Noisy"])
        if key == (world, maker, stage, method, noisy):
            return one
    return None


def _aims_of_heads(found: Mapping[str, Any]) -> list[list[str]]:
    heads: dict[str, list[Row]] = {str(found["Head"]).removesuffix("_dseg.nii.gz"): list(found["Rows"])}
    for one in found.get("FurtherHeads", []):
        heads.setdefault(one["Head"], []).append(one)
    return [[line[0], head, *line[1:]] for head, rows in heads.items() for line in _aims(rows)]


def _aims(rows: Sequence[Row]) -> list[list[str]]:
    lines: list[list[str]] = []

    def add(aim: str, world: str, maker: str, text: str, *, met: bool) -> None:
        lines.append([aim, world, maker, text, "yes" if met else "no"])

    makers = list(dict.fromkeys(one["Maker"] for one in rows))
    for maker in makers:
        one = _find(rows, "mc", maker, "chi-separation", DEFAULT)
        if one is not None:
            xsim, mspe = _both(one, "xsim"), _both(one, "mspe")
            add(
                f"xSIM ≥ {_MC_XSIM[0]}/{_MC_XSIM[1]}",
                *("mc", maker, _pair(xsim, 3)),
                met=all(a >= b for a, b in zip(xsim, _MC_XSIM, strict=True)),
            )
            add(
                f"MSPE ≤ {_MC_MSPE:g}/{_MC_MSPE:g} %",
                *("mc", maker, _pair(mspe, 2)),
                met=all(x <= _MC_MSPE for x in mspe),
            )
    for world in PUBLISHED:
        one = _find(rows, world, "qsm-forward", "chi-separation", DEFAULT)
        if one is not None:
            best = [max(x.xsim[source] for x in PUBLISHED[world]) for source in (0, 1)]
            xsim = _both(one, "xsim")
            add(
                f"xSIM above {best[0]}/{best[1]}, the best published values without labels",
                *(world, "qsm-forward", _pair(xsim, 3)),
                met=all(a > b for a, b in zip(xsim, best, strict=True)),
            )
    for one in rows:
        if "D_r" in one and one["Method"] == DEFAULT:
            error = [a / b - 1 for a, b in zip(one["D_r"]["Found"], one["D_r"]["True"], strict=True)]
            add(
                "D_r within 15 %",
                *(one["World"], one["Maker"], f"{100 * error[0]:+.0f}/{100 * error[1]:+.0f} %"),
                met=max(map(abs, error)) <= _LARGEST_DR_ERROR,
            )
    for maker in makers:
        for noisy in (False, True):
            own, tuned = (
                _find(rows, "7t-field", maker, "dipole", name, noisy=noisy) for name in (DEFAULT, TUNED_TV)
            )
            if own is not None and tuned is not None:
                x, y = (one["Scores"]["chimap"]["xsim"] for one in (own, tuned))
                aim = f"dipole: xSIM above tuned TV{' (noisy field)' * noisy}"
                add(aim, "7t-field", maker, f"{x:.3f}, {y:.3f}", met=x > y)
        one = _find(rows, "7t-field", maker, "end-to-end", DEFAULT)
        if one is not None:
            x = one["Scores"]["chimap"]["xsim"]
            add(
                f"end-to-end: xSIM above {_END_TO_END_XSIM:.2f}",
                *("7t-field", maker, f"{x:.3f}"),
                met=x > _END_TO_END_XSIM,
            )
    return lines


def _both(row: Row, metric: str) -> tuple[float, float]:
    return row["Scores"]["chi-para"][metric], row["Scores"]["chi-dia"][metric]


def _pair(values: tuple[float, float], digits: int) -> str:
    return "/".join(f"{x:.{digits}f}" for x in values)


def _published(rows: Sequence[Row]) -> str:
    lines = []
    for world, published in PUBLISHED.items():
        for method in (DEFAULT, NULL):
            one = _find(rows, world, "qsm-forward", "chi-separation", method)
            if one is not None:
                lines.append(
                    [world, f"{method}, here", _pair(_both(one, "xsim"), 3), _mspe(_both(one, "mspe"))]
                )
        if _find(rows, world, "qsm-forward", "chi-separation", DEFAULT) is not None:
            lines += [
                [world, f"{one.method}, published", _pair(one.xsim, 3), _mspe(one.mspe)] for one in published
            ]
    if not lines:
        return ""
    return (
        "## Beside the published rows\n\nThe published rows (September 2026; those that read no labels) are "
        "of the benchmark's own volumes, another head with other textures. The null shows how far the worlds "
        "by qsm-forward are alike.\n\n"
        + markdown(["world", "method", "xSIM χ_pos/χ_neg", "MSPE χ_pos/χ_neg (%)"], lines)
    )


def _heads(rows: Sequence[Row], further: Sequence[Row]) -> str:
    """Tabulate mean and range of the default over heads, for the rows that further heads have."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for one in further:
        key = (one["World"], one["Maker"], one["Stage"], one["Method"], one["Noisy"])
        first = _find(rows, *key[:4], noisy=one["Noisy"])
        groups.setdefault(key, [] if first is None else [first]).append(one)
    lines = []
    for (world, maker, stage, _, noisy), same in groups.items():
        for output in same[0]["Scores"]:
            scores = [one["Scores"][output] for one in same]
            cells = [
                _mean_range([x[key] for x in scores if x.get(key) is not None], _TITLES[key][1])
                for key in _OF_HEADS
            ]
            name = stage + " (noisy field)" * noisy
            lines.append([world, maker, name, output, str(len(same)), *cells])
    if not lines:
        return ""
    heads = ", ".join(dict.fromkeys(one["Head"] for one in further))
    titles = [_TITLES[key][0] for key in _OF_HEADS]
    return (
        f"## More than one head\n\nThe default on this head and on {heads}: mean (lowest to highest).\n\n"
        + markdown(["world", "made by", "stage", "output", "heads", *titles], lines)
    )


def _mean_range(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    low, mean, high = (f"{x:.{digits}f}" for x in (min(values), sum(values) / len(values), max(values)))
    return f"{mean} ({low} to {high})"


def _mspe(values: tuple[float | None, float | None]) -> str:
    return "/".join(_number(x, 2) for x in values)


def _table(rows: Sequence[Row]) -> str:
    outputs = list(rows[0]["Scores"])
    names = {output: [key for key in _TITLES if key in rows[0]["Scores"][output]] for output in outputs}
    columns = [f"{_SHORT.get(output, '')}{_TITLES[key][0]}" for output in outputs for key in names[output]]
    lines = []
    for one in sorted(rows, key=lambda x: (x["World"], x["Maker"], x["Noisy"])):
        values = [
            _number(one["Scores"][output].get(key), _TITLES[key][1])
            for output in outputs
            for key in names[output]
        ]
        method = one["Method"] + (" (noisy field)" if one["Noisy"] else "")
        lines.append([one["World"], one["Maker"], method, *values])
    return markdown(["world", "made by", "method", *columns], lines)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _relaxivity_table(rows: Sequence[Row]) -> str:
    lines = []
    for one in sorted(rows, key=lambda x: (x["World"], x["Maker"])):
        d_r = one["D_r"]
        cells = [
            f"{made:.0f} of {true:.0f} ({100 * (made / true - 1):+.0f} %)"
            for made, true in zip(d_r["Found"], d_r["True"], strict=True)
        ]
        with_chi = "from the field" if one["Method"] == NO_CHI else "with the χ map"
        lines.append([one["World"], one["Maker"], with_chi, *cells, d_r["Source"]])
    return markdown(["world", "made by", "estimate", "D_r,pos", "D_r,neg", "source"], lines)


def _reports(rows: Sequence[Row]) -> list[str]:
    """Report of the runner on every stage once."""
    first: dict[str, Row] = {}
    for one in rows:
        first.setdefault(one["Stage"], one)
    return [
        f"{stage} ({one['World']} by {one['Maker']}):\n\n```text\n" + "\n".join(one["Runner"]) + "\n```\n"
        for stage, one in first.items()
    ]
