"""Many sessions: one after the other in this process, on local processes, or on a cluster of machines.

A session is the unit of work. Tasks share nothing but the file system: one that died goes on at the stage it
had come to, in another process. What a session needs is decided by `pipeline` and the records of its stages;
here it is only decided where and when.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import re
import secrets
import shutil
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from chisep.errors import ChisepError, InputError
from chisep.io import bids
from chisep.io.files import Lock
from chisep.networks.inference import NetworkOptions
from chisep.pipeline.engine import DryRunPlanner, collected_warnings
from chisep.pipeline.session import (
    RunConfig,
    SessionResult,
    SessionRun,
    discover,
    note_ending,
    opened,
    run_session,
    trouble_of,
)
from chisep.provenance.methods_text import write_methods

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

log = logging.getLogger("chisep")

SESSION_GB = 4.0
"""Memory that a session at 1 mm needs, in 10⁹ bytes, with some to spare."""

_USED_PART_OF_MEMORY = 0.9
_SLURM_JOBS = 16
_CONNECT_S = 10
_PULSE_S = 1.0
_COUNT_S = 2.0
_ANSWER_S = 60
_PATIENCE_S = 20.0
_CLOSE_S = 10
_PAUSE_S = 5.0
_ADDRESS = re.compile(r"(tcp|tls|ucx|wss?)://\S+")
_DASK_SETTINGS = {
    # Deaths of workers are counted here, by session and stage: Dask would blame sessions that only waited.
    "distributed.scheduler.allowed-failures": 0,
    # The death of a local worker is seen at once, and clocks that jump must not be taken for one.
    "distributed.scheduler.worker-ttl": None,
    # Results are small: nothing is to be spilled, and a worker is ended only at its limit.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # What Dask does every 10 to 500 ms to watch itself takes the interpreter from the one thread that works:
    # 200 changes of thread a second, and 4 % of a session's time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "2s",
    # As Dask has it, but for the option that makes malloc give memory back at once: every volume would be
    # taken from the system anew, page by page, which made sessions of small volumes half as long again.
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
    },
}
_DASK_LOGGERS = ("distributed.client", "distributed.scheduler", "distributed.worker", "distributed.nanny")
"""Those that may have a level of their own."""
_SILENCE_S = 600.0
"""How long a worker may say nothing, which it does every second: it is frozen, or its disk is."""
_OUT_OF_MEMORY_TOPIC = "worker-restart-memory"


@dataclass(frozen=True)
class ClusterConfig:
    """Where sessions are processed."""

    cluster: str = "local"
    """`local`: processes of this machine; `none`: this process, one session after the other; `slurm`: jobs of
    a SLURM cluster; tcp://HOST:PORT: a Dask scheduler that runs already."""
    workers: int | None = None
    """Sessions at a time; left out: as many as cores, memory, GPUs and sessions allow, 16 jobs on SLURM."""
    threads_per_worker: int | None = None
    """Threads of each; left out: its share of the cores, 1 on a cluster."""
    memory_gb: float | None = None
    """Memory of each in 10⁹ bytes, at which it is ended; left out: its share of the memory, 4 on SLURM."""
    retries: int = 2
    """How often a session is tried again after its worker died, or its files were out of reach, with no stage
    finished in between."""
    cluster_config: Path | None = None
    """YAML file with options of dask_jobqueue.SLURMCluster: queue, account, walltime, …"""

    def __post_init__(self) -> None:
        if self.cluster not in ("local", "none", "slurm") and not _ADDRESS.fullmatch(self.cluster):
            raise InputError(
                "--cluster",
                found=repr(self.cluster),
                expected="local, none, slurm, or the address of a scheduler (tcp://HOST:PORT)",
                fix="Leave it out for processes of this machine.",
            )
        for name, lowest in (("workers", 1), ("threads_per_worker", 1), ("memory_gb", 0.1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise InputError(
                    f"--{name.replace('_', '-')}",
                    found=f"{value}",
                    expected=f"{lowest} or more",
                    fix="Correct the option, or leave it out.",
                )
        if self.cluster_config is not None and self.cluster != "slurm":
            raise InputError(
                "--cluster-config",
                found=f"--cluster {self.cluster}",
                expected="--cluster slurm, which it is for",
                fix="Add that, or leave the file out.",
            )


@dataclass(frozen=True)
class CohortConfig:
    """What to compute, and where."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    """What to compute."""
    cluster: Annotated[ClusterConfig, tyro.conf.arg(name="")] = field(default_factory=ClusterConfig)
    """Where."""
    dry_run: bool = False
    """Say for every session which stages would run and why; nothing is written."""

    def __post_init__(self) -> None:
        if self.dry_run and self.run.level == "group":
            raise InputError(
                "--dry-run",
                found="the level `group`, which always runs",
                expected="the level `participant`",
                fix="Leave one of them out.",
            )


@dataclass(frozen=True)
class Update:
    """What is going on in a session.

    Parameters
    ----------
    session
        Its name.
    state
        Whether it is at work, has ended well or not, or waits to go on after its worker died.
    stage
        What is being done.
    done, total
        Stages finished, of how many.
    seconds
        Since the stage began.
    memory_gb
        Resident memory of the process, 10⁹ bytes.
    worker
        Address of the process; empty for this one.
    """

    session: str
    state: Literal["running", "done", "failed", "again"]
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    memory_gb: float = 0.0
    worker: str = ""


Watch = Callable[[Update], None]
"""Called when something changes and every second, from another thread than the caller's."""


@dataclass(frozen=True)
class SessionPlan:
    """What would be done for one session.

    Parameters
    ----------
    name
        Of the session.
    reasons
        Stage → why it would run; None where it would be skipped.
    error
        What would stop the session at once.
    """

    name: str
    reasons: Mapping[str, str | None] = field(default_factory=dict)
    error: ChisepError | None = None


def plan(config: RunConfig) -> list[SessionPlan]:
    """Say what a run would do and why; nothing is written.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used.
    """
    plans = []
    for one in discover(config):
        forecast = DryRunPlanner(config.bids, config.out, one.name)
        try:
            if one.session is None:
                raise one.error or ValueError("neither a session nor an error")
            SessionRun(config, one.session).process(cache=forecast)
            plans.append(SessionPlan(one.name, forecast.reasons))
        except (ChisepError, OSError) as error:
            plans.append(SessionPlan(one.name, forecast.reasons, trouble_of(one.name, error)))
    return plans


def run_cohort(
    config: RunConfig, cluster: ClusterConfig | None = None, watch: Watch | None = None
) -> list[SessionResult]:
    """Process every session of the participants asked for, several at a time.

    Parameters
    ----------
    config
        What to do.
    cluster
        Where to do it; on processes of this machine if None. One session on this machine is done in this
        process.
    watch
        Told what is going on.

    Returns
    -------
    list of SessionResult
        One a session, sorted by name; a session that fails does not stop the others.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used, another run is at work on OUT,
        or the cluster cannot be reached or is lost.
    OutputError
        If OUT cannot be written.

    Notes
    -----
    A script that calls this with local workers needs the usual guard `if __name__ == "__main__":`, since
    processes start afresh and import it.
    """
    cluster = cluster or ClusterConfig()
    watch = watch or (lambda _update: None)
    out, config = config.out, _absolute(config)
    found = discover(config)
    usable = [one for one in found if one.session is not None]
    alone = cluster.cluster == "none" or (cluster.cluster == "local" and len(usable) < 2)
    with opened(config) as lock:
        here = found if alone else [one for one in found if one.session is None]
        results = {one.name: _run_here(config, cluster, one, lock, watch) for one in here}
        if len(here) < len(found):
            with _connected(cluster, len(usable), config.device) as (client, threads):
                work = _Work(config, lock, threads, cluster.retries)
                results |= _Hand(client, work, watch).run(usable)
        if any(result.report for result in results.values()):
            _write_methods(config, lock)
    made = [results[one.name] for one in found]
    return [r if r.report is None else replace(r, report=out / r.report.name) for r in made]


def _write_methods(config: RunConfig, lock: Lock) -> None:
    """Write what a paper needs of all sessions; that it cannot be is no failure of theirs."""
    try:
        lock.check()
        write_methods(config.out, config.bids)
    except ChisepError as error:
        log.warning("no methods text was written: %s", error)


def _run_here(
    config: RunConfig, cluster: ClusterConfig, one: bids.DiscoveredSession, lock: Lock, watch: Watch
) -> SessionResult:
    """Process a session in this process."""
    if cluster.threads_per_worker is not None:
        torch.set_num_threads(cluster.threads_per_worker)
    result = _run_patiently(config, one, lock, cluster.retries, watch)
    watch(Update(one.name, "failed" if result.error else "done"))
    return result


def _run_patiently(
    config: RunConfig, one: bids.DiscoveredSession, lock: Lock, retries: int, tell: Watch
) -> SessionResult:
    """Process a session, again after a while where what stopped it may pass."""
    for attempt in range(retries + 1):
        with _Pulse(one.name, tell) as pulse:
            result = run_session(config, one, lock, pulse.step)
        if not result.may_pass or attempt == retries:
            break
        pause_s = _PAUSE_S * 2**attempt
        log.warning("%s: tried again in %g s", one.name, pause_s)
        time.sleep(pause_s)
    return result


def _absolute(config: RunConfig) -> RunConfig:
    """Return a config whose paths hold in any folder."""
    paths = {f.name: getattr(config, f.name) for f in fields(config)}
    changes: dict[str, Any] = {
        name: path.absolute() for name, path in paths.items() if isinstance(path, Path)
    }
    weights = {f.name: getattr(config.network, f.name) for f in fields(NetworkOptions)}
    files: dict[str, Any] = {
        name: str(Path(value).absolute())
        for name, value in weights.items()
        if isinstance(value, str) and Path(value).is_file()
    }
    return replace(config, network=replace(config.network, **files), **changes)


# ---- which workers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What there is to share out.

    Parameters
    ----------
    cores
        That this process may use.
    memory_gb
        That is free, 10⁹ bytes.
    gpus
        Names of GPUs, as CUDA_VISIBLE_DEVICES has them.
    """

    cores: int
    memory_gb: float
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalWorker:
    """A process of this machine.

    Parameters
    ----------
    threads
        That it computes with.
    memory_gb
        At which it is ended, 10⁹ bytes.
    gpu
        The only one that it sees; None: it sees what this process does.
    """

    threads: int
    memory_gb: float
    gpu: str | None = None


def this_machine(device: str) -> Machine:
    """Look at what this process may use: cores, free memory (both within limits of containers), GPUs."""
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    gpus: tuple[str, ...] = ()
    if device.startswith("cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = tuple(visible.split(",") if visible else map(str, range(torch.cuda.device_count())))
    return Machine(CPU_COUNT, min(MEMORY_LIMIT, psutil.virtual_memory().available) / 1e9, gpus)


def local_workers(config: ClusterConfig, machine: Machine, sessions: int, device: str) -> list[LocalWorker]:
    """Share a machine out among workers.

    Parameters
    ----------
    config
        What the user decided already.
    machine
        What there is.
    sessions
        How many there are to process.
    device
        `cpu`; `cuda`: a GPU a worker; `cuda:1`: one GPU for all, so one worker if nothing else is said.
    """
    free_gb = _USED_PART_OF_MEMORY * machine.memory_gb
    count = config.workers
    if count is None:
        by_memory = int(free_gb / (config.memory_gb or SESSION_GB))
        by_gpu = machine.cores if device == "cpu" else len(machine.gpus) if device == "cuda" else 1
        count = max(1, min(machine.cores, by_memory, by_gpu))
    count = min(count, sessions)
    threads = config.threads_per_worker or max(1, machine.cores // count)
    memory_gb = config.memory_gb or free_gb / count
    gpus = machine.gpus if device == "cuda" else ()
    return [
        LocalWorker(threads, memory_gb, gpus[number % len(gpus)] if gpus else None) for number in range(count)
    ]


# ---- clusters ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(config: ClusterConfig, sessions: int, device: str) -> Iterator[tuple[Client, int]]:
    """Yield a client of the cluster that is wanted, and the threads of a worker; ended at once on errors."""
    import dask
    import distributed  # noqa: F401 (its defaults come first: leaving the settings would take them away)

    with dask.config.set(_DASK_SETTINGS), _quiet():
        if config.cluster == "local":
            workers = local_workers(config, this_machine(device), sessions, device)
            opening, threads = _local(workers), workers[0].threads
        else:
            opening = _slurm(config, sessions) if config.cluster == "slurm" else _running(config.cluster)
            threads = config.threads_per_worker or 1
        with opening as client:
            _tell_dashboard(client)
            yield client, threads


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log to itself: what matters to users is told by us."""
    known = [logging.getLogger("distributed"), *map(logging.getLogger, _DASK_LOGGERS)]
    levels = [logger.level for logger in known]
    for logger in known:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(known, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _local(workers: Sequence[LocalWorker]) -> Iterator[Client]:
    """Start processes of this machine, each watched and started again by a nanny in this process."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    specs = {
        number: {
            "cls": Nanny,
            "options": {
                "host": "127.0.0.1",
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
            except BaseException:  # Ctrl-C above all: workers would finish what they are at
                for nanny in cluster.workers.values():
                    if nanny.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(nanny.pid, signal.SIGKILL)
                raise
    finally:
        cluster.close(timeout=_CLOSE_S)


@contextlib.contextmanager
def _running(address: str) -> Iterator[Client]:
    """Connect to a cluster that others started and will end."""
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_S)
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
    """Submit jobs to a SLURM cluster, a worker each."""
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
    options = {
        "cores": 1,  # sessions at a time in a job
        "processes": 1,
        "job_cpu": config.threads_per_worker or 1,
        "memory": f"{config.memory_gb or SESSION_GB:g}GB",
        "scheduler_options": {"dashboard_address": ":0"},  # a login node is shared: any free port
    } | _yaml(config.cluster_config)
    try:
        cluster = SLURMCluster(**options)
    except (TypeError, ValueError) as error:
        raise InputError(
            config.cluster_config or "--cluster slurm",
            found=f"options that cannot be used ({error})",
            expected="options of dask_jobqueue.SLURMCluster",
            fix="docs/cohorts.md has an example.",
        ) from error
    with cluster:
        cluster.scale(jobs=min(config.workers or _SLURM_JOBS, sessions))
        with Client(cluster) as client:
            yield client


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


def _tell_dashboard(client: Client) -> None:
    import importlib.util

    if importlib.util.find_spec("bokeh"):
        log.info("Dask's dashboard: %s", client.dashboard_link)
    else:
        log.info("Dask's dashboard is not installed; pip install bokeh adds it")


# ---- in the worker -----------------------------------------------------------------------------------------


class _Pulse:
    """Tells every second what a session is doing.

    Parameters
    ----------
    session
        Its name.
    tell
        Told, from a thread of its own.
    """

    def __init__(self, session: str, tell: Watch) -> None:
        self._session, self._tell = session, tell
        self._stage, self._done, self._total, self._start = "", 0, 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def step(self, what: str, done: int, total: int) -> None:
        """Note that another stage begins."""
        self._stage, self._done, self._total = what.split(": ", 1)[-1], done, total
        self._start = time.monotonic()
        self._say()

    def _beat(self) -> None:
        while not self._ended.wait(_PULSE_S):
            self._say()

    def _say(self) -> None:
        seconds, memory_gb = time.monotonic() - self._start, _resident_gb()
        self._tell(Update(self._session, "running", self._stage, self._done, self._total, seconds, memory_gb))


def _resident_gb() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


@dataclass(frozen=True)
class _Work:
    """What a task needs beside its session.

    Parameters
    ----------
    config, lock
        As of `run_session`.
    threads
        That it computes with.
    retries
        How often it tries again what may pass.
    topic
        Of the events by which it reports.
    """

    config: RunConfig
    lock: Lock
    threads: int
    retries: int
    topic: str = field(default_factory=lambda: f"chisep-{secrets.token_hex(8)}")


_one_at_a_time = threading.Lock()


def _process(work: _Work, one: bids.DiscoveredSession) -> SessionResult:
    """Process a session in a worker; the task."""
    from distributed import get_worker

    worker = get_worker()

    def tell(update: Update) -> None:
        worker.log_event(work.topic, {"update": asdict(replace(update, worker=worker.address))})

    # Threads and warnings are those of the process: a worker with several slots still takes turns.
    with _one_at_a_time, _forwarded_log(worker, work.topic), collected_warnings() as said:
        torch.set_num_threads(work.threads)
        result = _run_patiently(work.config, one, work.lock, work.retries, tell)
    for message in said:
        worker.log_event(work.topic, {"level": logging.WARNING, "text": f"{one.name}: {message}"})
    return result


@contextlib.contextmanager
def _forwarded_log(worker: Worker, topic: str) -> Iterator[None]:
    """Send chisep's log to the process that started the run."""
    handler = _Forward(worker, topic)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class _Forward(logging.Handler):
    """Sends log records as events of Dask."""

    def __init__(self, worker: Worker, topic: str) -> None:
        super().__init__(logging.INFO)
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._worker.log_event(self._topic, {"level": record.levelno, "text": text})


# ---- in the parent -----------------------------------------------------------------------------------------


@dataclass
class _State:
    """What is known of a session.

    Parameters
    ----------
    one
        The session.
    last
        What it told last.
    furthest
        Most stages that were ever done.
    furthest_at_setback
        What `furthest` was when it was last thrown back.
    setbacks
        How often it was thrown back since it last came further.
    starved
        Whether a worker of it was ended at its limit of memory.
    heard
        When it was last heard of, by the clock that does not jump.
    """

    one: bids.DiscoveredSession
    last: Update
    furthest: int = 0
    furthest_at_setback: int = -1
    setbacks: int = 0
    starved: bool = False
    heard: float = field(default_factory=time.monotonic)

    def throw_back(self) -> int:
        """Note a setback; returns how many there were since it last came further."""
        self.setbacks = 1 if self.furthest > self.furthest_at_setback else self.setbacks + 1
        self.furthest_at_setback = self.furthest
        return self.setbacks


class _Hand:
    """Hands sessions out to workers, and out again when a worker died.

    No more sessions are handed out than there are workers, so that a worker's death is that of one session.

    Parameters
    ----------
    client
        Of the cluster.
    work
        What is to be done, and how often a session may be thrown back without coming further.
    watch
        Told what is going on.
    """

    def __init__(self, client: Client, work: _Work, watch: Watch) -> None:
        self._client, self._work, self._watch = client, work, watch
        # Events and ends of tasks come from Dask's thread; all else is done in that of the caller.
        self._news: queue.SimpleQueue[Future[Any] | dict[str, Any]] = queue.SimpleQueue()
        self._states: dict[str, _State] = {}
        self._results: dict[str, SessionResult] = {}
        self._waiting: deque[str] = deque()
        self._under_way: dict[Future[Any], str] = {}
        self._starved_workers: set[str] = set()
        self._workers, self._counted, self._since_none = 0, -math.inf, time.monotonic()

    def run(self, sessions: Sequence[bids.DiscoveredSession]) -> dict[str, SessionResult]:
        """Process sessions; returns results by name.

        Raises
        ------
        InputError
            If the cluster is lost.
        """
        self._states = {one.name: _State(one, Update(one.name, "running")) for one in sessions}
        self._waiting.extend(self._states)
        for topic in (self._work.topic, _OUT_OF_MEMORY_TOPIC):
            self._client.subscribe_topic(topic, self._hear)
        while self._waiting or self._under_way:
            self._hand_out()
            self._start_silent_workers_again()
            try:
                news = self._news.get(timeout=_PULSE_S)
            except queue.Empty:
                continue
            if isinstance(news, dict):
                self._note(news)
            else:
                self._take_back(news)
        return self._results

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        self._news.put(event[1])

    def _hand_out(self) -> None:
        self._count_workers()
        while self._waiting and len(self._under_way) < max(1, self._workers):
            name = self._waiting.popleft()
            future = self._client.submit(
                _process,
                self._work,
                self._states[name].one,
                key=f"{name}-{secrets.token_hex(8)}",
                pure=False,
            )
            self._under_way[future] = name
            self._states[name].heard = time.monotonic()
            future.add_done_callback(self._news.put)

    def _count_workers(self) -> None:
        now = time.monotonic()
        if now - self._counted < _COUNT_S or self._client.status != "running":
            return
        with contextlib.suppress(OSError, TimeoutError):  # what became of the scheduler, the tasks will tell
            self._workers, self._counted = len(self._client.nthreads()), now
        if self._workers:
            self._since_none = now
        elif now - self._since_none > _PATIENCE_S:
            log.warning("there are no workers; waiting for some")
            self._since_none = math.inf

    def _note(self, message: Mapping[str, Any]) -> None:
        """Take an event in: a log line, what a session does, or that a worker is ended at its limit."""
        if "text" in message:
            log.log(message["level"], "%s", message["text"])
        elif "update" in message:
            update = Update(**message["update"])
            state = self._states[update.session]
            state.last, state.furthest = update, max(state.furthest, update.done)
            state.heard = time.monotonic()
            self._watch(update)
        else:
            self._starved_workers.add(str(message.get("worker")))

    def _take_back(self, future: Future[Any]) -> None:
        """Take in how a task ended."""
        from distributed import KilledWorker

        name = self._under_way.pop(future, None)
        if name is None:  # given up
            return
        if future.status not in ("finished", "error"):
            raise self._lost()
        try:
            result = future.result(timeout=_ANSWER_S)
        except KilledWorker as error:
            self._wait_for_the_reason(name, error.last_worker.address)
            self._throw_back(name, "its worker died")
        except (OSError, TimeoutError) as error:
            if self._client.status != "running":
                raise self._lost() from error
            self._throw_back(name, f"its result was out of reach ({error})")
        except Exception as error:  # of the worker: it lacks chisep, or has another version
            if future.status not in ("finished", "error"):
                raise self._lost() from error
            self._end(SessionResult(name, error=_unusable_worker(name, error)))
        else:
            self._end(result)

    def _wait_for_the_reason(self, name: str, worker: str) -> None:
        """Give a moment to what may be told after that a worker is gone: that it was ended at its limit.

        The worker itself may not have come to say a word before.
        """
        for _ in range(3):
            time.sleep(0.2)
            self._take_in_events()
            if worker in self._starved_workers:
                self._starved_workers.discard(worker)
                self._states[name].starved = True
                return

    def _start_silent_workers_again(self) -> None:
        for future, name in list(self._under_way.items()):
            state = self._states[name]
            if time.monotonic() - state.heard < _SILENCE_S:
                continue
            state.heard = time.monotonic()
            with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):  # gone by now, or since
                # It may be another than that which spoke last, or one that froze before its first word.
                work = self._client.processing().items()
                workers = [worker for worker, keys in work if future.key in keys]
                if not workers:  # it waits for one
                    continue
                log.warning("%s: its worker says nothing any more; it is started again", name)
                self._client.restart_workers(workers, timeout=_CONNECT_S, raise_for_error=False)
            state.heard = time.monotonic()  # a worker that starts has nothing to say
            if state.throw_back() > self._work.retries:
                del self._under_way[future]
                future.cancel()
                self._fail(state)

    def _take_in_events(self) -> None:
        kept = []
        with contextlib.suppress(queue.Empty):
            while True:
                news = self._news.get_nowait()
                if isinstance(news, dict):
                    self._note(news)
                else:
                    kept.append(news)
        for future in kept:
            self._news.put(future)

    def _throw_back(self, name: str, why: str) -> None:
        """Let a session go on later, or fail if that was in vain too often."""
        state = self._states[name]
        where = f" in stage {state.last.stage}" if state.last.stage else ""
        if state.throw_back() > self._work.retries:
            self._fail(state)
            return
        log.warning("%s: %s%s; the session goes on in another", name, why, where)
        self._watch(replace(state.last, state="again"))
        self._waiting.appendleft(name)

    def _fail(self, state: _State) -> None:
        """End a session whose workers died."""
        where = f" in stage {state.last.stage}" if state.last.stage else ""
        result = SessionResult(state.one.name, error=self._dead_workers(state, where))
        note_ending(self._work.config.out, result, self._work.lock)
        self._end(result)

    def _end(self, result: SessionResult) -> None:
        self._results[result.name] = result
        if not result.error:
            log.info("%s: done (%d of %d)", result.name, len(self._results), len(self._states))
        elif self._states[result.name].setbacks:
            log.error("%s: %s", result.name, result.error)
        self._watch(Update(result.name, "failed" if result.error else "done"))

    def _dead_workers(self, state: _State, where: str) -> InputError:
        if state.starved:
            return InputError(
                state.one.name,
                found=f"its worker ended at its limit of memory{where}, {state.setbacks} times",
                expected="enough memory for the session",
                fix="Give each worker more (--memory-gb) and take fewer (--workers); "
                "what was finished is kept.",
            )
        return InputError(
            state.one.name,
            found=f"its worker died{where}, {state.setbacks} times, last seen with "
            f"{state.last.memory_gb:.1f} GB",
            expected="a worker that lives until the session is done",
            fix="If the machine ran out of memory, take fewer --workers; what was finished is kept.",
        )

    def _lost(self) -> InputError:
        unfinished = len(self._states) - len(self._results)
        return InputError(
            "--cluster",
            found=f"a lost connection to the scheduler, with {unfinished} of {len(self._states)} sessions "
            "unfinished",
            expected="a scheduler that runs until the end",
            fix="Start it again; the same command goes on from there, what was finished is kept.",
        )


def _unusable_worker(name: str, error: Exception) -> InputError:
    return InputError(
        name,
        found=f"a worker that could not take it ({type(error).__name__}: {error})",
        expected="workers with the same versions of chisep and its libraries as here",
        fix="Install them where the workers run.",
    )
