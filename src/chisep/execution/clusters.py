"""Dask clusters: local processes, a running scheduler, or jobs of SLURM."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chisep.errors import InputError
from chisep.execution.config import ClusterConfig
from chisep.execution.machine import SESSION_GB, LocalWorker, local_workers, this_machine

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("chisep")

CONNECT_S = 10
"""Time limit for a connection to a scheduler or a worker."""

_LOOPBACK = "127.0.0.1"
_SLURM_JOBS = 16
_CLOSE_S = 10
_DASK_SETTINGS = {
    # The dispatcher counts deaths of workers by session and stage: Dask would blame queued sessions.
    "distributed.scheduler.allowed-failures": 0,
    # The death of a local worker is noticed at once; a jump of the clock must not count as one.
    "distributed.scheduler.worker-ttl": None,
    # Results are small: nothing is spilled, and a worker is killed only at its memory limit.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Dask's self-monitoring every 10 to 500 ms interrupts the one thread that computes: 200 thread switches
    # a second, and 4 % of a session's time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "2s",
    # Dask's defaults without the option that makes malloc return memory at once: every volume would be
    # requested from the system again, page by page, which made sessions of small volumes half as long again.
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
        "THP_MEM_ALLOC_ENABLE": 1,  # large pages for volumes, as the command line sets it
    },
}
_JOB_PROLOGUE = ("export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}",)
"""Lines of a job script before its worker starts: a job does not inherit this process's Dask settings."""
_DASK_LOGGERS = ("distributed.client", "distributed.scheduler", "distributed.worker", "distributed.nanny")
"""Loggers that may have their own level."""


@contextlib.contextmanager
def connected(config: ClusterConfig, sessions: int, device: str) -> Iterator[tuple[Client, int]]:
    """Connect to the configured cluster: yield its client and the number of threads per worker.

    Local workers are killed at once on errors.
    """
    import dask
    import distributed  # noqa: F401 (its defaults come first: leaving the settings would take them away)

    with dask.config.set(_DASK_SETTINGS), _quiet():
        if config.cluster == "local":
            _require_loopback()
            workers = local_workers(config, this_machine(device), sessions, device)
            opening, threads = _local(workers), workers[0].threads
        else:
            opening = _slurm(config, sessions) if config.cluster == "slurm" else _running(config.cluster)
            threads = config.threads_per_worker or 1
        with opening as client:
            _log_dashboard(client)
            yield client, threads


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's own log: chisep reports what matters to users."""
    known = [logging.getLogger("distributed"), *map(logging.getLogger, _DASK_LOGGERS)]
    levels = [logger.level for logger in known]
    for logger in known:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(known, levels, strict=True):
            logger.setLevel(level)


def _require_loopback() -> None:
    """Check that processes of this machine can talk to each other, before Dask waits for them in vain.

    Raises
    ------
    InputError
        If they cannot.
    """
    try:
        with (
            socket.create_server((_LOOPBACK, 0)) as server,
            socket.create_connection(server.getsockname(), timeout=CONNECT_S),
        ):
            pass
    except OSError as error:
        raise InputError(
            "--cluster local",
            found=f"no connection from this machine to itself at {_LOOPBACK} ({error.strerror or error})",
            expected="a loopback interface, over which worker processes are reached",
            fix="Add --cluster none: sessions then run one after the other in this process. Or switch the "
            "interface on (ip link set lo up).",
        ) from error


