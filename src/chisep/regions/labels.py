"""Label maps: reading with their tables, and resampling to the grid of a scan."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from nibabel.freesurfer.mghformat import MGHImage
from numpy.typing import NDArray
from scipy import ndimage

from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.tsv import clean_text, write_table
from chisep.regions.freesurfer import freesurfer_names
from chisep.types import Affine, Grid

LabelArray = Int32[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""
OtherLabels = Int32[np.ndarray, "a b c"]
"""Labels on a grid of their own."""

_MOST_ROWS = 100_000
_LARGEST_LABEL = 2**31 - 1
_GZIP_MOST = 1100
"""Largest compression ratio of a gzip stream."""


def present_labels(labels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Labels of a volume but 0, in order; of neighbours with one label only the first is looked at."""
    flat = labels.ravel(order="K")
    first = flat[np.concatenate([[True], flat[1:] != flat[:-1]])]
    return np.unique(first[first != 0])


def read_names(table: Path) -> dict[int, str]:
    """Read a table of labels.

    Parameters
    ----------
    table
        Tab-separated, with columns `index` and `name`, as BIDS has it.

    Returns
    -------
    dict
        Label → name, cleaned by `clean_text`.

    Raises
    ------
    InputError
        If it is not such a table.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            names = {}
            for row in rows:
                if rows.line_num > _MOST_ROWS:
                    raise ValueError(f"more than {_MOST_ROWS} rows")
                names[int(row["index"])] = clean_text(row["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            table,
            found=f"no label table ({type(error).__name__}: {error})",
            expected="tab-separated columns `index` (whole numbers) and `name`",
            fix="Correct the table, or remove it to use FreeSurfer's names, or numbers.",
        ) from error
    return {index: name or f"label {index}" for index, name in names.items()}


@dataclass(frozen=True, eq=False)
class LabelImage:
    """A segmentation or an atlas.

    Parameters
    ----------
    labels
        On its own grid; 0 is no region.
    affine
        Voxel index to world mm, shape (4, 4).
    names
        Label → name; labels may lack one.
    source
        Source, for messages.
    """

    labels: OtherLabels
    affine: Affine
    names: Mapping[int, str]
    source: str

    def name(self, label: int) -> str:
        """Name of a label, or its number."""
        return self.names.get(label, f"label {label}")


def load_labels(path: Path, table: Path | None = None) -> LabelImage:
    """Read a segmentation.

    Parameters
    ----------
    path
        NIfTI, or FreeSurfer's .mgz.
    table
        Its label table. Without one, names are FreeSurfer's if the numbers are.

    Raises
    ------
    InputError
        If it cannot be read, or has values that are no labels.
    """
    image = read_volume(path)
    values = image.data
    whole = np.rint(values)
    if np.abs(values - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > _LARGEST_LABEL:
        raise InputError(
            path,
            found="values that are not whole numbers from 0 on",
            expected="a label map",
            fix="Give the segmentation itself, resampled by nearest neighbour if at all.",
        )
    labels = whole.astype(np.int32)
    if table is not None:
        names: Mapping[int, str] = read_names(table)
    else:
        known = freesurfer_names()
        present = present_labels(labels)
        names = known if np.isin(present, list(known)).mean() > 0.5 else {}
    return LabelImage(labels, image.affine, names, str(path))


def read_volume(path: Path) -> nifti.Image:
    """Read a volume in double precision: NIfTI, or FreeSurfer's .mgz.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if path.suffix not in (".mgz", ".mgh"):
        return nifti.load(path, dtype=np.float64)
    try:
        image = MGHImage.from_filename(path)
        declared = math.prod(image.shape) * image.get_data_dtype().itemsize
        if declared > _GZIP_MOST * path.stat().st_size or declared > nifti.MOST_VALUES:
            raise ValueError(f"{declared} bytes declared")
        return nifti.from_nibabel(image, source=str(path), dtype=np.float64)
    except InputError:
        raise
    except Exception as error:  # nibabel raises whatever the bytes make it run into
        raise InputError(
            path,
            found=f"a file that cannot be read ({error})",
            expected="a whole volume of FreeSurfer (.mgz)",
            fix="It may be truncated or of another format: copy or convert it again.",
        ) from error


def resampled_labels(image: LabelImage, grid: Grid, transform: Affine | None = None) -> LabelArray:
    """Resample labels to a grid in world coordinates by nearest neighbour; there are no new labels.

    Parameters
    ----------
    image
        Labels on their own grid.
    grid
        Target grid.
    transform
        World mm of the grid to world mm of the labels, shape (4, 4); None: positions of the headers hold.
    """
    placed = grid.matrix() if transform is None else transform @ grid.matrix()
    pull = np.linalg.solve(image.affine, placed)
    # Voxels whose centres agree but for rounding must not fall to either side at random.
    moved = ndimage.affine_transform(
        image.labels,
        np.round(pull[:3, :3], 6),
        np.round(pull[:3, 3], 6),
        output_shape=grid.shape,
        order=0,
        mode="grid-constant",
    )
    return np.asarray(moved, dtype=np.int32)


def write_names(path: Path, labels: LabelArray, image: LabelImage) -> Path:
    """Write the label table (index, name) of the labels that are there.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    present = present_labels(labels).tolist()
    return write_table(path, ("index", "name"), ((label, image.name(label)) for label in present))
