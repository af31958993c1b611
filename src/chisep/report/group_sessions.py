"""Summary of each session of a derivatives dataset, from its records and region table."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chisep.errors import InputError
from chisep.io.bids import SESSION_ENTITIES
from chisep.io.paths import is_file
from chisep.io.tsv import MISSING, clean_text, slug
from chisep.provenance.records import Record, read_failure, read_record, record_files, sessions_of
from chisep.regions.statistics import COLUMNS, STATISTICS

_SESSION_NAME = re.compile(rf"sub-[A-Za-z0-9]+(_({'|'.join(SESSION_ENTITIES)})-[A-Za-z0-9]+)*")


_LONGEST_TEXT = 300


_MOST_LABELS = 100_000


@dataclass(frozen=True)
class QualityMeasure:
    """A quality measure: stage and fact of its record, description, and unit."""

    stage: str
    fact: str
    description: str
    unit: str = ""


QUALITY = {
    "brain_volume_ml": QualityMeasure("mask", "BrainVolumeMl", "Volume of the brain mask", "mL"),
    "reliable_part_of_brain": QualityMeasure(
        "field", "ReliablePartOfBrain", "Part of the brain of reliable phase"
    ),
    "residual_phase_rad": QualityMeasure(
        "field", "MedianResidualPhaseRad", "Median deviation of the echoes' phase from their fit", "rad"
    ),
    "field_noise_ppb": QualityMeasure(
        "field", "MedianFieldNoisePpb", "Median standard deviation of the field's noise", "ppb"
    ),
    "erosion_ml": QualityMeasure("background", "ErosionMl", "Volume lost to background removal", "mL"),
    "registration_shift_mm": QualityMeasure(
        "registration", "MovedMm", "Largest motion of the brain between gradient echo and spin echo", "mm"
    ),
    "registration_rotation_deg": QualityMeasure(
        "registration", "RotationDeg", "Rotation between gradient echo and spin echo", "degree"
    ),
    "spin_echo_coverage": QualityMeasure(
        "relaxometry", "SpinEchoCoverage", "Part of the brain that the spin echo reaches"
    ),
    "r2prime_noise_hz": QualityMeasure(
        "relaxometry", "MedianR2primeNoiseHz", "Median standard deviation of the noise of R2'", "1/s"
    ),
    "labelled_part_of_brain": QualityMeasure(
        "labels", "LabelledPartOfBrain", "Part of the brain mask that the segmentation labels"
    ),
    "atlas_overlap": QualityMeasure(
        "labels", "AtlasOverlapDice", "Dice coefficient of the brain mask and the registered atlas' brain"
    ),
}


COSTS = {
    "seconds": ("Time that the stages took when they were last run", "s"),
    "peak_memory_gb": ("Most memory that a stage took", "GB"),
}


NUMBERS = (*QUALITY, *COSTS)


@dataclass
class SessionSummary:
    """Summary of one session.

    Parameters
    ----------
    name
        Name of the session.
    status
        done, unfinished, failed or never ran.
    error
        Error that stopped it.
    numbers
        Column → quality measure.
    unconverged
        Stages whose iteration did not converge.
    warnings
        Texts, each after its stage.
    regions
        Column → value.
    """

    name: str
    status: str
    error: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    unconverged: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    regions: dict[str, float] = field(default_factory=dict)

    def entity(self, key: str) -> str:
        """BIDS entity with its key, e.g. ses-1; n/a if the name has none."""
        return next((part for part in self.name.split("_") if part.startswith(f"{key}-")), MISSING)


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def _read_regions(path: Path, session: SessionSummary) -> None:
    """Add the values of a region table; an unreadable table is a warning."""
    if not is_file(path):
        return
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            places = {name: place for place, name in enumerate(next(reader))}
            index, name, of_map, volume = (places[key] for key in ("index", "name", "map", "volume_ml"))
            kinds = [(key, places[key]) for key in STATISTICS]
            labels: dict[str, str] = {}
            taken: set[str] = set()
            values: dict[str, float] = {}
            maps: dict[str, str] = {}
            for row in reader:
                label = row[index]
                if label not in labels:
                    if len(labels) > _MOST_LABELS:
                        raise ValueError(f"more than {_MOST_LABELS} regions")
                    plain = slug(row[name]) or "region"
                    labels[label] = plain if plain not in taken else f"{plain}_{int(label)}"
                    taken.add(labels[label])
                    values[f"volume_ml__{labels[label]}"] = float(row[volume])
                if row[of_map] not in maps:
                    maps[row[of_map]] = slug(row[of_map])
                shown = f"{maps[row[of_map]]}__{labels[label]}__"
                for key, place in kinds:
                    if row[place] != MISSING:
                        values[shown + key] = float(row[place])
    except (OSError, ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        session.warnings.append(
            f"regions: the table cannot be read ({clean_text(str(error))}); expected: {', '.join(COLUMNS)}"
        )
        return
    session.regions = {key: value for key, value in values.items() if math.isfinite(value)}


def session_names(out: Path) -> list[str]:
    """Names of the sessions with records or an error in a derivatives dataset, sorted."""
    return [name for name in sessions_of(out, "sub-") if _SESSION_NAME.fullmatch(name)]


def has_records(out: Path, name: str) -> bool:
    """Whether any stage of a session was ever finished."""
    return bool(record_files(out, name))


def read_session(out: Path, name: str) -> SessionSummary:
    """Read the records and the region table of one session; unreadable ones are warnings.

    Parameters
    ----------
    out
        Derivatives dataset.
    name
        Name of the session.
    """
    session = SessionSummary(name, "unfinished")
    records: dict[str, Record] = {}
    for path in record_files(out, name):
        try:
            records[path.stem] = read_record(path)
        except InputError:
            session.warnings.append(f"{path.stem}: its record cannot be read")
    if (failure := read_failure(out, name)) is not None:
        # Numbers of stages that an earlier run finished are not those of the run that failed.
        return SessionSummary(name, "failed", clean_text(failure.error, _LONGEST_TEXT))
    if not records and not session.warnings:
        session.status = "never ran"
    elif "report" in records and is_file(out / f"{name}.html") and _shows(records["report"], records):
        session.status = "done"
    for stage, record in records.items():
        convergence = record.facts.get("Convergence")
        if isinstance(convergence, Mapping) and convergence.get("Converged") is False:
            session.unconverged.append(stage)
        if stage != "report":  # it repeats those of the others
            session.warnings += [f"{stage}: {clean_text(text, _LONGEST_TEXT)}" for text in record.warnings]
        for key, measure in QUALITY.items():
            if measure.stage == stage and (number := _number(record.facts.get(measure.fact))) is not None:
                session.numbers[key] = number
    if records:
        session.numbers["seconds"] = sum(record.seconds for record in records.values())
        session.numbers["peak_memory_gb"] = max(record.peak_memory_gb for record in records.values())
    subject, visit = session.entity("sub"), session.entity("ses")
    anat = Path(subject, *([] if visit == MISSING else [visit]), "anat")
    _read_regions(out / anat / f"{name}_regions.tsv", session)
    return session


def _shows(report: Record, records: Mapping[str, Record]) -> bool:
    """Whether a report shows the maps that the other stages made last; it is of an earlier run if not."""
    shown = {name.removeprefix("bids::"): checksum for name, checksum in report.inputs.items()}
    return all(
        shown.get(name, checksum) == checksum
        for record in records.values()
        for name, checksum in record.outputs.items()
        if not name.endswith(".json")  # checksums of JSON outputs leave costs out, those of inputs do not
    )
