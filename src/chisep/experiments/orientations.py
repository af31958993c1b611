"""Head orientations from raw scans: errors of registration, COSMOS and labels on a simulated participant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import Positional

import chisep
from chisep import metrics
from chisep.api.left_out_orientation import COSMOS, as_json, left_out_errors, read_scans
from chisep.errors import InputError
from chisep.execution.config import ClusterConfig
from chisep.execution.orientations import run_orientations
from chisep.experiments.common.texts import markdown
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.pipeline.orientations.chi import OrientedFields, chi_of_orientations
from chisep.pipeline.orientations.config import OrientationsConfig
from chisep.pipeline.orientations.joint import ITERATIVE, LABELS
from chisep.pipeline.orientations.scans import MAPS
from chisep.preprocessing.head_orientation import angle_deg, b0_in_reference, to_reference
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation.dataset import TRUTH, SimulateConfig, acquired, simulate
from chisep.solvers.cosmos import CosmosConfig, cosmos, nonnegative_sources, spread_deg
from chisep.types import Affine, Grid, Volume

_SUBJECT, _REFERENCE = "01", "ori1"
_SOURCES = {"chi_pos": "paramagnetic", "chi_neg": "diamagnetic"}


@dataclass(frozen=True, kw_only=True)
class OrientationsExperimentConfig:
    """A simulated participant in several head orientations, from raw scans to labels."""

    out: Positional[Path]
    """Folder for scans, maps and results; finished stages are kept."""
    labels: tuple[Path, ...] = ()
    """Label map of the head; the packaged head if none."""
    voxel_mm: float = 1.5
    """Voxel edge in mm."""
    snr: float = 50.0
    """SNR of the scans."""
    orientations: int = 5
    """Number of head orientations."""
    seed: int = 24
    """Seed of head, motion and noise."""
    methods: tuple[str, ...] = (COSMOS, "unrolled", "tikhonov")
    """Methods whose leave-one-orientation-out error is measured, by name; none for no such measurement."""

    def __post_init__(self) -> None:
        if len(self.labels) > 1:
            raise InputError("labels", found="several", expected="one", fix="Call the command for each head.")

    @property
    def scans(self) -> SimulateConfig:
        """Simulation of the raw scans."""
        return SimulateConfig(
            out=self.out / "bids",
            labels=self.labels,
            voxel_mm=self.voxel_mm,
            snr=self.snr,
            orientations=self.orientations,
            seed=self.seed,
            raw_orientations=True,
        )

    @property
    def processing(self) -> OrientationsConfig:
        """Processing of the raw scans."""
        return OrientationsConfig(bids=self.out / "bids", out=self.out / "derivatives")


def orientations(config: OrientationsExperimentConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate raw scans, process them with `chisep orientations`, and compare with the truth.

    Returns
    -------
    list of Path
        orientations.md, orientations.json, and a figure of χ and its sources.

    Raises
    ------
    ChisepError
        If scans cannot be made or processed, or a result not be written.
    """

    def step(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, 4)

    make_directory(config.out)
    step("raw scans", 0)
    simulate(config.scans)
    step("processing", 1)
    (result,) = run_orientations(config.processing, ClusterConfig(cluster="none"))
    if result.error is not None:
        raise result.error
    step("comparison", 2)
    found = _Comparison(config).measured()
    step("orientations left out", 3)
    if config.methods:
        scans = read_scans(config.processing.out, _SUBJECT)
        found["LeftOut"] = as_json(left_out_errors(scans, config.methods))
    step("orientations", 4)
    results = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": config.labels[0].name if config.labels else "packaged head",
        "Options": json.loads(json.dumps(asdict(config) | {"out": None, "labels": None})),
        "Warnings": list(result.warnings),
        **found,
    }
    return [
        write_text(config.out / "orientations.md", page(results)),
        write_json(config.out / "orientations.json", results),
        write_bytes(config.out / "orientations.png", figures.png(_Comparison(config).figure())),
    ]


