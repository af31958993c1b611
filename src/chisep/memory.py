"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


def release_memory() -> None:
    """Return memory that was freed to the operating system; glibc keeps it for the process otherwise.

    Volumes of some megabytes come from its heap. That fragments: after many temporary volumes it is twice as
    large as what is in use. Nothing happens where the C library is another one.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
