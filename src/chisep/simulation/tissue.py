"""Tissue of a digital head: sources, relaxation and proton density from labels.

Regional χ_pos and χ_neg are means of the χ-separation atlas of 106 healthy brains (Min 2024,
10.1002/nbm.5226) where it lists the region; cortex, dentate nucleus and venous blood follow the values that
qsm-forward collects from the literature; regions that neither lists take those of the tissue they resemble.
T1 at 3 T follows Wansapura 1999 (JMRI 9:531) and Stanisz 2005 (10.1002/mrm.20605); R2 is scaled
so that a brain's mean comes near the 12.7 1/s published with χ-sepnet (Human Brain Mapping 2025), higher in
iron-rich nuclei. Susceptibility outside the brain is relative to soft tissue (Schenck 1996,
10.1118/1.597854). Iron follows age as Hallgren and Sourander measured it (1958,
10.1111/j.1471-4159.1958.tb12607.x). The torque on spinal cord gives an anisotropy of white matter of 13.6 to
19.2 ppb (van Gelderen 2015, Magnetic Resonance in Medicine, PMC4431960).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int16
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from chisep.errors import InputError
from chisep.io.nifti import b0_direction_of
from chisep.physics.relaxation import r2_at_field_hz
from chisep.physics.signal import default_relaxivity, r2prime_of_sources
from chisep.simulation import labelmap
from chisep.simulation.labelmap import LabelMap, Labels
from chisep.simulation.refine import NewVolume, overlaps, pool, refined, upsampled
from chisep.simulation.texture import layers, random_field, texture, with_mean_one
from chisep.simulation.tracts import fibre_directions
from chisep.simulation.vessels import vein_fraction
from chisep.types import Grid, MaskVolume, Relaxivity, Volume

LabelVolume = Int16[Tensor, "i j k"]
"""One label per voxel."""
Components = Float[Tensor, "6 i j k"]
"""Components of a symmetric tensor in each voxel."""
AIR_PPM = 9.4
"""χ of air relative to soft tissue."""
BONE_PPM = -2.0
"""χ of cortical bone relative to soft tissue."""

_COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


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
    Region("cerebral white matter", labelmap.CEREBRAL_WHITE, 15.5, 28.5, 14.5, 0.85, 0.70),
    Region("cerebral cortex", labelmap.CEREBRAL_CORTEX, 37.0, 20.0, 12.5, 1.35, 0.82),
    Region("cerebellar white matter", (7, 46), 17.0, 29.0, 13.5, 0.90, 0.72),
    Region("cerebellar cortex", (8, 47), 39.0, 21.0, 11.5, 1.35, 0.82),
    Region("lateral ventricle", (4, 43), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("inferior lateral ventricle", (5, 44), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("third ventricle", (14,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fourth ventricle", (15,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fifth ventricle", (72,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("choroid plexus", (31, 63), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the lateral ventricle", (136, 163), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the temporal horn", (137, 164), 20.0, 10.0, 5.0, 2.0, 0.95),
    # Without the pulvinar; with it the mean is the atlas' 23/21.
    Region("thalamus", labelmap.THALAMUS, 15.0, 26.0, 13.0, 1.15, 0.78),
    Region("pulvinar", labelmap.PULVINAR, 52.0, 4.0, 14.0, 1.15, 0.78),
    Region("caudate nucleus", (11, 50), 48.0, 8.0, 15.0, 1.25, 0.80),
    Region("putamen", (12, 51), 77.0, 10.0, 17.0, 1.15, 0.80),
    # The atlas has one value for the pallidum (132/13): the outer segment holds more iron than the inner.
    Region("outer pallidum", labelmap.PALLIDUM, 138.0, 11.0, 23.0, 0.95, 0.74),
    Region("inner pallidum", labelmap.PALLIDUM_INTERNUM, 123.0, 16.0, 22.0, 0.95, 0.74),
    Region("nucleus accumbens", (26, 58), 45.0, 23.0, 14.0, 1.25, 0.80),
    Region("hippocampus", (17, 53), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("amygdala", (18, 54), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("ventral diencephalon", labelmap.VENTRAL_DC, 30.0, 30.0, 14.0, 1.00, 0.75),
    Region("substantia nigra", labelmap.NIGRA, 117.0, 9.0, 21.0, 0.95, 0.74),
    Region("red nucleus", labelmap.RED_NUCLEUS, 121.0, 8.0, 19.5, 0.90, 0.74),
    Region("subthalamic nucleus", labelmap.SUBTHALAMIC, 127.0, 13.0, 19.5, 0.95, 0.74),
    Region("dentate nucleus", labelmap.DENTATE, 187.0, 13.0, 20.0, 1.00, 0.74),
    Region("brain stem", (labelmap.BRAIN_STEM,), 20.0, 32.0, 13.0, 1.00, 0.74),
    Region("cerebral peduncle", labelmap.PEDUNCLE, 23.0, 44.0, 13.5, 0.90, 0.72),
    Region("splenium of the corpus callosum", (labelmap.CALLOSUM_SPLENIUM,), 13.0, 42.0, 14.0, 0.80, 0.68),
    Region("body of the corpus callosum", (252, labelmap.CALLOSUM_BODY, 254), 15.0, 36.0, 14.0, 0.80, 0.68),
    Region("genu of the corpus callosum", (labelmap.CALLOSUM_GENU,), 16.5, 31.0, 14.5, 0.80, 0.68),
    Region("anterior limb of the internal capsule", labelmap.CAPSULE_ANTERIOR, 11.5, 45.0, 14.0, 0.85, 0.70),
    Region("posterior limb of the internal capsule", labelmap.CAPSULE_POSTERIOR, 6.0, 49.5, 12.5, 0.90, 0.71),
    Region("corona radiata", labelmap.CORONA_RADIATA, 11.0, 26.5, 13.0, 0.87, 0.70),
    Region("posterior thalamic radiation", labelmap.THALAMIC_RADIATION, 10.5, 40.0, 12.5, 0.85, 0.70),
    Region("superior longitudinal fasciculus", labelmap.LONGITUDINAL, 23.0, 33.0, 13.5, 0.85, 0.70),
    Region("cingulum", labelmap.CINGULUM, 17.0, 36.0, 13.5, 0.85, 0.70),
    Region("corticospinal tract of the brain stem", labelmap.CORTICOSPINAL, 18.0, 46.0, 12.5, 0.95, 0.73),
    Region("calcified pineal gland", (labelmap.PINEAL,), 20.0, 450.0, 40.0, 1.00, 0.50),
    Region("white-matter lesion", (25, 57), 12.0, 12.0, 8.0, 1.40, 0.85),
    Region("white-matter hypointensity", (77,), 12.0, 15.0, 9.0, 1.30, 0.82),
    Region("perivascular space", (30, 62), 5.0, 5.0, 5.0, 2.0, 0.90),
    Region("optic chiasm", (85,), 15.0, 25.0, 12.0, 1.00, 0.75),
    Region("cerebrospinal fluid", (labelmap.CSF,), 0.0, 0.0, 0.9, 4.0, 1.00, brain=False),
    Region("vein", (labelmap.VEIN,), 270.0, 0.0, 28.0, 1.60, 0.80, brain=False),
    Region("artery", (502,), 0.0, 0.0, 7.0, 1.65, 0.80, brain=False),
    Region("skull", (labelmap.SKULL,), 0.0, 0.0, 200.0, 0.50, 0.06, brain=False, chi_outside_ppm=BONE_PPM),
    Region("cortical bone", (516,), 0.0, 0.0, 500.0, 0.40, 0.03, brain=False, chi_outside_ppm=BONE_PPM),
    # Marrow lies between thin plates of bone, so its mean χ is between bone's and fat's.
    Region("cancellous bone", (515,), 0.0, 0.0, 60.0, 0.40, 0.35, brain=False, chi_outside_ppm=BONE_PPM / 2),
    Region("soft tissue of the head", (labelmap.SOFT_TISSUE,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("other soft tissue", (507,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("eye", (506,), 0.0, 0.0, 3.0, 3.5, 0.98, brain=False),
    Region("rectus muscle", (508,), 0.0, 0.0, 28.0, 1.40, 0.78, brain=False),
    Region("mucosa", (509,), 0.0, 0.0, 12.0, 1.40, 0.85, brain=False),
    Region("skin", (511,), 0.0, 0.0, 30.0, 0.60, 0.60, brain=False),
    Region("spinal cord", (512,), 0.0, 0.0, 13.0, 0.95, 0.72, brain=False),
    Region("optic nerve", (530,), 0.0, 0.0, 12.0, 1.10, 0.75, brain=False),
    Region("air", (0,), 0.0, 0.0, 1000.0, 1.0, 0.0, brain=False, chi_outside_ppm=AIR_PPM),
)
"""Every label that has a meaning; what a map holds beyond them counts as cerebrospinal fluid.

