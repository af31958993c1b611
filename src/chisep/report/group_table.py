"""All sessions of a derivatives dataset in one table and on one page.

Only tables and records are read, never images, so that thousands of sessions take seconds.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import chisep
from chisep.errors import InputError
from chisep.io.files import write_json, write_text
from chisep.io.paths import is_directory, is_file
from chisep.io.tsv import MISSING, cell, clean_text, slug, write_table
from chisep.progress import Progress
from chisep.regions.statistics import COLUMNS, STATISTICS
from chisep.report import figures
from chisep.report.group import GroupReport, SessionLine, render_group
from chisep.report.subject import Panel

Column = Float[np.ndarray, " session"]
"""One number per session, NaN where it is not known."""
Values = Float[np.ndarray, "session column"]
"""Numbers of all sessions, NaN where one is not known."""


FEWEST_FOR_OUTLIERS = 8
"""With fewer sessions no outliers are looked for."""
OUTLIER_SCORE = 3.5
"""A robust z-score beyond this is an outlier."""
_MAD_TO_SD, _MEAN_DEVIATION_TO_SD = 1.4826, 1.2533
_SESSION = re.compile(r"sub-[A-Za-z0-9]+(_(ses|acq|run)-[A-Za-z0-9]+)*")
_LONGEST_TEXT = 300
_MOST_ROWS_SHOWN = 60
_MOST_BYTES = 50_000_000
_MOST_LABELS = 100_000


@dataclass(frozen=True)
class _Figure:
    """A quality figure: where it is found, and what it means."""

    stage: str
    fact: str
    description: str
    unit: str = ""


_QUALITY = {
    "brain_volume_ml": _Figure("mask", "BrainVolumeMl", "Volume of the brain mask", "mL"),
    "reliable_part_of_brain": _Figure("field", "ReliablePartOfBrain", "Part of the brain of reliable phase"),
    "residual_phase_rad": _Figure(
        "field", "MedianResidualPhaseRad", "Median deviation of the echoes' phase from their fit", "rad"
    ),
    "field_noise_ppb": _Figure(
        "field", "MedianFieldNoisePpb", "Median standard deviation of the field's noise", "ppb"
    ),
    "erosion_ml": _Figure("background", "ErosionMl", "Volume lost to background removal", "mL"),
    "registration_shift_mm": _Figure(
        "registration", "MovedMm", "Largest motion of the brain between gradient echo and spin echo", "mm"
    ),
    "registration_rotation_deg": _Figure(
        "registration", "RotationDeg", "Rotation between gradient echo and spin echo", "degree"
    ),
    "spin_echo_coverage": _Figure(
        "relaxometry", "SpinEchoCoverage", "Part of the brain that the spin echo reaches"
    ),
    "r2prime_noise_hz": _Figure(
        "relaxometry", "MedianR2primeNoiseHz", "Median standard deviation of the noise of R2'", "1/s"
    ),
    "labelled_part_of_brain": _Figure(
        "labels", "LabelledPartOfBrain", "Part of the brain mask that the segmentation labels"
    ),
    "atlas_overlap": _Figure(
        "labels", "AtlasOverlapDice", "Dice coefficient of the brain mask and the registered atlas' brain"
    ),
}
_COSTS = {
    "seconds": ("Time that the stages took when they were last run", "s"),
    "peak_memory_gb": ("Most memory that a stage took", "GB"),
}
_NUMBERS = (*_QUALITY, *_COSTS)
_SHOWN = (
    "brain_volume_ml",
    "residual_phase_rad",
    "field_noise_ppb",
    "registration_shift_mm",
    "spin_echo_coverage",
    "r2prime_noise_hz",
)
"""Quality figures in the table of the page."""
_TEXTS = {
    "participant_id": "Participant",
    "session_id": "Session of the participant",
    "name": "Start of the names of all files of the session",
    "status": "done: all stages to the report; failed: an error stopped it; unfinished: neither",
    "error": "What stopped it",
    "unconverged_stages": "Stages whose iteration ended before it reached its tolerance",
    "warning_count": "Number of warnings",
    "warnings": "Warnings, each with its stage",
    "outlier_count": "Number of columns in which this session is an outlier",
    "outliers": "Names of these columns",
}
_UNIT_OF_ENDING = {"ppb": "ppb", "hz": "1/s"}


@dataclass(frozen=True)
class GroupResult:
    """What the group level wrote.

    Parameters
    ----------
    table, dictionary, page
        group.tsv, group.json and group.html.
    sessions
        How many sessions were found.
    status
        Status → number of sessions.
    """

    table: Path
    dictionary: Path
    page: Path
    sessions: int
    status: Mapping[str, int]


@dataclass
class _Session:
    """What the files of one session say.

    Parameters
    ----------
    name
        Of the session.
    status
        done, unfinished or failed.
    error
        What stopped it.
    numbers
        Column → quality figure.
    unconverged
        Stages that ended before their tolerance.
    warnings
        Texts with their stages.
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
        """Value of an entity with its key, e.g. ses-1; n/a without."""
        return next((part for part in self.name.split("_") if part.startswith(f"{key}-")), MISSING)


