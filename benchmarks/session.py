"""Seconds and peak memory of every stage of one session at 1 mm, from raw echoes to maps and report.

    python benchmarks/session.py [--labels FILE] [--threads 2] [--folder FOLDER]

The session (5 gradient echoes, 6 spin echoes, a whole head) is simulated in a process of its own first, and
kept in the folder if one is given. Memory is that of the whole process, sampled while a stage runs. Results
go to benchmarks/results/session.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import torch

from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run

TARGET_S, TARGET_GB = 360.0, 6.0
RESULTS = Path(__file__).parent / "results" / "session.json"
_SAMPLE_S = 0.02


class Stages:
    """Times stages by what the pipeline says that it is doing, and samples the process's memory."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._name, self._wall, self._processor, self._peak = "", 0.0, 0.0, 0.0
        self._running = True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def __call__(self, what: str, _done: int, _total: int) -> None:
        """Note that one stage ends and another begins."""
        self._close()
        self._name = what.split(": ", 1)[-1]
        self._wall, self._processor, self._peak = time.perf_counter(), time.process_time(), 0.0

    def end(self) -> None:
        """Note that the last stage ended."""
        self._close()
        self._running = False
        self._thread.join()

    def _close(self) -> None:
        if self._name:
            self.steps[self._name] = {
                "wall_s": round(time.perf_counter() - self._wall, 1),
                "processor_s": round(time.process_time() - self._processor, 1),
                "peak_gb": round(self._peak, 2),
            }

    def _sample(self) -> None:
        page_gb = 4096 / 2**30
        while self._running:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._peak = max(self._peak, pages * page_gb)
            time.sleep(_SAMPLE_S)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "chisep.cli", "simulate", str(folder / "bids"), "--voxel-mm", "1"]
    if arguments.labels:
        command += ["--labels", str(arguments.labels)]
    subprocess.run(command, check=True)
    torch.set_num_threads(arguments.threads)
    out = folder / "derivatives"
    shutil.rmtree(out, ignore_errors=True)
    stages = Stages()
    start = time.perf_counter()
    (result,) = run(RunConfig(folder / "bids", out), stages)
    seconds = time.perf_counter() - start
    stages.end()
    if result.error:
        raise result.error
    first = next((folder / "bids").glob("sub-*/anat/*_echo-1_part-mag_MEGRE.nii.gz"))
    found = {
        "shape": nib.load(first).shape,
        "threads": arguments.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "wall_s": round(seconds, 1),
        "peak_gb": max(step["peak_gb"] for step in stages.steps.values()),
        "target_s": TARGET_S,
        "target_gb": TARGET_GB,
        "stages": stages.steps,
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
