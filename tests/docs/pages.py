"""Fenced blocks of pages, and how to run them."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

from chisep import cli
from chisep.errors import ChisepWarning

ROOT = Path(__file__).parents[2]
RUN = [
    ROOT / "README.md",
    ROOT / "docs/first-steps.md",
    ROOT / "docs/how-to.md",
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
]
"""Pages whose commands a test runs."""


def blocks(page: Path, *names: str) -> list[tuple[str, str]]:
    """Name and content of every fenced block of one of these names, in order."""
    found = re.findall(r"^```(\S+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(name, text) for name, text in found if name in names]


def commands(script: str) -> Iterator[str]:
    """Commands of a block: continued lines and here-documents are one command each."""
    lines = iter(script.replace("\\\n", " ").splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command = line
        if end := re.search(r"<<'?(\w+)'?", line):
            for more in lines:
                command += f"\n{more}"
                if more == end[1]:
                    break
        yield command


def run_page(page: Path) -> int:
    """Run all shell and Python blocks of a page in the current folder; return their number."""
    found = blocks(page, "sh", "python")
    for name, text in found:
        if name == "python":
            run_script(text, page)
            continue
        for command in commands(text):
            run(command)
    return len(found)


def run_script(text: str, path: Path) -> None:
    """Run Python code; warnings of chisep, such as of voxels of 4 mm, are no errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChisepWarning)
        exec(compile(text, str(path), "exec"), {"__name__": "__main__"})


def run(command: str) -> None:
    """Run a command of a page; of pip, make and git see that what they name exists."""
    match shlex.split(command, comments=True):
        case ["chisep", *arguments]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ChisepWarning)
                assert cli.main(arguments) == 0, command
        case ["pip", "install", *names]:
            assert all(is_installable(name) for name in names), command
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        case ["git", "clone", _] | ["cd", "chisep"]:
            pass
        case _:
            subprocess.run(["bash", "-ec", command], check=True)


def is_installable(name: str) -> bool:
    """Whether pip's argument is this package with extras that it has."""
    found = re.fullmatch(r"(?:\.|chisep)(?:\[(.*)\])?", name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = found[1].split(",") if found and found[1] else []
    return found is not None and set(extras) <= set(project["optional-dependencies"])
