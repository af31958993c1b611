"""Import of NIfTI files that are not BIDS into a BIDS dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import write_json
from chisep.io.paths import require_inside, require_label


@dataclass(frozen=True)
class ImportConfig:
    """Settings of the import of one session."""

    bids: Positional[Path]
    """BIDS dataset to create or to add a subject to."""
    magnitude: tuple[Path, ...]
    """Gradient-echo magnitude: one 4-D NIfTI, echoes along the last axis, or one 3-D NIfTI per echo."""
    phase: tuple[Path, ...]
    """Gradient-echo phase, likewise, in any scale; kept as it is, scaled later."""
    te: tuple[float, ...]
    """Echo times of the gradient echo in seconds, one per echo."""
    b0: float
    """Field strength in tesla."""
    spin_echo: tuple[Path, ...] = ()
    """Multi-echo spin-echo magnitude, likewise."""
    te_spin_echo: tuple[float, ...] = ()
    """Echo times of the spin echo in seconds, one per echo."""
    subject: str = "01"
    """Label of the participant, letters and digits."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the gradient echo, for files whose affine is not the scanner's."""

    def __post_init__(self) -> None:
        require_label(self.subject, "--subject")
        for option, times, longest_s in (
            ("--te", self.te, bids.LONGEST_TE_S["MEGRE"]),
            ("--te-spin-echo", self.te_spin_echo, bids.LONGEST_TE_S["MESE"]),
        ):
            if not all(before < after for before, after in pairwise((0.0, *times, longest_s))):
                raise InputError(
                    option,
                    found=", ".join(f"{te:g}" for te in times),
                    expected=f"seconds that grow from echo to echo, above 0 and below {longest_s:g}",
                    fix="Give times in seconds, in the order of the echoes.",
                )
        if not bids.LOWEST_B0_T <= self.b0 <= bids.HIGHEST_B0_T:
            raise InputError(
                "--b0", found=f"{self.b0:g}", expected="tesla, e.g. 3", fix="Give the field strength."
            )
        if bool(self.spin_echo) != bool(self.te_spin_echo):
            raise InputError(
                "--te-spin-echo",
                found="only one of --spin-echo and --te-spin-echo",
                expected="both or none",
                fix="Give the other as well.",
            )


def import_session(config: ImportConfig) -> list[Path]:
    """Write one subject of a BIDS raw dataset from files that are not BIDS.

    Returns
    -------
    list of Path
        The images written.

    Raises
    ------
    InputError
        If a file cannot be used, grids differ, the number of echo times is not that of the echoes, or the
        participant is there already.
    OutputError
        If the dataset cannot be written, or a link in it leads elsewhere.
    """
    magnitude = _echoes(config.magnitude, config.te)
    _warn_of_place(magnitude, config.b0_dir)
    phase = _echoes(config.phase, config.te)
    nifti.require_same_grid(magnitude, phase)
    spin_echo = _echoes(config.spin_echo, config.te_spin_echo) if config.spin_echo else None
    _refuse_overwriting(config)
    if not (config.bids / bids.DESCRIPTION).exists():
        bids.write_dataset_description(config.bids, "Imported by chisep")
    written = _write(config, magnitude, "MEGRE", config.te, part="mag")
    written += _write(config, phase, "MEGRE", config.te, part="phase")
    if spin_echo is not None:
        written += _write(config, spin_echo, "MESE", config.te_spin_echo)
    return written


def _warn_of_place(magnitude: nifti.Image, b0_dir: tuple[float, float, float] | None) -> None:
    """Say what is assumed of the place of the gradient echo; refuse one that does not tell B0."""
    nifti.grid_of(magnitude, b0_dir)
    for note in nifti.place_notes(magnitude, b0_given=b0_dir is not None):
        warnings.warn(note, ChisepWarning, stacklevel=3)


def _refuse_overwriting(config: ImportConfig) -> None:
    folder = bids.raw_path(config.bids, config.subject, "MEGRE", echo=1).parent
    if any(folder.glob("*_MEGRE.nii*")):
        raise InputError(
            folder,
            found="gradient-echo images of this participant",
            expected="a participant who is not there yet",
            fix="Choose another --subject, or remove the old files.",
        )


def _echoes(paths: Sequence[Path], te_s: Sequence[float]) -> nifti.Image:
    """Read the echoes of one 4-D file, or of one 3-D file each; shape (i, j, k, echo)."""
    if len(paths) == len(te_s):
        images = [nifti.load(path) for path in paths]
        for image in images[1:]:
            nifti.require_same_grid(images[0], image)
        return replace(images[0], data=np.stack([image.data for image in images], axis=-1))
    path = paths[0]
    if len(paths) != 1:
        raise InputError(
            path,
            found=f"{len(paths)} files",
            expected=f"one 4-D file, or {len(te_s)} 3-D files, one for each echo time given",
            fix="Give one file and one echo time in seconds for every echo.",
        )
    image = nifti.load(path, ndim=4)
    if image.data.shape[3] != len(te_s):
        raise InputError(
            path,
            found=f"{image.data.shape[3]} echoes",
            expected=f"{len(te_s)}, one for each echo time given",
            fix="Give one echo time in seconds for every echo.",
        )
    return image


def _write(
    config: ImportConfig, image: nifti.Image, suffix: str, te_s: Sequence[float], part: str | None = None
) -> list[Path]:
    written = []
    for echo, time in enumerate(te_s, start=1):
        path = bids.raw_path(config.bids, config.subject, suffix, echo=echo, part=part)
        require_inside(config.bids, path)
        facts: dict[str, object] = {"EchoTime": time, "MagneticFieldStrength": config.b0}
        if config.b0_dir is not None and suffix == "MEGRE":
            facts["B0DirectionVoxelAxes"] = list(config.b0_dir)
        write_json(bids.sidecar_of(path), facts | ({"Units": "arbitrary"} if part == "phase" else {}))
        written.append(nifti.save(path, np.ascontiguousarray(image.data[..., echo - 1]), image.affine))
    return written
