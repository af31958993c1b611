"""Documentation: links lead somewhere, the citation names the version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chisep.pipeline.outputs import BEYOND_RELIABLE_MASK

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
        *(ROOT / ".github").rglob("*.md"),
    ]
)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_the_readme_says_what_voxels_beyond_the_reliable_mask_mean():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert text.count(BEYOND_RELIABLE_MASK) == 1


def test_the_citation_names_the_version():
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/chisep/__init__.py").read_text())[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}\n" in citation
    assert re.search(r"^date-released: \d{4}-\d\d-\d\d$", citation, flags=re.MULTILINE)