def make_group(out: Path, progress: Progress | None = None) -> GroupResult:
    """Gather all sessions of a derivatives dataset in group.tsv, group.json and group.html.

    Parameters
    ----------
    out
        Derivatives dataset that `chisep run` wrote.
    progress
        Told which session is read.

    Returns
    -------
    GroupResult
        What was written; equal derivatives give equal files.

    Raises
    ------
    InputError
        If no session was processed there.
    OutputError
        If it cannot be written.
    """
    folder = out / ".chisep"
    names = sorted(
        path.name for path in folder.glob("sub-*") if is_directory(path) and _SESSION.fullmatch(path.name)
    )
    if not names:
        raise InputError(
            out,
            found="no session that was processed",
            expected="a derivatives dataset written by `chisep run BIDS OUT participant`",
            fix="Run the participant level first, or check the path.",
        )
    sessions: list[_Session] = []
    columns: dict[str, int] = {}
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for done, name in enumerate(names):
        if progress:
            progress(name, done, len(names))
        session = _read_session(out, name)
        places = [columns.setdefault(column, len(columns)) for column in session.regions]
        rows.append((np.array(places, dtype=np.intp), np.array([*session.regions.values()], np.float32)))
        session.regions = {}
        sessions.append(session)
    values = np.full((len(names), len(columns)), np.nan, dtype=np.float32)
    for row, (at, numbers) in zip(values, rows, strict=True):
        row[at] = numbers
    if progress:
        progress("table and page", len(names), len(names))
    quality = {key: np.array([s.numbers.get(key, math.nan) for s in sessions]) for key in _NUMBERS}
    apart = _outliers(sessions, quality, columns, values)
    result = GroupResult(
        out / "group.tsv",
        out / "group.json",
        out / "group.html",
        len(names),
        dict(Counter(session.status for session in sessions)),
    )
    _write_table(result.table, sessions, quality, columns, values, apart)
    write_json(result.dictionary, _dictionary(columns))
    write_text(result.page, render_group(_page(out, sessions, quality, columns, values, apart)))
    return result


# ---- reading -------------------------------------------------------------------------------------------


def _read_session(out: Path, name: str) -> _Session:
    records = {path.stem: _read_object(path) for path in sorted((out / ".chisep" / name).glob("*.json"))}
    failure = records.pop("error", None)
    done = records.get("report") is not None and is_file(out / f"{name}.html")
    session = _Session(name, "failed" if failure is not None else "done" if done else "unfinished")
    if failure is not None:
        session.error = clean_text(str(failure.get("Error", "")), _LONGEST_TEXT)
    seconds, memory = [], []
    for stage, record in records.items():
        if record is None:
            session.warnings.append(f"{stage}: its record cannot be read")
            continue
        facts = _mapping(record.get("facts"))
        if _mapping(facts.get("Convergence")).get("Converged") is False:
            session.unconverged.append(stage)
        said = record.get("warnings")
        for text in said if isinstance(said, list) and stage != "report" else ():
            session.warnings.append(f"{stage}: {clean_text(str(text), _LONGEST_TEXT)}")
        for key, figure in _QUALITY.items():
            if figure.stage == stage and (number := _number(facts.get(figure.fact))) is not None:
                session.numbers[key] = number
        seconds.append(_number(record.get("seconds")) or 0.0)
        memory.append(_number(record.get("peak_memory_gb")) or 0.0)
    if seconds:
        session.numbers |= {"seconds": sum(seconds), "peak_memory_gb": max(memory)}
    subject, visit = session.entity("sub"), session.entity("ses")
    anat = Path(subject, *([] if visit == MISSING else [visit]), "anat")
    _read_regions(out / anat / f"{name}_regions.tsv", session)
    return session


