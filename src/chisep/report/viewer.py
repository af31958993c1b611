"""Maps of the viewer in a page: cropped to the brain, quantised, deflated, and encoded as text."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from chisep.report.figures.style import MaskArray, VolumeArray
from chisep.types import Affine

LabelArray = Int[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""

MARGIN_MM = 8.0
"""Space around the brain box."""
MOST_VOXELS = 6_000_000
"""Voxels of the brain box in the viewer; finer grids are thinned by averaging blocks."""

_LEVEL = 6
_LARGEST = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class ViewerMap:
    """One map of the viewer.

    Parameters
    ----------
    key
        Name in the page's code, unique in its scan.
    name
        Name for readers, plain text.
    values
        In `unit`, shape (i, j, k).
    unit
        Text after values.
    step
        Values are rounded to a multiple of it, in `unit`.
    windows
        Common intensity windows (low, high) in `unit`, the default first.
    group
        Heading in the list of maps.
    look
        What to look for.
    sigma
        Key of the map of its standard deviation; empty without one.
    before
        Key of the map it is compared with first; empty for the first map.
    colours
        Default colours: gray, or difference for maps that are differences.
    masked
        Whether it is shown within the first mask of its scan only.
    """

    key: str
    name: str
    values: VolumeArray
    unit: str
    step: float
    windows: Sequence[tuple[float, float]]
    group: str = "Maps"
    look: str = ""
    sigma: str = ""
    before: str = ""
    colours: str = "gray"
    masked: bool = True


@dataclass(frozen=True, eq=False)
class ViewerScan:
    """Maps, masks and regions on one grid.

    Parameters
    ----------
    name
        Name of the scan for readers.
    affine
        Voxel index to scanner mm, shape (4, 4).
    mask
        Brain, shape (i, j, k): sets the field of view.
    maps
        The maps; the first is shown first.
    masks
        Name → mask that can be outlined, at most 8.
    labels
        Region of every voxel, 0 outside; None without regions.
    region_names
        Label → name.
    """

    name: str
    affine: Affine
    mask: MaskArray
    maps: Sequence[ViewerMap]
    masks: Mapping[str, MaskArray] = field(default_factory=dict)
    labels: LabelArray | None = None
    region_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.maps:
            raise ValueError("a scan of the viewer needs a map")
        if len(self.masks) > 8:
            raise ValueError("the viewer shows at most 8 masks")


@dataclass(frozen=True)
class EncodedViewer:
    """Content of the viewer as it is in the page.

    Parameters
    ----------
    description
        JSON without characters that HTML would read as markup.
    blocks
        Identifier and base64 text of the deflated voxels of each map.
    """

    description: str
    blocks: Sequence[tuple[str, str]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all blocks in the page."""
        return sum(len(text) for _, text in self.blocks)


