"""Time and memory of one dipole convolution of a whole-brain volume, beside the FFTs it needs.

    python benchmarks/dipole.py [--device cuda]

"Bare FFTs" are one real FFT and its inverse of the zero-padded volume, as a plain implementation runs
them. Results go to benchmarks/results/dipole.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from chisep.physics.dipole import Dipole
from chisep.types import Grid

SHAPE = (256, 224, 176)
REPEATS = 9
RESULTS = Path(__file__).parent / "results" / "dipole.json"


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mb(device: str) -> float:
    """Peak memory so far in MB: of the process, or of the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    x = torch.randn(SHAPE, device=device)
    dipole = Dipole(Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.2, 0.98)), device=device)
    before_mb = peak_mb(device)
    dipole.apply(x)
    convolution_mb = peak_mb(device) - before_mb
    padded = torch.nn.functional.pad(
        x,
        [p for n, m in zip(reversed(SHAPE), reversed(dipole.padded_shape), strict=True) for p in (0, m - n)],
    )
    torch.fft.irfftn(torch.fft.rfftn(padded), s=padded.shape)
    # In turns, so that whatever else the machine does falls on both.
    pairs = [
        (
            seconds(lambda: dipole.apply(x), device),
            seconds(lambda: torch.fft.irfftn(torch.fft.rfftn(padded), s=padded.shape), device),
        )
        for _ in range(REPEATS)
    ]
    convolution, bare = zip(*pairs, strict=True)
    result = {
        "shape": SHAPE,
        "padded_shape": dipole.padded_shape,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "repeats": REPEATS,
        "convolution_s": statistics.median(convolution),
        "convolution_range_s": [min(convolution), max(convolution)],
        "bare_ffts_s": statistics.median(bare),
        "bare_ffts_range_s": [min(bare), max(bare)],
        "ratio": statistics.median(c / b for c, b in pairs),
        "peak_mb_beyond_input_and_kernel": convolution_mb,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
