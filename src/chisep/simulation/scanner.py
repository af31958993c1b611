"""Signal-level simulation: the scans of a session of a digital phantom, as complex signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.epg import SliceProfile, mese_signal, slice_profile
from chisep.physics.signal import gre_signal, se_signal
from chisep.simulation.acquisition_errors import (
    Fluctuation,
    breathing,
    correlated,
    flow_phase,
    g_factor,
    phase_axes,
    with_breathing,
)
from chisep.simulation.coils import Coils, ComplexVolume, combined_sensitivity, transmit_field, with_noise
from chisep.simulation.fields import dephasing
from chisep.simulation.kspace import CoarseComplex, Window, block_mean, crop_kspace
from chisep.simulation.motion import ORIENTATION_TILTS_DEG, Pose, moved
from chisep.simulation.tissue import Tissue
from chisep.types import Affine, ComplexEchoes, Echoes, MaskVolume, Volume

PHASE_LEVELS = 4096
"""Levels of a phase in scanner units: 0 to 4095 stand for −π to π."""
Images = Complex[Tensor, "echo i2 j2 k2"]
"""One complex image per echo, of voxels that are coarser than those of the maps where k-space is cropped."""

_SLICE_POSITIONS = 8
_UNIFORM_TE = 0.01
_BIPOLAR_OFFSET_RAD, _BIPOLAR_EDGE_RAD = 0.4, 1.5


@dataclass(frozen=True)
class ScannerConfig:
    """A scan session: multi-echo gradient echo and multi-echo spin echo."""

    voxel_mm: float | tuple[float, float, float] = 1.0
    """Voxel edges in mm, one number or three."""
    b0_t: float = 3.0
    """Field strength in tesla."""
    te_gre_s: tuple[float, ...] = (0.005, 0.011, 0.017, 0.023, 0.029)
    """Echo times of the gradient-echo scan in seconds."""
    te_se_s: tuple[float, ...] = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
    """Echo times of the spin-echo scan in seconds; multiples of the first for stimulated echoes."""
    tr_gre_s: float = 0.033
    """Repetition time of the gradient-echo scan in seconds."""
    tr_se_s: float = 3.0
    """Repetition time of the spin-echo scan in seconds."""
    flip_deg: float = 15.0
    """Flip angle of the gradient-echo scan in degrees."""
    snr: float = 100.0
    """Mean magnitude of the first echo in the brain over the noise's SD in each channel; inf for no noise."""
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Rotation of the head about the scanner's x, y and z axis in degrees: an oblique B0 direction."""
    orientations: int = 1
    """Head orientations of the gradient-echo scan, up to six, for COSMOS; registered to the first, unless
    `raw_orientations`."""
    raw_orientations: bool = False
    """Head orientations as a scanner has them: each moved and turned freely, on its own rotated grid."""
    orientation_shift_mm: float = 8.0
    """With `raw_orientations`: SD of the head's shift along each axis in mm."""
    orientation_turn_deg: float = 4.0
    """With `raw_orientations`: SD of its rotation about each axis in degrees, beside the intended tilt."""
    slab_turn_deg: float = 6.0
    """With `raw_orientations`: SD of the rotation of the slab about each axis in degrees."""
    phase_units: Literal["rad", "arbitrary"] = "rad"
    """Phase images in radians, or as whole numbers 0 to 4095 as scanners write them."""
    simple: bool = False
    """Uniform coils, ideal pulses, no dephasing, no motion: overrides the options after `receiver_phase`."""
    receiver_phase: bool = True
    """Whether the receiver adds a smooth phase to all gradient echoes."""
    coils: int = 8
    """Number of receive coils; 0 for a uniform sensitivity."""
    combination: Literal["adaptive", "sum-of-squares"] = "adaptive"
    """Coil combination: matched filter (Gaussian noise), or root of the sum of squares."""
    b1_spread: float = 0.1
    """Standard deviation of the transmit field in the brain at 3 T, relative to nominal; grows with B0."""
    stimulated_echoes: bool = True
    """Whether refocusing pulses are imperfect, by B1 and slice profile: extended phase graphs."""
    refocusing_deg: float = 180.0
    """Nominal flip angle of the refocusing pulses in degrees."""
    pulse: Literal["ideal", "sinc", "gaussian"] = "sinc"
    """Slice profile of the spin echo: uniform across the slice, or that of a sinc or Gaussian pulse."""
    refocusing_width: float = 2.0
    """Thickness of the refocused slice over that of the excited one; near 1, stimulated echoes are strong."""
    dephasing: bool = True
    """Whether the field gradient across a voxel dephases gradient echoes."""
    bipolar: bool = False
    """Bipolar readout: odd and even gradient echoes have a phase difference that is linear in position."""
    read_axis: Literal[0, 1, 2] = 1
    """Voxel axis of the readout."""
    dental_implants: int = 0
    """Number of titanium implants in the mouth."""
    motion_mm: float = 0.0
    """SD of head translation between gradient echo and spin echo along each axis in mm."""
    motion_deg: float = 0.0
    """SD of head rotation between gradient echo and spin echo about each axis in degrees."""
    misregistration_mm: float = 0.0
    """SD of the residual translation after registration of other orientations to the first, in mm."""
    misregistration_deg: float = 0.0
    """SD of the residual rotation after this registration, in degrees."""
    residual_background_ppb: float = 0.0
    """In derivatives/maps: SD in the brain of the residual background field."""
    oversampling: int = 1
    """Factor of finer voxels for signals, before k-space is cropped; cost grows with its third power."""
    kspace_window: Window = "none"
    """Window of the cropped k-space, against ringing."""
    breathing_hz: float = 0.0
    """Breathing: SD over time in Hz of a field offset at each k-space line of the gradient echo; near 1."""
    acceleration: int = 1
    """Factor of parallel imaging: g-factor, and noise shared by voxels that alias; 1 for none."""
    noise_interpolation: float = 1.0
    """Interpolation by the scanner, by this factor: noise lacks the outer part of k-space."""

    def __post_init__(self) -> None:
        if self.simple:
            for name, value in _SIMPLE.items():
                object.__setattr__(self, name, value)
        for name in _POSITIVE:
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(number > 0 for number in numbers):
                raise InputError(
                    name, found=f"{value}", expected="numbers above 0", fix="Correct the option."
                )
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(name, found=f"{value}", expected="0 or more", fix="Correct the option.")
        for name, te_s, tr_s in (
            ("te_gre_s", self.te_gre_s, self.tr_gre_s),
            ("te_se_s", self.te_se_s, self.tr_se_s),
        ):
            if list(te_s) != sorted(set(te_s)) or te_s[-1] >= tr_s:
                raise InputError(
                    name,
                    found=f"{te_s} with TR {tr_s} s",
                    expected="echo times in seconds that grow and are shorter than TR",
                    fix="Times are in seconds: 5 ms is 0.005.",
                )
        if self.stimulated_echoes and any(
            abs(after - before - self.te_se_s[0]) > _UNIFORM_TE * self.te_se_s[0]
            for before, after in pairwise(self.te_se_s)
        ):
            raise InputError(
                "te_se_s",
                found=f"{self.te_se_s}",
                expected="multiples of the first echo time, as stimulated echoes need",
                fix="Change the echo times, or leave out stimulated echoes.",
            )
        if self.raw_orientations and self.orientations < 2:
            raise InputError(
                "raw_orientations",
                found=f"{self.orientations} head orientation",
                expected="2 or more",
                fix="Add --orientations 5.",
            )
        for name, low, high in (("acceleration", 1, 6), ("noise_interpolation", 1.0, 4.0)):
            if not low <= (value := getattr(self, name)) <= high:
                raise InputError(
                    name,
                    found=f"{value}",
                    expected=f"a number from {low:g} to {high:g}",
                    fix="Correct the option.",
                )
        if not 1 <= self.orientations <= len(ORIENTATION_TILTS_DEG):
            raise InputError(
                "orientations",
                found=f"{self.orientations}",
                expected=f"1 to {len(ORIENTATION_TILTS_DEG)}",
                fix="Correct the option.",
            )

    @property
    def voxel_edges_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm, always three."""
        return self.voxel_mm if isinstance(self.voxel_mm, tuple) else (self.voxel_mm,) * 3

    @property
    def fine_voxel_edges_mm(self) -> tuple[float, float, float]:
        """Edges in mm of the voxels that signals are computed on."""
        i, j, k = (edge / self.oversampling for edge in self.voxel_edges_mm)
        return i, j, k


_POSITIVE = (
    "voxel_mm",
    "b0_t",
    "te_gre_s",
    "te_se_s",
    "tr_gre_s",
    "tr_se_s",
    "flip_deg",
    "snr",
    "refocusing_deg",
    "refocusing_width",
    "oversampling",
)
_NOT_NEGATIVE = (
    "orientation_shift_mm",
    "orientation_turn_deg",
    "slab_turn_deg",
    "residual_background_ppb",
    "breathing_hz",
    "coils",
    "b1_spread",
    "dental_implants",
    "motion_mm",
    "motion_deg",
    "misregistration_mm",
    "misregistration_deg",
)
_SIMPLE = {
    "coils": 0,
    "combination": "adaptive",
    "b1_spread": 0.0,
    "stimulated_echoes": False,
    "dephasing": False,
    "bipolar": False,
    "dental_implants": 0,
    "motion_mm": 0.0,
    "motion_deg": 0.0,
    "misregistration_mm": 0.0,
    "misregistration_deg": 0.0,
    "oversampling": 1,
    "breathing_hz": 0.0,
    "acceleration": 1,
    "noise_interpolation": 1.0,
}


def session_coils(tissue: Tissue, config: ScannerConfig, rng: np.random.Generator) -> Coils:
    """Simulate the transmit field and the receive sensitivity of a session.

    Parameters
    ----------
    tissue
        Grid and brain.
    config
        Number of coils, spread of B1.
    rng
        Draws both, each from a stream of its own.
    """
    transmit_rng, receive_rng = rng.spawn(2)
    grid, mask = tissue.grid, tissue.mask
    if config.b1_spread:
        b1 = transmit_field(grid, mask, config.b0_t, config.b1_spread, transmit_rng)
    else:
        b1 = torch.ones(grid.shape)
    if config.coils:
        receive = combined_sensitivity(grid, mask, config.coils, receive_rng)
    else:
        receive = torch.polar(torch.ones(grid.shape), _receiver_phase(grid.shape, receive_rng))
    if not config.receiver_phase:
        receive = torch.complex(receive.abs(), torch.zeros(grid.shape))
    return Coils(b1, receive)


def scan_gre(
    tissue: Tissue,
    field_ppm: Volume,
    coils: Coils,
    config: ScannerConfig,
    rng: np.random.Generator,
    *,
    transform: Affine | None = None,
    pose: Pose | None = None,
) -> Images:
    """Simulate a spoiled multi-echo gradient-echo scan.

    Parameters
    ----------
    tissue
        Relaxation and proton density, on the fine grid where there is oversampling.
    field_ppm
        Total field.
    coils
        Transmit field and receive sensitivity.
    config
        Echo times, repetition time, flip angle, what weakens and shifts signals, SNR.
    rng
        Draws the noise.
    transform
        Where the head lies from where its maps have it, in world mm: a residual misregistration.
    pose
        Position of the head and grid of the scan, of the voxels that signals are computed on; the coils
        stay with the scanner. None: the grid of the maps.

    Returns
    -------
    Images
        Signal with complex Gaussian noise; the magnitude of a sum of squares has more.
    """
    steady = steady_state(tissue, config, coils.b1)
    r2star = tissue.r2_hz + tissue.r2prime_hz
    affine, receive, mask = tissue.grid.matrix(), coils.receive, tissue.mask
    if pose is not None:
        receive = torch.complex(pose.here(receive.real, affine), pose.here(receive.imag, affine))
        mask = pose.seen(mask.float(), affine, order=1) > 0.5
    echoes, offset_hz = [], None
    for number, te_s in enumerate(config.te_gre_s):
        signal = gre_signal(steady, r2star, field_ppm, (te_s,), tissue.b0_t)[0]
        if config.dephasing:
            signal *= dephasing(field_ppm, te_s, tissue.b0_t)
        if tissue.flow_rad is not None:
            signal *= flow_phase(tissue.flow_rad[config.read_axis], number)
        if transform is not None:
            real, imaginary = (
                moved(part, tissue.grid.matrix(), transform) for part in (signal.real, signal.imag)
            )
            signal = torch.complex(real, imaginary)
        if pose is not None:
            signal = torch.complex(pose.seen(signal.real, affine), pose.seen(signal.imag, affine))
        signal *= receive
        if config.bipolar:
            i, j, k = signal.shape
            signal *= _readout_phase((i, j, k), config.read_axis, number)
        image = _at_resolution(signal, config)
        if config.breathing_hz:
            if offset_hz is None:
                offset_hz = breathing_offset_hz(image.shape, config, rng.spawn(1)[0])
            image = with_breathing(image, offset_hz, te_s, config.read_axis)
        echoes.append(image)
    return _noisy(torch.stack(echoes), mask, config, rng)


def breathing_offset_hz(shape: Sequence[int], config: ScannerConfig, rng: np.random.Generator) -> Fluctuation:
    """Draw the field offset of breathing at each phase-encoding step of an image."""
    lines = math.prod(shape[axis] for axis in phase_axes(config.read_axis))
    return breathing(lines, config.tr_gre_s, config.breathing_hz, rng)


def scan_se(
    tissue: Tissue,
    coils: Coils,
    config: ScannerConfig,
    rng: np.random.Generator,
    *,
    transform: Affine | None = None,
) -> Echoes:
    """Simulate a multi-echo spin-echo scan.

    Parameters
    ----------
    tissue
        Relaxation and proton density, on the fine grid where there is oversampling.
    coils
        Transmit field and receive sensitivity.
    config
        Echo times, repetition time, pulses, SNR.
    rng
        Draws the noise.
    transform
        Where the head lies from where its maps have it, in world mm: motion between the scans. The transmit
        field, which the head itself shapes, goes with it.

    Returns
    -------
    Echoes
        Magnitude; its noise is Rician, or that of a sum of squares.
    """
    start = recovered(tissue, config)
    if config.stimulated_echoes:
        amplitudes = torch.zeros((len(config.te_se_s), *tissue.grid.shape))
        here = tissue.m0 > 0
        amplitudes[:, here] = mese_signal(
            tissue.r2_hz[here],
            1 / tissue.t1_s[here],
            coils.b1[here],
            config.te_se_s,
            refocusing_deg=config.refocusing_deg,
            profile=_profile(config),
        )
        amplitudes *= start
    else:
        amplitudes = se_signal(start, tissue.r2_hz, config.te_se_s)
    echoes = []
    for amplitude in amplitudes:
        image = amplitude if transform is None else moved(amplitude, tissue.grid.matrix(), transform)
        echoes.append(_at_resolution(image * coils.receive, config))
    return _noisy(torch.stack(echoes), tissue.mask, config, rng).abs()


def stored_phase(signal: Tensor, units: Literal["rad", "arbitrary"]) -> Tensor:
    """Convert phase to stored units: radians in [−π, π], or whole numbers 0 to 4095."""
    phase = signal.angle()
    if units == "rad":
        return phase
    return torch.round((phase / (2 * torch.pi) + 0.5) * PHASE_LEVELS).remainder(PHASE_LEVELS)


def steady_state(tissue: Tissue, config: ScannerConfig, b1: Volume) -> Volume:
    """Gradient echo at TE 0 under perfect spoiling (Ernst 1966, 10.1063/1.1719961)."""
    flip = b1 * math.radians(config.flip_deg)
    e1 = torch.exp(-config.tr_gre_s / tissue.t1_s)
    return tissue.m0 * torch.sin(flip) * (1 - e1) / (1 - torch.cos(flip) * e1)


def recovered(tissue: Tissue, config: ScannerConfig) -> Volume:
    """Recovered longitudinal magnetisation at the excitation of the spin echo."""
    return tissue.m0 * (1 - torch.exp(-config.tr_se_s / tissue.t1_s))


def _profile(config: ScannerConfig) -> SliceProfile | None:
    if config.pulse == "ideal":
        return None
    return slice_profile(config.pulse, _SLICE_POSITIONS, refocusing_width=config.refocusing_width)


def _at_resolution(signal: ComplexVolume, config: ScannerConfig) -> CoarseComplex:
    """Crop k-space to the voxels of the scan."""
    if config.oversampling == 1:
        return signal
    return crop_kspace(signal, config.oversampling, config.kspace_window)


def _noisy(
    signal: ComplexEchoes, mask: MaskVolume, config: ScannerConfig, rng: np.random.Generator
) -> ComplexEchoes:
    """Add noise in place, with an SD from the mean magnitude of the first echo in the brain."""
    if math.isinf(config.snr):
        return signal
    if config.oversampling > 1:
        mask = block_mean(mask.float(), config.oversampling) > 0.5
    sigma = float(signal[0].abs()[mask].mean()) / config.snr
    others = max(config.coils - 1, 0) if config.combination == "sum-of-squares" else 0
    return with_noise(signal, sigma, rng, more_coils=others, shape_noise=noise_shape(config))


def noise_shape(config: ScannerConfig) -> Callable[[Volume], Volume] | None:
    """Make a function that correlates white noise as the scan does; None where it stays white."""
    if config.acceleration == 1 and config.noise_interpolation == 1:
        return None

    def shaped(noise: Volume) -> Volume:
        noise = correlated(noise, config.acceleration, config.noise_interpolation, config.read_axis)
        return noise * g_factor(noise.shape, config.acceleration)

    return shaped


def _readout_phase(shape: tuple[int, int, int], axis: int, number: int) -> ComplexVolume:
    """Phase factor of one echo of a bipolar read-out: opposite in odd and even echoes."""
    sign = 1.0 if number % 2 == 0 else -1.0
    line = torch.linspace(-1, 1, shape[axis]).mul_(_BIPOLAR_EDGE_RAD).add_(_BIPOLAR_OFFSET_RAD)
    factor = torch.polar(torch.ones_like(line), sign * line)
    return factor.reshape([-1 if a == axis else 1 for a in range(3)])


def _receiver_phase(shape: tuple[int, int, int], rng: np.random.Generator) -> Volume:
    """Smooth phase in radians: a random polynomial of second order."""
    i, j, k = (
        torch.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )
    terms = (torch.ones(1, 1, 1), i, j, k, i * i, j * j, k * k, i * j, j * k, i * k)
    phase = torch.zeros(shape)
    for weight, term in zip(rng.normal(0, 0.5, len(terms)).tolist(), terms, strict=True):
        phase += weight * term
    return phase
