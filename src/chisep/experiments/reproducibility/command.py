"""The experiment `reproducibility`: region means of all scans by all methods, and their agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.experiments.common.results import cached_result, code_checksum
from chisep.experiments.reproducibility.page import figure, page
from chisep.experiments.reproducibility.scans import (
    HeadOptions,
    Processed,
    Scan,
    comparisons,
    processed,
    scans,
)
from chisep.io.files import checksum, make_directory, write_bytes, write_json, write_text
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.report import figures
from chisep.types import Maps, Volume

MAPS = ("chi", "chi_pos", "chi_neg")
TRUTH = "truth"
TRUE_FIELD, TRUE_RATE, TRUE_BOTH = "true field", "true R2'", "true field and R2'"
PERFECT = (TRUE_FIELD, TRUE_RATE, TRUE_BOTH)
"""Inputs of the first method that are perfect in turn."""
_FEWEST_ML = 0.25
"""Smallest volume of a region."""
_Z95 = 1.96
_CODE = (
    *("experiments/reproducibility/scans.py", "methods", "networks", "physics", "preprocessing"),
    *("simulation", "solvers"),
)
"""Packages that region means depend on."""


@dataclass(frozen=True, kw_only=True)
class ReproducibilityConfig:
    """One head, four protocols, two scanners, three runs; finished scans are kept."""

    out: Positional[Path]
    """Folder for the results. A scan is computed again if its options, the weights or the code change."""
    labels: Path | None = None
    """Label map of the head; the packaged head if none."""
    methods: tuple[str, ...] = ("unrolled", "iterative", "closed-form", "unrolled-thesis", "chi-sepnet-r2p")
    """Separation methods; the first one is also run with perfect inputs."""
    voxel_mm: float = 1.5
    """Voxel edge of the first protocol in mm."""
    seed: int = 25
    """Seed of the head, the coils and the noise."""

    def __post_init__(self) -> None:
        for name in self.methods:
            methods.find(name, "sources")


def reproducibility(config: ReproducibilityConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate, process and compare all scans.

    Returns
    -------
    list of Path
        reproducibility.md, reproducibility.json, reproducibility.png.

    Raises
    ------
    ChisepError
        If a scan cannot be made or a result not be written.
    """
    make_directory(config.out)
    listed = scans()
    estimates = [(name, "") for name in config.methods]
    estimates += [(TRUTH, ""), *((config.methods[0], inputs) for inputs in PERFECT)]
    means: dict[str, dict[str, Any]] = {}
    for done, scan in enumerate(listed):
        for method, inputs in estimates:
            name = f"{method}, {inputs}" if inputs else method
            if inputs and scan.run > 1:
                continue
            if progress is not None:
                progress(f"scan {scan.name}, {name}", done, len(listed))
            means.setdefault(name, {})[scan.name] = _stored(config, scan, method, inputs)["Regions"]
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Code": code_checksum(*_CODE),
        "Head": "packaged head" if config.labels is None else config.labels.name,
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Methods": list(config.methods),
        "Rows": rows_of(means, listed),
        "Pairs": pairs_of(means, listed),
        "Means": means,
    }
    return [
        write_text(config.out / "reproducibility.md", page(found)),
        write_json(config.out / "reproducibility.json", found),
        write_bytes(config.out / "reproducibility.png", figures.png(figure(found))),
    ]


def rows_of(means: Mapping[str, Any], listed: Sequence[Scan]) -> list[dict[str, Any]]:
    """Agreement of every method between runs, scanners and protocols, for each map."""
    return [
        {"Method": name, "Comparison": comparison, "Map": of_map} | agreement(of, usable, of_map)
        for name, of in means.items()
        for comparison, pairs in comparisons(listed).items()
        if (usable := [pair for pair in pairs if set(pair) <= set(of)])
        for of_map in MAPS
    ]


