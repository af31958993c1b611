"""Discover the sessions of a BIDS dataset.

Images are searched only where BIDS has them, sub-…/[ses-…/]anat, so that nothing else in a dataset (links
in a circle, pipes, broken descriptions) matters. Every participant is accounted for: one whose images cannot
be used is a session with an error, not left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from chisep.errors import InputError, printable
from chisep.io.bids import (
    LONGEST_TE_S,
    SESSION_ENTITIES,
    Series,
    Session,
    entities,
    session_name,
    sidecar_of,
)
from chisep.io.filters import Filters
from chisep.io.paths import is_directory, is_label, require_label
from chisep.io.series import read_series

_LONGEST_NAME = 200
_MOST_NAMED = 3
_MOST_LOOKED_AT = 1000
_IMAGES = (".nii", ".nii.gz")
_EXPECTED_FILES = "files like sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz with their part-phase"
_HOW_TO_BRING_IN = "Name the images as BIDS does, or import single NIfTI files with `chisep import`."


@dataclass(frozen=True)
class Selection:
    """What of a dataset is to be used.

    Parameters
    ----------
    participants
        Labels with or without `sub-`; empty means all.
    sessions
        Labels with or without `ses-`; empty means all.
    filters
        Entities that images must have.
    shared_spin_echo
        Whether a gradient echo takes the only spin echo of its session even if that has the labels of another
        gradient echo.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filters: Filters = field(default_factory=Filters)
    shared_spin_echo: bool = True


@dataclass(frozen=True)
class DiscoveredSession:
    """One gradient-echo series and what became of reading its session.

    Parameters
    ----------
    name
        Of the session, e.g. sub-01_ses-1; of the participant where there is no session.
    session
        The session; None if it cannot be used.
    error
        Why not.
    """

    name: str
    session: Session | None = None
    error: Exception | None = None


def find_sessions(root: Path, participants: Sequence[str] = ()) -> list[Session]:
    """Find every session with a multi-echo gradient-echo series.

    Parameters
    ----------
    root
        Root of a BIDS raw dataset.
    participants
        Labels with or without `sub-`; empty means all.

    Returns
    -------
    list of Session
        Sorted by name.

    Raises
    ------
    InputError
        If the folder or a participant does not exist, no series is found, an echo lacks its partner, or a
        sidecar lacks, contradicts or mis-scales what chisep needs.
    """
    found = discover(root, Selection(tuple(participants)))
    for one in found:
        if one.error is not None:
            raise one.error
    return [one.session for one in found if one.session is not None]


def discover(
    root: Path, selection: Selection | None = None, *, names_only: bool = False
) -> list[DiscoveredSession]:
    """Discover every session as `find_sessions` does, but continue where one cannot be used.

    Parameters
    ----------
    root
        Root of a BIDS raw dataset.
    selection
        What of it is to be used; all if None.
    names_only
        Look at names of files alone and read nothing: all that is found are names of sessions.

    Returns
    -------
    list of DiscoveredSession
        Sorted by name; participants without any session are among them, with an error.

    Raises
    ------
    InputError
        If the folder, a participant or a session that was asked for does not exist, or there is no
        participant at all.
    """
    selection = selection or Selection()
    found: list[DiscoveredSession] = []
    for folder in _asked_for(root, selection):
        try:
            found += _of_participant(root, folder, selection, names_only=names_only)
        except Exception as error:  # whatever it is, it must not stop the other participants
            found.append(DiscoveredSession(_shown(folder), error=error))
    return sorted(found, key=lambda one: one.name)


def participant_folders(root: Path) -> list[str]:
    """Names of the folders of a dataset that start with `sub-`, sorted."""
    return sorted(path.name for path in root.glob("sub-*") if is_directory(path))


def _asked_for(root: Path, selection: Selection) -> list[str]:
    """Folders of the participants to look at; each label that was asked for must be there."""
    if not is_directory(root):
        raise InputError(root, found="no such directory", expected="a BIDS dataset", fix="Check the path.")
    folders = participant_folders(root)
    wanted = [f"sub-{label.removeprefix('sub-')}" for label in selection.participants]
    for folder in wanted:
        require_label(folder.removeprefix("sub-"), "--participant-label")
        if not is_directory(root / folder):
            known = [name.removeprefix("sub-") for name in folders]
            raise InputError(
                root,
                found=f"no participant {folder.removeprefix('sub-')}",
                expected=f"one of: {', '.join(known) or 'none'}",
                fix="Check --participant-label.",
            )
    asked_for = [folder for folder in folders if folder in wanted or not wanted]
    if selection.sessions:
        asked_for = _with_sessions(root, asked_for, selection)
    if not asked_for:
        raise InputError(
            root,
            found="no multi-echo gradient-echo images, and no participant (sub-…)",
            expected=_EXPECTED_FILES,
            fix=_HOW_TO_BRING_IN,
        )
    return asked_for


