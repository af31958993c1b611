"""Screenshots in the docs: small, all of them shown, and made by `tools/screens.py`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from chisep.demo import DemoConfig, demo
from chisep.errors import ChisepWarning
from chisep.pipeline.config import RunConfig
from chisep.pipeline.group import run_group
from chisep.pipeline.run import run
from chisep.simulation.dataset import SimulateConfig, simulate
from tests.docs.pages import ROOT
from tests.report.browser import NAMES

IMAGES = ROOT / "docs/img"
LARGEST_BYTES = 150_000


def test_every_picture_is_small_and_shown():
    pictures = {path.name for path in IMAGES.iterdir()}
    assert all((IMAGES / name).stat().st_size <= LARGEST_BYTES for name in pictures)
    shown: dict[str, list[str]] = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for alt, name in re.findall(r"!\[([^\]]*)\]\((?:docs/)?img/([^)]+)\)", page.read_text()):
            shown.setdefault(name, []).append(alt)
    assert set(shown) == pictures
    assert all(len(alt) > 20 for texts in shown.values() for alt in texts), "a text for who cannot see it"


def test_the_page_on_pages_states_what_was_measured():
    results = ROOT / "benchmarks/results"
    found = json.loads((results / "viewer.json").read_text())
    made = json.loads((results / "session-one-thread.json").read_text())["stages"]["report"]
    text = (ROOT / "docs/pages.md").read_text()
    for value in (
        f"{found['bytes'] / 1e6:.1f} MB",
        f"{made['processor_s']:.1f} s",
        f"{found['seconds_to_first_slice']:.1f} s",
        f"{found['seconds_to_all_maps']:.1f} s",
    ):
        assert value in text
    assert found["bytes"] <= 15e6


@pytest.mark.slow
def test_pictures_are_made_by_the_tool(tmp_path):
    """The same pictures as in the docs, of scans with larger voxels; they show brains."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if not any(map(shutil.which, NAMES)):
        pytest.skip(f"no Chromium to open pages with: install one of {', '.join(NAMES)}")
    raw, out, made = tmp_path / "bids", tmp_path / "out", tmp_path / "img"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChisepWarning)  # voxels are coarse: methods say so
        simulate(SimulateConfig(out=raw, voxel_mm=2.0), paint_mm=2.0)
        (result,) = run(RunConfig(raw, out))
        assert result.error is None
        run_group(RunConfig(raw, out))
        compared = demo(DemoConfig(tmp_path / "demo", voxel_mm=6.0), paint_mm=4.0).comparison
    places = ["--group", out, "--comparison", compared, "--to", made]
    subprocess.run([sys.executable, ROOT / "tools/screens.py", out, *places], check=True)
    assert {path.name for path in made.iterdir()} == {path.name for path in IMAGES.iterdir()}
    for path in made.iterdir():
        with Image.open(path) as image:
            assert image.width > 500, path
            low, high = image.convert("L").getextrema()
            assert high - low > 150, path
