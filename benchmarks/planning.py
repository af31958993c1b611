"""What many subjects would take, derived from what one session and a small cohort were measured to take.

    python benchmarks/planning.py FOLDER [--subjects 10000] [--workers 1 10 100 …]

Reads benchmarks/results/session.json (seconds and memory of a session), benchmarks/results/cohort.json (what
the engine adds), and counts files, bytes and records of the datasets of that session, which
`benchmarks/session.py --folder FOLDER` leaves in FOLDER/bids and FOLDER/derivatives. Nothing is measured.
Results go to benchmarks/results/planning.json, and as tables to docs/results/planning.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chisep.provenance.datasets import dataset_links, locate
from chisep.provenance.records import records_of, sessions_of

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parents[1] / "docs" / "results" / "planning.md"
WORKERS = (1, 10, 50, 100, 200, 500, 1000)

# https://distributed.dask.org/en/latest: "about 1ms of overhead" a task.
SCHEDULER_TASKS_PER_S = 1000
# https://distributed.dask.org/en/latest/faq.html: a worker opens between one and ten connections to the
# scheduler, and Linux usually allows 1024 open files.
CONNECTIONS_PER_WORKER, OPEN_FILES = 10, 1024
# A new file is created under a temporary name, flushed, and renamed; its folder is looked up before.
OPERATIONS_PER_WRITE = 4
# A file that is read is looked up, opened and closed.
OPERATIONS_PER_READ = 3


def main() -> None:
    """Derive and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--results", type=Path, default=RESULTS / "planning.json")
    parser.add_argument("--tables", type=Path, default=TABLES)
    arguments = parser.parse_args()
    one = measured("session.json", "benchmarks/session.py")
    cohort = measured("cohort.json", "benchmarks/cohort.py")
    session = counted(arguments.folder / "derivatives", arguments.folder / "bids")
    found = plan(one, cohort, session, arguments.subjects, arguments.workers)
    arguments.results.write_text(json.dumps(found, indent=2) + "\n")
    arguments.tables.write_text("\n".join(tables(found)) + "\n")
    print(json.dumps(found, indent=2))


def measured(name: str, command: str) -> dict[str, Any]:
    """Read the results of a benchmark, or say how to make them."""
    path = RESULTS / name
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; `python {command}` measures and writes it")
    return dict(json.loads(path.read_text()))


def counted(derivatives: Path, raw: Path) -> dict[str, float]:
    """Count what a session leaves, writes and reads, as means over the sessions of a dataset."""
    sessions = sessions_of(derivatives)
    if not sessions:
        raise SystemExit(f"{derivatives}: no derivatives dataset of chisep with records")
    places = list(derivatives.rglob("*"))
    files = [place for place in places if place.is_file()]
    links = dataset_links(derivatives, raw)
    read_bytes = reads = writes = 0
    for session in sessions:
        for record in records_of(derivatives, session).values():
            known = [locate(name, links) for name in record.inputs]
            sizes = [path.stat().st_size for path in known if path is not None and path.is_file()]
            # Inputs are read twice, for their checksum and for their voxels; outputs once, for the former.
            outputs = [derivatives / name for name in record.outputs]
            read_bytes += 2 * sum(sizes) + sum(path.stat().st_size for path in outputs if path.is_file())
            reads += 2 * len(record.inputs) + len(outputs)
            writes += len(outputs) + 1
    n = len(sessions)
    return {
        "files": len(files) / n,
        "inodes": len(places) / n,
        "bytes": sum(path.stat().st_size for path in files) / n,
        "bytes_read": read_bytes / n,
        "reads": reads / n,
        "writes": writes / n,
        "metadata_operations": (OPERATIONS_PER_READ * reads + OPERATIONS_PER_WRITE * writes) / n,
    }


