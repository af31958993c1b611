"""Stage `report`: report of a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from chisep.regions.statistics import read_values
from chisep.report.session import panels, region_rows
from chisep.report.session_images import SessionImages
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
        report = SubjectReport(
            title=f"chisep: {context.session.name}",
            subject=context.session.subject,
            session=context.session.entities.get("ses"),
            summary=[*_summary(context, files, images, qsm_facts), *(("Assumed", text) for text in assumed)],
            warnings=warnings,
            quality=[QualityRow.of_fact(fact) for fact in checks],
            panels=panels(images, convergence, names),
            regions=region_rows(values),
            parameters=parameters,
            versions={"chisep": chisep.__version__},
            viewer=encode([session_scan(context.session.name, images, names)]),
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
    separated = context.fits_r2star
    mese = context.session.mese if separated else None
    return SessionImages(
        affine=files.affine,
        te_s=context.session.megre.te_s,
        magnitude=np.stack([files.echo(image) for image in context.magnitude]),
        unwrapped_rad=np.moveaxis(nifti.load(files.path("unwrapped"), ndim=4).data, -1, 0),
        residual_rad=files.array("residual") if len(context.session.megre.te_s) > 1 else None,
        quality=files.array("quality"),
        mask=files.array("mask") > 0,
        phase_mask=files.array("phase_mask") > 0,
        reliable_mask=trusted_mask(files),
        total_field_ppm=files.array("total_field"),
        field_sigma_ppm=files.array("field_sigma"),
        local_field_ppm=files.array("local_field"),
        local_field_sigma_ppm=files.array("local_field_sigma"),
        spin_echo=files.array("spin_echo") if mese else None,
        r2star_hz=files.array("r2star") if separated else None,
        r2_hz=files.array("r2") if mese else None,
        r2prime_hz=files.array("r2prime") if separated else None,
        r2prime_sigma_hz=files.array("r2prime_sigma") if separated else None,
        b1=files.array("b1") if separated and has_b1(context) else None,
        qsm_ppm=files.array("qsm"),
        qsm_of_sources=context.qsm_from_sources,
        chi_pos_ppm=files.array("chi_pos") if separated else None,
        chi_neg_ppm=files.array("chi_neg") if separated else None,
        chi_ppm=files.array("chi") if separated else None,
        chi_sigmas_ppm=_sigmas(context, files) if separated else (),
        labels=_labels(context, files),
    )


def _labels(context: SessionContext, files: StageFiles) -> NDArray[np.int32]:
    """Regions, with the nuclei on top."""
    labels = files.labels()
    if not outlines_nuclei(context):
        return labels
    nuclei = np.rint(files.array("nuclei")).astype(np.int32)
    return np.where(nuclei > 0, nuclei, labels).astype(np.int32)


def _sigmas(context: SessionContext, files: StageFiles) -> tuple[NDArray[np.float32], ...]:
    """Predicted uncertainty of χ_pos and χ_neg, and of χ if it is the QSM."""
    keys = source_sigmas(context)
    return tuple(
        files.array(key) for key in [*keys, *(["qsm_sigma"] if keys and context.qsm_from_sources else [])]
    )


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
