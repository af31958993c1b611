"""Simulated scans of one subject: BIDS raw data, and ground truth and maps as derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from torch import Tensor

import chisep
from chisep.io import bids, nifti
from chisep.io.files import write_json, write_text
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.config import SimulateConfig
from chisep.simulation.fields import dental_implants, total_field
from chisep.simulation.heads import head_maker
from chisep.simulation.kspace import block_mean
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.placement import lesion_table, make_patient, same_lesions
from chisep.simulation.measured import MeasuredMaps, measured_maps
from chisep.simulation.motion import (
    ORIENTATION_TILTS_DEG,
    Pose,
    moved,
    random_pose,
    random_rigid,
    reoriented,
    turned,
)
from chisep.simulation.scanner import scan_gre, scan_se, session_coils, stored_phase
from chisep.simulation.tissue import Tissue
from chisep.types import Affine, ComplexEchoes, Echoes, Volume

TRUTH = Path("derivatives", "truth")
"""Folder of the ground truth within the raw dataset."""
MAPS = Path("derivatives", "maps")
"""Folder of the maps of the map-level simulation."""


class SessionWriter:
    """Simulate the scans of one subject and write their files.

    Parameters
    ----------
    config
        Options of head and scanner.
    root
        Folder to write into as if it were the dataset.
    name
        Label of the subject.

    Attributes
    ----------
    affine
        Affine of all images, set by `make`.
    """

    affine: Affine

    def __init__(self, config: SimulateConfig, root: Path, name: str) -> None:
        self.config, self.root, self.name = config, root, name

    def make(self, head: LabelMap, rng: np.random.Generator) -> None:
        """Simulate the head and its scans, and write all files."""
        config = self.config
        # Each part has its own random stream, so that a change of one does not change the others.
        anatomy_rng, tissue_rng, gre_rng, se_rng, coils_rng, motion_rng, implant_rng, *more = rng.spawn(10)
        warp_rng, lesion_rng, maps_rng = more
        tissue_of = head_maker(config, head, anatomy_rng, tissue_rng, warp_rng)
        patient = make_patient(tissue_of(config.voxel_edges_mm), lesion_rng, config.patient)
        tissue = patient.tissue
        implants_mm = dental_implants(tissue, config.dental_implants, implant_rng, config.tilt_deg)
        self.affine = tissue.grid.matrix()
        self._write_truth(tissue)
        self._write_lesions(patient)
        # Signals are computed on these voxels: of the same head, maybe finer.
        fine = tissue
        if config.oversampling > 1 and not config.maps_only:
            fine = same_lesions(patient, tissue_of(config.fine_voxel_edges_mm)).tissue
        coils = None if config.maps_only else session_coils(fine, config, coils_rng)
        gre_rngs, rest_rngs = gre_rng.spawn(config.orientations), motion_rng.spawn(config.orientations)
        maps_rngs = gre_rngs if coils is None else maps_rng.spawn(config.orientations)
        for number, tilt_deg in enumerate(ORIENTATION_TILTS_DEG[: config.orientations]):
            acq = f"ori{number + 1}" if config.orientations > 1 else None
            rest, pose = np.eye(4), None
            if number and config.raw_orientations:
                pose = random_pose(
                    tissue,
                    tilt_deg,
                    config.orientation_shift_mm,
                    config.orientation_turn_deg,
                    config.slab_turn_deg,
                    rest_rngs[number],
                )
                self._write_pose(pose, acq)
            elif number:
                rest = random_rigid(
                    fine, config.misregistration_mm, config.misregistration_deg, rest_rngs[number]
                )
            misregistration = {"ResidualMisregistrationWorldMm": rest.tolist()}
            if config.maps:
                oriented = _turned(tissue, tilt_deg, pose) if number else tissue
                maps = measured_maps(oriented, config, maps_rngs[number], implants_mm)
                # As in vivo, the spin echo is acquired in one head orientation.
                self._write_maps(
                    oriented, _misregistered(maps, oriented, rest), acq, misregistration, spin_echo=not number
                )
                if coils is None:
                    self._write_field(oriented, maps.fields.local_ppm * oriented.mask, acq, {})
            if coils is not None:
                oriented = _turned(fine, tilt_deg, pose) if number else fine
                field = total_field(oriented, implants_mm)
                local = block_mean(field.local_ppm, config.oversampling) * tissue.mask
                self._write_field(oriented, local, acq, misregistration)
                scan = scan_gre(
                    oriented,
                    field.total_ppm,
                    coils,
                    config,
                    gre_rngs[number],
                    transform=rest,
                    pose=None if pose is None else pose.finer(config.oversampling),
                )
                self._write_gre(oriented, scan, acq, pose)
        if coils is not None and not config.megre_only:
            motion = random_rigid(fine, config.motion_mm, config.motion_deg, motion_rng)
            self._write_motion(motion)
            self._write_se(scan_se(fine, coils, config, se_rng, transform=motion))

    def _write_gre(self, tissue: Tissue, scan: ComplexEchoes, acq: str | None, pose: Pose | None) -> None:
        config = self.config
        affine = self.affine if pose is None else pose.affine
        b0 = {} if config.raw_orientations else {"B0DirectionVoxelAxes": list(tissue.grid.b0_direction)}
        facts = self._facts | {
            "PulseSequenceType": "Multi-echo gradient echo",
            "ScanningSequence": "GR",
            "RepetitionTimeExcitation": config.tr_gre_s,
            "FlipAngle": config.flip_deg,
            **b0,
        }
        phase_type = np.float32 if config.phase_units == "rad" else np.int16
        for echo, (signal, te_s) in enumerate(zip(scan, config.te_gre_s, strict=True), start=1):
            facts = facts | {"EchoTime": te_s, "EchoNumber": echo}
            image = bids.raw_path(self.root, self.name, "MEGRE", echo=echo, part="mag")
            self._write(acquired(image, acq), signal.abs(), facts | {"Units": "arbitrary"}, affine=affine)
            image = bids.raw_path(self.root, self.name, "MEGRE", echo=echo, part="phase")
            phase = stored_phase(signal, config.phase_units)
            units = {"Units": config.phase_units}
            self._write(acquired(image, acq), phase, facts | units, phase_type, affine=affine)

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
            # A raw spin echo is of one head orientation, and its name says which.
            image = acquired(image, "ori1" if self.config.raw_orientations else None)
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
        """Write label map and table of the lesions; nothing for a healthy head."""
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
        """Write the motion between gradient echo and spin echo."""
        facts = {"Description": "Where points of the head in the MEGRE lie in the MESE, in world mm"}
        path = self._derived(TRUTH, "motion", "xfm").with_suffix("").with_suffix(".json")
        write_json(path, facts | {"MegreToMeseWorldMm": transform.tolist()})

    def _write_pose(self, pose: Pose, acq: str | None) -> None:
        """Write the motion of the head from the first scan to another."""
        facts = {"Description": "Where points of the head in the first MEGRE lie in this one, in world mm"}
        path = self._derived(TRUTH, "motion", "xfm").with_suffix("").with_suffix(".json")
        write_json(acquired(path, acq), facts | {"FirstToThisWorldMm": pose.transform.tolist()})

    def _write_maps(
        self,
        tissue: Tissue,
        maps: MeasuredMaps,
        acq: str | None,
        misregistration: Mapping[str, Any],
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
            facts: dict[str, Any] = {"Units": units, **misregistration}
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
        self,
        path: Path,
        data: Tensor,
        facts: Mapping[str, Any],
        dtype: DTypeLike = np.float32,
        *,
        affine: Affine | None = None,
    ) -> None:
        """Write an image and its sidecar."""
        write_json(bids.sidecar_of(path), facts)
        nifti.save(path, data.numpy(), self.affine if affine is None else affine, dtype=dtype)


def _turned(tissue: Tissue, tilt_deg: Sequence[float], pose: Pose | None) -> Tissue:
    """Head as B0 sees it in one orientation."""
    return reoriented(tissue, tilt_deg) if pose is None else turned(tissue, pose.transform[:3, :3])


def _misregistered(maps: MeasuredMaps, tissue: Tissue, rest: Affine) -> MeasuredMaps:
    """Move maps by the residual misregistration; their noise does not move."""
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
    """Path of an image with the entity acq; unchanged if `acq` is None."""
    subject, rest = path.name.split("_", 1)
    return path if acq is None else path.with_name(f"{subject}_acq-{acq}_{rest}")
