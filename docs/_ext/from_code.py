"""Insert help texts and works, which the code knows; show docstrings and links to folders as plain text."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import chisep
from chisep import cli
from chisep.provenance.citations import works

NOT_API = {"cli", "demo", "doctor", "experiments"}
"""Packages whose functions are commands, for which help texts are the reference."""
COMMANDS = re.compile(r"^  ([a-z-]+) {2,}\S", flags=re.MULTILINE)


def write_api_pages(app: Sphinx) -> None:
    """Write one page for each package, with the docstrings of its public modules."""
    folder = Path(app.srcdir) / "reference" / "_api"
    folder.mkdir(exist_ok=True)
    for package in pkgutil.iter_modules(chisep.__path__):
        if package.name.startswith("_") or package.name in NOT_API:
            continue
        name = f"chisep.{package.name}"
        paths = [str(Path(path, package.name)) for path in chisep.__path__]
        inner = pkgutil.walk_packages(paths, f"{name}.") if package.ispkg else ()
        modules = [name, *(module.name for module in inner if "._" not in module.name)]
        text = f"{name}\n{'=' * len(name)}\n" + "".join(map(section_of, modules))
        page = folder / f"{name}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def section_of(module: str) -> str:
    """Section with the docstrings of a module."""
    package, _, name = module.rpartition(".")
    # A function of the package that has the name of its module would be indexed twice.
    is_twice = name in getattr(importlib.import_module(package), "__all__", ())
    option = "   :no-index:\n" if is_twice else ""
    return f"\n{module}\n{'-' * len(module)}\n\n.. automodule:: {module}\n{option}"


def output_of(*arguments: str) -> str:
    """Return what a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main(list(arguments))
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).rstrip()


class HelpTexts(Directive):
    """Help text of every command, each under a heading."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        sections: list[nodes.Node] = []
        for command in COMMANDS.findall(output_of("--help")):
            section = nodes.section(ids=[nodes.make_id(f"chisep-{command}")])
            section += nodes.title("", f"chisep {command}")
            text = output_of(command, "--help")
            section += nodes.literal_block(text, text, language="none")
            self.state.document.note_implicit_target(section, section)
            sections.append(section)
        return sections


class Works(Directive):
    """List of all works that a methods text can cite."""

    def run(self) -> list[nodes.Node]:
        """Make the list."""
        entries = nodes.bullet_list()
        for entry in works().values():
            fields = dict(re.findall(r"^  (\w+) = \{(.+)\},?$", entry, flags=re.MULTILINE))
            entries += nodes.list_item("", self._paragraph(fields))
        return [entries]

    @staticmethod
    def _paragraph(fields: dict[str, str]) -> nodes.paragraph:
        def plain(text: str) -> str:
            return (
                re.sub(r"\\(['\"~])\{(\w)\}", r"\2", text)
                .replace("{", "")
                .replace("}", "")
                .replace("--", "–")
            )

        source = next(fields[name] for name in ("journal", "booktitle", "howpublished") if name in fields)
        place = fields.get("volume", "") + (f":{fields['pages']}" if "pages" in fields else "")
        authors = plain(fields["author"]).replace(" and others", " and others").replace(" and ", "; ")
        text = (
            f"{authors} ({fields['year']}). {plain(fields['title'])}. {plain(source)} {plain(place)}".rstrip()
        )
        paragraph = nodes.paragraph("", f"{text}. ")
        if doi := fields.get("doi"):
            paragraph += nodes.reference("", doi, refuri=f"https://doi.org/{doi}")
        elif eprint := fields.get("eprint"):
            paragraph += nodes.reference("", f"arXiv:{eprint}", refuri=f"https://arxiv.org/abs/{eprint}")
        return paragraph


def plain_docstring(_app: Sphinx, what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:  # noqa: ANN401
    """Make reStructuredText of a docstring whose only markup is `code`; R2* and formulas stay as they are."""
    written: list[str] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        before = next((text for text in reversed(written) if text.strip()), "")
        opens = line.strip() and indent >= 4 and (not written or not written[-1].strip())
        if opens and not is_item(before) and (len(before) - len(before.lstrip()) < indent or not before):
            written += [" " * (indent - 4) + "::", ""]
            before = "::"
        written.append(line if in_formula(written, indent) else as_markup(line))
    if lines and what in {"attribute", "data", "property"}:
        # napoleon takes "a: b" in the first line for a type and its description; an empty comment avoids it.
        written[:0] = ["..", ""]
    lines[:] = written


def is_item(line: str) -> bool:
    """Whether a line starts an item of a list, which may have paragraphs of its own."""
    return bool(re.match(r"\s*(-|\d+\.) ", line))


def in_formula(written: list[str], indent: int) -> bool:
    """Whether the next line of this indent belongs to a literal block."""
    for text in reversed(written):
        if text.strip() and len(text) - len(text.lstrip()) < indent:
            return text.strip() == "::"
    return False


def as_markup(line: str) -> str:
    """Escape what a line of prose has in common with markup."""
    parts = re.split(r"(`[^`]*`)", line)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = re.sub(r"([*|`]|_(?=\W|$))", r"\\\1", part)
        elif number + 1 < len(parts) and re.match(r"[^\s.,:;!?)\]'\"’”/-]", parts[number + 1]):
            parts[number] = f"{part}\\ "
    return "".join(parts)


def unlink_folders(app: Sphinx, document: nodes.document) -> None:
    """Show links to folders as text: GitHub lists a folder, the site has no page of it."""
    here = Path(app.srcdir, app.env.docname).parent
    for link in list(document.findall(pending_xref)):
        if link["reftype"] == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    os.environ.setdefault("COLUMNS", "100")
    app.connect("builder-inited", write_api_pages)
    app.add_directive("help-texts", HelpTexts)
    app.add_directive("works", Works)
    app.connect("doctree-read", unlink_folders)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
