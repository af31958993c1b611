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


COLUMNS = tuple(f.name for f in fields(RegionValue))
STATISTICS = ("mean", "sd", "median", "sigma")
"""Columns that are in the unit of the map."""


def region_values(
    labels: LabelArray,
    names: Mapping[int, str],
    maps: Iterable[RegionMap],
    voxel_mm: Sequence[float],
    reliable: MaskArray,
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

    Returns
    -------
    list of RegionValue
        Sorted by label; a label has all maps in the order given, also those that are known nowhere in it.
    """
    voxel_ml = math.prod(voxel_mm) / 1000
    present, counts = np.unique(labels[labels != 0], return_counts=True)
    in_reliable = dict(zip(*np.unique(labels[reliable & (labels != 0)], return_counts=True), strict=True))
    found: dict[tuple[int, str], RegionValue] = {}
    order = []
    for each in maps:
        order.append(each.name)
        inside = np.where(each.known, labels, 0)
        values = metrics.roi_statistics(each.values, inside)
        noise = {} if each.sigma is None else metrics.roi_statistics(each.sigma, inside)
        for label, count in zip(present.tolist(), counts.tolist(), strict=True):
            known = values.get(label)
            found[label, each.name] = RegionValue(
                label,
                names.get(label, f"label {label}"),
                each.name,
                known.voxels if known else 0,
                count * voxel_ml,
                known.mean if known else None,
                known.sd if known else None,
                known.median if known else None,
                noise[label].mean if label in noise else None,
                float(in_reliable.get(label, 0) / count),
            )
    return [found[label, name] for label in present.tolist() for name in order]


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
                        for key in (*STATISTICS, "reliable_part")
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
    }
