"""Means over heads, and the page and figures that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chisep.experiments.common.scores import NAMES, mean_and_sd
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.experiments.whole_brain.measures import BY_DEPTH, CORTEX, DEEP, DEEP_GREY, VALID, WHOLE, rounded
from chisep.experiments.whole_brain.sessions import (
    BACKGROUND,
    CHAIN,
    CHOSEN,
    SCAN,
    TRUE_MAPS,
    WholeBrainConfig,
)
from chisep.networks.config import SOURCES
from chisep.report import figures

_TITLES: Mapping[str, str] = {CHAIN: "whole chain", TRUE_MAPS: "field and R2' known up to the edge"}
_BACKGROUND_TITLES: Mapping[str, str] = {
    "vsharp": "V-SHARP",
    "pdf": "PDF",
    "lbv": "LBV",
    CHOSEN: "pipeline",
}
_MAP_NAMES = {**NAMES, "chi": "χ of the separation", "qsm": "QSM"}
_MEASURES = ("nrmse_percent", "interval_coverage_percent")

_Cells = Sequence[Mapping[str, Any]]


def summarised(config: WholeBrainConfig, cells: _Cells) -> dict[str, Any]:
    """Means over the heads of every SNR.

    Parameters
    ----------
    config
        SNR and methods.
    cells
        Results of the finished sessions.

    Returns
    -------
    dict
        By SNR: `Heads`; `ByHead`, NRMSE in the whole brain of the chain with the first method; `Whole`, mean
        and SD of the NRMSE in the whole brain by inputs, method and map; `Zones`, means of NRMSE and of the
        coverage of 90 % intervals by inputs, method, measure, map and zone; `Covered`, part of the brain in
        masks and maps; `Scan`, errors of field and R2' over their σ; `Background`, RMS error of the local
        field by method and zone; `DepthMm`, mean depth of each zone.
    """
    found = {}
    for snr in config.snrs:
        own = [cell for cell in cells if cell["snr"] == snr]
        if own:
            found[f"{snr:g}"] = _of_one_snr(config, own)
    return {"SNR": found}


def _of_one_snr(config: WholeBrainConfig, cells: _Cells) -> dict[str, Any]:
    of = {
        what: {
            method: some
            for method in config.methods
            if (some := [x for x in cells if x["what"] == what and x["method"] == method])
        }
        for what in (CHAIN, TRUE_MAPS)
    }
    scans = [cell for cell in cells if cell["what"] == SCAN]
    covered = _mean([x["covered_percent"] for x in of[CHAIN].get(config.methods[0], [])])
    depths = [{zone: facts["mean_depth_mm"] for zone, facts in x["zones"].items()} for x in scans]
    return {
        "Heads": [cell["head"] for cell in scans],
        "ByHead": {
            cell["head"]: {name: by_zone[WHOLE] for name, by_zone in cell["nrmse_percent"].items()}
            for cell in of[CHAIN].get(config.methods[0], [])
        },
        "Whole": {
            what: {
                method: {
                    name: mean_and_sd([x["nrmse_percent"][name][WHOLE] for x in some])
                    for name in some[0]["nrmse_percent"]
                }
                for method, some in by_method.items()
            }
            for what, by_method in of.items()
        },
        "Zones": {
            what: {
                method: {measure: _mean([x[measure] for x in some]) for measure in _MEASURES}
                for method, some in by_method.items()
            }
            for what, by_method in of.items()
        },
        "Covered": {**_mean([x["covered_percent"] for x in scans]), **covered},
        "Scan": {
            name: _mean([x[name] for x in scans])
            for name in ("field_ppb", "r2prime_hz")
            if scans and all(name in x for x in scans)
        },
        "FieldSigma": sorted({x["field_sigma"] for x in scans}),
        "Background": _mean([x["field_ppb"] for x in cells if x["what"] == BACKGROUND]),
        "DepthMm": _mean(depths),
    }


def _mean(values: Sequence[Any]) -> Any:  # noqa: ANN401
    """Mean of numbers that are nested alike in dicts and lists; None where one is missing."""
    if not values:
        return {}
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([x.get(key) for x in values]) for key in first}
    if isinstance(first, list):
        return [_mean(list(some)) for some in zip(*values, strict=True)]
    known = [x for x in values if x is not None]
    return rounded(float(np.mean(known))) if len(known) == len(values) else None


def page(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Write the results as Markdown.

    Parameters
    ----------
    found
        Content of whole-brain.json.
    before
        The same of an earlier version, to show beside it.
    """
    text = (
        f"# The whole chain over the whole brain\n\nDigital phantoms at {found['Options']['voxel_mm']:g} mm, "
        "simulated with the full scanner (coils, imperfect pulses, dephasing, background field) and "
        "processed by `chisep run` with its defaults. NRMSE in % against the truth, mean ± SD over the "
        "phantoms; a voxel without a value counts as 0. The other rows are of maps of the same phantoms, "
        "with the noise of the scan, whose field and R2' are known up to the edge of the brain (R2' clipped "
        "at 0, not denoised). Depth: distance to the surface of the true brain; deep brain: deeper than "
        "10 mm.\n"
    )
    method = found["Options"]["methods"][0]
    for snr, own in found["SNR"].items():
        text += f"\n## SNR {snr}: {', '.join(own['Heads'])}\n\n{_headline(own, _earlier(before, snr))}"
        text += f"\n{_head_table(own, _earlier(before, snr), method)}\n{_zone_table(own, method)}"
        text += f"\n{_scan_text(own)}"
        if own["Background"]:
            text += f"\nRMS error of the local field (ppb):\n\n{_background_table(own)}"
    return text


