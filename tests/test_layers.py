"""CONTRIBUTING lists the layers that the import contract lists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_contributing_and_the_import_contract_list_the_same_layers():
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["type"] == "layers")
    expected = [[name.strip() for name in layer.split(":")] for layer in contract["layers"]]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Layers") :].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, flags=re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == expected


def test_every_module_of_the_package_is_in_a_layer():
    package = ROOT / "src" / "chisep"
    modules = {p.stem for p in package.glob("[!_]*.py")} | {
        p.parent.name for p in package.glob("*/__init__.py")
    }
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert modules <= set(re.findall(r"`(\w+)`", text))
