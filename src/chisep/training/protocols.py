"""Map-level simulation of crops of digital phantoms under random protocols: B0, voxels, echoes, D_r.

Only the sources and R2 of the phantoms are read. Field, R2' and their noise are simulated for every crop, as
`chisep.simulation.measured` does for a whole head. The field is that of the sources in the crop, so no source
outside of the crop has an effect, and label maps of any origin can be used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.networks.brain_box import BrainBox
from chisep.networks.config import NetworkConfig
from chisep.networks.inference import NetworkOptions, invert
from chisep.physics.dipole import Dipole
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz, r2_at_field_hz
from chisep.physics.signal import default_relaxivity, hz_per_ppm, r2prime_of_sources, se_signal
from chisep.progress import Progress
from chisep.simulation.measured import rate_sigma_hz
from chisep.simulation.structured_errors import structured_field_error
from chisep.solvers import tikhonov
from chisep.training.crop_errors import (
    denoised,
    field_errors,
    log_uniform,
    misregistered,
    noise,
    violated_physics,
)
from chisep.training.data import Example, FoldersConfig, RandomCrops, TrainingScan
from chisep.training.random_contrast import ContrastConfig, label_contrast, random_contrast
from chisep.types import Grid, Maps, MaskVolume, Relaxivity, Volume

SOURCES_AND_R2 = ("chi_pos", "chi_neg", "r2")
"""Channels of a phantom: sources in ppm, R2 in 1/s at 3 T."""
LABELS = "labels"
"""Channel of the label map, if tissue is painted by it."""
THICKEST_SLICE_MM = 3.2
"""Thickest slice of a drawn protocol whose voxels are thinner in their plane."""


@dataclass(frozen=True)
class ProtocolConfig:
    """Ranges of a uniform or log-uniform distribution that the protocol of every crop is drawn from."""

    b0_t: tuple[float, float] = (1.5, 7.0)
    """Field strength in tesla."""
    tilt_deg: float = 45.0
    """Largest angle between B0 and the long axis of the head in degrees."""
    voxel_mm: tuple[float, float] = (0.6, 2.0)
    """In-plane voxel edge in mm."""
    slice_ratio: float = 3.0
    """Largest ratio of slice thickness to in-plane edge; slices are 3.2 mm thick at most."""
    axial_share: float | None = None
    """Share of crops with axial slices, as in most scans; slices of other crops have a random orientation. If
    None, all slices have a random orientation."""
    dr_hz_per_ppm: tuple[float, float] = (90.0, 330.0)
    """D_r,pos at 3 T in 1/s/ppm; proportional to B0."""
    dr_ratio: tuple[float, float] = (0.3, 1.3)
    """D_r,neg over D_r,pos."""
    dr_error: float = 0.15
    """Largest relative error of the assumed D_r of each source, which the network receives."""
    snr: tuple[float, float] = (20.0, 150.0)
    """Mean magnitude of the first echo over the noise SD."""
    standard_share: float = 0.3
    """Share of crops with the standard protocol: 3 T, 1 mm, B0 along the head, D_r = 114 for both sources and
    assumed without error; SNR and all other errors are random."""
    erosion_mm: float = 8.0
    """Largest depth in mm of a rim without a valid field."""
    erosion_share: float = 1.0
    """Share of crops with such a rim."""
    holes: int = 2
    """Largest number of holes in the valid-field mask."""
    background_ppb: float = 4.0
    """Largest SD of the residual background field in ppb."""
    unexplained_ppb: float = 3.0
    """Largest SD of a smooth field error in ppb: anisotropy, motion."""
    shift_voxels: float = 0.5
    """Largest misregistration of the spin echo along each axis in voxels."""
    r2_error: float = 0.06
    """Largest SD of the relative error of the R2 fit, constant in a crop."""
    gre_only_share: float = 0.2
    """Share of crops without spin echo, with a pseudo-R2' (R2* minus a constant R2)."""
    structured_ppb: float = 0.0
    """Largest SD of the structured error of the field in ppb."""
    structured_share: float = 0.5
    """Share of crops with a structured error."""
    stated_share: float = 0.0
    """Share of crops whose noise maps include the errors of registration, of the R2 fit, of the background
    field and the structured error; in the others noise maps are those of thermal noise."""
    rim_ppb: float = 0.0
    """Largest error of background removal at the edge of the brain in ppb; it decreases with depth."""
    clean_share: float = 0.0
    """Share of crops without errors beyond those of the noise maps: no error of registration, of the R2 fit,
    of D_r, no residual background field."""
    clean_snr: float | None = None
    """Largest SNR of these crops; that of the others if None."""
    denoised_share: float = 0.0
    """Share of crops with a spin echo whose R2' is denoised, as the pipeline does."""
    clipped_share: float = 1.0
    """Share of crops whose R2' is set to 0 where it is negative."""
    violated_share: float = 0.0
    """Share of the other crops in which R2' = D_r·χ does not hold: D_r varies in space, or with the angle of
    fibres, or the field has a shift by microstructure."""
    sigma_error: float = 0.0
    """SD of the logarithm of the factor by which the noise maps are wrong."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    """Random contrasts of the sources."""
    chi_weights: str = ""
    """Weights of the network that makes the input χ map of networks that take one; Tikhonov if empty."""

    def __post_init__(self) -> None:
        pairs = (self.b0_t, self.voxel_mm, self.dr_hz_per_ppm, self.dr_ratio, self.snr)
        shares = (
            *(self.standard_share, self.gre_only_share, self.axial_share or 0, self.clean_share),
            *(self.denoised_share, self.clipped_share, self.violated_share),
            *(self.structured_share, self.stated_share),
        )
        if not all(0 < low <= high < math.inf for low, high in pairs) or not all(0 <= s <= 1 for s in shares):
            raise InputError(
                "protocol",
                found=f"{self}",
                expected="ranges from low to high, above 0, and shares from 0 to 1",
                fix="Correct the options.",
            )

    @property
    def clean(self) -> ProtocolConfig:
        """The same without errors beyond those of the noise maps."""
        return replace(
            self.with_good_r2prime(),
            dr_error=0.0,
            background_ppb=0.0,
            unexplained_ppb=0.0,
            rim_ppb=0.0,
            structured_ppb=0.0,
            violated_share=0.0,
            sigma_error=0.0,
            snr=(self.snr[0], self.clean_snr or self.snr[1]),
        )

    def with_good_r2prime(self) -> ProtocolConfig:
        """Return the same without errors of R2' beyond its noise: registration and R2 fit."""
        return replace(self, shift_voxels=0.0, r2_error=0.0)


