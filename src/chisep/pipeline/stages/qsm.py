"""Stage `qsm`: the QSM, from χ of the separation or of a dipole inversion, less its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from chisep.networks.uncertainty import chi_sigma
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.pipeline.stages.regions import trusted_mask
from chisep.pipeline.stages.sources import source_sigmas
from chisep.regions.reference import (
    Reference,
    defined,
    no_reference_facts,
    reference_of,
    referenced,
    ventricles,
)


def qsm_stage(context: SessionContext) -> Stage:
    """Write the QSM from an earlier χ map: subtract its reference, and give χ_pos − χ_neg its σ."""
    files, reference = context.files, context.config.reference
    key = "chi" if context.qsm_from_sources else "inversion"
    sigmas = source_sigmas(context) if context.qsm_from_sources else []
    trusted = [] if reference == "none" else ["mask", "reliable_mask"]
    regions = [*trusted, *(["labels"] if reference == "csf" else [])]

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        chi, facts = own.array(key), no_reference_facts()
        volumes = {}
        if sigmas:
            volumes["qsm_sigma"] = chi_sigma(*(torch.from_numpy(own.array(name)) for name in sigmas))
        if reference != "none":
            # χ of sources may be exactly 0 inside, where both are.
            inside = volumes["qsm_sigma"].numpy() > 0 if sigmas else defined(chi)
            found = _reference(own, reference, chi, inside)
            chi, facts = referenced(chi, found.value_ppm, inside), found.facts()
        volumes["qsm"] = torch.from_numpy(chi)
        own.save(volumes)
        return StageResult(facts | context.assumption_facts("separation" if key == "chi" else "qsm"))

    named = {"Reference": getattr(reference, "name", reference)} if context.is_referenced else {}
    origin = "χ_pos − χ_neg" if key == "chi" else "dipole inversion"
    return Stage(
        "qsm",
        f"magnetic susceptibility: {origin}, less its reference",
        [*files.paths(key, *sigmas, *regions), *([reference] if isinstance(reference, Path) else [])],
        files.paths("qsm", *(["qsm_sigma"] if sigmas else [])),
        {"Method": context.qsm_method, **named},
        work,
    )


def _reference(
    files: StageFiles, reference: str | Path, chi: NDArray[np.float32], inside: NDArray[np.bool_]
) -> Reference:
    known = trusted_mask(files) & inside
    if isinstance(reference, Path):
        return reference_of(chi, known & (files.array(reference) > 0), f"mask {reference.name}")
    if reference == "csf":
        name = "csf: lateral, third and fourth ventricles, eroded by one voxel"
        return reference_of(chi, ventricles(files.labels(), known), name)
    return reference_of(chi, known, "brain: voxels of the reliable mask")
