"""The documentation as a site: complete, without warnings, without a network."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from latex2mathml.converter import convert

from tests.docs.pages import ROOT
from tests.hostile.test_offline import offline  # noqa: F401

DOCS = ROOT / "docs"


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for index in DOCS.rglob("index.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text(), re.MULTILINE | re.DOTALL):
            for entry in tree.splitlines():
                if entry and not entry.startswith(":"):
                    listed |= set(index.parent.glob(f"{entry}.md"))
    pages = {page for page in DOCS.rglob("*.md") if not {"_build", "_api"} & set(page.parts)}
    assert pages - listed - {DOCS / "index.md"} == set()


@pytest.mark.parametrize("page", sorted((DOCS / "theory").glob("*.md")), ids=lambda page: page.stem)
def test_equations_are_mathml(page):
    text = page.read_text(encoding="utf-8")
    equations = re.findall(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+)\$", text, re.DOTALL)
    assert equations
    for block, inline in equations:
        assert "\\" not in convert(block or inline), block or inline


def test_links_to_other_hosts_are_listed():
    listed = subprocess.run(
        [sys.executable, ROOT / "tools/external_links.py"], capture_output=True, text=True, check=True
    ).stdout
    assert "https://doi.org/10.1002/hbm.70136 README.md" in listed
    assert all(re.match(r"https?://\S+( [\w./-]+\.md)+$", line) for line in listed.splitlines())


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_without_a_network(tmp_path, offline):  # noqa: F811
    options = ("-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees"))
    built = offline("-m", "sphinx", *options, str(DOCS), str(tmp_path / "site"))
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 60
    for page, text in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(https?:[^\"]*)", text)
        assert loaded == [], page
    equations = [text for page in pages.values() for text in re.findall(r"<math.*?</math>", page, re.DOTALL)]
    assert len(equations) > 60
    assert [text for text in equations if "\\" in text] == [], "TeX that is no MathML"
    assert "chisep.api" in pages[tmp_path / "site/reference/api.html"]
    assert "chisep.api.maps.separate" in pages[tmp_path / "site/reference/_api/chisep.api.html"]
    assert "--voxel-mm" in pages[tmp_path / "site/reference/commands.html"]
    assert "10.1002/nbm.5226" in pages[tmp_path / "site/reference/works.html"]
