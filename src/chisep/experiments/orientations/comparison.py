"""Maps of `chisep orientations` against the truth, and against those of true motion and true fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chisep import metrics
from chisep.experiments.orientations.budget import error_budget, interpolated_there_and_back
from chisep.experiments.orientations.interpolation import interpolation_losses
from chisep.io import bids, nifti
from chisep.physics.spherical_mean import reach_mm
from chisep.pipeline.orientations.chi import OrientedFields, cosmos_of, refined
from chisep.pipeline.orientations.joint import ITERATIVE, LABELS
from chisep.pipeline.orientations.scans import MAPS
from chisep.preprocessing.head_orientation import angle_deg, b0_in_reference, continued, to_reference
from chisep.preprocessing.morphology import depth_mm
from chisep.report import figures
from chisep.simulation.dataset import TRUTH, acquired
from chisep.solvers.cosmos import CosmosConfig, cosmos, nonnegative_sources, spread_deg
from chisep.solvers.csf_reference import CsfConfig
from chisep.solvers.filtered_cosmos import FilteredConfig, FilteredDipoles
from chisep.types import Affine, Grid, Susceptibility, Volume

if TYPE_CHECKING:
    from chisep.experiments.orientations.command import OrientationsExperimentConfig

SUBJECT, _REFERENCE = "01", "ori1"
_SOURCES = {"chi_pos": "paramagnetic", "chi_neg": "diamagnetic"}
_DEPTHS_MM = (0.0, 3.0, 6.0, 10.0, math.inf)
_FOUND, _TRUE_MOTION = "from raw scans", "the same with true motion"


class Comparison:
    """Maps of the processing, of true motion, of true local fields, and of the truth."""

    def __init__(self, config: OrientationsExperimentConfig) -> None:
        self.config, self.out = config, config.processing.out
        self.truth = config.scans.out / TRUTH
        self.names = [f"ori{number + 1}" for number in range(config.orientations)]
        common = nifti.load_mask(self._of(self.out / LABELS, "mask", "brain"))
        self.common, self.affine = common.data, common.affine
        self.brain = nifti.load_mask(self._of(self.truth, "mask", "brain")).data
        self.true = {
            "chi": self._read(self._of(self.truth, "Chimap", "total")),
            **{key: self._read(self._of(self.truth, "Chimap", desc)) for key, desc in _SOURCES.items()},
        }

    def measured(self) -> dict[str, Any]:
        """All errors."""
        inputs, options = self._aligned(), self.config.processing
        alone, no_zero = FilteredConfig(iterations=0), CsfConfig(order=-1)
        first = cosmos_of(inputs, options.cosmos)
        rows = {
            "COSMOS of the local fields alone": self._refined(first, inputs, alone, no_zero),
            "and the zero of χ in CSF": self._refined(first, inputs, alone, options.csf),
            "filtered fields instead": self._refined(first, inputs, options.filtered, no_zero),
            _FOUND: self._labels(LABELS, "cosmos"),
            _TRUE_MOTION: self._made(self._with_true_motion(), options.filtered, options.csf),
            "iterative χ-separation of all orientations": self._labels(ITERATIVE, "total"),
            "true local fields in the measured masks": self._made(
                self._with_true_fields(inputs), alone, no_zero
            ),
            "true local fields in the true mask": self._of_true_fields(),
        }
        errors = {name: self._errors(maps) for name, maps in rows.items()}
        found, perfect = errors[_FOUND], errors[_TRUE_MOTION]
        return {
            "Motion": [self._motion(name) for name in self.names if name != _REFERENCE],
            "LocalField": self._field_errors(inputs),
            "CommonPartOfBrain": round(float((self.common & self.brain).sum() / self.brain.sum()), 4),
            "NrmsePercent": errors,
            "ErrorByDepth": self._by_depth(rows[_FOUND]["chi"]),
            "LabelsOverTrueMotion": {key: round(found[key] / perfect[key], 4) for key in _SOURCES},
        }

    def budget(self) -> dict[str, Any]:
        """Errors (NRMSE in %) of χ and its sources with causes of an error switched off."""
        inputs, reference = self._aligned(), self._grid(_REFERENCE)

        def there_and_back(field: Volume, number: int) -> Volume:
            name = self.names[number]
            if name == _REFERENCE:
                return field
            beyond = torch.from_numpy(continued(field.numpy(), self.brain))
            return interpolated_there_and_back(beyond, self._grid(name), reference, self._true_motion(name))

        options = self.config.processing
        chi = error_budget(
            inputs,
            torch.stack([torch.from_numpy(self._true_field(name)) for name in self.names]),
            torch.from_numpy(self.true["chi"]),
            there_and_back,
            options.filtered,
            options.csf,
        )
        r2prime = self._own(_REFERENCE, "R2primemap")
        return {name: self._errors(self._sources(one, r2prime)) for name, one in chi.items()}

    def interpolation(self) -> dict[str, Any]:
        """Measure what interpolation takes from true χ and the true local field of the reference."""
        maps = {"χ": self.true["chi"], "local field": self._true_field(_REFERENCE)}
        return interpolation_losses(maps, self.brain)

    @property
    def true_sources(self) -> dict[str, Volume]:
        """χ_pos and χ_neg in ppm."""
        return {key: torch.from_numpy(self.true[key]) for key in _SOURCES}

    def figure(self) -> Any:  # noqa: ANN401
        """χ by COSMOS and both labels, each less the truth below it."""
        labels = self._labels(LABELS, "cosmos")
        rows = []
        for key, title in (("chi", "χ by COSMOS"), ("chi_pos", "χ_pos"), ("chi_neg", "χ_neg")):
            window = (-100.0, 100.0) if key == "chi" else (0.0, 100.0)
            rows.append(figures.Row(title, 1000 * labels[key], "ppb", window))
            error = 1000 * (labels[key] - self.true[key])
            rows.append(figures.Row(f"{title} − truth", error, "ppb", (-50.0, 50.0), figures.DIFFERENCE_CMAP))
        return figures.planes(rows, self.affine, mask=self.common)

    def _errors(self, maps: Mapping[str, np.ndarray]) -> dict[str, float]:
        inside = self.common & self.brain
        errors = {key: metrics.nrmse_percent(maps[key], self.true[key], inside) for key in ("chi", *_SOURCES)}
        errors["chi_less_mean"] = metrics.nrmse_demeaned_percent(maps["chi"], self.true["chi"], inside)
        return {key: round(error, 3) for key, error in errors.items()}

    def _motion(self, name: str) -> dict[str, Any]:
        """Errors of the motion that was found, at the centre of the brain and at its surface."""
        true, found = self._true_motion(name), self._transform(name)
        affine = nifti.load_mask(self._of(self.truth, "mask", "brain")).affine
        points = np.argwhere(self.brain) @ affine[:3, :3].T + affine[:3, 3]
        off = points @ (found - true)[:3, :3].T + (found - true)[:3, 3]
        shift = (true[:3, :3] - np.eye(3)) @ points.mean(0) + true[:3, 3]
        wrong = np.eye(4)
        wrong[:3, :3] = found[:3, :3] @ true[:3, :3].T
        return {
            "Orientation": name,
            "RotationDeg": round(angle_deg(true), 2),
            "ShiftMm": round(float(np.linalg.norm(shift)), 2),
            "TiltDeg": round(spread_deg([(0, 0, 1), tuple(true[2, :3])]), 2),
            "RotationErrorDeg": round(angle_deg(wrong), 4),
            "TiltErrorDeg": round(spread_deg([tuple(found[2, :3]), tuple(true[2, :3])]), 4),
            "ShiftErrorMm": round(float(np.linalg.norm(off.mean(0))), 4),
            "LargestErrorMm": round(float(np.linalg.norm(off, axis=1).max()), 4),
        }

    def _field_errors(self, inputs: OrientedFields) -> list[dict[str, Any]]:
        """Errors of local fields on the grid of the reference, before and after the filter of V-SHARP."""
        inside = torch.from_numpy(self.common & self.brain)
        reaches = torch.stack([reach_mm(depth_mm(mask, inputs.grid)) for mask in inputs.masks])
        operator = FilteredDipoles(
            inputs.grid, inputs.b0_directions, reaches, torch.ones_like(reaches), inputs.brain
        )
        rows = []
        for name, measured, noise, one in zip(
            self.names, inputs.fields_ppm, inputs.noise_ppm, operator.filters, strict=True
        ):
            true = torch.from_numpy(self._true_field(name))
            filtered_true, filtered = one.apply(true), one.apply(measured)
            there = inside & (filtered_true != 0)
            rows.append(
                {
                    "Orientation": name,
                    "TrueRmsPpb": _rms_ppb(true[inside]),
                    "ErrorRmsPpb": _rms_ppb((measured - true)[inside]),
                    "Slope": _slope(true[inside], measured[inside]),
                    "FilteredErrorRmsPpb": _rms_ppb((filtered - filtered_true)[there]),
                    "FilteredSlope": _slope(filtered_true[there], filtered[there]),
                    "NoiseRmsPpb": _rms_ppb(noise[there]),
                }
            )
        return rows

    def _by_depth(self, chi: np.ndarray) -> list[dict[str, Any]]:
        """Error of χ by depth in the part of the brain where it is measured."""
        inside = self.common & self.brain
        depth = depth_mm(torch.from_numpy(inside), self._grid(_REFERENCE)).numpy()
        square = np.square(1000 * (chi - self.true["chi"])) * inside
        rows = []
        for low, high in itertools.pairwise(_DEPTHS_MM):
            shell = inside & (depth > low) & (depth <= high)
            rows.append(
                {
                    "DepthMm": f"{low:g} to {high:g}" if math.isfinite(high) else f"more than {low:g}",
                    "PartOfVoxels": round(float(shell.sum() / inside.sum()), 4),
                    "RmsPpb": round(float(np.sqrt(square[shell].mean())), 3),
                    "PartOfSquareError": round(float(square[shell].sum() / square.sum()), 4),
                }
            )
        return rows

    def _true_motion(self, name: str) -> Affine:
        path = self._of(self.truth, "xfm", "motion").with_suffix("").with_suffix(".json")
        content = bids.read_json(acquired(path, name))
        return np.asarray(content["FirstToThisWorldMm"], dtype=np.float64)

    def _transform(self, name: str) -> Affine:
        file = f"sub-{SUBJECT}_acq-{name}_from-{_REFERENCE}_to-{name}_xfm.json"
        content = bids.read_json(self.out / f"sub-{SUBJECT}" / "anat" / file)
        return np.asarray(content["ReferenceToThisWorldMm"], dtype=np.float64)

    def _aligned(self) -> OrientedFields:
        """Fields as `chisep orientations` aligned them."""
        folder = self.out / MAPS

        def stack(suffix: str, desc: str | None = None) -> torch.Tensor:
            path = bids.derivative_path(folder, SUBJECT, suffix, desc=desc)
            return torch.stack([torch.from_numpy(self._read(acquired(path, name))) for name in self.names])

        field = self._of(folder, "fieldmap", "local")
        brain = self._own(_REFERENCE, "desc-brain_mask") > 0
        return OrientedFields(
            stack("fieldmap", "local"),
            stack("stat-std_fieldmap", "local"),
            stack("stat-std_fieldmap"),
            (stack("mask", "eroded") > 0) & brain,
            [
                bids.read_json(bids.sidecar_of(acquired(field, name)))["B0DirectionVoxelAxes"]
                for name in self.names
            ],
            brain,
            self._grid(_REFERENCE),
            self._own(_REFERENCE, "R2starmap"),
        )

    def _with_true_fields(self, inputs: OrientedFields) -> OrientedFields:
        """Return true fields in the measured masks, with equal weights."""
        true = torch.stack([torch.from_numpy(self._true_field(name)) for name in self.names])
        ones = inputs.masks.to(true.dtype)
        return replace(inputs, fields_ppm=true * inputs.masks, sigmas_ppm=ones, noise_ppm=ones)

    def _made(
        self, inputs: OrientedFields, filtered: FilteredConfig, csf: CsfConfig
    ) -> dict[str, np.ndarray]:
        """χ and labels by the steps of `chisep orientations`."""
        return self._refined(cosmos_of(inputs, self.config.processing.cosmos), inputs, filtered, csf)

    def _refined(
        self, first: Susceptibility, inputs: OrientedFields, filtered: FilteredConfig, csf: CsfConfig
    ) -> dict[str, np.ndarray]:
        chi = refined(first, inputs, filtered, csf).chi_ppm
        return self._sources(chi, self._own(_REFERENCE, "R2primemap"))

    def _true_field(self, name: str) -> np.ndarray:
        return self._read(acquired(self._of(self.truth, "fieldmap", "local"), name))

    def _with_true_motion(self) -> OrientedFields:
        """Align the same fields by the true motion in place of that of registration."""
        reference = self._grid(_REFERENCE)
        fields, sigmas, noise, masks, directions = [], [], [], [], []
        for name in self.names:
            grid = self._grid(name)
            field, sigma, of_noise = (
                self._own(name, f"{part}_fieldmap")
                for part in ("desc-local", "desc-local_stat-std", "stat-std")
            )
            known = self._own(name, "desc-eroded_mask") > 0
            transform = np.eye(4)
            if name != _REFERENCE:
                transform = self._true_motion(name)
                field, here = to_reference(field, known, grid, reference, transform)
                sigma, of_noise = (
                    to_reference(one, known, grid, reference, transform, linear=True)[0]
                    for one in (sigma, of_noise)
                )
                known = here
            fields.append(field)
            sigmas.append(sigma * known)
            noise.append(of_noise * known)
            masks.append(known)
            directions.append(b0_in_reference(grid, transform, reference))
        brain = self._own(_REFERENCE, "desc-brain_mask") > 0
        return OrientedFields(
            torch.stack(fields),
            torch.stack(sigmas),
            torch.stack(noise),
            torch.stack(masks) & brain,
            directions,
            brain,
            reference,
            self._own(_REFERENCE, "R2starmap"),
        )

    def _of_true_fields(self) -> dict[str, np.ndarray]:
        """COSMOS of the true local fields, and labels of it and of the measured R2'."""
        fields, directions = [], []
        for name in self.names:
            path = acquired(self._of(self.truth, "fieldmap", "local"), name)
            fields.append(torch.from_numpy(self._read(path)))
            directions.append(bids.read_json(bids.sidecar_of(path))["B0DirectionVoxelAxes"])
        brain, grid = torch.from_numpy(self.brain), self._grid(_REFERENCE)
        chi = cosmos(torch.stack(fields), brain, directions, grid, CosmosConfig()).chi_ppm
        return self._sources(chi, self._own(_REFERENCE, "R2primemap"))

    def _sources(self, chi: Volume, r2prime_hz: Volume) -> dict[str, np.ndarray]:
        relaxivity = self.config.scans.tissue.relaxivity(self.config.scans.b0_t)
        sources = nonnegative_sources(chi, r2prime_hz.clamp_min(0), relaxivity)
        maps = {"chi": chi, "chi_pos": sources.chi_pos_ppm, "chi_neg": sources.chi_neg_ppm}
        return {key: volume.numpy() for key, volume in maps.items()}

    def _labels(self, folder: Path, chi: str) -> dict[str, np.ndarray]:
        names = {"chi": chi, **_SOURCES}
        return {key: self._read(self._of(self.out / folder, "Chimap", desc)) for key, desc in names.items()}

    def _grid(self, name: str) -> Grid:
        return nifti.grid_of(nifti.load(self._own_path(name, "desc-local_fieldmap")))

    def _own(self, name: str, end: str) -> Volume:
        return torch.from_numpy(nifti.load(self._own_path(name, end)).data)

    def _own_path(self, name: str, end: str) -> Path:
        return self.out / f"sub-{SUBJECT}" / "anat" / f"sub-{SUBJECT}_acq-{name}_{end}.nii.gz"

    def _of(self, folder: Path, suffix: str, desc: str) -> Path:
        return bids.derivative_path(folder, SUBJECT, suffix, desc=desc)

    def _read(self, path: Path) -> np.ndarray:
        return np.asarray(nifti.load(path).data)


def _rms_ppb(values: torch.Tensor) -> float:
    return round(float(1000 * values.double().square().mean().sqrt()), 3)


def _slope(true: torch.Tensor, measured: torch.Tensor) -> float:
    return round(float(np.polyfit(true.double().numpy(), measured.double().numpy(), 1)[0]), 4)
