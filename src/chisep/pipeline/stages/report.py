"""Stage `report`: report of a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chisep
from chisep.io import nifti
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import StageFiles
from chisep.pipeline.stages.nuclei import outlines_nuclei
from chisep.pipeline.stages.regions import trusted_mask
from chisep.pipeline.stages.relaxometry import has_b1
from chisep.pipeline.stages.sources import session_relaxivity, source_sigmas
from chisep.preprocessing.relaxivity import AUTO
from chisep.preprocessing.scan_relaxivity import source_text
from chisep.provenance.records import Record
from chisep.regions.boxes import box_around, with_corner
from chisep.regions.statistics import read_values
from chisep.report.figures.view import MARGIN_MM
from chisep.report.session import panels, region_rows
from chisep.report.session_images import Head, SessionImages
from chisep.report.session_viewer import session_scan
from chisep.report.subject import QualityRow, SubjectReport, write_report
from chisep.report.viewer import encode


def report_stage(context: SessionContext, stages: Sequence[Stage], records: Mapping[str, Record]) -> Stage:
    """Report with all figures, after all other stages."""
    convergence = {
        name: record.facts["Convergence"] for name, record in records.items() if "Convergence" in record.facts
    }
    warnings = [
        *(f"input: {note}" for note in context.session.notes),
        *(f"{name}: {text}" for name, record in records.items() for text in record.warnings),
    ]
    warnings = [_without_folders(text, context.files.raw, context.files.out) for text in warnings]
    checks = [fact for record in records.values() for fact in record.facts.get("Checks", ())]
    assumed = [one.text for one in context.assumptions]
    parameters = {stage.name: dict(stage.parameters) for stage in stages}
    qsm_facts = records["qsm"].facts if "qsm" in records else {}

    def work(declared: DeclaredFiles) -> StageResult:
        files = StageFiles(context.files, declared)
        images = _images(context, files)
        values = read_values(files.path("region_values"))
        names = {value.index: value.name for value in values}
        with ThreadPoolExecutor(1) as pool:  # compression leaves the interpreter to the figures
            viewer = pool.submit(encode, [session_scan(context.session.name, images, names)])
            shown = panels(images, convergence, names)
        report = SubjectReport(
            title=f"chisep: {context.session.name}",
            subject=context.session.subject,
            session=context.session.entities.get("ses"),
            summary=[*_summary(context, files, images, qsm_facts), *(("Assumed", text) for text in assumed)],
            warnings=warnings,
            quality=[QualityRow.of_fact(fact) for fact in checks],
            panels=shown,
            regions=region_rows(values),
            parameters=parameters,
            versions={"chisep": chisep.__version__},
            viewer=viewer.result(),
        )
        write_report(declared.write(context.files.report), report)
        return StageResult()

    return Stage(
        "report",
        "report",
        [*context.magnitude_files, *(path for stage in stages for path in stage.outputs)],
        [context.files.report],
        {
            "Warnings": warnings,
            "Checks": checks,
            "Assumptions": assumed,
            "Convergence": convergence,
            "Parameters": parameters,
        },
        work,
    )


def _without_folders(text: str, *roots: Path) -> str:
    """Name files of the datasets without the folders of this machine, which mean nothing to a reader."""
    found = {str(path) for root in roots for path in (root.absolute(), root.resolve())}
    for folder in sorted(found, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def _images(context: SessionContext, files: StageFiles) -> SessionImages:
    """Read all images, cropped to the brain: a third to a half of the voxels of a head."""
    separated = context.fits_r2star
    mese = context.session.mese if separated else None
    sigmas = _sigma_keys(context) if separated else []
    brain = files.array("mask") > 0
    box = box_around(brain, files.affine, MARGIN_MM)
    magnitude = _root_sum_of_squares(context, files)
    unwrapped_rad = _unwrapped(files, box)
    keys = [
        *("quality", "phase_mask", "total_field", "field_sigma", "local_field", "local_field_sigma", "qsm"),
        *(["residual"] if len(context.session.megre.te_s) > 1 else []),
        *(["r2star", "r2prime", "r2prime_sigma", "chi_pos", "chi_neg", "chi"] if separated else []),
        *(["spin_echo", "r2"] if mese else []),
        *(["b1"] if separated and has_b1(context) else []),
        *sigmas,
    ]
    found = files.cropped(keys, box)
    return SessionImages(
        head=Head(files.affine, magnitude, brain),
        affine=with_corner(files.affine, box),
        te_s=context.session.megre.te_s,
        magnitude=magnitude[box],
        unwrapped_rad=unwrapped_rad,
        residual_rad=found.get("residual"),
        quality=found["quality"],
        mask=brain[box],
        phase_mask=found["phase_mask"] > 0,
        reliable_mask=trusted_mask(files)[box],
        total_field_ppm=found["total_field"],
        field_sigma_ppm=found["field_sigma"],
        local_field_ppm=found["local_field"],
        local_field_sigma_ppm=found["local_field_sigma"],
        spin_echo=found.get("spin_echo"),
        r2star_hz=found.get("r2star"),
        r2_hz=found.get("r2"),
        r2prime_hz=found.get("r2prime"),
        r2prime_sigma_hz=found.get("r2prime_sigma"),
        b1=found.get("b1"),
        qsm_ppm=found["qsm"],
        qsm_of_sources=context.qsm_from_sources,
        chi_pos_ppm=found.get("chi_pos"),
        chi_neg_ppm=found.get("chi_neg"),
        chi_ppm=found.get("chi"),
        chi_sigmas_ppm=tuple(found[key] for key in sigmas),
        labels=_labels(context, files)[box],
    )


def _root_sum_of_squares(context: SessionContext, files: StageFiles) -> NDArray[np.float32]:
    """Combine the gradient echoes, one in memory at a time."""
    first, *others = context.magnitude
    total = np.square(files.echo(first))
    for image in others:
        total += np.square(files.echo(image))
    return np.asarray(np.sqrt(total))


def _unwrapped(files: StageFiles, box: tuple[slice, ...]) -> NDArray[np.float32]:
    """Unwrapped phase of all echoes, shape (echo, i, j, k)."""
    echoes = nifti.load(files.path("unwrapped"), ndim=4).data[box]
    return np.moveaxis(echoes.copy(order="K"), -1, 0)


def _labels(context: SessionContext, files: StageFiles) -> NDArray[np.int32]:
    """Regions, with the nuclei on top."""
    labels = files.labels()
    if not outlines_nuclei(context):
        return labels
    nuclei = np.rint(files.array("nuclei")).astype(np.int32)
    return np.where(nuclei > 0, nuclei, labels).astype(np.int32)


def _sigma_keys(context: SessionContext) -> list[str]:
    """Predicted uncertainty of χ_pos and χ_neg, and of χ if it is the QSM."""
    keys = source_sigmas(context)
    return [*keys, *(["qsm_sigma"] if keys and context.qsm_from_sources else [])]


def _summary(
    context: SessionContext, files: StageFiles, images: SessionImages, qsm_facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    inside, grid = images.reliable_mask, files.grid
    millilitre = inside.sum() * np.prod(grid.voxel_mm) / 1000
    megre = context.session.megre
    return [
        ("Field strength", f"{context.b0_t:g} T"),
        ("Voxel", " × ".join(f"{edge:.3g}" for edge in grid.voxel_mm) + " mm"),
        ("B0 direction (voxel axes)", ", ".join(f"{b:z.3f}" for b in grid.b0_direction)),
        ("Gradient echoes", ", ".join(f"{1000 * t:.3g}" for t in megre.te_s) + " ms"),
        *_method_lines(context, files, qsm_facts),
        ("Brain within the reliable mask", f"{millilitre:.0f} ml"),
        *(
            (f"Mean {name} in the reliable mask", f"{1000 * volume[inside].mean():.1f} ppb")
            for name, volume in (("χ_pos", images.chi_pos_ppm), ("χ_neg", images.chi_neg_ppm))
            if volume is not None
        ),
    ]


def _reference_line(facts: Mapping[str, Any]) -> str:
    """Describe the reference of the QSM, from the facts of its stage."""
    region, value, sigma = (facts.get(f"Reference{name}") for name in ("Region", "Ppb", "SigmaPpb"))
    return "none" if region in (None, "none") else f"{region}: {value:.1f} ± {sigma:.1f} ppb subtracted"


def _method_lines(
    context: SessionContext, files: StageFiles, qsm_facts: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Methods and assumptions of the summary; without separation also why there is none."""
    config = context.config
    separated = context.fits_r2star
    if separated:
        yield "R2", "from spin echo" if context.session.mese else "none measured: pseudo-R2 in R2'"
        rate = "R2′" if context.reads_r2prime else "R2*"
        yield "Method", f"{config.method} from {rate}"
    else:
        yield "R2*, R2′ and sources", "not made: one gradient echo tells no decay"
    yield "QSM", "χ_pos − χ_neg" if context.qsm_from_sources else config.inversion
    yield "Reference of the QSM", _reference_line(qsm_facts)
    used_for = {"separation": separated, "qsm": not context.qsm_from_sources or context.inverts_before_qsm}
    for stage, weights in context.weights.items():
        for used in weights if used_for[stage] else ():
            yield "Weights", f"{used['Name']}, trained on: {used['TrainingData']}"
    if separated:
        d_r = session_relaxivity(context, files)
        yield "D_r", f"{d_r.pos_hz_per_ppm:.4g} (χ_pos), {d_r.neg_hz_per_ppm:.4g} (χ_neg) 1/s/ppm"
        if config.dr == AUTO:
            yield "D_r is from", source_text(files.json("calibration"))
