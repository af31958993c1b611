"""Sphinx configuration: Markdown pages, reference from docstrings, no request to another host."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import chisep  # noqa: E402

project = "chisep"
author = "The chisep developers"
copyright = "the chisep developers, Apache-2.0"  # noqa: A001
version = release = chisep.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "from_code",
    "mathml",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = False
suppress_warnings = [
    "config.cache",
    "myst.header",  # headings of model cards start where their text does
    "ref.python",  # signatures name types in short form, which several modules may have
]
show_warning_types = True

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

html_theme = "furo"
html_title = f"chisep {release}"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"

smartquotes = False  # R2' keeps its prime
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
