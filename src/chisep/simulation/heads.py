"""Digital phantom of one subject, from its label map and the seed of the dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chisep.simulation.anatomy import LabelMap, load_labels, packaged_labels, tilted, with_structures
from chisep.simulation.config import SimulateConfig
from chisep.simulation.measured import MeasuredMaps, measured_maps
from chisep.simulation.tissue import Tissue, make_tissue
from chisep.simulation.variants import varied
from chisep.simulation.warps import warped

GRE_STREAM = 2
"""Index of the gradient-echo noise among the random streams of a subject."""


def label_map_path(config: SimulateConfig, index: int) -> Path | None:
    """Label map of a subject, numbered from 0; None for the packaged head."""
    return config.labels[index % len(config.labels)] if config.labels else None


def load_head(labels: Path | None) -> LabelMap:
    """Load a label map; the packaged head if None."""
    return packaged_labels() if labels is None else load_labels(labels)


def healthy_tissue(config: SimulateConfig, index: int) -> Tissue:
    """Recreate the head of a subject of `simulate`, without lesions.

    Parameters
    ----------
    config
        Of the dataset.
    index
        Number of the subject, from 0.

    Returns
    -------
    Tissue
        On the voxels of the scan.

    Raises
    ------
    InputError
        If its label map cannot be used.
    """
    head = load_head(label_map_path(config, index))
    streams = np.random.default_rng([config.seed, index]).spawn(8)
    return head_maker(config, head, streams[0], streams[1], streams[7])(config.voxel_edges_mm)


def first_maps(config: SimulateConfig, index: int) -> tuple[Tissue, MeasuredMaps]:
    """Recreate the maps of a subject's first scan as `simulate` with `maps_only` writes them.

    Parameters
    ----------
    config, index
        As of `healthy_tissue`; a dataset of maps only, without lesions and implants.

    Returns
    -------
    tuple
        The head and its measured maps.

    Raises
    ------
    InputError
        If its label map cannot be used.
    """
    tissue = healthy_tissue(config, index)
    gre_rng = np.random.default_rng([config.seed, index]).spawn(GRE_STREAM + 1)[GRE_STREAM]
    return tissue, measured_maps(tissue, config, gre_rng.spawn(config.orientations)[0])


def head_maker(
    config: SimulateConfig,
    head: LabelMap,
    anatomy_rng: np.random.Generator,
    tissue_rng: np.random.Generator,
    warp_rng: np.random.Generator,
) -> Callable[[tuple[float, float, float]], Tissue]:
    """Draw an individual head; return a function that samples it on voxels of a given size."""
    head = warped(head, config.warp, warp_rng)
    head = varied(with_structures(head, anatomy_rng), config.variant, anatomy_rng)
    head = tilted(head, config.tilt_deg)

    def tissue_of(voxel_mm: tuple[float, float, float]) -> Tissue:
        same_rng = copy.deepcopy(tissue_rng)
        return make_tissue(head, same_rng, config.tissue, voxel_mm=voxel_mm, b0_t=config.b0_t)

    return tissue_of
