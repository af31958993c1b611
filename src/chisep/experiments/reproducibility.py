"""Reproducibility: one head in several protocols, scanners and runs; region means compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.texts import markdown
from chisep.io.files import checksum, make_directory, write_json, write_text
from chisep.networks.inference import NetworkOptions
from chisep.preprocessing.background import remove_background
from chisep.preprocessing.field import total_field as measured_field
from chisep.preprocessing.mask import quality_mask
from chisep.progress import Progress
from chisep.simulation.dataset import SimulateConfig, healthy_tissue
from chisep.simulation.fields import total_field
from chisep.simulation.measured import measured_maps
from chisep.simulation.scanner import ScannerConfig, scan_gre, session_coils
from chisep.simulation.tissue import Tissue
from chisep.types import Maps

MAPS = ("chi", "chi_pos", "chi_neg")
_NAMES = {"chi": "χ", "chi_pos": "χ_pos", "chi_neg": "χ_neg"}
_FEWEST_ML = 0.25
"""Smallest volume of a region."""
_RUNS = 3
_Z95 = 1.96


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


@dataclass(frozen=True, kw_only=True)
class ReproducibilityConfig:
    """One head, four protocols, two scanners, three runs; finished scans are kept."""

    out: Positional[Path]
    """Folder for the results. A scan is computed again if its options or weights change; after a change of
    the code remove its file in the folder `cells`."""
    labels: Path | None = None
    """Label map of the head; the packaged head if none."""
    methods: tuple[str, ...] = ("unrolled", "iterative", "closed-form")
    """Separation methods."""
    voxel_mm: float = 1.5
    """Voxel edge of the first protocol in mm."""
    seed: int = 25
    """Seed of the head, the coils and the noise."""

    def __post_init__(self) -> None:
        for name in self.methods:
            methods.find(name, "sources")


@dataclass(frozen=True)
class _Scan:
    protocol: Protocol
    scanner: Scanner
    run: int

    @property
    def name(self) -> str:
        return f"{self.protocol.name}{self.scanner.name}-run{self.run}"


def scans() -> list[_Scan]:
    """All protocols on the first scanner, the first protocol on both, three runs of each."""
    pairs = [(protocol, SCANNERS[0]) for protocol in PROTOCOLS] + [(PROTOCOLS[0], SCANNERS[1])]
    return [_Scan(protocol, scanner, run) for protocol, scanner in pairs for run in range(1, _RUNS + 1)]


def reproducibility(config: ReproducibilityConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate, process and compare all scans.

    Returns
    -------
    list of Path
        reproducibility.md, reproducibility.json.

    Raises
    ------
    ChisepError
        If a scan cannot be made or a result not be written.
    """
    make_directory(config.out)
    listed = scans()
    means: dict[str, dict[str, Any]] = {name: {} for name in config.methods}
    for done, scan in enumerate(listed):
        for method in config.methods:
            if progress is not None:
                progress(f"scan {scan.name}, {method}", done, len(listed))
            means[method][scan.name] = _stored(config, scan, method)["Regions"]
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": "packaged head" if config.labels is None else config.labels.name,
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Rows": [
            {"Method": method, "Comparison": name, "Map": of_map} | agreement(means[method], pairs, of_map)
            for method in config.methods
            for name, pairs in comparisons(listed).items()
            for of_map in MAPS
        ],
        "Means": means,
    }
    return [
        write_text(config.out / "reproducibility.md", page(found)),
        write_json(config.out / "reproducibility.json", found),
    ]


def comparisons(listed: Sequence[_Scan]) -> dict[str, list[tuple[str, str]]]:
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


