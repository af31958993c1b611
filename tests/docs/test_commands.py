"""Every command and script of the README, the first steps, the how-to and the tutorials, run as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

from chisep import cli
from chisep.cli.completion import completion_script
from chisep.simulation.dataset import SimulateConfig, simulate
from tests.docs.pages import ROOT, RUN, blocks, commands, is_installable, run_page
from tests.io.test_dicom import write_series

FAST = {"docs/first-steps.md", "docs/how-to.md", "docs/tutorials/own-bids-data.md"}
"""Pages of which `make test` runs the commands; the others are marked slow."""


def dicom_of(raw: Path, folder: Path) -> None:
    """Write a scan as Siemens stores it."""
    anat = raw / "sub-01/anat"
    for part, number in (("mag", 5), ("phase", 6)):
        for echo, path in enumerate(sorted(anat.glob(f"*_part-{part}_MEGRE.nii.gz")), start=1):
            values = nib.load(path).get_fdata()
            te_ms = 1000 * (0.005, 0.011, 0.017, 0.023, 0.029)[echo - 1]
            facts = {"number": number, "maker": "SIEMENS", "name": "gre_me", "edges": (4, 4)}
            if part == "mag":
                stored = np.round(values * 20000)
                write_series(folder, stored, te_ms, echo, kind=("M", "ND"), **facts)
            else:
                stored = np.clip(np.round((values / np.pi + 1) * 2048), 0, 4095)
                write_series(folder, stored, te_ms, echo, kind=("P", "ND"), rescale=(2, -4096), **facts)
    for echo, path in enumerate(sorted(anat.glob("*_MESE.nii.gz")), start=1):
        values = nib.load(path).get_fdata()
        stored = np.round(values * 6000)
        facts = {"number": 8, "maker": "SIEMENS", "name": "se_me", "edges": (4, 4), "sequence": "SE"}
        write_series(folder, stored, 15.0 * echo, echo, kind=("M", "ND"), **facts)


@pytest.fixture(scope="session")
def phantoms(make_once) -> Path:
    """Maps of two subjects, as the pages simulate them."""
    return make_once(
        "phantoms", lambda out: simulate(SimulateConfig(out=out, voxel_mm=4.0, subjects=2, maps_only=True))
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """Return a function that makes the current folder that a page starts from.

    What a page makes first is copied from other tests, where they made it by the same command. The command
    then finds that it is complete.
    """
    monkeypatch.chdir(tmp_path)

    def prepare(page: Path) -> None:
        def copy(fixture: str, name: str) -> None:
            shutil.copytree(request.getfixturevalue(fixture), tmp_path / name)

        match str(page.relative_to(ROOT)):
            case "README.md":
                copy("raw_session", "BIDS")
                copy("processed", "OUT")
                copy("phantoms", "phantoms")
                maps = {"F": "desc-local_fieldmap", "R": "R2primemap", "M": "desc-brain_mask"}
                for name, suffix in maps.items():
                    shutil.copy(f"OUT/sub-01/anat/sub-01_{suffix}.nii.gz", f"{name}.nii.gz")
                shutil.copy("OUT/sub-01/anat/sub-01_R2starmap.nii.gz", "S.nii.gz")
            case "docs/tutorials/dicom.md":
                Path("dicom").mkdir()
                dicom_of(request.getfixturevalue("raw_session"), Path("dicom/visit1"))
            case "docs/tutorials/single-maps.md" | "docs/tutorials/train.md":
                copy("phantoms", "phantoms")
            case "docs/tutorials/no-spin-echo.md" | "docs/tutorials/orientations.md":
                pass
            case _:
                copy("raw_session", "bids")
                copy("processed", "out")

    return prepare


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=[] if (name := str(page.relative_to(ROOT))) in FAST else pytest.mark.slow, id=name
        )
        for page in RUN
    ],
)
def test_commands_run_as_they_stand(page, folder):
    folder(page)
    try:
        assert run_page(page) >= 2
    finally:
        plt.close("all")
    for name in made_by(page):
        assert Path(name).exists(), name


def made_by(page: Path) -> list[str]:
    """Files in OUT that the text of a page names."""
    text = page.read_text(encoding="utf-8")
    return [
        name
        for name in re.findall(r"`(out/[\w./-]+\.(?:html|md|tsv|bib|nii\.gz))`", text)
        if "SESSION" not in name
    ]


def test_other_pages_promise_nothing():
    """`sh` is for commands that are run; other pages show them as `bash` or `text`."""
    others = [
        page for page in (ROOT / "docs").rglob("*.md") if page not in RUN and "_build" not in page.parts
    ]
    assert [str(page) for page in others if blocks(page, "sh")] == []


@pytest.mark.slow
def test_every_option_that_a_page_names_exists():
    """Also in text, and in commands that are shown only."""
    script = completion_script("bash", {name: command.summary for name, command in cli.COMMANDS.items()})
    known = set(re.findall(r"--[a-z][\w.-]*", script)) | {"--help", "--version"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")]
    named = {
        (page.name, option)
        for page in pages
        for command in re.findall(r"\bchisep (?:[^`\n\\]|\\\n)*", page.read_text(encoding="utf-8"))
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", command)
    }
    assert len(named) > 50
    assert sorted((page, option) for page, option in named if option not in known) == []


def test_extraction_of_commands():
    script = "a --b \\\n  c  # comment\n# no command\n\ncat > f <<'END'\nx\n\nEND\nd\n"
    assert list(commands(script)) == ["a --b    c  # comment", "cat > f <<'END'\nx\n\nEND", "d"]
    assert is_installable("chisep[train]")
    assert is_installable(".")
    assert not is_installable("chisep[nothing]")
    assert not is_installable("chise")
