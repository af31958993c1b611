"""Dataset of all experiments of the thesis: eight digital phantoms, split 4:1:3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from tyro.conf import Positional

import chisep
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import checksum
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.labelled_dataset import LabelledConfig, simulate_labelled
from chisep.progress import Progress
from chisep.simulation.dataset import TRUTH, first_maps
from chisep.simulation.measured import MeasuredMaps
from chisep.simulation.record import SimulationRecord, read_record, record_path
from chisep.simulation.tissue import Tissue, TissueConfig
from chisep.training.data import FoldersConfig, acquisition_path, field_maps, r2prime_path
from chisep.types import Maps, Sources, Volume

TRAIN = ("01", "02", "03", "04")
"""Subjects for training."""
VALIDATION = ("05",)
"""Subject for validation, which selects the best epoch."""
TEST = ("06", "07", "08")
"""Subjects for testing."""
SUBJECTS = TRAIN + VALIDATION + TEST
REFERENCES = ("label", "truth")
"""References of results: labels as of a volunteer (COSMOS and R2'), and the ground truth."""

_SNR, _ORIENTATIONS = 50.0, 6
# Calibrated so that the residual field of COSMOS is as in a volunteer (r 0.83).
_MISREGISTRATION_MM, _MISREGISTRATION_DEG = 0.4, 0.4
_RESIDUAL_BACKGROUND_PPB, _ANISOTROPY_PPB = 3.5, 16.0
_NO_OPTIONS = {"weights_folder", "only", "minutes", "threads"}


@dataclass(frozen=True, kw_only=True)
class ThesisConfig:
    """Map-level simulation of eight digital phantoms in six orientations, with residual processing errors."""

    out: Positional[Path]
    """Folder for the results."""
    labels: tuple[Path, ...] = ()
    """Label maps of the eight subjects: four to train, one to validate, three to test; MNI152 if none."""
    dataset: Path | None = None
    """Existing dataset of this kind; simulated in OUT/dataset if unset."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 4
    """Seed of phantoms and noise."""
    jobs: int = 2
    """Number of subjects that are simulated in parallel, each in its own process."""
    train: tuple[str, ...] = TRAIN
    """Subjects for training, without `sub-`; others than these with your own --dataset."""
    validation: tuple[str, ...] = VALIDATION
    """Subjects for validation."""
    test: tuple[str, ...] = TEST
    """Subjects for testing."""

    def __post_init__(self) -> None:
        self.simulation()

    @property
    def root(self) -> Path:
        """Folder of the dataset."""
        return self.out / "dataset" if self.dataset is None else self.dataset

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects of the whole split."""
        return self.train + self.validation + self.test

    def simulation(self) -> LabelledConfig:
        """Config of the simulation."""
        return LabelledConfig(
            out=self.root,
            labels=self.labels,
            subjects=len(SUBJECTS),
            voxel_mm=self.voxel_mm,
            seed=self.seed,
            snr=_SNR,
            orientations=_ORIENTATIONS,
            misregistration_mm=_MISREGISTRATION_MM,
            misregistration_deg=_MISREGISTRATION_DEG,
            residual_background_ppb=_RESIDUAL_BACKGROUND_PPB,
            tissue=TissueConfig(anisotropy_ppb=_ANISOTROPY_PPB),
            maps_only=True,
            labels_from_orientations=True,
            jobs=self.jobs,
        )


@dataclass(frozen=True, kw_only=True)
class AppliedConfig(ThesisConfig):
    """An experiment that applies trained networks."""

    weights_folder: Path | None = None
    """Folder of `chisep reproduce networks`; the packaged weights if unset."""


def dataset_of(config: ThesisConfig, progress: Progress | None = None) -> Path:
    """Return the given dataset, or simulate it; existing subjects are kept.

    Parameters
    ----------
    config
        Its folder, or the options of its simulation.
    progress
        Receives the subject that is being simulated.

    Raises
    ------
    InputError
        If the given dataset lacks a subject, or as `chisep.pipeline.labelled_dataset.simulate_labelled`.
    """
    if config.dataset is None:
        simulate_labelled(config.simulation(), progress)
    for subject in config.subjects:
        field_maps(folders(config.root), subject)
        records = [record_path(config.root, subject)] if has_truth(config.root) else []
        for path in (_label(config.root, subject, "paramagnetic"), *records):
            if not path.is_file():
                raise InputError(
                    path,
                    found="no such file",
                    expected=f"a dataset with labels of subjects {', '.join(config.subjects)}",
                    fix="Wait until it is done, leave --dataset out to make one, or give --train, "
                    "--validation and --test.",
                )
    return config.root


def has_truth(root: Path) -> bool:
    """Whether a dataset is simulated; that of `chisep orientations` has labels alone."""
    return (root / TRUTH).is_dir()


def references_of(root: Path) -> tuple[str, ...]:
    """Find the references that a dataset has, of `REFERENCES`."""
    return REFERENCES if has_truth(root) else REFERENCES[:1]


def origin_of(root: Path, subject: str) -> dict[str, Any]:
    """Everything that the maps of a subject depend on: record of its simulation, or checksums of its maps."""
    if has_truth(root):
        return dict(msgspec.to_builtins(record_of(root, subject)))
    paths = [*field_maps(folders(root), subject), _label(root, subject, "paramagnetic")]
    return {path.name: checksum(path) for path in paths}


def folders(
    root: Path,
    qsm: str = "qsmnet",
    *,
    train: tuple[str, ...] = TRAIN,
    validation: tuple[str, ...] = VALIDATION,
) -> FoldersConfig:
    """Folders and split of the dataset; `qsm` is the folder of input χ maps."""
    return FoldersConfig(dataset=root, train=train, validation=validation, qsm=qsm)


def record_of(root: Path, subject: str) -> SimulationRecord:
    """Read the record of a simulated subject.

    Raises
    ------
    InputError
        If chisep did not simulate it, or the record is damaged.
    """
    record = read_record(root, subject)
    if record is None:
        raise InputError(
            record_path(root, subject),
            found="no such file",
            expected="a subject that `chisep simulate` made",
            fix="Check the dataset and the subject.",
        )
    return record


def _label(root: Path, subject: str, desc: str) -> Path:
    return bids.derivative_path(folders(root).folder("labels"), subject, "Chimap", desc=desc)


@dataclass(frozen=True, eq=False)
class Case:
    """First scan of a subject, with its references.

    Parameters
    ----------
    maps
        Measured maps, without χ.
    references
        Sources by the names of `REFERENCES`.
    """

    maps: Maps
    references: Mapping[str, Sources]


def load_case(root: Path, subject: str) -> Case:
    """Read the first scan of a subject.

    Parameters
    ----------
    root
        The dataset.
    subject
        Label without `sub-`.

    Raises
    ------
    InputError
        If a map is missing, unreadable or on another grid.
    """
    where = folders(root)
    field_path = field_maps(where, subject)[0]
    field = nifti.load(field_path)
    mask = nifti.load_mask(bids.derivative_path(where.folder("masks"), subject, "mask", desc="brain"))
    facts = bids.read_sidecar(field_path, root)
    inside = torch.from_numpy(mask.data)

    def read(path: Path) -> Volume:
        image = nifti.load(path)
        nifti.require_same_grid(field, image)
        return torch.from_numpy(image.data) * inside

    def sources(folder: Path) -> Sources:
        pair = [
            bids.derivative_path(folder, subject, "Chimap", desc=d) for d in ("paramagnetic", "diamagnetic")
        ]
        return Sources(read(pair[0]), read(pair[1]))

    maps = Maps(
        field_ppm=read(field_path),
        mask=inside,
        grid=nifti.grid_of(field, facts.get("B0DirectionVoxelAxes")),
        relaxivity=default_relaxivity(float(facts.get("MagneticFieldStrength", 3.0))),
        r2prime_hz=read(r2prime_path(where, subject)),
        r2star_hz=read(acquisition_path(where, "r2star", subject, field_path)),
    )
    references = {"label": sources(where.folder("labels"))}
    if has_truth(root):
        references["truth"] = sources(root / TRUTH)
    return Case(maps, references)


def first_scan(config: ThesisConfig, subject: str) -> Case:
    """Simulate the first scan of a subject again, without the dataset and so without labels.

    Parameters
    ----------
    config
        Options of the dataset.
    subject
        Label without `sub-`.

    Raises
    ------
    InputError
        If the label map cannot be used.
    """
    return scanned(*first_maps(config.simulation(), SUBJECTS.index(subject)))


def scanned(tissue: Tissue, measured: MeasuredMaps) -> Case:
    """Case of a simulated scan, restricted to the brain."""
    mask = tissue.mask
    maps = Maps(
        field_ppm=measured.local_ppm * mask,
        mask=mask,
        grid=tissue.grid,
        relaxivity=tissue.relaxivity,
        r2prime_hz=measured.r2prime_hz * mask,
        r2star_hz=measured.r2star_hz * mask,
    )
    truth = Sources(tissue.chi_pos_ppm * mask, tissue.chi_neg_ppm * mask)
    return Case(maps, {"truth": truth})


def provenance(config: ThesisConfig) -> dict[str, Any]:
    """Version, dataset and options that numbers depend on, for the JSON file of a result."""
    own = {f.name for f in fields(config)}.difference(f.name for f in fields(ThesisConfig))
    options = {name: value for name, value in asdict(config).items() if name in own - _NO_OPTIONS}
    return {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Options": json.loads(json.dumps(options)),
        "Split": {"train": config.train, "validation": config.validation, "test": config.test},
        "Dataset": _dataset_facts(config),
    }


def _dataset_facts(config: ThesisConfig) -> dict[str, Any]:
    """Heads and options of a simulated dataset; names alone of another one, since heads are people."""
    if not has_truth(config.root):
        return {"Name": config.root.resolve().name}
    records = {subject: record_of(config.root, subject) for subject in config.subjects}
    first = records[config.subjects[0]]
    return {
        "GeneratedBy": first.generated_by,
        "Options": first.options,
        "Heads": {s: [record.head, record.head_sha256] for s, record in records.items()},
    }
