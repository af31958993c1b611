"""The list of planted faults (`make mutants`) fits the source."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "tools" / "mutants.py"
_spec = importlib.util.spec_from_file_location("mutants", PROGRAM)
mutants = importlib.util.module_from_spec(_spec)
import sys  # noqa: E402

sys.modules["mutants"] = mutants  # dataclasses look their module up
_spec.loader.exec_module(mutants)
LIST = mutants.read()
PACKAGE = Path(__file__).parents[1] / "src" / "chisep"


@pytest.mark.parametrize("mutant", LIST, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_planted(mutant):
    assert mutants.problem(mutant) is None


def test_there_are_faults_in_every_package():
    assert len(LIST) >= 45
    assert len({mutant.name for mutant in LIST}) == len(LIST)
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {mutant.file.split("/")[0] for mutant in LIST} >= packages