@contextlib.contextmanager
def _local(workers: Sequence[LocalWorker]) -> Iterator[Client]:
    """Start local worker processes; a nanny in this process monitors and restarts each."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    local = {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0"}
    specs = {
        number: {
            "cls": Nanny,
            "options": {
                "host": _LOOPBACK,
                "nthreads": 1,
                "memory_limit": int(worker.memory_gb * 1e9),
                "silence_logs": logging.CRITICAL + 1,
                "dashboard": False,
                "env": {} if worker.gpu is None else {"CUDA_VISIBLE_DEVICES": worker.gpu},
            },
        }
        for number, worker in enumerate(workers)
    }
    cluster = SpecCluster(
        workers=specs, scheduler={"cls": Scheduler, "options": local}, silence_logs=logging.CRITICAL + 1
    )
    try:
        with Client(cluster) as client:
            try:
                yield client
            except BaseException:  # Ctrl-C above all: workers would finish their sessions
                for nanny in cluster.workers.values():
                    if nanny.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(nanny.pid, signal.SIGKILL)
                raise
    finally:
        cluster.close(timeout=_CLOSE_S)


@contextlib.contextmanager
def _running(address: str) -> Iterator[Client]:
    """Connect to a running scheduler, which is not stopped at the end."""
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--cluster {address}",
            found=f"no scheduler that answers ({error})",
            expected="the address that `dask scheduler` printed",
            fix="Start one (`dask scheduler`), with workers (`dask worker ADDRESS --nthreads 1`).",
        ) from error
    with client:
        if any(threads > 1 for threads in client.nthreads().values()):
            log.warning(
                "workers of %s take several tasks at a time, but a worker processes one session at a time: "
                "start them with --nthreads 1",
                address,
            )
        yield client


@contextlib.contextmanager
def _slurm(config: ClusterConfig, sessions: int) -> Iterator[Client]:
    """Submit one SLURM job per worker."""
    from distributed import Client

    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        raise InputError(
            "--cluster slurm",
            found=f"no package {error.name}",
            expected="what SLURM needs and other clusters do not",
            fix="pip install 'chisep[slurm]'",
        ) from error
    signal.signal(signal.SIGINT, on_ctrl_c)  # the import makes Ctrl-C a success
    if shutil.which("sbatch") is None:
        raise InputError(
            "--cluster slurm",
            found="no program sbatch",
            expected="a machine that jobs can be submitted from",
            fix="Call chisep on the login node, or use another --cluster.",
        )
    own_options = _yaml(config.cluster_config)
    try:
        cluster = SLURMCluster(**_job_options(config, own_options))
    except (TypeError, ValueError) as error:
        raise InputError(
            config.cluster_config or "--cluster slurm",
            found=f"options that cannot be used ({error})",
            expected="options of dask_jobqueue.SLURMCluster",
            fix="docs/cohorts.md has an example.",
        ) from error
    with cluster:
        cluster.scale(jobs=min(_slurm_workers(config), sessions))
        with Client(cluster) as client:
            yield client


def _slurm_workers(config: ClusterConfig) -> int:
    """Return the number of jobs: as given, or as many as the cores that were given allow."""
    by_cores = config.nprocs and max(1, config.nprocs // (config.threads_per_worker or 1))
    return config.workers or by_cores or _SLURM_JOBS


def _job_options(config: ClusterConfig, own_options: dict[str, Any]) -> dict[str, Any]:
    """Return options of dask_jobqueue.SLURMCluster; the user's own ones override those of chisep."""
    import dask

    shared_gb = config.mem_gb and config.mem_gb / _slurm_workers(config)
    prologue = own_options.get("job_script_prologue")
    if prologue is None:
        prologue = dask.config.get("jobqueue.slurm.job-script-prologue", default=None)
    return {
        "cores": 1,  # sessions at a time in a job
        "processes": 1,
        "job_cpu": config.threads_per_worker or 1,
        "memory": f"{config.memory_gb or shared_gb or SESSION_GB:g}GB",
        "scheduler_options": {"dashboard_address": ":0"},  # a login node is shared: any free port
        **own_options,
        "job_script_prologue": [*_JOB_PROLOGUE, *(prologue or ())],
    }


def _yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({error})",
            expected="YAML",
            fix="docs/cohorts.md has an example.",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            path,
            found="no table of options",
            expected="lines such as `queue: normal`",
            fix="docs/cohorts.md has an example.",
        )
    return content


def _log_dashboard(client: Client) -> None:
    import importlib.util

    if importlib.util.find_spec("bokeh"):
        log.info("Dask's dashboard: %s", client.dashboard_link)
    else:
        log.info("Dask's dashboard is not installed; pip install bokeh adds it")
