"""Short runs with all tests, long ones by `make fuzz` (CHISEP_FUZZ=long): the same tests, more cases."""

from __future__ import annotations

import os
import time
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

from tests.hostile.limits import CASES

LONG = os.environ.get("CHISEP_FUZZ") == "long"
_OURS = "hostile: "
_START = time.monotonic()
_COMMON = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=not LONG,
)


def cases(short: int, long: int) -> settings:
    """How many cases a test draws in the two forms."""
    return settings(_COMMON, max_examples=long if LONG else short)


@pytest.fixture(autouse=True)
def _counted(request):
    """Hand the number of cases to the summary, also out of a worker process."""
    before = CASES.copy()
    yield
    request.node.user_properties += [(_OURS + target, n) for target, n in (CASES - before).items()]


def pytest_terminal_summary(terminalreporter):
    found = defaultdict(int)
    for report in terminalreporter.getreports(""):
        if report.when == "teardown":
            for name, count in report.user_properties:
                if name.startswith(_OURS):
                    found[name.removeprefix(_OURS)] += count
    if not found:
        return
    terminalreporter.section("hostile inputs")
    for target, count in sorted(found.items()):
        terminalreporter.line(f"{target:<28} {count:>6}")
    seconds = time.monotonic() - _START
    terminalreporter.line(f"{'all':<28} {sum(found.values()):>6} cases in {seconds:.0f} s")
