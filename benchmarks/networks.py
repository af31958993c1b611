"""Time and memory of networks on a whole-brain volume: the unrolled ones, and one wide pass.

    python benchmarks/networks.py [--device cuda] [--threads 2] [--only unrolled reference]

"Thesis" is the small recipe of unrolled χ-sepnet-R2' with ten iterations, "unrolled" that of its successor,
as their shipped weights have them; "reference" is χ-sepnet-R2' of the published widths (22.6 million
parameters). Weights are random: time does not depend on what a network learned. All fill the whole volume.
Each is measured in a process of its own, since a process remembers only its highest peak. Results go to
benchmarks/results/networks.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from chisep.networks.config import build
from chisep.networks.inference import intermediate_estimates
from chisep.networks.weights import LoadedNetwork, fuse
from chisep.training.recipes import find
from chisep.types import Grid

SHAPE = (256, 224, 176)
REPEATS = 3
RECIPES = {
    "thesis": "thesis-unrolled-small",
    "unrolled": "unrolled-small",
    "reference": "thesis-baseline",
}
RESULTS = Path(__file__).parent / "results" / "networks.json"


def network(name: str) -> LoadedNetwork:
    """Build a network with random weights."""
    torch.manual_seed(0)
    config = find(RECIPES[name]).network
    statistics_ppm = dict.fromkeys((*config.inputs, *config.outputs), (0.0, 0.03))
    return LoadedNetwork(build(config, statistics_ppm).eval(), config, {})


def peak_gb(device: str) -> float:
    """Peak memory so far in GB: of the process, or of the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, device: str) -> dict[str, object]:
    """Apply a network several times to noise."""
    trained = network(name).to(device)
    parameters = sum(p.numel() for p in trained.network.parameters())
    fuse(trained.network)
    generator = torch.Generator().manual_seed(0)
    channels = {c: 0.03 * torch.rand(SHAPE, generator=generator).to(device) for c in trained.config.inputs}
    mask = torch.ones(SHAPE, dtype=torch.bool, device=device)
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.2, 0.98))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        intermediate_estimates(trained, channels, mask, grid, last_only=True)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - start, 2))
    return {
        "parameters": parameters,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_gb": round(peak_gb(device), 2),
    }


def main() -> None:
    """Measure all and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=tuple(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--part", choices=tuple(RECIPES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part:
        print(json.dumps(measure(arguments.part, arguments.device)))
        return
    own = [sys.executable, __file__, "--device", arguments.device, "--threads", str(arguments.threads)]
    parts = {
        part: json.loads(subprocess.run([*own, "--part", part], check=True, capture_output=True).stdout)
        for part in arguments.only
    }
    if len(parts) < len(RECIPES):
        before = json.loads(RESULTS.read_text())
        parts = {part: parts.get(part) or before[part] for part in RECIPES}
    found = {
        "shape": SHAPE,
        "device": arguments.device,
        "threads": arguments.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        **parts,
        "over_reference": {
            part: round(parts[part]["seconds"] / parts["reference"]["seconds"], 2)
            for part in RECIPES
            if part != "reference"
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
