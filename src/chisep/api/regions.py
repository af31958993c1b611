"""The command `regions`: values of maps in regions, also of maps that were made elsewhere."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy import ndimage

from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.io.files import output_directory, write_json
from chisep.regions.atlas import labels_on_scan, packaged_atlas, registration
from chisep.regions.cit168 import nucleus_names
from chisep.regions.labels import LabelImage, load_labels, resampled_labels, write_names
from chisep.regions.nuclei import nuclei_on_scan
from chisep.regions.reference import reference_of, referenced, ventricles
from chisep.regions.statistics import RegionMap, region_values, values_dictionary, write_values
from chisep.types import Grid

MapArray = Float[np.ndarray, "i j k"]
"""One real map."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""
LabelArray = Int32[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""

_SUBDIVISION = 3
"""Points along each edge of a voxel that are looked up for its partial volume."""
_LEAST_OVERLAP = 0.6


@dataclass(frozen=True)
class RegionsConfig:
    """Maps on one grid, their regions, and where the table goes."""

    map: tuple[str, ...]
    """Maps to read, as NAME=FILE (NIfTI), such as chi_pos_ppb=chi_pos.nii.gz; the table has their names."""
    mask: Path
    """Brain mask on the grid of the maps (NIfTI)."""
    out: Path
    """Table to write (.tsv); its columns are explained in a .json beside it."""
    sigma: tuple[str, ...] = ()
    """Noise (standard deviation) of maps, as NAME=FILE, in the unit of the map of that name."""
    labels: Path | None = None
    """Segmentation of this head in scanner coordinates, on any grid (NIfTI, or FreeSurfer's .mgz); if unset:
    the packaged atlas and the nuclei of CIT168 are registered by --chi and --r2star."""
    table: Path | None = None
    """Label table of --labels (tab-separated index and name); if unset: FreeSurfer's names."""
    chi: Path | None = None
    """Susceptibility in ppm (NIfTI), by which atlases are registered."""
    r2star: Path | None = None
    """R2* in 1/s (NIfTI), by which atlases are registered as well."""
    reliable: Path | None = None
    """Mask in which maps can be trusted (NIfTI); if unset: the brain mask."""
    reference: Literal["none", "csf", "brain"] | Path = "none"
    """Region whose mean is subtracted: csf (ventricles by FreeSurfer's numbers), brain, or a mask (NIfTI)."""
    referenced: tuple[str, ...] = ()
    """Names of the maps that the reference is subtracted from; if unset: all."""
    erode: int = 0
    """Voxels to take away from the surface of every region, against partial volumes."""
    partial_volume: bool = False
    """Weigh every voxel by the part of it that belongs to its region; needs --labels with finer voxels than
    the maps."""
    least_part: float = 0.0
    """Leave out voxels of which a smaller part belongs to their region, 0 to 1; needs such labels, too."""

    def __post_init__(self) -> None:
        if not self.map:
            raise _wrong("--map", "no map", "one or more, as NAME=FILE")
        if self.erode < 0:
            raise _wrong("--erode", f"{self.erode}", "0 or more")
        if not 0 <= self.least_part <= 1:
            raise _wrong("--least-part", f"{self.least_part}", "a number from 0 to 1")
        if self.labels is None and self.chi is None:
            raise _wrong(
                "--labels", "neither --labels nor --chi", "a segmentation, or χ to register an atlas by"
            )
        if self.labels is None and (self.partial_volume or self.least_part):
            raise _wrong("--partial-volume", "no --labels", "a segmentation with finer voxels than the maps")
        if self.out.suffix != ".tsv":
            raise _wrong("--out", str(self.out), "a name that ends in .tsv")


def _wrong(option: str, found: str, expected: str) -> InputError:
    return InputError(
        option, found=found, expected=expected, fix="`chisep regions --help` explains the options."
    )


@dataclass(frozen=True, eq=False)
class _Regions:
    """Labels on the grid of the maps, and the part of each voxel that belongs to its label; 1 if None."""

    image: LabelImage
    labels: LabelArray
    parts: MapArray | None = None


def regions(config: RegionsConfig) -> list[Path]:
    """Read values of maps in regions, and write their table.

    Parameters
    ----------
    config
        Maps, regions, and options.

    Returns
    -------
    list of Path
        The table; with an atlas also the label maps that were registered.

    Raises
    ------
    InputError
        If a file cannot be used, grids differ, or the atlas cannot be registered.
    OutputError
        If the table cannot be written.

    Warns
    -----
    ChisepWarning
        If no voxel of a region is left.
    """
    mask = nifti.load_mask(config.mask)
    volumes, sigmas = (_named(texts, option, mask) for texts, option in _options(config))
    for name in (*sigmas, *config.referenced):
        if name not in volumes:
            raise _wrong("--sigma, --referenced", name, f"a name of --map: {', '.join(volumes)}")
    reliable = mask.data if config.reliable is None else _mask(config.reliable, mask)
    grid = nifti.grid_of(mask)
    found = [_segmentation(config, grid)] if config.labels else _atlases(config, mask, grid)
    volumes |= _less_reference(config, volumes, found[0].labels, mask)
    values = []
    for one in found:
        labels = _kept(one, config, mask.data)
        maps = [RegionMap(name, volume, mask.data, sigmas.get(name)) for name, volume in volumes.items()]
        weights = one.parts if config.partial_volume else None
        values += region_values(labels, one.image.names, maps, grid.voxel_mm, reliable, mask.data, weights)
    with output_directory(config.out.parent):
        written = [write_values(config.out, values)]
        write_json(config.out.with_suffix(".json"), values_dictionary(dict.fromkeys(volumes, "As given")))
        if config.labels is None:
            written += _write_labels(config.out, found, mask)
    return written


def _options(config: RegionsConfig) -> Iterator[tuple[Sequence[str], str]]:
    yield config.map, "--map"
    yield config.sigma, "--sigma"


def _named(texts: Sequence[str], option: str, mask: nifti.Image) -> dict[str, MapArray]:
    """Read maps that are given as NAME=FILE."""
    found = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not (separator and name and file) or name in found:
            raise _wrong(option, repr(text), "NAME=FILE, each name once")
        found[name] = _read(Path(file), mask)
    return found


def _read(path: Path, mask: nifti.Image) -> MapArray:
    image = nifti.load(path)
    nifti.require_same_grid(image, mask)
    return image.data


def _mask(path: Path, mask: nifti.Image) -> MaskArray:
    image = nifti.load_mask(path)
    nifti.require_same_grid(image, mask)
    return image.data


def _segmentation(config: RegionsConfig, grid: Grid) -> _Regions:
    if config.labels is None:
        raise ValueError("no segmentation")
    image = load_labels(config.labels, config.table)
    labels = resampled_labels(image, grid)
    if not (config.partial_volume or config.least_part):
        return _Regions(image, labels)
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.prod(edges) < 0.99 * np.prod(grid.voxel_mm):
        raise _wrong(
            "--labels",
            f"voxels of {' × '.join(f'{edge:.3g}' for edge in edges)} mm",
            "finer voxels than those of the maps, for partial volumes",
        )
    return _Regions(image, labels, _parts(image, labels, grid))


def _parts(image: LabelImage, labels: LabelArray, grid: Grid) -> MapArray:
    """Part of every voxel that has its label, by looking up 27 points in it."""
    offsets = (np.arange(_SUBDIVISION) + 0.5) / _SUBDIVISION - 0.5
    count = np.zeros(labels.shape, dtype=np.float32)
    for offset in itertools.product(offsets, repeat=3):
        affine = grid.matrix().copy()
        affine[:3, 3] += affine[:3, :3] @ np.array(offset)
        shifted = Grid(grid.shape, grid.voxel_mm, grid.b0_direction, affine)
        count += resampled_labels(image, shifted) == labels
    return count / _SUBDIVISION**3


def _atlases(config: RegionsConfig, mask: nifti.Image, grid: Grid) -> list[_Regions]:
    """Register the packaged atlas and CIT168."""
    if config.chi is None:
        raise ValueError("no map to register by")
    chi = _read(config.chi, mask)
    r2star = None if config.r2star is None else _read(config.r2star, mask)
    whole = registration(r2star, chi, mask.data, mask.data, grid)
    if whole.to_mni is None or whole.overlap < _LEAST_OVERLAP:
        raise InputError(
            config.chi,
            found=f"a brain that the atlas cannot be registered to (Dice {whole.overlap:.2f})",
            expected="χ in ppm and R2* in 1/s of a whole human brain",
            fix="Check units and mask, or give a segmentation (--labels).",
        )
    nuclei = nuclei_on_scan(r2star, chi, mask.data, mask.data, grid, whole.to_mni)
    names = LabelImage(nuclei, grid.matrix(), nucleus_names(), "CIT168")
    atlas = packaged_atlas()
    labels = labels_on_scan(atlas, whole, mask.data, grid)
    return [_Regions(atlas, labels), _Regions(names, nuclei)]


def _less_reference(
    config: RegionsConfig, volumes: Mapping[str, MapArray], labels: LabelArray, mask: nifti.Image
) -> dict[str, MapArray]:
    """Subtract the mean of the reference region."""
    if config.reference == "none":
        return {}
    if isinstance(config.reference, Path):
        region, name = _mask(config.reference, mask), config.reference.name
    else:
        region = mask.data if config.reference == "brain" else ventricles(labels, mask.data)
        name = config.reference
    return {
        key: referenced(volume, reference_of(volume, region, name).value_ppm, mask.data)
        for key, volume in volumes.items()
        if not config.referenced or key in config.referenced
    }


def _kept(one: _Regions, config: RegionsConfig, brain: MaskArray) -> LabelArray:
    """Labels in the brain, eroded, without voxels of too small a part."""
    labels = eroded(one.labels * brain, config.erode)
    if one.parts is not None:
        labels = np.where(one.parts >= config.least_part, labels, 0).astype(np.int32)
    gone = np.setdiff1d(one.labels[brain], labels)
    if gone.size:
        names = ", ".join(one.image.name(int(label)) for label in gone if label)
        warnings.warn(f"no voxel is left of: {names}", ChisepWarning, stacklevel=3)
    return labels


def eroded(labels: LabelArray, voxels: int) -> LabelArray:
    """Erode every region: a voxel stays where its six neighbours have its label.

    Parameters
    ----------
    labels
        Label of every voxel, 0 outside, shape (i, j, k).
    voxels
        Number of times.
    """
    cross = ndimage.generate_binary_structure(3, 1)
    for _ in range(voxels):
        low = ndimage.minimum_filter(labels, footprint=cross, mode="constant")
        high = ndimage.maximum_filter(labels, footprint=cross, mode="constant")
        labels = np.where(low == high, labels, 0).astype(np.int32)
    return labels


def _write_labels(out: Path, found: Sequence[_Regions], mask: nifti.Image) -> list[Path]:
    written = []
    for name, one in zip(("regions", "nuclei"), found, strict=True):
        path = out.with_name(f"{out.stem}_desc-{name}_dseg.nii.gz")
        inside = (one.labels * mask.data).astype(np.int32)
        written.append(nifti.save(path, inside, mask.affine, dtype=np.int32))
        write_names(path.with_suffix("").with_suffix(".tsv"), inside, one.image)
    return written