def encode(scans: Sequence[ViewerScan], *, most_voxels: int = MOST_VOXELS) -> EncodedViewer:
    """Encode scans for the viewer: crop, turn to RAS+, quantise, deflate.

    Parameters
    ----------
    scans
        What can be shown; the first is shown first.
    most_voxels
        Limit of voxels of a brain box.

    Returns
    -------
    EncodedViewer
        Equal scans give equal content.
    """
    described: list[dict[str, Any]] = []
    blocks: list[tuple[str, str]] = []
    for number, scan in enumerate(scans):
        frame = _Frame.of(scan, most_voxels)
        maps: list[dict[str, Any]] = []
        for one in scan.maps:
            identifier = f"voxels-{number}-{len(maps)}"
            content, facts = _encode_map(frame, one)
            blocks.append((identifier, content))
            maps.append({"block": identifier, **facts})
        entry: dict[str, Any] = {"name": scan.name, **frame.facts(), "maps": maps}
        for kind, (content, facts) in _encode_places(frame, scan).items():
            identifier = f"voxels-{number}-{kind}"
            blocks.append((identifier, content))
            entry[kind] = {"block": identifier, **facts}
        described.append(entry)
    text = json.dumps({"scans": described}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return EncodedViewer(text, blocks)


@dataclass(frozen=True, eq=False)
class _Frame:
    """Turns volumes to RAS+, crops them to the brain box, and thins them."""

    orientation: NDArray[Any]
    box: tuple[slice, ...]
    thin: tuple[int, ...]
    affine: NDArray[Any]
    voxel_mm: tuple[float, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, scan: ViewerScan, most_voxels: int) -> _Frame:
        shape = scan.mask.shape
        orientation = nib.io_orientation(scan.affine)
        affine = scan.affine @ nib.orientations.inv_ornt_aff(orientation, shape)
        voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
        turned = nib.apply_orientation(scan.mask, orientation)
        box = []
        for axis, (length, edge) in enumerate(zip(turned.shape, voxel_mm, strict=True)):
            inside = np.flatnonzero(turned.any(axis=tuple({0, 1, 2} - {axis})))
            first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, length - 1)
            margin = math.ceil(MARGIN_MM / edge)
            box.append((max(first - margin, 0), min(last + margin, length - 1) + 1))
        thin = _thinning([stop - start for start, stop in box], voxel_mm, most_voxels)
        # Whole blocks only; a block of voxels has its centre between them.
        box = [
            (start, start + max((stop - start) // by, 1) * by)
            for (start, stop), by in zip(box, thin, strict=True)
        ]
        offset = [start + (by - 1) / 2 for (start, _), by in zip(box, thin, strict=True)]
        affine = affine @ nib.affines.from_matvec(np.diag(np.asarray(thin, dtype=np.float64)), offset)
        return cls(
            orientation,
            tuple(slice(start, stop) for start, stop in box),
            tuple(thin),
            affine,
            tuple(float(edge * by) for edge, by in zip(voxel_mm, thin, strict=True)),
            tuple((stop - start) // by for (start, stop), by in zip(box, thin, strict=True)),
        )

    def facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "voxel_mm": [round(edge, 4) for edge in self.voxel_mm],
            "affine": np.round(self.affine, 5).tolist(),
            "thinned": max(self.thin),
        }

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Turn and crop a volume; of a block of voxels the middle one stays."""
        box = tuple(slice(s.start + by // 2, s.stop, by) for s, by in zip(self.box, self.thin, strict=True))
        part: NDArray[Any] = nib.apply_orientation(volume, self.orientation)[box]
        return part

    def mean(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Turn, crop and thin a volume by the mean of blocks."""
        if max(self.thin) == 1:
            return self.cut(volume)
        part = nib.apply_orientation(volume, self.orientation)[self.box]
        blocks = part.reshape([n for pair in zip(self.shape, self.thin, strict=True) for n in pair])
        averaged: NDArray[Any] = blocks.mean((1, 3, 5))
        return averaged


def _thinning(lengths: Sequence[int], voxel_mm: Sequence[float], most_voxels: int) -> list[int]:
    """Voxels per block along each axis, so that a box stays below a limit; the finest axis goes first."""
    thin = [1, 1, 1]
    while math.prod(n // by for n, by in zip(lengths, thin, strict=True)) > most_voxels:
        coarse = [edge * by for edge, by in zip(voxel_mm, thin, strict=True)]
        finest = min(coarse)
        for axis in range(3):
            if coarse[axis] < 1.3 * finest:
                thin[axis] += 1
    return thin


def _encode_map(frame: _Frame, one: ViewerMap) -> tuple[str, dict[str, Any]]:
    """Voxels of a map as text, and what a reader needs to decode and show them."""
    values = np.nan_to_num(frame.mean(one.values), nan=0.0, posinf=0.0, neginf=0.0)
    steps = np.rint(values / one.step).clip(-_LARGEST, _LARGEST).astype(np.int16)
    content, coding = _deflate(steps)
    return content, {
        "key": one.key,
        "name": one.name,
        "unit": one.unit,
        "step": one.step,
        "windows": [list(window) for window in one.windows],
        "group": one.group,
        "look": one.look,
        "sigma": one.sigma,
        "before": one.before,
        "colours": one.colours,
        "masked": one.masked,
        **coding,
    }


def _encode_places(frame: _Frame, scan: ViewerScan) -> dict[str, tuple[str, dict[str, Any]]]:
    """Masks, one bit each, and regions, numbered in the order of their labels."""
    places = {}
    if scan.masks:
        bits = np.zeros(frame.shape, np.int16)
        for number, mask in enumerate(scan.masks.values()):
            bits |= frame.cut(mask).astype(np.int16) << number
        content, coding = _deflate(bits)
        places["masks"] = (content, {"names": list(scan.masks), **coding})
    if scan.labels is not None and scan.labels.any():
        labels = frame.cut(scan.labels)
        known = np.unique(labels[labels != 0])
        numbers = np.where(labels == 0, 0, np.searchsorted(known, labels) + 1)
        content, coding = _deflate(numbers.astype(np.int16))
        names = [scan.region_names.get(int(label), f"region {label}") for label in known]
        places["regions"] = (content, {"names": ["", *names], **coding})
    return places


def _deflate(steps: NDArray[np.int16]) -> tuple[str, dict[str, Any]]:
    """Deflate integers, first axis fastest: bytes split into planes, differences where they take less."""
    flat = steps.ravel(order="F")
    differences = np.diff(flat, prepend=np.int16(0))
    delta = _bits(differences) < _bits(flat)
    plain = (differences if delta else flat).view(np.uint16)
    low, high = (plain & 0xFF).astype(np.uint8), (plain >> 8).astype(np.uint8)
    content = zlib.compress(b"".join(plane.tobytes() for plane in (low, high)), _LEVEL)
    return base64.b64encode(content).decode("ascii"), {"delta": bool(delta)}


def _bits(values: NDArray[np.int16]) -> float:
    """Entropy of integers in bits per value."""
    counts = np.bincount(values.view(np.uint16), minlength=1)
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())
