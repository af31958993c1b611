"""Training throughput of the recipes for two cores, as a share of the machine's peak rate of convolutions.

    python benchmarks/training.py [--threads 2]

The peak is that of one 3×3×3 convolution of 64 channels in the precision that training chooses on this
machine, forward and backward. A step is that of the recipe on random crops: physics, network, losses,
optimiser. Its operations are counted by torch (convolutions only). Results go to
benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from chisep.networks.inference import has_fast_bfloat16
from chisep.training.data import Example
from chisep.training.losses import total_loss
from chisep.training.module import TrainingModule
from chisep.training.recipes import find

RECIPES = ("qsmnet-small", "thesis-baseline-small", "thesis-unrolled-small")
RESULTS = Path(__file__).parent / "results" / "training.json"
_REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Median wall time of a call, after one that warms up."""
    work()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_rate(bfloat16: bool) -> float:
    """Operations a second of one large convolution, forward and backward."""
    conv = torch.nn.Conv3d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 64, 48, 48, 48).to(memory_format=torch.channels_last_3d).requires_grad_()

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            conv(x).sum().backward()

    return counted(work) / seconds(work)


def step_of(name: str, bfloat16: bool) -> Callable[[], None]:
    """One step of a recipe on a batch of noise."""
    recipe = find(name)
    network = recipe.network
    channels = (*network.inputs, *network.outputs)
    module = TrainingModule(network, dict.fromkeys(channels, (0.0, 0.03)), recipe.loss, recipe.optimiser)
    optimiser = torch.optim.RMSprop(module.parameters(), lr=recipe.optimiser.learning_rate)
    count, size = recipe.batch_size, (recipe.crops.size,) * 3
    batch = Example(
        inputs=0.03 * torch.randn(count, len(network.inputs), *size),
        targets=0.03 * torch.randn(count, len(network.outputs), *size),
        mask=torch.ones(count, 1, *size, dtype=torch.bool),
        voxel_mm=torch.ones(count, 3),
        b0_direction=torch.tensor([[0.0, 0.0, 1.0]]).expand(count, 3),
        ratio=torch.ones(count),
    )

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = total_loss(module._terms(batch), recipe.loss)
        loss.backward()
        optimiser.step()

    return step


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bfloat16 = has_fast_bfloat16("cpu")
    peak = peak_rate(bfloat16)
    rows = {}
    for name in RECIPES:
        step = step_of(name, bfloat16)
        operations, time_s = counted(step), seconds(step)
        rows[name] = {
            "seconds_a_step": round(time_s, 3),
            "gflop_a_step": round(operations / 1e9, 1),
            "share_of_peak": round(operations / time_s / peak, 3),
        }
    found = {
        "threads": threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "precision": "bfloat16" if bfloat16 else "single (no bfloat16 instructions)",
        "peak_gflop_a_second": round(peak / 1e9, 1),
        **rows,
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
