"""Equations as MathML, which browsers draw without a script and without a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

STYLE = "margin: 1em 0; overflow-x: auto; overflow-y: hidden"


def inline(self: Any, node: nodes.math) -> None:  # noqa: ANN401
    """Write an equation in a line of text."""
    self.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:  # noqa: ANN401
    """Write an equation in a line of its own."""
    self.body.append(f'<div style="{STYLE}">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
