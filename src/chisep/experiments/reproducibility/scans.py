"""Protocols, scanners and scans of the experiment, and the maps of a scan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from chisep.preprocessing.background import remove_background
from chisep.preprocessing.field import total_field as measured_field
from chisep.preprocessing.mask import quality_mask
from chisep.simulation.coils import Coils
from chisep.simulation.dataset import SimulateConfig, healthy_tissue
from chisep.simulation.fields import Fields, total_field
from chisep.simulation.measured import measured_maps
from chisep.simulation.scanner import ScannerConfig, scan_gre, session_coils
from chisep.simulation.tissue import Tissue
from chisep.types import Maps

RUNS = 3


@dataclass(frozen=True)
class Protocol:
    """A protocol.

    Parameters
    ----------
    name
        In the tables.
    b0_t
        Field strength in T.
    edges
        Voxel edges relative to that of the experiment.
    te_s
        Echo times of the gradient echo in s.
    snr
        Of the gradient echo.
    """

    name: str
    b0_t: float
    edges: tuple[float, float, float]
    te_s: tuple[float, ...]
    snr: float


PROTOCOLS = (
    Protocol("A", 3.0, (1.0, 1.0, 1.0), (0.005, 0.011, 0.017, 0.023, 0.029), 50.0),
    Protocol("B", 3.0, (0.9, 0.9, 1.3), tuple(0.003 + 0.004 * echo for echo in range(8)), 80.0),
    Protocol("C", 3.0, (1.2, 1.2, 1.2), (0.006, 0.013, 0.020), 40.0),
    Protocol("D", 7.0, (0.9, 0.9, 0.9), (0.004, 0.009, 0.014, 0.019), 60.0),
)
"""Voxels, echoes, field strength and SNR differ."""
_SE_7T_S = (0.010, 0.020, 0.030, 0.040, 0.050, 0.060)


@dataclass(frozen=True)
class Scanner:
    """A scanner: number of coils, rotation of the head in degrees, bipolar read-out."""

    name: str
    coils: int
    tilt_deg: tuple[float, float, float]
    bipolar: bool


SCANNERS = (Scanner("1", 8, (0.0, 0.0, 0.0), False), Scanner("2", 16, (6.0, -4.0, 3.0), True))
"""Coils, head position (and with it the shim and the B0 direction) and read-out differ."""


@dataclass(frozen=True)
class Scan:
    """A scan of the head: its protocol, its scanner, and the number of the run."""

    protocol: Protocol
    scanner: Scanner
    run: int

    @property
    def name(self) -> str:
        """Name in the tables, e.g. A1-run2."""
        return f"{self.protocol.name}{self.scanner.name}-run{self.run}"


@dataclass(frozen=True)
class HeadOptions:
    """Head of the scans: label map (None: the packaged head), voxel edge in mm, seed."""

    labels: Path | None
    voxel_mm: float
    seed: int


@dataclass(frozen=True, eq=False)
class Processed:
    """A scan with its tissue.

    Parameters
    ----------
    tissue
        On the grid of the scan.
    maps
        Inputs of a separation, by preprocessing.
    true_maps
        The same with the true field and R2' in the whole brain; the noise maps are those of the scan.
    """

    tissue: Tissue
    maps: Maps
    true_maps: Maps


def scans() -> list[Scan]:
    """All protocols on the first scanner, the first protocol on both, three runs of each."""
    pairs = [(protocol, SCANNERS[0]) for protocol in PROTOCOLS] + [(PROTOCOLS[0], SCANNERS[1])]
    return [Scan(protocol, scanner, run) for protocol, scanner in pairs for run in range(1, RUNS + 1)]


def comparisons(listed: Sequence[Scan]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of scans that differ in the run only, in the scanner, or in the protocol."""
    found: dict[str, list[tuple[str, str]]] = {"runs": [], "scanners": [], "protocols": []}
    for one, other in itertools.combinations(listed, 2):
        if one.protocol == other.protocol and one.scanner == other.scanner:
            found["runs"].append((one.name, other.name))
        elif one.run == other.run and one.protocol == other.protocol:
            found["scanners"].append((one.name, other.name))
        elif one.run == other.run and one.scanner == other.scanner:
            found["protocols"].append((one.name, other.name))
    return found


def processed(head: HeadOptions, scan: Scan) -> Processed:
    """Simulate the echoes of a scan and compute its local field; R2' has the noise of its echoes."""
    protocol, scanner = scan.protocol, scan.scanner
    how, tissue, fields, coils = _subject(head, protocol, scanner)
    noise_rng, rate_rng = np.random.default_rng(
        [head.seed, int(scanner.name), scan.run, PROTOCOLS.index(protocol)]
    ).spawn(2)
    signal = scan_gre(tissue, fields.total_ppm, coils, how, noise_rng)
    total = measured_field(
        signal.abs(), signal.angle(), protocol.te_s, protocol.b0_t, tissue.mask, tissue.grid
    )
    known = quality_mask(total.quality, total.reliable & tissue.mask, tissue.grid)
    local = remove_background(total.total_field_ppm, known, tissue.grid, sigma_ppm=total.sigma_ppm)
    rates = measured_maps(tissue, how, rate_rng)
    maps = Maps(
        field_ppm=local.local_field_ppm,
        mask=local.mask,
        support=tissue.mask,
        grid=tissue.grid,
        relaxivity=tissue.relaxivity,
        r2prime_hz=rates.r2prime_hz,
        r2prime_sigma_hz=rates.r2prime_sigma_hz,
        field_sigma_ppm=local.sigma_ppm,
        magnitude=torch.linalg.vector_norm(signal.abs(), dim=0),
        b0_t=protocol.b0_t,
    )
    true_maps = replace(
        maps,
        field_ppm=fields.local_ppm * tissue.mask,
        mask=tissue.mask,
        field_sigma_ppm=rates.field_sigma_ppm,
        r2prime_hz=tissue.r2prime_hz * tissue.mask,
    )
    return Processed(tissue, maps, true_maps)


@lru_cache(maxsize=1)
def _subject(
    head: HeadOptions, protocol: Protocol, scanner: Scanner
) -> tuple[SimulateConfig, Tissue, Fields, Coils]:
    """All that is the same in every run: options, tissue, field, sensitivities of the coils."""
    i, j, k = (edge * head.voxel_mm for edge in protocol.edges)
    how = SimulateConfig(
        out=Path("unused"),
        labels=() if head.labels is None else (head.labels,),
        seed=head.seed,
        voxel_mm=(i, j, k),
        b0_t=protocol.b0_t,
        te_gre_s=protocol.te_s,
        snr=protocol.snr,
        coils=scanner.coils,
        bipolar=scanner.bipolar,
        tilt_deg=scanner.tilt_deg,
        te_se_s=_SE_7T_S if protocol.b0_t > 3 else ScannerConfig.te_se_s,
    )
    tissue = healthy_tissue(how, 0)
    coils_rng = np.random.default_rng([head.seed, int(scanner.name)])
    return how, tissue, total_field(tissue), session_coils(tissue, how, coils_rng)
