"""Comparison of digital phantoms with published values: summary, tables, figures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chisep.experiments.common.texts import markdown
from chisep.experiments.realism.measures import _HISTOGRAM_WINDOWS, BAND_EDGES_MM, MAP_UNITS, _rounded
from chisep.experiments.realism.sparseness import sparseness_rows
from chisep.experiments.realism.targets import PEOPLE_SD, REGION_TARGETS, TARGETS, RegionTarget, Target
from chisep.io.files import write_bytes
from chisep.report import figures
from chisep.report.figures import VolumeArray
from chisep.simulation import labelmap
from chisep.simulation.tissue import Tissue

_NAMES = {
    "chi": "χ",
    "chi_pos": "χ_pos",
    "chi_neg": "χ_neg",
    "field": "local field",
    "r2prime": "R2'",
    "r2star": "R2*",
    "r2": "R2",
}
_FIGURE_DPI = 75


def summarised(heads: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Compare heads with published values.

    Parameters
    ----------
    heads
        Result of each head.

    Returns
    -------
    dict
        Rows of `targets`, `regions`, `sparseness` and `spectrum` (of χ): mean and SD over the heads, the
        published value and whether the mean agrees with it.
    """
    return {
        "targets": [_target_row(target, heads) for target in TARGETS],
        "regions": [row for region in REGION_TARGETS for row in _region_rows(region, heads)],
        "sparseness": sparseness_rows(heads),
        "spectrum": [
            _band_row([head["spectrum"]["chi"][band] for head in heads])
            for band in range(len(BAND_EDGES_MM) - 1)
        ],
    }