def _read_object(path: Path) -> dict[str, Any] | None:
    """JSON object of a file, None if there is none that can be read."""
    try:
        if not is_file(path) or path.stat().st_size > _MOST_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def _read_regions(path: Path, session: _Session) -> None:
    """Add the values of a table of regions to a session; a table that cannot be read is a warning."""
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
            f"regions: the table cannot be read ({clean_text(str(error))}); wanted: {', '.join(COLUMNS)}"
        )
        return
    session.regions = {key: value for key, value in values.items() if math.isfinite(value)}


# ---- outliers ------------------------------------------------------------------------------------------


def robust_scores(values: Column) -> Column:
    """How far each value is from the median, in robust standard deviations; NaN stays NaN.

    The standard deviation is 1.4826 times the median absolute deviation; where that is 0, because more than
    half of the values are equal, 1.2533 times the mean absolute deviation (Iglewicz and Hoaglin 1993).

    Parameters
    ----------
    values
        One per session.
    """
    if not np.isfinite(values).any():
        return values
    away = values - np.nanmedian(values)
    spread = _MAD_TO_SD * np.nanmedian(np.abs(away)) or _MEAN_DEVIATION_TO_SD * np.nanmean(np.abs(away))
    return np.asarray(away / (spread or 1.0))


def _outliers(
    sessions: Sequence[_Session], quality: Mapping[str, Column], columns: Mapping[str, int], values: Values
) -> list[list[str]]:
    """Columns in which each session lies apart: quality figures and medians of regions."""
    apart: list[list[str]] = [[] for _ in sessions]

    def look(name: str, column: Column) -> None:
        if np.count_nonzero(np.isfinite(column)) < FEWEST_FOR_OUTLIERS:
            return
        for place in np.flatnonzero(np.abs(robust_scores(column)) > OUTLIER_SCORE):
            apart[place].append(name)

    for name in _QUALITY:
        look(name, quality[name])
    for name, place in columns.items():
        if name.endswith("__median"):
            look(name, values[:, place].astype(np.float64))
    return apart


# ---- writing -------------------------------------------------------------------------------------------


