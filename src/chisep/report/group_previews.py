"""Small maps of the sessions of a group: thumbnails, and the viewer of the group page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.paths import is_file
from chisep.pipeline.outputs import OUTPUTS
from chisep.regions.cit168 import nucleus_names
from chisep.regions.statistics import read_values
from chisep.report.figures.style import PPB, SOURCE_WINDOW_PPB, TOTAL_WINDOW_PPB
from chisep.report.figures.view import View, view_of
from chisep.report.viewer import EncodedViewer, ViewerMap, ViewerScan, encode

MOST_SESSIONS = 40
"""Sessions with thumbnail and maps in the page: outliers first, then in the order of their names."""

_MAPS = {
    "chi_pos": ("χ_pos", (SOURCE_WINDOW_PPB, (0.0, 50.0), (0.0, 200.0))),
    "chi_neg": ("χ_neg", (SOURCE_WINDOW_PPB, (0.0, 50.0), (0.0, 200.0))),
    "qsm": ("QSM", (TOTAL_WINDOW_PPB, (-50.0, 50.0), (-200.0, 200.0))),
}
_STEP_PPB = 2.0
_MOST_VOXELS, _FEWEST_VOXELS = 2_500_000, 60_000
_MOST_PAGE_VOXELS = 5_000_000
"""Voxels of one scan, and of all scans of the page, which take up to 12 MB."""
_AXIAL, _HEIGHT = 2, 96
_GREYS = 48


@dataclass(frozen=True)
class Previews:
    """What the group page shows of maps.

    Parameters
    ----------
    thumbnails
        Name of the session → data URI of axial planes of χ_pos, χ_neg and QSM, as far as there are maps.
    viewer
        All sessions with maps; None without any.
    """

    thumbnails: dict[str, str]
    viewer: EncodedViewer | None


def previews(out: Path, names: Sequence[str]) -> Previews:
    """Read the maps of sessions and make them small.

    Parameters
    ----------
    out
        Derivatives dataset.
    names
        Names of the sessions, at most `MOST_SESSIONS`; those without readable maps are left out.
    """
    scans = {name: scan for name in names if (scan := _scan(out, name)) is not None}
    if not scans:
        return Previews({}, None)
    voxels = min(_MOST_VOXELS, max(_FEWEST_VOXELS, _MOST_PAGE_VOXELS // len(scans)))
    return Previews(
        {name: _thumbnail(scan) for name, scan in scans.items()},
        encode([*scans.values()], most_voxels=voxels),
    )


def _scan(out: Path, name: str) -> ViewerScan | None:
    parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    folder = out.joinpath(*parts, "anat")

    def path(key: str) -> Path:
        return folder / f"{name}_{OUTPUTS[key].name}{OUTPUTS[key].extension}"

    try:
        mask = nifti.load_mask(path("mask")) if is_file(path("mask")) else None
        maps = [
            ViewerMap(
                key, label, PPB * nifti.load(path(key)).data, "ppb", _STEP_PPB, windows, "Susceptibility"
            )
            for key, (label, windows) in _MAPS.items()
            if is_file(path(key))
        ]
        labels = (
            np.rint(nifti.load(path("labels")).data).astype(np.int32) if is_file(path("labels")) else None
        )
        nuclei = (
            np.rint(nifti.load(path("nuclei")).data).astype(np.int32) if is_file(path("nuclei")) else None
        )
        values = read_values(path("region_values")) if is_file(path("region_values")) else []
    except InputError:  # the session's own line tells what is wrong with it
        return None
    if mask is None or not maps or any(one.values.shape != mask.data.shape for one in maps):
        return None
    if labels is not None and labels.shape != mask.data.shape:
        labels = None
    if labels is not None and nuclei is not None and nuclei.shape == labels.shape:
        labels = np.where(nuclei > 0, nuclei, labels)
    names = {value.index: value.name for value in values}
    masks = {"brain mask": mask.data}
    return ViewerScan(name, mask.affine, mask.data, maps, masks, labels, names, nucleus_names())


def _thumbnail(scan: ViewerScan) -> str:
    view = view_of(scan.mask.shape, scan.affine, scan.mask)
    shades = [_shades(view, scan, one) for one in scan.maps]
    image = Image.fromarray(np.concatenate(shades, axis=1))
    # Few grey levels compress well, and an eye sees no more of them at this size.
    file = io.BytesIO()
    image.quantize(_GREYS).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _shades(view: View, scan: ViewerScan, one: ViewerMap) -> np.ndarray:
    """Axial plane through the middle of the brain as grey levels, with true proportions."""
    low, high = one.windows[0]
    plane = np.where(view.plane(scan.mask, _AXIAL), view.plane(one.values, _AXIAL), low)
    grey = (255 * np.clip((np.nan_to_num(plane) - low) / (high - low), 0, 1)).astype(np.uint8)
    width, height = view.size_mm(_AXIAL)
    size = max(round(_HEIGHT * width / height), 1), _HEIGHT
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
