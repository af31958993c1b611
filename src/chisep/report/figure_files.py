"""Figures of a report as files of their own, as BIDS apps have them in `figures/` of a subject."""

from __future__ import annotations

import base64
import binascii
import io
import re
from html import unescape
from pathlib import Path

from PIL import Image

from chisep.io.files import write_bytes
from chisep.io.paths import is_file, require_inside
from chisep.io.tsv import slug

FOLDER = "figures"
"""Folder of a subject; `.bidsignore` lists it."""

_PANEL = re.compile(
    r'<section id="panel-\d+"[^>]*>.*?<h2>(?P<title>[^<]*)</h2>(?P<body>.*?)</section>', re.DOTALL
)
_IMAGE = re.compile(r'<img src="data:image/(?P<kind>png|webp|svg\+xml);base64,(?P<content>[A-Za-z0-9+/=]+)"')


def write_figures(root: Path, page: Path, subject: str) -> list[Path]:
    """Write every figure of a report to a file; equal files are kept, those of figures that are gone removed.

    They are read from the page, so that files and page cannot differ.

    Parameters
    ----------
    root
        Derivatives dataset.
    page
        Report of a session in it.
    subject
        Label of the subject, without `sub-`.

    Returns
    -------
    list of Path
        OUT/sub-01/figures/sub-01_desc-separatedSources_figure.png, …

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    folder = root / f"sub-{subject}" / FOLDER
    contents = _figures(page.read_text(encoding="utf-8", errors="replace"))
    paths = {folder / f"{page.stem}_desc-{name}": content for name, content in contents.items()}
    for path, content in paths.items():
        require_inside(root, path)
        if not is_file(path) or path.read_bytes() != content:
            write_bytes(path, content)
    for path in folder.glob(f"{page.stem}_desc-*_figure.*"):
        if path not in paths:
            require_inside(root, path).unlink(missing_ok=True)
    return list(paths)


def _figures(page: str) -> dict[str, bytes]:
    """Figures of a page: end of the file name → content."""
    found: dict[str, bytes] = {}
    for panel in _PANEL.finditer(page):
        for number, image in enumerate(_IMAGE.finditer(panel["body"])):
            try:
                content = base64.b64decode(image["content"], validate=True)
                if image["kind"] == "webp":
                    content = _as_png(content)
            except (binascii.Error, OSError):  # a page that somebody edited
                continue
            extension = "svg" if image["kind"] == "svg+xml" else "png"
            label = _label(unescape(panel["title"])) + (str(number + 1) if number else "")
            found[f"{label}_figure.{extension}"] = content
    return found


def _as_png(content: bytes) -> bytes:
    """Convert an image to PNG, which every program of a reader or a journal opens."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.save(file, "PNG")
    return file.getvalue()


def _label(title: str) -> str:
    """Value of the entity `desc`: words of a title without spaces, letters and digits alone."""
    first, *rest = slug(title).split("_")
    return "".join([first or "figure", *(word.capitalize() for word in rest)])
