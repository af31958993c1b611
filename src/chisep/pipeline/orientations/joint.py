"""Stages of all orientations together: `cosmos`, `labels`, `separation` and `tensor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.physics.dipole import Dipole
from chisep.pipeline.context import convergence_facts
from chisep.pipeline.engine import DeclaredFiles, Stage, StageResult
from chisep.pipeline.orientations.chi import OrientedFields, chi_of_orientations
from chisep.pipeline.orientations.config import OrientationsConfig
from chisep.pipeline.orientations.scans import ScanFiles
from chisep.preprocessing.head_size import adult_grid, length_scale
from chisep.preprocessing.relaxivity import relaxivity
from chisep.solvers.cosmos import condition_number, nonnegative_sources, spread_deg
from chisep.solvers.multi_orientation import separate_orientations
from chisep.solvers.tensor import FEWEST_ORIENTATIONS, tensor
from chisep.types import Relaxivity, Sources, Volume

LABELS, ITERATIVE, TENSOR = (Path("derivatives", name) for name in ("labels", "iterative", "tensor"))
"""Folders within OUT: χ of COSMOS and its sources, iterative χ-separation, susceptibility tensor."""
_EQUAL_DEG = 2.0
_SMALL_COMMON = 0.25
_PPB = 1000.0


@dataclass(frozen=True, eq=False)
class Orientations:
    """Registered orientations of one participant, the reference first.

    Parameters
    ----------
    config
        Options of the run.
    subject
        Label without `sub-`.
    scans
        Orientations that are used.
    """

    config: OrientationsConfig
    subject: str
    scans: Sequence[ScanFiles]

    @property
    def reference(self) -> ScanFiles:
        """Orientation whose grid all maps have."""
        return self.scans[0]

    @property
    def with_r2prime(self) -> ScanFiles | None:
        """Orientation in which R2' was measured."""
        return next((scan for scan in self.scans if scan.has_r2prime), None)

    @property
    def relaxivity(self) -> Relaxivity:
        """D_r of both sources."""
        b0_t = self.reference.own.session.megre.b0_t
        if b0_t is None:
            raise ValueError("a gradient-echo series without field strength")
        return relaxivity(self.config.dr, b0_t)

    def path(self, folder: Path, suffix: str, desc: str) -> Path:
        """Path of a map of all orientations."""
        return bids.derivative_path(self.config.out / folder, self.subject, suffix, desc=desc)

    @property
    def chi(self) -> Path:
        """χ by COSMOS."""
        return self.path(LABELS, "Chimap", "cosmos")

    @property
    def common(self) -> Path:
        """Common mask: brain of the reference in which every field is known."""
        return self.path(LABELS, "mask", "brain")

    @property
    def csf(self) -> Path:
        """CSF that sets the zero of χ."""
        return self.path(LABELS, "mask", "csf")

    def sources(self, folder: Path) -> list[Path]:
        """χ_pos and χ_neg of a folder, and χ."""
        descs = ("paramagnetic", "diamagnetic", "cosmos" if folder == LABELS else "total")
        return [self.path(folder, "Chimap", desc) for desc in descs]

    def inputs(self, *, with_r2star: bool = False) -> list[Path]:
        """Fields with what they need, and R2* of the reference, if there is one."""
        files = [
            path
            for scan in self.scans
            for path in (scan.field, bids.sidecar_of(scan.field), scan.sigma, scan.noise, scan.known)
        ]
        rates = [self.reference.r2star] if with_r2star and self.reference.has_r2star else []
        return [*files, self.reference.own["mask"], *rates]


