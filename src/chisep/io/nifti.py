"""NIfTI images in and out: checked when read, whole or absent when written."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from chisep.errors import InputError
from chisep.io.files import write_bytes
from chisep.types import Affine, Grid

_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)
_SAME_PLACE_MM = 1e-2


@dataclass(frozen=True, eq=False)
class Image:
    """Voxels, where they are, and where they come from.

    Parameters
    ----------
    data
        Voxel values, scaled as the header says, in the axis order of the file.
    affine
        Voxel index to scanner mm, shape (4, 4).
    source
        The file, for messages.
    """

    data: NDArray[Any]
    affine: Affine
    source: str = "image"

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm, from the affine."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def load(path: str | Path, *, ndim: int = 3, dtype: DTypeLike = np.float32) -> Image:
    """Read a NIfTI file and check that it can be computed with.

    Parameters
    ----------
    path
        A .nii or .nii.gz file of any number type; scale and offset of its header are applied.
    ndim
        Wanted number of axes; trailing axes of length 1 beyond it are dropped.
    dtype
        Type of the result.

    Returns
    -------
    Image
        The voxels as `dtype`.

    Raises
    ------
    InputError
        If the file is missing, unreadable or truncated, has another number of axes, holds NaN or
        infinite values, or its affine is not a usable one.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", wanted="a NIfTI image", remedy="Check the path.")
    try:
        return from_nibabel(_open(path), source=str(path), ndim=ndim, dtype=dtype)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({error})",
            wanted="a whole NIfTI image (.nii or .nii.gz)",
            remedy="It may be truncated or of another format: copy or convert it again.",
        ) from error


def _open(path: Path) -> nib.Nifti1Image:
    """Read a whole file at once: nibabel's own reader stops before the checksum at the end of a .gz."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    image: nib.Nifti1Image = kind.from_bytes(content)
    return image


def number_of_axes(path: str | Path) -> int:
    """Count the axes of a NIfTI file from its header; 3 where it cannot be read, so that `load` says why."""
    try:
        return len(_open(Path(path)).shape)
    except _UNREADABLE:
        return 3


def from_nibabel(image: Any, *, source: str = "image", ndim: int = 3, dtype: DTypeLike = np.float32) -> Image:  # noqa: ANN401
    """Check a nibabel image as `load` does.

    Raises
    ------
    InputError
        As `load`.
    """
    shape = tuple(image.shape)
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != ndim:
        raise InputError(
            source,
            found=f"{len(shape)}-D data of shape {shape}",
            wanted=f"{ndim}-D data",
            remedy="Split a series into volumes, or give the file of the right kind.",
        )
    data = np.asarray(image.dataobj, dtype=dtype).reshape(shape)
    wrong = data.size - int(np.count_nonzero(np.isfinite(data)))
    if wrong:
        raise InputError(
            source,
            found=f"{wrong} of {data.size} values are NaN or infinite",
            wanted="finite numbers everywhere",
            remedy="Replace them (0 outside the head) before running chisep.",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(
            source,
            found="an affine without an inverse",
            wanted="voxel axes that span a volume, in mm",
            remedy="Write the image again with a valid sform or qform.",
        )
    return Image(data, affine, source)


def load_mask(path: str | Path) -> Image:
    """Read a mask: true where the value is above 0.5.

    Raises
    ------
    InputError
        As `load`, and if the mask is empty.
    """
    image = load(path)
    return checked_mask(image.data > 0.5, image.affine, image.source)


def checked_mask(mask: NDArray[np.bool_], affine: Affine, source: str) -> Image:
    """Wrap a mask after checking that something is inside.

    Raises
    ------
    InputError
        If the mask is empty.
    """
    if not mask.any():
        raise InputError(
            source,
            found="a mask without any voxel inside",
            wanted="a brain mask (1 inside, 0 outside)",
            remedy="Draw the mask again or leave it out where it is optional.",
        )
    return Image(mask, affine, source)


def is_same_grid(reference: Image, other: Image) -> bool:
    """Whether two images have the same voxels at the same places."""
    return reference.data.shape[:3] == other.data.shape[:3] and np.allclose(
        reference.affine, other.affine, atol=_SAME_PLACE_MM
    )


def require_same_grid(reference: Image, other: Image) -> None:
    """Check that two images have the same voxels at the same places.

    Raises
    ------
    InputError
        If shape or affine differ.
    """
    if is_same_grid(reference, other):
        return
    same_shape = reference.data.shape[:3] == other.data.shape[:3]
    raise InputError(
        other.source,
        found="another position or orientation (affine)" if same_shape else f"shape {other.data.shape[:3]}",
        wanted=f"the grid of {reference.source}, shape {reference.data.shape[:3]}",
        remedy="Resample it to the grid of the other image.",
    )


def b0_direction_of(affine: Affine) -> tuple[float, float, float]:
    """B0 (scanner z) as a unit vector in voxel axes, from the affine; oblique and flipped axes included."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = np.linalg.solve(axes, np.array([0.0, 0.0, 1.0]))
    return float(i), float(j), float(k)


def grid_of(image: Image, b0_direction: Sequence[float] | None = None) -> Grid:
    """Grid of an image; B0 along scanner z unless a direction in voxel axes is given."""
    i, j, k = image.data.shape[:3]
    b0_i, b0_j, b0_k = b0_direction_of(image.affine) if b0_direction is None else b0_direction
    return Grid((i, j, k), image.voxel_mm, (b0_i, b0_j, b0_k), image.affine)


def to_nibabel(data: NDArray[Any], affine: Affine) -> nib.Nifti1Image:
    """Wrap voxels as a NIfTI image in scanner coordinates."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def save(path: str | Path, data: ArrayLike, affine: Affine, *, dtype: DTypeLike = np.float32) -> Path:
    """Write a NIfTI file; equal data give equal bytes, and the file is whole or absent.

    Parameters
    ----------
    path
        Ends in .nii or .nii.gz.
    data
        Voxel values, axes (i, j, k) or (i, j, k, t).
    affine
        Voxel index to scanner mm, shape (4, 4).
    dtype
        Number type on disk.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    content = to_nibabel(np.asarray(data).astype(dtype), affine).to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=4, mtime=0)
    return write_bytes(path, content)
