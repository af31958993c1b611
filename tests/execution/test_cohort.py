"""Where and when sessions run; what happens when they cannot is in test_faults."""

from __future__ import annotations

import errno
import logging
import os
import queue
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from logging.handlers import QueueHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisep import cli
from chisep.cli.arguments import parse
from chisep.errors import InputError
from chisep.execution.clusters import _job_options, _slurm_workers
from chisep.execution.cohort import plan, run_cohort
from chisep.execution.config import ClusterConfig, CohortConfig
from chisep.execution.dispatch import _SessionState
from chisep.execution.machine import Machine, local_workers, this_machine
from chisep.execution.progress import Update
from chisep.io import discovery
from chisep.io.files import locked
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run_session
from chisep.preprocessing.mask import MaskConfig
from tests.outcome import contents

QUICK = ["--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold"]


def quick(raw: Path, out: Path, **options) -> RunConfig:
    return RunConfig(
        raw, out, method="closed-form", qsm="tkd", mask=MaskConfig(method="threshold"), **options
    )


@pytest.fixture(scope="module")
def raw(raw_gradient_echo, tmp_path_factory) -> Path:
    """A coarse gradient-echo scan of one person, and a person whose sidecars cannot be read."""
    root = Path(shutil.copytree(raw_gradient_echo, tmp_path_factory.mktemp("cohort") / "raw"))
    broken = root / "sub-broken" / "anat"
    broken.mkdir(parents=True)
    for path in (root / "sub-01" / "anat").glob("*echo-1*"):
        text = b"{" if path.suffix == ".json" else path.read_bytes()
        (broken / path.name.replace("sub-01", "sub-broken")).write_bytes(text)
    return root


class TestSharing:
    """Of a machine among workers."""

    @pytest.mark.parametrize(
        ("options", "machine", "sessions", "count", "threads"),
        [
            ({}, Machine(8, 64.0), 100, 8, 1),
            ({}, Machine(8, 64.0), 3, 3, 2),
            ({}, Machine(16, 10.0), 100, 2, 8),
            ({}, Machine(4, 1.0), 100, 1, 4),
            ({"workers": 2}, Machine(8, 64.0), 100, 2, 4),
            ({"workers": 50}, Machine(8, 64.0), 100, 50, 1),
            ({"memory_gb": 20.0}, Machine(8, 64.0), 100, 2, 4),
            ({"threads_per_worker": 3}, Machine(8, 64.0), 100, 8, 3),
            ({"nprocs": 6, "workers": 2}, Machine(8, 64.0), 100, 2, 3),
            ({"nprocs": 3}, Machine(8, 64.0), 100, 3, 1),
            ({"mem_gb": 9.0}, Machine(8, 64.0), 100, 2, 4),
            ({"mem_gb": 9.0, "memory_gb": 3.0}, Machine(8, 64.0), 100, 3, 2),
        ],
    )
    def test_cores_memory_and_sessions(self, options, machine, sessions, count, threads):
        workers = local_workers(ClusterConfig(**options), machine, sessions, "cpu")
        assert len(workers) == count
        assert {worker.threads for worker in workers} == {threads}
        assert {worker.gpu for worker in workers} == {None}

    def test_memory_is_shared_among_workers(self):
        workers = local_workers(ClusterConfig(mem_gb=9.0, workers=3), Machine(8, 64.0), 100, "cpu")
        assert [worker.memory_gb for worker in workers] == [3.0] * 3

    def test_jobs_of_slurm(self):
        config = ClusterConfig("slurm", nprocs=12, threads_per_worker=3, mem_gb=20.0)
        assert _slurm_workers(config) == 4
        assert _job_options(config, {})["memory"] == "5GB"

    def test_a_gpu_each(self):
        machine = Machine(16, 128.0, ("0", "2", "GPU-8f"))
        workers = local_workers(ClusterConfig(), machine, 100, "cuda")
        assert [worker.gpu for worker in workers] == ["0", "2", "GPU-8f"]
        assert {worker.threads for worker in workers} == {5}
        shared = local_workers(ClusterConfig(workers=5), machine, 100, "cuda")
        assert [worker.gpu for worker in shared] == ["0", "2", "GPU-8f", "0", "2"]
        (one,) = local_workers(ClusterConfig(), machine, 100, "cuda:1")
        assert one.gpu is None

    def test_gpus_that_this_process_may_see(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        assert this_machine("cuda").gpus == ("3", "5")
        assert this_machine("cpu").gpus == ()
        assert this_machine("cpu").cores >= 1

    @given(st.integers(1, 256), st.floats(0.1, 4000), st.integers(1, 10_000), st.none() | st.floats(0.5, 64))
    def test_never_more_than_there_is(self, cores, memory_gb, sessions, memory_each):
        config = ClusterConfig(memory_gb=memory_each)
        workers = local_workers(config, Machine(cores, memory_gb), sessions, "cpu")
        assert 1 <= len(workers) <= min(cores, sessions)
        assert sum(worker.threads for worker in workers) <= cores
        if memory_each is None or len(workers) > 1:
            assert sum(worker.memory_gb for worker in workers) <= memory_gb


class TestRequeue:
    """A session is given up when it comes no further, not when it needs several workers."""

    def test_setbacks_are_counted_where_it_came_no_further(self):
        state = _SessionState(discovery.DiscoveredSession("sub-01"), Update("sub-01", "running"))
        assert [state.count_setback(), state.count_setback(), state.count_setback()] == [1, 2, 3]
        state.furthest = 4
        assert [state.count_setback(), state.count_setback()] == [1, 2]


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"cluster": "dask"}, "tcp://HOST:PORT"),
            ({"cluster": "http://host:1"}, "tcp://HOST:PORT"),
            ({"workers": 0}, "--workers"),
            ({"threads_per_worker": 0}, "--threads-per-worker"),
            ({"memory_gb": 0.0}, "--memory-gb"),
            ({"memory_gb": float("nan")}, "--memory-gb"),
            ({"retries": -1}, "--retries"),
            ({"nprocs": 0}, "--nprocs"),
            ({"mem_gb": -1.0}, "--mem-gb"),
            ({"nprocs": 2, "cluster": "tcp://host:1"}, "--nprocs"),
            ({"cluster_config": Path("x.yml")}, "--cluster slurm"),
        ],
    )
    def test_wrong(self, options, word):
        with pytest.raises(InputError, match=re.escape(word)):
            ClusterConfig(**options)

    def test_a_group_has_no_dry_run(self, tmp_path):
        with pytest.raises(InputError, match="--dry-run"):
            CohortConfig(RunConfig(tmp_path, tmp_path / "out", level="group"), dry_run=True)

    def test_options_have_plain_names(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["run", "--help"])
        printed = capsys.readouterr().out
        for name in ("--cluster", "--workers", "--threads-per-worker", "--memory-gb", "--retries"):
            assert f"{name} " in printed
        assert "--dry-run, " in printed
        for name in ("--cluster-config", "--participant-label", "--mask.method", "--weights", "--work-dir"):
            assert f"{name} " in printed
        for name in (
            "--session-label",
            "--bids-filter-file",
            "--nprocs",
            "--mem-gb",
            "--skip-bids-validation",
        ):
            assert f"{name} " in printed
        config = parse(
            CohortConfig, "run", ["raw", "out", "-w", "x", "--skip-bids-validation"], prefixes=True
        )
        assert (config.work_dir, config.skip_bids_validation) == (Path("x"), True)


