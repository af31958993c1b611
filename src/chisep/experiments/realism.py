"""Digital heads beside what was measured in people: percentiles, regional means, spectra.

Published regional means: χ-separation atlas of 106 healthy brains (Min 2024, 10.1002/nbm.5226). Published
whole-brain values: a COSMOS map of one volunteer, and the training statistics of χ-sepnet (Human Brain
Mapping 2025).
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int16
from matplotlib.figure import Figure
from scipy import fft, ndimage

import chisep
from chisep.errors import ChisepWarning, InputError
from chisep.experiments.common.texts import markdown
from chisep.io.files import checksum, make_directory, write_bytes, write_json, write_text
from chisep.physics.dipole import Dipole
from chisep.progress import Progress
from chisep.report import figures
from chisep.report.figures import MaskArray, VolumeArray
from chisep.simulation import labelmap
from chisep.simulation.anatomy import load_labels, packaged_labels, with_structures
from chisep.simulation.tissue import Tissue, TissueConfig, make_tissue
from chisep.simulation.warps import WarpConfig, warped

LabelArray = Int16[np.ndarray, "i j k"]
"""One label per voxel."""
Values = Float[np.ndarray, " n"]
"""Values of a map, in any order."""

B0_T = 3.0
"""Field strength of the published rates."""
PERCENTILES = (1, 5, 50, 95, 99)
"""Percentiles of every map over the brain."""
BAND_EDGES_MM = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Wavelengths between which the octave bands of a spectrum lie."""
MAP_UNITS = {
    "chi": "ppb",
    "chi_pos": "ppb",
    "chi_neg": "ppb",
    "field": "ppb",
    "r2prime": "1/s",
    "r2star": "1/s",
    "r2": "1/s",
}
"""Unit of each map that is measured."""

_NAMES = {
    "chi": "χ",
    "chi_pos": "χ_pos",
    "chi_neg": "χ_neg",
    "field": "local field",
    "r2prime": "R2'",
    "r2star": "R2*",
    "r2": "R2",
}
_HISTOGRAM_WINDOWS = {
    "chi": (-120.0, 160.0),
    "chi_pos": (0.0, 200.0),
    "chi_neg": (0.0, 120.0),
    "field": (-50.0, 50.0),
    "r2prime": (0.0, 30.0),
    "r2star": (0.0, 50.0),
}
_BINS = 70
_SPECTRUM_MM = 256.0
"""Least edge of the volume that a spectrum is taken of, so that the longest wavelengths have samples."""
_FIGURE_DPI = 75


@dataclass(frozen=True)
class Target:
    """A published number, and the range around it that counts as agreement.

    Parameters
    ----------
    map, statistic
        What it is of: a key of `MAP_UNITS`, a key of `statistics`.
    published, low, high
        In the map's unit.
    source
        Where it was measured.
    """

    map: str
    statistic: str
    published: float
    low: float
    high: float
    source: str

    @classmethod
    def around(cls, map_name: str, statistic: str, published: float, part: float, source: str) -> Target:
        """Return a target that holds within a part of the published value to either side."""
        low, high = sorted((published * (1 - part), published * (1 + part)))
        return cls(map_name, statistic, published, low, high, source)


_COSMOS = "COSMOS of 12 orientations, one volunteer at 3 T, 1.06 mm"
_TRAINING = "training data of χ-sepnet at 3 T (Human Brain Mapping 2025)"
TARGETS = (
    *(
        Target.around("chi", statistic, value, 0.25, _COSMOS)
        for statistic, value in (("p1", -53.0), ("p5", -34.0), ("p95", 41.0), ("p99", 107.0))
    ),
    Target("field", "sd", 11.0, 9.0, 13.0, "the same volunteer"),
    *(
        Target.around(name, statistic, value, 0.3, _TRAINING)
        for name, statistic, value in (
            ("chi_pos", "mean", 26.0),
            ("chi_pos", "sd", 35.0),
            ("chi_neg", "mean", 27.0),
            ("chi_neg", "sd", 28.0),
            ("r2prime", "mean", 5.9),
            ("r2star", "mean", 18.1),
            ("r2", "mean", 12.7),
        )
    ),
)
"""Whole-brain numbers measured in people."""


