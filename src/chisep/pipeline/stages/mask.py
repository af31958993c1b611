"""Stage `mask`: the brain mask, extracted or given."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from chisep.errors import InputError
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.preprocessing.head_size import length_scale, small_head
from chisep.preprocessing.magnitude_checks import check_decay, check_magnitudes
from chisep.preprocessing.mask import brain_mask, checked_mask


def mask_stage(context: SessionContext) -> Stage:
    """Brain extraction from the gradient-echo magnitude, or a given mask.

    Raises
    ------
    InputError
        If masks are given, but none of this session.
    """
    outputs = context.files.paths("mask")
    if context.config.masks is None:

        def extract(declared: DeclaredFiles) -> StageResult:
            files = StageFiles(context.files, declared)
            magnitude = files.echoes(context.magnitude)
            names = [str(path) for path in context.magnitude]
            check_magnitudes(magnitude, names)
            check_decay(magnitude, context.session.megre.te_s, names)  # its warnings are those of the field
            return _save(files, brain_mask(magnitude, files.grid, context.config.mask))

        return Stage(
            "mask",
            "brain mask from the gradient-echo magnitude",
            context.magnitude_files,
            outputs,
            asdict(context.config.mask),
            extract,
        )
    given = _given(context, context.config.masks)

    def copy(declared: DeclaredFiles) -> StageResult:
        files = StageFiles(context.files, declared)
        return _save(files, checked_mask(files.load(given), files.grid, str(given)))

    return Stage("mask", "brain mask that was given", [given], outputs, {}, copy)


def _given(context: SessionContext, masks: Path) -> Path:
    given = context.session.output(masks, "mask", desc="brain")
    if not given.is_file():
        raise InputError(
            given,
            found="no such file",
            expected="a brain mask of this session, for --masks",
            fix="Add it, or leave --masks out for brain extraction.",
        )
    return given


def _save(files: StageFiles, brain: Tensor) -> StageResult:
    files.save({"mask": brain})
    millilitre = float(brain.sum()) * float(np.prod(files.grid.voxel_mm)) / 1000
    scale = length_scale(brain, files.grid)
    facts = {"BrainVolumeMl": round(millilitre, 1 if scale == 1 else 4)}
    if scale != 1:
        facts["HeadLengthScale"] = round(scale, 4)
    return StageResult(facts, [*files.session.place_notes, *small_head(scale)])
