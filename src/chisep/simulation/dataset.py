"""Simulated scan sessions on disk: a BIDS raw dataset, and the truth beside it as derivatives."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIG_IGN, SIGINT
from signal import signal as on_signal
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import DTypeLike
from torch import Tensor

import chisep
from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import checksum, make_directory, write_json, write_text
from chisep.progress import Progress
from chisep.simulation.anatomy import LabelMap, load_labels, packaged_labels, tilted, with_structures
from chisep.simulation.fields import dental_implants, total_field
from chisep.simulation.kspace import block_mean
from chisep.simulation.labelmap import coarsened
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.kinds import PatientConfig
from chisep.simulation.lesions.placement import lesion_table, make_patient, same_lesions
from chisep.simulation.measured import MeasuredMaps, measured_maps
from chisep.simulation.motion import ORIENTATION_TILTS_DEG, moved, random_rigid, reoriented
from chisep.simulation.scanner import ScannerConfig, scan_gre, scan_se, session_coils, stored_phase
from chisep.simulation.tissue import REGIONS, Tissue, TissueConfig, make_tissue
from chisep.simulation.warps import WarpConfig, warped
from chisep.types import Affine, ComplexEchoes, Echoes, Volume

TRUTH = Path("derivatives", "truth")
"""Where the truth lies within the raw dataset."""
MAPS = Path("derivatives", "maps")
"""Where the maps of the fast path lie."""

_README = """Simulated multi-echo gradient-echo and spin-echo scans
======================================================

