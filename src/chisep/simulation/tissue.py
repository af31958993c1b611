"""Tissue of a digital head: sources, relaxation and proton density from labels.

Regional χ_pos and χ_neg are means of the χ-separation atlas of 106 healthy brains (Min 2024,
10.1002/nbm.5226) where it lists the region; cortex, dentate nucleus and venous blood follow the values that
qsm-forward collects from the literature; regions that neither lists take those of the tissue they resemble.
T1 at 3 T follows Wansapura 1999 (JMRI 9:531) and Stanisz 2005 (10.1002/mrm.20605); R2 is scaled
so that a brain's mean comes near the 12.7 1/s published with χ-sepnet (Human Brain Mapping 2025), higher in
iron-rich nuclei. Susceptibility outside the brain is relative to soft tissue (Schenck 1996,
10.1118/1.597854).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int16
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.errors import InputError
from chisep.io.nifti import b0_direction_of
from chisep.physics.signal import default_relaxivity, r2prime_of_sources
from chisep.simulation import anatomy
from chisep.simulation.anatomy import LabelMap
from chisep.types import Grid, MaskVolume, Relaxivity, Volume

LabelVolume = Int16[Tensor, "i j k"]
"""One label per voxel."""
AIR_PPM = 9.4
"""χ of air relative to soft tissue."""
BONE_PPM = -2.0
"""χ of cortical bone relative to soft tissue."""

_R2_FIELD_EXPONENT = 0.6
"""R2 ∝ B0^0.6: grey matter's T2 of about 80 ms at 3 T and 50 ms at 7 T."""


@dataclass(frozen=True)
class Region:
    """What one kind of tissue is made of.

    Parameters
    ----------
    name
        Of the structure.
    labels
        Label numbers: (left, right), or those without a side.
    chi_pos_ppb, chi_neg_ppb
        Mean sources; χ_neg is a magnitude.
    r2_hz
        R2 at 3 T in 1/s.
    t1_s
        T1 at 3 T in seconds.
    m0
        Proton density relative to CSF.
    brain
        Whether the brain mask is drawn around it.
    chi_outside_ppm
        χ relative to soft tissue of what is not brain.
    """

    name: str
    labels: tuple[int, ...]
    chi_pos_ppb: float
    chi_neg_ppb: float
    r2_hz: float
    t1_s: float
    m0: float
    brain: bool = True
    chi_outside_ppm: float = 0.0

    def names(self) -> tuple[tuple[int, str], ...]:
        """Label numbers with their names, the side before the name where there are two sides."""
        if len(self.labels) != 2:
            return tuple((label, self.name) for label in self.labels)
        return tuple(
            (label, f"{side} {self.name}") for label, side in zip(self.labels, ("left", "right"), strict=True)
        )


