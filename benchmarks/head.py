"""Seconds and peak memory of one digital head's maps and fields at 1 mm on one core.

    python benchmarks/head.py [--labels FILE]

Steps are those of `chisep simulate --maps-only`, without its files. Peak memory is that of the process so
far when a step ends. Results go to benchmarks/results/head.json: an entry for the packaged head, another
for a label map.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from chisep.simulation.anatomy import load_labels, packaged_labels, with_structures
from chisep.simulation.measured import measured_maps
from chisep.simulation.scanner import ScannerConfig
from chisep.simulation.tissue import TissueConfig, make_tissue

VOXEL_MM = (1.0, 1.0, 1.0)
TARGET_S = 60.0
RESULTS = Path(__file__).parent / "results" / "head.json"


@contextmanager
def measured(step: str, steps: dict[str, dict[str, float]]) -> Iterator[None]:
    """Note wall time, processor time and peak memory of a step."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    steps[step] = {
        "wall_s": round(time.perf_counter() - wall, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path)
    labels = parser.parse_args().labels
    torch.set_num_threads(1)
    anatomy_rng, tissue_rng, noise_rng = np.random.default_rng(0).spawn(3)
    steps: dict[str, dict[str, float]] = {}
    with measured("labels", steps):
        head = packaged_labels() if labels is None else load_labels(labels)
    with measured("structures and veins", steps):
        head = with_structures(head, anatomy_rng)
    with measured("tissue", steps):
        tissue = make_tissue(head, tissue_rng, TissueConfig(), voxel_mm=VOXEL_MM, b0_t=3.0)
    with measured("fields and noise", steps):
        measured_maps(tissue, ScannerConfig(), noise_rng)
    result = {
        "shape": tissue.grid.shape,
        "voxel_mm": VOXEL_MM,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "steps": steps,
        "wall_s": round(sum(step["wall_s"] for step in steps.values()), 1),
        "processor_s": round(sum(step["processor_s"] for step in steps.values()), 1),
        "target_s": TARGET_S,
        "peak_mb": max(step["peak_mb"] for step in steps.values()),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["packaged head" if labels is None else "label map"] = result
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
