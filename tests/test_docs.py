"""Documentation: links lead somewhere, examples run, the citation names the version."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chisep import cli
from chisep.pipeline.outputs import BEYOND_RELIABLE_MASK

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])


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


@pytest.mark.slow
def test_examples_of_the_readme_run_as_they_stand(tmp_path, monkeypatch):
    """Simulation, the script in Python, and the training."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if re.match("chisep (simulate|train) ", line)]
    (script,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert [call[1] for call in calls] == ["simulate", "train"]
    assert all(cli.main(call[1:]) == 0 for call in calls)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert Path("chi_pos.nii.gz").is_file()
    assert Path("trained", "weights.safetensors").is_file()


def test_the_citation_names_the_version():
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/chisep/__init__.py").read_text())[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}\n" in citation
    assert re.search(r"^date-released: \d{4}-\d\d-\d\d$", citation, flags=re.MULTILINE)