Values are those of pure tissue: means over a label's voxels of 1 mm, which hold veins and a part of their
neighbours, come to the published means.
"""

BRAIN_LABELS = tuple(label for region in REGIONS if region.brain for label in region.labels)
"""Labels of brain tissue and ventricles."""


_IRON_MG = {
    "pallidum": (21.41, 0.09, 0.37),
    "putamen": (14.62, 0.04, 0.46),
    "caudate": (9.66, 0.05, 0.33),
    "white": (3.95, 0.10, 0.31),
}
"""Iron in mg per 100 g of fresh tissue is a (1 − exp(−b age)) + c: a, b and c (Hallgren and Sourander)."""
_IRON_CURVES: dict[str, tuple[int, ...]] = {
    # The paper has no curve of age for the nuclei of midbrain and cerebellum: theirs is the pallidum's.
    "pallidum": (
        *labelmap.PALLIDUM,
        *labelmap.PALLIDUM_INTERNUM,
        *labelmap.NIGRA,
        *labelmap.RED_NUCLEUS,
        *labelmap.SUBTHALAMIC,
        *labelmap.DENTATE,
    ),
    # Cortex, hippocampus, amygdala: late and slow, as the putamen.
    "putamen": (
        *labelmap.PUTAMEN,
        *labelmap.CEREBRAL_CORTEX,
        *labelmap.CEREBELLAR_CORTEX,
        *(17, 53, 18, 54, 26, 58),
    ),
    "caudate": labelmap.CAUDATE,
    "white": labelmap.WHITE_MATTER,
}
"""Which curve the iron of a label follows; what is not here (thalamus, fluids, blood) has no age."""
ATLAS_AGE_YEARS = 40.0
"""Age at which regional means are the atlas': taken as the middle of its healthy adults."""


