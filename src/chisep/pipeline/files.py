"""Files of one session: paths, and reading and writing on the grid of the gradient echo."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.echoes import EchoImage, files_of, read_echo
from chisep.io.files import write_json
from chisep.io.placement import SCANNER
from chisep.pipeline.engine import DeclaredFiles, Stage
from chisep.pipeline.outputs import OUTPUTS
from chisep.pipeline.result_checks import check_result
from chisep.types import Affine, Grid

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_CACHED_BYTES = 300_000_000
"""Memory for volumes that later stages read: about eight at 1 mm."""


class VolumeCache:
    """Bounded cache of volumes that later stages read again.

    The volume with the latest next read is dropped first. A volume is valid only while size and modification
    time of its file are unchanged.

    Parameters
    ----------
    most_bytes
        Limit for all volumes together.
    """

    def __init__(self, most_bytes: int = _CACHED_BYTES) -> None:
        self._most_bytes = most_bytes
        self._volumes: dict[Path, tuple[tuple[int, int], NDArray[np.float32]]] = {}
        self._reads: dict[Path, list[int]] = {}
        self._now = 0
        self._lock = threading.Lock()

    def plan(self, stages: Sequence[Stage]) -> None:
        """Note which files each stage reads."""
        self._reads = {}
        for number, stage in enumerate(stages):
            for path in stage.inputs:
                self._reads.setdefault(path, []).append(number)

    def start(self, number: int) -> None:
        """Note the start of a stage; volumes that are not read again are dropped."""
        self._now = number
        for path in [path for path in self._volumes if self._next_read(path) is None]:
            del self._volumes[path]

    def get(self, path: Path) -> NDArray[np.float32] | None:
        """Return a cached volume, or None; a copy if a later stage reads it as well."""
        with self._lock:  # several threads read echoes
            state, volume = self._volumes.get(path, (None, None))
            if volume is None or state != _state(path):
                return None
            if not self.is_read_later(path):
                return self._volumes.pop(path)[1]
        return volume.copy(order="K")

    def put(self, path: Path, volume: NDArray[np.float32]) -> None:
        """Cache a volume, if it is read again soon enough; the array must not be changed afterwards."""
        with self._lock:  # several threads write outputs
            self._volumes[path] = (_state(path), volume)
            while sum(kept.nbytes for _, kept in self._volumes.values()) > self._most_bytes:
                del self._volumes[max(self._volumes, key=lambda kept: self._next_read(kept) or 10**6)]

    def is_read_later(self, path: Path) -> bool:
        """Whether a later stage reads a file."""
        return any(number > self._now for number in self._reads.get(path, ()))

    def _next_read(self, path: Path) -> int | None:
        return next((number for number in self._reads.get(path, ()) if number >= self._now), None)


def _side_by_side(work: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> list[_Result]:
    """Do tasks in as many threads as torch uses; returns in their order, raises the error of the first."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, tasks))


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


class SessionFiles:
    """Paths of a session's derivatives by their key in the catalogue of outputs.

    Parameters
    ----------
    session
        Raw series.
    raw, out
        Raw and derivatives dataset.
    device
        Device of the tensors.
    b0_direction
        B0 in voxel axes where the user states it.
    """

    def __init__(
        self,
        session: bids.Session,
        raw: Path,
        out: Path,
        device: str,
        b0_direction: tuple[float, float, float] | None = None,
    ) -> None:
        self.session, self.raw, self.out, self.device = session, raw, out, device
        self.b0_direction = b0_direction or session.megre.b0_direction
        self.report = out / f"{session.name}.html"
        self.volumes = VolumeCache()

    def __getitem__(self, key: str) -> Path:
        """Path of an output of the catalogue."""
        output = OUTPUTS[key]
        return self.session.output(self.out, output.suffix, ext=output.extension, **output.entities)

    def paths(self, *keys: str) -> list[Path]:
        """Paths of several outputs."""
        return [self[key] for key in keys]

    @cached_property
    def header(self) -> nifti.Header:
        """Header of the first gradient echo: its grid is that of every output."""
        return nifti.read_header(self.session.megre.first)

    @property
    def place_notes(self) -> list[str]:
        """What the user should know of where the gradient echo lies, with its file."""
        first = str(self.session.megre.first)
        return nifti.notes_of_place(self.header.place, first, b0_given=self.b0_direction is not None)

    @property
    def affine(self) -> Affine:
        """Voxel index to scanner mm, shape (4, 4)."""
        return self.header.affine

    @cached_property
    def grid(self) -> Grid:
        """Grid of the gradient echo, with B0 as the user or the sidecar has it, else along scanner z.

        Raises
        ------
        InputError
            If neither states B0 and the affine is not the scanner's.
        """
        first = str(self.session.megre.first)
        return nifti.grid_of_header(self.header, first, self.b0_direction)


