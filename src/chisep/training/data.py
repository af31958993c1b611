"""Training data: maps of scans and their labels from BIDS derivatives, and crops of them.

The dipole kernel is not local: sources outside a crop contribute to its field. An unrolled network on crops
has no such sources, so their field, D * (χ_label outside the crop), is subtracted.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.networks.brain_box import BrainBox
from chisep.networks.config import Channel, NetworkConfig
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.physics.signal import default_relaxivity
from chisep.progress import Progress
from chisep.types import Grid, MaskVolume, Volume

_FILES: Mapping[Channel, tuple[str, str, str | None]] = {
    # folder of FoldersConfig, BIDS suffix, desc
    "field": ("maps", "fieldmap", "local"),
    "r2prime": ("maps", "R2primemap", None),
    "r2star": ("maps", "R2starmap", None),
    "qsm": ("qsm", "Chimap", None),
    "chi": ("labels", "Chimap", "cosmos"),
    "chi_pos": ("labels", "Chimap", "paramagnetic"),
    "chi_neg": ("labels", "Chimap", "diamagnetic"),
}
_RATES: tuple[Channel, ...] = ("r2prime", "r2star")
_OF_THE_SCAN: tuple[Channel, ...] = ("field", "r2prime", "r2star", "qsm")
"""Channels with one map for each scan (R2' may be missing); the others have one for each subject."""


@dataclass(frozen=True)
class FoldersConfig:
    """Labelled dataset, with its subjects for training and validation."""

    dataset: Path
    """BIDS dataset whose derivatives hold maps and labels."""
    train: tuple[str, ...]
    """Subjects to train on, without `sub-`."""
    validation: tuple[str, ...]
    """Subjects for validation, which select the best epoch."""
    maps: str = "maps"
    """Folder in derivatives with local field (ppm), R2' and R2* (1/s)."""
    labels: str = "labels"
    """Folder with χ_pos, χ_neg and χ (ppm)."""
    masks: str = "truth"
    """Folder with brain masks; where there is none of this name, that of the labels."""
    qsm: str = "qsmnet"
    """Folder with the χ maps that are inputs beside the field."""

    def folder(self, name: str) -> Path:
        """Path of one of the four folders, by the name of its option."""
        folder = self.dataset / "derivatives" / str(getattr(self, name))
        # Scans of people have no truth: `chisep orientations` writes the mask beside the labels.
        return self.folder("labels") if name == "masks" and not folder.is_dir() else folder


@dataclass(frozen=True)
class CropConfig:
    """Size and augmentation of crops."""

    size: int = 48
    """Edge of a crop in voxels."""
    outside_field: Literal["subtract", "keep"] = "subtract"
    """Whether the field of sources outside the crop is subtracted."""
    flip: bool = True
    """Random mirroring of crops along each axis, together with the B0 direction."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError("size", found=f"{self.size}", expected="8 voxels or more", fix="Typical is 48.")


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """Maps of one scan in ppm, in the `BrainBox` of its brain, shape (i, j, k), 0 outside the mask."""

    name: str
    grid: Grid
    mask: MaskVolume
    channels: Mapping[str, Volume]
    field_of_label: Volume | None = None
    """D * (χ_pos − χ_neg) of the label, of the whole brain; None if not needed."""
    b0_t: float = 3.0
    """Field strength in T."""


class Example(NamedTuple):
    """One crop, or after collation a batch of them with the batch first."""

    inputs: Tensor
    """(channel, i, j, k) in ppm."""
    targets: Tensor
    """(channel, i, j, k) in ppm."""
    mask: Tensor
    """(1, i, j, k), bool."""
    b0_direction: Tensor
    """(3,), unit vector in voxel axes."""
    voxel_mm: Tensor
    """(3,)."""
    ratio: Tensor
    """D_r,neg / D_r,pos, a scalar."""

    def dipole(self, padding: float = 2.0) -> Dipole:
        """Dipole operator of a batch; `padding` is the padded size over the size of a crop."""
        shape = tuple(int(n) for n in self.mask.shape[-3:])
        grids = [
            Grid((shape[0], shape[1], shape[2]), tuple(voxel), tuple(b0))
            for voxel, b0 in zip(self.voxel_mm.tolist(), self.b0_direction.tolist(), strict=True)
        ]
        return Dipole.of_batch(grids, padding=padding, device=self.inputs.device)

    def phi(self, dipole: Dipole) -> Separation:
        """Operator Φ of a batch within its masks."""
        return Separation(dipole, self.ratio.reshape(-1, 1, 1, 1), self.mask.squeeze(1))

    def as_batch(self) -> Example:
        """Batch of this crop only."""
        return Example(*(part[None] for part in self))


def load_scans(
    folders: FoldersConfig,
    subjects: Sequence[str],
    network: NetworkConfig,
    *,
    field_of_label: bool = True,
    progress: Progress | None = None,
) -> list[TrainingScan]:
    """Read every scan of some subjects.

    Parameters
    ----------
    folders
        Folders of maps, labels and masks.
    subjects
        Labels without `sub-`.
    network
        Selects the channels.
    field_of_label
        Whether to compute the field of the label, to subtract the field of sources outside of crops.
    progress
        Receives the scan that is being read.

    Returns
    -------
    list of TrainingScan
        One per subject and acquisition.

    Raises
    ------
    InputError
        If a subject has no field maps, or a map is missing, unreadable or on another grid.
    """
    scans: list[TrainingScan] = []
    todo = [(subject, path) for subject in subjects for path in field_maps(folders, subject)]
    for done, (subject, path) in enumerate(todo):
        if progress is not None:
            progress(path.name.split("_desc")[0], done, len(todo))
        scans.append(_load(folders, subject, path, network, field_of_label))
    if progress is not None:
        progress("scans", len(todo), len(todo))
    return scans


def field_maps(folders: FoldersConfig, subject: str) -> list[Path]:
    """Find the local fields of a subject, one per scan.

    Raises
    ------
    InputError
        If there are none.
    """
    folder = folders.folder("maps") / f"sub-{subject}"
    paths = sorted(folder.rglob(f"sub-{subject}_*desc-local_fieldmap.nii*"))
    if not paths:
        raise InputError(
            folder,
            found="no local field",
            expected=f"sub-{subject}[_acq-…]_desc-local_fieldmap.nii.gz in {folder.name}",
            fix="Check the subject and the folder of maps; `chisep simulate --maps` writes such folders.",
        )
    return paths


def acquisition_path(folders: FoldersConfig, channel: Channel, subject: str, field_path: Path) -> Path:
    """Path of a map of a scan.

    Parameters
    ----------
    folders
        The dataset.
    channel
        Name of the map.
    subject
        Label without `sub-`.
    field_path
        Local field of the scan; its name has the acquisition.
    """
    folder, suffix, desc = _FILES[channel]
    path = bids.derivative_path(folders.folder(folder), subject, suffix, desc=desc)
    if channel not in _OF_THE_SCAN:
        return path
    acquisition = field_path.name.removeprefix(f"sub-{subject}_").partition("desc-local")[0]
    name = path.name.replace(f"sub-{subject}_", f"sub-{subject}_{acquisition}", 1)
    # A scan of a session lies in the session's folder.
    return folders.folder(folder) / field_path.parent.relative_to(folders.folder("maps")) / name


def r2prime_path(folders: FoldersConfig, subject: str) -> Path:
    """Path of the R2' of a subject, of the first scan that has one.

    The spin echo is usually acquired once: R2' of that scan, registered, is that of all.

    Parameters
    ----------
    folders
        The dataset.
    subject
        Label without `sub-`.
    """
    scans = field_maps(folders, subject)
    paths = [acquisition_path(folders, "r2prime", subject, scan) for scan in scans]
    return next((path for path in paths if path.is_file()), paths[0])


def _load(
    folders: FoldersConfig, subject: str, field_path: Path, network: NetworkConfig, field_of_label: bool
) -> TrainingScan:
    facts = bids.read_sidecar(field_path, folders.dataset)
    mask_image = nifti.load_mask(bids.derivative_path(folders.folder("masks"), subject, "mask", desc="brain"))
    reference = nifti.load(field_path)
    nifti.require_same_grid(reference, mask_image)
    box = BrainBox(
        torch.from_numpy(mask_image.data),
        nifti.grid_of(reference, facts.get("B0DirectionVoxelAxes")),
        b0_along_z=network.b0_along_z,
    )
    b0_t = float(facts.get("MagneticFieldStrength", 3.0))
    d_r = default_relaxivity(b0_t).pos_hz_per_ppm

    def read(channel: Channel) -> Volume:
        path = acquisition_path(folders, channel, subject, field_path)
        if channel == "r2prime" and not path.is_file():
            path = r2prime_path(folders, subject)
        image = nifti.load(path)
        nifti.require_same_grid(reference, image)
        volume = box.cut(torch.from_numpy(image.data)) * box.mask
        return volume / d_r if channel in _RATES else volume

    names = dict.fromkeys((*network.inputs, *network.outputs))
    channels: dict[str, Volume] = {channel: read(channel) for channel in names}
    scan = TrainingScan(field_path.name.split("_desc")[0], box.grid, box.mask, channels, b0_t=b0_t)
    if "field" not in names or not field_of_label:
        return scan
    sources = {name: channels[name] if name in channels else read(name) for name in ("chi_pos", "chi_neg")}
    chi = sources["chi_pos"] - sources["chi_neg"]
    return replace(scan, channels=channels | sources, field_of_label=Dipole(box.grid).apply(chi))


def statistics(scans: Sequence[TrainingScan]) -> dict[str, tuple[float, float]]:
    """Mean and SD in ppm of each channel over all brain voxels."""
    return {
        name: _mean_and_sd([scan.channels[name][scan.mask] for scan in scans]) for name in scans[0].channels
    }


def statistics_of_crops(
    crops: Dataset[Example], network: NetworkConfig, count: int
) -> dict[str, tuple[float, float]]:
    """Mean and SD in ppm of each channel over the brain voxels of the first `count` crops."""
    examples = [crops[number] for number in range(count)]
    statistics_ppm: dict[str, tuple[float, float]] = {}
    for names, part in ((network.inputs, "inputs"), (network.outputs, "targets")):
        for channel, name in enumerate(names):
            values = [getattr(example, part)[channel][example.mask[0]] for example in examples]
            statistics_ppm[name] = _mean_and_sd(values)
    return statistics_ppm


def _mean_and_sd(parts: Sequence[Tensor]) -> tuple[float, float]:
    values = [part.double() for part in parts]
    count = sum(v.numel() for v in values)
    mean = sum(float(v.sum()) for v in values) / count
    variance = sum(float((v - mean).square().sum()) for v in values) / count
    return mean, variance**0.5


class RandomCrops(Dataset[Example], ABC):
    """Crops around random brain voxels; crop n depends on n and the seed only.

    Parameters
    ----------
    scans
        Scans to crop.
    network
        Selects inputs and outputs.
    count
        Number of crops.
    seed
        Seed of all random numbers.
    """

    def __init__(self, scans: Sequence[TrainingScan], network: NetworkConfig, count: int, seed: int) -> None:
        self.scans, self.network, self.count, self.seed = scans, network, count, seed
        self._inside = [torch.nonzero(scan.mask.flatten()).squeeze(1).int() for scan in scans]

    def __len__(self) -> int:
        """Return the number of crops."""
        return self.count

    def __getitem__(self, number: int) -> Example:
        """Cut a crop.

        Parameters
        ----------
        number
            Its index; the crop depends on this index and the seed only.
        """
        if not 0 <= number < self.count:
            raise IndexError(number)
        rng = np.random.default_rng((self.seed, number))
        which = int(rng.integers(len(self.scans)))
        scan, inside = self.scans[which], self._inside[which]
        i, j, k = np.unravel_index(int(inside[int(rng.integers(len(inside)))]), scan.mask.shape)
        return self._around(scan, (int(i), int(j), int(k)), rng)

    @abstractmethod
    def _around(self, scan: TrainingScan, centre: tuple[int, int, int], rng: np.random.Generator) -> Example:
        """Cut a crop around a voxel."""


class Crops(RandomCrops):
    """Crops of scans.

    Parameters
    ----------
    scans, network, count, seed
        As of `RandomCrops`.
    config
        Size and augmentation.
    """

    def __init__(
        self, scans: Sequence[TrainingScan], network: NetworkConfig, config: CropConfig, count: int, seed: int
    ) -> None:
        super().__init__(scans, network, count, seed)
        self.config = config

    def _around(self, scan: TrainingScan, centre: tuple[int, int, int], rng: np.random.Generator) -> Example:
        spans = [
            slice(start, start + min(self.config.size, n))
            for c, n in zip(centre, scan.mask.shape, strict=True)
            for start in [int(np.clip(c - self.config.size // 2, 0, max(n - self.config.size, 0)))]
        ]
        example = self._cut(scan, (spans[0], spans[1], spans[2]))
        return mirrored(example, (rng.random(3) < 0.5).tolist()) if self.config.flip else example

    def _cut(self, scan: TrainingScan, box: tuple[slice, slice, slice]) -> Example:
        size = self.config.size

        def cut(volume: Tensor) -> Tensor:
            piece = volume[box]
            if piece.shape == (size,) * 3:
                return piece.clone()
            whole = piece.new_zeros((size,) * 3)
            whole[tuple(slice(n) for n in piece.shape)] = piece
            return whole

        channels = {name: cut(volume) for name, volume in scan.channels.items()}
        mask = cut(scan.mask)
        grid = scan.grid.reshaped(mask.shape)
        if self.config.outside_field == "subtract" and scan.field_of_label is not None:
            chi = channels["chi_pos"] - channels["chi_neg"]
            channels["field"] -= (cut(scan.field_of_label) - Dipole(grid).apply(chi)) * mask
        return Example(
            torch.stack([channels[name] for name in self.network.inputs]),
            torch.stack([channels[name] for name in self.network.outputs]),
            mask[None],
            torch.tensor(grid.b0_direction),
            torch.tensor(grid.voxel_mm),
            torch.tensor(1.0),
        )


def mirrored(example: Example, axes: Sequence[bool]) -> Example:
    """Mirror a crop and its B0 direction along some axes.

    Parameters
    ----------
    example
        One crop.
    axes
        Whether to mirror each of the three.
    """
    flips = [axis - 3 for axis, flip in enumerate(axes) if flip]
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in axes])
    return example._replace(
        inputs=example.inputs.flip(flips),
        targets=example.targets.flip(flips),
        mask=example.mask.flip(flips),
        b0_direction=example.b0_direction * sign,
    )


class BatchSampler:
    """Sampler of crop indices; each process takes its share of the same batches.

    Parameters
    ----------
    first
        Returns the index of the first batch, at every epoch of Lightning: an interrupted
        training continues there.
    batches
        Number of batches in an epoch of Lightning.
    batch_size
        Crops in a batch, over all processes.
    rank, world_size
        Of this process.
    """

    def __init__(
        self, first: Callable[[], int], batches: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise InputError(
                "batch_size",
                found=f"{batch_size} on {world_size} devices",
                expected="a multiple of the number of devices",
                fix="Change --batch-size or --devices.",
            )
        self.first, self.batches, self.batch_size = first, batches, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the crop indices of each batch."""
        first = self.first()
        for batch in range(first, first + self.batches):
            numbers = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield list(itertools.islice(numbers, self.rank, None, self.world_size))