def iron_of_age(curve: str, age_years: float) -> float:
    """Iron at an age relative to that at the atlas' age (Hallgren and Sourander 1958)."""
    rise, rate, start = _IRON_MG[curve]
    now, then = (rise * (1 - math.exp(-rate * age)) + start for age in (age_years, ATLAS_AGE_YEARS))
    return now / then


@dataclass(frozen=True)
class TissueConfig:
    """How people and voxels differ from the regional means."""

    age_years: float = ATLAS_AGE_YEARS
    """Age: sets the iron of grey and white matter."""
    person_sd: float = 0.1
    """Standard deviation of a region's χ between people, relative to its mean; published: 0.06 to 0.25."""
    texture_sd: float = 0.55
    """Standard deviation in white matter of the logarithm of χ_pos, shared by χ_neg; nuclei have half."""
    opposed_sd: float = 0.22
    """The same of what raises the one and lowers the other."""
    layered: bool = True
    """Whether χ follows depth in the cortex and below it, and gradients within nuclei."""
    refine_mm: float = 0.5
    """Labels are divided into voxels of this size or less, but not below a quarter of the scan's voxel."""
    orientation_effect: bool = False
    """Whether D_r,neg in white matter is 3/2·sin²θ times its value, θ between fibres and B0."""
    anisotropy_ppb: float = 0.0
    """χ along fibres less χ across them in white matter; 14 to 19 by torque (van Gelderen 2015)."""
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
    fibre_angle_rad
        Angle between fibres and B0 from 0 to π/2 in the mask, 0 outside; None where no fibres are known.
    anisotropy_ppm
        Trace-free part of the susceptibility tensor in voxel axes: xx, yy, zz, xy, xz, yz, shape
        (6, i, j, k); None where χ is isotropic.
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

    @property
    def chi_ppm(self) -> Volume:
        """χ_pos − χ_neg, and what anisotropy adds to it as B0 sees it from its direction."""
        chi = self.chi_pos_ppm - self.chi_neg_ppm
        if self.anisotropy_ppm is not None:
            b0 = self.grid.b0_direction
            for (a, b), component in zip(_COMPONENTS, self.anisotropy_ppm, strict=True):
                chi += component * (b0[a] * b0[b] * (1.0 if a == b else 2.0))
        return chi


