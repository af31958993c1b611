"""Region statistics: values of maps in labelled regions, and their table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep import metrics
from chisep.errors import InputError
from chisep.io.tsv import MISSING, clean_text, write_table
from chisep.regions.labels import LabelArray

MapArray = Float[np.ndarray, "i j k"]
"""One real map."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""


@dataclass(frozen=True, eq=False)
class RegionMap:
    """A map to be read off in regions.

    Parameters
    ----------
    name
        With its unit, e.g. chi_pos_ppb.
    values
        In that unit, shape (i, j, k).
    known
        Voxels in which the map is known.
    sigma
        Standard deviation of every voxel's noise, in the same unit, where it is known.
    """

    name: str
    values: MapArray
    known: MaskArray
    sigma: MapArray | None = None


@dataclass(frozen=True)
class RegionValue:
    """One map in one region.

    Parameters
    ----------
    index
        Label of the region.
    name
        Name of the region.
    map
        Name of the map, with its unit.
    voxels
        Voxels of the region in which the map is known.
    volume_ml
        Volume of the region within the brain mask.
    mean, sd, median
        Over these voxels, in the unit of the map; None without voxels.
    sigma
        Mean over these voxels of the noise's standard deviation in a voxel; None where it is not known.
    reliable_part
        Part of the region within the brain mask that lies in the reliable mask, 0 to 1; None in a table of a
        version without it.
    coverage
        Part of the region within the brain mask in which the map is known, 0 to 1; None likewise.
    rim_part
        Part of the region within the brain mask that lies within 4 mm of the surface of this mask; None
        likewise.
    """

    index: int
    name: str
    map: str
    voxels: int
    volume_ml: float
    mean: float | None
    sd: float | None
    median: float | None
    sigma: float | None
    reliable_part: float | None = None
    coverage: float | None = None
    rim_part: float | None = None


COLUMNS = tuple(f.name for f in fields(RegionValue))
STATISTICS = ("mean", "sd", "median", "sigma")
"""Columns that are in the unit of the map."""
_PARTS = ("reliable_part", "coverage", "rim_part")
RIM_MM = 4.0
"""Depth of the rim of the brain mask, where fields and susceptibility are least certain."""


def region_values(
    labels: LabelArray,
    names: Mapping[int, str],
    maps: Iterable[RegionMap],
    voxel_mm: Sequence[float],
    reliable: MaskArray,
    brain: MaskArray,
    weights: MapArray | None = None,
) -> list[RegionValue]:
    """Statistics of maps in every region.

    Parameters
    ----------
    labels
        Label of every voxel, 0 outside, shape (i, j, k).
    names
        Label → name.
    maps
        Maps with their noise and where they are known.
    voxel_mm
        Edges of a voxel in mm.
    reliable
        Reliable mask, shape (i, j, k).
    brain
        Brain mask, shape (i, j, k).
    weights
        Weight of every voxel in the means of its region, such as the part of the voxel that belongs to it,
        shape (i, j, k); all are equal if None. Median and voxel counts have no weights.

    Returns
    -------
    list of RegionValue
        Sorted by label; a label has all maps in the order given, also those that are known nowhere in it.
    """
    voxel_ml = math.prod(voxel_mm) / 1000
    depth_mm = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=voxel_mm)[1:-1, 1:-1, 1:-1]
    rim = (depth_mm <= RIM_MM) & (labels != 0)
    in_rim = dict(zip(*np.unique(labels[rim], return_counts=True), strict=True))
    present, counts = np.unique(labels[labels != 0], return_counts=True)
    in_reliable = dict(zip(*np.unique(labels[reliable & (labels != 0)], return_counts=True), strict=True))
    found: dict[tuple[int, str], RegionValue] = {}
    order = []
    for each in maps:
        order.append(each.name)
        inside = np.where(each.known, labels, 0)
        values = metrics.roi_statistics(each.values, inside)
        noise = {} if each.sigma is None else metrics.roi_statistics(each.sigma, inside)
        means = {} if weights is None else _weighted(each.values, inside, weights)
        for label, count in zip(present.tolist(), counts.tolist(), strict=True):
            known = values.get(label)
            found[label, each.name] = RegionValue(
                label,
                names.get(label, f"label {label}"),
                each.name,
                known.voxels if known else 0,
                count * voxel_ml,
                means.get(label, (known.mean, known.sd))[0] if known else None,
                means.get(label, (known.mean, known.sd))[1] if known else None,
                known.median if known else None,
                noise[label].mean if label in noise else None,
                float(in_reliable.get(label, 0) / count),
                (known.voxels if known else 0) / count,
                float(in_rim.get(label, 0) / count),
            )
    return [found[label, name] for label in present.tolist() for name in order]


