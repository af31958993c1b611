"""The files of one session: where they lie, and reading and writing them on the grid of the gradient echo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.paths import is_directory, is_file
from chisep.report.session import SessionImages
from chisep.types import Grid

_SPACES = ("", "T1w", "T2w", "FLAIR", "MEGRE", "GRE", "orig", "scanner", "individual", "native", "anat")
"""Values of the entity `space` that say: this head, in scanner coordinates; others are of a template."""
_DESCRIPTIONS = ("aparcaseg", "aseg", "synthseg", "")
"""Values of the entity `desc` of segmentations of all the brain, the finest first."""
_NOT_REGIONS = ("regions", "lesion")
"""What chisep itself wrote, and what is not of all the brain."""
_FREESURFER = ("aparc+aseg.mgz", "aseg.mgz", "synthseg.mgz")


@dataclass(frozen=True)
class Segmentation:
    """A segmentation of a session's head, on any grid.

    Parameters
    ----------
    labels
        Label map: NIfTI, or FreeSurfer's .mgz.
    table
        Its label table (index, name), if there is one.
    anatomy
        Image from which it was made, or one in its space: tells where the head lay; None if none was found.
    """

    labels: Path
    table: Path | None = None
    anatomy: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return tuple(path for path in (self.labels, self.table, self.anatomy) if path is not None)


class SessionFiles:
    """Derivatives of a session by what they are.

    Parameters
    ----------
    session
        Raw series.
    raw, out
        Raw and derivatives dataset.
    device
        Where volumes are read to.
    """

    def __init__(self, session: bids.Session, raw: Path, out: Path, device: str) -> None:
        self.session, self.raw, self.out, self.device = session, raw, out, device
        self.report = out / f"{session.name}.html"
        self.mask = self._path("mask", desc="brain")
        self.unwrapped = self._path("MEGRE", part="phase", desc="unwrapped")
        self.residual = self._path("MEGRE", part="phase", desc="residual")
        self.quality = self._path("probseg", desc="phasequality")
        self.total_field = self._path("fieldmap", desc="total")
        self.field_sigma = self._path("fieldmap", stat="std")
        self.reliable_mask = self._path("mask", desc="reliable")
        self.local_field = self._path("fieldmap", desc="local")
        self.eroded_mask = self._path("mask", desc="eroded")
        self.transform = self._path("xfm", ext=".json", **{"from": "MEGRE", "to": "MESE"})
        self.spin_echo = self._path("MESE", desc="registered")
        self.r2star, self.r2, self.r2prime = (self._path(s) for s in ("R2starmap", "R2map", "R2primemap"))
        self.r2star_sigma, self.r2_sigma, self.r2prime_sigma = (
            self._path(s, stat="std") for s in ("R2starmap", "R2map", "R2primemap")
        )
        self.b1 = self._path("TB1map")
        self.calibration = self._path("relaxivity", ext=".json")
        self.labels, self.label_names = (
            self._path("dseg", ext=e, desc="regions") for e in (".nii.gz", ".tsv")
        )
        self.region_values, self.region_columns = (self._path("regions", ext=e) for e in (".tsv", ".json"))
        self.qsm = self._path("Chimap", desc="qsm")
        self.qsm_sigma = self._path("Chimap", desc="qsm", stat="std")
        self.chi_pos, self.chi_neg, self.chi = (
            self._path("Chimap", desc=desc) for desc in ("paramagnetic", "diamagnetic", "total")
        )
        self.chi_pos_sigma, self.chi_neg_sigma = (
            self._path("Chimap", desc=desc, stat="std") for desc in ("paramagnetic", "diamagnetic")
        )

    def _path(self, suffix: str, *, ext: str = ".nii.gz", **entities: str) -> Path:
        return self.session.output(self.out, suffix, ext=ext, **entities)

    @cached_property
    def first(self) -> nifti.Image:
        """First gradient echo: its grid is that of every output."""
        return nifti.load(self.session.megre.magnitude[0])

    @cached_property
    def grid(self) -> Grid:
        """Grid of the gradient echo, with B0 as the sidecar has it, else along scanner z."""
        return nifti.grid_of(self.first, self.session.megre.b0_direction)

    def array(self, path: Path) -> NDArray[np.float32]:
        """Read a map.

        Raises
        ------
        InputError
            If it is unreadable, or on another grid than the gradient echo.
        """
        image = nifti.load(path)
        nifti.require_same_grid(self.first, image)
        return image.data

    def load(self, path: Path) -> Tensor:
        """Read a map to the device; errors as of `array`."""
        return torch.from_numpy(self.array(path)).to(self.device)

    def load_mask(self, path: Path) -> Tensor:
        """Read a mask to the device; errors as of `array`."""
        return self.load(path) > 0

    def echoes(self, paths: Sequence[Path]) -> Tensor:
        """Read several maps to the device, shape (map, i, j, k); errors as of `array`."""
        return torch.stack([self.load(path) for path in paths])

    def save(self, path: Path, volume: Tensor) -> None:
        """Write a map, or a mask as integers; (i, j, k), or (i, j, k, echo)."""
        dtype = np.uint8 if volume.dtype == torch.bool else np.float32
        nifti.save(path, volume.cpu().numpy(), self.first.affine, dtype=dtype)

    def images(self, *, has_b1: bool, chi_sigmas: Sequence[Path] = ()) -> SessionImages:
        """Read all that the report shows; errors as of `array`.

        Parameters
        ----------
        has_b1
            Whether the transmit field was fitted.
        chi_sigmas
            Maps of the noise of χ_pos and χ_neg, if the method makes them.
        """
        megre, mese = self.session.megre, self.session.mese
        return SessionImages(
            affine=self.first.affine,
            te_s=megre.te_s,
            magnitude=np.stack([self.array(path) for path in megre.magnitude]),
            unwrapped_rad=np.moveaxis(nifti.load(self.unwrapped, ndim=4).data, -1, 0),
            residual_rad=self.array(self.residual),
            quality=self.array(self.quality),
            mask=self.array(self.mask) > 0,
            reliable_mask=self.array(self.reliable_mask) > 0,
            eroded_mask=self.array(self.eroded_mask) > 0,
            total_field_ppm=self.array(self.total_field),
            field_sigma_ppm=self.array(self.field_sigma),
            local_field_ppm=self.array(self.local_field),
            spin_echo=self.array(self.spin_echo) if mese else None,
            r2star_hz=self.array(self.r2star),
            r2_hz=self.array(self.r2) if mese else None,
            r2prime_hz=self.array(self.r2prime),
            r2prime_sigma_hz=self.array(self.r2prime_sigma),
            b1=self.array(self.b1) if has_b1 else None,
            qsm_ppm=self.array(self.qsm),
            chi_pos_ppm=self.array(self.chi_pos),
            chi_neg_ppm=self.array(self.chi_neg),
            chi_ppm=self.array(self.chi),
            chi_sigmas_ppm=tuple(self.array(path) for path in chi_sigmas),
            labels=self.label_array(),
        )

    def label_array(self) -> NDArray[np.int32]:
        """Read the regions; errors as of `array`."""
        return np.rint(self.array(self.labels)).astype(np.int32)

    def segmentation(self, given: Path | None = None) -> Segmentation | None:
        """Find a segmentation of this session.

        Parameters
        ----------
        given
            Derivatives dataset or FreeSurfer's subjects directory to look in; if None, those in derivatives/
            of the raw dataset in alphabetical order.

        Raises
        ------
        InputError
            If it is not in the dataset that was given.
        """
        if given is None:
            own = self.out.resolve()
            roots = sorted((self.raw / "derivatives").glob("*"))
            roots = [root for root in roots if is_directory(root) and root.resolve() != own]
        else:
            roots = [given]
        for root in roots:
            found = self._dseg(root) or self._freesurfer(root)
            if found is not None:
                return found
        if given is not None:
            raise InputError(
                given,
                found=f"no segmentation of {self.session.name}",
                expected="…_dseg.nii.gz in scanner coordinates, or mri/aseg.mgz in FreeSurfer's subjects "
                "directory, as --regions says",
                fix="Add it, or leave --regions out to have an atlas registered.",
            )
        return None

    def _anat_folders(self, root: Path) -> list[Path]:
        """Folders of the session's images in a dataset; one of the subject serves all its sessions."""
        return [root / self.session.folder, root / f"sub-{self.session.subject}" / "anat"]

    def _dseg(self, root: Path) -> Segmentation | None:
        for folder in self._anat_folders(root):
            for image in sorted(self._images_in(folder, "dseg"), key=self._rank):
                names = bids.entities(image.name)
                if names.get("desc") not in _NOT_REGIONS:
                    return Segmentation(image, _table_of(image, root), self._anatomy(image))
        return None

    def _images_in(self, folder: Path, suffix: str) -> Iterator[Path]:
        """Images of this head in its own space."""
        for path in folder.glob(f"sub-{self.session.subject}_*{suffix}.nii*"):
            names = bids.entities(path.name)
            own = (
                names.get("ses", self.session.entities.get("ses")) == self.session.entities.get("ses")
                and names["suffix"] == suffix
                and names.get("space", "") in _SPACES
                and "hemi" not in names
            )
            if own and path.name.endswith((".nii", ".nii.gz")) and is_file(path):
                yield path

    def _rank(self, image: Path) -> tuple[int, int, int, str]:
        """Order of segmentations: all the brain first, then those that share most of the session's names."""
        names = bids.entities(image.name)
        desc = names.get("desc", "")
        shared = sum(names.get(key) == value for key, value in self.session.entities.items())
        place = _DESCRIPTIONS.index(desc) if desc in _DESCRIPTIONS else len(_DESCRIPTIONS)
        return place, -shared, len(names), image.name

    def _anatomy(self, labels: Path) -> Path | None:
        """Find a T1- or T2-weighted image in the space of a segmentation: beside it, else the raw one."""
        space = bids.entities(labels.name).get("space", "")
        for suffix in (space,) if space in ("T1w", "T2w") else ("T1w", "T2w"):
            for folder in (labels.parent, *self._anat_folders(self.raw)):
                for path in sorted(self._images_in(folder, suffix), key=self._rank):
                    if bids.entities(path.name).get("space", "") in ("", space, suffix):
                        return path
        return None

    def _freesurfer(self, root: Path) -> Segmentation | None:
        subject, session = f"sub-{self.session.subject}", self.session.entities.get("ses")
        folders = [root / subject]
        if session:
            folders = [root / f"{subject}_ses-{session}", root / subject / f"ses-{session}", *folders]
        for folder in folders:
            for name in _FREESURFER:
                if is_file(folder / "mri" / name):
                    anatomy = folder / "mri" / "T1.mgz"
                    return Segmentation(folder / "mri" / name, None, anatomy if is_file(anatomy) else None)
        return None


def _table_of(labels: Path, root: Path) -> Path | None:
    """Label table of a segmentation by the inheritance of BIDS, the nearest first."""
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
