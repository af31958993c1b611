"""Stages of one orientation: `pose`, registration to the reference, and `align`, maps on its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chisep.io import bids, nifti
from chisep.io.echoes import files_of
from chisep.io.files import write_json
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.files import SessionFiles, StageFiles
from chisep.pipeline.orientations.config import OrientationsConfig
from chisep.preprocessing.head_orientation import (
    b0_in_reference,
    find_pose,
    noise_gain,
    to_reference,
)
from chisep.preprocessing.head_size import length_scale
from chisep.preprocessing.relaxometry import FEWEST_ECHOES
from chisep.types import Affine, MaskVolume

MAPS = Path("derivatives", "maps")
"""Folder of the maps of every orientation within OUT."""
_LITTLE_KNOWN = 0.5
_INTERPOLATION = "splines of order 5; linear of standard deviations"
_DIFFERENCE = ("r2prime", "r2prime_sigma")


@dataclass(frozen=True, eq=False)
class ScanFiles:
    """Files of one orientation: on its own grid, and on that of the reference.

    Parameters
    ----------
    own
        Files of the scan, as `chisep run` names them.
    out
        Derivatives dataset.
    label
        Label of the orientation.
    reference
        Label of the reference.
    """

    own: SessionFiles
    out: Path
    label: str
    reference: str

    @property
    def name(self) -> str:
        """Name of the scan."""
        return self.own.session.name

    @property
    def is_reference(self) -> bool:
        """Whether this is the reference."""
        return self.label == self.reference

    @property
    def has_r2star(self) -> bool:
        """Whether there are echoes enough for R2*."""
        return len(self.own.session.megre.te_s) >= FEWEST_ECHOES

    @property
    def has_r2prime(self) -> bool:
        """Whether R2' was measured in this orientation."""
        return self.own.session.mese is not None and self.has_r2star

    @property
    def transform(self) -> Path:
        """Motion of the head from the reference to this scan."""
        ends = {"from": self.reference or "reference", "to": self.label or "scan"}
        return self.own.session.output(self.out, "xfm", ext=".json", **ends)

    def aligned(self, suffix: str, **entities: str) -> Path:
        """Path of a map on the grid of the reference."""
        return self.own.session.output(self.out / MAPS, suffix, **entities)

    @property
    def field(self) -> Path:
        """Local field on the grid of the reference."""
        return self.aligned("fieldmap", desc="local")

    @property
    def sigma(self) -> Path:
        """Its standard deviation."""
        return self.aligned("fieldmap", desc="local", stat="std")

    @property
    def noise(self) -> Path:
        """Standard deviation of the noise of the field, without the error of background removal."""
        return self.aligned("fieldmap", stat="std")

    @property
    def known(self) -> Path:
        """Where it is known."""
        return self.aligned("mask", desc="eroded")

    @property
    def residual(self) -> Path:
        """Local field less that of COSMOS."""
        return self.aligned("fieldmap", desc="residual")

    @property
    def r2star(self) -> Path:
        """R2* on the grid of the reference."""
        return self.aligned("R2starmap")

    @property
    def r2prime(self) -> tuple[Path, Path]:
        """R2' on the grid of the reference, and its standard deviation."""
        return self.aligned("R2primemap"), self.aligned("R2primemap", stat="std")


def pose_stage(config: OrientationsConfig, scan: ScanFiles, reference: ScanFiles) -> Stage:
    """Rigid registration of an orientation to the reference."""
    moving, fixed = scan.own.session.megre.magnitude, reference.own.session.megre.magnitude

    def work(declared: DeclaredFiles) -> StageResult:
        there, here = StageFiles(scan.own, declared), StageFiles(reference.own, declared)
        brain = here.load_mask("mask")
        found = find_pose(
            there.echoes(moving),
            there.affine,
            there.load_mask("mask"),
            here.echoes(fixed),
            here.affine,
            brain,
            config.pose,
            length_scale=length_scale(brain, here.grid),
        )
        rigid = found.rigid
        usable = rigid.found and not found.mirrored
        facts: dict[str, Any] = {
            "Registered": usable,
            "MirrorImage": found.mirrored,
            "ShiftMm": [round(mm, 3) for mm in rigid.translation_mm],
            "RotationDeg": round(rigid.rotation_deg, 3),
            "SharedContrast": round(rigid.contrast, 4) if math.isfinite(rigid.contrast) else None,
        }
        there_path = declared.write(scan.transform)
        content = {
            "Description": f"Where points of the head in {reference.name} lie in {scan.name}, in world mm",
            "ReferenceToThisWorldMm": rigid.fixed_to_moving_mm.tolist(),
            **facts,
        }
        write_json(there_path, content)
        return StageResult(facts, [*_left_out(scan, found.mirrored, rigid.warnings, usable)])

    return Stage(
        "pose",
        "where the head lay in this scan, from the reference",
        [
            *files_of(moving),
            *files_of(fixed),
            scan.own["mask"],
            reference.own["mask"],
        ],
        [scan.transform],
        {**asdict(config.pose), "Reference": reference.name},
        work,
    )