def _with_sessions(root: Path, folders: Sequence[str], selection: Selection) -> list[str]:
    """Participants who have one of the sessions asked for; all of them where they were asked for by name."""
    known = {
        folder: {path.name.removeprefix("ses-") for path in (root / folder).glob("ses-*")}
        for folder in folders
    }
    wanted = [label.removeprefix("ses-") for label in selection.sessions]
    for label in wanted:
        require_label(label, "--session-label")
        if not any(label in sessions for sessions in known.values()):
            there = sorted(set().union(*known.values()))
            raise InputError(
                root,
                found=f"no session {label} of the participants asked for",
                expected=f"one of: {', '.join(there) or 'none, since there are no ses- folders'}",
                fix="Check --session-label.",
            )
    return [folder for folder in folders if selection.participants or known[folder] & set(wanted)]


_Unit = tuple[tuple[str, str], ...]


def _label(unit: _Unit, entity: str) -> str:
    return dict(unit)[entity]


@dataclass(frozen=True)
class _Images:
    """Images of one participant.

    Parameters
    ----------
    series
        Those to be used, by unit (session, acquisition, …) and suffix.
    left_out
        MEGRE images that the filters leave out.
    misnamed
        Images of MEGRE or MESE whose names are not those that BIDS has in their folder.
    """

    series: Mapping[tuple[_Unit, str], Sequence[Path]]
    left_out: Sequence[Path]
    misnamed: Sequence[Path]


def _images(folder: Path, selection: Selection) -> _Images:
    """Group the raw MEGRE and MESE images of a participant."""
    series: dict[tuple[_Unit, str], list[Path]] = defaultdict(list)
    left_out, misnamed = [], []
    sessions = {label.removeprefix("ses-") for label in selection.sessions}
    for anat in sorted([folder / "anat", *folder.glob("ses-*/anat")]):
        session = anat.parent.name.removeprefix("ses-") if anat.parent != folder else ""
        if sessions and session not in sessions:
            continue
        for path in sorted(anat.glob("*")):
            if not path.name.endswith(_IMAGES):
                continue
            names = entities(path.name)
            if not any(suffix in path.name.upper() for suffix in LONGEST_TE_S):
                continue
            fits = names.get("sub") == folder.name.removeprefix("sub-") and names.get("ses", "") == session
            if names["suffix"] not in LONGEST_TE_S or not fits:
                misnamed.append(path)
            elif selection.filters.keep(path):
                unit = tuple((key, names.get(key, "")) for key in SESSION_ENTITIES)
                series[unit, names["suffix"]].append(path)
            elif names["suffix"] == "MEGRE":
                left_out.append(path)
    return _Images(series, left_out, misnamed)


def _of_participant(
    root: Path, folder: str, selection: Selection, *, names_only: bool
) -> list[DiscoveredSession]:
    """Sessions of one participant; at least one, which may have an error."""
    images = _images(root / folder, selection)
    lent = _lent_phases(images)
    found = [
        DiscoveredSession(_name_of(folder, unit))
        if names_only
        else _read(root, folder, unit, images, shared_spin_echo=selection.shared_spin_echo)
        for unit, suffix in sorted(images.series)
        if suffix == "MEGRE" and unit not in lent
    ]
    found = _with_misnamed(root / folder, found, images.misnamed)
    return found or [DiscoveredSession(_shown(folder), error=_no_session(root / folder, images, selection))]


