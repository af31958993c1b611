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
from numpy.typing import NDArray
from scipy import ndimage

from chisep.errors import InputError
from chisep.io.tsv import MISSING, clean_text, write_table
from chisep.regions.boxes import box_around
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
    regions = Regions.of(labels, names, voxel_mm, reliable, brain)
    return table_of([regions.values(each, weights) for each in maps])


def table_of(values: Sequence[Sequence[RegionValue]]) -> list[RegionValue]:
    """Sort the values of several maps, each in the order of the regions, by region."""
    return [value for of_region in zip(*values, strict=True) for value in of_region]


@dataclass(frozen=True, eq=False)
class Regions:
    """Voxels of every region, found once for all maps.

    Parameters
    ----------
    labels
        The labels that are present, in order.
    names
        Label → name.
    voxels
        Of each region, indices into a flat volume whose first axis is fastest.
    volumes_ml, reliable_parts, rim_parts
        Of each region, as in `RegionValue`.
    """

    labels: Sequence[int]
    names: Mapping[int, str]
    voxels: Sequence[NDArray[np.intp]]
    volumes_ml: Sequence[float]
    reliable_parts: Sequence[float]
    rim_parts: Sequence[float]

    @classmethod
    def of(
        cls,
        labels: LabelArray,
        names: Mapping[int, str],
        voxel_mm: Sequence[float],
        reliable: MaskArray,
        brain: MaskArray,
    ) -> Regions:
        """Find the voxels of all regions; parameters as of `region_values`."""
        flat = _flat(labels)
        inside = np.flatnonzero(flat)
        inside = inside[np.argsort(flat[inside], kind="stable")]
        present, starts = np.unique(flat[inside], return_index=True)
        voxels = np.split(inside, starts[1:]) if len(present) else []
        voxel_ml = math.prod(voxel_mm) / 1000
        parts = [_flat(mask) for mask in (reliable, _rim(brain, voxel_mm))]
        return cls(
            present.tolist(),
            names,
            voxels,
            [one.size * voxel_ml for one in voxels],
            *([float(part[one].mean()) for one in voxels] for part in parts),
        )

    def values(self, each: RegionMap, weights: MapArray | None = None) -> list[RegionValue]:
        """Statistics of one map in every region; parameters as of `region_values`."""
        known, volume = _flat(each.known), _flat(each.values)
        sigma, weight = (None if one is None else _flat(one) for one in (each.sigma, weights))
        found = []
        for number, label in enumerate(self.labels):
            of_region = self.voxels[number]
            here = of_region[known[of_region]]
            values = volume[here].astype(np.float64)
            mean, sd = _moments(values, None if weight is None else weight[here].astype(np.float64))
            found.append(
                RegionValue(
                    label,
                    self.names.get(label, f"label {label}"),
                    each.name,
                    here.size,
                    self.volumes_ml[number],
                    mean,
                    sd,
                    float(np.median(values)) if here.size else None,
                    float(sigma[here].astype(np.float64).mean()) if sigma is not None and here.size else None,
                    self.reliable_parts[number],
                    here.size / of_region.size,
                    self.rim_parts[number],
                )
            )
        return found


def _flat(volume: NDArray[Any]) -> NDArray[Any]:
    """Flat volume, first axis fastest: without a copy for images as they are read."""
    return volume.T.ravel()


def _rim(brain: MaskArray, voxel_mm: Sequence[float]) -> MaskArray:
    """Voxels near the surface of the brain mask; computed in the box of the brain."""
    rim = np.zeros_like(brain)
    if brain.any():
        box = box_around(brain, np.diag([*voxel_mm, 1.0]))
        depth_mm = ndimage.distance_transform_edt(np.pad(brain[box], 1), sampling=voxel_mm)
        rim[box] = depth_mm[1:-1, 1:-1, 1:-1] <= RIM_MM
    return rim


def _moments(
    values: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> tuple[float, float] | tuple[None, None]:
    """Mean and standard deviation; without values, or where weights are 0, None and unweighted ones."""
    if not values.size:
        return None, None
    if weights is None or weights.sum() <= 0:
        return float(values.mean()), float(values.std())
    mean = np.average(values, weights=weights)
    return float(mean), math.sqrt(np.average((values - mean) ** 2, weights=weights))


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