def agreement(
    means: Mapping[str, Mapping[str, Mapping[str, float]]], pairs: Sequence[tuple[str, str]], of_map: str
) -> dict[str, float]:
    """Slope of region means of one scan on another's, and Bland-Altman statistics in ppb.

    Parameters
    ----------
    means
        Region means in ppb by scan, region and map.
    pairs
        Names of the scans to compare.
    of_map
        Map.

    Returns
    -------
    dict
        Mean |slope − 1| over pairs, bias and half width of the 95 % limits of agreement over pairs and
        regions.
    """
    slopes, differences = [], []
    for one, other in pairs:
        regions = sorted(set(means[one]) & set(means[other]))
        x, y = (np.array([means[name][region][of_map] for region in regions]) for name in (one, other))
        slopes.append(_slope(x, y))
        differences.append(y - x)
    together = np.concatenate(differences)
    return {
        "Pairs": len(pairs),
        "MeanSlopeError": float(np.mean(np.abs(np.array(slopes) - 1))),
        "BiasPpb": float(together.mean()),
        "LimitsPpb": float(_Z95 * together.std(ddof=1)),
    }


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Slope of the orthogonal line, which is 1/slope if both scans change places."""
    covariance = np.cov(x, y)
    difference = covariance[1, 1] - covariance[0, 0]
    root = np.hypot(difference, 2 * covariance[0, 1])
    return float((difference + root) / (2 * covariance[0, 1]))


def _stored(config: ReproducibilityConfig, scan: _Scan, method: str) -> dict[str, Any]:
    key = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Scan": asdict(scan),
        "Head": None if config.labels is None else checksum(config.labels),
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Method": method,
        "Weights": methods.weights_used(method, NetworkOptions(), chi_given=False)
        if methods.METHODS[method].is_network
        else methods.settings(method),
    }
    path = config.out / "cells" / f"{scan.name}_{method}.json"
    return cached_result(path, key, lambda: {"Regions": _region_means(config, scan, method)})


_PREPARED: dict[str, tuple[str, Tissue, Maps]] = {}


def _region_means(config: ReproducibilityConfig, scan: _Scan, method: str) -> dict[str, dict[str, float]]:
    """Region means in ppb of a scan's maps."""
    if _PREPARED.get("scan", ("",))[0] != scan.name:
        _PREPARED["scan"] = (scan.name, *_processed(config, scan))
    _, tissue, maps = _PREPARED["scan"]
    made = methods.separate(maps, method)
    volumes = {"chi": made.chi_ppm, "chi_pos": made.chi_pos_ppm, "chi_neg": made.chi_neg_ppm}
    millilitre = float(np.prod(tissue.grid.voxel_mm)) / 1000
    found = {}
    for label in np.unique(tissue.labels[tissue.mask].numpy()).tolist():
        region = (tissue.labels == label) & tissue.mask
        if float(region.sum()) * millilitre >= _FEWEST_ML:
            found[str(label)] = {
                name: 1000 * float(volume[region].double().mean()) for name, volume in volumes.items()
            }
    return found


def _processed(config: ReproducibilityConfig, scan: _Scan) -> tuple[Tissue, Maps]:
    """Simulate the echoes of a scan and compute its local field; R2' has the noise of its echoes."""
    protocol, scanner = scan.protocol, scan.scanner
    i, j, k = (edge * config.voxel_mm for edge in protocol.edges)
    how = SimulateConfig(
        out=config.out,
        labels=() if config.labels is None else (config.labels,),
        seed=config.seed,
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
    coils_rng = np.random.default_rng([config.seed, int(scanner.name)])
    noise_rng, rate_rng = np.random.default_rng(
        [config.seed, int(scanner.name), scan.run, PROTOCOLS.index(protocol)]
    ).spawn(2)
    fields = total_field(tissue)
    signal = scan_gre(tissue, fields.total_ppm, session_coils(tissue, how, coils_rng), how, noise_rng)
    total = measured_field(
        signal.abs(), signal.angle(), protocol.te_s, protocol.b0_t, tissue.mask, tissue.grid
    )
    known = quality_mask(total.quality, total.reliable & tissue.mask, tissue.grid)
    local = remove_background(total.total_field_ppm, known, tissue.grid, sigma_ppm=total.sigma_ppm)
    rates = measured_maps(tissue, how, rate_rng)
    return tissue, Maps(
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


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    lines = [
        [
            row["Method"],
            row["Comparison"],
            _NAMES[row["Map"]],
            str(row["Pairs"]),
            f"{row['MeanSlopeError']:.3f}",
            f"{row['BiasPpb']:+.2f}",
            f"±{row['LimitsPpb']:.2f}",
        ]
        for row in found["Rows"]
    ]
    protocols = [
        [
            one.name,
            f"{one.b0_t:g}",
            " × ".join(f"{edge * found['VoxelMm']:.3g}" for edge in one.edges),
            ", ".join(f"{1000 * te_s:g}" for te_s in one.te_s),
            f"{one.snr:g}",
        ]
        for one in PROTOCOLS
    ]
    head = str(found["Head"]).removesuffix("_dseg.nii.gz")
    return (
        f"# Reproducibility\n\nOne simulated head ({head}); every protocol on scanner 1, protocol A on "
        "scanner 2 too (other coils, head position, B0 direction, bipolar read-out), three runs of each. "
        "Echoes are simulated and processed to the local field; R2' is simulated with the noise of its "
        "echoes; D_r is the true one (114·B0/3). Region means of two scans are compared: mean |slope − 1| "
        "over pairs of scans, bias and 95 % limits of agreement (Bland-Altman, ppb) over both.\n\n"
        + markdown(["protocol", "B0 (T)", "voxel (mm)", "echoes (ms)", "SNR"], protocols)
        + "\n"
        + markdown(
            ["method", "between", "map", "pairs", "mean |slope − 1|", "bias (ppb)", "limits (ppb)"], lines
        )
    )