def _target_row(target: Target, heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [head["statistics"][target.map][target.statistic] for head in heads]
    return (
        asdict(target)
        | _over_heads(values)
        | {
            "agrees": target.low <= float(np.mean(values)) <= target.high,
            "heads_that_agree": sum(target.low <= value <= target.high for value in values),
        }
    )


def _region_rows(region: RegionTarget, heads: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    present = [head["regions"][region.name] for head in heads if region.name in head["regions"]]
    if not present:
        return
    for source, published in (("chi_pos", region.chi_pos_ppb), ("chi_neg", region.chi_neg_ppb)):
        values = [means[source] for means in present]
        deviation = float(np.mean(values)) / published - 1
        yield {
            "region": region.name,
            "map": source,
            "published": published,
            "in_atlas": region.in_atlas,
            **_over_heads(values),
            "deviation_percent": _rounded(100 * deviation),
            "agrees": abs(deviation) <= PEOPLE_SD,
            "heads": len(values),
        }


def _band_row(bands: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    row: dict[str, Any] = {"from_mm": bands[0]["from_mm"], "to_mm": bands[0]["to_mm"]}
    densities = [band["density"] for band in bands if band["density"]]
    rms = [band["rms"] for band in bands if band["rms"] is not None]
    if densities:
        logs = np.log10(densities)
        row |= {"log10_density": _rounded(logs.mean()), "log10_density_sd": _rounded(logs.std())}
        row |= {"rms": _rounded(np.mean(rms))}
    return row


def _over_heads(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation between heads (0 for one head)."""
    sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return {"mean": _rounded(np.mean(values)), "sd": _rounded(sd)}


def tables(summary: Mapping[str, Sequence[Mapping[str, Any]]], heads: int) -> str:
    """Write what `summarised` returns as Markdown tables."""
    whole = [
        (
            f"{_NAMES[row['map']]} {row['statistic']} ({MAP_UNITS[row['map']]})",
            f"{row['mean']:.3g} ± {row['sd']:.2g}",
            f"{row['published']:g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
            _verdict(row["agrees"]),
            f"{row['heads_that_agree']}/{heads}",
            row["source"],
        )
        for row in summary["targets"]
    ]
    regions = [
        (
            row["region"] + ("" if row["in_atlas"] else " (not in the atlas)"),
            _NAMES[row["map"]],
            f"{row['mean']:.1f} ± {row['sd']:.1f}",
            f"{row['published']:g}",
            f"{row['deviation_percent']:+.0f} %",
            _verdict(row["agrees"]),
        )
        for row in summary["regions"]
    ]
    bands = [
        (
            f"{row['from_mm']:g}–{row['to_mm']:g}",
            *(
                (f"{row['log10_density']:.2f} ± {row['log10_density_sd']:.2f}", f"{row['rms']:.1f}")
                if "rms" in row
                else ("voxels too large", "–")
            ),
        )
        for row in summary["spectrum"]
    ]
    return "\n".join(
        (
            f"# Realism of {heads} digital phantoms\n",
            "Mean ± SD over the phantoms.\n",
            "## Over the brain\n",
            markdown(
                ("", "phantoms", "published", "agreement", "mean agrees", "phantoms agree", "published for"),
                whole,
            ),
            "## Regional means (ppb)\n",
            f"Published: Min 2024, 10.1002/nbm.5226; agreement within {100 * PEOPLE_SD:.0f} %.\n",
            markdown(("region", "map", "phantoms", "published", "deviation", "agrees"), regions),
            *_sparseness_section(summary["sparseness"]),
            "## Spectrum of χ\n",
            markdown(("wavelength (mm)", "log10 density (ppb² mm³)", "rms in the band (ppb)"), bands),
        )
    )


def _sparseness_section(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Write the table of `sparseness_rows`; nothing where voxels were too large."""
    if not rows:
        return ()
    units = {"sd": "SD (ppb)", "robust_sd": "robust SD (ppb)", "kurtosis": "kurtosis"}
    lines = [
        (
            row["band"],
            units[row["statistic"]],
            f"{row['published']:g}",
            f"{row['mean']:.3g} ({row['smallest']:.3g} to {row['largest']:.3g})",
            f"{row['low']:.3g} to {row['high']:.3g}" if "low" in row else "–",
            f"{row['heads_that_agree']}/{row['heads']}" if "low" in row else "–",
            f"{row['truth_mean']:.3g}",
        )
        for row in rows
    ]
    heading = ("band (voxels)", "", "COSMOS", "phantoms as COSMOS", "agreement", "phantoms agree", "true χ")
    return ("## Sparseness of χ\n", markdown(heading, lines))


def _verdict(agrees: bool) -> str:
    return "yes" if agrees else "**no**"


def _map_figures(tissue: Tissue, maps: Mapping[str, VolumeArray]) -> Iterator[Figure]:
    """Plot maps at their display windows, in planes through the lentiform nuclei."""
    mask = tissue.mask.numpy()
    lentiform = np.isin(tissue.labels.numpy(), (*labelmap.PUTAMEN, *labelmap.PALLIDUM))
    position = [round(float(axis.mean())) for axis in np.nonzero(lentiform)] if lentiform.any() else None
    for rows in (
        (
            ("chi_pos", figures.CHI_POS, figures.SOURCE_WINDOW_PPB),
            ("chi_neg", figures.CHI_NEG, figures.SOURCE_WINDOW_PPB),
            ("chi", figures.CHI, figures.TOTAL_WINDOW_PPB),
        ),
        (
            ("field", "local field", (-30.0, 30.0)),
            ("r2prime", "R2'", (0.0, 20.0)),
            ("r2star", "R2*", (0.0, 50.0)),
        ),
    ):
        shown = [figures.Row(title, maps[name], MAP_UNITS[name], window) for name, title, window in rows]
        yield figures.planes(shown, tissue.grid.matrix(), mask=mask, position=position)


def _line_figures(heads: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Histograms of all heads with published percentiles, and spectra."""
    panels = []
    for name, window in _HISTOGRAM_WINDOWS.items():
        marks = [t.published for t in TARGETS if t.map == name and t.statistic.startswith("p")]
        percent = np.array([head["histogram_percent"][name] for head in heads], dtype=np.float64)
        panels.append(figures.Distribution(_NAMES[name], MAP_UNITS[name], window, percent, marks))
    yield "histograms", figures.distributions(panels)
    densities = {
        _NAMES[name]: np.array(
            [[band["density"] or np.nan for band in head["spectrum"][name]] for head in heads]
        )
        for name in ("chi", "field")
    }
    yield "spectra", figures.band_spectra(densities, BAND_EDGES_MM, unit="ppb² mm³")


def _write_figure(path: Path, plot: Figure) -> Path:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=_FIGURE_DPI, metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())
