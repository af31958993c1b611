"""Iron-rich nuclei: CIT168 registered to a scan by R2* and χ, with borders by their contrast.

The registration of the packaged atlas to the whole brain comes first (`chisep.regions.atlas`). Then follow a
deformable registration at 1 mm around the deep grey matter, whose template has the nuclei painted in by
published χ and R2*, and an atlas-based segmentation by expectation maximisation (Van Leemput 1999,
10.1109/42.811270): registered probabilities are the prior, and classes of tissue are Gaussian in R2* and χ.
No T1-weighted image is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import grid_sample

from chisep.physics.signal import default_relaxivity
from chisep.regions.atlas import CHI_SCALE_PPB, demons, itk_image, resampled
from chisep.regions.boxes import with_corner
from chisep.regions.cit168 import (
    CAUDATE,
    FIRST_LABEL,
    NUCLEI,
    PUTAMEN,
    atlas_affine,
    probability,
)
from chisep.simulation.labelmap import (
    BRAIN_STEM,
    CEREBRAL_WHITE,
    CSF,
    PALLIDUM,
    THALAMUS,
    VENTRAL_DC,
    box_of,
)
from chisep.simulation.packaged import packaged_labels
from chisep.simulation.tissue_properties import REGIONS
from chisep.types import Affine, Grid

if TYPE_CHECKING:
    import SimpleITK

MapArray = Float[np.ndarray, "i j k"]
"""One real map."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""
LabelArray = Int32[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""
_Name = TypeVar("_Name", int, str)
Contrasts = Float[np.ndarray, "contrast i j k"]
"""R2* relative to its median in the brain, if it is known, and χ relative to 40 ppb."""

_REPORTED = tuple(number for nucleus in NUCLEI for number in nucleus.numbers)
_PAINTED = (*_REPORTED, *PUTAMEN, *CAUDATE)
_TISSUE_OF = {
    **dict.fromkeys((9, 10), "outer pallidum"),
    **dict.fromkeys((11, 12), "inner pallidum"),
    **dict.fromkeys((13, 14, 17, 18), "substantia nigra"),
    **dict.fromkeys((15, 16), "red nucleus"),
    **dict.fromkeys((31, 32), "subthalamic nucleus"),
    **dict.fromkeys(PUTAMEN, "putamen"),
    **dict.fromkeys(CAUDATE, "caudate nucleus"),
}
"""Tissue whose published χ and R2* a structure of CIT168 has in the template."""
_WITH_NUCLEI: Mapping[str, tuple[int, ...]] = {
    **{f"pallidum {side}": (9 + side, 11 + side) for side in (0, 1)},
    **{f"midbrain nuclei {side}": (13 + side, 15 + side, 17 + side, 31 + side) for side in (0, 1)},
}
"""Classes of tissue: nuclei that contrast cannot tell apart. The atlas divides them."""
_CLASSES = {**_WITH_NUCLEI, "putamen": PUTAMEN, "caudate": CAUDATE}
_AROUND: Mapping[str, tuple[int, ...]] = {
    "fluid": (CSF, 4, 43, 5, 44, 14, 15, 72, 31, 63),
    "thalamus": THALAMUS,
    "midbrain": (*VENTRAL_DC, BRAIN_STEM),
    "grey": (3, 42, 17, 53, 18, 54, 26, 58),
    "white": CEREBRAL_WHITE,
}
"""Classes of tissue around them: labels of the packaged head. Voxels without a class count as white."""
_EDGE_MM, _MARGIN_MM = 1.0, 12.0
_LOW_MM, _HIGH_MM = (-64.0, -64.0, -50.0), (64.0, 56.0, 58.0)
"""Corners of the box of the template in MNI152 space: the nuclei and at least 20 mm around them."""
_LEAST_VARIANCE = 1e-6
_STEP = 2
"""Every how many voxels the nuclei are looked for."""


@dataclass(frozen=True)
class NucleiConfig:
    """Settings of the registration of nuclei."""

    demons: tuple[tuple[int, float, int], ...] = ((2, 2.0, 30), (1, 1.0, 20))
    """Shrinking, smoothing in mm, and iterations of the registration at 1 mm, coarse to fine."""
    prior_sd_mm: float = 0.7
    """Standard deviation of the registration's error, by which probabilities are smoothed."""
    iterations: int = 8
    """Iterations of expectation maximisation."""


@dataclass(frozen=True, eq=False)
class _Template:
    """Contrasts and probabilities in MNI152 space, in a box of the packaged head around the nuclei."""

    contrasts: Contrasts
    structures: Mapping[int, MapArray]
    """On the grid of CIT168 with a frame of zeros."""
    around: Mapping[str, MapArray]
    affine: Affine


def nuclei_on_scan(
    r2star_hz: MapArray | None,
    chi_ppm: MapArray,
    brain: MaskArray,
    chi_known: MaskArray,
    grid: Grid,
    to_mni: SimpleITK.Transform,
    config: NucleiConfig | None = None,
) -> LabelArray:
    """Register the nuclei of CIT168 to a scan; equal inputs give equal labels.

    Parameters
    ----------
    r2star_hz, chi_ppm
        R2* in 1/s, None where it is not known, and susceptibility in ppm, shape (i, j, k).
    brain, chi_known
        Brain mask, and voxels with known χ, shape (i, j, k).
    grid
        Grid of the scan.
    to_mni
        Registration of the whole brain, from `registration`.
    config
        Settings.

    Returns
    -------
    LabelArray
        `FIRST_LABEL` plus the number in CIT168 where a nucleus is the most probable tissue, 0 elsewhere;
        without any if the nuclei lie outside of the scan.
    """
    config = config or NucleiConfig()
    template = _template()
    labels = np.zeros(grid.shape, dtype=np.int32)
    box = _box(brain, grid, to_mni)
    if box is None:
        return labels
    contrasts = _contrasts(r2star_hz, 1000 * chi_ppm, brain, brain & chi_known)[(slice(None), *box)]
    local, inside = with_corner(grid.matrix(), box), brain[box]
    refined = _refined(contrasts, inside, local, template, to_mni, config)
    structures, around = _priors(template, inside.shape, local, refined, config)
    classes = {name: np.sum([structures[n] for n in members], axis=0) for name, members in _CLASSES.items()}
    posteriors = _segmented(contrasts, inside & chi_known[box], classes | around, config)
    labels[box] = _winners(structures, posteriors, inside)
    return labels


@cache
def _template() -> _Template:
    """Paint the nuclei into the packaged head, by their probabilities."""
    head = packaged_labels()
    d_r = default_relaxivity(3.0).pos_hz_per_ppm / 1000
    values = {
        region.name: (
            region.r2_hz + d_r * (region.chi_pos_ppb + region.chi_neg_ppb),
            region.chi_pos_ppb - region.chi_neg_ppb,
        )
        for region in REGIONS
    }
    tables = np.zeros((2, int(head.labels.max()) + 1), dtype=np.float32)
    known = np.zeros(tables.shape[1], dtype=np.bool_)
    for region in REGIONS:
        if region.brain or CSF in region.labels:
            numbers = [label for label in region.labels if label < tables.shape[1]]
            tables[:, numbers] = np.array(values[region.name])[:, None]
            known[numbers] = True
    everywhere, brain = tables[:, head.labels], known[head.labels]
    middle = np.median(everywhere[:, brain], axis=1)
    box = box_of(np.asarray(head.affine), head.labels.shape, _LOW_MM, _HIGH_MM)
    affine, labels = with_corner(head.affine, box), head.labels[box]
    rate, chi = everywhere[(slice(None), *box)]
    pallidum = np.isin(labels, PALLIDUM)  # that of CIT168 takes its place
    rate[pallidum], chi[pallidum] = values["cerebral white matter"]
    structures = {number: np.pad(probability(number), 1) for number in _PAINTED}
    inside = _place_in(_framed_affine(), affine, structures[_PAINTED[0]].shape)
    rest = np.ones_like(rate)
    for number, p in structures.items():
        value = values[_TISSUE_OF[number]]
        rate[inside] += p * (value[0] - rate[inside])
        chi[inside] += p * (value[1] - chi[inside])
        rest[inside] -= p
    rest = np.clip(rest, 0, 1)
    around = {name: rest * np.isin(labels, members) for name, members in _AROUND.items()}
    around["white"] = rest - np.sum([p for name, p in around.items() if name != "white"], axis=0)
    contrasts = np.stack([(chi - middle[1]) / CHI_SCALE_PPB, rate / middle[0]]) * brain[box]
    return _Template(contrasts.astype(np.float32), structures, around, affine)


def _framed_affine() -> Affine:
    """Affine of the structures of the template."""
    return with_corner(atlas_affine(), (slice(-1, None),) * 3)


def _place_in(affine: Affine, other: Affine, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Voxels of a grid that those of a smaller one with the same axes coincide with."""
    corner = np.rint(np.linalg.solve(other, affine)[:3, 3]).astype(int)
    return tuple(slice(int(start), int(start) + n) for start, n in zip(corner, shape, strict=True))


def _contrasts(
    r2star_hz: MapArray | None, chi_ppb: MapArray, brain: MaskArray, known: MaskArray
) -> Contrasts:
    """Contrasts of the registration, 0 outside the brain; χ is 0 where it is not known."""
    parts = [np.where(known, chi_ppb - np.median(chi_ppb[known]), 0) / CHI_SCALE_PPB]
    if r2star_hz is not None:
        parts.append(np.where(brain, r2star_hz, 0) / max(float(np.median(r2star_hz[brain])), 1e-6))
    return np.stack(parts).astype(np.float32)


def _box(brain: MaskArray, grid: Grid, to_mni: SimpleITK.Transform) -> tuple[slice, slice, slice] | None:
    """Voxels around the nuclei; None if they lie outside of the scan."""
    nuclei = np.sum([probability(number) for number in _PAINTED], axis=0)
    every = brain[::_STEP, ::_STEP, ::_STEP]
    coarse = grid.matrix() @ np.diag([_STEP, _STEP, _STEP, 1.0])
    moved = _pulled(nuclei, atlas_affine(), to_mni, every.shape, coarse)
    index = _STEP * np.argwhere((moved > 0.5) & every)
    if not len(index):
        return None
    margin = np.ceil(_MARGIN_MM / np.array(grid.voxel_mm)).astype(int)
    low = np.maximum(index.min(0) - margin, 0)
    high = np.minimum(index.max(0) + margin + 1, grid.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _refined(
    contrasts: Contrasts,
    brain: MaskArray,
    affine: Affine,
    template: _Template,
    to_mni: SimpleITK.Transform,
    config: NucleiConfig,
) -> SimpleITK.Transform:
    """Registration of the whole brain, followed by that of the box at 1 mm."""
    import SimpleITK

    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(n) for n in np.ceil(np.array(brain.shape) * edges / _EDGE_MM))
    cubes = affine @ np.diag([*(_EDGE_MM / edges), 1.0])
    scan = resampled(contrasts.sum(0), affine, shape, cubes)
    moving = _pulled(template.contrasts[: len(contrasts)].sum(0), template.affine, to_mni, shape, cubes)
    inside = resampled(brain.astype(np.float32), affine, shape, cubes) > 0.5
    fixed, moved = (itk_image(np.where(inside, each, 0), cubes) for each in (scan, moving))
    return SimpleITK.CompositeTransform([to_mni, demons(fixed, moved, config.demons)])


def _pulled(
    volume: np.ndarray, affine: Affine, to_mni: SimpleITK.Transform, shape: tuple[int, ...], grid: Affine
) -> np.ndarray:
    """Resample a map of the atlas to a grid of the scan, linearly."""
    import SimpleITK

    reference = itk_image(np.zeros(shape, dtype=np.uint8), grid)
    moved = SimpleITK.Resample(itk_image(volume, affine), reference, to_mni, SimpleITK.sitkLinear)
    return np.asarray(SimpleITK.GetArrayFromImage(moved).T)


def _points(shape: tuple[int, ...], affine: Affine, to_mni: SimpleITK.Transform) -> NDArray[np.float64]:
    """World points of the atlas, shape (i, j, k, 3), of the voxels of a grid of the scan."""
    import SimpleITK

    grid = itk_image(np.broadcast_to(np.uint8(0), shape), affine)
    method = SimpleITK.TransformToDisplacementFieldFilter()
    method.SetReferenceImage(grid)
    moved = SimpleITK.GetArrayFromImage(method.Execute(to_mni)).transpose(2, 1, 0, 3)
    here = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.asarray(here + moved * np.array([-1.0, -1.0, 1.0]))  # SimpleITK's axes point left and posterior


def _sampled(maps: Contrasts, affine: Affine, points: NDArray[np.float64]) -> Contrasts:
    """Interpolate maps linearly at world points; 0 outside."""
    last = np.array(maps.shape[:0:-1]) - 1.0
    index = nib.affines.apply_affine(np.linalg.inv(affine), points)[..., ::-1]
    where = torch.from_numpy((2 * index / last - 1).astype(np.float32))
    found = grid_sample(torch.from_numpy(maps)[None], where[None], padding_mode="zeros", align_corners=True)
    return np.asarray(found[0])


def _priors(
    template: _Template,
    shape: tuple[int, ...],
    affine: Affine,
    to_mni: SimpleITK.Transform,
    config: NucleiConfig,
) -> tuple[dict[int, MapArray], dict[str, MapArray]]:
    """Prior probabilities of structures, and of the classes around them; they add up to 1."""
    sd = config.prior_sd_mm / np.linalg.norm(affine[:3, :3], axis=0)

    points = _points(shape, affine, to_mni)

    def moved(maps: Mapping[_Name, MapArray], grid: Affine) -> dict[_Name, MapArray]:
        together = _sampled(np.stack([*maps.values()]), grid, points)
        return {name: ndimage.gaussian_filter(p, sd) for name, p in zip(maps, together, strict=True)}

    structures = moved(template.structures, _framed_affine())
    around = moved(template.around, template.affine)
    total = np.maximum(np.sum([*structures.values(), *around.values()], axis=0), 1e-6)
    return (
        {number: p / total for number, p in structures.items()},
        {name: p / total for name, p in around.items()},
    )


def _segmented(
    contrasts: Contrasts, known: MaskArray, priors: Mapping[str, MapArray], config: NucleiConfig
) -> dict[str, MapArray]:
    """Posterior probability of the tissues around the nuclei by expectation maximisation.

    All classes have one covariance: the border between two lies halfway between their means, where a voxel is
    half of each. Without contrast, posteriors are priors.
    """
    values = contrasts[:, known].astype(np.float64)
    squares = np.square(values)
    prior = np.stack([p[known] for p in priors.values()]).astype(np.float64)
    weight = prior
    for _ in range(config.iterations):
        mass = np.maximum(weight.sum(1), 1e-6)[:, None]
        means = weight @ values.T / mass
        # Of equal covariance: what depends on the voxel alone cancels.
        spread = np.maximum(np.median(weight @ squares.T / mass - means**2, axis=0), _LEAST_VARIANCE)
        weight = (means / spread) @ values
        weight -= 0.5 * (means**2 / spread).sum(1)[:, None]
        weight -= weight.max(0)
        np.exp(weight, out=weight)
        weight *= prior
        weight /= np.maximum(weight.sum(0), 1e-12)
    posteriors = {}
    for place, (name, p) in enumerate(priors.items()):
        if name not in _WITH_NUCLEI:
            posteriors[name] = p.copy()
            posteriors[name][known] = weight[place]
    return posteriors


def _winners(
    structures: Mapping[int, MapArray], posteriors: Mapping[str, MapArray], brain: MaskArray
) -> LabelArray:
    """Nuclei where their prior is above the posterior of all that surrounds them.

    A nucleus thus loses the voxels that look like its surroundings. It wins none by contrast alone, since
    veins look like iron.
    """
    nuclei = np.stack([structures[number] for number in _REPORTED])
    most = nuclei.max(0)
    here = brain & (most > np.max(list(posteriors.values()), axis=0)) & (most > 0)
    labels = np.zeros(brain.shape, dtype=np.int32)
    labels[here] = FIRST_LABEL + np.array(_REPORTED)[nuclei.argmax(0)[here]]
    return labels