def _read(
    root: Path, folder: str, unit: _Unit, images: _Images, *, shared_spin_echo: bool
) -> DiscoveredSession:
    """Read one session."""
    subject = folder.removeprefix("sub-")
    labels = {key: value for key, value in unit if value}
    name = _name_of(folder, unit)
    own = images.series[unit, "MEGRE"]
    try:
        if not all(map(is_label, (subject, *labels.values()))):
            raise _unusable_name(own[0])
        phase = _phase_of_other_reconstruction(unit, images)
        megre = read_series(root, "MEGRE", [*own, *phase])
        partner = _partner(images, unit, shared=shared_spin_echo)
        mese = read_series(root, "MESE", partner) if partner else None
        _check_field_strength(megre, mese)
        notes = [*megre.notes, *(f"spin echo: {note}" for note in (mese.notes if mese else ()))]
        if phase:
            notes.append(f"its phase is that of the only other reconstruction: {phase[0].name}, …")
        return DiscoveredSession(name, Session(subject, labels, megre, mese, tuple(map(printable, notes))))
    except Exception as error:  # whatever it is, it must not stop the other sessions
        return DiscoveredSession(name, error=error)


def _name_of(folder: str, unit: _Unit) -> str:
    return _shown(session_name(folder.removeprefix("sub-"), {key: value for key, value in unit if value}))


def _shown(name: str) -> str:
    """Write a name that may hold anything so that it can be printed and be a file's name."""
    return "".join(c if is_label(c) or c in "-_" else "?" for c in name)[:_LONGEST_NAME]


def _has_phase(images: Sequence[Path]) -> bool:
    parts = {entities(image.name).get("part", "mag") for image in images}
    return "phase" in parts or {"real", "imag"} <= parts


def _has_magnitude(images: Sequence[Path]) -> bool:
    parts = {entities(image.name).get("part", "mag") for image in images}
    return "mag" in parts or {"real", "imag"} <= parts


def _without_rec(unit: _Unit) -> _Unit:
    return tuple((key, "" if key == "rec" else value) for key, value in unit)


def _reconstructions(unit: _Unit, images: _Images) -> dict[_Unit, list[Path]]:
    """Gradient echoes of the same scan, by their unit: those that differ in rec- only, whatever is chosen."""
    found: dict[_Unit, list[Path]] = defaultdict(list)
    for (other, suffix), files in images.series.items():
        if suffix == "MEGRE" and _without_rec(other) == _without_rec(unit):
            found[other] += files
    for path in images.left_out:
        names = entities(path.name)
        other = tuple((key, names.get(key, "")) for key in SESSION_ENTITIES)
        same_scan = other != unit and _without_rec(other) == _without_rec(unit)
        if same_scan and names.get("part") == "phase":
            found[other].append(path)
    return found


def _lent_phases(images: _Images) -> set[_Unit]:
    """Units that are nothing but the phase of another reconstruction's magnitude."""
    lent = set()
    for unit, suffix in images.series:
        if suffix == "MEGRE" and not _has_phase(images.series[unit, suffix]):
            family = _reconstructions(unit, images)
            lent |= {other for other, files in family.items() if not _has_magnitude(files)}
    return lent


def _phase_of_other_reconstruction(unit: _Unit, images: _Images) -> list[Path]:
    """Phase of a magnitude that has none of its own: scanners normalise magnitudes only (rec-norm).

    Raises
    ------
    InputError
        If other reconstructions have a phase, and it is not clear whose it is.
    """
    if _has_phase(images.series[unit, "MEGRE"]):
        return []
    family = _reconstructions(unit, images)
    with_phase = {other: files for other, files in family.items() if _has_phase(files)}
    if not with_phase:
        return []
    without = [other for other, files in family.items() if not _has_phase(files)]
    lenders = [other for other, files in with_phase.items() if not _has_magnitude(files)]
    if len(lenders) == 1 and len(without) == 1:
        return with_phase[lenders[0]]
    raise InputError(
        images.series[unit, "MEGRE"][0],
        found=f"magnitude {_rec(unit)}, but phase only {' and '.join(_rec(other) for other in with_phase)}",
        expected="magnitude and phase of each reconstruction (rec-), or one reconstruction that is chosen",
        fix="Choose one with --bids-filter-file, for example a file with "
        '{"MEGRE": {"reconstruction": ' + _rec_in_json(next(iter(with_phase))) + "}}; with "
        f"{_rec_in_json(unit)} in its place this magnitude is used with that phase.",
    )


def _rec(unit: _Unit) -> str:
    label = _label(unit, "rec")
    return f"with rec-{label}" if label else "without rec-"


def _rec_in_json(unit: _Unit) -> str:
    return f'"{_label(unit, "rec")}"' if _label(unit, "rec") else "null"


