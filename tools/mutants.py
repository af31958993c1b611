"""Plant faults in the source one by one, and check that the tests of `make test` notice each.

The faults are listed in mutants.toml beside this file: a file below src/chisep, the text to replace, which
occurs once in it, the faulty text, and the tests that have to fail. A fault is planted in a temporary copy of
the source. The exit status is 1 if a fault is not noticed, 2 if the list itself is wrong.

Usage: python tools/mutants.py [WORD…]: all faults, or those whose names or files contain a word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutants.toml")
SHORT = "not slow and not real and not gpu"
"""Tests of `make test`, as the Makefile selects them."""
AT_ONCE = 2
LONGEST_S = 300


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Parameters
    ----------
    name
        What is wrong.
    file
        Path below src/chisep.
    old, new
        The text to replace, and the faulty one.
    tests
        Paths or node ids of tests, relative to the repository.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path = LIST) -> list[Mutant]:
    """Read the list of faults."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def problem(mutant: Mutant) -> str | None:
    """Return what is wrong with an entry; None if it can be planted."""
    file = ROOT / "src" / "chisep" / mutant.file
    if not file.is_file():
        return f"no file {mutant.file}"
    if (count := file.read_text(encoding="utf-8").count(mutant.old)) != 1:
        return f"its text occurs {count} times in {mutant.file}"
    if mutant.old == mutant.new:
        return "it changes nothing"
    if missing := [test for test in mutant.tests if not (ROOT / test.split("::")[0]).exists()]:
        return f"no tests {', '.join(missing)}"
    return None


def run_tests(source: Path, tests: tuple[str, ...], *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests against a copy of the source."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", SHORT, *options, *tests]
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )


def plant(mutant: Mutant) -> tuple[str, float, str]:
    """Plant a fault and run its tests; return noticed, SURVIVED or INVALID, seconds, and the evidence."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chisep-mutant-") as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "chisep" / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            done = run_tests(source, mutant.tests, "-x", "-n", "0", f"--basetemp={folder}/pytest")
        except subprocess.TimeoutExpired:
            return "noticed", time.monotonic() - start, f"no end within {LONGEST_S} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    evidence = failed[0].split(" ")[1] if failed else "".join(done.stdout.splitlines()[-1:])
    # Status 1: a test failed. 2 and above: nothing ran, or the faulty source cannot be imported.
    verdict = {0: "SURVIVED", 1: "noticed"}.get(done.returncode, "INVALID")
    return verdict, time.monotonic() - start, evidence


def main(words: list[str]) -> int:
    """Plant the faults that are wanted and print a table."""
    mutants = [m for m in read() if not words or any(word in m.name or word in m.file for word in words)]
    if wrong := [f"{mutant.name}: {found}" for mutant in mutants if (found := problem(mutant))]:
        print("\n".join(wrong))
        return 2
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    sound = run_tests(ROOT / "src", tests, "-n", str(AT_ONCE))
    if sound.returncode:
        print(sound.stdout, "\nThese tests fail without any fault.", sep="")
        return 2
    width = max(len(mutant.name) for mutant in mutants)
    verdicts = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, (verdict, seconds, evidence) in zip(mutants, pool.map(plant, mutants), strict=True):
            print(f"{verdict:<9}{seconds:5.0f} s  {mutant.name:<{width}}  {evidence}", flush=True)
            verdicts.append(verdict)
    print(f"{verdicts.count('noticed')} of {len(verdicts)} faults noticed")
    return 2 if "INVALID" in verdicts else int("SURVIVED" in verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
