"""A training on two processes, which Lightning makes by calling this script again: OUT DATASET."""

from __future__ import annotations

import sys
from pathlib import Path

from chisep.training.train import train
from tests.training.tiny import config, tiny

if __name__ == "__main__":
    out, dataset = map(Path, sys.argv[1:])
    recipe = tiny("thesis-unrolled", norm="none", batch_size=4)
    train(config(out, dataset, recipe, devices=2, precision="64-true"))
