"""Seconds and peak memory of every stage of one session, from raw echoes to maps and report.

    python benchmarks/session.py [--labels FILE] [--voxel-mm 1] [--threads 2] [--folder FOLDER]
    python benchmarks/session.py --against OTHER/src [--repeats 2]

The session (5 gradient echoes, 6 spin echoes, a whole head) is simulated first, in a process of its own; it
stays in the folder if one is given, without its true labels. Each measurement has a process of its own.
Memory is that of the whole process, sampled while a stage runs. Results go to
benchmarks/results/session.json, with --threads 1 to session-one-thread.json.

With --against, the source tree of this file and another one process the same session alternately. The ratios
this/other of time (raw data to maps, without the report; and with the report) and of peak memory, each of the
least value over the repeats, go to benchmarks/results/session-ratio.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TARGET_S, TARGET_GB = 360.0, 6.0
SOURCE = Path(__file__).resolve().parents[1] / "src"
RESULTS = Path(__file__).parent / "results"
_SAMPLE_S = 0.02


class Stages:
    """Wall time, processor time and peak memory of each stage; a progress callback of the pipeline."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._name, self._wall, self._processor, self._peak = "", 0.0, 0.0, 0.0
        self._running = True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def __call__(self, what: str, _done: int, _total: int) -> None:
        """Close the previous stage and open the next one."""
        self._close()
        self._name = what.split(": ", 1)[-1]
        self._wall, self._processor, self._peak = time.perf_counter(), time.process_time(), 0.0

    def end(self) -> None:
        """Close the last stage."""
        self._close()
        self._running = False
        self._thread.join()

    def _close(self) -> None:
        if self._name:
            self.steps[self._name] = {
                "wall_s": round(time.perf_counter() - self._wall, 2),
                "processor_s": round(time.process_time() - self._processor, 2),
                "peak_gb": round(self._peak, 2),
            }

    def _sample(self) -> None:
        page_gb = 4096 / 2**30
        while self._running:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._peak = max(self._peak, pages * page_gb)
            time.sleep(_SAMPLE_S)


def measure(bids: Path, out: Path, threads: int) -> dict[str, Any]:
    """Process the session in this process, with the chisep that it imports."""
    import nibabel as nib
    import torch

    try:
        from chisep.pipeline.config import RunConfig
        from chisep.pipeline.run import run
    except ImportError:  # version 0.1.0
        from chisep.pipeline import RunConfig, run

    torch.set_num_threads(threads)
    stages = Stages()
    start = time.perf_counter()
    (result,) = run(RunConfig(bids, out), stages)
    seconds = time.perf_counter() - start
    stages.end()
    if result.error:
        raise result.error
    report_s = stages.steps["report"]["wall_s"]
    first = next(bids.glob("sub-*/anat/*_echo-1_part-mag_MEGRE.nii.gz"))
    return {
        "shape": nib.load(first).shape,
        "threads": threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "wall_s": round(seconds, 2),
        "maps_s": round(seconds - report_s, 2),
        "peak_gb": max(step["peak_gb"] for step in stages.steps.values()),
        "stages": stages.steps,
    }


def measured(source: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Process the session of a folder with a source tree, in a new process."""
    out, result = folder / "derivatives", folder / "measured.json"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--measure", str(result), "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([*command, "--threads", str(threads)], check=True, env=environment)
    return dict(json.loads(result.read_text()))


def compared(other: Path, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Measure the other and this source tree alternately, and divide this by the other."""
    found: dict[str, list[dict[str, Any]]] = {"other": [], "this": []}
    for _ in range(repeats):
        for name, source in (("other", other), ("this", SOURCE)):
            found[name].append(measured(source, folder, threads))
    least = {
        name: {key: min(run[key] for run in runs) for key in ("maps_s", "wall_s", "peak_gb")}
        for name, runs in found.items()
    }
    ratio = {key: round(least["this"][key] / least["other"][key], 3) for key in least["this"]}
    return {"ratio": ratio, "least": least, "runs": found}


def main() -> None:
    """Simulate the session, measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--voxel-mm", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--against", type=Path, metavar="SRC")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if arguments.measure:
        result = measure(folder / "bids", folder / "derivatives", arguments.threads)
        arguments.measure.write_text(json.dumps(result))
        return
    command = [sys.executable, "-m", "chisep.cli", "simulate", str(folder / "bids")]
    command += ["--voxel-mm", str(arguments.voxel_mm)]
    if arguments.labels:
        command += ["--labels", str(arguments.labels)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    for path in (folder / "bids/derivatives/truth").glob("sub-*/anat/*_dseg.*"):
        path.unlink()  # a scan has no true labels: the packaged atlas is registered
    facts = {"voxel_mm": arguments.voxel_mm, "target_s": TARGET_S, "target_gb": TARGET_GB}
    if arguments.against:
        if not (arguments.against / "chisep").is_dir():
            parser.error(f"{arguments.against} has no folder chisep; give the src folder of another checkout")
        found = facts | compared(arguments.against.resolve(), folder, arguments.threads, arguments.repeats)
        name = "session-ratio.json"
    else:
        found = facts | measured(SOURCE, folder, arguments.threads)
        name = "session-one-thread.json" if arguments.threads == 1 else "session.json"
    text = json.dumps(found, indent=2) + "\n"
    (RESULTS / name).write_text(text)
    print(text)
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
