"""Writing of simulated subjects: in turn, or in parallel processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIG_IGN, SIGINT
from signal import signal as on_signal

import torch

from chisep.errors import ChisepWarning
from chisep.progress import Progress
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.subject import Subject


def write_in_turn(
    subjects: list[Subject], heads: Mapping[Path | None, LabelMap], progress: Progress | None
) -> Iterator[str]:
    """Write subjects one after the other; yield the name of each."""
    total = subjects[0].config.subjects if subjects else 0
    for number, subject in enumerate(subjects):
        if progress is not None:
            progress(f"sub-{subject.name}", total - len(subjects) + number, total)
        subject.write(heads[subject.labels])
        yield subject.name


def write_in_parallel(
    subjects: list[Subject], heads: Mapping[Path | None, LabelMap], jobs: int
) -> Iterator[str]:
    """Write subjects in parallel processes; yield the name of each."""
    threads = max(1, torch.get_num_threads() // jobs)
    # Processes start afresh: copies of one whose threads run may hang.
    context = multiprocessing.get_context("spawn")
    alive, here = context.Pipe(duplex=False)
    with (
        here,
        ProcessPoolExecutor(jobs, context, initializer=_start_process, initargs=(threads, alive)) as pool,
    ):
        names = {
            pool.submit(_write_in_process, subject, heads[subject.labels]): subject.name
            for subject in subjects
        }
        try:
            for future in as_completed(names):
                for message in future.result():
                    warnings.warn(message, ChisepWarning, stacklevel=3)
                yield names[future]
        except (KeyboardInterrupt, GeneratorExit):
            here.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_process(threads: int, alive: Connection) -> None:
    """Initialise a worker process, which ends at once when the parent closes its end of the pipe or ends."""

    def end_with_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    on_signal(SIGINT, SIG_IGN)  # Ctrl-C is the parent's to act on
    torch.set_num_threads(threads)


def _write_in_process(subject: Subject, head: LabelMap) -> list[str]:
    """Write a subject in this process; return the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subject.write(head)
    return [str(warning.message) for warning in caught if issubclass(warning.category, ChisepWarning)]