def make_tissue(
    head: LabelMap,
    rng: np.random.Generator,
    config: TissueConfig,
    *,
    voxel_mm: tuple[float, float, float],
    b0_t: float,
) -> Tissue:
    """Fill a label map with tissue.

    In the brain, labels are refined to half a millimetre, painted there and averaged over the wanted voxels,
    so that voxels at borders hold a part of each side and no source is lost.

    Parameters
    ----------
    head
        Labels.
    rng
        Draws regional means (between people), texture (within regions) and fibre directions.
    config
        How much these vary, age, and D_r.
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
    person_rng, texture_rng, fibre_rng = rng.spawn(3)
    inside = labelmap.brain_mask(head, BRAIN_LABELS)
    painter = _Painter(head, grid, inside, _tables(head.labels, person_rng, config), config.refine_mm)
    directions = None
    if painter.to_mni is not None:
        directions = torch.from_numpy(
            fibre_directions(painter.labels, painter.to_mni, head.voxel_mm, fibre_rng)
        )
    factors = _factors(painter, head.voxel_mm, directions, config, texture_rng)
    relaxivity = config.relaxivity(b0_t)
    mask = painter.mask
    pos, neg = painter.paint("chi_pos", factors["chi_pos"]), painter.paint("chi_neg", factors["chi_neg"])
    dephasing_neg, angle, anisotropy = neg, None, None
    if directions is not None:
        white = torch.from_numpy(np.isin(painter.labels, labelmap.WHITE_MATTER))
        along = torch.einsum("cijk,c->ijk", directions, torch.tensor(grid.b0_direction)).square_()
        angle = torch.arccos(painter.average(along).clamp_(0, 1).sqrt()) * mask
        if config.orientation_effect:
            # The mean of sin² over all directions is 2/3.
            effect = torch.where(white, 1.5 * (1 - along), 1.0)
            dephasing_neg = painter.paint("chi_neg", factors["chi_neg"] * effect)
        if config.anisotropy_ppb:
            products = ((directions[a] * directions[b] - float(a == b) / 3) * white for a, b in _COMPONENTS)
            parts = [painter.average(product) * mask for product in products]
            anisotropy = torch.stack(parts).mul_(config.anisotropy_ppb * 1e-3)
    return Tissue(
        grid=grid,
        b0_t=b0_t,
        relaxivity=relaxivity,
        chi_pos_ppm=pos * mask,
        chi_neg_ppm=neg * mask,
        r2_hz=r2_at_field_hz(painter.paint("r2", factors["r2"]), b0_t),
        r2prime_hz=r2prime_of_sources(pos, dephasing_neg, relaxivity) * mask,
        t1_s=painter.paint("t1"),
        m0=painter.paint("m0", factors["m0"]),
        mask=mask,
        labels=_nearest(torch.from_numpy(head.labels), painter.whole),
        chi_outside_ppm=(painter.paint("chi_outside") + pos - neg) * ~mask,
        fibre_angle_rad=angle,
        anisotropy_ppm=anisotropy,
    )


class _Painter:
    """Paints values on labels and averages them over the voxels of a grid.

    The box of the brain is painted on fine labels, the rest of the head on those of the label map.
    """

    def __init__(
        self,
        head: LabelMap,
        grid: Grid,
        inside: labelmap.Mask,
        tables: dict[str, NDArray[np.float32]],
        refine_mm: float,
    ) -> None:
        box = tuple(
            slice(max(part.start - 1, 0), part.stop + 1)
            for part in ndimage.find_objects(inside.astype(np.int8))[0]
        )
        edges = list(zip(head.labels.shape, head.voxel_mm, grid.shape, grid.voxel_mm, strict=True))
        fine_mm = max(refine_mm, min(grid.voxel_mm) / 4)
        self.factors = [min(max(math.ceil(edge / fine_mm - 1e-6), 1), _MOST_FINE) for edge in head.voxel_mm]
        self.whole = [overlaps(*edge) for edge in edges]
        self._head, self._tables, self._box = torch.from_numpy(head.labels).int(), tables, box
        self.labels = np.ascontiguousarray(head.labels[box])
        fine = refined(self.labels, self.factors)
        self._fine = torch.from_numpy(fine).int()
        self._coarse_boxed, self._boxed = (
            [
                overlaps(n * f, edge / f, n_new, edge_new, start_mm=part.start * edge)
                for n, part, f, (_, edge, n_new, edge_new) in zip(
                    self.labels.shape, box, division, edges, strict=True
                )
            ]
            for division in ((1, 1, 1), self.factors)
        )
        self.mask = pool(torch.from_numpy(inside).float(), self.whole) > 0.5
        self.to_mni = None
        if head.to_mni is not None:
            self.to_mni = head.to_mni.copy()
            self.to_mni[:3, 3] += head.to_mni[:3, :3] @ [part.start for part in box]
        self._blood = None
        if head.veins is not None:
            blood = vein_fraction(
                head.veins,
                fine.shape,
                [edge / f for edge, f in zip(head.voxel_mm, self.factors, strict=True)],
                [part.start for part in box],
                self.factors,
            )
            blood[np.isin(fine, (0, *labelmap.OUTSIDE))] = 0.0
            self._blood = torch.from_numpy(blood)

    def paint(self, column: str, factor: Tensor | None = None) -> Volume:
        """Average the values of a table over the grid; a factor belongs to the voxels of the brain's box."""
        table = torch.from_numpy(self._tables[column])
        around = table[self._head]
        around[self._box] = 0.0
        brain = table[self._fine]
        if factor is not None:
            brain *= upsampled(factor, self.factors)
        if self._blood is not None:
            brain += (table[labelmap.VEIN] - brain) * self._blood
        return pool(around, self.whole) + pool(brain, self._boxed)

    def average(self, volume: Volume) -> NewVolume:
        """Average a map of the brain's box over the grid, 0 outside."""
        return pool(volume, self._coarse_boxed)