def _write_table(
    path: Path,
    sessions: Sequence[_Session],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> None:
    def lines() -> Iterable[Iterable[Any]]:
        for place, session in enumerate(sessions):
            texts = {
                "participant_id": session.entity("sub"),
                "session_id": session.entity("ses"),
                "name": session.name,
                "status": session.status,
                "error": session.error or None,
                "unconverged_stages": ", ".join(session.unconverged) or None,
                "warning_count": len(session.warnings),
                "warnings": " | ".join(session.warnings) or None,
                "outlier_count": len(apart[place]),
                "outliers": " ".join(apart[place]) or None,
            }
            yield [
                *texts.values(),
                *(float(quality[key][place]) for key in _NUMBERS),
                *values[place].tolist(),
            ]

    write_table(path, [*_TEXTS, *_NUMBERS, *columns], lines())


def _dictionary(columns: Iterable[str]) -> dict[str, Any]:
    """Describe every column."""
    content: dict[str, Any] = {name: {"Description": text} for name, text in _TEXTS.items()}
    content["status"]["Levels"] = {
        "done": "all stages to the report",
        "failed": "an error stopped it",
        "unfinished": "stages are missing, or it is at work",
    }
    content["outliers"]["Description"] += ". " + _rule()
    described = {key: (figure.description, figure.unit) for key, figure in _QUALITY.items()} | _COSTS
    for name, (text, unit) in described.items():
        content[name] = {"Description": text} | ({"Units": unit} if unit else {})
    for name in columns:
        of_map, region, *statistic = name.split("__")
        if not statistic:
            content[name] = {"Description": f"Volume of {region} within the brain mask", "Units": "mL"}
            continue
        what = {"sd": "Standard deviation", "sigma": "Mean noise (standard deviation) of a voxel"}.get(
            statistic[0], statistic[0].capitalize()
        )
        unit = _UNIT_OF_ENDING.get(of_map.rsplit("_", 1)[-1], "")
        content[name] = {"Description": f"{what} of {of_map} in {region}"} | ({"Units": unit} if unit else {})
    return content


def _rule() -> str:
    return (
        f"An outlier is a value whose distance from the cohort's median is more than {OUTLIER_SCORE} times "
        "1.4826 times the median absolute deviation; quality figures and the medians of regions are looked "
        f"at, where at least {FEWEST_FOR_OUTLIERS} sessions have a value."
    )


def _page(
    out: Path,
    sessions: Sequence[_Session],
    quality: Mapping[str, Column],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> GroupReport:
    status = Counter(session.status for session in sessions)
    lines = [
        SessionLine(
            name=session.name,
            report=f"{session.name}.html" if is_file(out / f"{session.name}.html") else None,
            status=session.status,
            cells=[
                *(cell(float(quality[key][place])) for key in _SHOWN),
                ", ".join(session.unconverged) or "none",
                str(len(session.warnings)),
            ],
            outliers=apart[place],
            note=session.error,
        )
        for place, session in enumerate(sessions)
    ]
    said = Counter(text for session in sessions for text in session.warnings)
    seconds = quality["seconds"][np.isfinite(quality["seconds"])]
    return GroupReport(
        summary=[
            *((name, str(status.get(name, 0))) for name in ("done", "failed", "unfinished")),
            ("sessions with outliers", str(sum(bool(found) for found in apart))),
            ("sessions with warnings", str(sum(bool(session.warnings) for session in sessions))),
            ("median time of a session", f"{np.median(seconds):.0f} s" if seconds.size else MISSING),
        ],
        header=[*_SHOWN, "unconverged", "warnings"],
        sessions=lines,
        outlier_rule=_rule(),
        warnings=said.most_common(),
        panels=_panels(sessions, columns, values, apart),
        version=chisep.__version__,
    )


def _panels(
    sessions: Sequence[_Session],
    columns: Mapping[str, int],
    values: Values,
    apart: Sequence[Sequence[str]],
) -> list[Panel]:
    """One figure a map: medians of regions over sessions, the largest first."""
    of_map: dict[str, list[figures.Spread]] = {}
    named: dict[str, list[int]] = {}
    for place, found in enumerate(apart):
        for name in found:
            named.setdefault(name, []).append(place)
    for name, place in columns.items():
        parts = name.split("__")
        column = values[:, place].astype(np.float64)
        known = column[np.isfinite(column)]
        if len(parts) == 3 and parts[2] == "median" and known.size:
            outliers = [(sessions[row].name, float(column[row])) for row in named.get(name, ())]
            of_map.setdefault(parts[0], []).append(figures.Spread(parts[1], known, outliers))
    panels = []
    for map_name, spreads in of_map.items():
        spreads.sort(key=lambda one: (-len(one.values), -float(np.median(one.values)), one.name))
        shown = spreads[:_MOST_ROWS_SHOWN]
        left_out = f" {len(spreads) - len(shown)} more regions are in group.tsv." if shown != spreads else ""
        panels.append(
            Panel.of_figure(
                f"{map_name} in regions",
                "Medians of regions over sessions: a line from the 5th to the 95th percentile, a bar between "
                "the quartiles, a stroke at the median; outliers are dots, up to three a region named."
                + left_out,
                figures.spreads(shown, label=map_name),
                alt=f"Spread of {map_name} over sessions in every region.",
            )
        )
    return panels
