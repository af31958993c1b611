"""Page of one participant: the orientations, what COSMOS leaves of each field, and the maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chisep
from chisep.io import nifti
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.orientations.joint import ITERATIVE, LABELS, Orientations
from chisep.provenance.records import Record
from chisep.report import figures
from chisep.report.subject import Panel, SubjectReport, Table, write_report

_PPB = 1000.0
_RESIDUAL_PPB = (-15.0, 15.0)
_NONE = "–"


def page_of(group: Orientations) -> Path:
    """Path of the page."""
    return group.config.out / f"sub-{group.subject}_orientations.html"


def report_stage(
    group: Orientations,
    stages: Sequence[Stage],
    joint: Mapping[str, Record],
    of_scans: Mapping[str, Mapping[str, Record]],
    warnings: Sequence[str],
) -> Stage:
    """Page of all orientations, after all other stages.

    Parameters
    ----------
    group
        Orientations that are used.
    stages
        Stages of all orientations together.
    joint
        Their records by name.
    of_scans
        Records of every scan, also of those that are left out: name of the scan → stage → record.
    warnings
        For the user.
    """
    parameters = {stage.name: dict(stage.parameters) for stage in stages}
    cosmos = joint["cosmos"].facts
    table = _table(group.reference.name, cosmos, of_scans)
    summary = [
        ("Orientations", str(len(group.scans))),
        ("Reference", group.reference.name),
        ("Largest angle between two", f"{cosmos['SpreadDeg']:.1f}°"),
        ("Condition number", f"{cosmos['ConditionNumber']:.2f}"),
        ("All fields known in", f"{100 * cosmos['CommonPartOfBrain']:.0f} % of the brain"),
        ("Zero of χ", _zero_in_words(cosmos)),
        ("R2'", "not measured" if group.with_r2prime is None else f"of {group.with_r2prime.name}"),
    ]

    def work(declared: DeclaredFiles) -> StageResult:
        report = SubjectReport(
            title=f"chisep: head orientations of sub-{group.subject}",
            subject=group.subject,
            summary=summary,
            warnings=warnings,
            panels=[
                Panel(
                    "Head orientations",
                    "B0: its angle to that of the reference. Rotation and shift: motion from the reference, "
                    "by registration, with the part of the contrast that both images share. Known: part of "
                    "the brain with a field. Residual: what COSMOS does not explain of the field, in the "
                    "common mask. A field that is explained much worse than others is a poor scan.",
                    table=table,
                ),
                *_panels(group, declared),
            ],
            parameters=parameters,
            versions={"chisep": chisep.__version__},
        )
        write_report(declared.write(page_of(group)), report)
        return StageResult()

    return Stage(
        "report",
        "report",
        [path for stage in stages for path in stage.outputs],
        [page_of(group)],
        {"Warnings": list(warnings), "Table": [list(row) for row in table.rows], "Parameters": parameters},
        work,
    )


def _zero_in_words(cosmos: Mapping[str, Any]) -> str:
    """Say what sets the zero of χ, and what was subtracted."""
    order = cosmos.get("CsfOrder", -1)
    if order < 0:
        return "not set"
    low, high = cosmos["CsfRemovedRangePpb"]
    subtracted = f"{low:.1f} to {high:.1f} ppb" if order else f"{cosmos['CsfRemovedMeanPpb']:.1f} ppb"
    return (
        f"CSF of {cosmos['CsfMl']:.1f} ml, {cosmos['CsfDeepMl']:.1f} ml of it deep in the brain; "
        f"{subtracted} subtracted"
    )


def _table(reference: str, cosmos: Mapping[str, Any], of_scans: Mapping[str, Mapping[str, Record]]) -> Table:
    explained = {one["Name"]: one for one in cosmos["Orientations"]}
    rows = []
    for name in sorted(of_scans, key=lambda name: name != reference):
        pose, align = (
            of_scans[name][stage].facts if stage in of_scans[name] else {} for stage in ("pose", "align")
        )
        found = explained.get(name, {})
        note = " (reference)" if name == reference else "" if found else " (left out)"
        residual = _number(found.get("ResidualRmsPpb"))
        if found.get("ResidualPercent") is not None:
            residual += f" ({found['ResidualPercent']:.0f} %)"
        rows.append(
            (
                f"{name}{note}",
                _number(found.get("TiltDeg")),
                _number(pose.get("RotationDeg")),
                _number(math.hypot(*pose["ShiftMm"]) if "ShiftMm" in pose else None),
                _number(_percent(pose.get("SharedContrast"))),
                _number(_percent(align.get("KnownPartOfBrain"))),
                residual,
            )
        )
    columns = ("scan", "B0 (°)", "rotation (°)", "shift (mm)", "contrast (%)", "known (%)", "residual (ppb)")
    return Table(columns, tuple(rows))


def _percent(part: float | None) -> float | None:
    return None if part is None else 100 * part


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _panels(group: Orientations, declared: DeclaredFiles) -> list[Panel]:
    def read(path: Path) -> Any:  # noqa: ANN401
        return nifti.load(declared.read(path)).data

    affine, mask = group.reference.own.affine, read(group.common) > 0
    panels = []
    folders = [("Labels", LABELS), ("Iterative χ-separation of all orientations", ITERATIVE)]
    for title, folder in folders if group.with_r2prime is not None else ():
        chi_pos, chi_neg, chi = (read(path) for path in group.sources(folder))
        panels.append(
            Panel.of_figure(
                title,
                "χ_pos, χ_neg and χ in the common mask.",
                figures.source_maps(chi_pos, chi_neg, chi, affine, mask),
                alt="Maps of χ_pos, χ_neg and χ in sagittal, coronal and axial planes.",
            )
        )
    panels.append(
        Panel.of_figure(
            "CSF that sets the zero of χ",
            "Outlines: voxels of a small R2*, in which χ is 0 on average. They should lie in the ventricles "
            "and around the brain. Other voxels, such as those of a cyst, make χ wrong: change "
            "--csf.max-r2star-hz, or set a constant only with --csf.order 0.",
            figures.planes(
                [figures.Row("χ by COSMOS", _PPB * read(group.chi), "ppb", (-100.0, 100.0))],
                affine,
                mask=mask,
                overlay=read(group.csf) > 0,
            ),
            alt="χ by COSMOS in three planes, with the outline of CSF.",
        )
    )
    rows = [figures.Row("χ by COSMOS", _PPB * read(group.chi), "ppb", (-100.0, 100.0))]
    rows += [
        figures.Row(f"Residual of {scan.name}", _PPB * read(scan.residual), "ppb", _RESIDUAL_PPB)
        for scan in group.scans
    ]
    panels.append(
        Panel.of_figure(
            "COSMOS and what it leaves",
            "Noise only would be even. Edges mean motion or misregistration, smooth bands mean background "
            "field, white matter means anisotropy.",
            figures.planes(rows, affine, mask=mask),
            alt="χ by COSMOS, and measured minus predicted field of every orientation.",
        )
    )
    return panels
