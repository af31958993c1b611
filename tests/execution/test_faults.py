"""Faults, injected into the real command on a small simulated dataset: each has its promised end.

Whatever happens, files are whole or absent, messages are no tracebacks, no process is left behind, and the
same command afterwards ends with the bytes of an undisturbed run. `make faults` runs all, at more moments.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from chisep.cli.arguments import parse
from chisep.execution.cohort import run_cohort
from chisep.execution.config import ClusterConfig, CohortConfig
from tests.hostile.conftest import LONG
from tests.outcome import contents

QUICK = [
    "--method",
    "closed-form",
    "--qsm",
    "tkd",
    "--mask.method",
    "threshold",
    "--background.method",
    "vsharp",
]
STAGES = ("field", "report") if LONG else ("qsm",)
"""That processes are killed in."""
PATIENCE_S = 300
SOON_S = 60


@pytest.fixture(scope="module")
def raw(raw_gradient_echo, tmp_path_factory) -> Path:
    """A coarse gradient-echo scan, of two people by name."""
    root = Path(shutil.copytree(raw_gradient_echo, tmp_path_factory.mktemp("faults") / "raw"))
    for path in (root / "sub-01" / "anat").iterdir():
        twin = root / "sub-02" / "anat" / path.name.replace("sub-01", "sub-02")
        twin.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, twin)
    return root


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> dict[str, str]:
    """What a run in one process leaves that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    results = run_cohort(
        parse(CohortConfig, "run", [str(raw), str(out), *QUICK], prefixes=True).run,
        ClusterConfig("none"),
    )
    assert not [result.error for result in results if result.error]
    return contents(out)


class Run:
    """The command at work in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        prepare: Callable[[], object] | None = None,
        **options: object,
    ) -> None:
        def prepared() -> None:
            # A shell starts what it puts into the background with Ctrl-C ignored, tests included.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if prepare is not None:
                prepare()

        self.log = log
        with log.open("wb") as file:
            self.process = psutil.Popen(
                list(command),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepared,
                **options,
            )
        self.known: set[psutil.Process] = set()

    def said(self) -> str:
        """All that was printed, in one line."""
        return " ".join(self.log.read_text().split())

    def children(self) -> list[psutil.Process]:
        """Processes that were started, on any level."""
        try:
            found = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.known |= set(found)
        return found

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in self.children():
            with suppress(psutil.Error):  # it has just ended
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that comes while the command is at work."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"ended before its time: {self.said()}"
            assert time.monotonic() < deadline, f"does not come: {self.said()}"
            self.children()
            time.sleep(0.05)

    def until_said(self, pattern: str) -> None:
        self.until(lambda: re.search(pattern, self.said()) is not None)

    def end(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the end; no process may remain, and no traceback may be printed."""
        self.children()
        status = self.process.wait(within_s)
        _, alive = psutil.wait_procs(self.known, timeout=SOON_S)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        assert "Traceback" not in self.said()
        return int(status)


@contextmanager
def running(raw: Path, out: Path, *options: str, before: Sequence[str] = (), **more: object) -> Iterator[Run]:
    """A running `chisep run`; its processes are ended afterwards."""
    command = [sys.executable, "-m", "chisep.cli", "run", str(raw), str(out), "participant", *QUICK, *options]
    with started([*before, *command], out.parent / f"{out.name}.log", **more) as run:
        yield run


@contextmanager
def started(command: Sequence[str], log: Path, **more: object) -> Iterator[Run]:
    run = Run(command, log, **more)
    try:
        yield run
    finally:
        run.children()
        for process in (run.process, *run.known):
            with suppress(psutil.Error):
                process.kill()
        run.process.wait()


def assert_whole(out: Path, undisturbed: dict[str, str]) -> None:
    """What is there under its final name has the bytes that it is to have."""
    there = contents(out)
    for name in [n for n in there if n.endswith(".chisep-tmp")]:  # what a killed writer was at
        del there[name]
    for name in [n for n in there if n.endswith("/error.json")]:  # what stopped a session
        del there[name]
    for name in (".chisep/lock", "dataset_description.json", "methods.md", "references.bib"):  # of the run
        there.pop(name, None)
    assert there.items() <= undisturbed.items()


def complete(raw: Path, out: Path, undisturbed: dict[str, str]) -> None:
    """The same command completes, with the bytes of an undisturbed run."""
    with running(raw, out, "--cluster", "none") as run:
        assert run.end() == 0, run.said()
    assert contents(out) == undisturbed


