"""The scripts of `examples/` run, and their notebooks have the same cells."""

from __future__ import annotations

import json
import shutil

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from tests.docs.pages import ROOT, run_script
from tests.docs.test_commands import phantoms  # noqa: F401

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(SCRIPTS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs(script, tmp_path, monkeypatch, raw_session, processed, phantoms):  # noqa: F811
    for source, name in ((raw_session, "bids"), (processed, "out"), (phantoms, "phantoms")):
        shutil.copytree(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    text = script.read_text(encoding="utf-8")
    with mpl.rc_context({"backend": "Agg"}):
        run_script(text, script)
    plt.close("all")
    assert ("savefig" in text) == bool(set(tmp_path.glob("*.png")) - before)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_the_cells_of_its_script(script):
    content = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    text = script.read_text(encoding="utf-8")
    assert len(code) == text.count("# %%\n")
    assert all(part in text for part in code)
    prose = [line for cell in content["cells"] if cell["cell_type"] == "markdown" for line in cell["source"]]
    assert all(f"# {line.strip()}" in text for line in prose if line.strip())
    assert all(cell.get("outputs", []) == [] for cell in content["cells"])
