"""What `chisep run` offers beside the computation: a lesson, configs, a log, figures, the time left."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chisep import cli
from chisep.cli.arguments import parse
from chisep.cli.config_file import config_option, read_config, write_config
from chisep.cli.terminal import duration
from chisep.errors import InputError
from chisep.execution import cohort
from chisep.execution.config import CohortConfig
from chisep.execution.progress import TYPICAL_SECONDS, TimeLeft, Update
from chisep.report.figure_files import write_figures

QUICK = ["--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold"]
MANY = [
    *("--participant-label", "01", "02", "--dr", "120.5", "99", "--b0-dir", "0", "0.6", "0.8"),
    *("--field-map.phase-sign", "-1", "--field-map.bipolar", "False", "--field-map.accept-poor"),
    *("--registration.smoothing-mm", "5", "2", "--reference", "brain", "--workers", "3", "--retries", "0"),
]


def parsed(*arguments: str) -> CohortConfig:
    return parse(CohortConfig, "run", ["raw", "out", *arguments], prefixes=True)


@pytest.fixture(scope="module")
def ran(raw_gradient_echo, tmp_path_factory) -> Path:
    """A run of the command line with a saved config."""
    root = tmp_path_factory.mktemp("run")
    call = ["run", str(raw_gradient_echo), str(root / "out"), *QUICK, "--save-config", str(root / "run.toml")]
    assert cli.main(call) == 0
    return root


def test_without_arguments_it_teaches(capsys):
    assert cli.main(["run"]) == 2
    said = capsys.readouterr().err
    for word in ("MEGRE", "bids-check", "chisep run BIDS OUT group", "chisep demo", "--help"):
        assert word in said


class TestConfig:
    @pytest.mark.parametrize("options", [[], MANY, ["--dr", "auto"], QUICK])
    def test_a_config_comes_back_as_it_was(self, options, tmp_path):
        config = parsed(*options)
        path = write_config(tmp_path / "run.toml", config, "two\nlines")
        assert read_config(path, CohortConfig) == config

    def test_a_saved_config_repeats_the_run_and_nothing_is_made_again(self, ran, monkeypatch, tmp_path):
        made = {path: path.stat().st_mtime_ns for path in (ran / "out" / ".chisep").rglob("*.json")}
        assert made
        monkeypatch.chdir(tmp_path)
        assert cli.main(["run", "--config", str(ran / "run.toml"), "--dry-run"]) == 0
        assert cli.main(["run", "--config", str(ran / "run.toml")]) == 0
        assert {path: path.stat().st_mtime_ns for path in made} == made

    def test_the_command_line_prevails(self, ran, monkeypatch):
        seen = []
        monkeypatch.setattr(cohort, "run_cohort", lambda run, *_: seen.append(run) or [])
        assert cli.main(["run", f"--config={ran / 'run.toml'}", "--denoise", "none"]) == 0
        assert (seen[0].method, seen[0].denoise) == ("closed-form", "none")
        assert seen[0].out == ran / "out"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[run", "no TOML"),
            ("[run]\nbids = 'a'", "no option run.out"),
            ("[run]\nbids = 'a'\nout = 'b'\nmehtod = 'tkd'", "the option run.mehtod"),
            ("[run]\nbids = 'a'\nout = 'b'\ndenoise = 'often'", "lmmse"),
            ("[run]\nbids = 'a'\nout = 'b'\nb0_dir = [1, 2]", "3 values"),
            ("run = 3", "a table"),
            ("[run]\nbids = 'a'\nout = 'b'\n[cluster]\nretries = 'x'", "cluster.retries = 'x'"),
        ],
    )
    def test_a_wrong_file_is_one_message(self, text, said, tmp_path, capsys):
        path = tmp_path / "run.toml"
        path.write_text(text)
        with pytest.raises(InputError) as error:
            read_config(path, CohortConfig)
        assert said in str(error.value)
        assert cli.main(["run", "--config", str(path)]) == 1
        assert str(path) in capsys.readouterr().err

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.toml"):
            read_config(tmp_path / "none.toml", CohortConfig)

    def test_the_option_is_found_before_parsing(self):
        assert config_option(["a", "--config", "b"]) == config_option(["--config=b"]) == Path("b")
        assert config_option(["--save-config", "b"]) is None


def test_the_log_has_the_call_and_every_stage(ran):
    (log,) = (ran / "out" / "logs").iterdir()
    lines = log.read_text().splitlines()
    assert "command: chisep run" in lines[1]
    assert str(ran / "run.toml") in lines[1]
    stages = [json.loads(path.read_text())["description"] for path in (ran / "out/.chisep").rglob("*.json")]
    assert sum(": INFO" in line or " INFO sub-01: " in line for line in lines) >= len(stages)


def test_figures_of_the_report_are_files(ran):
    out = ran / "out"
    figures = sorted((out / "sub-01" / "figures").iterdir())
    assert any("separatedSources" in path.name for path in figures)
    for path in figures:
        assert path.name.startswith("sub-01_desc-")
        if path.suffix == ".png":
            assert np.ptp(np.asarray(Image.open(path))) > 0
    page = (out / "sub-01.html").read_text()
    assert page.count('src="data:image/') == len(figures)
    kept = {path: path.stat().st_mtime_ns for path in figures[1:]}
    figures[0].write_bytes(b"edited")
    extra = figures[0].with_name("sub-01_desc-gone_figure.png")
    extra.touch()
    assert sorted(write_figures(out, out / "sub-01.html", "01")) == figures
    assert figures[0].read_bytes() != b"edited"
    assert not extra.exists()
    assert {path: path.stat().st_mtime_ns for path in figures[1:]} == kept


class TestTimeLeft:
    def test_the_table_is_what_was_measured(self):
        path = Path(__file__).parents[2] / "benchmarks/results/session-one-thread.json"
        stages = json.loads(path.read_text())["stages"]
        assert list(TYPICAL_SECONDS) == list(stages)
        for stage, seconds in TYPICAL_SECONDS.items():
            assert seconds == pytest.approx(stages[stage]["processor_s"], abs=0.06)

    def test_from_the_stages_before(self):
        """A machine of half the speed, in its first session."""
        left = TimeLeft()
        stages = list(TYPICAL_SECONDS)
        for number, stage in enumerate(stages):
            for part in (0.0, 0.5, 1.0):
                now = Update("a", "running", stage, number, len(stages), 2 * part * TYPICAL_SECONDS[stage])
                left.note(now)
                expected = 2 * (1 - part) * TYPICAL_SECONDS[stage]
                if not number:
                    assert left.stage_s(now) is None
                    assert left.session_s(now) is None
                else:
                    rest = 2 * sum(TYPICAL_SECONDS[name] for name in stages[number + 1 :])
                    assert left.stage_s(now) == pytest.approx(expected)
                    assert left.session_s(now) == pytest.approx(expected + rest)

    def test_from_the_sessions_before(self):
        left = TimeLeft()
        for stage, seconds in (("mask", 3.0), ("unknown stage", 5.0), ("report", 2.0)):
            left.note(Update("a", "running", stage, seconds=seconds))
        left.note(Update("a", "done"))
        now = Update("b", "running", "unknown stage", seconds=1.0)
        left.note(now)
        assert left.stage_s(now) == 4.0
        assert left.session_s(now) == 6.0

    @given(st.lists(st.tuples(st.sampled_from([*TYPICAL_SECONDS, ""]), st.floats(0, 1e4)), max_size=20))
    def test_it_is_never_negative(self, steps):
        left = TimeLeft()
        for stage, seconds in steps:
            now = Update("a", "running" if stage else "done", stage, seconds=seconds)
            left.note(now)
            assert (left.stage_s(now) or 0.0) >= 0
            assert (left.session_s(now) or 0.0) >= (left.stage_s(now) or 0.0)

    def test_words(self):
        assert [duration(s) for s in (None, 0, 41, 200, 9000)] == ["", "1 s", "40 s", "3 min", "2.5 h"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_option(shell, capsys, tmp_path):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in script
    names = [f.name for config in (CohortConfig,) for f in dataclasses.fields(config) if f.name != "run"]
    for name in itertools.chain(("field-map.phase-sign", "recipe.epochs"), names[1:]):
        assert f"--{name.replace('_', '-')}" in script
    if shell == "bash":
        (tmp_path / "chisep").write_text(script)
        line = "chisep run --deno"
        ask = (
            f"source {tmp_path}/chisep; COMP_WORDS=({line}); COMP_CWORD=2; COMP_LINE='{line}'; "
            "COMP_POINT=${#COMP_LINE}; _tyro_chisep; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--denoise"]