def load_heads(
    folders: FoldersConfig, subjects: Sequence[str], progress: Progress | None = None, *, labels: bool = False
) -> list[TrainingScan]:
    """Read sources and R2 of digital phantoms.

    Parameters
    ----------
    folders
        Where labels and masks are; `chisep simulate` writes both, and R2, to the folder `truth`.
    subjects
        Labels without `sub-`.
    progress
        Receives the subject that is being read.
    labels
        Whether to read the label maps too, which `chisep simulate` also writes there.

    Raises
    ------
    InputError
        If a map is missing, unreadable or on another grid.
    """
    names = {
        "chi_pos": ("Chimap", "paramagnetic"),
        "chi_neg": ("Chimap", "diamagnetic"),
        "r2": ("R2map", None),
    }
    heads = []
    for done, subject in enumerate(subjects):
        if progress is not None:
            progress(f"sub-{subject}", done, len(subjects))
        brain = nifti.load_mask(bids.derivative_path(folders.folder("masks"), subject, "mask", desc="brain"))
        box = BrainBox(torch.from_numpy(brain.data), nifti.grid_of(brain))
        channels = {}
        for name, (suffix, desc) in names.items():
            image = nifti.load(bids.derivative_path(folders.folder("labels"), subject, suffix, desc=desc))
            nifti.require_same_grid(brain, image)
            channels[name] = box.cut(torch.from_numpy(image.data)) * box.mask
        if labels:
            image = nifti.load(bids.derivative_path(folders.folder("labels"), subject, "dseg"))
            nifti.require_same_grid(brain, image)
            channels[LABELS] = box.cut(torch.from_numpy(image.data))
        heads.append(TrainingScan(f"sub-{subject}", box.grid, box.mask, channels))
    if progress is not None:
        progress("heads", len(subjects), len(subjects))
    return heads


class DrawnProtocol(NamedTuple):
    """Protocol of one crop."""

    grid: Grid
    b0_t: float
    relaxivity: Relaxivity
    assumed: Relaxivity
    te_gre_s: Sequence[float]
    te_se_s: Sequence[float]
    snr: float
    gre_only: bool


