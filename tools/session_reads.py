"""Loads and checksums of images in one session, and the bytes read for them.

    python tools/session_reads.py BIDS [OPTION …]

Runs `chisep run BIDS` into a temporary folder with the options, in this process, and counts every opening of
an image file by Python's audit events: an opening below `checksum` is a checksum, one below `read_header`
reads a header only, any other for reading is a load. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

ENDINGS = (".nii", ".nii.gz", ".mgz")


def main() -> None:
    """Count and print."""
    bids, options = Path(sys.argv[1]).resolve(), sys.argv[2:]
    loads: Counter[str] = Counter()
    checksums: Counter[str] = Counter()
    read_bytes = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal read_bytes
        if event != "open" or not str(arguments[0]).endswith(ENDINGS):
            return
        if not isinstance(arguments[1], str) or "r" not in arguments[1]:
            return
        frame, names = sys._getframe(1), set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "read_header" in names:
            return
        (checksums if "checksum" in names else loads)[str(arguments[0])] += 1
        read_bytes += Path(str(arguments[0])).stat().st_size

    from chisep.cli import main as chisep

    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as out:
        status = chisep(["run", str(bids), out, *options])
    raw = [name for name in {*loads, *checksums} if Path(name).resolve().is_relative_to(bids)]
    found = {
        "status": status,
        "loads": loads.total(),
        "checksums": checksums.total(),
        "bytes_read": read_bytes,
        "bytes_of_raw_images": sum(Path(name).stat().st_size for name in raw),
        "most_loads_of_a_raw_image": max(loads[name] for name in raw),
        "most_checksums_of_a_raw_image": max(checksums[name] for name in raw),
    }
    found["loads_of_raw_images"] = {Path(name).name: loads[name] for name in sorted(raw)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