class _Comparison:
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
        true_motion, true_fields = self._with_true_motion(), self._with_true_fields()
        rows = {
            "from raw scans": self._errors(self._labels(LABELS, "cosmos")),
            "the same with true motion": self._errors(true_motion),
            "iterative χ-separation of all orientations": self._errors(self._labels(ITERATIVE, "total")),
            "the same with true local fields": self._errors(true_fields),
        }
        local = [self._field_error(name) for name in self.names]
        found, perfect = rows["from raw scans"], rows["the same with true motion"]
        return {
            "Motion": [self._motion(name) for name in self.names if name != _REFERENCE],
            "LocalField": local,
            "CommonPartOfBrain": round(float((self.common & self.brain).sum() / self.brain.sum()), 4),
            "NrmsePercent": rows,
            "LabelsOverTrueMotion": {key: round(found[key] / perfect[key], 4) for key in _SOURCES},
        }

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
        return {
            key: round(metrics.nrmse_percent(maps[key], self.true[key], inside), 3)
            for key in ("chi", *_SOURCES)
        }

    def _motion(self, name: str) -> dict[str, Any]:
        """Errors of the motion that was found, at the centre of the brain and at its surface."""
        path = self._of(self.truth, "xfm", "motion").with_suffix("").with_suffix(".json")
        true = np.asarray(bids.read_json(acquired(path, name))["FirstToThisWorldMm"])
        found = self._transform(name)
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

    def _field_error(self, name: str) -> dict[str, Any]:
        """Error of a local field on the grid of the reference against the truth, in the common mask."""
        true = acquired(self._of(self.truth, "fieldmap", "local"), name)
        made = acquired(self._of(self.out / MAPS, "fieldmap", "local"), name)
        inside = self.common & self.brain
        x, y = (self._read(path)[inside].astype(np.float64) for path in (true, made))
        return {
            "Orientation": name,
            "TrueRmsPpb": round(float(1000 * np.sqrt(np.square(x).mean())), 3),
            "ErrorRmsPpb": round(float(1000 * np.sqrt(np.square(y - x).mean())), 3),
            "Slope": round(float(np.polyfit(x, y, 1)[0]), 4),
        }

    def _transform(self, name: str) -> Affine:
        file = f"sub-{_SUBJECT}_acq-{name}_from-{_REFERENCE}_to-{name}_xfm.json"
        content = bids.read_json(self.out / f"sub-{_SUBJECT}" / "anat" / file)
        return np.asarray(content["ReferenceToThisWorldMm"], dtype=np.float64)

    def _with_true_motion(self) -> dict[str, np.ndarray]:
        """COSMOS and labels of the same fields, with the true motion in place of that of registration."""
        reference = self._grid(_REFERENCE)
        fields, sigmas, noise, masks, directions = [], [], [], [], []
        path = self._of(self.truth, "xfm", "motion").with_suffix("").with_suffix(".json")
        for name in self.names:
            grid = self._grid(name)
            field, sigma, of_noise = (
                self._own(name, f"{part}_fieldmap")
                for part in ("desc-local", "desc-local_stat-std", "stat-std")
            )
            known = self._own(name, "desc-eroded_mask") > 0
            transform = np.eye(4)
            if name != _REFERENCE:
                transform = np.asarray(bids.read_json(acquired(path, name))["FirstToThisWorldMm"])
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
        inputs = OrientedFields(
            torch.stack(fields),
            torch.stack(sigmas),
            torch.stack(noise),
            torch.stack(masks) & brain,
            directions,
            brain,
            reference,
            self._own(_REFERENCE, "R2starmap"),
        )
        options = self.config.processing
        chi = chi_of_orientations(inputs, options.cosmos, options.filtered, options.csf).chi_ppm
        return self._sources(chi, self._own(_REFERENCE, "R2primemap"))

    def _with_true_fields(self) -> dict[str, np.ndarray]:
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
        return self.out / f"sub-{_SUBJECT}" / "anat" / f"sub-{_SUBJECT}_acq-{name}_{end}.nii.gz"

    def _of(self, folder: Path, suffix: str, desc: str) -> Path:
        return bids.derivative_path(folder, _SUBJECT, suffix, desc=desc)

    def _read(self, path: Path) -> np.ndarray:
        return np.asarray(nifti.load(path).data)


def page(results: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    options = results["Options"]
    text = [
        "# Head orientations from raw scans\n",
        f"{results['Head']}, {options['voxel_mm']:g} mm, SNR {options['snr']:g}, "
        f"{options['orientations']} head orientations, each moved, turned and on its own grid. Processed by "
        "`chisep orientations`; made by `chisep reproduce orientations`.\n",
        "## Motion\n",
        _motion_table(results["Motion"]),
        "## Local fields\n",
        "On the grid of the first orientation, against the true field of the sources of the brain, in the "
        "common mask. Slope: of a line of measured against true field.\n",
        markdown(
            ("scan", "true field, RMS", "error, RMS", "slope"),
            [
                (
                    row["Orientation"],
                    f"{row['TrueRmsPpb']:.2f} ppb",
                    f"{row['ErrorRmsPpb']:.2f} ppb",
                    f"{row['Slope']:.3f}",
                )
                for row in results["LocalField"]
            ],
        ),
        "## χ and its sources\n",
        "NRMSE (%) against the truth in the common mask "
        f"({100 * results['CommonPartOfBrain']:.0f} % of the true brain).\n",
        _error_table(results["NrmsePercent"]),
        "Labels over those with true motion: "
        + ", ".join(f"{key} {ratio:.3f}" for key, ratio in results["LabelsOverTrueMotion"].items())
        + ".\n",
    ]
    if "LeftOut" in results:
        text += [
            "## An orientation that is left out\n",
            "NRMSE (%) of the field that χ predicts in an orientation that the method did not see.\n",
            markdown(
                ("method", "mean", *results["LeftOut"][next(iter(results["LeftOut"]))]["left_out"]),
                [
                    (
                        method,
                        f"{found['nrmse_percent']:.1f}",
                        *(f"{error:.1f}" for error in found["left_out"].values()),
                    )
                    for method, found in results["LeftOut"].items()
                ],
            ),
        ]
    text += ["![χ and its sources](orientations.png)\n"]
    return "\n".join(text)


def _motion_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "scan",
        "rotation",
        "tilt to B0",
        "shift",
        "error of rotation",
        "of tilt",
        "of shift",
        "largest",
    )
    return markdown(
        header,
        [
            (
                row["Orientation"],
                f"{row['RotationDeg']:.1f}°",
                f"{row['TiltDeg']:.1f}°",
                f"{row['ShiftMm']:.1f} mm",
                f"{row['RotationErrorDeg']:.3f}°",
                f"{row['TiltErrorDeg']:.3f}°",
                f"{row['ShiftErrorMm']:.3f} mm",
                f"{row['LargestErrorMm']:.3f} mm",
            )
            for row in rows
        ],
    )


def _error_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    return markdown(
        ("", "χ", "χ_pos", "χ_neg"),
        [(name, *(f"{errors[key]:.1f}" for key in ("chi", *_SOURCES))) for name, errors in rows.items()],
    )
