"""Screenshots of pages for the docs, and time to the first slice: python tools/screens.py OUT [COMPARISON].

Needs Chromium and playwright. OUT is a dataset of `chisep run`, COMPARISON the page of `chisep demo`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 900


def shot(page: Page, selector: str, name: str) -> None:
    """Picture of a part of a page, in few colours."""
    path = DOCS / "img" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    page.locator(selector).first.screenshot(path=path)
    with Image.open(path) as image:
        height = round(image.height * WIDTH / image.width)
        image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(128).save(
            path, optimize=True
        )


def measure(page: Page, path: Path) -> dict[str, object]:
    """Open a page; bytes, and seconds to the first slice and to all maps."""
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("[data-loaded]", timeout=300_000)
    (first,) = [page.get_attribute("#viewer-root", "data-first-slice")]
    return {
        "bytes": path.stat().st_size,
        "seconds_to_first_slice": float(first or "nan") / 1000,
        "seconds_to_all_maps": round(page.evaluate("performance.now()") / 1000, 1),
    }


def main() -> None:
    """Make the screenshots and docs/results/viewer.json."""
    out = Path(sys.argv[1])
    report = next(path for path in sorted(out.glob("sub-*.html")))
    record = json.loads((out / ".chisep" / report.stem / "report.json").read_text())
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        options = ["--disable-gpu", "--disable-3d-apis", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=program, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme="light")
        measured = {"chromium": browser.version, "report": measure(page, report)}
        measured["report"] |= {"stage_seconds": record["seconds"], "peak_memory_gb": record["peak_memory_gb"]}
        shot(page, "#viewer", "viewer")
        page.locator("[data-control=overlay]").select_option("regions")
        page.locator(".viewer-stage").focus()
        page.keyboard.press("b")
        page.wait_for_timeout(2000)
        shot(page, ".viewer-stage", "viewer-regions")
        shot(page, "#quality", "checks")
        if (out / "group.html").is_file():
            page.goto((out / "group.html").absolute().as_uri())
            page.wait_for_timeout(3000)
            shot(page, "#sessions", "group")
        if len(sys.argv) > 2:
            measured["comparison"] = measure(page, Path(sys.argv[2]))
            shot(page, "#viewer", "comparison")
            shot(page, "#panel-1", "scores")
        browser.close()
    text = json.dumps(measured, indent=2)
    (DOCS / "results" / "viewer.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
