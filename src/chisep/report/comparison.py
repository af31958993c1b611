"""Content of a page that compares methods with the ground truth: sorted scores, and maps to look into."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from chisep.report.figures.style import PPB, SOURCE_WINDOW_PPB, TOTAL_WINDOW_PPB, MaskArray, VolumeArray
from chisep.report.subject import Table
from chisep.report.viewer import EncodedViewer, LabelArray, ViewerMap, ViewerScan, encode
from chisep.types import Affine

_FIRST_SCORE = 3
"""Columns before the scores: method, map, inputs."""
_LOWER_IS_BETTER = "NRMSE"
_SWITCH = (
    "Switch to the truth and back (key b): nuclei, white matter and cortex should keep their brightness."
)
_MOST_VOXELS_OF_ALL = 60_000_000
"""Voxels of all stored maps together."""


def score_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Sort scores by map, inputs and error, and mark the best of each column.

    Parameters
    ----------
    columns
        method, map, inputs, and the names of the scores, the one to sort by first.
    rows
        Texts, one row per method, map and inputs.
    """
    order = {name: place for place, name in enumerate(dict.fromkeys(row[1] for row in rows))}
    ranked = sorted(rows, key=lambda row: (order[row[1]], row[2], float(row[_FIRST_SCORE])))
    best = set()
    for kind in {(row[1], row[2]) for row in ranked}:
        places = [place for place, row in enumerate(ranked) if (row[1], row[2]) == kind]
        for column in range(_FIRST_SCORE, len(columns)):
            sign = -1 if columns[column].startswith(_LOWER_IS_BETTER) else 1
            top = max(sign * float(ranked[place][column]) for place in places)
            # Compared as printed: of two equal texts, both are the best.
            same = {(place, column) for place in places if sign * float(ranked[place][column]) == top}
            best |= same if len(places) > 1 else set()
    return Table(tuple(columns), tuple(tuple(row) for row in ranked), best=frozenset(best))


def comparison_viewer(
    truth_ppm: Mapping[str, VolumeArray],
    estimates_ppm: Mapping[str, Mapping[str, VolumeArray]],
    affine: Affine,
    mask: MaskArray,
    labels: LabelArray | None = None,
    region_names: Mapping[int, str] | None = None,
    nuclei: Collection[int] = (),
) -> EncodedViewer:
    """Encode the true maps, the estimates, and their errors for the viewer.

    Parameters
    ----------
    truth_ppm
        Symbol of a map → its true values in ppm, shape (i, j, k).
    estimates_ppm
        Symbol of a map → name of the method → its values in ppm.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Where maps are compared, shape (i, j, k).
    labels, region_names, nuclei
        True regions, shape (i, j, k), their names, and labels of nuclei to outline; None without regions.
    """
    maps: list[ViewerMap] = []
    for number, (symbol, methods) in enumerate(estimates_ppm.items()):
        if not methods:
            continue
        low, high = TOTAL_WINDOW_PPB if symbol == "χ" else SOURCE_WINDOW_PPB
        windows = ((low, high), (low / 2, high / 2), (2 * low, 2 * high))
        true = np.where(mask, PPB * truth_ppm[symbol], 0)
        maps.append(ViewerMap(f"truth-{number}", f"{symbol}: truth", true, "ppb", 1.0, windows, symbol))
        for place, (method, volume) in enumerate(methods.items()):
            values = np.where(mask, PPB * volume, 0)
            key = f"map-{number}-{place}"
            label = f"{symbol}: {method}"
            before = f"truth-{number}"
            maps.append(ViewerMap(key, label, values, "ppb", 1.0, windows, symbol, _SWITCH, before=before))
            maps.append(
                ViewerMap(
                    f"error-{number}-{place}",
                    f"{label} − truth",
                    values - true,
                    "ppb",
                    1.0,
                    ((-50.0, 50.0), (-25.0, 25.0), (-100.0, 100.0)),
                    f"{symbol}: errors",
                    "Red: too high. Blue: too low.",
                    before=key,
                    colours="difference",
                    difference=(key, before),
                )
            )
    masks = {"valid-field mask": mask}
    scan = ViewerScan("comparison", affine, mask, maps, masks, labels, region_names or {}, nuclei)
    return encode([scan], most_voxels=_MOST_VOXELS_OF_ALL // len(maps))
