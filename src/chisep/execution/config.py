"""Configuration of a cohort run: what to compute, and on which workers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from chisep.errors import InputError
from chisep.pipeline.config import RunConfig

_ADDRESS = re.compile(r"(tcp|tls|ucx|wss?)://\S+")


@dataclass(frozen=True)
class ClusterConfig:
    """Workers that process the sessions."""

    cluster: str = "local"
    """`local`: worker processes of this machine; `none`: this process, one session after the other; `slurm`:
    jobs of a SLURM cluster; tcp://HOST:PORT: a running Dask scheduler."""
    workers: int | None = None
    """Number of workers (sessions at a time); if unset: as many as cores, memory, GPUs and sessions allow, 16
    jobs on SLURM."""
    threads_per_worker: int | None = None
    """Threads per worker; if unset: its share of the cores, 1 on a cluster."""
    memory_gb: float | None = None
    """Memory limit per worker in GB (10⁹ bytes); if unset: its share of the memory, 4 on SLURM."""
    nprocs: int | None = None
    """CPU cores that all workers use together; if unset: those of this machine. Workers and threads follow
    from it where they are not given."""
    mem_gb: float | None = None
    """Memory that all workers use together in GB (10⁹ bytes); if unset: what is free. Workers and the memory
    of each follow from it where they are not given."""
    retries: int = 2
    """Number of retries of a session after its worker died or its files were unreachable, counted since the
    last finished stage."""
    cluster_config: Path | None = None
    """YAML file with options of dask_jobqueue.SLURMCluster: queue, account, walltime, …"""

    def __post_init__(self) -> None:
        if self.has_address and not _ADDRESS.fullmatch(self.cluster):
            raise InputError(
                "--cluster",
                found=repr(self.cluster),
                expected="local, none, slurm, or the address of a scheduler (tcp://HOST:PORT)",
                fix="Leave it out for processes of this machine.",
            )
        limits = {
            **{"workers": 1, "threads_per_worker": 1, "memory_gb": 0.1},
            **{"nprocs": 1, "mem_gb": 0.1, "retries": 0},
        }
        for name, lowest in limits.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise InputError(
                    f"--{name.replace('_', '-')}",
                    found=f"{value}",
                    expected=f"{lowest} or more",
                    fix="Correct the option, or leave it out.",
                )
        if self.has_address and (self.nprocs is not None or self.mem_gb is not None):
            raise InputError(
                "--nprocs, --mem-gb",
                found=f"--cluster {self.cluster}, whose workers run already",
                expected="workers that chisep starts",
                fix="Leave them out: what `dask worker` was given holds.",
            )
        if self.cluster_config is not None and self.cluster != "slurm":
            raise InputError(
                "--cluster-config",
                found=f"--cluster {self.cluster}",
                expected="--cluster slurm, which it is for",
                fix="Add that, or leave the file out.",
            )

    @property
    def has_address(self) -> bool:
        """Whether workers are those of a scheduler that runs already."""
        return self.cluster not in ("local", "none", "slurm")


@dataclass(frozen=True)
class CohortConfig:
    """Settings of `chisep run`: what to compute, and where."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Options of the run."""
    cluster: Annotated[ClusterConfig, tyro.conf.arg(name="")] = field(default_factory=ClusterConfig)
    """Workers."""
    dry_run: bool = False
    """List for every session the stages that would run, and why; nothing is written."""
    work_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-w"])] = None
    """Accepted because BIDS apps have it, and not used: chisep keeps no intermediate files; what a stage has
    finished lies in OUT."""
    skip_bids_validation: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Accepted because BIDS apps have it: chisep runs no BIDS validator; it checks what it reads, always."""
    config: Path | None = None
    """TOML file of options that --save-config wrote; options on the command line prevail over it."""
    save_config: Path | None = None
    """Write all options of this call to a TOML file, then go on; --config FILE repeats the run."""

    def __post_init__(self) -> None:
        if self.dry_run and self.run.level == "group":
            raise InputError(
                "--dry-run",
                found="the level `group`, which always runs",
                expected="the level `participant`",
                fix="Leave one of them out.",
            )
