"""Tables of the methods section: reporting list of the QSM consensus, and all parameters."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from chisep.provenance.sentences import (
    SECTIONS,
    acceleration_text,
    echoes_text,
    megre_text,
    regions_sentences,
    sequence_text,
)
from chisep.provenance.session_facts import (
    SessionFacts,
    merged,
    variants,
    versions,
)
from chisep.provenance.values import (
    NOT_AT_HAND,
    NOT_RECORDED,
    NOT_STATED,
    counted,
    escaped,
    flat,
    unit_of,
    value_text,
)


def table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reporting_rows(sessions: Sequence[SessionFacts]) -> Iterator[tuple[str, str]]:
    """Items on hardware, sequence and reconstruction in the reporting list of the QSM consensus."""

    def field(*names: str, unit: str = "", scale: float = 1.0) -> str:
        return variants(sessions, lambda session: megre_text(session, *names, unit=unit, scale=scale))

    def header(name: str) -> str:
        return variants(sessions, lambda session: session.header.get(name, NOT_AT_HAND))

    def recorded(stage: str, name: str) -> str:
        return variants(sessions, lambda session: session.said(stage, name), NOT_RECORDED)

    yield "Field strength", recorded("field", "MagneticFieldStrength")
    yield "Vendor", field("Manufacturer")
    yield "Scanner model", field("ManufacturersModelName")
    yield "Software release", field("SoftwareVersions")
    yield "Receive coil", field("ReceiveCoilName")
    yield "Active coil elements", field("ReceiveCoilActiveElements", "NumberReceiveCoilActiveElements")
    yield "Transmit coil", field("TransmitCoilName", "NumberTransmitCoilActiveElements")
    yield "Gradient system", field("GradientSetType")
    yield (
        "Sequence type (2-D or 3-D, GRE or other)",
        variants(sessions, lambda session: sequence_text(session.megre)),
    )
    yield "Commercial name of the sequence", field("SequenceName", "PulseSequenceDetails")
    yield "k-space trajectory", field("NonCartesianTrajectory", "KSpaceTrajectory")
    yield "Orientation", header("orientation")
    yield (
        "Echoes",
        variants(sessions, lambda session: echoes_text(session.parameters("field").get("EchoTime"))),
    )
    yield "TR", field("RepetitionTimeExcitation", "RepetitionTime", unit="ms", scale=1000.0)
    yield "Flip angle", field("FlipAngle", unit="°")
    yield "Bandwidth", field("PixelBandwidth", unit="Hz/pixel")
    yield "Field of view", header("fov")
    yield "Acquisition matrix", field("AcquisitionMatrix", "AcquisitionMatrixPE")
    yield "Image matrix", header("matrix")
    yield "Voxel size", header("voxel")
    yield "Acquired voxel size", field("AcquisitionVoxelSize", unit="mm")
    yield "Bipolar read-outs, as found in the phase", variants(sessions, _bipolar, NOT_RECORDED)
    yield "Centre frequency", _frequency(sessions)
    yield "Flow compensation", field("FlowCompensation")
    yield "Acceleration", variants(sessions, acceleration_text)
    yield "Partial Fourier", field("PartialFourier")
    yield "Partial (asymmetric) echo", field("PartialEcho", "AsymmetricEcho")
    yield "Elliptical k-space shutter", field("EllipticalShutter")
    yield "Phase stabilisation", field("PhaseStabilization")
    yield "Acquisition time", field("AcquisitionDuration", unit="s")
    yield "Distortion correction of the scanner", field("NonlinearGradientCorrection")
    yield "Coil combination by the scanner", field("CoilCombinationMethod", "MatrixCoilMode")
    yield "Units of the stored phase", recorded("field", "PhaseUnits")
    yield from _processing_rows(sessions)


def _processing_rows(sessions: Sequence[SessionFacts]) -> Iterator[tuple[str, str]]:
    """Items on software and analysis in the reporting list."""
    yield "Toolbox", f"chisep {versions(sessions)}"
    for title, section in SECTIONS.items():
        if title not in ("Acquisition", "Regions"):
            done = "see above" if merged(sessions, section) else NOT_RECORDED
            yield f"Algorithm and parameters: {title.lower()}", done
    yield "Further processing for reading rooms", "none by chisep"
    yield "Unit and reference of susceptibility", variants(sessions, _reference)
    regions = merged(sessions, regions_sentences)
    yield "Analysis of regions", "see above" if regions else "not made by chisep; to be stated by the authors"
    yield "Criteria to include and exclude data", "to be stated by the authors"
    counted_are = (
        "those with maps of susceptibility"
        if any(session.one_echo for session in sessions)
        else "those whose sources were separated"
    )
    yield "Sessions without results", f"not counted: only {counted_are} are"


def _reference(session: SessionFacts) -> str:
    text = "not referred to a region" if session.reference == "none" else session.reference
    return f"ppm; {text}, see above"


def _bipolar(session: SessionFacts) -> str:
    return value_text(session.fact("field", "BipolarReadout"))


def _frequency(sessions: Sequence[SessionFacts]) -> str:
    values = [
        v for session in sessions if isinstance(v := session.megre.get("ImagingFrequency"), int | float)
    ]
    if not values:
        return NOT_STATED
    spread = f" ± {statistics.stdev(values):.4g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.7g}{spread} MHz ({counted(len(values), 'session')})"


def parameter_rows(sessions: Sequence[SessionFacts]) -> Iterator[tuple[str, str, str]]:
    """Rows of every parameter of every stage, with its values."""
    names: dict[tuple[str, str], None] = {}
    for session in sessions:
        for stage, record in session.records.items():
            if stage != "report":
                names |= {(stage, name): None for name, _ in flat(record.parameters) if name != "Weights"}
    for stage, name in names:

        def of(session: SessionFacts, stage: str = stage, name: str = name) -> str:
            found = dict(flat(session.parameters(stage)))
            return (value_text(found[name], unit_of(name)) or "automatic") if name in found else "none"

        yield escaped(stage), escaped(name), variants(sessions, of)
