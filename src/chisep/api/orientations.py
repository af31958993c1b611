"""COSMOS of single maps: fields of several head orientations that are registered already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch

import chisep
from chisep.api.field_strength import stated_field_strength
from chisep.api.images import ImageLike, Images
from chisep.api.maps import IterationProgress, check_results, show_warnings
from chisep.api.units import FieldUnits, check_field_units, check_units, field_in_ppm
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import output_directory, write_json
from chisep.solvers.cosmos import CosmosConfig, condition_number, spread_deg
from chisep.solvers.cosmos import cosmos as solve
from chisep.types import Maps, Volume

B0Directions = Sequence[Sequence[float]]
"""Vectors along B0 in voxel axes of the common grid, one for each field."""


@dataclass(frozen=True)
class CosmosOptions:
    """Options of COSMOS."""

    units: FieldUnits | None = None
    """Unit of the fields and their σ, which are converted to ppm; if unset: ppm, which values have to agree
    with."""
    b0: float | None = None
    """Field strength in tesla, for fields in Hz or rad/s; if unset: from the sidecar of a field."""
    device: str = "cpu"
    """Device of the computation: cpu, cuda, cuda:1, …"""
    solver: CosmosConfig = field(default_factory=CosmosConfig)
    """Settings of the solver."""

    def __post_init__(self) -> None:
        check_field_units(self.units)


def cosmos(
    fields: Sequence[ImageLike],
    mask: ImageLike | Sequence[ImageLike],
    b0_directions: B0Directions,
    *,
    sigmas: Sequence[ImageLike] = (),
    support: ImageLike | None = None,
    reference: ImageLike | None = None,
    options: CosmosOptions | None = None,
    voxel_mm: Sequence[float] | None = None,
    progress: IterationProgress | None = None,
) -> nib.Nifti1Image:
    """COSMOS: susceptibility map from local fields of several head orientations, registered to one grid.

    Parameters
    ----------
    fields
        Local fields in ppm, two or more, each of shape (i, j, k) on one grid.
    mask
        Where the fields are known, same grid: one mask, or one for each field.
    b0_directions
        Vector along B0 in voxel axes of that grid, one for each field. A head that turned by R sees Rᵀ b.
    sigmas
        Standard deviation of the error of each field, in the unit of the fields, 0 where nothing was
        measured; equal weights if empty.
    support
        Where χ may be, such as the brain mask, same grid; wherever any field is if None.
    reference
        Region in which the mean of χ is set to 0, same grid.
    options
        Units, device, settings of the solver.
    voxel_mm
        Voxel edges in mm, for arrays.
    progress
        Called with the number of finished iterations and their maximum number.

    Returns
    -------
    nibabel.Nifti1Image
        χ in ppm on the grid of the fields.

    Raises
    ------
    InputError
        If an input cannot be used, grids differ, there are fewer than two fields or not one B0 direction of
        some length for each, or values are not of the units stated here; a `ResultError` if the result
        cannot be right.

    Warns
    -----
    ChisepWarning
        If the orientations are two, or differ too little.
    """
    options = options or CosmosOptions()
    if len(fields) == 0:
        raise InputError("fields", found="none", expected="two or more", fix="Give the local fields.")
    images = Images(fields[0], voxel_mm)
    _same_number(fields, mask, b0_directions, sigmas)
    each = _several(mask)
    masks = [images.mask(one) for one in each] * (len(fields) if len(each) == 1 else 1)
    grid = images.grid(b0_directions[0])
    b0_t = options.b0 or stated_field_strength(tuple(fields))
    volumes, noise = [], []
    for number, (one, inside) in enumerate(zip(fields, masks, strict=True)):
        known = images.volume(sigmas[number], "sigma") if sigmas else None
        maps = Maps(images.volume(one, "field"), inside, grid, field_sigma_ppm=known, b0_t=b0_t)
        maps = field_in_ppm(maps, options.units, b0_t)
        show_warnings(check_units(maps, b0_t, stated=options.units is not None))
        volumes.append(maps.field_ppm)
        noise.append(maps.field_sigma_ppm)

    def onto(stack: list[Volume]) -> torch.Tensor:
        return torch.stack(stack).to(options.device)

    found = solve(
        onto(volumes),
        onto(masks),
        b0_directions,
        grid,
        options.solver,
        sigmas_ppm=onto([one for one in noise if isinstance(one, torch.Tensor)]) if sigmas else None,
        support=None if support is None else images.mask(support).to(options.device),
        reference=None if reference is None else images.mask(reference).to(options.device),
        progress=None if progress is None else lambda _what, done, total: progress(done, total),
    )
    chi = found.chi_ppm.cpu()
    check_results({"qsm": chi}, "COSMOS", any_size=options.units is not None)
    show_warnings(found.convergence.warnings)
    return images.wrap(chi)


def _several(mask: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    return list(mask) if isinstance(mask, list | tuple) else [cast("ImageLike", mask)]


def _same_number(
    fields: Sequence[ImageLike],
    mask: ImageLike | Sequence[ImageLike],
    b0_directions: B0Directions,
    sigmas: Sequence[ImageLike],
) -> None:
    counts = {"B0 directions": len(b0_directions)}
    if isinstance(mask, list | tuple):
        counts["masks"] = len(mask)
    if sigmas:
        counts["σ maps"] = len(sigmas)
    for what, count in counts.items():
        if count != len(fields):
            raise InputError(
                what,
                found=f"{count} for {len(fields)} fields",
                expected="one for each field, in their order",
                fix="Check the list.",
            )


@dataclass(frozen=True, kw_only=True)
class CosmosFilesConfig:
    """Fields of several head orientations on one grid, and where the susceptibility map goes."""

    field: tuple[Path, ...]
    """Local fields (NIfTI) on one grid, two or more, in ppm unless --units states another unit."""
    b0_dir: tuple[float, ...]
    """B0 directions in voxel axes of that grid: three numbers for each field, in their order."""
    mask: tuple[Path, ...]
    """Where the fields are known (NIfTI): one mask, or one for each field."""
    out: Path
    """File to write: χ in ppm (.nii or .nii.gz)."""
    sigma: tuple[Path, ...] = ()
    """Standard deviation of the error of each field, in the unit of the fields (NIfTI); if unset: equal
    weights."""
    support: Path | None = None
    """Where χ may be, such as the brain mask (NIfTI); if unset: wherever any field is known."""
    reference: Path | None = None
    """Mask (NIfTI) of a region in which the mean of χ is set to 0, such as the ventricles; if unset: none."""
    cosmos: CosmosOptions
    """Units, device, settings of the solver."""

    def __post_init__(self) -> None:
        if not self.out.name.endswith((".nii", ".nii.gz")):
            raise InputError(
                "--out",
                found=str(self.out),
                expected="a name that ends in .nii or .nii.gz",
                fix="Add the ending.",
            )
        if len(self.b0_dir) != 3 * len(self.field):
            raise InputError(
                "--b0-dir",
                found=f"{len(self.b0_dir)} numbers for {len(self.field)} fields",
                expected=f"{3 * len(self.field)}: three numbers (i, j, k) for each field, in their order",
                fix="For example --field F1 F2 --b0-dir 0 0 1 0 0.5 0.87.",
            )
        if len(self.mask) not in (1, len(self.field)):
            raise InputError(
                "--mask",
                found=f"{len(self.mask)} masks for {len(self.field)} fields",
                expected="one, or one for each field",
                fix="Check the list.",
            )

    @property
    def b0_directions(self) -> list[tuple[float, ...]]:
        """Vector along B0 of each field."""
        return [self.b0_dir[start : start + 3] for start in range(0, len(self.b0_dir), 3)]


def cosmos_files(config: CosmosFilesConfig, progress: IterationProgress | None = None) -> Path:
    """Run `cosmos` on files and write the map with its sidecar.

    Raises
    ------
    InputError
        As `cosmos`, and if the output cannot be written.
    """
    with output_directory(config.out.parent):
        image = cosmos(
            config.field,
            config.mask[0] if len(config.mask) == 1 else config.mask,
            config.b0_directions,
            sigmas=config.sigma,
            support=config.support,
            reference=config.reference,
            options=config.cosmos,
            progress=progress,
        )
    facts = {
        "Units": "ppm",
        "Method": "COSMOS",
        "Fields": [path.name for path in config.field],
        "B0DirectionsVoxelAxes": [list(b) for b in config.b0_directions],
        "NoiseWeights": bool(config.sigma),
        "SpreadDeg": round(spread_deg(config.b0_directions), 2),
        "ConditionNumber": round(condition_number(config.b0_directions), 3),
        "SoftwareVersion": f"chisep {chisep.__version__}",
    }
    if config.cosmos.units is not None:
        facts["FieldUnits"] = config.cosmos.units
    write_json(bids.sidecar_of(config.out), facts)
    code = int(image.header["sform_code"])
    return nifti.save(config.out, np.asanyarray(image.dataobj), image.affine, code=code)