@dataclass(frozen=True)
class RegionTarget:
    """Published mean sources of a region.

    Parameters
    ----------
    name
        Of the region.
    labels
        Label numbers of both sides.
    chi_pos_ppb, chi_neg_ppb
        Mean over people; χ_neg is a magnitude.
    in_atlas
        Whether the atlas lists the region; if not, the values are a collection of the literature.
    """

    name: str
    labels: tuple[int, ...]
    chi_pos_ppb: float
    chi_neg_ppb: float
    in_atlas: bool = True


PEOPLE_SD = 0.25
"""Agreement of a regional mean: the atlas' SD between people is 6 to 25 % of the mean, region by region."""
_CALLOSUM_BODY = (252, labelmap.CALLOSUM_BODY, 254)
_CEREBRAL_WHITE = tuple(
    label
    for label in labelmap.WHITE_MATTER
    if label not in (*labelmap.CEREBELLAR_WHITE, *labelmap.PEDUNCLE, *labelmap.CORTICOSPINAL)
)
REGION_TARGETS = (
    RegionTarget("pallidum", (*labelmap.PALLIDUM, *labelmap.PALLIDUM_INTERNUM), 132.0, 13.0),
    RegionTarget("putamen", labelmap.PUTAMEN, 77.0, 10.0),
    RegionTarget("caudate nucleus", labelmap.CAUDATE, 48.0, 8.0),
    RegionTarget("nucleus accumbens", (26, 58), 45.0, 23.0),
    RegionTarget("substantia nigra", labelmap.NIGRA, 116.0, 11.0),
    RegionTarget("red nucleus", labelmap.RED_NUCLEUS, 112.0, 10.0),
    RegionTarget("subthalamic nucleus", labelmap.SUBTHALAMIC, 112.0, 15.0),
    RegionTarget("whole thalamus", (*labelmap.THALAMUS, *labelmap.PULVINAR), 23.0, 21.0),
    RegionTarget("pulvinar", labelmap.PULVINAR, 52.0, 4.0),
    RegionTarget("genu of the corpus callosum", (labelmap.CALLOSUM_GENU,), 18.0, 31.0),
    RegionTarget("body of the corpus callosum", _CALLOSUM_BODY, 15.0, 35.0),
    RegionTarget("splenium of the corpus callosum", (labelmap.CALLOSUM_SPLENIUM,), 17.0, 42.0),
    RegionTarget("cerebral peduncle", labelmap.PEDUNCLE, 23.0, 44.0),
    RegionTarget("anterior limb of the internal capsule", labelmap.CAPSULE_ANTERIOR, 15.0, 41.0),
    RegionTarget("posterior limb of the internal capsule", labelmap.CAPSULE_POSTERIOR, 8.0, 52.0),
    # The atlas lists its parts, with χ_neg from 27 to 32.
    RegionTarget("corona radiata", labelmap.CORONA_RADIATA, 14.0, 29.5),
    RegionTarget("posterior thalamic radiation", labelmap.THALAMIC_RADIATION, 13.0, 41.0),
    RegionTarget("superior longitudinal fasciculus", labelmap.LONGITUDINAL, 23.0, 33.0),
    RegionTarget("whole white matter", _CEREBRAL_WHITE, 17.0, 29.0),
    RegionTarget("cerebral cortex", labelmap.CEREBRAL_CORTEX, 39.0, 19.0, in_atlas=False),
    RegionTarget("dentate nucleus", labelmap.DENTATE, 168.0, 16.0, in_atlas=False),
)
"""Regions by the atlas of 106 brains; cortex and dentate nucleus as qsm-forward collects them."""


@dataclass(frozen=True, kw_only=True)
class RealismConfig:
    """Digital heads, measured as people were."""

    out: tyro.conf.Positional[Path]
    """Folder for realism.json, realism.md, the figures, and heads/ with a JSON file a head."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers; none: the packaged head."""
    heads: int | None = None
    """Number of heads, from the label maps in turn; one a label map, or 4 of the packaged head."""
    warp_mm: float = 3.0
    """Warp of every further head from one label map, as in `chisep simulate`; the first is not warped."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 0
    """Seed of all that is random; a head does not depend on how many there are."""
    jobs: int = 1
    """Heads made at the same time, each in a process of its own (about 3 GB at 1 mm)."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """How people and voxels differ."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("heads", self.number_of_heads, 1, math.inf),
            ("voxel_mm", self.voxel_mm, 0.5, 8.0),
            ("seed", self.seed, 0, math.inf),
            ("jobs", self.jobs, 1, math.inf),
        ):
            if not low <= value <= high:
                raise InputError(
                    name,
                    found=f"{value}",
                    expected=f"a number from {low:g} to {high:g}",
                    fix="Correct the option.",
                )
        WarpConfig(warp_mm=self.warp_mm)

    @property
    def number_of_heads(self) -> int:
        """Heads to make."""
        return (len(self.labels) or 4) if self.heads is None else self.heads


