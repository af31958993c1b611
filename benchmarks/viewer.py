"""Bytes of a report, and seconds until Chromium shows its first slice and has all maps.

    python benchmarks/viewer.py OUT [--repeats 5]

OUT is a dataset of `chisep run`; its first report is opened from the disk by headless Chromium without a GPU,
each time in a new browser. Times count from the start of the navigation; medians are taken. Results go to
benchmarks/results/viewer.json. The time to make the report is that of the stage `report` in
benchmarks/session.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Playwright, sync_playwright

RESULTS = Path(__file__).parent / "results"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--disable-gpu", "--disable-3d-apis")


def opened(driver: Playwright, program: str, report: Path) -> tuple[str, float, float]:
    """Version of the browser, seconds to the first slice, and to all maps."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = driver.chromium.launch(executable_path=program, args=[*OPTIONS, *sandbox])
    try:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(report.absolute().as_uri())
        page.wait_for_selector("[data-loaded]", timeout=300_000)
        first = float(page.get_attribute("#viewer-root", "data-first-slice") or "nan")
        every = float(page.get_attribute("#viewer-root", "data-all-maps") or "nan")
        return browser.version, first / 1000, every / 1000
    finally:
        browser.close()


def main() -> None:
    """Open the report some times, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    report = next(path for path in sorted(given.out.glob("sub-*.html")))
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit(f"no Chromium: install one of {', '.join(PROGRAMS)}")
    with sync_playwright() as driver:
        times = [opened(driver, program, report) for _ in range(given.repeats)]
    versions, first, every = zip(*times, strict=True)
    found = {
        "chromium": versions[0],
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "repeats": given.repeats,
        "bytes": report.stat().st_size,
        "seconds_to_first_slice": round(statistics.median(first), 2),
        "seconds_to_all_maps": round(statistics.median(every), 2),
    }
    text = json.dumps(found, indent=2) + "\n"
    (RESULTS / "viewer.json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
