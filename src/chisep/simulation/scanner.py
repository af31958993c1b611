"""A scanner for digital heads: the field they make, and the scans of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.signal import gre_signal, se_signal
from chisep.simulation.tissue import AIR_PPM, Tissue
from chisep.types import ComplexEchoes, Echoes, MaskVolume, Volume

PHASE_LEVELS = 4096
"""Levels of a phase in scanner units: 0 to 4095 stand for −π to π."""

_NECK_MM = 80.0
_CUT_FRACTION = 0.2


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
    """Echo times of the spin-echo scan in seconds."""
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
    receiver_phase: bool = True
    """Whether a smooth phase of the receiver is added to all echoes."""
    phase_units: Literal["rad", "arbitrary"] = "rad"
    """Phase images in radians, or as whole numbers 0 to 4095 as scanners write them."""

    def __post_init__(self) -> None:
        for name in ("voxel_mm", "b0_t", "te_gre_s", "te_se_s", "tr_gre_s", "tr_se_s", "flip_deg", "snr"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(number > 0 for number in numbers):
                raise InputError(
                    name, found=f"{value}", wanted="numbers above 0", remedy="Correct the option."
                )
        for name, te_s, tr_s in (
            ("te_gre_s", self.te_gre_s, self.tr_gre_s),
            ("te_se_s", self.te_se_s, self.tr_se_s),
        ):
            if list(te_s) != sorted(set(te_s)) or te_s[-1] >= tr_s:
                raise InputError(
                    name,
                    found=f"{te_s} with TR {tr_s} s",
                    wanted="echo times in seconds that grow and are shorter than TR",
                    remedy="Times are in seconds: 5 ms is 0.005.",
                )

    @property
    def voxel_edges_mm(self) -> tuple[float, float, float]:
        """Voxel edges, always three."""
        return self.voxel_mm if isinstance(self.voxel_mm, tuple) else (self.voxel_mm,) * 3


@dataclass(frozen=True, eq=False)
class Fields:
    """Field in ppm of the sources in the brain mask, and of all else after shimming; shapes (i, j, k)."""

    local_ppm: Volume
    background_ppm: Volume

    @property
    def total_ppm(self) -> Volume:
        """What the scanner sees."""
        return self.local_ppm + self.background_ppm


def total_field(tissue: Tissue) -> Fields:
    """Field of a head in air.

    Parameters
    ----------
    tissue
        Sources in the brain and χ outside of it.

    Returns
    -------
    Fields
        Local field, and background field less a polynomial of second order fitted in the brain (shim).

    Notes
    -----
    Beyond the volume is air. Where the volume cuts through tissue (the neck), its last slice is continued
    first, else the cut would look like a surface in air.
    """
    # Relative to air, what surrounds the volume is 0, as the zero-padding of the convolution assumes.
    chi = tissue.chi_outside_ppm - AIR_PPM
    before, after = _cut_faces(tissue)
    widths = [width for pair in zip(before[::-1], after[::-1], strict=True) for width in pair]
    chi = pad(chi[None, None], widths, mode="replicate")[0, 0]
    dipole = Dipole(tissue.grid.reshaped(chi.shape))
    i, j, k = (slice(b, b + n) for b, n in zip(before, tissue.grid.shape, strict=True))
    background = dipole.apply(chi)[i, j, k].contiguous()
    del dipole
    local = Dipole(tissue.grid).apply(tissue.chi_pos_ppm - tissue.chi_neg_ppm)
    return Fields(local.contiguous(), background - _shim(background, tissue.mask))


def scan_gre(
    tissue: Tissue, field_ppm: Volume, config: ScannerConfig, rng: np.random.Generator
) -> ComplexEchoes:
    """Scan with a spoiled multi-echo gradient echo.

    Parameters
    ----------
    tissue
        Relaxation and proton density.
    field_ppm
        Total field.
    config
        Echo times, repetition time, flip angle, SNR.
    rng
        Draws the receiver phase, then the noise.

    Returns
    -------
    ComplexEchoes
        Signal with complex Gaussian noise.
    """
    flip = math.radians(config.flip_deg)
    e1 = torch.exp(-config.tr_gre_s / tissue.t1_s)
    steady = tissue.m0 * math.sin(flip) * (1 - e1) / (1 - math.cos(flip) * e1)
    offset = _receiver_phase(tissue.grid.shape, rng) if config.receiver_phase else None
    r2star = tissue.r2_hz + tissue.r2prime_hz
    signal = gre_signal(steady, r2star, field_ppm, config.te_gre_s, tissue.b0_t, offset)
    return _with_noise(signal, tissue.mask, config.snr, rng)


def scan_se(tissue: Tissue, config: ScannerConfig, rng: np.random.Generator) -> Echoes:
    """Scan with a multi-echo spin echo of ideal refocusing.

    Parameters
    ----------
    tissue
        Relaxation and proton density.
    config
        Echo times, repetition time, SNR.
    rng
        Draws the noise.

    Returns
    -------
    Echoes
        Magnitude, with Rician noise.
    """
    start = tissue.m0 * (1 - torch.exp(-config.tr_se_s / tissue.t1_s))
    signal = se_signal(start, tissue.r2_hz, config.te_se_s)
    return _with_noise(torch.complex(signal, torch.zeros_like(signal)), tissue.mask, config.snr, rng).abs()


def stored_phase(signal: Tensor, units: Literal["rad", "arbitrary"]) -> Tensor:
    """Wrap the phase as it is stored: radians in [−π, π], or whole numbers 0 to 4095."""
    phase = signal.angle()
    if units == "rad":
        return phase
    return torch.round((phase / (2 * torch.pi) + 0.5) * PHASE_LEVELS).remainder(PHASE_LEVELS)


def _with_noise(
    signal: ComplexEchoes, mask: MaskVolume, snr: float, rng: np.random.Generator
) -> ComplexEchoes:
    """Add Gaussian noise to both channels, in place; its SD comes from the first echo in the brain."""
    if math.isinf(snr):
        return signal
    sigma = float(signal[0].abs()[mask].mean()) / snr
    for echo in torch.view_as_real(signal):
        echo += sigma * torch.from_numpy(rng.standard_normal(echo.shape, dtype=np.float32))
    return signal


def _cut_faces(tissue: Tissue) -> tuple[list[int], list[int]]:
    """Voxels by which to continue the head at each face of the volume that cuts through it."""
    tissue_here = tissue.chi_outside_ppm < AIR_PPM / 2
    before, after = [], []
    for axis, edge in enumerate(tissue.grid.voxel_mm):
        width = math.ceil(_NECK_MM / edge)
        first, last = (tissue_here.select(axis, face).float().mean() > _CUT_FRACTION for face in (0, -1))
        before.append(width if first else 0)
        after.append(width if last else 0)
    return before, after


def _monomials(shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Polynomials up to second order in coordinates from −1 to 1, each broadcastable to the shape."""
    i, j, k = (
        torch.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )
    yield from (torch.ones(1, 1, 1), i, j, k, i * i, j * j, k * k, i * j, j * k, i * k)


def _shim(field_ppm: Volume, mask: MaskVolume) -> Volume:
    """Polynomial of second order that fits a field best in the mask."""
    shape = (field_ppm.shape[0], field_ppm.shape[1], field_ppm.shape[2])
    columns = torch.stack([term.expand(shape)[mask] for term in _monomials(shape)]).double()
    right = columns @ field_ppm[mask].double()
    weights = torch.linalg.lstsq(columns @ columns.T, right).solution
    fitted = torch.zeros_like(field_ppm)
    for weight, term in zip(weights.tolist(), _monomials(shape), strict=True):
        fitted += weight * term
    return fitted


def _receiver_phase(shape: tuple[int, int, int], rng: np.random.Generator) -> Volume:
    """Smooth phase in radians: a random polynomial of second order."""
    phase = torch.zeros(shape)
    for weight, term in zip(rng.normal(0, 0.5, 10).tolist(), _monomials(shape), strict=True):
        phase += weight * term
    return phase