def realism(config: RealismConfig, progress: Progress | None = None) -> list[Path]:
    """Make heads, measure them, and put them beside published values.

    Heads that were measured with equal options are not made again.

    Parameters
    ----------
    config
        Which heads, and where results go.
    progress
        Told how many heads are measured.

    Returns
    -------
    list of Path
        The table (realism.md), all numbers (realism.json) and the figures.

    Raises
    ------
    InputError
        If a label map cannot be used.
    OutputError
        If the folder cannot be written.
    """
    make_directory(config.out)
    works = [_Work(config, index) for index in range(config.number_of_heads)]
    missing = [work for work in works if not work.is_done()]
    if progress is not None:
        progress("heads", len(works) - len(missing), len(works))
    for done, name in enumerate(_made(missing, config.jobs), start=len(works) - len(missing) + 1):
        if progress is not None:
            progress(name, done, len(works))
    heads = [work.result() for work in works]
    summary = summarised(heads)
    options = {key: value for key, value in asdict(config).items() if key not in ("out", "labels", "jobs")}
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Options": _plain(options),
        "Units": MAP_UNITS | {"density": "ppb² mm³"},
        "Summary": summary,
        "Heads": heads,
    }
    return [
        write_text(config.out / "realism.md", tables(summary, len(heads))),
        write_json(config.out / "realism.json", found),
        *(_write_figure(config.out / f"{name}.png", plot) for name, plot in _line_figures(heads)),
        *works[0].figures,
    ]


# ---- measures ------------------------------------------------------------------------------------------


