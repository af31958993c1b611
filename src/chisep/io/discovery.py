"""Discover the sessions of a BIDS dataset.

Images are searched only where BIDS has them, sub-…/[ses-…/]anat, so that nothing else in a dataset (links
in a circle, pipes, broken descriptions) matters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chisep.errors import InputError
from chisep.io.bids import (
    LONGEST_TE_S,
    Series,
    Session,
    entities,
    session_name,
    sidecar_of,
)
from chisep.io.paths import is_directory, is_label, require_label
from chisep.io.series import read_series

_UNIT_ENTITIES = ("ses", "acq", "run")
_LONGEST_NAME = 200


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
    found = discover(root, participants)
    for one in found:
        if one.error is not None:
            raise one.error
    return [one.session for one in found if one.session is not None]


@dataclass(frozen=True)
class DiscoveredSession:
    """One gradient-echo series, with its session or the error from reading it.

    Parameters
    ----------
    name
        Of the session, e.g. sub-01_ses-1.
    session
        The session; None if it cannot be used.
    error
        Why not.
    """

    name: str
    session: Session | None = None
    error: InputError | None = None


def discover(root: Path, participants: Sequence[str] = ()) -> list[DiscoveredSession]:
    """Discover every session as `find_sessions` does, but continue where one cannot be used.

    Parameters
    ----------
    root
        Root of a BIDS raw dataset.
    participants
        Labels with or without `sub-`; empty means all.

    Returns
    -------
    list of DiscoveredSession
        Sorted by name.

    Raises
    ------
    InputError
        If the folder or a participant does not exist, or no series is found.
    """
    if not is_directory(root):
        raise InputError(root, found="no such directory", expected="a BIDS dataset", fix="Check the path.")
    selected = [label.removeprefix("sub-") for label in participants]
    for label in selected:
        require_label(label, "--participant-label")
        if not is_directory(root / f"sub-{label}"):
            known = [name.removeprefix("sub-") for name in participant_folders(root)]
            raise InputError(
                root,
                found=f"no participant {label}",
                expected=f"one of: {', '.join(known) or 'none'}",
                fix="Check --participant-label.",
            )
    series = _images_by_series(root)
    found = []
    for (subject, unit, suffix), images in sorted(series.items()):
        if suffix != "MEGRE" or (selected and subject not in selected):
            continue
        entities = {key: value for key, value in unit if value}
        name = session_name(subject, entities)
        if not all(map(is_label, (subject, *entities.values()))):
            shown = "".join(c if is_label(c) or c in "-_" else "?" for c in name)[:_LONGEST_NAME]
            found.append(DiscoveredSession(shown, error=_unusable_name(images[0])))
            continue
        try:
            megre = read_series(root, suffix, images)
            mese_images = _partner(series, subject, unit)
            mese = read_series(root, "MESE", mese_images) if mese_images else None
            _check_field_strength(megre, mese)
            found.append(DiscoveredSession(name, Session(subject, entities, megre, mese)))
        except InputError as error:
            found.append(DiscoveredSession(name, error=error))
    if not found:
        raise InputError(
            root,
            found="no multi-echo gradient-echo images" + (f" of {', '.join(selected)}" if selected else ""),
            expected="files like sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz with their part-phase",
            fix="Name the images as BIDS does, or import single NIfTI files with `chisep import`.",
        )
    return found


_Unit = tuple[tuple[str, str], ...]


def participant_folders(root: Path) -> list[str]:
    """Names of the folders of a dataset that start with `sub-`, sorted."""
    return sorted(path.name for path in root.glob("sub-*") if is_directory(path))


def _images_by_series(root: Path) -> dict[tuple[str, _Unit, str], list[Path]]:
    """Group raw MEGRE and MESE images by subject, unit (session, acquisition, run) and suffix."""
    found: dict[tuple[str, _Unit, str], list[Path]] = defaultdict(list)
    for pattern in ("sub-*/anat/sub-*_M*", "sub-*/ses-*/anat/sub-*_M*"):
        for path in sorted(root.glob(pattern)):
            names = entities(path.name)
            is_image = path.name.endswith((".nii", ".nii.gz")) and names["suffix"] in LONGEST_TE_S
            if is_image and path.relative_to(root).parts[0] == f"sub-{names.get('sub')}":
                unit = tuple((key, names.get(key, "")) for key in _UNIT_ENTITIES)
                found[names["sub"], unit, names["suffix"]].append(path)
    return found


def _unusable_name(image: Path) -> InputError:
    return InputError(
        image,
        found="a name whose labels are not letters and digits",
        expected="a name like sub-01_ses-1_acq-fine_run-1_echo-1_part-mag_MEGRE.nii.gz",
        fix="Rename it: results are named by these labels.",
    )


def _partner(series: Mapping[tuple[str, _Unit, str], list[Path]], subject: str, unit: _Unit) -> list[Path]:
    """Spin-echo images for a gradient-echo unit: of the same unit, else the only ones of the same session."""
    if exact := series.get((subject, unit, "MESE")):
        return exact
    session = dict(unit)["ses"]
    others = [
        files
        for (sub, u, suffix), files in series.items()
        if (sub, suffix, dict(u)["ses"]) == (subject, "MESE", session)
    ]
    if len(others) > 1:
        raise InputError(
            others[0][0],
            found=f"{len(others)} spin-echo series in one session",
            expected="one, or one with the acq and run of each gradient-echo series",
            fix="Keep the one to be used.",
        )
    return others[0] if others else []


def _check_field_strength(megre: Series, mese: Series | None) -> None:
    sidecar = sidecar_of(megre.magnitude[0])
    if megre.b0_t is None:
        raise InputError(
            sidecar,
            found="no MagneticFieldStrength",
            expected="MagneticFieldStrength in tesla, e.g. 3",
            fix="Add it to the sidecar.",
        )
    if mese is not None and mese.b0_t not in (None, megre.b0_t):
        raise InputError(
            sidecar_of(mese.magnitude[0]),
            found=f"MagneticFieldStrength {mese.b0_t}",
            expected=f"{megre.b0_t} as in {sidecar}",
            fix="Correct the sidecar that is wrong.",
        )
