"""Input folder of a stage: images on one grid, and the parameters of the acquisition."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.io import nifti
from chisep.types import Affine, Echoes, Grid, MaskVolume, Volume

PARAMETERS = "params.json"


class Parameters(msgspec.Struct):
    """Content of params.json: echo times in s, field strength in T, B0 direction in voxel axes."""

    B0: float
    B0_dir: tuple[float, float, float]
    TE: list[float] = []


class Inputs:
    """Files of an input folder, each read when it is first used.

    Parameters
    ----------
    folder
        Folder of a run of QSM-CI.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Path of an image."""
        return self.folder / f"{name}.nii.gz"

    def has(self, name: str) -> bool:
        """Whether there is an image of this name."""
        return self.path(name).is_file()

    @cached_property
    def parameters(self) -> Parameters:
        """Parameters of the acquisition.

        Raises
        ------
        InputError
            If the file is missing or not what the benchmark states.
        """
        file = self.folder / PARAMETERS
        try:
            return msgspec.convert(json.loads(file.read_text(encoding="utf-8")), Parameters, strict=False)
        except (OSError, ValueError, msgspec.ValidationError) as error:
            raise InputError(
                file,
                found=f"no usable parameters ({error})",
                expected="JSON with B0 (T), B0_dir (three numbers) and, for echoes, TE (s)",
                fix="Write params.json as the QSM-CI contract says.",
            ) from error

    @cached_property
    def _mask(self) -> nifti.Image:
        read = nifti.load(self.path("mask"))
        return nifti.checked_mask(read.data > 0.5, read.affine, read.source)

    @property
    def mask(self) -> MaskVolume:
        """Brain mask, shape (i, j, k)."""
        return torch.from_numpy(self._mask.data)

    @property
    def _reference(self) -> nifti.Image:
        """Image that states the grid: the mask, which only brain extraction does not have."""
        if self.has("mask"):
            return self._mask
        image = self._echo_image("magnitude")
        return nifti.Image(image.data[..., 0], image.affine, image.source, image.place)

    @property
    def grid(self) -> Grid:
        """Grid of the inputs, with the B0 direction of the parameters."""
        return nifti.grid_of(self._reference, self.parameters.B0_dir)

    @property
    def affine(self) -> Affine:
        """Affine of the inputs."""
        return self._reference.affine

    def volume(self, name: str) -> Volume:
        """Read a map on the grid of the mask, shape (i, j, k).

        Raises
        ------
        InputError
            If it is missing, unreadable or on another grid.
        """
        image = nifti.load(self.path(name))
        nifti.require_same_grid(self._mask, image)
        return torch.from_numpy(image.data)

    def echoes(self, name: str) -> Echoes:
        """Read echoes on the grid of the mask, shape (echo, i, j, k).

        Raises
        ------
        InputError
            If they are missing, unreadable, on another grid, or not as many as the echo times.
        """
        image = self._echo_image(name)
        if self.has("mask"):
            first = nifti.Image(image.data[..., 0], image.affine, image.source, image.place)
            nifti.require_same_grid(self._mask, first)
        count, expected = image.data.shape[-1], len(self.te_s)
        if count != expected:
            raise InputError(
                self.path(name),
                found=f"{count} echoes",
                expected=f"{expected}, as many as the echo times of {PARAMETERS}",
                fix="Correct TE, or stack all echoes along the last axis.",
            )
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.data, -1, 0)))

    def _echo_image(self, name: str) -> nifti.Image:
        path = self.path(name)
        if path.is_file() and nifti.number_of_axes(path) == 3:
            image = nifti.load(path)
            return nifti.Image(image.data[..., None], image.affine, image.source, image.place)
        return nifti.load(path, ndim=4)

    def combined_magnitude(self) -> Volume | None:
        """Root of the sum of squares of the magnitudes; None if there are none."""
        if not self.has("magnitude"):
            return None
        data: Tensor = torch.from_numpy(self._echo_image("magnitude").data)
        return data.square().sum(-1).sqrt()

    @property
    def te_s(self) -> list[float]:
        """Echo times in seconds.

        Raises
        ------
        InputError
            If the parameters have none.
        """
        if not self.parameters.TE:
            raise InputError(
                self.folder / PARAMETERS,
                found="no echo times",
                expected="TE, a list of seconds",
                fix="Add TE, for example [0.004, 0.012].",
            )
        return list(self.parameters.TE)