def _earlier(before: Mapping[str, Any] | None, snr: str) -> Mapping[str, Any]:
    return {} if before is None else before["SNR"].get(snr, {})


def _headline(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    rows = [
        (f"{method}, {_TITLES[what]}", by_map, found["Zones"][what][method])
        for what, by_method in found["Whole"].items()
        for method, by_map in by_method.items()
    ]
    rows += [
        (
            f"{method}, {_TITLES[CHAIN]}, before ({', '.join(earlier['Heads'])})",
            by_map,
            earlier["Zones"][CHAIN][method],
        )
        for method, by_map in (earlier["Whole"][CHAIN] if earlier else {}).items()
    ]
    lines = []
    for title, by_map, zones in rows:
        nrmse, held = zones["nrmse_percent"], zones["interval_coverage_percent"]
        lines.append(
            [
                title,
                *(plus_minus(by_map[name]["mean"], by_map[name]["sd"], 1) for name in _MAP_NAMES),
                *(_pair(nrmse, zone) for zone in (CORTEX, DEEP, DEEP_GREY)),
                _pair(held, WHOLE, digits=0),
            ]
        )
    columns = [*_MAP_NAMES.values(), *(f"{zone}: χ_pos/χ_neg" for zone in (CORTEX, DEEP, DEEP_GREY))]
    return markdown(["method and inputs", *columns, "coverage of 90 % intervals (%)"], lines)


def _head_table(found: Mapping[str, Any], earlier: Mapping[str, Any], method: str) -> str:
    rows = [found["ByHead"], *([earlier["ByHead"]] if earlier else [])]
    lines = [
        [head, *(plus_minus(row.get(head, {}).get(name), None, 1) for row in rows for name in _MAP_NAMES)]
        for head in found["ByHead"]
    ]
    columns = [f"{name}{text}" for text in ("", ", before")[: len(rows)] for name in _MAP_NAMES.values()]
    return markdown([f"{method}, {_TITLES[CHAIN]}", *columns], lines)


def _pair(by_map: Mapping[str, Any], zone: str, digits: int = 1) -> str:
    return "/".join(plus_minus(by_map.get(name, {}).get(zone), None, digits) for name in SOURCES)


def _zone_table(found: Mapping[str, Any], method: str) -> str:
    rows = {what: by_method[method] for what, by_method in found["Zones"].items() if method in by_method}
    lines = []
    for zone in (*BY_DEPTH, VALID):
        line = [zone]
        for zones in rows.values():
            line += [_pair(zones["nrmse_percent"], zone), _pair(zones["interval_coverage_percent"], zone, 0)]
        lines.append(line)
    columns = [
        f"{method}, {_TITLES[what]}: {text} (%)"
        for what in rows
        for text in ("NRMSE", "coverage of 90 % intervals")
    ]
    return markdown(["zone", *columns], lines)


def _scan_text(found: Mapping[str, Any]) -> str:
    covered = ", ".join(f"{name} {plus_minus(value, None, 1)} %" for name, value in found["Covered"].items())
    text = f"Part of the true brain: {covered}.\n"
    titles = {"field_ppb": "local field (ppb)", "r2prime_hz": "R2' (1/s)"}
    lines = []
    for name, scan in found["Scan"].items():
        ratios = ", ".join(plus_minus(fifth["ratio"], None, 2) for fifth in scan["fifths"])
        values = [plus_minus(scan[key], None, 2) for key in ("rms", "sigma", "ratio")]
        lines.append([titles[name], *values, ratios])
    columns = ["", "RMS error", "RMS σ", "RMS of error/σ", "error/σ in fifths by depth, surface first"]
    return f"{text}\n{markdown(columns, lines)}" if lines else text


def _background_table(found: Mapping[str, Any]) -> str:
    lines = [
        [zone, *(plus_minus(by_zone.get(zone), None, 1) for by_zone in found["Background"].values())]
        for zone in (WHOLE, *BY_DEPTH)
    ]
    return markdown(["zone", *(_BACKGROUND_TITLES[name] for name in found["Background"])], lines)


def depth_figure(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Figure:
    """Draw the NRMSE of χ_pos and χ_neg of the first method against depth, at the first SNR.

    Parameters
    ----------
    found, before
        As of `page`.
    """
    method, (snr, own) = found["Options"]["methods"][0], next(iter(found["SNR"].items()))
    earlier = _earlier(before, snr)
    rows = {_TITLES[what]: by_method.get(method) for what, by_method in own["Zones"].items()}
    if earlier:
        rows["whole chain, before"] = earlier["Zones"][CHAIN].get(method)
    return figures.curves(
        [
            figures.Curves(
                f"{figures.CHI_POS if source == 'chi_pos' else figures.CHI_NEG}, {method}, SNR {snr}",
                "depth below the surface of the brain (mm)",
                "NRMSE (%)",
                {
                    title: _points(own, zones["nrmse_percent"][source])
                    for title, zones in rows.items()
                    if zones
                },
            )
            for source in SOURCES
        ]
    )


def field_figure(found: Mapping[str, Any]) -> Figure:
    """Draw the error of the local field against depth by background-removal method, and error/σ by fifths."""
    snr, own = next(iter(found["SNR"].items()))
    fifths = {
        name: [number(fifth["ratio"]) for fifth in own["Scan"][key]["fifths"]]
        for key, name in (("field_ppb", "local field"), ("r2prime_hz", "R2'"))
        if key in own["Scan"]
    }
    return figures.curves(
        [
            figures.Curves(
                f"Local field, SNR {snr}, {found['Options']['voxel_mm']:g} mm",
                "depth below the surface of the brain (mm)",
                "RMS error (ppb)",
                {
                    _BACKGROUND_TITLES[name]: _points(own, by_zone)
                    for name, by_zone in own["Background"].items()
                },
            ),
            figures.Curves(
                "Error over its σ",
                "fifth of the brain by depth, surface first",
                "RMS of error/σ",
                {name: (list(range(1, len(ratios) + 1)), ratios) for name, ratios in fifths.items()},
                band=(0.9, 1.1, "0.9 to 1.1"),
            ),
        ]
    )


def _points(found: Mapping[str, Any], by_zone: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return (
        [number(found["DepthMm"][zone]) for zone in BY_DEPTH],
        [number(by_zone.get(zone)) for zone in BY_DEPTH],
    )