class ProtocolCrops(RandomCrops):
    """Crops of digital phantoms, each under a random protocol.

    Parameters
    ----------
    scans
        Phantoms with the channels `SOURCES_AND_R2`.
    network, count, seed
        As of `RandomCrops`.
    config
        Ranges of the protocols.
    size
        Edge of a crop in voxels.
    """

    def __init__(
        self,
        scans: Sequence[TrainingScan],
        network: NetworkConfig,
        config: ProtocolConfig,
        size: int,
        count: int,
        seed: int,
    ) -> None:
        super().__init__(scans, network, count, seed)
        self.config, self.size = config, size

    def _around(self, scan: TrainingScan, centre: tuple[int, int, int], rng: np.random.Generator) -> Example:
        config = self.config
        if config.clean_share and rng.random() < config.clean_share:
            config = config.clean
        protocol = drawn(rng, config, self.size)
        head = _resampled(scan, centre, protocol.grid, config.contrast.labels_share, rng)
        flips = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
        return _simulated(head.flip(flips), protocol, self.network, config, rng)


def drawn(rng: np.random.Generator, config: ProtocolConfig, size: int) -> DrawnProtocol:
    """Draw a protocol for a crop of `size`³ voxels."""
    shape = (size, size, size)
    snr = log_uniform(config.snr, rng)
    gre_only = bool(rng.random() < config.gre_only_share)
    if rng.random() < config.standard_share:
        relaxivity = default_relaxivity(3.0)
        echoes = [0.005 + 0.006 * n for n in range(5)]
        spin_echoes = [0.015 * n for n in range(1, 7)]
        return DrawnProtocol(
            Grid(shape, (1.0, 1.0, 1.0)), 3.0, relaxivity, relaxivity, echoes, spin_echoes, snr, gre_only
        )
    b0_t = log_uniform(config.b0_t, rng)
    edge = log_uniform(config.voxel_mm, rng)
    slice_mm = min(edge * log_uniform((1.0, config.slice_ratio), rng), max(edge, THICKEST_SLICE_MM))
    edges = [edge, edge, edge]
    axial = config.axial_share is not None and rng.random() < config.axial_share
    edges[2 if axial else int(rng.integers(3))] = slice_mm
    tilt, azimuth = math.radians(rng.uniform(0, config.tilt_deg)), rng.uniform(0, 2 * math.pi)
    b0 = (math.sin(tilt) * math.cos(azimuth), math.sin(tilt) * math.sin(azimuth), math.cos(tilt))
    pos = log_uniform(config.dr_hz_per_ppm, rng) * b0_t / 3
    neg = pos * log_uniform(config.dr_ratio, rng)
    assumed = [dr * (1 + rng.uniform(-config.dr_error, config.dr_error)) for dr in (pos, neg)]
    # Echo times are chosen by T2*, which falls with the field.
    scale = math.sqrt(3.0 / b0_t)
    first, step = scale * rng.uniform(0.003, 0.007), scale * rng.uniform(0.003, 0.007)
    echoes = [first + step * n for n in range(int(rng.integers(4, 9)))]
    spacing = scale * rng.uniform(0.010, 0.018)
    spin_echoes = [spacing * n for n in range(1, int(rng.integers(5, 9)))]
    return DrawnProtocol(
        Grid(shape, (edges[0], edges[1], edges[2]), b0),
        b0_t,
        Relaxivity(pos, neg),
        Relaxivity(*assumed),
        echoes,
        spin_echoes,
        snr,
        gre_only,
    )


