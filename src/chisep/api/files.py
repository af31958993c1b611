"""The commands `separate` and `qsm`: maps from files to files, with sidecars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import chisep
from chisep import methods
from chisep.api.field_strength import field_strength
from chisep.api.maps import InversionOptions, IterationProgress, SeparationOptions, referenced_qsm, separate
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import output_directory, write_json
from chisep.networks.inference import NetworkOptions

SOURCE_FILES = {
    "paramagnetic": "desc-paramagnetic_Chimap.nii.gz",
    "diamagnetic": "desc-diamagnetic_Chimap.nii.gz",
    "total": "desc-total_Chimap.nii.gz",
}
"""File names of χ_pos, χ_neg and χ; names before `desc` (subject, session) may precede them."""
SIGMA_FILES = {
    "paramagnetic": "desc-paramagnetic_stat-std_Chimap.nii.gz",
    "diamagnetic": "desc-diamagnetic_stat-std_Chimap.nii.gz",
    "total": "desc-total_stat-std_Chimap.nii.gz",
}
"""File names of the predicted uncertainty of χ_pos, χ_neg and χ, for methods that predict it."""


@dataclass(frozen=True)
class SeparateConfig:
    """Input maps on one grid, and where the source maps go."""

    field: Path
    """Local field (NIfTI), in ppm unless --units states another unit."""
    mask: Path
    """Brain mask (NIfTI)."""
    out: Path
    """Folder for desc-paramagnetic_, desc-diamagnetic_ and desc-total_Chimap.nii.gz (ppm)."""
    separation: SeparationOptions
    """Method, field strength and D_r."""
    r2prime: Path | None = None
    """R2' in 1/s (NIfTI), for methods that read it."""
    r2star: Path | None = None
    """R2* in 1/s (NIfTI), for methods that read it."""
    qsm: Path | None = None
    """Susceptibility map in ppm (NIfTI), for methods that read one; if unset: computed from the field."""
    magnitude: Path | None = None
    """Magnitude image, 3-D or multi-echo 4-D (NIfTI), for edges and the pattern of the field's noise."""
    support: Path | None = None
    """Brain mask (NIfTI), if --mask is a smaller valid-field mask: sources of its rim act on the field."""
    field_sigma: Path | None = None
    """Standard deviation of the error of the field, in the unit of the field (NIfTI); if unset: estimated."""
    r2prime_sigma: Path | None = None
    """Standard deviation of the noise of R2' in 1/s (NIfTI); if unset: estimated."""


def separate_files(config: SeparateConfig, progress: IterationProgress | None = None) -> list[Path]:
    """Run `separate` on files and write the maps with their sidecars.

    Raises
    ------
    InputError
        As `separate`, and if the output folder cannot be written.
    """
    with output_directory(config.out):
        images = separate(
            config.field,
            config.r2prime,
            config.mask,
            r2star=config.r2star,
            qsm=config.qsm,
            magnitude=config.magnitude,
            support=config.support,
            field_sigma=config.field_sigma,
            r2prime_sigma=config.r2prime_sigma,
            options=config.separation,
            progress=progress,
        )
    b0_t = field_strength(config.separation.b0, (config.field, config.r2prime, config.r2star, config.qsm))
    facts = {
        "Method": config.separation.method,
        **_weights(config.separation.method, config.separation.network, chi_given=config.qsm is not None),
        **images.d_r,
        "MagneticFieldStrength": b0_t,
        **_stated_units(config.separation),
        "B0Direction": list(
            nifti.b0_direction_of(images.total.affine)
            if config.separation.b0_dir is None
            else config.separation.b0_dir
        ),
    }
    named = {SOURCE_FILES[key]: getattr(images, key) for key in SOURCE_FILES}
    named |= {SIGMA_FILES[key]: getattr(images, f"{key}_sigma") for key in SIGMA_FILES}
    return [_write(config.out / name, image, facts) for name, image in named.items() if image is not None]


@dataclass(frozen=True)
class QsmConfig:
    """Field map, and where the susceptibility map goes."""

    field: Path
    """Local field (NIfTI), in ppm unless --units states another unit."""
    mask: Path
    """Brain mask (NIfTI)."""
    out: Path
    """File to write: χ in ppm (.nii or .nii.gz)."""
    inversion: InversionOptions
    """Method of dipole inversion."""
    magnitude: Path | None = None
    """Magnitude image, 3-D or multi-echo 4-D (NIfTI), for edges and the pattern of the field's noise."""
    support: Path | None = None
    """Brain mask (NIfTI), if --mask is a smaller valid-field mask: sources of its rim act on the field."""
    field_sigma: Path | None = None
    """Standard deviation of the error of the field, in the unit of the field (NIfTI); if unset: estimated."""

    def __post_init__(self) -> None:
        if not self.out.name.endswith((".nii", ".nii.gz")):
            raise InputError(
                "--out",
                found=str(self.out),
                expected="a name that ends in .nii or .nii.gz",
                fix="Add the ending.",
            )


def qsm_files(config: QsmConfig, progress: IterationProgress | None = None) -> Path:
    """Run `qsm` on files and write the map with its sidecar.

    Raises
    ------
    InputError
        As `qsm`, and if the output cannot be written.
    """
    with output_directory(config.out.parent):
        image, reference = referenced_qsm(
            config.field,
            config.mask,
            magnitude=config.magnitude,
            support=config.support,
            field_sigma=config.field_sigma,
            options=config.inversion,
            progress=progress,
        )
    direction = (
        nifti.b0_direction_of(image.affine) if config.inversion.b0_dir is None else config.inversion.b0_dir
    )
    options = config.inversion
    used = _weights(options.method, options.network, chi_given=False)
    facts = {"Method": options.method, **used, "B0Direction": list(direction), **_stated_units(options)}
    facts |= reference
    return _write(config.out, image, facts)


def _stated_units(options: SeparationOptions | InversionOptions) -> dict[str, str]:
    return {} if options.units is None else {"FieldUnits": options.units}


def _weights(method: str, options: NetworkOptions, *, chi_given: bool) -> dict[str, Any]:
    used = methods.weights_used(method, options, chi_given=chi_given)
    return {"Weights": used} if used else {}


def _write(path: Path, image: nib.Nifti1Image, facts: dict[str, Any]) -> Path:
    write_json(
        bids.sidecar_of(path), {"Units": "ppm", **facts, "SoftwareVersion": f"chisep {chisep.__version__}"}
    )
    code = int(image.header["sform_code"])
    return nifti.save(path, np.asanyarray(image.dataobj), image.affine, code=code)
