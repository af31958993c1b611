"""BIDS: find raw series, inherit their sidecars, name and describe what is written.

Images are looked for only where BIDS has them, sub-…/[ses-…/]anat, so that nothing else in a dataset (links
in a circle, pipes, broken descriptions) matters. Sidecars are inherited as the inheritance principle of
BIDS 1.10 says. Names of outputs are made of labels alone, and these are letters and digits.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import chisep
from chisep.errors import InputError
from chisep.io.files import write_json, write_text
from chisep.io.paths import is_directory, is_file, is_label, require_label

BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
LONGEST_TE_S = {"MEGRE": 0.3, "MESE": 1.0}
"""Above this an echo time is taken for milliseconds."""
LOWEST_B0_T, HIGHEST_B0_T = 0.01, 25.0
"""Field strengths outside this range are taken for another unit."""
_UNIT_ENTITIES = ("ses", "acq", "run")
_LARGEST_JSON_BYTES = 2**24
_LONGEST_UNIT = 32
_LONGEST_NAME = 200
_LONGEST_SAYING = 80
_LONGEST_DIRECTION = 1000
_NOT_IN_BIDS = """\
# Pages, texts and tables of apps have no place in BIDS.
*.html
group.tsv
group.json
methods.md
references.bib
# R2' and D_r have no suffix in BIDS.
*_R2primemap.*
*_relaxivity.json
# Fields in ppm: the fieldmaps of BIDS are in Hz, in fmap/, with a magnitude of their own.
*_fieldmap.*
# B1 as the fit of R2 finds it: the B1 maps of BIDS are scans of their own, in fmap/.
*_TB1map.*
# Noise of maps: BIDS has stat- for functional data only.
*_stat-std_*
# Made of all echoes: BIDS wants one file an echo.
*_desc-unwrapped_MEGRE.*
*_desc-residual_MEGRE.*
*_desc-registered_MESE.*
# Transformations have no suffix in BIDS yet.
*_xfm.json
# Values of regions, angles between fibres and B0, and how scans were simulated have no suffix in BIDS.
*_regions.*
*_anglemap.*
*_simulation.json
"""
"""Patterns of .bidsignore: what derivatives hold beyond BIDS, and why it has another name or place."""


@dataclass(frozen=True)
class Series:
    """The echoes of one multi-echo acquisition, in order of their echo time.

    Parameters
    ----------
    magnitude, phase
        One file per echo; `phase` is empty for a spin-echo series.
    te_s
        Echo times in seconds.
    b0_t
        Field strength in tesla; None where the sidecars of a spin-echo series do not say.
    phase_units
        Units that the sidecar of the phase states, if any.
    b0_direction
        B0 in voxel axes where the sidecar states it (B0DirectionVoxelAxes), as for images that were
        registered to another pose of the head; None: along scanner z, as the affine has it.
    """

    magnitude: tuple[Path, ...]
    phase: tuple[Path, ...]
    te_s: tuple[float, ...]
    b0_t: float | None
    phase_units: str | None = None
    b0_direction: tuple[float, float, float] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All images of the series."""
        return self.magnitude + self.phase


@dataclass(frozen=True)
class Session:
    """What one subject brings from one visit: a gradient-echo series, perhaps a spin-echo one.

    Parameters
    ----------
    subject
        Label without `sub-`.
    entities
        Session, acquisition and run where the names have them, e.g. {"ses": "1"}.
    megre
        Multi-echo gradient echo.
    mese
        Multi-echo spin echo, None if there is none.
    """

    subject: str
    entities: Mapping[str, str]
    megre: Series
    mese: Series | None

    @property
    def name(self) -> str:
        """Start of all file names, e.g. sub-01_ses-1."""
        return _session_name(self.subject, self.entities)

    @property
    def folder(self) -> Path:
        """Folder of its images, relative to the root of a dataset."""
        return _folder(self.subject, self.entities.get("ses"))

    def output(self, root: Path, suffix: str, *, ext: str = ".nii.gz", **entities: str) -> Path:
        """Path of a derivative: name of the session, more entities (desc, part, …), suffix."""
        middle = [f"{key}-{value}" for key, value in entities.items()]
        return root / self.folder / ("_".join([self.name, *middle, suffix]) + ext)


