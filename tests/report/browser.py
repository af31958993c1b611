"""Pages in headless Chromium: what it shows, what it asks for, and what it complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# No GPU, no WebGL: as on a remote desktop.
OPTIONS = ["--disable-gpu", "--disable-3d-apis", "--force-color-profile=srgb"]


@contextmanager
def opened(path: Path, *, before: str = "", scripts: bool = True, width: int = 1400) -> Iterator:
    """A page in Chromium; it may ask for nothing but its file, and complain of nothing.

    `before` is a script that runs before those of the page.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium to open the page with: install one of {', '.join(NAMES)}")
    asked: list[str] = []
    complaints: list[str] = []
    with api.sync_playwright() as driver:
        options = [*OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=program, args=options)
        try:
            page = browser.new_page(
                viewport={"width": width, "height": 1000}, java_script_enabled=scripts, color_scheme="light"
            )
            page.set_default_timeout(30_000)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            if before:
                page.add_init_script(before)
            page.goto(path.absolute().as_uri())
            yield page
            # Links to reports lead to other files; nothing but the page itself is ever loaded.
            assert set(asked) == {path.absolute().as_uri()}
            # The tests read pictures back, of which Chromium says that it is slow.
            assert [text for text in complaints if "willReadFrequently" not in text] == []
        finally:
            browser.close()