def statistics(values: Values) -> dict[str, float]:
    """Percentiles (p1, p5, p50, p95, p99), mean and standard deviation of values."""
    found = {f"p{p}": value for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
    found |= {"mean": values.mean(dtype=np.float64), "sd": values.std(dtype=np.float64)}
    return {name: _rounded(value) for name, value in found.items()}


def spectrum(
    volume: VolumeArray, mask: MaskArray, voxel_mm: Sequence[float]
) -> list[dict[str, float | None]]:
    """Radially averaged power of a map in a mask, in octave bands of wavelength.

    Parameters
    ----------
    volume
        The map; its mean in the mask is taken off, and it is 0 outside.
    mask
        Where it counts.
    voxel_mm
        Voxel edges.

    Returns
    -------
    list of dict
        For each band its wavelengths `from_mm` and `to_mm`, the mean power `density` (unit of the map
        squared times mm³; noise of SD σ that is independent from voxel to voxel has σ² times the voxel's
        volume in every band) and `rms`, what the band adds to the map: squares add up to the variance.
        Both are None in bands that voxels are too large for.
    """
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    inside = mask[box]
    masked = np.where(inside, volume[box] - volume[mask].mean(dtype=np.float64), 0).astype(np.float32)
    shape = [
        fft.next_fast_len(max(n, math.ceil(_SPECTRUM_MM / edge)), real=True)
        for n, edge in zip(masked.shape, voxel_mm, strict=True)
    ]
    power = np.abs(fft.rfftn(masked, shape)) ** 2
    axes = [fft.fftfreq(n, edge) for n, edge in zip(shape[:2], voxel_mm, strict=False)]
    axes.append(fft.rfftfreq(shape[2], voxel_mm[2]))
    square = sum(k.astype(np.float32) ** 2 for k in np.ix_(*axes))
    # The half spectrum of a real map: all but its first (and, if even, last) plane stand for two samples.
    weight = np.full(power.shape[2], 2.0)
    weight[0] = 1.0
    if shape[2] % 2 == 0:
        weight[-1] = 1.0
    volume_mm3 = math.prod(voxel_mm)
    to_density = volume_mm3 / int(inside.sum())
    sample = 1 / (math.prod(shape) * volume_mm3)
    bands: list[dict[str, float | None]] = []
    for from_mm, to_mm in pairwise(BAND_EDGES_MM):
        band: dict[str, float | None] = {"from_mm": from_mm, "to_mm": to_mm, "density": None, "rms": None}
        if from_mm >= 2 * max(voxel_mm) * (1 - 1e-6):
            here = (square >= 1 / to_mm**2) & (square < 1 / from_mm**2)
            count = float((here.sum((0, 1)) * weight).sum())
            total = float((np.where(here, power, 0).sum((0, 1), dtype=np.float64) * weight).sum())
            band["density"] = _rounded(to_density * total / count)
            band["rms"] = _rounded(math.sqrt(to_density * total * sample))
        bands.append(band)
    return bands


def region_means(
    chi_pos_ppb: VolumeArray,
    chi_neg_ppb: VolumeArray,
    labels: LabelArray,
    mask: MaskArray,
) -> dict[str, dict[str, float]]:
    """Mean χ_pos and χ_neg of the regions of `REGION_TARGETS` that a head has, with their voxels.

    Parameters
    ----------
    chi_pos_ppb, chi_neg_ppb
        Sources.
    labels
        Label in the centre of each voxel.
    mask
        Brain.
    """
    found = {}
    for region in REGION_TARGETS:
        here = np.isin(labels, region.labels) & mask
        if here.any():
            found[region.name] = {
                "chi_pos": _rounded(chi_pos_ppb[here].mean(dtype=np.float64)),
                "chi_neg": _rounded(chi_neg_ppb[here].mean(dtype=np.float64)),
                "voxels": int(here.sum()),
            }
    return found


def measured(tissue: Tissue) -> tuple[dict[str, Any], dict[str, VolumeArray]]:
    """Measure a head.

    Returns
    -------
    dict
        Statistics, histogram and spectra of its maps over the brain, and regional means.
    dict
        The maps by the names of `MAP_UNITS`, each of shape (i, j, k) in its unit, 0 outside the brain.
    """
    brain = tissue.mask
    chi = tissue.chi_pos_ppm - tissue.chi_neg_ppm
    volumes = {
        "chi": 1000 * chi,
        "chi_pos": 1000 * tissue.chi_pos_ppm,
        "chi_neg": 1000 * tissue.chi_neg_ppm,
        "field": 1000 * Dipole(tissue.grid).apply(chi) * brain,
        "r2prime": tissue.r2prime_hz,
        "r2star": (tissue.r2_hz + tissue.r2prime_hz) * brain,
        "r2": tissue.r2_hz * brain,
    }
    maps = {name: volume.numpy() for name, volume in volumes.items()}
    mask = brain.numpy()
    result = {
        "brain_ml": _rounded(float(mask.sum()) * math.prod(tissue.grid.voxel_mm) / 1000),
        "statistics": {name: statistics(volume[mask]) for name, volume in maps.items()},
        "regions": region_means(maps["chi_pos"], maps["chi_neg"], tissue.labels.numpy(), mask),
        "spectrum": {name: spectrum(maps[name], mask, tissue.grid.voxel_mm) for name in ("chi", "field")},
        "histogram_percent": {
            name: [
                _rounded(100 * count / mask.sum())
                for count in np.histogram(maps[name][mask], _BINS, window)[0]
            ]
            for name, window in _HISTOGRAM_WINDOWS.items()
        },
    }
    return result, maps


# ---- heads that are whole or absent --------------------------------------------------------------------


class _Work:
    """One head: whether it was measured, and how it is.

    Parameters
    ----------
    config
        Of the experiment.
    index
        Number of the head, from 0.
    """

    def __init__(self, config: RealismConfig, index: int) -> None:
        self.config, self.index, self.name = config, index, f"head-{index + 1:02d}"
        maps = len(config.labels) or 1
        self.labels = config.labels[index % maps] if config.labels else None
        self.warp = WarpConfig(warp_mm=config.warp_mm if index >= maps else 0.0)
        self.path = config.out / "heads" / f"{self.name}.json"
        self.figures = [config.out / f"maps-{part}.png" for part in ("sources", "rates")] if not index else []

    def recipe(self) -> dict[str, Any]:
        """All that the measures depend on."""
        name, sha256 = "packaged MNI152 head", None
        if self.labels is not None and self.labels.is_file():
            name, sha256 = self.labels.name, checksum(self.labels)
        facts = {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Head": name,
            "HeadSha256": sha256,
            "Seed": [self.config.seed, self.index],
            "VoxelMm": self.config.voxel_mm,
            "Warp": asdict(self.warp),
            "Tissue": asdict(self.config.tissue),
        }
        return _plain(facts)

    def is_done(self) -> bool:
        """Whether all is there from the same recipe."""
        if not all(path.is_file() for path in (self.path, *self.figures)):
            return False
        return bool(self.result()["recipe"] == self.recipe())

    def result(self) -> dict[str, Any]:
        """Read what was measured."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))

    def make(self) -> str:
        """Make the head, measure it, write the result; returns its name."""
        head = packaged_labels() if self.labels is None else load_labels(self.labels)
        rng = np.random.default_rng([self.config.seed, self.index])
        warp_rng, anatomy_rng, tissue_rng = rng.spawn(3)
        head = with_structures(warped(head, self.warp, warp_rng), anatomy_rng)
        edges = (self.config.voxel_mm,) * 3
        tissue = make_tissue(head, tissue_rng, self.config.tissue, voxel_mm=edges, b0_t=B0_T)
        result, maps = measured(tissue)
        for path, plot in zip(self.figures, _map_figures(tissue, maps), strict=False):
            _write_figure(path, plot)
        write_json(self.path, {"name": self.name, **result, "recipe": self.recipe()})
        return self.name


def _made(works: Sequence[_Work], jobs: int) -> Iterator[str]:
    """Make heads, several at a time if asked; yields the name of each."""
    if jobs == 1 or len(works) < 2:
        yield from (work.make() for work in works)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # Processes start afresh: copies of one whose threads are at work may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for future in as_completed([pool.submit(_make_apart, work) for work in works]):
                name, said = future.result()
                for message in said:
                    warnings.warn(message, ChisepWarning, stacklevel=3)
                yield name
        finally:
            pool.shutdown(cancel_futures=True)


def _make_apart(work: _Work) -> tuple[str, list[str]]:
    """Make a head in this process; returns its name and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name = work.make()
    return name, [str(warning.message) for warning in caught if issubclass(warning.category, ChisepWarning)]


# ---- beside the published values -----------------------------------------------------------------------


def summarised(heads: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Put heads beside the published values.

    Parameters
    ----------
    heads
        What was measured of each.

    Returns
    -------
    dict
        Rows of `targets`, `regions` and `spectrum` (of χ): mean and SD over the heads, the published value
        and whether the mean agrees with it.
    """
    return {
        "targets": [_target_row(target, heads) for target in TARGETS],
        "regions": [row for region in REGION_TARGETS for row in _region_rows(region, heads)],
        "spectrum": [
            _band_row([head["spectrum"]["chi"][band] for head in heads])
            for band in range(len(BAND_EDGES_MM) - 1)
        ],
    }


def _target_row(target: Target, heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [head["statistics"][target.map][target.statistic] for head in heads]
    return (
        asdict(target)
        | _over_heads(values)
        | {
            "agrees": target.low <= float(np.mean(values)) <= target.high,
            "heads_that_agree": sum(target.low <= value <= target.high for value in values),
        }
    )


def _region_rows(region: RegionTarget, heads: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    present = [head["regions"][region.name] for head in heads if region.name in head["regions"]]
    if not present:
        return
    for source, published in (("chi_pos", region.chi_pos_ppb), ("chi_neg", region.chi_neg_ppb)):
        values = [means[source] for means in present]
        deviation = float(np.mean(values)) / published - 1
        yield {
            "region": region.name,
            "map": source,
            "published": published,
            "in_atlas": region.in_atlas,
            **_over_heads(values),
            "deviation_percent": _rounded(100 * deviation),
            "agrees": abs(deviation) <= PEOPLE_SD,
            "heads": len(values),
        }


def _band_row(bands: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    row: dict[str, Any] = {"from_mm": bands[0]["from_mm"], "to_mm": bands[0]["to_mm"]}
    densities = [band["density"] for band in bands if band["density"]]
    rms = [band["rms"] for band in bands if band["rms"] is not None]
    if densities:
        logs = np.log10(densities)
        row |= {"log10_density": _rounded(logs.mean()), "log10_density_sd": _rounded(logs.std())}
        row |= {"rms": _rounded(np.mean(rms))}
    return row


def _over_heads(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation between heads (0 for one head)."""
    sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return {"mean": _rounded(np.mean(values)), "sd": _rounded(sd)}


def tables(summary: Mapping[str, Sequence[Mapping[str, Any]]], heads: int) -> str:
    """Write what `summarised` returns as Markdown tables."""
    whole = [
        (
            f"{_NAMES[row['map']]} {row['statistic']} ({MAP_UNITS[row['map']]})",
            f"{row['mean']:.3g} ± {row['sd']:.2g}",
            f"{row['published']:g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
            _verdict(row["agrees"]),
            f"{row['heads_that_agree']}/{heads}",
            row["source"],
        )
        for row in summary["targets"]
    ]
    regions = [
        (
            row["region"] + ("" if row["in_atlas"] else " (not in the atlas)"),
            _NAMES[row["map"]],
            f"{row['mean']:.1f} ± {row['sd']:.1f}",
            f"{row['published']:g}",
            f"{row['deviation_percent']:+.0f} %",
            _verdict(row["agrees"]),
        )
        for row in summary["regions"]
    ]
    bands = [
        (
            f"{row['from_mm']:g}–{row['to_mm']:g}",
            *(
                (f"{row['log10_density']:.2f} ± {row['log10_density_sd']:.2f}", f"{row['rms']:.1f}")
                if "rms" in row
                else ("voxels too large", "–")
            ),
        )
        for row in summary["spectrum"]
    ]
    return "\n".join(
        (
            f"# Realism of {heads} digital heads\n",
            "Mean ± SD over the heads.\n",
            "## Over the brain\n",
            markdown(
                ("", "heads", "published", "agreement", "mean agrees", "heads agree", "published for"), whole
            ),
            "## Regional means (ppb)\n",
            f"Published: Min 2024, 10.1002/nbm.5226; agreement within {100 * PEOPLE_SD:.0f} %.\n",
            markdown(("region", "map", "heads", "published", "deviation", "agrees"), regions),
            "## Spectrum of χ\n",
            markdown(("wavelength (mm)", "log10 density (ppb² mm³)", "rms in the band (ppb)"), bands),
        )
    )


def _verdict(agrees: bool) -> str:
    return "yes" if agrees else "**no**"


def _map_figures(tissue: Tissue, maps: Mapping[str, VolumeArray]) -> Iterator[Figure]:
    """Show maps at the windows they are read at, in planes through the lentiform nuclei."""
    mask = tissue.mask.numpy()
    lentiform = np.isin(tissue.labels.numpy(), (*labelmap.PUTAMEN, *labelmap.PALLIDUM))
    position = [round(float(axis.mean())) for axis in np.nonzero(lentiform)] if lentiform.any() else None
    for rows in (
        (
            ("chi_pos", figures.CHI_POS, figures.SOURCE_WINDOW_PPB),
            ("chi_neg", figures.CHI_NEG, figures.SOURCE_WINDOW_PPB),
            ("chi", figures.CHI, figures.TOTAL_WINDOW_PPB),
        ),
        (
            ("field", "local field", (-30.0, 30.0)),
            ("r2prime", "R2'", (0.0, 20.0)),
            ("r2star", "R2*", (0.0, 50.0)),
        ),
    ):
        shown = [figures.Row(title, maps[name], MAP_UNITS[name], window) for name, title, window in rows]
        yield figures.planes(shown, tissue.grid.matrix(), mask=mask, position=position)


def _line_figures(heads: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Histograms of all heads with published percentiles, and spectra."""
    panels = []
    for name, window in _HISTOGRAM_WINDOWS.items():
        marks = [t.published for t in TARGETS if t.map == name and t.statistic.startswith("p")]
        percent = np.array([head["histogram_percent"][name] for head in heads], dtype=np.float64)
        panels.append(figures.Distribution(_NAMES[name], MAP_UNITS[name], window, percent, marks))
    yield "histograms", figures.distributions(panels)
    densities = {
        _NAMES[name]: np.array(
            [[band["density"] or np.nan for band in head["spectrum"][name]] for head in heads]
        )
        for name in ("chi", "field")
    }
    yield "spectra", figures.band_spectra(densities, BAND_EDGES_MM, unit="ppb² mm³")


def _write_figure(path: Path, plot: Figure) -> Path:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=_FIGURE_DPI, metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())


def _rounded(value: float | np.floating[Any]) -> float:
    """Five digits: more would be noise in a file that people read."""
    return float(f"{float(value):.5g}")


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back: JSON has no tuples, paths or infinity."""
    return dict(json.loads(json.dumps(facts, default=str), parse_constant=str))
