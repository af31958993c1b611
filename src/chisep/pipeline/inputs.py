"""Checks of a session's images by their headers, for `run` before its first stage and for `bids-check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.echoes import files_of
from chisep.io.placement import Placement
from chisep.preprocessing.extent import require_slices
from chisep.preprocessing.resampling import no_overlap
from chisep.types import Grid

_SAMPLES = 24
_SAME_PLACE_MM = 1e-2
_ANY_B0 = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class InputCheck:
    """What the headers of a session's images say.

    Parameters
    ----------
    megre, mese
        Grid of each series; None where its images cannot be used, or there are none.
    errors
        What cannot be used, each with its remedy.
    covered
        Part of the gradient echo's field of view that the spin echo covers; 1 without one.
    notes
        What is to be known of where the gradient echo lies.
    """

    megre: Grid | None
    mese: Grid | None
    errors: tuple[InputError, ...]
    covered: float = 1.0
    notes: tuple[str, ...] = ()


def check_inputs(session: bids.Session, b0_direction: tuple[float, float, float] | None = None) -> InputCheck:
    """Read the headers of all images of a session and compare them.

    Parameters
    ----------
    session
        Raw series.
    b0_direction
        B0 in voxel axes of the gradient echo where the user states it.
    """
    errors: list[InputError] = []
    b0 = b0_direction or session.megre.b0_direction
    megre = _grid_of(session.megre.files, b0, errors)
    # B0 is read from the gradient echo alone.
    mese = _grid_of(files_of(session.mese.magnitude), _ANY_B0, errors) if session.mese else None
    notes: list[str] = []
    if megre is not None:
        first = session.megre.first
        try:
            require_slices(megre.shape, str(first))
        except InputError as error:
            errors.append(error)
        notes = nifti.notes_of_place(nifti.read_header(first).place, str(first), b0_given=b0 is not None)
    covered = 1.0
    if megre is not None and mese is not None and session.mese is not None:
        covered = _share_inside(megre, mese)
        if covered == 0 and _share_inside(mese, megre) == 0:  # a thin slab may lie between the samples
            errors.append(no_overlap(str(session.mese.first)))
    return InputCheck(megre, mese, tuple(_alike_once(errors)), covered, tuple(notes))


def require_inputs(session: bids.Session, b0_direction: tuple[float, float, float] | None = None) -> None:
    """Check the images of a session by their headers before any work is done; arguments as of `check_inputs`.

    Raises
    ------
    InputError
        The first that `check_inputs` finds.
    """
    for error in check_inputs(session, b0_direction).errors:
        raise error


def _alike_once(errors: Sequence[InputError]) -> Iterator[InputError]:
    """Errors that say the same of several files become one, which counts the others."""
    alike: dict[tuple[str, str, str], list[InputError]] = {}
    for error in errors:
        alike.setdefault((error.found, error.expected, error.fix), []).append(error)
    for (found, expected, fix), same in alike.items():
        others = f" (and {len(same) - 1} more files)" if len(same) > 1 else ""
        yield InputError(same[0].source, found=found + others, expected=expected, fix=fix)


def _grid_of(
    paths: Sequence[Path], b0_direction: Sequence[float] | None, errors: list[InputError]
) -> Grid | None:
    """Grid of the first image that can be used; all others must have it."""
    first: tuple[Path, Grid, Placement] | None = None
    for path, header in _headers(paths, errors):
        try:
            shape = nifti.require_volume(header.shape, str(path))
            if first is None:
                first = path, nifti.grid_of_header(header, str(path), b0_direction), header.place
            else:
                nifti.require_place(
                    first[1].shape,
                    first[2].affines,
                    str(first[0]),
                    shape,
                    header.place.affines,
                    str(path),
                )
        except InputError as error:
            errors.append(error)
    return None if first is None else first[1]


def _headers(paths: Sequence[Path], errors: list[InputError]) -> Iterator[tuple[Path, nifti.Header]]:
    for path in paths:
        try:
            yield path, nifti.read_header(path)
        except InputError as error:
            errors.append(error)


def _share_inside(grid: Grid, other: Grid) -> float:
    """Part of a grid's field of view that lies in another's, from places spread over it."""
    axes = [np.linspace(0, n - 1, _SAMPLES) for n in grid.shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    pull = np.linalg.inv(other.matrix()) @ grid.matrix()
    voxels = places @ pull[:3, :3].T + pull[:3, 3]
    inside = (voxels >= -0.5 - _SAME_PLACE_MM) & (voxels <= np.asarray(other.shape) - 0.5 + _SAME_PLACE_MM)
    return float(inside.all(1).mean())