REGIONS = (
    # name, labels, χ_pos and χ_neg in ppb, R2 in 1/s, T1 in s, M0
    Region("cerebral white matter", anatomy.CEREBRAL_WHITE, 17.0, 29.0, 14.5, 0.85, 0.70),
    Region("cerebral cortex", anatomy.CEREBRAL_CORTEX, 39.0, 19.0, 12.5, 1.35, 0.82),
    Region("cerebellar white matter", (7, 46), 17.0, 29.0, 13.5, 0.90, 0.72),
    Region("cerebellar cortex", (8, 47), 39.0, 19.0, 11.5, 1.35, 0.82),
    Region("lateral ventricle", (4, 43), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("inferior lateral ventricle", (5, 44), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("third ventricle", (14,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fourth ventricle", (15,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fifth ventricle", (72,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("choroid plexus", (31, 63), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the lateral ventricle", (136, 163), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the temporal horn", (137, 164), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("thalamus", (10, 49), 23.0, 21.0, 13.0, 1.15, 0.78),
    Region("pulvinar", anatomy.PULVINAR, 52.0, 4.0, 14.0, 1.15, 0.78),
    Region("caudate nucleus", (11, 50), 48.0, 8.0, 15.0, 1.25, 0.80),
    Region("putamen", (12, 51), 77.0, 10.0, 17.0, 1.15, 0.80),
    Region("pallidum", (13, 52), 132.0, 13.0, 23.0, 0.95, 0.74),
    Region("nucleus accumbens", (26, 58), 45.0, 23.0, 14.0, 1.25, 0.80),
    Region("hippocampus", (17, 53), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("amygdala", (18, 54), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("ventral diencephalon", anatomy.VENTRAL_DC, 30.0, 30.0, 14.0, 1.00, 0.75),
    Region("substantia nigra", anatomy.NIGRA, 116.0, 11.0, 21.0, 0.95, 0.74),
    Region("red nucleus", anatomy.RED_NUCLEUS, 112.0, 10.0, 19.5, 0.90, 0.74),
    Region("subthalamic nucleus", anatomy.SUBTHALAMIC, 112.0, 15.0, 19.5, 0.95, 0.74),
    Region("dentate nucleus", anatomy.DENTATE, 168.0, 16.0, 20.0, 1.00, 0.74),
    Region("brain stem", (anatomy.BRAIN_STEM,), 20.0, 32.0, 13.0, 1.00, 0.74),
    Region("cerebral peduncle", anatomy.PEDUNCLE, 23.0, 44.0, 13.5, 0.90, 0.72),
    Region("splenium of the corpus callosum", (anatomy.CALLOSUM_SPLENIUM,), 17.0, 42.0, 14.0, 0.80, 0.68),
    Region("body of the corpus callosum", (252, anatomy.CALLOSUM_BODY, 254), 15.0, 35.0, 14.0, 0.80, 0.68),
    Region("genu of the corpus callosum", (anatomy.CALLOSUM_GENU,), 18.0, 31.0, 14.5, 0.80, 0.68),
    Region("anterior limb of the internal capsule", anatomy.CAPSULE_ANTERIOR, 15.0, 41.0, 14.0, 0.85, 0.70),
    Region("posterior limb of the internal capsule", anatomy.CAPSULE_POSTERIOR, 8.0, 52.0, 12.5, 0.90, 0.71),
    Region("corona radiata", anatomy.CORONA_RADIATA, 14.0, 30.0, 13.0, 0.87, 0.70),
    Region("posterior thalamic radiation", anatomy.THALAMIC_RADIATION, 13.0, 41.0, 12.5, 0.85, 0.70),
    Region("superior longitudinal fasciculus", anatomy.LONGITUDINAL, 23.0, 33.0, 13.5, 0.85, 0.70),
    Region("white-matter lesion", (25, 57), 12.0, 12.0, 8.0, 1.40, 0.85),
    Region("white-matter hypointensity", (77,), 12.0, 15.0, 9.0, 1.30, 0.82),
    Region("perivascular space", (30, 62), 5.0, 5.0, 5.0, 2.0, 0.90),
    Region("optic chiasm", (85,), 15.0, 25.0, 12.0, 1.00, 0.75),
    Region("cerebrospinal fluid", (anatomy.CSF,), 0.0, 0.0, 0.9, 4.0, 1.00, brain=False),
    Region("vein", (anatomy.VEIN,), 190.0, 0.0, 28.0, 1.60, 0.80, brain=False),
    Region("artery", (502,), 0.0, 0.0, 7.0, 1.65, 0.80, brain=False),
    Region("skull", (anatomy.SKULL,), 0.0, 0.0, 200.0, 0.50, 0.06, brain=False, chi_outside_ppm=BONE_PPM),
    Region("cortical bone", (516,), 0.0, 0.0, 500.0, 0.40, 0.03, brain=False, chi_outside_ppm=BONE_PPM),
    # Marrow lies between thin plates of bone, so its mean χ is between bone's and fat's.
    Region("cancellous bone", (515,), 0.0, 0.0, 60.0, 0.40, 0.35, brain=False, chi_outside_ppm=BONE_PPM / 2),
    Region("soft tissue of the head", (anatomy.SOFT_TISSUE,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("other soft tissue", (507,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("eye", (506,), 0.0, 0.0, 3.0, 3.5, 0.98, brain=False),
    Region("rectus muscle", (508,), 0.0, 0.0, 28.0, 1.40, 0.78, brain=False),
    Region("mucosa", (509,), 0.0, 0.0, 12.0, 1.40, 0.85, brain=False),
    Region("skin", (511,), 0.0, 0.0, 30.0, 0.60, 0.60, brain=False),
    Region("spinal cord", (512,), 0.0, 0.0, 13.0, 0.95, 0.72, brain=False),
    Region("optic nerve", (530,), 0.0, 0.0, 12.0, 1.10, 0.75, brain=False),
    Region("air", (0,), 0.0, 0.0, 1000.0, 1.0, 0.0, brain=False, chi_outside_ppm=AIR_PPM),
)
"""Every label that has a meaning; what a map holds beyond them counts as cerebrospinal fluid."""

BRAIN_LABELS = tuple(label for region in REGIONS if region.brain for label in region.labels)
"""Labels of brain tissue and ventricles."""


@dataclass(frozen=True)
class TissueConfig:
    """How people and voxels differ from the regional means."""

    person_sd: float = 0.15
    """Standard deviation of a region's χ between people, relative to its mean; published: 0.06 to 0.25."""
    texture_sd: float = 0.3
    """Standard deviation of χ within a region, relative to its mean."""
    dr_pos_hz_per_ppm: float | None = None
    """D_r of paramagnetic sources in 1/s/ppm; 114·B0/3 if not given."""
    dr_neg_hz_per_ppm: float | None = None
    """D_r of diamagnetic sources in 1/s/ppm; 114·B0/3 if not given."""

    def __post_init__(self) -> None:
        for name in ("person_sd", "texture_sd"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(
                    name, found=f"{value}", wanted="a number from 0 to 1", remedy="Typical are 0.15 and 0.3."
                )

    def relaxivity(self, b0_t: float) -> Relaxivity:
        """D_r at a field strength.

        Raises
        ------
        InputError
            If a given D_r is not positive.
        """
        default = default_relaxivity(b0_t)
        return Relaxivity(
            default.pos_hz_per_ppm if self.dr_pos_hz_per_ppm is None else self.dr_pos_hz_per_ppm,
            default.neg_hz_per_ppm if self.dr_neg_hz_per_ppm is None else self.dr_neg_hz_per_ppm,
        )


@dataclass(frozen=True, eq=False)
class Tissue:
    """Maps of a digital head on one grid, each of shape (i, j, k).

    Parameters
    ----------
    grid
        Voxel size, affine and B0 direction.
    b0_t
        Field strength that the relaxation rates are for, in tesla.
    relaxivity
        D_r that made R2'.
    chi_pos_ppm, chi_neg_ppm
        Sources, ≥ 0, 0 outside the mask.
    r2_hz, r2prime_hz
        Relaxation rates in 1/s; R2' is 0 outside the mask.
    t1_s
        T1 in seconds.
    m0
        Proton density relative to CSF.
    mask
        True in the brain with its ventricles and sulci.
    labels
        Label in the centre of each voxel.
    chi_outside_ppm
        χ relative to soft tissue of what lies outside the mask: air, bone, blood of the sinuses; 0 inside.
    """

    grid: Grid
    b0_t: float
    relaxivity: Relaxivity
    chi_pos_ppm: Volume
    chi_neg_ppm: Volume
    r2_hz: Volume
    r2prime_hz: Volume
    t1_s: Volume
    m0: Volume
    mask: MaskVolume
    labels: LabelVolume
    chi_outside_ppm: Volume


def make_tissue(
    head: LabelMap,
    rng: np.random.Generator,
    config: TissueConfig,
    *,
    voxel_mm: tuple[float, float, float],
    b0_t: float,
) -> Tissue:
    """Fill a label map with tissue.

    Maps are made at the resolution of the labels and averaged over the wanted voxels, so that voxels at
    borders hold a part of each side.

    Parameters
    ----------
    head
        Labels.
    rng
        Draws regional means (between people) and texture (within regions).
    config
        How much these vary, and D_r.
    voxel_mm
        Voxel edges of the result.
    b0_t
        Field strength in tesla; R2 grows with B0^0.6, D_r with B0, T1 stays that of 3 T.

    Returns
    -------
    Tissue
        On a grid that covers the head from the same corner.
    """
    grid = _grid(head, voxel_mm)
    pooling = [
        _overlaps(n, edge, n_new, edge_new)
        for n, edge, n_new, edge_new in zip(
            head.labels.shape, head.voxel_mm, grid.shape, grid.voxel_mm, strict=True
        )
    ]
    tables = _tables(int(head.labels.max()), rng, config.person_sd)
    labels = torch.from_numpy(head.labels).int()

    def painted(column: str, texture_sd: float = 0.0) -> Tensor:
        volume = torch.from_numpy(tables[column])[labels]
        if texture_sd:
            volume *= (1 + texture_sd * _texture(head, rng)).clamp_(min=0)
        return volume

    inside = torch.from_numpy(anatomy.brain_mask(head, BRAIN_LABELS))
    mask = _pool(inside.float(), pooling) > 0.5
    chi_pos = painted("chi_pos", config.texture_sd)
    chi_neg = painted("chi_neg", config.texture_sd)
    outside = _pool((painted("chi_outside") + chi_pos - chi_neg) * ~inside, pooling) * ~mask
    chi_pos = _pool(chi_pos * inside, pooling) * mask
    chi_neg = _pool(chi_neg * inside, pooling) * mask
    relaxivity = config.relaxivity(b0_t)
    return Tissue(
        grid=grid,
        b0_t=b0_t,
        relaxivity=relaxivity,
        chi_pos_ppm=chi_pos,
        chi_neg_ppm=chi_neg,
        r2_hz=_pool(painted("r2", config.texture_sd / 5), pooling) * (b0_t / 3.0) ** _R2_FIELD_EXPONENT,
        r2prime_hz=r2prime_of_sources(chi_pos, chi_neg, relaxivity),
        t1_s=_pool(painted("t1"), pooling),
        m0=_pool(painted("m0", config.texture_sd / 10), pooling),
        mask=mask,
        labels=_nearest(torch.from_numpy(head.labels), pooling),
        chi_outside_ppm=outside,
    )


def _grid(head: LabelMap, voxel_mm: Sequence[float]) -> Grid:
    """Grid of other voxels over the same head, starting at the same corner."""
    size = np.array(head.labels.shape) * head.voxel_mm
    i, j, k = (max(1, math.ceil(length / edge - 1e-6)) for length, edge in zip(size, voxel_mm, strict=True))
    ratio = np.array(voxel_mm) / head.voxel_mm
    affine = head.affine.astype(np.float64)
    affine[:3, 3] += affine[:3, :3] @ ((ratio - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * ratio
    di, dj, dk = (float(edge) for edge in voxel_mm)
    return Grid((i, j, k), (di, dj, dk), b0_direction_of(affine), affine)


def _overlaps(n: int, edge_mm: float, n_new: int, edge_new_mm: float) -> Tensor:
    """Weights that average old voxels over new ones along one axis: how much of a new one lies in an old one.

    A volume that ends within the last new voxel is continued by its last value.
    """
    old = torch.arange(n + 1, dtype=torch.float64) * edge_mm
    old[-1] = max(float(old[-1]), n_new * edge_new_mm)
    new = torch.arange(n_new + 1, dtype=torch.float64) * edge_new_mm
    upper = torch.minimum(new[1:, None], old[None, 1:])
    lower = torch.maximum(new[:-1, None], old[None, :-1])
    return ((upper - lower).clamp(min=0) / edge_new_mm).float()


def _pool(volume: Tensor, pooling: Sequence[Tensor]) -> Tensor:
    """Average a volume over new voxels, one axis after the other."""
    along_i, along_j, along_k = pooling
    volume = torch.tensordot(volume, along_k.T, dims=1)
    volume = torch.matmul(along_j, volume)
    pooled: Tensor = torch.tensordot(along_i, volume, dims=1)
    return pooled


def _nearest(labels: Tensor, pooling: Sequence[Tensor]) -> Tensor:
    """Labels of the old voxels that the centres of the new ones lie in (or touch)."""
    i, j, k = (weights.cumsum(1).gt(0.5 - 1e-4).int().argmax(1) for weights in pooling)
    return labels[i][:, j][:, :, k].contiguous()


def _tables(highest: int, rng: np.random.Generator, person_sd: float) -> dict[str, NDArray[np.float32]]:
    """Value of every label for each parameter, of one person."""
    size = max(highest, *(max(region.labels) for region in REGIONS)) + 1
    columns = ("chi_pos", "chi_neg", "r2", "t1", "m0", "chi_outside")
    tables = {column: np.zeros(size, dtype=np.float32) for column in columns}
    known = np.zeros(size, dtype=np.bool_)
    for region in REGIONS:
        # Two sides of one person are alike, so one draw serves both.
        pos, neg, r2 = np.clip(1 + np.array([1, 1, 0.3]) * person_sd * rng.standard_normal(3), 0.2, None)
        values = (
            region.chi_pos_ppb * pos / 1000,
            region.chi_neg_ppb * neg / 1000,
            region.r2_hz * r2,
            region.t1_s,
            region.m0,
            region.chi_outside_ppm,
        )
        for column, value in zip(columns, values, strict=True):
            tables[column][list(region.labels)] = value
        known[list(region.labels)] = True
    for table in tables.values():
        table[~known] = table[anatomy.CSF]
    return tables


_TEXTURE_SIGMA_MM = (1.0, 3.0, 9.0)


def _texture(head: LabelMap, rng: np.random.Generator) -> Volume:
    """Random field of mean 0 and SD 1: noise smoothed at three scales, which weigh alike."""
    shape = head.labels.shape
    wide = [next_fast_len(n, real=axis == 2) for axis, n in enumerate(shape)]
    spectrum = torch.fft.rfftn(torch.from_numpy(rng.standard_normal(wide, dtype=np.float32)))
    transfer = torch.zeros(spectrum.shape)
    for sigma_mm in _TEXTURE_SIGMA_MM:
        axes, power = [], 1.0
        for axis, (n, edge) in enumerate(zip(wide, head.voxel_mm, strict=True)):
            full = torch.exp(-2 * (torch.pi * sigma_mm * torch.fft.fftfreq(n, d=edge)) ** 2)
            power *= float((full**2).mean())
            axes.append(full[: spectrum.shape[axis]])
        transfer += axes[0][:, None, None] * axes[1][:, None] * axes[2] / power**0.5
    i, j, k = shape
    field: Tensor = torch.fft.irfftn(spectrum * transfer, s=wide)[:i, :j, :k]
    return field / field.std()
