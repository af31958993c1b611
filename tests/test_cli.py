from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chisep
from chisep import cli
from chisep.cli.arguments import parse
from chisep.execution import cohort
from chisep.execution.config import CohortConfig
from chisep.pipeline.session import SessionResult

HEAVY = ("torch", "numpy", "nibabel", "matplotlib", "tyro", "scipy")


@pytest.mark.parametrize("call", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(call):
    """So that it answers at once."""
    code = f"import sys; from chisep.cli import main; main({call}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(HEAVY) & set(done.stderr.split())


ENVIRONMENT = """
import importlib, os, pkgutil, sys

changed = []

def record(name):
    frame = sys._getframe(2)
    while frame.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    changed.append((frame.f_globals["__name__"], name))

for method in ("__setitem__", "__delitem__"):
    def traced(self, name, *value, _original=getattr(os._Environ, method)):
        record(name)
        _original(self, name, *value)
    setattr(os._Environ, method, traced)
os.environ["CHANGED"] = "1"  # the trap works
before = dict(os.environ)
import chisep

for module in pkgutil.walk_packages(chisep.__path__, "chisep."):
    importlib.import_module(module.name)
assert changed.pop(0) == ("__main__", "CHANGED")
others = {name for module, name in changed if module.split(".")[0] != "chisep"}  # of libraries
assert len(others) == len({name for _, name in changed}), changed
after = {name: value for name, value in os.environ.items() if name not in others}
assert after == {name: value for name, value in before.items() if name not in others}
assert "THP_MEM_ALLOC_ENABLE" not in others
"""


def test_imports_set_no_environment_variable():
    """A program that imports chisep as a library keeps its own settings."""
    clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chosen", [None, "0"])
def test_commands_use_large_pages_unless_the_user_chose(chosen, monkeypatch, capsys):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", chosen or "")  # restored at the end
    if chosen is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert cli.main(["--version"]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == (chosen or "1")


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in printed
        assert command.summary in printed


def test_the_command_help_is_the_option(capsys):
    assert cli.main(["help"]) == cli.main(["--help"]) == 0
    once = capsys.readouterr().out
    assert once[: len(once) // 2] == once[len(once) // 2 :]
    texts = []
    for call in (["help", "qsm"], ["qsm", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(call)
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert cli.main(["help", "seperate"]) == 2


def test_a_run_ends_with_paths_and_the_next_command(tmp_path, monkeypatch, capsys):
    raw, out = tmp_path / "raw data", tmp_path / "out"
    done = SessionResult("sub-01", report=out / "sub-01.html")
    monkeypatch.setattr(cohort, "run_cohort", lambda *_: [done])
    (out / ".chisep").mkdir(parents=True)
    (out / "methods.md").touch()
    assert cli.main(["run", str(raw), str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"sub-01: {out / 'sub-01.html'}",
        f"methods section of a paper: {out / 'methods.md'}",
        f"table and page of all sessions: chisep run '{raw}' {out} group",
    ]


def test_public_names_are_listed():
    assert set(chisep.__all__) <= set(dir(chisep))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"chisep {chisep.__version__}\n"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"chisep {name}" in printed


def test_wrong_calls(capsys):
    assert cli.main([]) == 2
    assert cli.main(["seperate"]) == 2
    assert "there are: run, explain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["separate", "--field", "f.nii"])
    assert ended.value.code == 2


def test_methods(capsys):
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"closed-form", "iterative", "tikhonov", "tkd", "tv"} <= {row["name"] for row in rows}
    for row in rows:
        assert row["name"] in printed
        assert row["source"].split()[0] in ("closed-form", "iterative", "trained")
        assert row["inputs"]
    assert "[magnitude]" in printed.replace("\n", "")


def test_training_without_its_packages(tmp_path):
    """Networks are applied without the extra `train`, and its lack is explained."""
    code = (
        "import sys; sys.modules['pytorch_lightning'] = None\n"
        "from chisep.cli import main; sys.exit(main(['weights']) or main(['train', 'qsmnet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'chisep[train]'" in done.stderr
    assert "no package pytorch_lightning" in done.stderr


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"train", "reproduce"}))
def test_help_has_no_empty_defaults_and_no_none_in_metavariables(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"None|\(default: \)|\(default: ''\)|options options", printed)


@pytest.mark.parametrize("width", [80, 100])
def test_paragraphs_of_the_help_are_filled(width, capsys, monkeypatch):
    """No line of a paragraph ends before the first word of the next one would not fit."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    lines = [line.strip("│").rstrip() for line in capsys.readouterr().out.splitlines() if line[:1] == "│"]
    for line, after in itertools.pairwise(lines):
        deep = len(line) - len(line.lstrip())
        if deep > 1 and deep == len(after) - len(after.lstrip()):
            assert len(line) + len(after.split()[0]) + 1 > width - 4, line


def test_metavariables_are_short(capsys):
    with pytest.raises(SystemExit):
        cli.main(["simulate", "--help"])
    printed = capsys.readouterr().out
    assert "--voxel-mm FLOAT [FLOAT FLOAT]" in printed
    assert "--te-gre-s [FLOAT ...]" in printed
    assert "--tilt-deg FLOAT FLOAT FLOAT" in printed


def test_an_option_that_may_be_left_out_still_takes_none_and_a_value():
    for given, expected in (([], None), (["--masks", "None"], None), (["--masks", "m"], Path("m"))):
        assert parse(CohortConfig, "run", ["a", "b", *given], prefixes=True).run.masks == expected
    for given, expected in (([], None), (["True"], True), (["None"], None)):
        options = ["--field-map.bipolar", *given] if given else []
        found = parse(CohortConfig, "run", ["a", "b", *options], prefixes=True)
        assert found.run.field_map.bipolar is expected
