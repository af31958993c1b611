"""Stages of one session in order, each skipped while its record is up to date.

Stages exchange files only, so a run that was killed and started again gives the same bytes as one that was
not.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

import torch

from chisep.errors import ChisepError, InputError
from chisep.io import bids
from chisep.pipeline.config import RunConfig
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import Stage, StageCache
from chisep.pipeline.inputs import require_inputs
from chisep.pipeline.stages.field import background_stage, field_stage
from chisep.pipeline.stages.mask import mask_stage
from chisep.pipeline.stages.nuclei import nuclei_stage, outlines_nuclei
from chisep.pipeline.stages.qsm import qsm_stage
from chisep.pipeline.stages.regions import labels_stage, regions_stage
from chisep.pipeline.stages.relaxometry import registration_stage, relaxometry_stage
from chisep.pipeline.stages.report import report_stage
from chisep.pipeline.stages.sources import (
    calibration_stage,
    inversion_stage,
    scan_relaxivity_stage,
    separation_stage,
)
from chisep.preprocessing.relaxivity import AUTO
from chisep.progress import Progress

_TRANSIENT = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
"""Temporary errors of network file systems."""


@dataclass(frozen=True)
class SessionResult:
    """Result of one session.

    Parameters
    ----------
    name
        Name of the session.
    report
        Path of its report; None if it failed.
    error
        Error that stopped it.
    warnings
        Warnings, each with its stage.
    skipped
        Stages that were up to date.
    may_pass
        Whether the error may be temporary, such as one of a network file system.
    """

    name: str
    report: Path | None = None
    error: ChisepError | None = None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    may_pass: bool = False


class UnexpectedError(InputError):
    """Bug in chisep."""


def process(
    config: RunConfig,
    session: bids.Session,
    progress: Progress | None = None,
    cache: StageCache | None = None,
) -> SessionResult:
    """Process one session: run the stages that are not up to date, the report last.

    Parameters
    ----------
    config
        Options of the run.
    session
        Raw series to work on.
    progress
        Called at every stage.
    cache
        Another stage cache, such as a dry-run planner.

    Raises
    ------
    ChisepError
        If an input cannot be used or an output cannot be written; finished stages stay.
    """
    require_inputs(session, config.b0_dir)
    cache = cache or StageCache(config.bids, config.out, session.name)
    context = SessionContext.of(config, session)
    stages = map_stages(context)
    volumes = context.files.volumes
    # The report reads everything: not worth the memory.
    volumes.plan(stages[:-1] if config.makes_sources else stages)
    for done, stage in enumerate(stages):
        if progress:
            progress(f"{session.name}: {stage.name}", done, len(stages) + 1)
        volumes.start(done)
        cache.do(stage)
    if config.makes_sources:
        if progress:
            progress(f"{session.name}: report", len(stages), len(stages) + 1)
        volumes.start(len(stages))
        cache.do(report_stage(context, stages, cache.records))
    said = (
        *(f"input: {note}" for note in session.notes),
        *(f"{name}: {text}" for name, record in cache.records.items() for text in record.warnings),
    )
    report = context.files.report if config.makes_sources else None
    return SessionResult(session.name, report, warnings=said, skipped=tuple(cache.skipped))


def map_stages(context: SessionContext) -> list[Stage]:
    """All stages of a session in their order, except the report; up to the rates where no sources are made.

    Raises
    ------
    InputError
        If a file of the options is missing.
    """
    mese = context.session.mese
    stages = [mask_stage(context), field_stage(context)]
    nuclei = [nuclei_stage(context)] if outlines_nuclei(context) else []
    separated = []
    if context.fits_r2star:  # with one echo there are neither rates nor sources
        stages += [*([] if mese is None else [registration_stage(context, mese)]), relaxometry_stage(context)]
    stages.append(background_stage(context))
    if not context.config.makes_sources:
        return stages
    if context.fits_r2star:
        estimated = [scan_relaxivity_stage(context)] if context.config.dr == AUTO else []
        separated = [*estimated, separation_stage(context)]
    if context.chi_key == "chi":
        stages += [*separated, labels_stage(context), *nuclei]
    else:
        stages += [inversion_stage(context), labels_stage(context), *nuclei]
        stages += [calibration_stage(context)] if context.config.calibrate_dr and separated else []
        stages += separated
    if context.chi_key != "qsm":
        stages.append(qsm_stage(context))
    return [*stages, regions_stage(context, stages)]


def is_transient(error: BaseException) -> bool:
    """Whether an error may be temporary, such as one of a network file system."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _TRANSIENT


def as_user_error(name: str, error: Exception) -> ChisepError:
    """Convert an exception of a session to an error for users."""
    if isinstance(error, ChisepError):
        return error
    if isinstance(error, OSError):
        return InputError(
            error.filename or name,
            found=f"a file or folder that could not be read or written ({error.strerror or error})",
            expected="data that stay in reach while they are worked on",
            fix="Check the disk or the network; the same command goes on from there.",
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return InputError(
            name,
            found="too little memory",
            expected="about 4 GB for a session at 1 mm, more for finer voxels",
            fix="Process fewer sessions at a time (--workers), or take a machine with more memory.",
        )
    return UnexpectedError(
        name,
        found=f"{type(error).__name__}: {error}",
        expected="no such error, whatever the data",
        fix="This is a fault of chisep: please report it with the log.",
    )