def plan(
    one: Mapping[str, Any],
    cohort: Mapping[str, Any],
    session: Mapping[str, float],
    subjects: int,
    workers: Sequence[int],
) -> dict[str, Any]:
    """Derive what a cluster would take.

    Parameters
    ----------
    one
        Measured: seconds, memory, threads and processor time of one session.
    cohort
        Measured: `overhead` of the engine, and `speed_up` of two workers on one machine.
    session
        Counted: files, bytes and operations of one session.
    subjects
        How many, one session each.
    workers
        Numbers of workers to derive for; each has as many cores as the measured session had threads.
    """
    core_s = sum(stage["processor_s"] for stage in one["stages"].values())
    # As if any two workers shared a machine, as the two that were measured did.
    shared = min(cohort["speed-up"]["speed_up"] / 2, 1.0)
    seconds = one["wall_s"] * (1 + max(cohort["overhead"]["overhead"], 0.0)) / shared
    return {
        "derived": True,
        "from": [
            "benchmarks/results/session.json",
            "benchmarks/results/cohort.json",
            "a derivatives dataset",
        ],
        "subjects": subjects,
        "session": {
            "shape": one["shape"],
            "threads": one["threads"],
            "seconds": one["wall_s"],
            "core_seconds": round(core_s, 1),
            "peak_gb": one["peak_gb"],
            **{name: round(value, 1) for name, value in session.items()},
        },
        "engine": {
            "overhead": cohort["overhead"]["overhead"],
            "speed_up_of_two": cohort["speed-up"]["speed_up"],
        },
        "totals": {
            "core_hours": round(subjects * core_s / 3600),
            "terabytes": round(subjects * session["bytes"] / 1e12, 2),
            "inodes": round(subjects * session["inodes"]),
        },
        "clusters": [
            {
                "workers": count,
                "cores": count * one["threads"],
                "memory_gb": round(count * one["peak_gb"]),
                "hours": round(subjects / count * seconds / 3600, 1),
                "tasks_per_s": round(count / seconds, 4),
                "scheduler_busy": round(count / seconds / SCHEDULER_TASKS_PER_S, 7),
                "connections_at_most": count * CONNECTIONS_PER_WORKER,
                "metadata_operations_per_s": round(count * session["metadata_operations"] / seconds, 1),
                "read_mb_per_s": round(count * session["bytes_read"] / seconds / 1e6, 1),
                "written_mb_per_s": round(count * session["bytes"] / seconds / 1e6, 1),
            }
            for count in workers
        ],
        "limits": {
            "workers_by_open_files": OPEN_FILES // CONNECTIONS_PER_WORKER,
            "workers_by_scheduler": round(SCHEDULER_TASKS_PER_S * seconds),
        },
    }


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Tables in Markdown."""
    one, totals = found["session"], found["totals"]
    shape = " × ".join(map(str, one["shape"]))
    yield "# Resources of a large study"
    yield ""
    yield f"Derived for {found['subjects']:,} subjects by `benchmarks/planning.py`, not measured."
    yield ""
    hundred = next((row for row in found["clusters"] if row["workers"] == 100), None)
    if hundred is not None:
        yield (
            f"In short: a hundred workers with {one['threads']} cores each finish in {hundred['hours']:.1f} "
            f"hours and read {hundred['read_mb_per_s'] / 1000:.1f} GB/s."
        )
        yield ""
    yield f"| a session of {shape} voxels | |"
    yield "|---|---|"
    yield f"| time on {one['threads']} threads | {one['seconds']:.0f} s |"
    yield f"| processor time | {one['core_seconds']:.0f} s |"
    yield f"| memory | {one['peak_gb']:.1f} GB |"
    yield f"| written to disk | {one['bytes'] / 1e6:.0f} MB in {one['files']:.0f} files |"
    yield f"| read, with checksums | {one['bytes_read'] / 1e6:.0f} MB in {one['reads']:.0f} openings |"
    yield f"| metadata operations | {one['metadata_operations']:.0f} |"
    yield f"| **all subjects** | {totals['core_hours']:,} core hours, {totals['terabytes']:.1f} TB, " + (
        f"{totals['inodes']:,} inodes |"
    )
    yield ""
    yield "| workers | cores | memory GB | hours | tasks/s | metadata/s | read MB/s | written MB/s |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["clusters"]:
        yield (
            f"| {row['workers']:,} | {row['cores']:,} | {row['memory_gb']:,} | {row['hours']:,.1f} | "
            f"{row['tasks_per_s']:.2g} | {row['metadata_operations_per_s']:,.0f} | "
            f"{row['read_mb_per_s']:,.0f} | {row['written_mb_per_s']:,.0f} |"
        )
    limits = found["limits"]
    yield ""
    yield (
        f"Number of workers at most: {limits['workers_by_scheduler']:,} by the scheduler's time; "
        f"{limits['workers_by_open_files']:,} by {OPEN_FILES:,} open files and {CONNECTIONS_PER_WORKER} "
        "connections per worker."
    )


if __name__ == "__main__":
    main()
