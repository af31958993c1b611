"""How well many sessions share a machine, what the engine costs, and whether killed workers change anything.

    python benchmarks/cohort.py [--subjects 16] [--voxel-mm 2.5] [--kill-every-s 10] [--folder FOLDER]
                                [--parts speed-up overhead killed]

The same simulated subjects are processed

- on one worker and on two, one thread each, then again in the opposite order (speed-up);
- by a plain loop and a worker side by side, each over a quarter of them, then with the quarters exchanged,
  twice over other quarters (overhead);
- on two workers of which one is killed every few seconds (killed).

Times are those of whole commands. A machine that is shared gets slower and faster by a tenth within minutes:
what is there and back, or side by side, is slowed alike; each pair is told, for the spread. All have to leave
equal files. Simulated scans and outputs are kept in the folder if one is given; what is not measured anew
stays in the results.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

TARGET_SPEED_UP, TARGET_OVERHEAD = 1.8, 0.05
RESULTS = Path(__file__).parent / "results" / "cohort.json"
_LOOK_S = 0.05
_COSTS = {"Seconds", "PeakMemoryGB", "seconds", "peak_memory_gb"}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--voxel-mm", type=float, default=2.5)
    parser.add_argument("--kill-every-s", type=float, default=10.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parts: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
        "speed-up": _speed_up,
        "overhead": _overhead,
        "killed": _killed,
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    simulate = ["simulate", str(folder / "bids"), "--voxel-mm", str(arguments.voxel_mm), "--jobs", "2"]
    subprocess.run([*_chisep(*simulate), "--subjects", str(arguments.subjects)], check=True)

    setting = {
        "sessions": arguments.subjects,
        "voxel_mm": arguments.voxel_mm,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "target_speed_up": TARGET_SPEED_UP,
        "target_overhead": TARGET_OVERHEAD,
    }
    known = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    if {name: known.get(name) for name in setting} != setting:
        known = {}
    found = setting | {name: known[name] for name in parts if name in known}
    for name in arguments.parts:
        found[name] = parts[name](folder, arguments)
        print(name, json.dumps(found[name], indent=2), flush=True)
    arguments.results.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.folder is None:
        shutil.rmtree(folder)


def _speed_up(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    workers = {"one": 1, "two": 2}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for name in (*workers, *reversed(workers)):
        times[name].append(_timed(folder, name, workers[name]))
    one_s, two_s = (statistics.mean(measured) for measured in times.values())
    stages = [json.loads(path.read_text()) for path in (folder / "one" / ".chisep").glob("*/*.json")]
    return {
        "seconds_there_and_back": times,
        "speed_up": round(one_s / two_s, 3),
        "stages_s_per_session": round(sum(stage["seconds"] for stage in stages) / arguments.subjects, 2),
        "peak_gb": max(stage["peak_memory_gb"] for stage in stages),
        "equal": _contents(folder / "two") == _contents(folder / "one"),
    }


def _overhead(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    labels = [f"{subject:02d}" for subject in range(1, arguments.subjects + 1)]
    quarters = [labels[first::4] for first in range(4)]
    pairs, equal, undisturbed = [], True, _undisturbed(folder)
    for loop, worker in ((0, 1), (1, 0), (2, 3), (3, 2)):
        pairs.append(_side_by_side(folder, quarters[loop], quarters[worker]))
        for name in ("loop", "worker"):
            maps = {path: sum_ for path, sum_ in _contents(folder / name).items() if path.startswith("sub-")}
            equal &= bool(maps) and maps.items() <= undisturbed.items()
    loop_s, worker_s = (sum(pair[name] for pair in pairs) for name in ("loop", "worker"))
    return {
        "seconds_side_by_side": pairs,
        "overhead": round(worker_s / loop_s - 1, 4),
        "of_each_pair": [round(pair["worker"] / pair["loop"] - 1, 4) for pair in pairs],
        "equal": equal,
    }


def _killed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    kills: list[float] = []
    undisturbed = _undisturbed(folder)
    seconds = _timed(folder, "killed", 2, kill_every_s=arguments.kill_every_s, kills=kills)
    return {
        "workers_killed": len(kills),
        "kill_every_s": arguments.kill_every_s,
        "seconds": seconds,
        "equal": _contents(folder / "killed") == undisturbed,
    }


def _undisturbed(folder: Path) -> dict[str, str]:
    """Read what one worker left; run it if the speed-up was not measured in this folder."""
    if not (folder / "one").is_dir():
        _timed(folder, "one", 1)
    return _contents(folder / "one")


def _chisep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "chisep.cli", *arguments]


def _side_by_side(folder: Path, loop: list[str], worker: list[str]) -> dict[str, float]:
    """Seconds of a plain loop and of one worker at the same time, each over its own subjects."""
    start = time.perf_counter()
    processes = {}
    for name, cluster, own in (("loop", ["--cluster", "none"], loop), ("worker", ["--workers", "1"], worker)):
        shutil.rmtree(folder / name, ignore_errors=True)
        options = ("--threads-per-worker", "1", *cluster, "--participant-label", *own)
        command = _chisep("run", str(folder / "bids"), str(folder / name), *options)
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
    folder: Path,
    name: str,
    workers: int,
    *,
    kill_every_s: float | None = None,
    kills: list[float] | None = None,
) -> float:
    """Seconds of one run; kills one of its workers now and then, if wanted, and notes when."""
    shutil.rmtree(folder / name, ignore_errors=True)
    chance = random.Random(0)
    start = time.perf_counter()
    options = ("--threads-per-worker", "1", "--retries", "5", "--workers", str(workers))
    command = _chisep("run", str(folder / "bids"), str(folder / name), *options)
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            process.wait(kill_every_s)
        except psutil.TimeoutExpired:
            living = [child for child in process.children() if _is_worker(child)]
            if living and kills is not None:
                chance.choice(living).kill()
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
