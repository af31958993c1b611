"""Stage `nuclei`: iron-rich nuclei of CIT168 on the grid of the scan."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.pipeline.stages.regions import registered_atlas, trusted_mask
from chisep.preprocessing.head_size import length_scale
from chisep.regions.cit168 import nucleus_names
from chisep.regions.labels import LabelImage, write_names
from chisep.regions.nuclei import NucleiConfig, nuclei_on_scan

COARSEST_MM = 2.0
"""Longest voxel edge at which nuclei are outlined: a red nucleus is 6 mm wide."""
_LEAST_OVERLAP = 0.85
_NOT_HUMAN = "nuclei are of adult humans, and this head is far smaller: none are outlined"


def outlines_nuclei(context: SessionContext) -> bool:
    """Whether voxels are fine enough for the nuclei, and the user wants them."""
    longest_mm = float(np.linalg.norm(context.files.affine[:3, :3], axis=0).max())
    return context.config.nuclei and longest_mm <= COARSEST_MM + 1e-3


def nuclei_stage(context: SessionContext) -> Stage:
    """Nuclei of CIT168, registered by R2* and χ."""
    files, config = context.files, NucleiConfig()
    rates = ["r2star"] if context.fits_r2star else []

    def work(declared: DeclaredFiles) -> StageResult:
        return _outlined(context, StageFiles(files, declared), config)

    return Stage(
        "nuclei",
        "iron-rich nuclei, from the atlas CIT168",
        files.paths(*rates, context.chi_key, "mask", "reliable_mask"),
        files.paths("nuclei", "nucleus_names"),
        {"Atlas": "CIT168 (Pauli 2018)", **asdict(config)},
        work,
    )


def _outlined(context: SessionContext, files: StageFiles, config: NucleiConfig) -> StageResult:
    brain, trusted = files.array("mask") > 0, trusted_mask(files)
    r2star = files.array("r2star") if context.fits_r2star else None
    chi = files.array(context.chi_key)
    labels, facts = np.zeros(files.grid.shape, np.int32), dict[str, Any]()
    warnings: list[str] = []
    if length_scale(files.load_mask("mask"), files.grid) != 1:
        warnings.append(_NOT_HUMAN)
    else:
        whole = registered_atlas(context, files, with_r2star=context.fits_r2star)
        facts["AtlasOverlapDice"] = round(whole.overlap, 4)
        if whole.to_mni is None or whole.overlap < _LEAST_OVERLAP:
            warnings.append(
                f"the registration of the brain is poor (Dice {whole.overlap:.2f}): no nuclei are outlined"
            )
        else:
            # Where the field is uncertain, χ still shows the nuclei; else borders would follow the mask.
            known = trusted | (brain & (chi != 0))
            labels = nuclei_on_scan(r2star, chi, brain, known, files.grid, whole.to_mni, config)
    files.save_array("nuclei", labels, np.int32)
    names = LabelImage(labels, files.affine, nucleus_names(), "CIT168")
    write_names(files.target("nucleus_names"), labels, names)
    return StageResult(facts, warnings)
