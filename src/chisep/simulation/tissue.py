"""Tissue of a digital phantom: maps of sources, relaxation and proton density from labels.

Iron follows age (`chisep.simulation.iron`). The torque on spinal cord gives an anisotropy of white matter of
13.6 to 19.2 ppb (van Gelderen 2015, Magnetic Resonance in Medicine, PMC4431960).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int16
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import InputError
from chisep.io.nifti import b0_direction_of
from chisep.physics.relaxation import r2_at_field_hz
from chisep.physics.signal import default_relaxivity, r2prime_of_sources
from chisep.simulation import labelmap
from chisep.simulation.iron import ATLAS_AGE_YEARS, IRON_CURVES, iron_of_age
from chisep.simulation.labelmap import LabelMap, Labels
from chisep.simulation.painting import Painter, VectorVolume
from chisep.simulation.sparse_texture import factor_of, sparse_texture
from chisep.simulation.tensor_field import COMPONENTS, Components, along_b0
from chisep.simulation.texture import layers, random_field, texture, with_mean_one
from chisep.simulation.tissue_properties import BRAIN_LABELS, REGIONS
from chisep.simulation.tracts import fibre_directions
from chisep.types import Grid, MaskVolume, Relaxivity, Volume

LabelVolume = Int16[Tensor, "i j k"]
"""One label per voxel."""


@dataclass(frozen=True)
class TissueConfig:
    """Variation of tissue between subjects and between voxels, around the regional means."""

    age_years: float = ATLAS_AGE_YEARS
    """Age in years, which determines the iron of grey and white matter."""
    person_sd: float = 0.1
    """Standard deviation of regional χ between subjects, relative to the mean; published: 0.06 to 0.25."""
    texture: Literal["gaussian", "sparse"] = "gaussian"
    """Texture: Gaussian random fields, or sparse: flat tissue with few strong structures, as real χ is."""
    texture_sd: float = 0.55
    """Texture: SD in white matter of the logarithm of χ_pos, shared by χ_neg; less in nuclei."""
    opposed_sd: float = 0.22
    """The same of a texture with opposite sign in χ_pos and χ_neg."""
    layered: bool = True
    """Whether χ varies with depth in the cortex and below it, and within nuclei."""
    refine_mm: float = 0.5
    """Largest edge of refined label voxels in mm, but not below a quarter of the voxel of the scan."""
    orientation_effect: bool = False
    """Whether D_r,neg in white matter is 3/2·sin²θ times its value, θ between fibres and B0."""
    anisotropy_ppb: float = 0.0
    """Anisotropy: χ along minus χ across fibres in white matter; 14 to 19 by torque (van Gelderen 2015)."""
    microstructure_ppb: float = 0.0
    """Non-dipolar field shift of white matter by its microstructure: minus this value times sin²θ; near 6."""
    dr_variation: float = 0.0
    """SD of both D_r relative to their mean: half of the variance between tissues, half within; near 0.2."""
    vein_flow_rad: float = 0.0
    """Flow: phase per echo in a vein of 1 mm radius along the readout, growing with radius; near 0.3."""
    dr_pos_hz_per_ppm: float | None = None
    """D_r of paramagnetic sources in 1/s/ppm; 114·B0/3 if not given."""
    dr_neg_hz_per_ppm: float | None = None
    """D_r of diamagnetic sources in 1/s/ppm; 114·B0/3 if not given. A mean over fibre directions."""

    def __post_init__(self) -> None:
        for name, low, high, typical in (
            ("age_years", 5.0, 100.0, "40"),
            ("person_sd", 0.0, 1.0, "0.1"),
            ("texture_sd", 0.0, 1.0, "0.55"),
            ("opposed_sd", 0.0, 1.0, "0.22"),
            ("refine_mm", 0.25, math.inf, "0.5; inf leaves labels as they are"),
            ("anisotropy_ppb", 0.0, 100.0, "16"),
            ("microstructure_ppb", 0.0, 50.0, "6"),
            ("dr_variation", 0.0, 0.5, "0.2"),
            ("vein_flow_rad", 0.0, 3.0, "0.3"),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    name,
                    found=f"{value}",
                    expected=f"a number from {low:g} to {high:g}",
                    fix=f"Typical is {typical}.",
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
    """Maps of a digital phantom on one grid, each of shape (i, j, k).

    Parameters
    ----------
    grid
        Voxel size, affine and B0 direction.
    b0_t
        Field strength that the relaxation rates are for, in tesla.
    relaxivity
        D_r of the simulated R2'.
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
    fibre_angle_rad
        Angle between fibres and B0 from 0 to π/2 in the mask, 0 outside; None where no fibres are known.
    anisotropy_ppm
        Trace-free part of the susceptibility tensor in voxel axes: xx, yy, zz, xy, xz, yz, shape
        (6, i, j, k); None where χ is isotropic.
    microstructure_ppm
        Tensor whose part across B0 is minus the field shift by microstructure; None without this shift.
    flow_rad
        Phase per echo by flow along each voxel axis, shape (3, i, j, k); None without flow.
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
    fibre_angle_rad: Volume | None = None
    anisotropy_ppm: Components | None = None
    microstructure_ppm: Components | None = None
    flow_rad: VectorVolume | None = None

    @property
    def chi_ppm(self) -> Volume:
        """Compute χ_pos − χ_neg plus the anisotropic part along B0."""
        chi = self.chi_pos_ppm - self.chi_neg_ppm
        return chi if self.anisotropy_ppm is None else chi + along_b0(self.anisotropy_ppm, self.grid)


