"""Progress protocol of long computations."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the current item, the number of finished steps and the total number of steps.

Iterations that converge early end with fewer finished than total steps. Calls come from the thread that
does the work.
"""
