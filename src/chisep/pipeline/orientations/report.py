"""Page of one participant: the orientations, what COSMOS leaves of each field, and the maps."""

from __future__ import annotations

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
    table = _table(joint["cosmos"].facts, of_scans)
    cosmos = joint["cosmos"].facts
    summary = [
        ("Orientations", str(len(group.scans))),
        ("Reference", group.reference.name),
        ("Largest angle between two", f"{cosmos['SpreadDeg']:.1f}°"),
        ("Condition number", f"{cosmos['ConditionNumber']:.2f}"),
        ("All fields known in", f"{100 * cosmos['CommonPartOfBrain']:.0f} % of the brain"),
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
                    "Motion from the reference, by registration; what COSMOS does not explain of each field, "
                    "in the common mask. A field that is explained much worse than others is a poor scan.",
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


def _table(cosmos: Mapping[str, Any], of_scans: Mapping[str, Mapping[str, Record]]) -> Table:
    explained = {one["Name"]: one for one in cosmos["Orientations"]}
    rows = []
    for name, records in of_scans.items():
        pose = records["pose"].facts if "pose" in records else {}
        align = records["align"].facts if "align" in records else {}
        found = explained.get(name, {})
        rows.append(
            (
                name,
                _number(found.get("TiltDeg"), "°"),
                _number(pose.get("RotationDeg", 0.0 if found else None), "°"),
                ", ".join(f"{mm:.1f}" for mm in pose.get("ShiftMm", ())) + (" mm" if pose else ""),
                _number(pose.get("SharedContrast")),
                _number(_percent(align.get("KnownPartOfBrain")), " %"),
                _number(align.get("InterpolationNoiseGain")),
                _number(found.get("ResidualRmsPpb"), " ppb"),
                _number(found.get("ResidualPercent"), " %"),
            )
        )
    header = (
        *("scan", "B0 from the reference", "rotation", "shift", "shared contrast"),
        *("field known", "noise left by interpolation", "residual", "residual of the field"),
    )
    return Table(header, tuple(rows))


def _percent(part: float | None) -> float | None:
    return None if part is None else 100 * part


def _number(value: float | None, unit: str = "") -> str:
    return "left out" if value is None else f"{value:.2f}{unit}"


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