# Long because a Tissue has thirteen maps, all from one painter.
def make_tissue(
    head: LabelMap,
    rng: np.random.Generator,
    config: TissueConfig,
    *,
    voxel_mm: tuple[float, float, float],
    b0_t: float,
) -> Tissue:
    """Simulate tissue maps from a label map.

    In the brain, labels are refined to half a millimetre, painted there and averaged over the voxels of
    the scan, so that voxels at borders have partial volumes and the sum of sources is preserved.

    Parameters
    ----------
    head
        Labels.
    rng
        Draws regional means (between people), texture (within regions) and fibre directions.
    config
        Size of these variations, age, and D_r.
    voxel_mm
        Voxel edges of the result.
    b0_t
        Field strength in tesla; R2 grows as `r2_at_field_hz` has it, D_r with B0, T1 stays that of 3 T.

    Returns
    -------
    Tissue
        On a grid that covers the head from the same corner.
    """
    grid = _grid(head, voxel_mm)
    person_rng, texture_rng, fibre_rng, dr_rng = rng.spawn(4)
    inside = labelmap.brain_mask(head, BRAIN_LABELS)
    painter = Painter(head, grid, inside, _tables(head.labels, person_rng, config), config.refine_mm)
    directions = _fibre_directions(painter, head.voxel_mm, fibre_rng)
    factors = _factors(painter, head.voxel_mm, directions, config, texture_rng)
    relaxivity = config.relaxivity(b0_t)
    mask = painter.mask
    pos, neg = painter.paint("chi_pos", factors["chi_pos"]), painter.paint("chi_neg", factors["chi_neg"])
    effects = _relaxivity_factors(painter.labels, head.voxel_mm, config.dr_variation, dr_rng)
    angle, anisotropy, microstructure = None, None, None
    if directions is not None:
        white = torch.from_numpy(np.isin(painter.labels, labelmap.WHITE_MATTER))
        along = torch.einsum("cijk,c->ijk", directions, torch.tensor(grid.b0_direction)).square_()
        angle = torch.arccos(painter.average(along).clamp_(0, 1).sqrt()) * mask
        if config.orientation_effect:
            # The mean of sin² over all directions is 2/3.
            effect = torch.where(white, 1.5 * (1 - along), 1.0)
            effects["chi_neg"] = effects.get("chi_neg", 1.0) * effect
        if config.anisotropy_ppb:
            anisotropy = _fibre_tensor(painter, directions, white, isotropic=1 / 3)
            anisotropy.mul_(config.anisotropy_ppb * 1e-3)
        if config.microstructure_ppb:
            microstructure = _fibre_tensor(painter, directions, white, isotropic=0.0)
            microstructure.mul_(config.microstructure_ppb * 1e-3)
    dephasing = {
        name: painter.paint(name, factors[name] * effects[name]) if name in effects else painted
        for name, painted in (("chi_pos", pos), ("chi_neg", neg))
    }
    return Tissue(
        grid=grid,
        b0_t=b0_t,
        relaxivity=relaxivity,
        chi_pos_ppm=pos * mask,
        chi_neg_ppm=neg * mask,
        r2_hz=r2_at_field_hz(painter.paint("r2", factors["r2"]), b0_t),
        r2prime_hz=r2prime_of_sources(dephasing["chi_pos"], dephasing["chi_neg"], relaxivity) * mask,
        t1_s=painter.paint("t1"),
        m0=painter.paint("m0", factors["m0"]),
        mask=mask,
        labels=_nearest(torch.from_numpy(head.labels), painter.whole),
        chi_outside_ppm=(painter.paint("chi_outside") + pos - neg) * ~mask,
        fibre_angle_rad=angle,
        anisotropy_ppm=anisotropy,
        microstructure_ppm=microstructure,
        flow_rad=painter.flow(config.vein_flow_rad) if config.vein_flow_rad else None,
    )


