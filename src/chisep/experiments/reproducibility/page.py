"""Page and figure of the experiment, from its results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chisep.experiments.common.texts import markdown
from chisep.experiments.reproducibility.scans import PROTOCOLS, comparisons, scans
from chisep.regions.freesurfer import freesurfer_names
from chisep.report import figures
from chisep.simulation import labelmap

_NAMES = {"chi": "χ", "chi_pos": "χ_pos", "chi_neg": "χ_neg"}
_AIM = 0.03
_OWN_LABELS = {
    "red nucleus": labelmap.RED_NUCLEUS,
    "subthalamic nucleus": labelmap.SUBTHALAMIC,
    "dentate nucleus": labelmap.DENTATE,
    "pulvinar": labelmap.PULVINAR,
    "internal pallidum": labelmap.PALLIDUM_INTERNUM,
    "cerebral peduncle": labelmap.PEDUNCLE,
    "anterior capsule": labelmap.CAPSULE_ANTERIOR,
    "posterior capsule": labelmap.CAPSULE_POSTERIOR,
    "cingulum": labelmap.CINGULUM,
    "corticospinal tract": labelmap.CORTICOSPINAL,
}
"""Names of labels that FreeSurfer does not have."""
_FIGURE_NAMES = {"chi": figures.CHI, "chi_pos": figures.CHI_POS, "chi_neg": figures.CHI_NEG}


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown: protocols, agreement of all methods, pairs of protocols, error budget.

    Parameters
    ----------
    found
        Content of reproducibility.json.
    """
    head = str(found["Head"]).removesuffix("_dseg.nii.gz")
    rows = [row for row in found["Rows"] if row["Method"] in found["Methods"]]
    parts = [
        "# Reproducibility\n",
        f"One simulated head ({head}); every protocol on scanner 1, protocol A on scanner 2 too (other "
        "coils, head position, B0 direction, bipolar read-out), three runs of each. Echoes are simulated and "
        "processed to the local field; R2' is simulated with the noise of its echoes; D_r is the true one "
        "(114·B0/3). Region means of two scans are compared: mean |slope − 1| over pairs of scans "
        "(orthogonal regression), bias and 95 % limits of agreement (Bland-Altman, ppb) over pairs and "
        "regions.\n",
        f"Scans on this page (protocol, scanner, runs): {_scans(found)}. Code {found['Code'][:12]} (SHA-256 "
        "of the source).\n",
        markdown(["protocol", "B0 (T)", "voxel (mm)", "echoes (ms)", "SNR"], _protocols(found["VoxelMm"])),
        "![Differences of region means over their means, by pair of protocols](reproducibility.png)\n",
        f"Region means of `{found['Methods'][0]}`, one run of each protocol; lines: bias and limits of "
        "agreement.\n",
        "## All methods\n",
        markdown(
            ["method", "between", "map", "pairs", "mean |slope − 1|", "bias (ppb)", "limits (ppb)"],
            [
                [
                    *(row["Method"], row["Comparison"], _NAMES[row["Map"]], str(row["Pairs"])),
                    f"{row['MeanSlopeError']:.3f}",
                    f"{row['BiasPpb']:+.2f}",
                    f"±{row['LimitsPpb']:.2f}",
                ]
                for row in rows
            ],
        ),
        _aims(rows),
        *_budget(found),
        *_pairs(found),
    ]
    return "\n".join(parts)


def _scans(found: Mapping[str, Any]) -> str:
    runs = Counter(name.split("-")[0] for name in found["Means"][found["Methods"][0]])
    return ", ".join(f"{name} × {count}" for name, count in sorted(runs.items()))


def _protocols(voxel_mm: float) -> list[list[str]]:
    return [
        [
            one.name,
            f"{one.b0_t:g}",
            " × ".join(f"{edge * voxel_mm:.3g}" for edge in one.edges),
            ", ".join(f"{1000 * te_s:g}" for te_s in one.te_s),
            f"{one.snr:g}",
        ]
        for one in PROTOCOLS
    ]


def _aims(rows: Sequence[Mapping[str, Any]]) -> str:
    """State which methods reach the aim between protocols."""
    lines = []
    for method in dict.fromkeys(row["Method"] for row in rows):
        found = {
            row["Map"]: row["MeanSlopeError"]
            for row in rows
            if row["Method"] == method and row["Comparison"] == "protocols"
        }
        met = [_NAMES[name] for name, value in found.items() if value <= _AIM]
        lines.append(f"- {method}: {', '.join(met) or 'no map'}")
    return (
        f"Mean |slope − 1| between protocols of at most {_AIM:g} is reached by\n\n" + "\n".join(lines) + "\n"
    )


def _budget(found: Mapping[str, Any]) -> list[str]:
    """Table of the error with perfect inputs in turn, of one run of each protocol."""
    slopes: dict[str, dict[str, list[float]]] = {}
    for one in found["Pairs"]:
        slopes.setdefault(one["Method"], {}).setdefault(one["Map"], []).append(abs(one["Slope"] - 1))
    first = found["Methods"][0]
    perfect = [name for name in slopes if name.startswith(f"{first}, ")]
    if not perfect:
        return []
    lines = [
        [name, *(f"{np.mean(slopes[name][of_map]):.3f}" for of_map in _NAMES)]
        for name in (first, *perfect, "truth")
    ]
    return [
        "## Error budget\n",
        "Mean |slope − 1| between protocols, first run, with perfect inputs in turn. “Truth” compares the "
        "region means of the phantoms themselves: voxels of other size have other partial volumes.\n",
        markdown(["input", *_NAMES.values()], lines),
    ]


def _pairs(found: Mapping[str, Any]) -> list[str]:
    """Table of the slope of each pair of protocols, with the region that moves it most."""
    names = dict(freesurfer_names()) | {label: name for name, both in _OWN_LABELS.items() for label in both}
    first = found["Methods"][0]
    lines = [
        [
            one["Pair"],
            _NAMES[one["Map"]],
            f"{one['Slope']:.3f}",
            names.get(one["Region"], f"label {one['Region']}"),
            " → ".join(f"{value:.1f}" for value in one["RegionPpb"]),
        ]
        for one in found["Pairs"]
        if one["Method"] == first
    ]
    if not lines:
        return []
    return [
        "## Pairs of protocols\n",
        f"Slope of region means of `{first}`, first run, and the region that moves the slope most.\n",
        markdown(["protocols", "map", "slope", "region", "means (ppb)"], lines),
    ]


def figure(found: Mapping[str, Any]) -> Figure:
    """Draw Bland-Altman plots of the first method between protocols, first run."""
    means = found["Means"][found["Methods"][0]]
    row_of = {
        row["Map"]: row
        for row in found["Rows"]
        if row["Method"] == found["Methods"][0] and row["Comparison"] == "protocols"
    }
    pairs = [pair for pair in comparisons(scans())["protocols"] if pair[0].endswith("-run1")]
    panels = []
    for of_map, title in _FIGURE_NAMES.items():
        points = {}
        for one, other in pairs:
            regions = sorted(set(means[one]) & set(means[other]))
            x, y = (np.array([means[name][region][of_map] for region in regions]) for name in (one, other))
            points[f"{one[0]} and {other[0]}"] = (((x + y) / 2).tolist(), (y - x).tolist())
        row = row_of[of_map]
        panels.append(
            figures.Agreement(
                title, "mean (ppb)", "difference (ppb)", points, bias=row["BiasPpb"], limits=row["LimitsPpb"]
            )
        )
    return figures.bland_altman(panels)
