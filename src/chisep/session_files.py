"""The files of one session: where they lie, and reading and writing them on the grid of the gradient echo."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.io import bids, nifti
from chisep.report.session import SessionImages
from chisep.types import Grid


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
        self.qsm = self._path("Chimap", desc="qsm")
        self.chi_pos, self.chi_neg, self.chi = (
            self._path("Chimap", desc=desc) for desc in ("paramagnetic", "diamagnetic", "total")
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

    def images(self, *, has_b1: bool) -> SessionImages:
        """Read all that the report shows; errors as of `array`.

        Parameters
        ----------
        has_b1
            Whether the transmit field was fitted.
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
        )

    def label_map(self) -> Path | None:
        """First segmentation of the session in a derivatives dataset, if there is one on this grid."""
        root = self.raw / "derivatives"
        for path in sorted(root.glob(f"*/{self.session.folder}/sub-{self.session.subject}*_dseg.nii.gz")):
            if nifti.is_same_grid(self.first, nifti.load(path)):
                return path
        return None

    def regions(self, path: Path) -> tuple[NDArray[np.int32], dict[int, str]]:
        """Labels of a segmentation, and their names where a look-up table lies beside it or above."""
        labels = np.rint(self.array(path)).astype(np.int32)
        for folder in path.relative_to(self.raw / "derivatives").parents:
            for table in sorted((self.raw / "derivatives" / folder).glob("*dseg.tsv")):
                with table.open(encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file, delimiter="\t"))
                return labels, {int(row["index"]): row["name"] for row in rows}
        return labels, {}
