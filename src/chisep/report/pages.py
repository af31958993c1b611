"""Filling of page templates, with scripts that the page allows by their checksum."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

VIEWER_SCRIPTS = ("viewer_data.js", "viewer_draw.js", "viewer.js")
"""Scripts of the viewer, in the order in which they run."""
TABLE_SCRIPTS = ("tables.js",)
"""Sorts and filters tables."""
SCRIPTS = (*TABLE_SCRIPTS, *VIEWER_SCRIPTS)
"""All scripts of this package."""


def rendered(template: str, *, scripts: Sequence[str] = (), **content: Any) -> str:  # noqa: ANN401
    """Fill a template of this package; every text is escaped.

    Parameters
    ----------
    template
        Its name.
    scripts
        Names of the scripts of this package that the page runs. It runs no other.
    content
        Variables of the template; a missing one is an error.
    """
    environment = Environment(
        loader=PackageLoader("chisep.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = [script(name) for name in scripts]
    policy = "".join(f" 'sha256-{_checksum(text)}'" for text in texts)
    return environment.get_template(template).render(
        **content,
        script_policy=f"; script-src{policy}" if texts else "",
        # Code of this package, not text of a scan.
        script_texts=[Markup(text) for text in texts],  # noqa: S704
    )


@cache
def script(name: str) -> str:
    """Text of a script of this package, as it is in a page."""
    return (files("chisep.report") / "templates" / name).read_text(encoding="utf-8").strip()


def _checksum(text: str) -> str:
    """SHA-256 of a script in base64, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
