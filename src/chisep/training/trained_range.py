"""The range of scans in a training, for the header of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch

from chisep.networks.config import Channel, NetworkConfig
from chisep.networks.training_range import Range, TrainingRange
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz, r2_at_field_hz
from chisep.physics.signal import default_relaxivity, hz_per_ppm, r2prime_of_sources, se_signal
from chisep.simulation.measured import rate_sigma_hz
from chisep.simulation.scanner import ScannerConfig
from chisep.training.protocols import THICKEST_SLICE_MM, DrawnProtocol, ProtocolConfig, drawn
from chisep.types import Grid

_TISSUE_PPM = (0.03, 0.02)
"""Mean χ_pos and χ_neg of the brain in digital phantoms, whose R2' the noise is computed for."""
_DRAWS = 1024
"""Protocols whose noise is computed; a thousand are within 2 % of the ends of ten thousand."""
_GRID = Grid((1, 1, 1), (1.0, 1.0, 1.0))


class ScanFacts(Protocol):
    """Grid and field strength of a scan."""

    @property
    def grid(self) -> Grid:
        """Its grid."""

    @property
    def b0_t(self) -> float:
        """Its field strength in tesla."""


def range_of_protocols(config: ProtocolConfig, network: NetworkConfig) -> TrainingRange:
    """Range of crops under drawn protocols.

    The noise is that of tissue with mean sources, over many protocols that are drawn as in training.

    Parameters
    ----------
    config
        Ranges that protocols are drawn from.
    network
        Which maps it reads.
    """
    field_ppb, r2prime_ppb = _drawn_noise_ppb(config)
    told_low, told_high = 1 - config.dr_error, 1 + config.dr_error
    ratio_low, ratio_high = config.dr_ratio
    thinnest, thickest = config.voxel_mm
    thickest = max(thickest, min(thickest * config.slice_ratio, THICKEST_SLICE_MM))
    d_r = default_relaxivity(3.0).pos_hz_per_ppm
    if config.standard_share == 1:
        limits = TrainingRange(
            b0_t=(3.0, 3.0),
            voxel_mm=(1.0, 1.0),
            voxel_ratio=1.0,
            dr_hz_per_ppm=(d_r, d_r),
            dr_ratio=(1.0, 1.0),
        )
    else:
        limits = TrainingRange(
            b0_t=config.b0_t,
            voxel_mm=(thinnest, thickest),
            voxel_ratio=config.slice_ratio,
            tilt_deg=config.tilt_deg,
            dr_hz_per_ppm=_rounded(config.dr_hz_per_ppm[0] * told_low, config.dr_hz_per_ppm[1] * told_high),
            dr_ratio=_rounded(ratio_low * told_low / told_high, ratio_high * told_high / told_low),
        )
    limits.field_noise_ppb, limits.r2prime_noise_ppb = field_ppb, r2prime_ppb
    return _of_network(network, limits)


@cache
def _drawn_noise_ppb(config: ProtocolConfig) -> tuple[Range, Range]:
    """Lowest and highest noise of field and R2'/D_r,pos under drawn protocols."""
    rng = np.random.default_rng(0)
    field, r2prime = zip(*(_noise_ppb(drawn(rng, config, 1)) for _ in range(_DRAWS)), strict=True)
    return _rounded(min(field), max(field)), _rounded(min(r2prime), max(r2prime))


def range_of_scans(
    scans: Sequence[ScanFacts], network: NetworkConfig, scanner: ScannerConfig | None = None
) -> TrainingRange:
    """Range of a dataset's own scans.

    Parameters
    ----------
    scans
        Grid and field strength of each.
    network
        Which maps it reads. R2' and R2* are divided by the default D_r of the field strength.
    scanner
        How the scans were simulated; None: their noise is not known.
    """
    edges = [edge for scan in scans for edge in scan.grid.voxel_mm]
    fields = [scan.b0_t for scan in scans]
    ratio = max(max(scan.grid.voxel_mm) / min(scan.grid.voxel_mm) for scan in scans)
    d_r = default_relaxivity(3.0).pos_hz_per_ppm
    limits = TrainingRange(
        b0_t=(min(fields), max(fields)),
        voxel_mm=_rounded(min(edges), max(edges)),
        voxel_ratio=float(f"{ratio:.3g}"),
        dr_hz_per_ppm=(d_r, d_r),
        dr_ratio=(1.0, 1.0),
    )
    if scanner is not None:
        known = default_relaxivity(scanner.b0_t)
        protocol = DrawnProtocol(
            _GRID, scanner.b0_t, known, known, scanner.te_gre_s, scanner.te_se_s, scanner.snr, False
        )
        field_ppb, r2prime_ppb = _noise_ppb(protocol)
        limits.field_noise_ppb = _rounded(field_ppb, field_ppb)
        limits.r2prime_noise_ppb = _rounded(r2prime_ppb, r2prime_ppb)
    return _of_network(network, limits)


def _of_network(network: NetworkConfig, limits: TrainingRange) -> TrainingRange:
    """Leave out what a network does not read."""
    rates: set[Channel] = {"r2prime", "r2star"}
    if rates.isdisjoint(network.inputs):
        limits.dr_hz_per_ppm = limits.dr_ratio = None
    if "field" not in network.inputs:
        limits.field_noise_ppb = None
    if "r2prime" not in network.inputs:
        limits.r2prime_noise_ppb = None
    if network.outputs == ("r2prime",):
        limits.dr_ratio = None
    if network.b0_along_z:
        limits.tilt_deg = None
    return limits


def _noise_ppb(protocol: DrawnProtocol) -> tuple[float, float]:
    """Noise of field and R2'/D_r,pos in tissue with mean sources."""
    one = torch.ones(1, 1, 1)
    pos, neg = (ppm * one for ppm in _TISSUE_PPM)
    r2 = r2_at_field_hz(pseudo_r2_hz(3.0) * one, protocol.b0_t)
    r2star = r2 + r2prime_of_sources(pos, neg, protocol.relaxivity)
    gre_hz = _sigma_hz(r2star, protocol.te_gre_s, protocol.snr)
    if protocol.gre_only:
        se_hz = PSEUDO_R2_SD * pseudo_r2_hz(protocol.b0_t)
    else:
        se_hz = _sigma_hz(r2, protocol.te_se_s, protocol.snr)
    field_ppm = gre_hz / (2 * math.pi * hz_per_ppm(protocol.b0_t))
    return 1000 * field_ppm, 1000 * math.hypot(gre_hz, se_hz) / protocol.assumed.pos_hz_per_ppm


def _sigma_hz(rate_hz: torch.Tensor, te_s: Sequence[float], snr: float) -> float:
    mask = torch.ones(rate_hz.shape, dtype=torch.bool)
    signal = se_signal(torch.ones(rate_hz.shape), rate_hz, te_s)
    return float(rate_sigma_hz(signal, mask, te_s, snr))


def _rounded(low: float, high: float) -> Range:
    return float(f"{low:.3g}"), float(f"{high:.3g}")