def _session_name(subject: str, entities: Mapping[str, str]) -> str:
    return "_".join([f"sub-{subject}", *(f"{key}-{value}" for key, value in entities.items())])


def _folder(subject: str, session: str | None) -> Path:
    return Path(f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat")


def raw_path(
    root: Path,
    subject: str,
    suffix: str,
    *,
    echo: int,
    part: str | None = None,
    session: str | None = None,
    ext: str = ".nii.gz",
) -> Path:
    """Path of one raw echo, e.g. sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz."""
    names = [f"sub-{subject}", session and f"ses-{session}", f"echo-{echo}", part and f"part-{part}", suffix]
    return root / _folder(subject, session) / ("_".join(filter(None, names)) + ext)


def derivative_path(
    root: Path,
    subject: str,
    suffix: str,
    *,
    session: str | None = None,
    desc: str | None = None,
    ext: str = ".nii.gz",
) -> Path:
    """Path of a derivative, e.g. sub-01/anat/sub-01_desc-total_Chimap.nii.gz."""
    names = [f"sub-{subject}", session and f"ses-{session}", desc and f"desc-{desc}", suffix]
    return root / _folder(subject, session) / ("_".join(filter(None, names)) + ext)


def sidecar_of(image: Path) -> Path:
    """Path of the JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def is_ignored(name: str) -> bool:
    """Whether a file name matches a pattern of the `.bidsignore` that `write_dataset_description` writes."""
    patterns = (line for line in _NOT_IN_BIDS.splitlines() if not line.startswith("#"))
    return any(fnmatch(name, pattern) for pattern in patterns)


def write_dataset_description(
    root: Path, name: str, *, derivative: bool = False, raw: Path | None = None
) -> Path:
    """Write dataset_description.json of a raw or a derivative dataset.

    Parameters
    ----------
    root
        Of the dataset.
    name
        Of the dataset.
    derivative
        Whether its files were made of others.
    raw
        Dataset that it was made of, which its sidecars call `bids:raw:`.
    """
    content: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative" if derivative else "raw",
    }
    content["GeneratedBy"] = [{"Name": "chisep", "Version": chisep.__version__}]
    if raw is not None:
        content["DatasetLinks"] = {"raw": _link(root, raw)}
    if derivative:
        write_text(root / ".bidsignore", _NOT_IN_BIDS)
    return write_json(root / DESCRIPTION, content)


def _link(root: Path, raw: Path) -> str:
    return os.path.relpath(raw.absolute(), root.absolute())


def renew_link(root: Path, raw: Path) -> None:
    """Let the description of a dataset say where the raw one is now, should one of them have been moved.

    All else in the description is kept.

    Raises
    ------
    InputError
        If the description is no JSON object.
    """
    content = read_json(root / DESCRIPTION)
    links = content.get("DatasetLinks")
    links = dict(links) if isinstance(links, dict) else {}
    if links.get("raw") != _link(root, raw):
        write_json(root / DESCRIPTION, content | {"DatasetLinks": links | {"raw": _link(root, raw)}})


def read_sidecar(image: Path, root: Path) -> dict[str, Any]:
    """Metadata of an image from all sidecars that apply to it, the nearest winning.

    Parameters
    ----------
    image
        An image below `root`.
    root
        Root of the dataset.

    Raises
    ------
    InputError
        If a sidecar is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for file in sidecars(image, root):
        merged |= read_json(file)
    return merged


def sidecars(image: Path, root: Path) -> list[Path]:
    """JSON files that apply to an image below `root` by the inheritance principle, the nearest last."""
    wanted = entities(image.name)
    folders = [root, *[root / part for part in reversed(image.relative_to(root).parents) if part != Path()]]
    found: list[Path] = []
    for folder in folders:
        named = [(entities(file.name), file) for file in folder.glob("*.json")]
        applying = [(len(names), file) for names, file in named if names.items() <= wanted.items()]
        found += [file for _, file in sorted(applying)]
    return found


def entities(name: str) -> dict[str, str]:
    """Entities and suffix of a BIDS file name."""
    *pairs, suffix = name.split(".")[0].split("_")
    return {key: value for key, _, value in (p.partition("-") for p in pairs)} | {"suffix": suffix}


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object, with or without a byte-order mark.

    Raises
    ------
    InputError
        If it is no regular file, larger than 16 MiB, or no JSON object.
    """
    if not is_file(file):
        raise InputError(file, found="no such file", expected="a JSON object", fix="Check the path.")
    try:
        if file.stat().st_size > _LARGEST_JSON_BYTES:
            raise ValueError(f"more than {_LARGEST_JSON_BYTES} bytes")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            file,
            found=f"a file that is not JSON ({error})",
            expected="a JSON object",
            fix="Mend the sidecar.",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            file, found=f"a JSON {type(content).__name__}", expected="a JSON object", fix="Mend the sidecar."
        )
    return content


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
    """One gradient-echo series and what became of reading its session.

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
    """Find every session as `find_sessions` does, but go on where one cannot be used.

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
    wanted = [label.removeprefix("sub-") for label in participants]
    for label in wanted:
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
        if suffix != "MEGRE" or (wanted and subject not in wanted):
            continue
        entities = {key: value for key, value in unit if value}
        name = _session_name(subject, entities)
        if not all(map(is_label, (subject, *entities.values()))):
            shown = "".join(c if is_label(c) or c in "-_" else "?" for c in name)[:_LONGEST_NAME]
            found.append(DiscoveredSession(shown, error=_unusable_name(images[0])))
            continue
        try:
            megre = _series(root, suffix, images)
            mese_images = _partner(series, subject, unit)
            mese = _series(root, "MESE", mese_images) if mese_images else None
            _check_field_strength(megre, mese)
            found.append(DiscoveredSession(name, Session(subject, entities, megre, mese)))
        except InputError as error:
            found.append(DiscoveredSession(name, error=error))
    if not found:
        raise InputError(
            root,
            found="no multi-echo gradient-echo images" + (f" of {', '.join(wanted)}" if wanted else ""),
            expected="files like sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz with their part-phase",
            fix="Name the images as BIDS does, or bring single NIfTI files in with `chisep import`.",
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


def _series(root: Path, suffix: str, images: Sequence[Path]) -> Series:
    """Check the sidecars of the images of one series against each other and sort its echoes."""
    facts = {image: read_sidecar(image, root) for image in images}
    parts: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        parts[entities(image.name).get("part", "mag")].append(image)
    te = {image: _echo_time(image, facts[image], suffix) for image in images}
    magnitude = sorted(parts["mag"], key=lambda image: te[image])
    phase = sorted(parts["phase"], key=lambda image: te[image])
    if suffix == "MEGRE":
        _check_pairs(images[0], magnitude, phase, te)
    elif not magnitude:
        raise InputError(
            images[0],
            found="spin-echo images without magnitude",
            expected="magnitude images",
            fix="Add them.",
        )
    if len(magnitude) < 2:
        raise InputError(
            magnitude[0],
            found=f"the only echo of a {suffix} series",
            expected="at least two echoes",
            fix="Add the others (echo-1, echo-2, …), or remove the series; one echo tells no decay.",
        )
    _check_order(magnitude, te)
    _check_order(phase, te)
    return Series(
        tuple(magnitude),
        tuple(phase),
        tuple(te[image] for image in magnitude),
        _field_strength(facts),
        _phase_units(phase, facts),
        _b0_direction(magnitude[0], facts[magnitude[0]]),
    )


def _echo_time(image: Path, facts: Mapping[str, Any], suffix: str) -> float:
    value = facts.get("EchoTime")
    if value is None:
        raise InputError(
            sidecar_of(image),
            found="no EchoTime",
            expected="EchoTime in seconds",
            fix="Add it to the sidecar.",
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            sidecar_of(image),
            found=f"EchoTime {_short(value)}",
            expected="one number in seconds",
            fix="Correct the sidecar.",
        )
    if not 0 < value <= LONGEST_TE_S[suffix]:
        in_milliseconds = 0 < value <= 1000 * LONGEST_TE_S[suffix]
        raise InputError(
            sidecar_of(image),
            found=f"EchoTime {_short(value)}",
            expected=f"seconds, above 0 and at most {LONGEST_TE_S[suffix]:g}",
            fix=f"If it is in milliseconds, write {value / 1000:g}."
            if in_milliseconds
            else "Correct the sidecar.",
        )
    return float(value)


def _b0_direction(image: Path, facts: Mapping[str, Any]) -> tuple[float, float, float] | None:
    stated = facts.get("B0DirectionVoxelAxes")
    if stated is None:
        return None
    numbers = [c for c in stated if isinstance(c, int | float)] if isinstance(stated, list) else []
    # A bound, since integers of JSON may be too large for a float.
    usable = len(numbers) == 3 and all(abs(c) <= _LONGEST_DIRECTION for c in numbers)
    if not (usable and len(stated) == 3 and math.hypot(*numbers) >= 1 / _LONGEST_DIRECTION):
        raise InputError(
            sidecar_of(image),
            found=f"B0DirectionVoxelAxes {_short(stated)}",
            expected="three numbers, a vector with a length",
            fix="Correct the sidecar, or leave the field out if B0 is along scanner z.",
        )
    i, j, k = (float(component) for component in numbers)
    return i, j, k


def _phase_units(phase: Sequence[Path], facts: Mapping[Path, Mapping[str, Any]]) -> str | None:
    stated = {_units(image, facts[image]["Units"]): image for image in phase if "Units" in facts[image]}
    if len(stated) > 1:
        raise InputError(
            sidecar_of(next(iter(stated.values()))),
            found=f"phase in {' and in '.join(sorted(stated))} within one series",
            expected="one scale",
            fix="Correct Units in the sidecars.",
        )
    return next(iter(stated), None)


def _units(image: Path, stated: object) -> str:
    if not (isinstance(stated, str) and stated.isprintable() and len(stated) <= _LONGEST_UNIT):
        raise InputError(
            sidecar_of(image),
            found=f"Units {_short(stated)}",
            expected='a text such as "rad" or "arbitrary"',
            fix="Correct the sidecar, or leave the field out to have the scale recognised.",
        )
    return stated


def _short(value: object) -> str:
    """Quote what a file says, of any type and length, in a message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number without end"
    return text if len(text) <= _LONGEST_SAYING else text[:_LONGEST_SAYING] + "…"


def _check_pairs(
    anywhere: Path, magnitude: Sequence[Path], phase: Sequence[Path], te: Mapping[Path, float]
) -> None:
    if [te[m] for m in magnitude] != [te[p] for p in phase]:
        raise InputError(
            anywhere.parent,
            found=f"magnitude at TE {[te[m] for m in magnitude]} s, phase at TE {[te[p] for p in phase]} s",
            expected="a magnitude and a phase image (part-mag, part-phase) for every echo, "
            "with equal EchoTime",
            fix="Add the missing image or correct the sidecars.",
        )


def _echo_number(image: Path) -> int:
    label = entities(image.name).get("echo", "")
    if not (label.isascii() and label.isdigit() and len(label) <= _LONGEST_UNIT):
        raise InputError(
            image,
            found=f"echo label {_short(label)}" if label else "no echo label",
            expected="a number, as in echo-1",
            fix="Rename the image; split a file that holds all echoes, or use `chisep import`.",
        )
    return int(label)


def _check_order(images: Sequence[Path], te: Mapping[Path, float]) -> None:
    """Echo numbers and echo times must grow together, no time twice."""
    for before, after in pairwise(images):
        numbers = [_echo_number(image) for image in (before, after)]
        if te[before] == te[after] or numbers[0] >= numbers[1]:
            raise InputError(
                sidecar_of(after),
                found=f"echo {numbers[1]} at {te[after]:g} s beside echo {numbers[0]} at {te[before]:g} s",
                expected="echo times that grow with the echo number",
                fix="Correct EchoTime in the sidecars or the echo entity in the names.",
            )


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


def _field_strength(facts: Mapping[Path, Mapping[str, Any]]) -> float | None:
    stated = {
        image: fact["MagneticFieldStrength"]
        for image, fact in facts.items()
        if "MagneticFieldStrength" in fact
    }
    for image, value in stated.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and LOWEST_B0_T <= value <= HIGHEST_B0_T):
            raise InputError(
                sidecar_of(image),
                found=f"MagneticFieldStrength {_short(value)}",
                expected="tesla, e.g. 3",
                fix="Correct the sidecar.",
            )
    if len(set(stated.values())) > 1:
        raise InputError(
            sidecar_of(next(iter(stated))),
            found=f"MagneticFieldStrength {sorted(set(stated.values()))} within one series",
            expected="one field strength",
            fix="Correct the sidecars.",
        )
    return float(next(iter(stated.values()))) if stated else None
