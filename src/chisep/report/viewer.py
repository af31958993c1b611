"""Maps of the viewer in a page: cropped to the brain, quantised, deflated, and encoded as text."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from chisep.regions.labels import present_labels
from chisep.report.figures.style import MaskArray, VolumeArray
from chisep.report.figures.view import MARGIN_MM
from chisep.types import Affine

LabelArray = Int[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""

MOST_VOXELS = 6_000_000
"""Voxels of the brain box in the viewer; finer grids are thinned by averaging blocks."""
MOST_BYTES = 13_000_000
"""Limit of all maps of a page; its figures and texts take about 1 MB more."""

_COARSER: Sequence[Mapping[bool, int]] = (
    {True: 1, False: 1},
    {True: 1, False: 2},
    {True: 2, False: 4},
    {True: 4, False: 8},
)
"""Factors of the steps of fine and of other maps, tried in turn."""
_LEVEL = 6
_LARGEST = np.iinfo(np.int16).max
_SLICES, _SLICES_APART, _CLEARLY_MORE = 4, 24, 1.1
"""Slices of each slab of a sample, their distance, and how far above the limit its estimate is believed."""
_EVERY = 5
"""Every how many voxels the entropy is taken from."""


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
        In `unit` after multiplication by `scale`, shape (i, j, k).
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
    difference
        Keys of two maps whose difference it is, up to a constant; where that holds, the page makes it from
        them. None for any other map.
    fine
        Whether its rounding is kept as long as possible when a page would be too large.
    scale
        Factor from `values` to `unit`: scaled copies of all maps would take much memory.
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
    difference: tuple[str, str] | None = None
    fine: bool = False
    scale: float = 1.0


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
    nuclei
        Labels that can be outlined apart from the others.
    """

    name: str
    affine: Affine
    mask: MaskArray
    maps: Sequence[ViewerMap]
    masks: Mapping[str, MaskArray] = field(default_factory=dict)
    labels: LabelArray | None = None
    region_names: Mapping[int, str] = field(default_factory=dict)
    nuclei: Collection[int] = ()

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


def encode(
    scans: Sequence[ViewerScan], *, most_voxels: int = MOST_VOXELS, most_bytes: int = MOST_BYTES
) -> EncodedViewer:
    """Encode scans for the viewer: crop, turn to RAS+, quantise, deflate.

    Parameters
    ----------
    scans
        What can be shown; the first is shown first.
    most_voxels
        Limit of voxels of a brain box.
    most_bytes
        Limit of the size in the page. Values are rounded more coarsely until it is kept, those of `fine`
        maps last.

    Returns
    -------
    EncodedViewer
        Equal scans give equal content.
    """
    parts = [_Part.of(scan, most_voxels) for scan in scans]
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for coarser in _COARSER:
            # Some slices tell, at a fraction of the cost, when a rounding is much too fine.
            if coarser is not _COARSER[-1]:
                estimates = pool.map(partial(_Part.sampled_bytes, coarser=coarser), *_tasks(parts))
                if sum(estimates) > _CLEARLY_MORE * most_bytes:
                    continue
            viewer = _encoded(parts, coarser, pool)
            if viewer.size_bytes <= most_bytes:
                break
    return viewer