def _left_out(scan: ScanFiles, mirrored: bool, warnings: tuple[str, ...], usable: bool) -> list[str]:
    if mirrored:
        return [
            f"{scan.name} is left out: its left and right are exchanged (its mirror image fits the "
            "reference, the scan does not); correct the order of its voxels or its affine"
        ]
    if not usable:
        why = "; ".join(warnings).replace("; the alignment of the headers is kept", "")
        return [f"{scan.name} is left out: {why}"]
    return list(warnings)


def align_stage(scan: ScanFiles, reference: ScanFiles) -> Stage:
    """Resampling of the maps of an orientation to the grid of the reference."""
    own = scan.own
    inputs = own.paths("local_field", "local_field_sigma", "field_sigma", "eroded_mask", "mask")
    outputs = [scan.field, scan.sigma, scan.noise, scan.known]
    if scan.has_r2star:
        inputs += own.paths("r2star")
        outputs += [scan.r2star]
    if scan.has_r2prime:
        inputs += own.paths(*_DIFFERENCE)
        outputs += scan.r2prime
    if not scan.is_reference:
        inputs += [scan.transform, reference.own["mask"]]

    def work(declared: DeclaredFiles) -> StageResult:
        return _Alignment(scan, reference, declared).run()

    return Stage(
        "align",
        "map of one head orientation on the grid of the reference",
        inputs,
        outputs,
        {
            "Reference": reference.name,
            "Interpolation": "none" if scan.is_reference else _INTERPOLATION,
            "B0Direction": list(own.grid.b0_direction),
        },
        work,
    )


class _Alignment:
    """Work of `align`."""

    def __init__(self, scan: ScanFiles, reference: ScanFiles, declared: DeclaredFiles) -> None:
        self.scan, self.reference, self._declared = scan, reference, declared
        self.files = StageFiles(scan.own, declared)
        self.transform: Affine = np.eye(4)
        if not scan.is_reference:
            content = bids.read_json(declared.read(scan.transform))
            self.transform = np.asarray(content["ReferenceToThisWorldMm"], dtype=np.float64)

    def run(self) -> StageResult:
        """Resample and write all maps."""
        files, scan = self.files, self.scan
        known, brain = files.load_mask("eroded_mask"), files.load_mask("mask")
        field, here = self._moved(files.load("local_field"), known)
        sigma, _ = self._moved(files.load("local_field_sigma"), known, linear=True)
        noise, _ = self._moved(files.load("field_sigma"), known, linear=True)
        volumes: dict[Path, Tensor] = {
            scan.field: field,
            scan.sigma: sigma * here,
            scan.noise: noise * here,
            scan.known: here,
        }
        if scan.has_r2star:
            volumes[scan.r2star] = self._moved(files.load("r2star"), brain)[0].clamp_min(0)
        if scan.has_r2prime:
            covered = files.load("r2prime_sigma") > 0
            for key, path in zip(_DIFFERENCE, scan.r2prime, strict=True):
                volumes[path] = self._moved(files.load(key), covered, linear=key != "r2prime")[0]
        for path, volume in volumes.items():
            self._write(path, volume)
        facts = self._facts(here, brain)
        part = facts["KnownPartOfBrain"]
        warnings = []
        if part < _LITTLE_KNOWN:
            warnings.append(f"the field of {scan.name} is known in {100 * part:.0f} % of the brain only")
        return StageResult(facts, warnings)

    def _moved(self, volume: Tensor, mask: MaskVolume, *, linear: bool = False) -> tuple[Tensor, MaskVolume]:
        if self.scan.is_reference:
            return volume * mask, mask
        grids = self.scan.own.grid, self.reference.own.grid
        return to_reference(volume, mask, *grids, self.transform, linear=linear)

    def _facts(self, known: MaskVolume, brain: MaskVolume) -> Mapping[str, Any]:
        grid, there = self.reference.own.grid, self.scan.own.grid
        gain = 1.0
        if not self.scan.is_reference:
            brain = StageFiles(self.reference.own, self._declared).load_mask("mask")
            gain = noise_gain(there, grid, self.transform, known)
        return {
            "B0DirectionVoxelAxes": list(b0_in_reference(there, self.transform, grid)),
            "MagneticFieldStrength": self.scan.own.session.megre.b0_t,
            "InterpolationNoiseGain": round(gain, 3),
            "KnownPartOfBrain": round(float((known & brain).sum() / brain.sum()), 4),
        }

    def _write(self, path: Path, volume: Tensor) -> None:
        dtype = np.uint8 if volume.dtype == torch.bool else np.float32
        nifti.save(self._declared.write(path), volume.cpu().numpy(), self.reference.own.affine, dtype=dtype)