_MOST_FINE = 4
"""Most parts of a label map's voxel: finer ones hold nothing new."""


def _factors(
    painter: _Painter,
    voxel_mm: Sequence[float],
    directions: Tensor | None,
    config: TissueConfig,
    rng: np.random.Generator,
) -> dict[str, Volume]:
    """Inhomogeneity of one person's sources, R2 and proton density, each of mean 1 in every label."""
    labels = painter.labels
    common_rng, opposed_rng = rng.spawn(2)
    common, opposed = torch.zeros(labels.shape), torch.zeros(labels.shape)
    if config.texture_sd:
        common = config.texture_sd * texture(labels, voxel_mm, directions, common_rng)
        common *= torch.from_numpy(_texture_gain(labels))
    if config.opposed_sd:
        sigmas = [(s,) * 3 for s in _OPPOSED_SCALES_MM]
        opposed = config.opposed_sd * random_field(labels.shape, voxel_mm, sigmas, (1.0, 1.0), opposed_rng)
    factors = {
        "chi_pos": torch.exp(common + opposed),
        "chi_neg": torch.exp(_MYELIN_GAIN * common - opposed),
    }
    if config.layered:
        by_depth = layers(labels, voxel_mm, painter.to_mni)
        for name, factor in zip(factors, by_depth, strict=True):
            factors[name] *= factor
    factors = {name: with_mean_one(factor, labels) for name, factor in factors.items()}
    # Where there is more iron and myelin, there is less free water.
    factors["r2"] = with_mean_one(torch.exp(0.15 * common), labels)
    factors["m0"] = with_mean_one(torch.exp(-0.05 * common), labels)
    return factors


_OPPOSED_SCALES_MM = (2.0, 8.0)
_MYELIN_GAIN = 1.25
"""Texture of χ_neg relative to that of χ_pos: of the two, myelin differs more from bundle to bundle."""
_DEEP_GREY_GAIN, _CORTEX_GAIN = 0.5, 0.8
"""Texture relative to white matter's: nuclei are more even, the cortex has its layers."""
_DEEP_GREY = (
    *labelmap.THALAMUS,
    *labelmap.PULVINAR,
    *labelmap.CAUDATE,
    *labelmap.PUTAMEN,
    *labelmap.PALLIDUM,
    *labelmap.PALLIDUM_INTERNUM,
    *labelmap.NIGRA,
    *labelmap.RED_NUCLEUS,
    *labelmap.SUBTHALAMIC,
    *labelmap.DENTATE,
)


def _texture_gain(labels: Labels) -> NDArray[np.float32]:
    """How much texture a voxel has relative to white matter."""
    gain = np.ones(labels.shape, dtype=np.float32)
    gain[np.isin(labels, _DEEP_GREY)] = _DEEP_GREY_GAIN
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
    """Value of every label for each parameter, of one person."""
    size = max(int(labels.max()), *(max(region.labels) for region in REGIONS)) + 1
    columns = ("chi_pos", "chi_neg", "r2", "t1", "m0", "chi_outside")
    tables = {column: np.zeros(size, dtype=np.float32) for column in columns}
    known = np.zeros(size, dtype=np.bool_)
    iron = np.ones(size)
    for curve, followers in _IRON_CURVES.items():
        iron[list(followers)] = iron_of_age(curve, config.age_years)
    for region in REGIONS:
        # Two sides of one person are alike, so one draw serves both.
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