@dataclass(frozen=True, eq=False)
class _Part:
    """A scan, its place in the page, and the maps that the page makes from two others."""

    scan: ViewerScan
    frame: _Frame
    offsets: Mapping[str, float]
    """Key of a map → constant by which it differs from the difference of two others."""

    @classmethod
    def of(cls, scan: ViewerScan, most_voxels: int) -> _Part:
        offsets = {one.key: _offset_of_difference(scan, one) for one in scan.maps}
        known = {key: offset for key, offset in offsets.items() if offset is not None}
        return cls(scan, _Frame.of(scan, most_voxels), known)

    def content(self, one: ViewerMap, coarser: Mapping[bool, int]) -> tuple[str, dict[str, Any]]:
        """Voxels of a map as text, and how to read them; no text where the page makes the map."""
        step = one.step * coarser[one.fine]
        if one.key in self.offsets:
            made = {"difference": [*(one.difference or ())], "offset": self.offsets[one.key]}
            return "", _facts(one, step) | made
        text, coding = _deflate(_integers(self.frame.mean(one.values), one.scale, step))
        return text, _facts(one, step) | coding

    def sampled_bytes(self, one: ViewerMap, coarser: Mapping[bool, int]) -> float:
        """Size of a map in the page, estimated from some of its slices; 0 if there are too few."""
        if one.key in self.offsets or self.frame.shape[-1] < 3 * _SLICES_APART:
            return 0.0
        values, size, sampled = self.frame.mean(one.values), 0, 0
        for start in range(_SLICES_APART // 2, values.shape[-1], _SLICES_APART):
            slab = values[..., start : start + _SLICES]
            size += len(_deflate(_integers(slab, one.scale, one.step * coarser[one.fine]))[0])
            sampled += slab.size
        return size * values.size / sampled


def _tasks(parts: Sequence[_Part]) -> tuple[list[_Part], list[ViewerMap]]:
    """All maps, and the part of each."""
    tasks = [(part, one) for part in parts for one in part.scan.maps]
    return [part for part, _ in tasks], [one for _, one in tasks]


def _encoded(parts: Sequence[_Part], coarser: Mapping[bool, int], pool: Executor) -> EncodedViewer:
    described: list[dict[str, Any]] = []
    blocks: list[tuple[str, str]] = []
    contents = pool.map(partial(_Part.content, coarser=coarser), *_tasks(parts))
    for number, part in enumerate(parts):
        maps: list[dict[str, Any]] = []
        for place, (text, facts) in enumerate(islice(contents, len(part.scan.maps))):
            identifier = f"voxels-{number}-{place}"
            if text:
                blocks.append((identifier, text))
            maps.append(facts | ({"block": identifier} if text else {}))
        entry: dict[str, Any] = {"name": part.scan.name, **part.frame.facts(), "maps": maps}
        for kind, (text, coding) in _encode_places(part.frame, part.scan).items():
            identifier = f"voxels-{number}-{kind}"
            blocks.append((identifier, text))
            entry[kind] = {"block": identifier, **coding}
        described.append(entry)
    text = json.dumps({"scans": described}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return EncodedViewer(text, blocks)


def _offset_of_difference(scan: ViewerScan, one: ViewerMap) -> float | None:
    """Constant by which a map differs from the difference of two others; None where it is no constant."""
    maps = {other.key: other for other in scan.maps}
    if one.difference is None or not set(one.difference) <= set(maps) or not scan.mask.any():
        return None
    terms = (one, *(maps[key] for key in one.difference))
    made, first, second = (term.scale * term.values.T[scan.mask.T] for term in terms)
    rest = made - (first - second)
    offset = float(np.median(rest))
    return round(offset, 6) if np.abs(rest - offset).max() <= one.step / 10 else None


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


def _integers(values: VolumeArray, scale: float, step: float) -> NDArray[np.int16]:
    """Round scaled values to multiples of a step."""
    steps = scale * values
    steps /= step
    np.nan_to_num(steps, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    np.rint(steps, out=steps)
    return np.asarray(steps.clip(-_LARGEST, _LARGEST, out=steps).astype(np.int16, order="F"))


def _facts(one: ViewerMap, step: float) -> dict[str, Any]:
    """Collect what a reader needs to show a map."""
    return {
        "key": one.key,
        "name": one.name,
        "unit": one.unit,
        "step": step,
        "windows": [list(window) for window in one.windows],
        "group": one.group,
        "look": one.look,
        "sigma": one.sigma,
        "before": one.before,
        "colours": one.colours,
        "masked": one.masked,
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
        known = present_labels(labels)
        numbers = np.zeros_like(labels, np.int16)
        inside = labels.T != 0
        numbers.T[inside] = np.searchsorted(known, labels.T[inside]) + 1
        content, coding = _deflate(np.asfortranarray(numbers))
        names = [scan.region_names.get(int(label), f"region {label}") for label in known]
        nuclei = [number for number, label in enumerate(known.tolist(), start=1) if label in scan.nuclei]
        places["regions"] = (content, {"names": ["", *names], "nuclei": nuclei, **coding})
    return places


def _deflate(steps: NDArray[np.int16]) -> tuple[str, dict[str, Any]]:
    """Deflate integers, first axis fastest, low bytes before high bytes.

    Where it takes less, differences to the mean of the three neighbours before a voxel are stored instead.
    """
    differences = _differences(steps)
    predicted = _bits(differences) < _bits(steps)
    plain = (differences if predicted else steps).ravel(order="F").view(np.uint16)
    packer = zlib.compressobj(_LEVEL, strategy=zlib.Z_RLE)  # noise has no repeats, and the background is runs
    content = b""
    for plane in (plain & 0xFF, plain >> 8):
        content += packer.compress(plane.astype(np.uint8).data)
    content += packer.flush()
    return base64.b64encode(content).decode("ascii"), {"predicted": bool(predicted)}


def _differences(steps: NDArray[np.int16]) -> NDArray[np.int16]:
    """Subtract the mean (rounded down) of the neighbours before a voxel along the three axes, modulo 2^16."""
    total = np.zeros_like(steps, np.int32)
    total[1:] += steps[:-1]
    total[:, 1:] += steps[:, :-1]
    total[:, :, 1:] += steps[:, :, :-1]
    total //= 3
    return (steps - total).astype(np.int16)


def _bits(values: NDArray[np.int16]) -> float:
    """Entropy of some of the integers in bits per value."""
    some = values.ravel(order="K")[::_EVERY].view(np.uint16)
    counts = np.bincount(some, minlength=1)
    shares = counts[counts > 0] / some.size
    return float(-(shares * np.log2(shares)).sum())