class TestEndedRuns:
    def test_sigterm_and_ctrl_c_end_at_once(self, raw, undisturbed, tmp_path):
        out = tmp_path / "out"
        for stage, number, status in (("field", signal.SIGTERM, 143), ("qsm", signal.SIGINT, 130)):
            with running(raw, out) as run:
                run.until_said(f"sub-0[12]: {stage}")
                # Ctrl-C reaches all processes of the terminal, SIGTERM the one that it is sent to.
                (os.killpg if number == signal.SIGINT else os.kill)(run.process.pid, number)
                assert run.end(SOON_S) == status
                assert "the same command goes on from there" in run.said()
            assert_whole(out, undisturbed)

    @pytest.mark.slow
    def test_sigkill_at_any_moment(self, raw, undisturbed, tmp_path):
        out, moments = tmp_path / "out", random.Random(0)
        for stage in STAGES:
            with running(raw, out) as run:
                run.until_said(f"sub-0[12]: {stage}")
                time.sleep(moments.uniform(0, 0.5))
                run.process.kill()
                assert run.end(SOON_S) == -signal.SIGKILL
            assert_whole(out, undisturbed)
        complete(raw, out, undisturbed)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL] if LONG else [signal.SIGKILL])
    def test_simulation_leaves_no_processes(self, tmp_path, number):
        command = [sys.executable, "-m", "chisep.cli", "simulate", str(tmp_path / "heads")]
        options = ["--subjects", "2", "--jobs", "2", "--voxel-mm", "4"]
        with started([*command, *options], tmp_path / "log") as run:
            run.until(lambda: [w.memory_info().rss > 3e8 for w in run.workers()] == [True, True])
            run.process.send_signal(number)
            assert run.end(SOON_S) == (143 if number == signal.SIGTERM else -number)


class TestWorkers:
    def test_killed(self, raw, undisturbed, tmp_path):
        out = tmp_path / "out"
        with running(raw, out) as run:
            for stage in STAGES:
                run.until_said(f"sub-0[12]: {stage}")
                run.until(lambda: len(run.workers()) > 0)
                random.Random(0).choice(run.workers()).kill()
            assert run.end() == 0, run.said()
            assert "the session is requeued" in run.said()
        assert contents(out) == undisturbed

    @pytest.mark.slow
    def test_out_of_memory(self, raw, undisturbed, tmp_path):
        """The session that needs too much fails by name, with what to do; the other is done."""
        crowded, out = tmp_path / "raw", tmp_path / "out"
        shutil.copytree(raw, crowded)
        vast = nib.Nifti1Image(np.zeros((512, 512, 512), dtype=np.int16), np.eye(4)).to_bytes()
        first, *others = sorted(crowded.glob("sub-02/anat/*.nii.gz"))
        first.write_bytes(gzip.compress(vast, compresslevel=1))
        for other in others:
            other.unlink()
            os.link(first, other)
        with running(crowded, out, "--memory-gb", "0.9", "--retries", "0") as run:
            assert run.end() == 1
            assert "sub-02: FAILED" in run.said()
            assert re.search(r"sub-02: found its worker ended at its memory limit.*--memory-gb", run.said())
        assert "--memory-gb" in (out / ".chisep" / "sub-02" / "error.json").read_text()
        assert (out / "sub-01.html").exists()
        assert_whole(out, undisturbed)


class TestDisks:
    @pytest.mark.skipif(
        subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
        ).returncode,
        reason="may not mount",
    )
    @pytest.mark.parametrize("options", [pytest.param("size=400k", marks=pytest.mark.slow), "ro"])
    def test_full_or_read_only(self, raw, undisturbed, tmp_path, options):
        """On a small or read-only file system, in a namespace of its own."""
        out, left = tmp_path / "out", tmp_path / "left"
        out.mkdir()
        shell = f'mount -t tmpfs -o {options} tmpfs "$0"; "$@"; status=$?; cp -a "$0" "{left}"; exit $status'
        with running(raw, out, before=["unshare", "-rm", "sh", "-c", shell, str(out)]) as run:
            assert run.end() == 1
        reason = "No space left on device" if "size" in options else "Read-only file system"
        assert reason in run.said()
        assert not list(left.rglob("*.chisep-tmp"))
        assert_whole(left, undisturbed)
        if "size" in options:
            assert "sub-01: FAILED" in run.said()
            complete(raw, left, undisturbed)
        else:
            assert not list(left.iterdir())

    def test_full_for_everybody(self, raw, undisturbed, tmp_path):
        """A limit on the size of files stands for a full disk where nothing may be mounted."""
        out = tmp_path / "out"

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        with running(raw, out, "--cluster", "none", prepare=limit) as run:
            assert run.end() == 1
        assert "Free space" in run.said()
        assert "2 of 2 sessions failed" in run.said()
        assert not list(out.rglob("*.chisep-tmp"))
        assert_whole(out, undisturbed)

    @pytest.mark.slow
    def test_vanished(self, raw, undisturbed, tmp_path):
        out = tmp_path / "out"
        with running(raw, out) as run:
            run.until_said("sub-0[12]: field")
            out.rename(tmp_path / "gone")
            assert run.end() == 1
            assert "the output gone while a run wrote to it" in run.said()
        assert_whole(tmp_path / "gone", undisturbed)
        complete(raw, out, undisturbed)


