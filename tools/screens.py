"""Screenshots of pages for the docs, by headless Chromium.

    python tools/screens.py OUT [--group OUT] [--comparison PAGE] [--to FOLDER]

OUT is a dataset of `chisep run`; its first report is shown. --group is one with `group.html`, --comparison
the page of `chisep demo`. Pictures go to docs/img. Needs Chromium and playwright (extra dev).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "img"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# No GPU, no WebGL: as on a remote desktop.
OPTIONS = ("--disable-gpu", "--disable-3d-apis", "--force-color-profile=srgb")
WIDTH, HEIGHT = 1280, 1000
QUALITY = 88
_NIGRA = (21014, 21018)
_ZOOM_STEPS = 3


def shot(page: Page, selector: str, path: Path, tallest: int | None = None) -> None:
    """Picture of a part of a page, cut below its first `tallest` pixels."""
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    with Image.open(io.BytesIO(element.screenshot())) as image:
        kept = image.convert("RGB").crop((0, 0, image.width, min(image.height, tallest or image.height)))
    kept.save(path, quality=QUALITY, method=6)


def opened(page: Page, path: Path) -> None:
    """Open a page, and wait until all maps of its viewer are there."""
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("[data-loaded]", timeout=300_000)


def move_to(page: Page, world_mm: np.ndarray) -> None:
    """Move the crosshair to a place in scanner mm by the keys of the viewer."""
    described = json.loads(page.locator("#viewer-description").text_content() or "")["scans"][0]
    target = np.rint(np.linalg.solve(np.array(described["affine"]), [*world_mm, 1.0])[:3]).astype(int)
    voxel = page.locator(".viewer-place").get_attribute("data-voxel") or ""
    steps = target - np.array([int(v) for v in voxel.split(",")])
    page.locator(".viewer-stage").focus()
    keys = (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown"), ("PageUp", "PageDown"))
    for step, (up, down) in zip(steps.tolist(), keys, strict=True):
        for _ in range(abs(step)):
            page.keyboard.press(up if step > 0 else down)


def of_report(page: Page, out: Path, to: Path) -> None:
    """Show checks, viewer, regions, and the midbrain with its nuclei outlined."""
    report = next(path for path in sorted(out.glob("sub-*.html")))
    opened(page, report)
    shot(page, "#quality", to / "checks.webp")
    shot(page, "#viewer", to / "viewer.webp")
    shot(page, "#regions", to / "regions.webp", tallest=560)
    image: Any = nib.load(next(out.glob(f"{report.stem.split('_')[0]}/**/*desc-nuclei_dseg.nii.gz")))
    nigra = np.argwhere(np.isin(np.asarray(image.dataobj), _NIGRA))
    if not len(nigra):
        raise SystemExit(f"{report}: no substantia nigra is outlined; voxels of up to 2 mm have one")
    move_to(page, nib.affines.apply_affine(image.affine, nigra.mean(0)))
    page.locator("[data-control=overlay]").select_option("outlines:nuclei")
    page.locator("[data-control=opacity]").fill("0.5")
    page.locator("[data-control=window]").select_option("[0,200]")
    page.locator(".viewer-stage").focus()
    for key in ("x", *["+"] * _ZOOM_STEPS):
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    shot(page, ".viewer-stage", to / "nuclei.webp")


def of_group(page: Page, out: Path, to: Path) -> None:
    """Show sessions and distributions of the group page."""
    opened(page, out / "group.html")
    shot(page, "#sessions", to / "group.webp", tallest=620)
    shot(page, "#panel-1", to / "group-regions.webp", tallest=620)


def of_comparison(page: Page, path: Path, to: Path) -> None:
    """Show scores, and the error of a method in the viewer."""
    opened(page, path)
    shot(page, "#table-1", to / "scores.webp")
    options = page.locator("[data-control=map] option").evaluate_all("all => all.map(one => one.value)")
    page.locator("[data-control=map]").select_option(next(one for one in options if one.startswith("error")))
    page.wait_for_timeout(1000)
    shot(page, ".viewer-stage", to / "errors.webp")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=Path)
    parser.add_argument("--comparison", type=Path)
    parser.add_argument("--to", type=Path, default=IMAGES)
    given = parser.parse_args()
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit(f"no Chromium: install one of {', '.join(PROGRAMS)}")
    given.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=program, args=[*OPTIONS, *sandbox])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        of_report(page, given.out, given.to)
        if given.group:
            of_group(page, given.group, given.to)
        if given.comparison:
            of_comparison(page, given.comparison, given.to)
        browser.close()
    for path in sorted(given.to.glob("*.webp")):
        print(f"{path.stat().st_size / 1000:6.0f} kB  {path}")


if __name__ == "__main__":
    main()
