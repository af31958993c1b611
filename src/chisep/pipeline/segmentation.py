"""Search for a segmentation of a session: derivatives datasets, or a FreeSurfer subjects directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chisep.errors import InputError
from chisep.io import bids
from chisep.io.paths import is_directory, is_file

_SPACES = ("", "T1w", "T2w", "FLAIR", "MEGRE", "GRE", "orig", "scanner", "individual", "native", "anat")
"""Values of the entity `space` for native space in scanner coordinates; others are template spaces."""
_DESCRIPTIONS = ("aparcaseg", "aseg", "synthseg", "")
"""Values of the entity `desc` of whole-brain segmentations, the finest first."""
_NOT_REGIONS = ("regions", "nuclei", "lesion")
"""Values of `desc` of label maps that chisep wrote, and of partial label maps."""
_FREESURFER = ("aparc+aseg.mgz", "aseg.mgz", "synthseg.mgz")


@dataclass(frozen=True)
class Segmentation:
    """Segmentation of a subject, on any grid.

    Parameters
    ----------
    labels
        Label map: NIfTI, or FreeSurfer's .mgz.
    table
        Its label table (index, name), if there is one.
    anatomy
        Image that was segmented, or one in its space, for registration; None if none was found.
    """

    labels: Path
    table: Path | None = None
    anatomy: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the segmentation."""
        return tuple(path for path in (self.labels, self.table, self.anatomy) if path is not None)


def find_segmentation(
    session: bids.Session, raw: Path, out: Path, given: Path | None = None
) -> Segmentation | None:
    """Find a segmentation of this session.

    Parameters
    ----------
    session
        Raw series.
    raw, out
        Raw and derivatives dataset.
    given
        Derivatives dataset or FreeSurfer's subjects directory to look in; if None, those in derivatives/
        of the raw dataset in alphabetical order.

    Raises
    ------
    InputError
        If the given dataset has none.
    """
    if given is None:
        own = out.resolve()
        roots = sorted((raw / "derivatives").glob("*"))
        roots = [root for root in roots if is_directory(root) and root.resolve() != own]
    else:
        roots = [given]
    for root in roots:
        found = _dseg(session, root, raw) or _freesurfer(session, root)
        if found is not None:
            return found
    if given is not None:
        raise InputError(
            given,
            found=f"no segmentation of {session.name}",
            expected="…_dseg.nii.gz in scanner coordinates, or mri/aseg.mgz in FreeSurfer's subjects "
            "directory, for --regions",
            fix="Add it, or leave --regions out to register an atlas.",
        )
    return None


def _anat_folders(session: bids.Session, root: Path) -> list[Path]:
    """Image folders of the session in a dataset, then that of its subject."""
    return [root / session.folder, root / f"sub-{session.subject}" / "anat"]


def _dseg(session: bids.Session, root: Path, raw: Path) -> Segmentation | None:
    for folder in _anat_folders(session, root):
        for image in sorted(_images_in(session, folder, "dseg"), key=partial(_rank, session)):
            names = bids.entities(image.name)
            if names.get("desc") not in _NOT_REGIONS:
                return Segmentation(image, _table_of(image, root), _anatomy(session, image, raw))
    return None


def _images_in(session: bids.Session, folder: Path, suffix: str) -> Iterator[Path]:
    """Images of the session in native space."""
    for path in folder.glob(f"sub-{session.subject}_*{suffix}.nii*"):
        names = bids.entities(path.name)
        own = (
            names.get("ses", session.entities.get("ses")) == session.entities.get("ses")
            and names["suffix"] == suffix
            and names.get("space", "") in _SPACES
            and "hemi" not in names
        )
        if own and path.name.endswith((".nii", ".nii.gz")) and is_file(path):
            yield path


def _rank(session: bids.Session, image: Path) -> tuple[int, int, int, str]:
    """Sort key: whole-brain segmentations first, then those that share most entities with the session."""
    names = bids.entities(image.name)
    desc = names.get("desc", "")
    shared = sum(names.get(key) == value for key, value in session.entities.items())
    place = _DESCRIPTIONS.index(desc) if desc in _DESCRIPTIONS else len(_DESCRIPTIONS)
    return place, -shared, len(names), image.name


def _anatomy(session: bids.Session, labels: Path, raw: Path) -> Path | None:
    """Find a T1- or T2-weighted image in the space of a segmentation: beside it, else the raw one."""
    space = bids.entities(labels.name).get("space", "")
    for suffix in (space,) if space in ("T1w", "T2w") else ("T1w", "T2w"):
        for folder in (labels.parent, *_anat_folders(session, raw)):
            for path in sorted(_images_in(session, folder, suffix), key=partial(_rank, session)):
                if bids.entities(path.name).get("space", "") in ("", space, suffix):
                    return path
    return None


def _freesurfer(session: bids.Session, root: Path) -> Segmentation | None:
    subject, visit = f"sub-{session.subject}", session.entities.get("ses")
    folders = [root / subject]
    if visit:
        folders = [root / f"{subject}_ses-{visit}", root / subject / f"ses-{visit}", *folders]
    for folder in folders:
        for name in _FREESURFER:
            if is_file(folder / "mri" / name):
                anatomy = folder / "mri" / "T1.mgz"
                return Segmentation(folder / "mri" / name, None, anatomy if is_file(anatomy) else None)
    return None


def _table_of(labels: Path, root: Path) -> Path | None:
    """Label table of a segmentation by the BIDS inheritance principle, the nearest first."""
    names = bids.entities(labels.name)
    for folder in labels.parents:
        tables = [
            path
            for path in folder.glob("*dseg.tsv")
            if is_file(path)
            and all(names.get(key) == value for key, value in bids.entities(path.name).items())
        ]
        if tables:
            return max(tables, key=lambda path: (len(bids.entities(path.name)), path.name))
        if folder == root:
            break
    return None
