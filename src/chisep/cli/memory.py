"""Memory that the libraries need to load, and the message where there is too little."""

from __future__ import annotations

import os
from contextlib import suppress

START_GB = 1.1
"""Address space to load the libraries with one thread, in 10⁹ bytes.

`VmPeak` of `chisep train unrolled --help`, which loads most, is 0.93 (torch 2.13 for CPUs, x86-64). The rest
is margin.
"""
THREAD_GB = 0.084
"""Address space of each further thread of OpenBLAS, in NumPy and SciPy together: difference of `VmPeak`."""
_MOST_THREADS = 64
"""Of OpenBLAS in the wheels of NumPy and SciPy."""


def lack_of_memory() -> str | None:
    """Return the message if the limit of the address space (`ulimit -v`) is too low to load the libraries.

    It is asked before they are loaded: below their need, C++ code aborts without an exception of Python.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    threads = _blas_threads()
    needed_gb = START_GB + THREAD_GB * (threads - 1)
    if limit == resource.RLIM_INFINITY or limit >= 1e9 * needed_gb:
        return None
    with_threads, fewer = "", ""
    if threads > 1:
        with_threads, fewer = f" with {threads} threads", ", use fewer threads (export OMP_NUM_THREADS=1)"
    return _message(
        f"a limit of {limit / 1e9:.2f} GB (ulimit -v)", f"{needed_gb:.2f} GB{with_threads}", fewer
    )


def out_of_memory(error: BaseException) -> str | None:
    """Return the message if an error says that memory was short; None for other errors."""
    words = ("failed to map segment", "allocate memory", "bad_alloc")
    if isinstance(error, MemoryError) or any(word in str(error) for word in words):
        return _message(f"a process that may not take more ({error or 'MemoryError'})", f"{START_GB} GB")
    return None


def _message(found: str, to_start: str, fewer: str = "") -> str:
    return (
        f"too little memory: found {found}; expected {to_start} to start, and about 4 GB for a session at "
        f"1 mm. Raise the limit (ulimit -v unlimited){fewer}, or take a machine with more memory."
    )


def _blas_threads() -> int:
    """Return the number of threads of OpenBLAS: from its variables in its order, else one for each core."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    for name in ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"):
        with suppress(ValueError):
            asked = int(os.environ.get(name, ""))
            if asked > 0:
                return min(asked, cores, _MOST_THREADS)
    return min(cores, _MOST_THREADS)
