"""Resources of this machine, and how many local workers they allow."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from chisep.execution.config import ClusterConfig

SESSION_GB = 3.9
"""Memory planned for a session at 1 mm in 10⁹ bytes, above its peak in `benchmarks/results/session.json`."""

_USED_PART_OF_MEMORY = 0.9


@dataclass(frozen=True)
class Machine:
    """Resources that this process may use.

    Parameters
    ----------
    cores
        Number of CPU cores.
    memory_gb
        Free memory in 10⁹ bytes.
    gpus
        Names of GPUs, as in CUDA_VISIBLE_DEVICES.
    """

    cores: int
    memory_gb: float
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalWorker:
    """Resources of one local worker process.

    Parameters
    ----------
    threads
        Number of threads for computations.
    memory_gb
        Memory limit in 10⁹ bytes; above it the process is killed.
    gpu
        The only visible GPU; None: all GPUs visible to this process.
    """

    threads: int
    memory_gb: float
    gpu: str | None = None


def this_machine(device: str) -> Machine:
    """Return cores, free memory (both within container limits) and GPUs that this process may use."""
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    gpus: tuple[str, ...] = ()
    if device.startswith("cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = tuple(visible.split(",") if visible else map(str, range(torch.cuda.device_count())))
    return Machine(CPU_COUNT, min(MEMORY_LIMIT, psutil.virtual_memory().available) / 1e9, gpus)


def local_workers(config: ClusterConfig, machine: Machine, sessions: int, device: str) -> list[LocalWorker]:
    """Divide the resources of a machine among local workers.

    Parameters
    ----------
    config
        Numbers given by the user take precedence.
    machine
        Available resources.
    sessions
        Number of sessions to process.
    device
        `cpu`; `cuda`: one GPU per worker; `cuda:1`: one GPU for all, and one worker by default.
    """
    cores = config.nprocs or machine.cores
    free_gb = config.mem_gb or _USED_PART_OF_MEMORY * machine.memory_gb
    count = config.workers
    if count is None:
        by_memory = int(free_gb / (config.memory_gb or SESSION_GB))
        by_gpu = cores if device == "cpu" else len(machine.gpus) if device == "cuda" else 1
        count = max(1, min(cores, by_memory, by_gpu))
    count = min(count, sessions)
    threads = config.threads_per_worker or max(1, cores // count)
    memory_gb = config.memory_gb or free_gb / count
    gpus = machine.gpus if device == "cuda" else ()
    return [
        LocalWorker(threads, memory_gb, gpus[number % len(gpus)] if gpus else None) for number in range(count)
    ]
