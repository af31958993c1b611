"""Stages `labels` and `regions`: label map on the grid of the scan, and statistics of maps in regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from chisep.regions.atlas import (
    AtlasRegistration,
    labels_on_scan,
    packaged_atlas,
    packaged_atlas_facts,
    registration,
)
from chisep.regions.boxes import box_around
from chisep.regions.labels import (
    LabelArray,
    LabelImage,
    load_labels,
    read_names,
    read_volume,
    resampled_labels,
    write_names,
)
from chisep.regions.statistics import (
    RegionMap,
    Regions,
    RegionValue,
    table_of,
    values_dictionary,
    write_values,
)

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
    found, alone = _registered_by_best_contrast(context, files)
    poor, brain = found.overlap < _LEAST_ATLAS, files.array("mask") > 0
    registered = AtlasRegistration(0.0) if poor else found
    _save_labels(labels_on_scan(atlas, registered, brain, files.grid), atlas, files)
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


def _registered_by_best_contrast(
    context: SessionContext, files: StageFiles
) -> tuple[AtlasRegistration, bool]:
    """Registration by R2* and χ, or by χ alone; also whether R2* was left out.

    R2* of two echoes may be too noisy for a registration.
    """
    found = None
    if context.fits_r2star:
        found = registered_atlas(context, files, with_r2star=True)
        if found.overlap >= _POOR_ATLAS or len(context.session.megre.te_s) > FEWEST_ECHOES:
            return found, False
    alone = registered_atlas(context, files, with_r2star=False)
    return (alone, True) if found is None or alone.overlap > found.overlap else (found, False)


def registered_atlas(context: SessionContext, files: StageFiles, *, with_r2star: bool) -> AtlasRegistration:
    """Registration by the χ of a session, and by its R2*; the stages of one run register once."""
    if with_r2star not in context.registrations:
        context.registrations[with_r2star] = registration(
            files.array("r2star") if with_r2star else None,
            files.array(context.chi_key),
            files.array("mask") > 0,
            trusted_mask(files),
            files.grid,
        )
    return context.registrations[with_r2star]


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
        masks = _Masks.of(own)
        regions = [
            Regions.of(
                np.rint(own.array(labels)).astype(np.int32)[masks.box],
                read_names(own.path(table)),
                own.grid.voxel_mm,
                masks.reliable,
                masks.brain,
            )
            for labels, table in tables.items()
        ]
        found: list[list[list[RegionValue]]] = [[] for _ in regions]
        for each in _region_maps(context, own, maps, sigmas, masks):
            for of, table in zip(regions, found, strict=True):
                table.append(of.values(each))
        values = [value for table in found for value in table_of(table)]
        warnings, facts = _phase_sign(context, own, masks) if {"qsm", "r2star"} <= set(maps) else ([], {})
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


@dataclass(frozen=True, eq=False)
class _Masks:
    """Masks of a session, cropped to the box of the brain: regions lie in it."""

    box: tuple[slice, ...]
    brain: NDArray[np.bool_]
    reliable: NDArray[np.bool_]

    @classmethod
    def of(cls, files: StageFiles) -> _Masks:
        brain, reliable = files.array("mask") > 0, files.array("reliable_mask") > 0
        box = box_around(brain, files.affine)
        return cls(box, brain[box], reliable[box])


def _phase_sign(
    context: SessionContext, files: StageFiles, masks: _Masks
) -> tuple[list[str], dict[str, float]]:
    """Warnings and facts on whether iron is paramagnetic."""
    # Numbers of a given atlas have a meaning of their own.
    found = files.cropped(["labels", "qsm", "r2star"], masks.box)
    deep_grey = np.isin(np.rint(found["labels"]), [] if context.atlas else list(DEEP_GREY))
    trusted = masks.reliable if masks.reliable.any() else masks.brain
    contrast = iron_contrast_ppb(found["qsm"], found["r2star"], trusted, deep_grey)
    return phase_sign_warnings(contrast), {} if contrast is None else {"IronContrastPpb": round(contrast, 2)}


def _region_maps(
    context: SessionContext, files: StageFiles, maps: Sequence[str], sigmas: dict[str, str], masks: _Masks
) -> Iterator[RegionMap]:
    """Yield maps in the units of the table, with their noise and the voxels that they cover."""
    separated = masks.brain
    if (
        context.fits_r2star and context.session.mese and context.reads_r2prime
    ):  # elsewhere sources are not separated
        separated = masks.brain & (files.array("r2prime_sigma")[masks.box] > 0)
    for key in maps:
        column = OUTPUTS[key].region_column
        scale = np.float32(1000 if column.endswith("_ppb") else 1)
        keys = [key, *([sigmas[key]] if key in sigmas else [])]
        values, *sigma = (scale * volume for volume in files.cropped(keys, masks.box).values())
        if column.startswith("chi_") or (key == "qsm" and context.qsm_from_sources):
            known = separated
        elif not sigma or column.endswith("_ppb"):
            known = masks.brain
        else:
            known = masks.brain & (sigma[0] > 0)
        yield RegionMap(column, values, known, sigma[0] if sigma else None)