def _with_misnamed(
    folder: Path, found: Sequence[DiscoveredSession], misnamed: Sequence[Path]
) -> list[DiscoveredSession]:
    """Name images that are passed over: a note to a session of their folder, else a session that fails."""
    found = list(found)
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in misnamed:
        by_folder[path.parent].append(path)
    for anat, paths in by_folder.items():
        session = anat.parent.name if anat.parent != folder else ""
        start = f"{folder.name}_{session}" if session else folder.name
        error = _misnamed(paths, start)
        near = [one for one in found if one.name == start or one.name.startswith(f"{start}_")]
        if not near:
            found.append(DiscoveredSession(_shown(start), error=error))
        for one in near:
            if one.session is not None:
                note = printable(f"passed over, since BIDS has other names there: {_some(paths)}")
                session_with_note = replace(one.session, notes=(*one.session.notes, note))
                found[found.index(one)] = replace(one, session=session_with_note)
    return found


def _some(paths: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:_MOST_NAMED])
    return shown if len(paths) <= _MOST_NAMED else f"{shown} and {len(paths) - _MOST_NAMED} more"


def _misnamed(paths: Sequence[Path], start: str) -> InputError:
    return InputError(
        paths[0].parent,
        found=f"images whose names are not those of BIDS in this folder: {_some(paths)}",
        expected=f"names like {start}_echo-1_part-mag_MEGRE.nii.gz",
        fix="Rename the images and their sidecars.",
    )


def _no_session(folder: Path, images: _Images, selection: Selection) -> InputError:
    """Say why a participant has no session."""
    others = [
        path
        for pattern in ("*", "*/*", "*/*/*")
        for path in islice(folder.glob(pattern), _MOST_LOOKED_AT)
        if path.name.endswith(_IMAGES)
    ]
    fix = _HOW_TO_BRING_IN
    if selection.sessions and not any(
        is_directory(folder / f"ses-{label.removeprefix('ses-')}") for label in selection.sessions
    ):
        what, fix = f"no session {', '.join(selection.sessions)}", "Check --session-label."
    elif images.left_out:
        left_out = _some(images.left_out)
        what = f"no multi-echo gradient-echo images that --bids-filter-file keeps; left out: {left_out}"
        fix = "Correct the filter, or leave the participant out with --participant-label."
    elif any(suffix == "MESE" for _, suffix in images.series):
        what = "no multi-echo gradient-echo images, a spin echo (MESE) only"
    elif others:
        what = f"no multi-echo gradient-echo images; other images: {_some(sorted(others))}"
    else:
        what = "no multi-echo gradient-echo images, and no other images"
    return InputError(folder, found=what, expected=_EXPECTED_FILES, fix=fix)


def _unusable_name(image: Path) -> InputError:
    return InputError(
        image,
        found="a name whose labels are not letters and digits",
        expected="a name like sub-01_ses-1_acq-fine_run-1_echo-1_part-mag_MEGRE.nii.gz",
        fix="Rename it: results are named by these labels.",
    )


def _partner(images: _Images, unit: _Unit, *, shared: bool) -> Sequence[Path]:
    """Spin-echo images for a gradient-echo unit: of the same unit, else the only ones of the same session.

    Unless `shared`, those of the unit of another gradient echo do not count.
    """
    if exact := images.series.get((unit, "MESE")):
        return exact
    others = [
        files
        for (other, suffix), files in images.series.items()
        if suffix == "MESE"
        and _label(other, "ses") == _label(unit, "ses")
        and (shared or (other, "MEGRE") not in images.series)
    ]
    if len(others) > 1:
        raise InputError(
            others[0][0],
            found=f"{len(others)} spin-echo series in one session: {_some([files[0] for files in others])}",
            expected="one, or one with the labels (acq-, rec-, run-) of each gradient-echo series",
            fix='Choose one with --bids-filter-file, for example {"MESE": {"run": 1}}, or keep the one to '
            "be used.",
        )
    return others[0] if others else []


def _check_field_strength(megre: Series, mese: Series | None) -> None:
    sidecar = sidecar_of(megre.first)
    if megre.b0_t is None:
        raise InputError(
            sidecar,
            found="no MagneticFieldStrength",
            expected="MagneticFieldStrength in tesla, e.g. 3",
            fix="Add it to the sidecar.",
        )
    if mese is not None and mese.b0_t not in (None, megre.b0_t):
        raise InputError(
            sidecar_of(mese.first),
            found=f"MagneticFieldStrength {mese.b0_t}",
            expected=f"{megre.b0_t} as in {sidecar}",
            fix="Correct the sidecar that is wrong.",
        )
