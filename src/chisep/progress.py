"""The progress protocol: how long work reports how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the current item, the number of finished steps and the total number of steps.

Iterations that converge early end with fewer finished than total steps. Calls come from the thread that
does the work.
"""