def _fibre_directions(painter: Painter, voxel_mm: Sequence[float], rng: np.random.Generator) -> Tensor | None:
    """Fibre directions in the box of the brain; None for a head without a transform to MNI space."""
    if painter.to_mni is None:
        return None
    return torch.from_numpy(fibre_directions(painter.labels, painter.to_mni, voxel_mm, rng))


def _fibre_tensor(painter: Painter, directions: Tensor, white: Tensor, *, isotropic: float) -> Components:
    """Tensor d dᵀ − isotropic·1 of white matter with fibres along d, averaged over the voxels."""
    products = ((directions[a] * directions[b] - float(a == b) * isotropic) * white for a, b in COMPONENTS)
    return torch.stack([painter.average(product) * painter.mask for product in products])


def _relaxivity_factors(
    labels: Labels, voxel_mm: Sequence[float], sd: float, rng: np.random.Generator
) -> dict[str, Volume]:
    """Draw factors of D_r of each source, of mean 1: log-normal between tissues, and smooth within them."""
    if not sd:
        return {}
    spread = math.sqrt(math.log1p(sd**2) / 2)
    numbers, compact = np.unique(labels, return_inverse=True)
    factors = {}
    for name in ("chi_pos", "chi_neg"):
        level = torch.from_numpy(rng.standard_normal(len(numbers), dtype=np.float32))
        between = level[torch.from_numpy(compact.reshape(-1))].reshape(labels.shape)
        within = random_field(labels.shape, voxel_mm, [(_DR_SMOOTH_MM,) * 3], (1.0,), rng)
        factors[name] = torch.exp(spread * (between + within) - spread**2)
    return factors


def _factors(
    painter: Painter,
    voxel_mm: Sequence[float],
    directions: Tensor | None,
    config: TissueConfig,
    rng: np.random.Generator,
) -> dict[str, Volume]:
    """Draw the inhomogeneity of sources, R2 and proton density, each of mean 1 in every label."""
    labels = painter.labels
    if config.texture == "sparse":
        sds = (config.texture_sd, config.opposed_sd)
        common, opposed = sparse_texture(labels, voxel_mm, directions, sds, rng)
    else:
        common, opposed = _gaussian_texture(labels, voxel_mm, directions, config, rng)
    logarithms = {"chi_pos": common + opposed, "chi_neg": _MYELIN_GAIN * common - opposed}
    exponential = factor_of if config.texture == "sparse" else torch.exp
    factors = {name: exponential(logarithm) for name, logarithm in logarithms.items()}
    if config.layered:
        by_depth = layers(labels, voxel_mm, painter.to_mni)
        for name, factor in zip(factors, by_depth, strict=True):
            factors[name] *= factor
    factors = {name: with_mean_one(factor, labels) for name, factor in factors.items()}
    # Where there is more iron and myelin, there is less free water.
    factors["r2"] = with_mean_one(torch.exp(0.15 * common), labels)
    factors["m0"] = with_mean_one(torch.exp(-0.05 * common), labels)
    return factors