def _weighted(volume: MapArray, labels: LabelArray, weights: MapArray) -> dict[int, tuple[float, float]]:
    """Weighted mean and standard deviation in every region."""
    at = labels > 0
    place, values, w = labels[at], volume[at].astype(np.float64), weights[at].astype(np.float64)
    total = np.bincount(place, w)
    mean = np.bincount(place, w * values) / np.maximum(total, 1e-12)
    sd = np.sqrt(np.bincount(place, w * (values - mean[place]) ** 2) / np.maximum(total, 1e-12))
    return {label: (float(mean[label]), float(sd[label])) for label in np.flatnonzero(total).tolist()}


def write_values(path: Path, values: Iterable[RegionValue]) -> Path:
    """Write values as a tab-separated table, `n/a` where there is none.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    return write_table(path, COLUMNS, (asdict(value).values() for value in values))


def read_values(path: Path) -> list[RegionValue]:
    """Read a table of region values that `write_values` wrote.

    Raises
    ------
    InputError
        If it is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                RegionValue(
                    int(row["index"]),
                    clean_text(row["name"]),
                    row["map"],
                    int(row["voxels"]),
                    float(row["volume_ml"]),
                    *(
                        None if row.get(key, MISSING) == MISSING else float(row[key])
                        for key in (*STATISTICS, *_PARTS)
                    ),
                )
                for row in csv.DictReader(file, delimiter="\t")
            ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            path,
            found=f"no table of region values ({type(error).__name__}: {error})",
            expected=f"tab-separated columns {', '.join(COLUMNS)}",
            fix="Remove it and run the session again.",
        ) from error


def values_dictionary(maps: Mapping[str, str]) -> dict[str, Any]:
    """Describe the columns of a table of values, for the JSON file beside it.

    Parameters
    ----------
    maps
        Name of each map → description.
    """
    of_map = "Over the voxels counted, in the unit that ends the name of the map"
    return {
        "index": {"Description": "Label of the region in desc-regions_dseg"},
        "name": {"Description": "Name of the region"},
        "map": {"Description": "What was read, with its unit", "Levels": dict(maps)},
        "voxels": {"Description": "Voxels of the region in which the map is known"},
        "volume_ml": {"Description": "Volume of the region within the brain mask", "Units": "mL"},
        "mean": {"Description": f"Mean. {of_map}"},
        "sd": {"Description": f"Standard deviation. {of_map}"},
        "median": {"Description": f"Median. {of_map}"},
        "sigma": {
            "Description": "Mean of the standard deviation that noise gives a voxel. "
            f"{of_map}; n/a for maps without a noise map"
        },
        "reliable_part": {
            "Description": "Part of the region within the brain mask that lies in the reliable mask "
            "(desc-reliable_mask), 0 to 1"
        },
        "coverage": {
            "Description": "Part of the region within the brain mask in which the map is known, 0 to 1"
        },
        "rim_part": {
            "Description": f"Part of the region within {RIM_MM:g} mm of the surface of the brain mask, 0 to 1"
        },
    }
