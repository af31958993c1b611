"""BIDS: names of files, sidecars with their inheritance, and the description of a dataset.

Sidecars are inherited as the inheritance principle of BIDS 1.10 says. Names of outputs consist
of labels alone, which are letters and digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import chisep
from chisep.errors import InputError
from chisep.io.echoes import EchoImage, files_of
from chisep.io.files import write_json, write_text
from chisep.io.paths import is_file

BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
SESSION_ENTITIES = ("ses", "acq", "ce", "rec", "dir", "run")
"""Entities that tell one gradient-echo series of a subject from another, in BIDS' order."""
LONGEST_TE_S = {"MEGRE": 0.3, "MESE": 1.0}
"""An echo time above this is assumed to be in milliseconds."""
LOWEST_B0_T, HIGHEST_B0_T = 0.01, 25.0
"""Field strengths outside this range are assumed to be in another unit."""
_LARGEST_JSON_BYTES = 2**24
_NOT_IN_BIDS = """\
# Pages, texts and tables of apps have no place in BIDS.
*.html
group.tsv
group.json
group_*.tsv
group_*.json
methods.md
references.bib
logs/
# The validator does not match a folder within that of a subject with a slash at the end.
figures
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
        One image per echo; `phase` is empty for a spin-echo series.
    te_s
        Echo times in seconds.
    b0_t
        Field strength in tesla; None where the sidecars of a spin-echo series do not state it.
    phase_units
        Units that the sidecar of the phase states, if any.
    b0_direction
        B0 in voxel axes where the sidecar states it (B0DirectionVoxelAxes), as for images that were
        registered to another head orientation; None: along scanner z, as the affine has it.
    echo_numbers
        Numbers of the echoes as their names have them (echo-1, …): an echo that was left out leaves a gap.
    notes
        What was assumed or passed over, for the user.
    """

    magnitude: tuple[EchoImage, ...]
    phase: tuple[EchoImage, ...]
    te_s: tuple[float, ...]
    b0_t: float | None
    phase_units: str | None = None
    b0_direction: tuple[float, float, float] | None = None
    echo_numbers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the series."""
        return tuple(files_of(self.magnitude + self.phase))

    @property
    def first(self) -> Path:
        """File whose header and sidecar stand for the series."""
        return files_of(self.magnitude)[0]


@dataclass(frozen=True)
class Session:
    """One scan session of a subject: a gradient-echo series, and a spin-echo series if there is one.

    Parameters
    ----------
    subject
        Label without `sub-`.
    entities
        What tells its names from others of the subject (`SESSION_ENTITIES`), e.g. {"ses": "1"}.
    megre
        Multi-echo gradient echo.
    mese
        Multi-echo spin echo, None if there is none.
    notes
        What was assumed or passed over when it was put together, for the user.
    """

    subject: str
    entities: Mapping[str, str]
    megre: Series
    mese: Series | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Start of all file names, e.g. sub-01_ses-1."""
        return session_name(self.subject, self.entities)

    @property
    def folder(self) -> Path:
        """Folder of its images, relative to the root of a dataset."""
        return _folder(self.subject, self.entities.get("ses"))

    def output(self, root: Path, suffix: str, *, ext: str = ".nii.gz", **entities: str) -> Path:
        """Path of a derivative: name of the session, more entities (desc, part, …), suffix."""
        middle = [f"{key}-{value}" for key, value in entities.items()]
        return root / self.folder / ("_".join([self.name, *middle, suffix]) + ext)


def session_name(subject: str, entities: Mapping[str, str]) -> str:
    """Start of all file names of a session, e.g. sub-01_ses-1."""
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
        Whether its files are derived from others.
    raw
        Dataset that it is derived from, which its sidecars call `bids:raw:`.
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
    """Update the link to the raw dataset in the description of a derivative, if one of them was moved.

    All else in the description is kept.

    Raises
    ------
    InputError
        If the description is no JSON object.
    """
    try:
        content = read_json(root / DESCRIPTION)
    except InputError as error:
        raise InputError(
            error.source,
            found=error.found,
            expected="the description of the output dataset, a JSON object",
            fix="Restore it, or delete it: the same command then writes a new one. Nothing else is lost.",
        ) from error
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
    of_image = entities(image.name)
    folders = [root, *[root / part for part in reversed(image.relative_to(root).parents) if part != Path()]]
    found: list[Path] = []
    for folder in folders:
        named = [(entities(file.name), file) for file in folder.glob("*.json")]
        applying = [(len(names), file) for names, file in named if names.items() <= of_image.items()]
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
            fix="Correct the sidecar.",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            file,
            found=f"a JSON {type(content).__name__}",
            expected="a JSON object",
            fix="Correct the sidecar.",
        )
    return content