class StageFiles:
    """Read and write the declared files of a stage, on the grid of the gradient echo.

    Parameters
    ----------
    session
        Files of the session.
    declared
        Declared files of the stage.
    """

    def __init__(self, session: SessionFiles, declared: DeclaredFiles) -> None:
        self.session, self._declared = session, declared
        self.grid, self.affine, self.device = session.grid, session.affine, session.device

    def path(self, file: str | Path) -> Path:
        """Path of a declared file, from the key of an output or a path."""
        return self._declared.read(self.session[file] if isinstance(file, str) else file)

    def array(self, file: str | Path) -> NDArray[np.float32]:
        """Read a map, shape (i, j, k).

        Raises
        ------
        InputError
            If it is unreadable, or on another grid than the gradient echo.
        """
        path = self.path(file)
        kept = self.session.volumes.get(path)
        if kept is not None:
            return kept
        image = nifti.load(path)
        place = self.session.header.place
        first = str(self.session.session.megre.first)
        nifti.require_grid(self.grid.shape, place.affines, first, image)
        if self.session.volumes.is_read_later(path):
            self.session.volumes.put(path, image.data.copy(order="K"))
        return image.data

    def cropped(
        self, files: Sequence[str | Path], box: tuple[slice, ...]
    ) -> dict[str | Path, NDArray[np.float32]]:
        """Read maps side by side, and keep a box of voxels of each; errors as of `array`."""
        parts = _side_by_side(lambda file: self.array(file)[box].copy(order="K"), files)
        return dict(zip(files, parts, strict=True))

    def load(self, file: str | Path) -> Tensor:
        """Read a map to the device; errors as of `array`."""
        return torch.from_numpy(self.array(file)).to(self.device)

    def load_mask(self, file: str | Path) -> Tensor:
        """Read a mask to the device; errors as of `array`."""
        return self.load(file) > 0

    def echo(self, image: EchoImage) -> NDArray[np.float32]:
        """Read one echo, shape (i, j, k); errors as of `array` and `read_echo`."""
        return read_echo(image, self.array)

    def echoes(self, images: Sequence[EchoImage]) -> Tensor:
        """Read several echoes to the device, shape (echo, i, j, k); errors as of `echo`."""
        stack = np.empty((len(images), *self.grid.shape), dtype=np.float32)

        def read(number: int) -> None:
            stack[number] = self.echo(images[number])

        _side_by_side(read, range(len(images)))
        return torch.from_numpy(stack).to(self.device)

    def echoes_on_own_grid(self, images: Sequence[EchoImage]) -> tuple[Tensor, nifti.Image]:
        """Read echoes of another series to the device, and the first file for its place.

        Raises
        ------
        InputError
            If one is unreadable, or they are not on one grid.
        """
        first = nifti.load(self.path(files_of(images)[0]))

        def load(path: Path) -> NDArray[np.float32]:
            read = first if str(path) == first.source else nifti.load(self.path(path))
            nifti.require_same_grid(first, read)
            return read.data

        stack = np.stack(_side_by_side(lambda image: read_echo(image, load), images))
        return torch.from_numpy(stack).to(self.device), first

    def labels(self) -> NDArray[np.int32]:
        """Read the regions; errors as of `array`."""
        return np.rint(self.array("labels")).astype(np.int32)

    def json(self, key: str) -> Any:  # noqa: ANN401
        """Read a JSON file that an earlier stage wrote.

        Raises
        ------
        InputError
            If it is no JSON.
        """
        path = self.path(key)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(
                path,
                found=f"a file that is no JSON ({error})",
                expected="the file that chisep wrote",
                fix="Remove it and call the same command again.",
            ) from error

    def save(self, volumes: Mapping[str, Tensor]) -> None:
        """Write maps by their keys, (i, j, k) or (i, j, k, echo); masks become integers.

        Files are compressed side by side, which does not change their bytes.

        Raises
        ------
        ResultError
            If one of the maps cannot be right; none is written then.
        """
        arrays = {key: volume.cpu().numpy() for key, volume in volumes.items()}

        def write(key: str) -> None:
            self._write(key, arrays[key], np.uint8 if volumes[key].dtype == torch.bool else np.float32)

        for key, volume in arrays.items():
            check_result(key, volume, self._made_by)
        _side_by_side(write, volumes)

    def save_array(self, key: str, volume: NDArray[Any], dtype: type[np.generic]) -> None:
        """Write a map with a number type on disk; errors as of `save`."""
        check_result(key, volume, self._made_by)
        self._write(key, volume, dtype)

    @property
    def _made_by(self) -> str:
        return f"stage {self._declared.name} of {self.session.session.name}"

    def _write(self, key: str, volume: NDArray[Any], dtype: type[np.generic]) -> None:
        path = self._declared.write(self.session[key])
        place = self.session.header.place
        # Maps of images that are not in the scanner's frame must not claim to be.
        nifti.save(path, volume, self.affine, dtype=dtype, code=place.code if place.problem else SCANNER)
        if volume.ndim == 3 and self.session.volumes.is_read_later(path):
            kept = np.array(volume.astype(dtype, copy=False), dtype=np.float32, order="F")
            self.session.volumes.put(path, kept)

    def save_json(self, key: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        write_json(self._declared.write(self.session[key]), content)

    def target(self, key: str) -> Path:
        """Path of an output, for a stage that writes it without this class."""
        return self._declared.write(self.session[key])
