"""NIfTI images: checked when read, atomic when written.

Files are untrusted input. The header is read first, on its own. Voxels are read only if the declared size is
one that chisep can process, and never more than the file contains.
"""

# More than 500 lines: reading, checking and writing share one model of an image.
from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import ArrayLike, DTypeLike, NDArray

from chisep.errors import InputError
from chisep.io.files import write_bytes
from chisep.io.paths import is_file
from chisep.io.placement import SCANNER, VOXEL_EDGES_MM, Placement, placement
from chisep.types import Affine, Grid

MOST_VALUES = 2**31
"""Values that an image may have: 8 GiB as 32-bit numbers, a whole head at 0.4 mm with ten echoes."""
_SAME_PLACE_MM = 1e-2
_FLAT = 1e-3
_HEADER_BYTES = 540
_LARGEST_OFFSET = 2**24
_SPARE_BYTES = 2**20
_CHUNK_BYTES = 2**20
_LEVEL = 2
"""Compression level of ISA-L (0 to 3)."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image: voxels, affine and source.

    Parameters
    ----------
    data
        Voxel values, scaled as the header says, in the axis order of the file.
    affine
        Voxel index to scanner mm, shape (4, 4).
    source
        The file, for messages.
    place
        How the affine was chosen among those that the file states; None if it states no others.
    """

    data: NDArray[Any]
    affine: Affine
    source: str = "image"
    place: Placement | None = None

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm, from the affine."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def load(path: str | Path, *, ndim: int = 3, dtype: DTypeLike = np.float32) -> Image:
    """Read a NIfTI file and check that it can be processed.

    Parameters
    ----------
    path
        A .nii or .nii.gz file of any number type; scale and offset of its header are applied.
    ndim
        Expected number of axes; trailing axes of length 1 beyond it are dropped.
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
    with _readable(path, igzip.IGzipFile) as file:
        header = _parsed(path, file)
        _check_size(path, header)
        _trimmed(header.shape, ndim, str(path))
        content = _voxel_bytes(file, header)
        data = _values(content, header.dtype, header.scaling, np.dtype(dtype))
    return _checked(data.reshape(header.shape, order="F"), header.place, str(path), ndim)


@dataclass(frozen=True, eq=False)
class Header:
    """Header of a NIfTI file.

    Parameters
    ----------
    shape
        Number of voxels along each axis.
    place
        Where voxels are, and by which of its affines.
    dtype
        Number type on disk.
    offset
        Byte at which voxels start.
    scaling
        Slope and intercept, by which stored numbers become values; None where they are the values.
    """

    shape: tuple[int, ...]
    place: Placement
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float, float] | None

    @property
    def affine(self) -> Affine:
        """Voxel index to scanner mm."""
        return self.place.affine


def read_header(path: str | Path) -> Header:
    """Read the header of a NIfTI file and nothing else.

    Raises
    ------
    InputError
        If the file is missing, its header cannot be read, or it declares an image that `load` refuses.
    """
    path = Path(path)
    # Python's reader takes 8 kB of the file for this, ISA-L's 512 kB.
    with _readable(path, gzip.GzipFile) as file:
        header = _parsed(path, file)
    _check_size(path, header)
    _check_affine(header.affine, str(path))
    return header


@contextmanager
def _readable(path: Path, unzip: Callable[[Path], gzip.GzipFile]) -> Iterator[io.BufferedIOBase]:
    """Open a file, by `unzip` if it is gzipped; errors while it is read become an `InputError`."""
    if not is_file(path):
        raise InputError(path, found="no such file", expected="a NIfTI image", fix="Check the path.")
    try:
        with unzip(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    # The stubs of isal declare its exception as an instance.
    except (OSError, EOFError, ValueError, zlib.error, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise _unreadable(path, str(error)) from error
    except MemoryError as error:
        raise _unreadable(path, "an image larger than this machine's memory") from error


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=f"a file that cannot be read ({found})",
        expected="a whole NIfTI image (.nii or .nii.gz)",
        fix="It may be truncated or of another format: copy or convert it again.",
    )


def _parsed(path: Path, file: io.BufferedIOBase) -> Header:
    """Parse the header from the first bytes of a file."""
    first = file.read(_HEADER_BYTES)
    kind: Any = nib.Nifti2Header if first[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    try:
        header = kind(first[: kind.template_dtype.itemsize])
        slope, intercept = header.get_slope_inter()
        return Header(
            shape=tuple(int(n) for n in header.get_data_shape()),
            place=placement(header),
            dtype=header.get_data_dtype(),
            offset=int(header.get_data_offset()),
            scaling=None if slope is None or (slope, intercept) == (1, 0) else (slope, intercept),
        )
    except Exception as error:  # malformed bytes can raise any error in nibabel
        raise _unreadable(path, f"its header: {error}") from error


def _check_size(path: Path, header: Header) -> None:
    """Refuse impossible images before memory is allocated for them."""
    if header.dtype.kind not in "iuf":
        raise InputError(
            path,
            found=f"values of type {header.dtype}",
            expected="integers or real numbers",
            fix="Store magnitude and phase as two images, colours not at all.",
        )
    if not header.shape or min(header.shape) < 1 or not 348 <= header.offset <= _LARGEST_OFFSET:
        raise _unreadable(path, f"its header: shape {header.shape}, voxels from byte {header.offset} on")
    needed = math.prod(header.shape) * (header.dtype.itemsize + 4)
    if math.prod(header.shape) > MOST_VALUES or needed > _memory_bytes():
        raise InputError(
            path,
            found=f"an image of shape {header.shape}",
            expected=f"at most {MOST_VALUES} values, and room for them in this machine's memory",
            fix="Split it (one file an echo), crop it to the head, or resample it.",
        )


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _voxel_bytes(file: io.BufferedIOBase, header: Header) -> bytearray:
    """Read as many bytes as the header declares; memory grows with what the file really holds.

    Raises
    ------
    ValueError
        If the file holds less, or much more.
    """
    declared = math.prod(header.shape) * header.dtype.itemsize
    file.seek(header.offset)
    content = bytearray()
    while len(content) < declared:
        chunk = file.read(min(_CHUNK_BYTES, declared - len(content)))
        if not chunk:
            raise ValueError(f"{len(content)} bytes of voxels where its header declares {declared}")
        content += chunk
    # Only the checksum at the end of a gzip stream shows whether it is intact.
    if len(file.read(_SPARE_BYTES)) == _SPARE_BYTES:
        raise ValueError(f"much more than the {declared} bytes of voxels that its header declares")
    return content


def _values(
    content: bytearray, stored_as: np.dtype[Any], scaling: tuple[float, float] | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Convert stored numbers to values in chunks, with scaling in double precision."""
    stored: NDArray[Any] = np.frombuffer(content, stored_as)
    if scaling is None and stored.dtype == dtype:
        return stored.view(dtype)  # its dtype is written with a byte order otherwise
    values = np.empty(stored.size, dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused with a message
        for start in range(0, stored.size, _CHUNK_BYTES):
            part = stored[start : start + _CHUNK_BYTES]
            if scaling is not None:
                part = part.astype(np.float64) * scaling[0] + scaling[1]
            values[start : start + _CHUNK_BYTES] = part
    return values


def number_of_axes(path: str | Path) -> int:
    """Count the axes of a NIfTI file from its header; 3 if it cannot be read, so that `load` reports why."""
    try:
        return len(read_header(path).shape)
    except InputError:
        return 3


def from_nibabel(image: Any, *, source: str = "image", ndim: int = 3, dtype: DTypeLike = np.float32) -> Image:  # noqa: ANN401
    """Check a nibabel image as `load` does.

    Raises
    ------
    InputError
        As `load`.
    """
    data = np.asarray(image.dataobj, dtype=dtype)
    if isinstance(image.header, nib.Nifti1Header):
        place = placement(image.header)
        if image.get_filename() is None:  # the code that nibabel gives to new images says nothing
            place = replace(place, assumed="")
    else:
        place = Placement(np.asarray(image.affine, dtype=np.float64))
    return _checked(data, place, source, ndim)


def _checked(data: NDArray[Any], place: Placement, source: str, ndim: int) -> Image:
    """Check voxels and affine."""
    data = data.reshape(_trimmed(data.shape, ndim, source), order="A")
    wrong = data.size - int(np.count_nonzero(np.isfinite(data)))
    if wrong:
        raise InputError(
            source,
            found=f"{wrong} of {data.size} values are NaN or infinite",
            expected="finite numbers everywhere",
            fix="Replace them (0 outside the head) before running chisep.",
        )
    _check_affine(place.affine, source)
    return Image(data, place.affine, source, place)


def require_volume(shape: tuple[int, ...], source: str) -> tuple[int, int, int]:
    """Check that an image of one echo is one volume; return its three sizes.

    Raises
    ------
    InputError
        If it has a fourth axis: echoes or repetitions in one file.
    """
    if len(shape) == 4 and shape[3] > 1:
        raise InputError(
            source,
            found=f"a 4-D file: {shape[3]} volumes of shape {shape[:3]}",
            expected="one 3-D volume for each echo",
            fix="If they are echoes, split them into echo-1, echo-2, …, or use `chisep import`, which takes "
            "4-D files; if they are repetitions, give each its own run- label, or keep one.",
        )
    i, j, k = _trimmed(shape, 3, source)
    return i, j, k


def _trimmed(shape: tuple[int, ...], ndim: int, source: str) -> tuple[int, ...]:
    """Drop trailing axes of length 1 until `ndim` are left."""
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != ndim:
        raise InputError(
            source,
            found=f"{len(shape)}-D data of shape {shape}",
            expected=f"{ndim}-D data",
            fix="Split a series into volumes, or give the file of the right kind.",
        )
    return shape


def _check_affine(affine: Affine, source: str) -> None:
    """Refuse an affine that has no inverse, or voxels of an impossible size."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not edges.all() or abs(np.linalg.det(affine[:3, :3] / edges)) < _FLAT:
        raise InputError(
            source,
            found="an affine without an inverse",
            expected="voxel axes that span a volume, in mm",
            fix="Write the image again with a valid sform or qform.",
        )
    low, high = VOXEL_EDGES_MM
    if edges.min() < low or edges.max() > high:
        raise InputError(
            source,
            found="voxels of " + " × ".join(f"{edge:.3g}" for edge in edges) + " mm",
            expected=f"edges of {low:g} to {high:g} mm",
            fix="Correct the affine: it has to be in mm.",
        )


def load_mask(path: str | Path) -> Image:
    """Read a mask: true where the value is above 0.5.

    Raises
    ------
    InputError
        As `load`, and if the mask is empty.
    """
    image = load(path)
    checked = checked_mask(image.data > 0.5, image.affine, image.source)
    return replace(checked, place=image.place)


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
            expected="a brain mask (1 inside, 0 outside)",
            fix="Draw the mask again or leave it out where it is optional.",
        )
    return Image(mask, affine, source)


def is_same_grid(reference: Image, other: Image) -> bool:
    """Whether two images have the same voxels at the same places."""
    same_shape = reference.data.shape[:3] == other.data.shape[:3]
    return same_shape and _share_place(_affines(reference), _affines(other))


def _affines(image: Image) -> list[Affine]:
    """All affines that a file states: one of the same voxels may be written with any of them."""
    return list(image.place.affines) if image.place else [image.affine]


def _share_place(ones: Sequence[Affine], others: Sequence[Affine]) -> bool:
    return any(np.allclose(one, other, atol=_SAME_PLACE_MM) for one in ones for other in others)


def require_same_grid(reference: Image, other: Image) -> None:
    """Check that two images have the same voxels at the same places; errors as of `require_grid`."""
    require_grid(reference.data.shape[:3], _affines(reference), reference.source, other)


def require_grid(shape: Sequence[int], affines: Sequence[Affine], source: str, other: Image) -> None:
    """Check that an image has the voxels of a grid at the same places.

    Parameters
    ----------
    shape
        Of the grid.
    affines
        All that the image of the grid states.
    source
        Image that the grid is of, for the message.
    other
        Image to check.

    Raises
    ------
    InputError
        If shape or affine differ.
    """
    require_place(shape, affines, source, other.data.shape[:3], _affines(other), other.source)


def require_place(
    shape: Sequence[int],
    affines: Sequence[Affine],
    source: str,
    other_shape: Sequence[int],
    other_affines: Sequence[Affine],
    other_source: str,
) -> None:
    """Check as `require_grid` does, from shapes and the affines that files state."""
    same_shape = tuple(other_shape) == tuple(shape)
    if same_shape and _share_place(affines, other_affines):
        return
    raise InputError(
        other_source,
        found="another position or orientation (affine)" if same_shape else f"shape {tuple(other_shape)}",
        expected=f"the grid of {source}, shape {tuple(shape)}",
        fix="Resample it to the grid of the other image.",
    )


def b0_direction_of(affine: Affine) -> tuple[float, float, float]:
    """B0 (scanner z) as a unit vector in voxel axes, from the affine; oblique and flipped axes included."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = np.linalg.solve(axes, np.array([0.0, 0.0, 1.0]))
    return float(i), float(j), float(k)


def grid_of_header(header: Header, source: str, b0_direction: Sequence[float] | None = None) -> Grid:
    """Grid of a 3-D image from its header, as `grid_of` makes it from the image.

    Raises
    ------
    InputError
        If the image is not 3-D, and as `grid_of`.
    """
    shape = _trimmed(header.shape, 3, source)
    image = Image(np.broadcast_to(np.float32(0), shape), header.affine, source, header.place)
    return grid_of(image, b0_direction)


def grid_of(image: Image, b0_direction: Sequence[float] | None = None) -> Grid:
    """Grid of an image; B0 along scanner z unless a direction in voxel axes is given.

    Raises
    ------
    InputError
        If no direction is given and the affine is not the scanner's.
    """
    i, j, k = image.data.shape[:3]
    if b0_direction is None and image.place and image.place.problem:
        raise unknown_b0(image.place, image.source)
    b0_i, b0_j, b0_k = b0_direction_of(image.affine) if b0_direction is None else b0_direction
    return Grid((i, j, k), image.voxel_mm, (b0_i, b0_j, b0_k), image.affine)


def place_notes(image: Image, *, b0_given: bool) -> list[str]:
    """Say what is to be known of where an image lies, with its file.

    Parameters
    ----------
    image
        An image that `load` or `from_nibabel` made.
    b0_given
        Whether the direction of B0 is known otherwise.
    """
    return notes_of_place(image.place, image.source, b0_given=b0_given) if image.place else []


def notes_of_place(place: Placement, source: str, *, b0_given: bool) -> list[str]:
    """Say the same of a placement and its file."""
    notes = "; ".join(filter(None, (place.note, "" if b0_given else place.assumed)))
    return [f"{Path(source).name}: {notes}"] if notes else []


def unknown_b0(place: Placement, source: str) -> InputError:
    """Error for an image whose affine does not tell where B0 points."""
    return InputError(
        source,
        found=place.problem,
        expected="an affine of the scanner (qform or sform of code 1), since B0 is along the scanner's z",
        fix="Convert the image again from DICOM, or state B0 in voxel axes: --b0-dir, e.g. 0 0 1 for slices "
        "perpendicular to it, or B0DirectionVoxelAxes in the sidecar.",
    )


def to_nibabel(data: NDArray[Any], affine: Affine, code: int = SCANNER) -> nib.Nifti1Image:
    """Wrap voxels as a NIfTI image, by default in scanner coordinates; `code` is NIfTI's of the frame."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    return image


def save(
    path: str | Path,
    data: ArrayLike,
    affine: Affine,
    *,
    dtype: DTypeLike = np.float32,
    code: int = SCANNER,
) -> Path:
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
    code
        NIfTI's number of the frame that the affine leads to.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    content = to_nibabel(np.asarray(data).astype(dtype, copy=False), affine, code).to_bytes()
    if path.suffix == ".gz":
        content = igzip.compress(content, _LEVEL, mtime=0)
    return write_bytes(path, content)