def pairs_of(means: Mapping[str, Any], listed: Sequence[Scan]) -> list[dict[str, Any]]:
    """Slope and the largest difference between regions, for each pair of protocols."""
    found = []
    for name, of in means.items():
        for one, other in comparisons(listed)["protocols"]:
            if not (one.endswith("-run1") and one in of and other in of):
                continue
            for of_map in MAPS:
                regions, x, y = _values(of, one, other, of_map)
                slope = _slope(x, y)
                # From the line of slope 1 through the means; who moves the slope is far from them.
                moved = (y - y.mean() - (x - x.mean())) * (x + y - x.mean() - y.mean())
                worst = int(np.abs(moved).argmax())
                found.append(
                    {
                        "Method": name,
                        "Pair": f"{one[0]}–{other[0]}",
                        "Map": of_map,
                        "Slope": slope,
                        "Region": int(regions[worst]),
                        "RegionPpb": [float(x[worst]), float(y[worst])],
                    }
                )
    return found


def _values(
    means: Mapping[str, Mapping[str, Mapping[str, float]]], one: str, other: str, of_map: str
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    regions = sorted(set(means[one]) & set(means[other]))
    x, y = (np.array([means[name][region][of_map] for region in regions]) for name in (one, other))
    return regions, x, y


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
        _, x, y = _values(means, one, other, of_map)
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


def _stored(config: ReproducibilityConfig, scan: Scan, method: str, inputs: str) -> dict[str, Any]:
    key = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Code": code_checksum("simulation") if method == TRUTH else code_checksum(*_CODE),
        "Scan": asdict(scan),
        "Head": None if config.labels is None else checksum(config.labels),
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "Method": method,
        "Inputs": inputs,
        "Weights": _weights(method),
    }
    name = "-".join(part for part in (method, *inputs.replace("'", "").split()) if part)
    path = config.out / "cells" / f"{scan.name}_{name}.json"
    return cached_result(path, key, lambda: {"Regions": _region_means(config, scan, method, inputs)})


def _weights(method: str) -> Any:  # noqa: ANN401
    if method == TRUTH:
        return []
    if methods.METHODS[method].is_network:
        return methods.weights_used(method, NetworkOptions(), chi_given=False)
    return methods.settings(method)


_PREPARED: dict[str, tuple[str, Processed]] = {}


def _region_means(
    config: ReproducibilityConfig, scan: Scan, method: str, inputs: str
) -> dict[str, dict[str, float]]:
    """Region means in ppb of a scan's maps."""
    if _PREPARED.get("scan", ("",))[0] != scan.name:
        head = HeadOptions(config.labels, config.voxel_mm, config.seed)
        _PREPARED["scan"] = (scan.name, processed(head, scan))
    ready = _PREPARED["scan"][1]
    tissue = ready.tissue
    volumes = _volumes(ready, method, inputs)
    millilitre = float(np.prod(tissue.grid.voxel_mm)) / 1000
    found = {}
    for label in np.unique(tissue.labels[tissue.mask].numpy()).tolist():
        region = (tissue.labels == label) & tissue.mask
        if float(region.sum()) * millilitre >= _FEWEST_ML:
            found[str(label)] = {
                name: 1000 * float(volume[region].double().mean()) for name, volume in volumes.items()
            }
    return found


def _volumes(ready: Processed, method: str, inputs: str) -> dict[str, Volume]:
    if method == TRUTH:
        pos, neg = ready.tissue.chi_pos_ppm, ready.tissue.chi_neg_ppm
        return {"chi": pos - neg, "chi_pos": pos, "chi_neg": neg}
    made = methods.separate(_inputs(ready, inputs), method)
    return {"chi": made.chi_ppm, "chi_pos": made.chi_pos_ppm, "chi_neg": made.chi_neg_ppm}


def _inputs(ready: Processed, inputs: str) -> Maps:
    """Select the maps of the scan, with the named ones true."""
    maps, true = ready.maps, ready.true_maps
    if inputs == TRUE_FIELD:
        return replace(true, r2prime_hz=maps.r2prime_hz)
    if inputs == TRUE_RATE:
        return replace(maps, r2prime_hz=true.r2prime_hz)
    return true if inputs else maps