def _gaussian_texture(
    labels: Labels,
    voxel_mm: Sequence[float],
    directions: Tensor | None,
    config: TissueConfig,
    rng: np.random.Generator,
) -> tuple[Volume, Volume]:
    """Draw Gaussian texture: logarithms of factors, shared by both sources and opposed in them."""
    common_rng, opposed_rng = rng.spawn(2)
    common, opposed = torch.zeros(labels.shape), torch.zeros(labels.shape)
    if config.texture_sd:
        common = config.texture_sd * texture(labels, voxel_mm, directions, common_rng)
        common *= torch.from_numpy(_texture_gain(labels))
    if config.opposed_sd:
        sigmas = [(s,) * 3 for s in _OPPOSED_SCALES_MM]
        opposed = config.opposed_sd * random_field(labels.shape, voxel_mm, sigmas, (1.0, 1.0), opposed_rng)
    return common, opposed


_DR_SMOOTH_MM = 8.0
"""Smoothness of D_r within a tissue."""
_OPPOSED_SCALES_MM = (2.0, 8.0)
_MYELIN_GAIN = 1.25
"""Texture of χ_neg relative to that of χ_pos: of the two, myelin differs more from bundle to bundle."""
_DEEP_GREY_GAIN, _CORTEX_GAIN = 0.5, 0.8
"""Texture relative to white matter's: nuclei are more uniform, the cortex has its layers."""


def _texture_gain(labels: Labels) -> NDArray[np.float32]:
    """Strength of texture in a voxel relative to white matter."""
    gain = np.ones(labels.shape, dtype=np.float32)
    gain[np.isin(labels, labelmap.DEEP_GREY)] = _DEEP_GREY_GAIN
    gain[np.isin(labels, (*labelmap.CEREBRAL_CORTEX, *labelmap.CEREBELLAR_CORTEX))] = _CORTEX_GAIN
    return gain


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


def _nearest(labels: Tensor, pooling: Sequence[Tensor]) -> Tensor:
    """Labels of the old voxels that the centres of the new ones lie in (or touch)."""
    i, j, k = (weights.cumsum(1).gt(0.5 - 1e-4).int().argmax(1) for weights in pooling)
    return labels[i][:, j][:, :, k].contiguous()


def _tables(labels: Labels, rng: np.random.Generator, config: TissueConfig) -> dict[str, NDArray[np.float32]]:
    """Draw the value of every label for each parameter, of one subject."""
    size = max(int(labels.max()), *(max(region.labels) for region in REGIONS)) + 1
    columns = ("chi_pos", "chi_neg", "r2", "t1", "m0", "chi_outside")
    tables = {column: np.zeros(size, dtype=np.float32) for column in columns}
    known = np.zeros(size, dtype=np.bool_)
    iron = np.ones(size)
    for curve, followers in IRON_CURVES.items():
        iron[list(followers)] = iron_of_age(curve, config.age_years)
    for region in REGIONS:
        # Both sides of a subject have the same value.
        sd = np.array([1, 1, 0.3]) * config.person_sd
        pos, neg, r2 = np.clip(1 + sd * rng.standard_normal(3), 0.2, None)
        numbers = list(region.labels)
        values = (
            region.chi_pos_ppb * pos / 1000 * iron[numbers],
            region.chi_neg_ppb * neg / 1000,
            region.r2_hz * r2,
            region.t1_s,
            region.m0,
            region.chi_outside_ppm,
        )
        for column, value in zip(columns, values, strict=True):
            tables[column][numbers] = value
        known[numbers] = True
    for table in tables.values():
        table[~known] = table[labelmap.CSF]
    return tables