Digital heads made by chisep: no scan of a person is in here. `derivatives/truth` holds the maps that made
the scans: sources χ_pos and χ_neg (ppm; χ_neg is a positive magnitude), their local field (ppm), R2, R2'
and R2* (1/s), the brain mask and the labels. All but the labels are 0 outside the brain mask.
Scans `acq-ori1`, `acq-ori2`, … are of one head in several poses, registered to the first: their voxels and
affine are those of the first, and `B0DirectionVoxelAxes` in the sidecar is where B0 points.
Lesions of a patient, if there are any, are in `desc-lesion_dseg` of the truth and the table beside it.
"""
_GRE_STREAM = 2
"""Of a subject's streams of random numbers, the one that its gradient echoes draw noise from."""
_NOT_IN_RECIPE = ("out", "subjects", "labels", "jobs")


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(ScannerConfig):
    """Simulated scan sessions, and the scanner that makes them."""

    out: tyro.conf.Positional[Path]
    """Folder of the BIDS dataset to write."""
    subjects: int = 1
    """Number of people."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers, one a subject, used again when they run out; none: MNI head."""
    seed: int = 0
    """Seed of all that is random; a subject does not depend on how many there are."""
    megre_only: bool = False
    """Leave out the spin-echo scan."""
    maps: bool = False
    """Write fields and R2' with their noise too, in derivatives/maps, as perfect processing would give."""
    maps_only: bool = False
    """Write these maps and no scans (fast, for training)."""
    jobs: int = 1
    """Subjects made at the same time, each in a process of its own."""
    warp: WarpConfig = field(default_factory=WarpConfig)
    """How the head differs from its label map."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """How people and voxels differ."""
    patient: PatientConfig = field(default_factory=PatientConfig)
    """Lesions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("subjects", "jobs"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(name, found=f"{value}", expected="1 or more", fix="Correct the option.")
        if self.seed < 0:
            raise InputError("seed", found=f"{self.seed}", expected="0 or more", fix="Correct the option.")
        self.tissue.relaxivity(self.b0_t)
        if self.maps_only:
            object.__setattr__(self, "maps", True)


def simulate(
    config: SimulateConfig, progress: Progress | None = None, *, paint_mm: float | None = None
) -> list[str]:
    """Write a simulated dataset; subjects that are there from equal options are kept.

    Parameters
    ----------
    config
        What to simulate, and where.
    progress
        Called with the subject that is being simulated (or was, where several run in parallel), and with how
        many are done.
    paint_mm
        Paint tissue on label voxels of this size instead of the label map's own, divided to `refine_mm`: a
        quick look. At 4 mm a subject takes 2 s rather than 13 s, but thin structures are coarse.

    Returns
    -------
    list of str
        Labels of the subjects, without `sub-`.

    Raises
    ------
    InputError
        If a label map cannot be used, or a participant is there that chisep did not simulate; nothing is
        written then.
    OutputError
        If the dataset cannot be written.
    """
    works = [_Work(config, k, paint_mm) for k in range(config.subjects)]
    missing = [work for work in works if not work.is_done()]
    for work in missing:
        work.refuse_others()
    heads = {work.labels: _head(work.labels) for work in missing}
    make_directory(config.out)
    _write_dataset_files(config)
    finished = (
        _made_here(missing, heads, progress)
        if config.jobs == 1 or len(missing) < 2
        else _made_apart(missing, heads, config.jobs)
    )
    for done, name in enumerate(finished, start=len(works) - len(missing) + 1):
        if progress is not None:
            progress(f"sub-{name}", done, len(works))
    _write_participants(config.out)
    return [work.name for work in works]


# ---- subjects that are whole or absent ---------------------------------------------------------------------


class _Work:
    """One subject: whether it is there, and how it gets there.

    Parameters
    ----------
    config
        Of the dataset.
    index
        Number of the subject, from 0.
    paint_mm
        Voxel edge that tissue is painted on; None: as the label map and the config have it.
    """

    def __init__(self, config: SimulateConfig, index: int, paint_mm: float | None = None) -> None:
        self.config, self.index, self.name = config, index, f"{index + 1:02d}"
        self.paint_mm = paint_mm
        self.labels = config.labels[index % len(config.labels)] if config.labels else None
        subject = Path(f"sub-{self.name}")
        # The truth holds the recipe: it comes first and goes last.
        maps, scans = [MAPS / subject] * config.maps, [subject] * (not config.maps_only)
        self.folders = (TRUTH / subject, *maps, *scans)

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the files depend on, as it is stored beside the truth."""
        # A config may be a subclass, whose further options do not change what is made here.
        names = {f.name for f in fields(SimulateConfig)}.difference(_NOT_IN_RECIPE)
        options = {k: v for k, v in asdict(self.config).items() if k in names}
        head, sha256 = "packaged MNI152 head", None
        if self.labels is not None and self.labels.is_file():
            head, sha256 = self.labels.name, checksum(self.labels)
        facts: dict[str, Any] = {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Head": head,
            "HeadSha256": sha256,
        }
        if self.paint_mm is not None:
            facts["PaintMm"] = self.paint_mm
        # As it is read back: JSON has no tuples, paths or infinity.
        recipe = json.dumps(facts | {"Options": options}, default=str)
        return dict(json.loads(recipe, parse_constant=str))

    def is_done(self) -> bool:
        """Whether all is there from the same recipe."""
        out = self.config.out
        return all((out / f).is_dir() for f in self.folders) and _recipe(out, self.name) == self.recipe

    def refuse_others(self) -> None:
        """Check that nothing would be replaced but what chisep simulated.

        Raises
        ------
        InputError
            If it would.
        """
        for folder in self.folders:
            if (self.config.out / folder).exists() and _recipe(self.config.out, self.name) is None:
                raise InputError(
                    self.config.out / folder,
                    found="a participant that chisep did not simulate",
                    expected="an empty place, or an earlier simulation",
                    fix="Choose another folder for the simulated dataset, or remove that participant.",
                )

    def make(self, head: LabelMap) -> None:
        """Make the subject under a temporary name, then put it in its place."""
        out = self.config.out
        temporary = out / f".sub-{self.name}.chisep-tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            rng = np.random.default_rng([self.config.seed, self.index])
            config = self.config
            if self.paint_mm is not None:
                head = coarsened(head, self.paint_mm)
                refine_mm = max(config.tissue.refine_mm, self.paint_mm)
                config = replace(config, tissue=replace(config.tissue, refine_mm=refine_mm))
            _Session(config, temporary, self.name).make(head, rng)
            write_json(_recipe_path(temporary, self.name), self.recipe)
            for number, folder in enumerate(reversed(self.folders)):
                if (out / folder).exists():
                    (out / folder).replace(make_directory(temporary / "old") / str(number))
            for folder in self.folders:
                make_directory((out / folder).parent)
                (temporary / folder).replace(out / folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _head(labels: Path | None) -> LabelMap:
    return packaged_labels() if labels is None else load_labels(labels)


def _recipe_path(root: Path, name: str) -> Path:
    return root / TRUTH / f"sub-{name}" / f"sub-{name}_simulation.json"


def _recipe(root: Path, name: str) -> dict[str, Any] | None:
    """Recipe that a subject was made by; None where chisep made none."""
    path = _recipe_path(root, name)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _made_here(
    works: list[_Work], heads: Mapping[Path | None, LabelMap], progress: Progress | None
) -> Iterator[str]:
    """Make subjects one after the other; yields the name of each."""
    total = works[0].config.subjects if works else 0
    for number, work in enumerate(works):
        if progress is not None:
            progress(f"sub-{work.name}", total - len(works) + number, total)
        work.make(heads[work.labels])
        yield work.name


def _made_apart(works: list[_Work], heads: Mapping[Path | None, LabelMap], jobs: int) -> Iterator[str]:
    """Make several subjects at a time in processes; yields the name of each."""
    threads = max(1, torch.get_num_threads() // jobs)
    # Processes start afresh: copies of one whose threads are at work may hang.
    context = multiprocessing.get_context("spawn")
    alive, here = context.Pipe(duplex=False)
    with (
        here,
        ProcessPoolExecutor(jobs, context, initializer=_begin_apart, initargs=(threads, alive)) as pool,
    ):
        names = {pool.submit(_make_apart, work, heads[work.labels]): work.name for work in works}
        try:
            for future in as_completed(names):
                for message in future.result():
                    warnings.warn(message, ChisepWarning, stacklevel=3)
                yield names[future]
        except (KeyboardInterrupt, GeneratorExit):
            here.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_apart(threads: int, alive: Connection) -> None:
    """Set a process up, to end at once when the one that started it closes its side or ends, however that."""

    def end_with_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    on_signal(SIGINT, SIG_IGN)  # Ctrl-C is the parent's to act on
    torch.set_num_threads(threads)


def _make_apart(work: _Work, head: LabelMap) -> list[str]:
    """Make a subject in this process; returns what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work.make(head)
    return [str(warning.message) for warning in caught if issubclass(warning.category, ChisepWarning)]


def healthy_tissue(config: SimulateConfig, index: int) -> Tissue:
    """Make the head of a subject again as `simulate` makes it, without lesions.

    Parameters
    ----------
    config
        Of the dataset.
    index
        Number of the subject, from 0.

    Returns
    -------
    Tissue
        On the voxels of the scan.

    Raises
    ------
    InputError
        If its label map cannot be used.
    """
    head = _head(_Work(config, index).labels)
    streams = np.random.default_rng([config.seed, index]).spawn(8)
    return _tissues(config, head, streams[0], streams[1], streams[7])(config.voxel_edges_mm)


def first_maps(config: SimulateConfig, index: int) -> tuple[Tissue, MeasuredMaps]:
    """Make the maps of a subject's first scan again as `simulate` makes them with `maps_only`.

    Parameters
    ----------
    config, index
        As of `healthy_tissue`; a dataset of maps only, without lesions and implants.

    Returns
    -------
    tuple
        The head, and what is measured of it.

    Raises
    ------
    InputError
        If its label map cannot be used.
    """
    tissue = healthy_tissue(config, index)
    gre_rng = np.random.default_rng([config.seed, index]).spawn(_GRE_STREAM + 1)[_GRE_STREAM]
    return tissue, measured_maps(tissue, config, gre_rng.spawn(config.orientations)[0])


def _tissues(
    config: SimulateConfig,
    head: LabelMap,
    anatomy_rng: np.random.Generator,
    tissue_rng: np.random.Generator,
    warp_rng: np.random.Generator,
) -> Callable[[tuple[float, float, float]], Tissue]:
    """Make a person of a label map; returns the function that puts the same head on voxels of any size."""
    head = warped(head, config.warp, warp_rng)
    head = tilted(with_structures(head, anatomy_rng), config.tilt_deg)

    def tissue_of(voxel_mm: tuple[float, float, float]) -> Tissue:
        same_rng = copy.deepcopy(tissue_rng)
        return make_tissue(head, same_rng, config.tissue, voxel_mm=voxel_mm, b0_t=config.b0_t)

    return tissue_of


# ---- one subject -------------------------------------------------------------------------------------------


class _Session:
    """The scans of one subject, and the files that they become.

    Parameters
    ----------
    config
        Head and scanner.
    root
        Folder to write into as if it were the dataset.
    name
        Label of the subject.

    Attributes
    ----------
    affine
        Of all images; known when the tissue is made.
    """

    affine: Affine

    def __init__(self, config: SimulateConfig, root: Path, name: str) -> None:
        self.config, self.root, self.name = config, root, name

    def make(self, head: LabelMap, rng: np.random.Generator) -> None:
        """Make the head, scan it, write all."""
        config = self.config
        # Each part draws from a stream of its own, so that changing one leaves the others as they were.
        anatomy_rng, tissue_rng, gre_rng, se_rng, coils_rng, motion_rng, implant_rng, *more = rng.spawn(10)
        warp_rng, lesion_rng, maps_rng = more
        tissue_of = _tissues(config, head, anatomy_rng, tissue_rng, warp_rng)
        patient = make_patient(tissue_of(config.voxel_edges_mm), lesion_rng, config.patient)
        tissue = patient.tissue
        implants_mm = dental_implants(tissue, config.dental_implants, implant_rng, config.tilt_deg)
        self.affine = tissue.grid.matrix()
        self._write_truth(tissue)
        self._write_lesions(patient)
        # Voxels that signals are made on; the same head where they are finer.
        fine = tissue
        if config.oversampling > 1 and not config.maps_only:
            fine = same_lesions(patient, tissue_of(config.fine_voxel_edges_mm)).tissue
        coils = None if config.maps_only else session_coils(fine, config, coils_rng)
        gre_rngs, rest_rngs = gre_rng.spawn(config.orientations), motion_rng.spawn(config.orientations)
        maps_rngs = gre_rngs if coils is None else maps_rng.spawn(config.orientations)
        for number, tilt_deg in enumerate(ORIENTATION_TILTS_DEG[: config.orientations]):
            acq = f"ori{number + 1}" if config.orientations > 1 else None
            rest = np.eye(4)
            if number:
                rest = random_rigid(
                    fine, config.misregistration_mm, config.misregistration_deg, rest_rngs[number]
                )
            misplaced = {"ResidualMisregistrationWorldMm": rest.tolist()}
            if config.maps:
                posed = reoriented(tissue, tilt_deg) if number else tissue
                maps = measured_maps(posed, config, maps_rngs[number], implants_mm)
                # As of people, the spin echo is acquired in one pose.
                self._write_maps(posed, _misplaced(maps, posed, rest), acq, misplaced, spin_echo=not number)
                if coils is None:
                    self._write_field(posed, maps.fields.local_ppm * posed.mask, acq, {})
            if coils is not None:
                posed = reoriented(fine, tilt_deg) if number else fine
                field = total_field(posed, implants_mm)
                local = block_mean(field.local_ppm, config.oversampling) * tissue.mask
                self._write_field(posed, local, acq, misplaced)
                scan = scan_gre(posed, field.total_ppm, coils, config, gre_rngs[number], transform=rest)
                self._write_gre(posed, scan, acq)
        if coils is not None and not config.megre_only:
            motion = random_rigid(fine, config.motion_mm, config.motion_deg, motion_rng)
            self._write_motion(motion)
            self._write_se(scan_se(fine, coils, config, se_rng, transform=motion))

    def _write_gre(self, tissue: Tissue, scan: ComplexEchoes, acq: str | None) -> None:
        config = self.config
        facts = self._facts | {
            "PulseSequenceType": "Multi-echo gradient echo",
            "ScanningSequence": "GR",
            "RepetitionTimeExcitation": config.tr_gre_s,
            "FlipAngle": config.flip_deg,
            "B0DirectionVoxelAxes": list(tissue.grid.b0_direction),
        }
        phase_type = np.float32 if config.phase_units == "rad" else np.int16
        for echo, (signal, te_s) in enumerate(zip(scan, config.te_gre_s, strict=True), start=1):
            facts = facts | {"EchoTime": te_s, "EchoNumber": echo}
            image = bids.raw_path(self.root, self.name, "MEGRE", echo=echo, part="mag")
            self._write(acquired(image, acq), signal.abs(), facts | {"Units": "arbitrary"})
            image = bids.raw_path(self.root, self.name, "MEGRE", echo=echo, part="phase")
            phase = stored_phase(signal, config.phase_units)
            self._write(acquired(image, acq), phase, facts | {"Units": config.phase_units}, phase_type)

    def _write_se(self, scan: Echoes) -> None:
        facts = self._facts | {
            "PulseSequenceType": "Multi-echo spin echo",
            "ScanningSequence": "SE",
            "RepetitionTimeExcitation": self.config.tr_se_s,
            "FlipAngle": 90.0,
            "Units": "arbitrary",
        }
        for echo, (magnitude, te_s) in enumerate(zip(scan, self.config.te_se_s, strict=True), start=1):
            image = bids.raw_path(self.root, self.name, "MESE", echo=echo)
            self._write(image, magnitude, facts | {"EchoTime": te_s, "EchoNumber": echo})

    @property
    def _facts(self) -> dict[str, Any]:
        return {
            "Manufacturer": "chisep",
            "ManufacturersModelName": "digital head",
            "SoftwareVersions": chisep.__version__,
            "Modality": "MR",
            "MagneticFieldStrength": self.config.b0_t,
        }

    def _write_truth(self, tissue: Tissue) -> None:
        dr = {
            "DrPositiveHzPerPpm": tissue.relaxivity.pos_hz_per_ppm,
            "DrNegativeHzPerPpm": tissue.relaxivity.neg_hz_per_ppm,
        }
        mask, chi_pos, chi_neg = tissue.mask, tissue.chi_pos_ppm, tissue.chi_neg_ppm
        r2, r2prime = tissue.r2_hz, tissue.r2prime_hz
        described: list[tuple[str | None, str, Volume, dict[str, Any]]] = [
            ("paramagnetic", "Chimap", chi_pos, {"Description": "χ_pos, paramagnetic sources"}),
            ("diamagnetic", "Chimap", chi_neg, {"Description": "χ_neg, a positive magnitude"}),
            ("total", "Chimap", chi_pos - chi_neg, {"Description": "χ_pos − χ_neg"}),
            (None, "R2map", r2 * mask, {}),
            (None, "R2primemap", r2prime, dr),
            (None, "R2starmap", (r2 + r2prime) * mask, dr),
        ]
        if tissue.fibre_angle_rad is not None:
            angle = {"Description": "Angle between fibres and B0, 0 to π/2; in the first pose of several"}
            described.append(("fibre", "anglemap", tissue.fibre_angle_rad, angle))
        for desc, suffix, volume, facts in described:
            units = {"Units": {"Chimap": "ppm", "anglemap": "rad"}.get(suffix, "1/s")}
            self._write_derived(TRUTH, desc, suffix, volume, tissue, units | facts)
        image = self._derived(TRUTH, "brain", "mask")
        self._write(image, mask, {"Type": "Brain"}, np.uint8)
        labels = self._derived(TRUTH, None, "dseg")
        self._write(labels, tissue.labels, {"Description": "Names in dseg.tsv"}, np.int16)

    def _write_lesions(self, patient: Patient) -> None:
        """Write where lesions are, and a table of them beside; nothing for a healthy head."""
        if not patient.lesions:
            return
        image = self._derived(TRUTH, "lesion", "dseg")
        facts = {"Description": "Voxels wholly in a lesion; its kind and strength in the table of this name"}
        self._write(image, patient.labels, facts, np.int16)
        write_text(bids.sidecar_of(image).with_suffix(".tsv"), lesion_table(patient.lesions))

    def _write_field(self, tissue: Tissue, local_ppm: Volume, acq: str | None, facts: dict[str, Any]) -> None:
        facts = {"Units": "ppm", "Description": "Field of the sources in the mask"} | facts
        self._write_derived(TRUTH, "local", "fieldmap", local_ppm, tissue, facts, acq)

    def _write_motion(self, transform: Affine) -> None:
        """Say where the head went between gradient echo and spin echo."""
        facts = {"Description": "Where points of the head in the MEGRE lie in the MESE, in world mm"}
        path = self._derived(TRUTH, "motion", "xfm").with_suffix("").with_suffix(".json")
        write_json(path, facts | {"MegreToMeseWorldMm": transform.tolist()})

    def _write_maps(
        self,
        tissue: Tissue,
        maps: MeasuredMaps,
        acq: str | None,
        misplaced: Mapping[str, Any],
        *,
        spin_echo: bool,
    ) -> None:
        inside = tissue.mask
        described: list[tuple[str | None, str, Volume, Volume | None, str]] = [
            ("local", "fieldmap", maps.local_ppm, maps.field_sigma_ppm, "ppm"),
            ("total", "fieldmap", maps.total_ppm, maps.field_sigma_ppm, "ppm"),
            (None, "R2starmap", maps.r2star_hz, None, "1/s"),
        ]
        if spin_echo:
            described += [
                (None, "R2primemap", maps.r2prime_hz, maps.r2prime_sigma_hz, "1/s"),
                (None, "R2map", maps.r2_hz, None, "1/s"),
            ]
        for desc, suffix, volume, sigma, units in described:
            facts: dict[str, Any] = {"Units": units, **misplaced}
            if sigma is not None:
                facts["NoiseSdMedian"] = float(sigma[inside].median())
            self._write_derived(MAPS, desc, suffix, volume, tissue, facts, acq)

    def _write_derived(
        self,
        folder: Path,
        desc: str | None,
        suffix: str,
        volume: Volume,
        tissue: Tissue,
        facts: Mapping[str, Any],
        acq: str | None = None,
    ) -> None:
        common = {
            "SkullStripped": True,
            "MagneticFieldStrength": self.config.b0_t,
            "B0DirectionVoxelAxes": list(tissue.grid.b0_direction),
        }
        self._write(acquired(self._derived(folder, desc, suffix), acq), volume, {**common, **facts})

    def _derived(self, folder: Path, desc: str | None, suffix: str) -> Path:
        return bids.derivative_path(self.root / folder, self.name, suffix, desc=desc)

    def _write(
        self, path: Path, data: Tensor, facts: Mapping[str, Any], dtype: DTypeLike = np.float32
    ) -> None:
        """Write an image and its sidecar."""
        write_json(bids.sidecar_of(path), facts)
        nifti.save(path, data.numpy(), self.affine, dtype=dtype)


def _misplaced(maps: MeasuredMaps, tissue: Tissue, rest: Affine) -> MeasuredMaps:
    """Move maps by what a registration left; their noise stays that of the scan."""
    if np.array_equal(rest, np.eye(4)):
        return maps

    def change(volume: Volume) -> Volume:
        return (moved(volume, tissue.grid.matrix(), rest) - volume) * tissue.mask

    r2prime, r2 = change(tissue.r2prime_hz), change(tissue.r2_hz)
    return replace(
        maps,
        local_ppm=maps.local_ppm + change(maps.fields.local_ppm),
        total_ppm=maps.total_ppm + change(maps.fields.total_ppm),
        r2star_hz=(maps.r2star_hz + r2prime + r2).clamp_(min=0),
        r2_hz=(maps.r2_hz + r2).clamp_(min=0),
        r2prime_hz=(maps.r2prime_hz + r2prime).clamp_(min=0),
    )


def acquired(path: Path, acq: str | None) -> Path:
    """Path of an image of one of several acquisitions; as it is where `acq` is None."""
    subject, rest = path.name.split("_", 1)
    return path if acq is None else path.with_name(f"{subject}_acq-{acq}_{rest}")


# ---- the dataset -------------------------------------------------------------------------------------------


def _write_dataset_files(config: SimulateConfig) -> None:
    out, truth = config.out, config.out / TRUTH
    bids.write_dataset_description(out, "Simulated scans of digital heads")
    bids.write_dataset_description(truth, "Truth of simulated scans of digital heads", derivative=True)
    if config.maps:
        bids.write_dataset_description(out / MAPS, "Fields and R2' of digital heads", derivative=True)
    write_text(out / "README", _README)
    looked_up = sorted(pair for region in REGIONS for pair in region.names())
    table = ["index\tname", *(f"{index}\t{label}" for index, label in looked_up)]
    write_text(truth / "dseg.tsv", "\n".join(table) + "\n")


def _write_participants(out: Path) -> None:
    """List everyone who is there, those of earlier runs too: all in the truth, who has scans in the root."""
    names = sorted(folder.name.removeprefix("sub-") for folder in (out / TRUTH).glob("sub-*"))
    recipes = {name: recipe for name in names if (recipe := _recipe(out, name)) is not None}
    for root in (out, out / TRUTH):
        here = {f"sub-{name}": recipe for name, recipe in recipes.items() if (root / f"sub-{name}").is_dir()}
        # BIDS allows no table without people.
        if here:
            rows = [f"{name}\tn/a\t{recipe['Head']}" for name, recipe in here.items()]
            table = ["participant_id\tspecies\thead", *rows]
            write_json(root / "participants.json", {"head": {"Description": "Label map of the head"}})
            write_text(root / "participants.tsv", "\n".join(table) + "\n")
