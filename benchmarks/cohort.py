"""How well many sessions share a machine, and whether killed workers change anything.

    python benchmarks/cohort.py [--subjects 16] [--voxel-mm 2.5] [--kill-every-s 10] [--folder FOLDER]

The same simulated subjects are processed on one worker and on two, one thread each, then again in the
opposite order; on two workers of which one is killed every few seconds; and, for what the engine costs, by a
plain loop and a worker side by side, each over half of them, then with the halves exchanged. Times are those
of whole commands. A machine that is shared gets slower and faster by a tenth within minutes: what is there
and back, or side by side, is slowed alike. All have to leave equal files. Simulated scans are kept in the
folder if one is given.
Results go to benchmarks/results/cohort.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

TARGET_SPEED_UP, TARGET_OVERHEAD = 1.8, 0.05
RESULTS = Path(__file__).parent / "results" / "cohort.json"
_LOOK_S = 0.05
_COSTS = {"Seconds", "PeakMemoryGB", "seconds", "peak_memory_gb"}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--voxel-mm", type=float, default=2.5)
    parser.add_argument("--kill-every-s", type=float, default=10.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    raw = folder / "bids"
    simulate = ["simulate", str(raw), "--voxel-mm", str(arguments.voxel_mm), "--jobs", "2"]
    subprocess.run([*_chisep(*simulate), "--subjects", str(arguments.subjects)], check=True)

    ways = {"one": ["--workers", "1"], "two": ["--workers", "2"]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name in (*ways, *reversed(ways)):
        times[name].append(_timed(raw, folder / name, *ways[name]))
        print(name, times[name][-1], flush=True)
    one_s, two_s = (statistics.mean(measured) for measured in times.values())
    labels = [f"{subject:02d}" for subject in range(1, arguments.subjects + 1)]
    halves = labels[::2], labels[1::2]
    pairs = [_side_by_side(raw, folder, loop, worker) for loop, worker in (halves, halves[::-1])]
    print(*pairs, flush=True)
    loop_s, worker_s = (sum(pair[name] for pair in pairs) for name in ("loop", "worker"))
    kills: list[float] = []
    killed_s = _timed(
        raw, folder / "killed", "--workers", "2", kill_every_s=arguments.kill_every_s, kills=kills
    )
    undisturbed = _contents(folder / "one")
    stages = [json.loads(path.read_text()) for path in (folder / "one" / ".chisep").glob("*/*.json")]
    loop = {name: content for name, content in _contents(folder / "loop").items() if name.startswith("sub-")}
    found = {
        "sessions": arguments.subjects,
        "voxel_mm": arguments.voxel_mm,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "stages_s_per_session": round(sum(stage["seconds"] for stage in stages) / arguments.subjects, 2),
        "peak_gb": max(stage["peak_memory_gb"] for stage in stages),
        "seconds_there_and_back": times,
        "speed_up": round(one_s / two_s, 3),
        "seconds_side_by_side": pairs,
        "overhead": round(worker_s / loop_s - 1, 4),
        "target_speed_up": TARGET_SPEED_UP,
        "target_overhead": TARGET_OVERHEAD,
        "workers_killed": len(kills),
        "kill_every_s": arguments.kill_every_s,
        "killed_s": round(killed_s, 1),
        "equal": {
            **{name: _contents(folder / name) == undisturbed for name in ("two", "killed")},
            "loop": bool(loop) and loop.items() <= undisturbed.items(),
        },
    }
    arguments.results.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    if arguments.folder is None:
        shutil.rmtree(folder)


def _chisep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "chisep.cli", *arguments]


def _side_by_side(raw: Path, folder: Path, loop: list[str], worker: list[str]) -> dict[str, float]:
    """Seconds of a plain loop and of one worker at the same time, each over its own subjects."""
    start = time.perf_counter()
    processes = {}
    for name, cluster, own in (("loop", ["--cluster", "none"], loop), ("worker", ["--workers", "1"], worker)):
        shutil.rmtree(folder / name, ignore_errors=True)
        options = ("--threads-per-worker", "1", *cluster, "--participant-label", *own)
        command = _chisep("run", str(raw), str(folder / name), *options)
        processes[name] = psutil.Popen(command, stdout=subprocess.DEVNULL)
    seconds: dict[str, float] = {}
    while len(seconds) < len(processes):
        time.sleep(_LOOK_S)
        for name, process in processes.items():
            if name not in seconds and process.poll() is not None:
                seconds[name] = round(time.perf_counter() - start, 1)
    if any(process.returncode for process in processes.values()):
        raise SystemExit("the loop or the worker failed")
    return seconds


def _timed(
    raw: Path, out: Path, *options: str, kill_every_s: float | None = None, kills: list[float] | None = None
) -> float:
    """Seconds of one run; kills one of its workers now and then, if wanted, and notes when."""
    shutil.rmtree(out, ignore_errors=True)
    chance = random.Random(0)
    start = time.perf_counter()
    command = _chisep("run", str(raw), str(out), "--threads-per-worker", "1", "--retries", "5", *options)
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            process.wait(kill_every_s)
        except psutil.TimeoutExpired:
            workers = [child for child in process.children() if _is_worker(child)]
            if workers and kills is not None:
                chance.choice(workers).kill()
                kills.append(time.perf_counter() - start)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return round(time.perf_counter() - start, 1)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def _contents(folder: Path) -> dict[str, str]:
    """Checksum of every file, of JSON files without what a run cost."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json":
            facts = {key: value for key, value in json.loads(content).items() if key not in _COSTS}
            content = json.dumps(facts).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


if __name__ == "__main__":
    main()
