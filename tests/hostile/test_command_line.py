"""The command line: any value of any option. Nothing but a message comes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chisep import cli
from tests.hostile import datasets
from tests.hostile.conftest import cases
from tests.hostile.limits import CASES, names, soon

_words = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                " ",
                "-",
                "--",
                "..",
                "../..",
                "/",
                "/dev/null",
                "/dev/zero",
                "/proc/self/mem",
                "~",
                "a\0b",
            ),
            *(
                "nan",
                "inf",
                "-inf",
                "1e400",
                "-1",
                "0",
                "9" * 400,
                "1_000",
                "0x10",
                "٣",
                "true",
                "None",
                "[]",
            ),
            *(
                "x" * 5000,
                "\udcff",
                "a\nb",
                "\x1b[31m",
                "*",
                "{}",
                "<script>",
                "sub-01",
                "01",
                "cuda:99",
                "mps",
            ),
        ]
    ),
    st.text(max_size=8),
)
_PLACES = ("BIDS", "OUT", "MAPS", "NOTHING")
_OPTIONS = {
    "run": [
        *("--participant-label", "--method", "--qsm", "--dr", "--calibrate-dr", "--masks", "--device"),
        "--b0-dir",
        *("--weights", "--mask.method", "--background.method", "--r2.method", "--field-map.phase-sign"),
    ],
    "bids-check": ["--participant-label", "--method", "--json"],
    "import": ["--magnitude", "--phase", "--te", "--b0", "--subject", "--spin-echo", "--te-spin-echo"],
    "dicom": ["--megre", "--mese"],
    "separate": [
        "--field",
        "--mask",
        "--out",
        "--r2prime",
        "--b0",
        "--b0-dir",
        "--units",
        "--dr",
        "--method",
        "--weights",
    ],
    "qsm": ["--field", "--mask", "--out", "--method", "--b0-dir", "--units", "--weights", "--device"],
    "evaluate": ["--pred", "--truth", "--mask"],
    "qsm-ci": ["--method", "--stage"],
    "weights": ["--json"],
    "methods": ["--json"],
    "reproduce": [],
    "": [],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """A dataset whose images hold no brain, so that nothing runs for long; a folder to write to."""
    root = tmp_path_factory.mktemp("places")
    datasets.write_dataset(root / "raw")
    return dict(zip(_PLACES, map(str, (root / "raw", root / "in" / "out", root, root / "none")), strict=True))


@st.composite
def calls(draw) -> list[str]:
    """A command, options that it has, and values that it was not made for."""
    command = draw(st.sampled_from(sorted(_OPTIONS)))
    places = st.sampled_from(_PLACES)
    words = draw(st.lists(st.one_of(places, _words), max_size=3))
    for option in draw(st.lists(st.sampled_from(_OPTIONS[command]), max_size=3)) if _OPTIONS[command] else ():
        words += [option, *draw(st.lists(st.one_of(places, _words), max_size=3))]
    return [command, *words]


@cases(60, 400)
@given(call=calls())
@example(call=["qsm-ci", "", "--", "NOTHING"])
def test_any_call_ends_with_a_status(places, capsys, tmp_path, monkeypatch, call):
    CASES["command line"] += 1
    monkeypatch.chdir(tmp_path)
    root = Path(places["MAPS"])
    before = {path for path in names(root) if not path.is_relative_to(places["OUT"])}
    with soon():
        try:
            status = cli.main([places.get(word, word) for word in call])
        except SystemExit as ended:
            status = ended.code
    printed = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in printed.err + printed.out
    assert "fault of chisep" not in printed.err
    # With status 2 it is the parser that repeats what was typed.
    assert status == 2 or "\x1b[31m" not in printed.err
    after = {path for path in names(root) if not path.is_relative_to(places["OUT"])}
    assert after - before <= {Path(places["OUT"]).parent}
    assert not [path for path in names(tmp_path) if path.name.endswith("tmp")]


def test_standard_output_that_knows_no_unicode(places):
    """Names and symbols are printed as well as they can be."""
    CASES["command line"] += 1
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "chisep.cli", "bids-check", places["BIDS"]],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
