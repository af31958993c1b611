"""A training that kills itself at its first checkpoint: OUT DATASET."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from chisep.training.train import train
from tests.training.tiny import EPOCHS, config, tiny


def kill_at_first_checkpoint(out: Path) -> None:
    while not (out / "last.ckpt").is_file():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    out, dataset = map(Path, sys.argv[1:])
    threading.Thread(target=kill_at_first_checkpoint, args=(out,), daemon=True).start()
    train(config(out, dataset, tiny("thesis-unrolled", epochs=EPOCHS)))
