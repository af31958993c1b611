"""Digital phantoms compared with measurements in vivo: percentiles, regional means, spectra.

Published regional means: χ-separation atlas of 106 healthy brains (Min 2024, 10.1002/nbm.5226). Published
whole-brain values: a COSMOS map of one volunteer, and the training statistics of χ-sepnet (Human Brain
Mapping 2025).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import chisep
from chisep.errors import ChisepWarning, InputError
from chisep.experiments.realism.measures import B0_T, MAP_UNITS, measured
from chisep.experiments.realism.results import _line_figures, _map_figures, _write_figure, summarised, tables
from chisep.io.files import checksum, make_directory, write_json, write_text
from chisep.progress import Progress
from chisep.simulation.anatomy import load_labels, packaged_labels, with_structures
from chisep.simulation.tissue import TissueConfig, make_tissue
from chisep.simulation.warps import WarpConfig, warped


@dataclass(frozen=True, kw_only=True)
class RealismConfig:
    """Digital phantoms, compared with measurements in vivo."""

    out: tyro.conf.Positional[Path]
    """Folder for realism.json, realism.md, the figures, and heads/ with one JSON file per phantom."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers; if unset: the packaged MNI152 head."""
    heads: int | None = None
    """Number of phantoms, from the label maps in turn; if unset: one each, or 4 of the packaged map."""
    warp_mm: float = 3.0
    """Warp of all phantoms of a label map but the first, as `--warp-mm` of `chisep simulate`."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 0
    """Seed of all random numbers; a phantom does not depend on the number of phantoms."""
    jobs: int = 1
    """Number of phantoms that are simulated in parallel, each in its own process (about 3 GB at 1 mm)."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """Variation of tissue between subjects and voxels."""

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
        """Number of heads."""
        return (len(self.labels) or 4) if self.heads is None else self.heads


def realism(config: RealismConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate heads and compare them with published values.

    Heads that were measured with equal options are not made again.

    Parameters
    ----------
    config
        Heads, and folder of results.
    progress
        Receives the number of finished heads.

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
    works = [_PhantomWork(config, index) for index in range(config.number_of_heads)]
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


class _PhantomWork:
    """One head of the experiment.

    Parameters
    ----------
    config
        Options of the experiment.
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
        """Everything that the measures depend on."""
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
        """Whether the result exists, from the same recipe."""
        if not all(path.is_file() for path in (self.path, *self.figures)):
            return False
        return bool(self.result()["recipe"] == self.recipe())

    def result(self) -> dict[str, Any]:
        """Read the result."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))

    def make(self) -> str:
        """Simulate the head, measure it and write the result; return its name."""
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


def _made(works: Sequence[_PhantomWork], jobs: int) -> Iterator[str]:
    """Simulate heads, in parallel if `jobs` says so; yield the name of each."""
    if jobs == 1 or len(works) < 2:
        yield from (work.make() for work in works)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # Processes start afresh: copies of one whose threads run may hang.
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


def _make_apart(work: _PhantomWork) -> tuple[str, list[str]]:
    """Simulate a head in this process; return its name and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name = work.make()
    return name, [str(warning.message) for warning in caught if issubclass(warning.category, ChisepWarning)]


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back: JSON has no tuples, paths or infinity."""
    return dict(json.loads(json.dumps(facts, default=str), parse_constant=str))