def test_two_runs_on_one_out(raw, undisturbed, tmp_path):
    out = tmp_path / "out"
    with running(raw, out, "--cluster", "none", "--participant-label", "01") as run:
        run.until_said("sub-01: field")
        run.process.suspend()  # so that it is still at work when the other has started
        second = subprocess.run(
            [sys.executable, "-m", "chisep.cli", "run", str(raw), str(out)], capture_output=True, text=True
        )
        run.process.resume()
        assert second.returncode == 1
        said = " ".join(second.stderr.split())
        assert f"another run at work here: process {run.process.pid} on" in said
        assert "Traceback" not in said
        assert run.end() == 0, run.said()
    assert (out / "sub-01.html").exists()
    assert_whole(out, undisturbed)


def changed(tmp_path: Path, change: str) -> list[str]:
    """Call of the real command in a process in which something was changed first."""
    script = tmp_path / "changed.py"
    main = "if __name__ == '__main__': import sys; from chisep.cli import main; sys.exit(main())"
    script.write_text(f"{change}\n{main}\n")
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_clocks_that_jump(raw, undisturbed, tmp_path):
    """The clock of every process jumps ahead by an hour and back again; files are of other centuries."""
    out = tmp_path / "out"
    change = (
        "import time; true, start = time.time, time.monotonic()\n"
        "time.time = lambda: true() + 3600 * (5 < time.monotonic() - start < 15)"
    )
    with started([*changed(tmp_path, change), "run", str(raw), str(out), *QUICK], tmp_path / "log") as run:
        assert run.end() == 0, run.said()
        assert "is requeued" not in run.said()
    assert contents(out) == undisturbed
    far = [time.time() + 3e9, 0.0]
    for number, path in enumerate(sorted([*out.rglob("*"), out])):
        os.utime(path, (far[number % 2], far[number % 2]))
    with running(raw, out, "--dry-run") as run:
        assert run.end() == 0
    assert run.said().count("0 stages would run") == 2


@pytest.mark.slow
def test_a_worker_that_freezes(raw, undisturbed, tmp_path):
    """A worker whose disk does not answer: it lives, but is unresponsive. The time limit is short."""
    out = tmp_path / "out"
    change = "import chisep.execution.dispatch; chisep.execution.dispatch._UNRESPONSIVE_S = 30.0"
    with started([*changed(tmp_path, change), "run", str(raw), str(out), *QUICK], tmp_path / "log") as run:
        run.until_said("sub-0[12]: field")
        run.workers()[0].suspend()
        assert run.end() == 0, run.said()
        assert "its worker is unresponsive" in run.said()
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_a_scheduler_that_dies(raw, undisturbed, tmp_path):
    out = tmp_path / "out"
    dask = [sys.executable, "-m", "distributed.cli"]
    with (
        started(
            [
                *dask[:2],
                "distributed.cli.dask_scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
            ],
            tmp_path / "scheduler.log",
        ) as scheduler,
    ):
        scheduler.until_said(r"tcp://127.0.0.1:\d+")
        address = re.search(r"tcp://127.0.0.1:\d+", scheduler.said())[0]
        worker = [*dask[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        with (
            started(worker, tmp_path / "worker.log"),
            running(raw, out, "--cluster", address) as run,
        ):
            run.until_said("sub-01: relaxometry")
            scheduler.process.kill()
            assert run.end(SOON_S) == 1
            assert "a lost connection to the scheduler, with 2 of 2 sessions unfinished" in run.said()
    complete(raw, out, undisturbed)
