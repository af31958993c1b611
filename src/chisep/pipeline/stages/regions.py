"""Stages `labels` and `regions`: label map on the grid of the scan, and statistics of maps in regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chisep.io import bids, nifti
from chisep.io.files import write_json
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.pipeline.outputs import OUTPUTS
from chisep.pipeline.segmentation import Segmentation
from chisep.preprocessing.head_size import length_scale
from chisep.preprocessing.phase_sign import iron_contrast_ppb, phase_sign_warnings
from chisep.preprocessing.registration import register
from chisep.preprocessing.relaxivity import DEEP_GREY
from chisep.preprocessing.relaxometry import FEWEST_ECHOES
from chisep.regions.atlas import AtlasLabels, atlas_on_scan, packaged_atlas, packaged_atlas_facts
from chisep.regions.labels import (
    LabelArray,
    LabelImage,
    load_labels,
    read_names,
    read_volume,
    resampled_labels,
    write_names,
)
from chisep.regions.statistics import RegionMap, region_values, values_dictionary, write_values

_POOR_OVERLAP = 0.5
_POOR_ATLAS, _LEAST_ATLAS = 0.85, 0.6
_WITHOUT_R2STAR = (
    "the atlas was registered to the outline of the brain and the susceptibility map alone, since R2* is "
    "missing or too noisy: regions are less certain; look at the report's figure of regions, or give a "
    "segmentation (--regions)"
)
_MAPS = ("chi_pos", "chi_neg", "chi", "qsm", "r2star", "r2", "r2prime")
"""Outputs of the region table, in its order."""

_HUMAN_ATLAS = (
    "the packaged atlas is of adult humans, and this head is far smaller: there are no region values, give "
    "a segmentation or an atlas (--regions)"
)


def labels_stage(context: SessionContext) -> Stage:
    """Label map: resampled segmentation, or registered atlas."""
    files, found = context.files, context.segmentation
    outputs = files.paths("labels", "label_names")
    if found is not None:

        def resample(declared: DeclaredFiles) -> StageResult:
            return _resample_segmentation(context, found, StageFiles(files, declared))

        return Stage(
            "labels",
            "regions, from a segmentation",
            [*found.files, files["mask"], *(context.magnitude_files if found.anatomy else ())],
            outputs,
            {"Registration": asdict(context.config.registration)} if found.anatomy else {},
            resample,
        )
    atlas = () if context.atlas is None else (context.atlas, *_atlas_table(context.atlas))

    def register_atlas(declared: DeclaredFiles) -> StageResult:
        return _register_atlas(context, StageFiles(files, declared))

    contrast = "R2* and susceptibility" if context.fits_r2star else "susceptibility"
    rates = ["r2star"] if context.fits_r2star else []
    return Stage(
        "labels",
        f"regions, from an atlas registered to {contrast}",
        [*atlas, *files.paths(*rates, context.chi_key, "mask", "reliable_mask")],
        outputs,
        {"Atlas": context.atlas.name if context.atlas else packaged_atlas_facts()},
        register_atlas,
    )


def _atlas_table(atlas: Path) -> list[Path]:
    """Label table beside a given atlas, if there is one."""
    table = bids.sidecar_of(atlas).with_suffix(".tsv")
    return [table] if table.is_file() else []


def _resample_segmentation(context: SessionContext, found: Segmentation, files: StageFiles) -> StageResult:
    for path in found.files:
        files.path(path)
    image = load_labels(found.labels, found.table)
    brain = files.load_mask("mask")
    facts: dict[str, Any] = {}
    warnings: list[str] = []
    transform = None
    if found.anatomy is not None and not _is_on_grid(image, files):
        anatomy = read_volume(found.anatomy)
        moved = register(
            torch.from_numpy(anatomy.data.astype(np.float32))[None],
            anatomy.affine,
            files.echoes(context.magnitude),
            files.affine,
            mask=brain,
            config=context.config.registration,
            length_scale=length_scale(brain, files.grid),
        )
        transform = moved.fixed_to_moving_mm
        agreement = round(moved.agreement, 4) if math.isfinite(moved.agreement) else None  # JSON has no NaN
        facts = {"MovedMm": round(moved.displacement_mm, 3), "Agreement": agreement}
        warnings += moved.warnings
    labels = resampled_labels(image, files.grid, transform)
    inside = labels * brain.cpu().numpy()
    _save_labels(inside, image, files)
    brain_share = float((inside > 0).sum() / brain.sum())
    share = float((inside > 0).sum() / max(int((labels > 0).sum()), 1))
    if max(share, brain_share) < _POOR_OVERLAP:
        warnings.append(
            f"the segmentation {found.labels.name} covers {100 * brain_share:.0f} % of the brain mask, "
            f"and {100 * share:.0f} % of it lie in the mask: check that it is of this subject, in "
            "scanner coordinates"
        )
    return StageResult(facts | {"LabelledPartOfBrain": round(brain_share, 4)}, warnings)


def _is_on_grid(image: LabelImage, files: StageFiles) -> bool:
    grid = nifti.Image(np.broadcast_to(np.float32(0), files.grid.shape), files.affine)
    return nifti.is_same_grid(grid, nifti.Image(image.labels, image.affine, image.source))


def _register_atlas(context: SessionContext, files: StageFiles) -> StageResult:
    if context.atlas is None:
        atlas = packaged_atlas()
        if length_scale(files.load_mask("mask"), files.grid) != 1:
            _save_labels(np.zeros(files.grid.shape, np.int32), atlas, files)
            return StageResult({"AtlasOverlapDice": 0.0}, [_HUMAN_ATLAS])
    else:
        table = next(iter(_atlas_table(context.atlas)), None)
        atlas = load_labels(files.path(context.atlas), table)
    found, alone = _atlas_by_best_contrast(context, atlas, files)
    poor = found.overlap < _LEAST_ATLAS
    _save_labels(np.zeros_like(found.labels) if poor else found.labels, atlas, files)
    warnings = [_WITHOUT_R2STAR] if alone else []
    if found.overlap < _POOR_ATLAS:
        warnings.append(
            f"the registration of the atlas is poor: its brain and the brain mask overlap by "
            f"{found.overlap:.2f} (Dice) only; "
            + (
                "there are no region values, give a segmentation (--regions)"
                if poor
                else "look at the report's figure of regions before their values are used"
            )
        )
    facts: dict[str, Any] = {"AtlasContrast": "susceptibility"} if alone else {}
    return StageResult(facts | {"AtlasOverlapDice": round(found.overlap, 4)}, warnings)


def _atlas_by_best_contrast(
    context: SessionContext, atlas: LabelImage, files: StageFiles
) -> tuple[AtlasLabels, bool]:
    """Atlas registered to R2* and χ, or to χ alone; also whether R2* was left out.

    R2* of two echoes may be too noisy for a registration.
    """
    found = None
    if context.fits_r2star:
        found = registered_atlas(context, atlas, files, with_r2star=True)
        if found.overlap >= _POOR_ATLAS or len(context.session.megre.te_s) > FEWEST_ECHOES:
            return found, False
    alone = registered_atlas(context, atlas, files, with_r2star=False)
    return (alone, True) if found is None or alone.overlap > found.overlap else (found, False)


def registered_atlas(
    context: SessionContext, atlas: LabelImage, files: StageFiles, *, with_r2star: bool
) -> AtlasLabels:
    """Atlas registered to the χ of a session, and to its R2*; the stages of one run register once."""
    found = atlas_on_scan(
        atlas,
        files.array("r2star") if with_r2star else None,
        files.array(context.chi_key),
        files.array("mask") > 0,
        trusted_mask(files),
        files.grid,
        context.to_mni.get(with_r2star),
    )
    context.to_mni[with_r2star] = found.to_mni
    return found


def trusted_mask(files: StageFiles) -> NDArray[np.bool_]:
    """Reliable mask, or the brain mask where no voxel is reliable."""
    reliable: NDArray[np.bool_] = files.array("reliable_mask") > 0
    return reliable if reliable.any() else files.array("mask") > 0


def _save_labels(labels: LabelArray, image: LabelImage, files: StageFiles) -> None:
    files.save_array("labels", labels, np.int32)
    write_names(files.target("label_names"), labels, image)


def regions_stage(context: SessionContext, before: Sequence[Stage]) -> Stage:
    """Statistics of maps in regions, with the noise maps of the earlier stages."""
    files = context.files
    made = {path for stage in before for path in stage.outputs}
    maps = [key for key in _MAPS if files[key] in made]
    sigmas = {key: OUTPUTS[key].sigma for key in maps}
    if context.qsm_from_sources:
        sigmas["chi"] = OUTPUTS["qsm"].sigma
    sigmas = {key: sigma for key, sigma in sigmas.items() if sigma and files[sigma] in made}
    tables = {"labels": "label_names"}
    if files["nuclei"] in made:
        tables["nuclei"] = "nucleus_names"
    read = [*tables, *tables.values(), "mask", "reliable_mask", *maps, *sigmas.values()]
    if context.fits_r2star:
        read.append("r2prime_sigma")

    def work(declared: DeclaredFiles) -> StageResult:
        own = StageFiles(files, declared)
        warnings, facts = _phase_sign(context, own) if {"qsm", "r2star"} <= set(maps) else ([], {})
        reliable, brain = own.array("reliable_mask") > 0, own.array("mask") > 0
        values = []
        for labels, table in tables.items():
            regions = np.rint(own.array(labels)).astype(np.int32)
            names = read_names(own.path(table))
            volumes = _region_maps(context, own, maps, sigmas)
            values += region_values(regions, names, volumes, own.grid.voxel_mm, reliable, brain)
        write_values(own.target("region_values"), values)
        texts = {OUTPUTS[key].region_column: OUTPUTS[key].description for key in maps}
        if context.session.mese is None and "r2prime" in maps:
            texts[OUTPUTS["r2prime"].region_column] += "; its R2 is an assumption"
        write_json(own.target("region_columns"), values_dictionary(texts))
        return StageResult(facts, warnings)

    return Stage(
        "regions",
        "values of maps in regions",
        files.paths(*dict.fromkeys(read)),
        files.paths("region_values", "region_columns"),
        {},
        work,
    )


def _phase_sign(context: SessionContext, files: StageFiles) -> tuple[list[str], dict[str, float]]:
    """Warnings and facts on whether iron is paramagnetic."""
    # Numbers of a given atlas have a meaning of their own.
    deep_grey = np.isin(files.labels(), [] if context.atlas else list(DEEP_GREY))
    contrast = iron_contrast_ppb(files.array("qsm"), files.array("r2star"), trusted_mask(files), deep_grey)
    return phase_sign_warnings(contrast), {} if contrast is None else {"IronContrastPpb": round(contrast, 2)}


def _region_maps(
    context: SessionContext, files: StageFiles, maps: Sequence[str], sigmas: dict[str, str]
) -> Iterator[RegionMap]:
    """Yield maps in the units of the table, with their noise and the voxels that they cover."""
    brain = files.array("mask") > 0
    separated = brain
    if (
        context.fits_r2star and context.session.mese and context.reads_r2prime
    ):  # elsewhere sources are not separated
        separated = brain & (files.array("r2prime_sigma") > 0)
    for key in maps:
        column = OUTPUTS[key].region_column
        scale = np.float32(1000 if column.endswith("_ppb") else 1)
        sigma: NDArray[np.float32] | None = scale * files.array(sigmas[key]) if key in sigmas else None
        if column.startswith("chi_") or (key == "qsm" and context.qsm_from_sources):
            known = separated
        elif sigma is None or column.endswith("_ppb"):
            known = brain
        else:
            known = brain & (sigma > 0)
        yield RegionMap(column, scale * files.array(key), known, sigma)