class JointFiles:
    """Reads and writes the declared files of a stage of all orientations."""

    def __init__(self, group: Orientations, declared: DeclaredFiles) -> None:
        self.group, self._declared = group, declared
        self.device = group.config.device

    def load(self, path: Path) -> Tensor:
        """Read a map to the device."""
        return torch.from_numpy(nifti.load(self._declared.read(path)).data).to(self.device)

    def stack(self, name: str) -> Tensor:
        """Read one map of every orientation, shape (orientation, i, j, k)."""
        return torch.stack([self.load(getattr(scan, name)) for scan in self.group.scans])

    def oriented(self, *, with_r2star: bool = True) -> OrientedFields:
        """Fields of all orientations in the brain of the reference, on the grid of the reference."""
        reference, scans = self.group.reference, self.group.scans
        brain = self.load(reference.own["mask"]) > 0
        sidecars = [self._declared.read(bids.sidecar_of(scan.field)) for scan in scans]
        grid = reference.own.grid
        return OrientedFields(
            fields_ppm=self.stack("field"),
            sigmas_ppm=self.stack("sigma"),
            noise_ppm=self.stack("noise"),
            masks=(self.stack("known") > 0) & brain,
            b0_directions=[tuple(bids.read_json(path)["B0DirectionVoxelAxes"]) for path in sidecars],
            brain=brain,
            grid=adult_grid(grid, length_scale(brain, grid)),
            r2star_hz=self.load(reference.r2star) if with_r2star and reference.has_r2star else None,
        )

    def save(self, path: Path, volume: Tensor) -> None:
        """Write a map on the grid of the reference."""
        dtype = np.uint8 if volume.dtype == torch.bool else np.float32
        affine = self.group.reference.own.affine
        nifti.save(self._declared.write(path), volume.cpu().numpy(), affine, dtype=dtype)


def cosmos_stage(group: Orientations) -> Stage:
    """COSMOS of all orientations, with their noise as weights."""

    def work(declared: DeclaredFiles) -> StageResult:
        files = JointFiles(group, declared)
        inputs = files.oriented()
        _require_spread(group, inputs.b0_directions)
        common = inputs.masks.all(0)
        part = float(common.sum() / inputs.brain.sum())
        if not bool(common.any()):
            raise InputError(
                str(group.reference.own["mask"]),
                found="no voxel of the brain in which the field of every orientation is known",
                expected="a common part of all orientations",
                fix="Leave the orientation with the poorest field out (--bids-filter-file).",
            )
        options = group.config
        found = chi_of_orientations(inputs, options.cosmos, options.filtered, options.csf)
        files.save(group.chi, found.chi_ppm)
        files.save(group.common, common)
        files.save(group.csf, found.csf)
        facts = {
            "SpreadDeg": round(spread_deg(inputs.b0_directions), 2),
            "ConditionNumber": round(condition_number(inputs.b0_directions), 3),
            "CommonPartOfBrain": round(part, 4),
            "Orientations": _save_residuals(files, inputs, found.chi_ppm),
            **found.facts,
        }
        few = f"all fields are known in {100 * part:.0f} % of the brain only"
        return StageResult(facts, [*found.warnings, *([few] if part < _SMALL_COMMON else [])])

    return Stage(
        "cosmos",
        "χ by COSMOS of all head orientations, their common mask, and the field that it does not explain",
        group.inputs(with_r2star=True),
        [group.chi, group.common, group.csf, *(scan.residual for scan in group.scans)],
        {
            **asdict(group.config.cosmos),
            "Filtered": asdict(group.config.filtered),
            "ZeroInCsf": asdict(group.config.csf),
            "Reference": group.reference.name,
        },
        work,
    )


def _save_residuals(files: JointFiles, inputs: OrientedFields, chi_ppm: Volume) -> list[dict[str, Any]]:
    """Write what χ leaves of the field of each orientation, and measure it in the common mask."""
    common, first = inputs.masks.all(0), inputs.b0_directions[0]
    facts = []
    for scan, field, mask, b0 in zip(
        files.group.scans, inputs.fields_ppm, inputs.masks, inputs.b0_directions, strict=True
    ):
        i, j, k = b0
        predicted = Dipole(replace(inputs.grid, b0_direction=(i, j, k))).apply(chi_ppm)
        residual = (field - predicted) * mask
        files.save(scan.residual, residual)
        rms, of_field = (float(one[common].square().mean().sqrt()) for one in (residual, field))
        facts.append(
            {
                "Name": scan.name,
                "TiltDeg": round(spread_deg([b0, first]), 2),
                "FieldRmsPpb": round(_PPB * of_field, 3),
                "ResidualRmsPpb": round(_PPB * rms, 3),
                "ResidualPercent": round(100 * rms / of_field, 2) if of_field else None,
            }
        )
    return facts


def _require_spread(group: Orientations, b0_directions: Sequence[Sequence[float]]) -> None:
    if (spread := spread_deg(b0_directions)) < _EQUAL_DEG:
        raise InputError(
            f"sub-{group.subject}",
            found=f"head orientations that differ by {spread:.2f}° at most: equal ones",
            expected="directions of B0 that differ by 15° or more",
            fix="Check that the scans are of different head orientations; use `chisep run` for one.",
        )