class TestHere:
    """One session, or no cluster: in this process."""

    def test_results_updates_and_plans(self, raw, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        updates: list[Update] = []
        config = quick(raw, Path("out"))
        planned, _ = plan(config)
        assert set(planned.reasons.values()) == {"never ran"}
        assert [one.error is None for one in plan(config)] == [True, False]
        assert not (tmp_path / "out").exists()
        every = list(planned.reasons)

        done, failed = run_cohort(config, watch=updates.append)
        assert done.error is None
        assert done.report == Path("out", "sub-01.html")
        assert (failed.name, failed.report) == ("sub-broken", None)
        assert "sub-broken" in str(failed.error)
        stages = list(dict.fromkeys(u.stage for u in updates if u.state == "running"))
        assert [stage for stage in stages if stage] == every
        assert {u.total for u in updates if u.state == "running" and u.stage} == {len(every)}
        assert min(u.memory_gb for u in updates if u.state == "running") > 0.1
        assert {u.session: u.state for u in updates} == {"sub-01": "done", "sub-broken": "failed"}

        assert cli.main(["run", str(raw), "out", *QUICK, "--dry-run", "--qsm", "tikhonov"]) == 1
        printed = capsys.readouterr().out
        assert "qsm: parameter Method: tkd → tikhonov" in printed
        assert "separation: follows qsm" in printed
        assert "sub-broken: would FAIL" in printed
        (again, _) = run_cohort(config)
        assert list(again.skipped) == every

    def test_trouble_that_may_pass(self, tmp_path):
        """A network's file system that was out of reach is asked again, a broken file is not."""
        with locked(tmp_path) as lock:
            for number, may_pass in ((errno.ESTALE, True), (errno.EIO, True), (errno.ENOENT, False)):
                try:
                    raise InputError("x", found="a", expected="b", fix="c") from OSError(number, "injected")
                except InputError as error:
                    found = discovery.DiscoveredSession("sub-01", None, error)
                result = run_session(quick(tmp_path, tmp_path / "out"), found, lock)
                assert result.may_pass is may_pass
                assert isinstance(result.error, InputError)

    def test_faults_of_ours_do_not_stop_others(self, tmp_path):
        with locked(tmp_path) as lock:
            config = quick(tmp_path, tmp_path / "out")
            result = run_session(config, discovery.DiscoveredSession("sub-01", None, None), lock)
        assert "fault of chisep" in str(result.error)


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "out"
    run_cohort(quick(raw, out), ClusterConfig("none"))
    return contents(out)


def of_sub_01(files: dict[str, str]) -> dict[str, str]:
    """Files of the usable session, without the description, which has the path of the raw dataset."""
    return {n: c for n, c in files.items() if "broken" not in n and n != "dataset_description.json"}


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler with a worker that takes two tasks at a time, as others may have started them."""
    log = tmp_path / "dask.log"
    with log.open("wb") as file, ExitStack() as stack:

        def start(program: str, *arguments: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--no-dashboard"]
            process = stack.enter_context(subprocess.Popen(command, stdout=file, stderr=file, cwd="/"))
            stack.callback(process.terminate)

        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        deadline = time.monotonic() + 120
        while (found := re.search(r"Scheduler at: *(tcp://127.0.0.1:\d+)\s", log.read_text())) is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        start("dask_worker", found[1], "--nthreads", "2")
        yield found[1]


class TestElsewhere:
    def test_a_running_scheduler(self, raw, whole, scheduler, tmp_path, monkeypatch):
        """Relative paths hold although its workers are in another folder; log lines arrive, and once."""
        monkeypatch.chdir(tmp_path)
        shutil.copytree(raw, "raw")
        records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        monkeypatch.setattr(logging.getLogger("chisep"), "handlers", [QueueHandler(records)])
        monkeypatch.setattr(logging.getLogger("chisep"), "level", logging.INFO)
        updates: list[Update] = []
        config = replace(quick(Path("raw"), Path("out")), participant_label=("01",))
        (result,) = run_cohort(config, ClusterConfig(scheduler), updates.append)
        assert result.error is None
        assert result.report == Path("out", "sub-01.html")
        assert of_sub_01(contents(tmp_path / "out")) == of_sub_01(whole)
        lines = [records.get().getMessage() for _ in range(records.qsize())]
        for stage in ("mask", "field", "separation", "report"):
            assert lines.count(f"sub-01: {stage}") == 1
        assert sum("pseudo-R2 of 12.7" in line for line in lines) == 1
        assert sum("--nthreads 1" in line for line in lines) <= 1  # the worker may not have been there yet
        assert [u.state for u in updates][-1] == "done"
        assert {u.worker for u in updates[:-1]} != {""}

    def test_no_scheduler(self, raw, tmp_path):
        with pytest.raises(InputError, match="no scheduler that answers"):
            run_cohort(quick(raw, tmp_path / "out"), ClusterConfig("tcp://127.0.0.1:1"))

    def test_slurm(self, raw, whole, tmp_path, monkeypatch):
        """Jobs as dask-jobqueue writes them; a stand-in for `sbatch` starts them on this machine."""
        programs, jobs = tmp_path / "bin", tmp_path / "jobs"
        programs.mkdir()
        jobs.mkdir()
        scripts = {
            "sbatch": f'cp "$1" {jobs}/job.sh; setsid sh {jobs}/job.sh >{jobs}/log 2>&1 & '
            "echo Submitted batch job $!",
            "scancel": 'kill -- "-$1" 2>/dev/null; true',
        }
        for name, text in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        options = tmp_path / "slurm.yml"
        options.write_text("queue: night\naccount: brains\nwalltime: '02:00:00'\ninterface: lo\n")
        config = replace(quick(raw, tmp_path / "out"), participant_label=("01",))
        cluster = ClusterConfig("slurm", threads_per_worker=3, memory_gb=2.0, cluster_config=options)
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        (result,) = run_cohort(config, cluster)
        assert signal.getsignal(signal.SIGINT) == on_ctrl_c
        assert result.error is None
        assert of_sub_01(contents(tmp_path / "out")) == of_sub_01(whole)
        job = (jobs / "job.sh").read_text()
        for line in ("-p night", "-A brains", "--cpus-per-task=3", "--mem=2G", "-t 02:00:00"):
            assert line in job

    @pytest.mark.filterwarnings("ignore:unclosed cluster")  # of dask-jobqueue, where options are wrong
    def test_slurm_that_cannot_be(self, raw, tmp_path, monkeypatch):
        config = quick(raw, tmp_path / "out")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(InputError, match="no program sbatch"):
            run_cohort(config, ClusterConfig("slurm"))
        (tmp_path / "sbatch").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        for text, word in (
            ("- a", "no table"),
            ("a: [", "cannot be read"),
            ("nonsense: 1", "cannot be used"),
        ):
            options = tmp_path / "slurm.yml"
            options.write_text(text)
            with pytest.raises(InputError, match=word):
                run_cohort(config, ClusterConfig("slurm", cluster_config=options))