def _resampled(
    scan: TrainingScan, centre: Sequence[int], grid: Grid, labels_share: float, rng: np.random.Generator
) -> Tensor:
    """Cut a box of the grid's extent and average it to the grid's voxels: (mask, χ_pos, χ_neg, R2).

    In a share of the boxes, tissue is painted anew by the label map before.
    """
    size = [
        max(1, round(n * edge / own))
        for n, edge, own in zip(grid.shape, grid.voxel_mm, scan.grid.voxel_mm, strict=True)
    ]
    first = [c - n // 2 for c, n in zip(centre, size, strict=True)]
    span = tuple(
        slice(max(0, a), min(a + n, whole)) for a, n, whole in zip(first, size, scan.mask.shape, strict=True)
    )
    box = torch.stack([scan.mask.float()[span], *(scan.channels[name][span] for name in SOURCES_AND_R2)])
    if labels_share and rng.random() < labels_share:
        box[1:3] = torch.stack(label_contrast(scan.channels[LABELS][span], box[1], box[2], rng)) * box[0]
    before = [s.start - a for s, a in zip(span, first, strict=True)]
    after = [n - b - (s.stop - s.start) for n, b, s in zip(size, before, span, strict=True)]
    box = functional.pad(box, [n for b, a in zip(before[::-1], after[::-1], strict=True) for n in (b, a)])
    i, j, k = (min(n, m) for n, m in zip(grid.shape, size, strict=True))
    if [i, j, k] != size:
        box = functional.adaptive_avg_pool3d(box, (i, j, k))
    if (i, j, k) != grid.shape:
        box = functional.interpolate(box[None], grid.shape, mode="trilinear", align_corners=False)[0]
    return box


def _simulated(
    head: Tensor,
    protocol: DrawnProtocol,
    network: NetworkConfig,
    config: ProtocolConfig,
    rng: np.random.Generator,
) -> Example:
    """Map-level simulation of field and R2' with noise maps, from (mask, χ_pos, χ_neg, R2)."""
    mask = head[0] > 0.5
    pos, neg, r2 = head[1:] * mask
    grid, dipole = protocol.grid, Dipole(protocol.grid)
    if config.contrast.share:
        pos, neg = random_contrast(pos, neg, mask, grid, config.contrast, rng)
    r2 = r2_at_field_hz(r2, protocol.b0_t)
    field = dipole.apply(pos - neg)
    dephasing_pos, dephasing_neg = pos, neg
    if rng.random() < config.violated_share:
        of_pos, of_neg, shift = violated_physics(pos, neg, grid, rng)
        dephasing_pos, dephasing_neg = pos * of_pos, neg * of_neg
        field += shift
    r2star = r2 + r2prime_of_sources(dephasing_pos, dephasing_neg, protocol.relaxivity)
    gre_sigma = _rate_sigma_hz(r2star, mask, protocol.te_gre_s, protocol.snr)
    stated = bool(rng.random() < config.stated_share)
    field, field_sigma = _measured_field(field, gre_sigma, mask, protocol, dipole, config, rng, stated=stated)
    valid = _valid_field(mask, grid, config, rng)
    r2prime, r2prime_sigma = _measured_r2prime(
        r2star, r2, gre_sigma, mask, protocol, config, rng, stated=stated
    )
    if config.sigma_error:
        field_sigma, r2prime_sigma = (
            sigma * math.exp(config.sigma_error * rng.standard_normal())
            for sigma in (field_sigma, r2prime_sigma)
        )
    assumed_hz_per_ppm = protocol.assumed.pos_hz_per_ppm
    channels = {
        "field": field * valid,
        "field_sigma": field_sigma * valid,
        "r2prime": r2prime * mask / assumed_hz_per_ppm,
        "r2prime_sigma": r2prime_sigma * mask / assumed_hz_per_ppm,
        "chi_pos": pos,
        "chi_neg": neg,
        "chi": pos - neg,
    }
    if "qsm" in network.inputs and bool(valid.any()):
        channels["qsm"] = _input_chi(channels, valid, mask, grid, config.chi_weights)
    nothing = torch.zeros(mask.shape)
    return Example(
        torch.stack([channels.get(name, nothing) for name in network.inputs]),
        torch.stack([channels[name] for name in network.outputs]),
        mask[None],
        torch.tensor(grid.b0_direction),
        torch.tensor(grid.voxel_mm),
        torch.tensor(protocol.assumed.ratio),
    )


def _input_chi(
    channels: Mapping[str, Volume], valid: MaskVolume, brain: MaskVolume, grid: Grid, weights: str
) -> Volume:
    """Dipole inversion of the field, for networks that take a χ map."""
    maps = Maps(
        field_ppm=channels["field"],
        mask=valid,
        support=brain,
        grid=grid,
        field_sigma_ppm=channels["field_sigma"],
    )
    if weights:
        return invert(maps, NetworkOptions(refinement=0), weights=weights).chi_ppm
    return tikhonov.solve(replace(maps, support=None), tikhonov.TikhonovConfig(alpha=0.01)).chi_ppm


def _measured_field(
    field: Volume,
    rate_sigma: Volume,
    mask: MaskVolume,
    protocol: DrawnProtocol,
    dipole: Dipole,
    config: ProtocolConfig,
    rng: np.random.Generator,
    *,
    stated: bool,
) -> tuple[Volume, Volume]:
    """Local field with thermal noise, residual background, structured errors; and its noise map."""
    sigma = rate_sigma / (2 * math.pi * hz_per_ppm(protocol.b0_t))
    field = field + sigma * noise(rng, mask.shape)
    sizes = (config.background_ppb, config.unexplained_ppb, config.rim_ppb)
    error, error_sigma = field_errors(mask, protocol.grid, dipole, sizes, rng)
    field += error
    if stated:
        sigma = torch.hypot(sigma, error_sigma)
    if config.structured_ppb and rng.random() < config.structured_share:
        size_ppm = 1e-3 * float(rng.uniform(0, config.structured_ppb))
        field += size_ppm * structured_field_error(mask, protocol.grid, rng)
        if stated:
            sigma = torch.hypot(sigma, torch.full_like(sigma, size_ppm))
    return field, sigma


def _measured_r2prime(
    r2star: Volume,
    r2: Volume,
    gre_sigma: Volume,
    mask: MaskVolume,
    protocol: DrawnProtocol,
    config: ProtocolConfig,
    rng: np.random.Generator,
    *,
    stated: bool,
) -> tuple[Volume, Volume]:
    """R2* minus the R2 of a misregistered spin echo, or minus a constant R2; and its noise map."""
    r2star = r2star + gre_sigma * noise(rng, mask.shape)
    if protocol.gre_only:
        pseudo = pseudo_r2_hz(protocol.b0_t)
        r2prime = r2star - pseudo
        sigma = torch.hypot(gre_sigma, torch.full_like(r2star, PSEUDO_R2_SD * pseudo))
    else:
        r2_sigma = _rate_sigma_hz(r2, mask, protocol.te_se_s, protocol.snr)
        moved, shift_sigma = misregistered(r2, config.shift_voxels, rng)
        fit_sd = rng.uniform(0, config.r2_error)
        measured = moved * (1 + fit_sd * rng.standard_normal()) + r2_sigma * noise(rng, mask.shape)
        r2prime, sigma = r2star - measured, torch.hypot(gre_sigma, r2_sigma)
        if rng.random() < config.denoised_share:
            r2prime, sigma = denoised(r2prime, sigma, mask)
        if stated:
            sigma = torch.hypot(sigma, torch.hypot(shift_sigma, fit_sd * moved.abs()))
    if rng.random() < config.clipped_share:
        r2prime = r2prime.clamp_min(0)
    return r2prime, sigma


def _rate_sigma_hz(rate_hz: Volume, mask: MaskVolume, te_s: Sequence[float], snr: float) -> Volume:
    """Noise SD of a relaxation rate map by its echo times, for tissue of uniform signal at TE 0."""
    if not bool(mask.any()):
        return torch.zeros(mask.shape)
    return rate_sigma_hz(se_signal(torch.ones(mask.shape), rate_hz, te_s), mask, te_s, snr)


def _valid_field(
    mask: MaskVolume, grid: Grid, config: ProtocolConfig, rng: np.random.Generator
) -> MaskVolume:
    """Valid-field mask: the brain without a rim and holes."""
    depth_mm = rng.uniform(0, config.erosion_mm) if rng.random() < config.erosion_share else 0.0
    outside = (~mask).float()[None, None]
    for axis, edge in enumerate(grid.voxel_mm):
        reach = round(depth_mm / edge)
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        outside = functional.max_pool3d(outside, kernel, 1, padding)
    valid = mask & (outside[0, 0] == 0)
    for _ in range(int(rng.integers(config.holes + 1))):
        centre, radius_mm = [rng.integers(n) for n in grid.shape], rng.uniform(1, 8)
        square = torch.zeros(())
        for axis, (n, edge) in enumerate(zip(grid.shape, grid.voxel_mm, strict=True)):
            distance = (torch.arange(n) - int(centre[axis])) * edge
            square = square + (distance**2).reshape([-1 if a == axis else 1 for a in range(3)])
        valid &= square > radius_mm**2
    return valid