def labels_stage(group: Orientations, rates: ScanFiles) -> Stage:
    """Non-negative least squares of χ and R2': sources that are labels of networks."""

    def work(declared: DeclaredFiles) -> StageResult:
        files = JointFiles(group, declared)
        r2prime, sigma = (files.load(path) for path in rates.r2prime)
        inside = (files.load(group.common) > 0) & (sigma > 0)
        sources = nonnegative_sources(
            files.load(group.chi) * inside, r2prime.clamp_min(0) * inside, group.relaxivity
        )
        for path, volume in zip(
            group.sources(LABELS), (sources.chi_pos_ppm, sources.chi_neg_ppm), strict=False
        ):
            files.save(path, volume)
        return StageResult()

    return Stage(
        "labels",
        "χ_pos and χ_neg (a positive magnitude) by non-negative least squares of χ by COSMOS and R2'",
        [group.chi, group.common, *rates.r2prime],
        group.sources(LABELS)[:2],
        {"R2primeOf": rates.name, **_dr(group)},
        work,
    )


def separation_stage(group: Orientations, rates: ScanFiles) -> Stage:
    """Multi-orientation χ-separation: the field rows of all orientations, and R2'."""

    def work(declared: DeclaredFiles) -> StageResult:
        files = JointFiles(group, declared)
        r2prime, sigma = (files.load(path) for path in rates.r2prime)
        inputs = files.oriented(with_r2star=False)
        brain = inputs.brain & (sigma > 0)
        filtered = group.config.filtered if group.config.filtered.iterations else None
        found = separate_orientations(
            inputs.fields_ppm,
            inputs.masks & brain,
            inputs.b0_directions,
            r2prime,
            group.relaxivity,
            inputs.grid,
            group.config.separation,
            sigmas_ppm=inputs.noise_ppm if filtered else inputs.sigmas_ppm,
            r2prime_sigma_hz=sigma,
            support=brain,
            chi_ppm=files.load(group.chi),
            filtered=filtered,
        )
        _save_sources(files, group.sources(ITERATIVE), found)
        return StageResult(convergence_facts(found.convergence), found.convergence.warnings)

    return Stage(
        "separation",
        "χ_pos, χ_neg (a positive magnitude) and χ by iterative χ-separation of all orientations and R2'",
        [*group.inputs(), group.chi, *rates.r2prime],
        group.sources(ITERATIVE),
        {
            "R2primeOf": rates.name,
            **asdict(group.config.separation),
            "Filtered": asdict(group.config.filtered),
            **_dr(group),
        },
        work,
    )


def _save_sources(files: JointFiles, paths: Sequence[Path], found: Sources) -> None:
    for path, volume in zip(paths, (found.chi_pos_ppm, found.chi_neg_ppm, found.chi_ppm), strict=True):
        files.save(path, volume)


def _dr(group: Orientations) -> dict[str, float]:
    known = group.relaxivity
    return {"D_r_pos": known.pos_hz_per_ppm, "D_r_neg": known.neg_hz_per_ppm}


def tensor_paths(group: Orientations) -> list[Path]:
    """χ33 and mean susceptibility."""
    return [group.path(TENSOR, "Chimap", desc) for desc in ("chi33", "mean")]


def tensor_stage(group: Orientations) -> Stage | None:
    """Apparent susceptibility tensor; None of fewer than six orientations."""
    if len(group.scans) < FEWEST_ORIENTATIONS:
        return None

    def work(declared: DeclaredFiles) -> StageResult:
        files = JointFiles(group, declared)
        inputs = files.oriented(with_r2star=False)
        found = tensor(
            inputs.fields_ppm,
            inputs.masks,
            inputs.b0_directions,
            inputs.grid,
            group.config.tensor,
            chi_ppm=files.load(group.chi),
            sigmas_ppm=inputs.sigmas_ppm,
            support=inputs.brain,
        )
        volumes = found.along(inputs.b0_directions[0]), found.mean_ppm
        for path, volume in zip(tensor_paths(group), volumes, strict=True):
            files.save(path, volume)
        return StageResult(convergence_facts(found.convergence), found.convergence.warnings)

    return Stage(
        "tensor",
        "susceptibility along B0 of the reference (χ33), and mean of the apparent susceptibility tensor",
        [*group.inputs(), group.chi],
        tensor_paths(group),
        asdict(group.config.tensor),
        work,
    )
