"""Errors of preprocessing: simulated sessions from raw echoes to maps, every stage against its truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tyro.conf import Positional

import chisep
from chisep import methods, metrics
from chisep.errors import InputError
from chisep.experiments.common.session_maps import MapReader
from chisep.experiments.common.texts import markdown, number, plus_minus
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.preprocessing.relaxometry import R2Config
from chisep.progress import Progress
from chisep.report import figures
from chisep.simulation.dataset import TRUTH, SimulateConfig, simulate
from chisep.types import Maps

_METHOD = "iterative"
_TARGET_PERCENT = 15.0
_FIELD, _FIELD_SIGMA = "desc-local_fieldmap", "stat-std_fieldmap"
_R2PRIME, _R2PRIME_SIGMA = "R2primemap", "stat-std_R2primemap"
TRANSFORM = "from-MEGRE_to-MESE_xfm"
_COLUMNS: Mapping[str, tuple[str, int]] = {
    "mask_dice": ("mask Dice", 3),
    "known_percent": ("valid field (% of brain)", 0),
    "field_r": ("local field r", 3),
    "field_nrmse_percent": ("local field NRMSE (%)", 1),
    "r2star_percent": ("R2* error (%)", 1),
    "r2_percent": ("R2 error (%)", 1),
    "r2prime_nrmse_percent": ("R2' NRMSE (%)", 1),
    "motion_mm": ("residual motion (mm)", 2),
    "chi_pos_cost_percent": ("χ_pos: cost (%)", 1),
    "chi_neg_cost_percent": ("χ_neg: cost (%)", 1),
    "chi_pos_cost_of_r2prime_percent": ("χ_pos: cost of R2' alone (%)", 1),
    "chi_neg_cost_of_r2prime_percent": ("χ_neg: cost of R2' alone (%)", 1),
    "chi_pos_cost_of_field_percent": ("χ_pos: cost of the field alone (%)", 1),
    "chi_neg_cost_of_field_percent": ("χ_neg: cost of the field alone (%)", 1),
    "chi_pos_nrmse_percent": ("χ_pos: NRMSE (%)", 1),
    "chi_neg_nrmse_percent": ("χ_neg: NRMSE (%)", 1),
}
"""Results → title and digits."""


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """Sessions of one digital phantom under different conditions, processed from raw echoes."""

    out: Positional[Path]
    """Folder for scans, maps and results; existing files are reused."""
    labels: Path | None = None
    """Label map of the head; the packaged MNI152 head if unset."""
    voxel_mm: float = 1.5
    """Voxel edge of all sessions but the anisotropic one, in mm."""
    seed: int = 6
    """Seed of phantom and noise."""
    only: tuple[str, ...] = ()
    """Sessions, by name; all if unset."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in SESSIONS]
        if unknown:
            raise InputError(
                "only",
                found=", ".join(unknown),
                expected=f"some of: {', '.join(SESSIONS)}",
                fix="Correct the names.",
            )


@dataclass(frozen=True)
class SimulatedSession:
    """A simulated scan session.

    Parameters
    ----------
    title
        Name in tables.
    options
        Options of the simulation other than the defaults, SNR 100 among these.
    r2
        Options of the R2 fit: the pulses of the protocol.
    """

    title: str
    options: Mapping[str, Any]
    r2: R2Config = field(default_factory=R2Config)


SESSIONS: Mapping[str, SimulatedSession] = {
    "snr100": SimulatedSession("SNR 100", {}),
    "snr50": SimulatedSession("SNR 50", {"snr": 50.0}),
    "snr30": SimulatedSession("SNR 30", {"snr": 30.0}),
    "oblique": SimulatedSession("oblique by 20° and 10°", {"tilt_deg": (20.0, -10.0, 5.0)}),
    "bipolar": SimulatedSession("bipolar read-out", {"bipolar": True}),
    "anisotropic": SimulatedSession("voxels of 1 × 1 × 2 mm", {"voxel_mm": (1.0, 1.0, 2.0)}),
    "7t": SimulatedSession(
        "7 T",
        {
            "b0_t": 7.0,
            "te_gre_s": (0.004, 0.008, 0.012, 0.016, 0.020),
            "te_se_s": (0.010, 0.020, 0.030, 0.040, 0.050, 0.060),
        },
    ),
    "motion": SimulatedSession("motion before the spin echo", {"motion_mm": 2.0, "motion_deg": 2.0}),
    "stimulated": SimulatedSession(
        "strong stimulated echoes",
        {"refocusing_deg": 150.0, "refocusing_width": 1.2, "b1_spread": 0.15},
        R2Config(refocusing_deg=150.0, refocusing_width=1.2),
    ),
}
"""Sessions by name: each is the first with one thing changed."""


def simulation(config: PreprocessingConfig, name: str) -> SimulateConfig:
    """Config of the simulation of a session."""
    options: dict[str, Any] = {"voxel_mm": config.voxel_mm, "snr": 100.0, **SESSIONS[name].options}
    if not isinstance(options["voxel_mm"], float) and config.voxel_mm > 1.5:
        # A coarse trial keeps the shape of the voxels and not their size.
        options["voxel_mm"] = (config.voxel_mm, config.voxel_mm, 2 * config.voxel_mm)
    labels = () if config.labels is None else (config.labels,)
    return SimulateConfig(out=config.out / name / "bids", labels=labels, seed=config.seed, **options)


def preprocessing(config: PreprocessingConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate and process every session, and measure each stage against the truth.

    Parameters
    ----------
    config
        Head, sessions, folder of results.
    progress
        Receives the session and stage.

    Returns
    -------
    list of Path
        preprocessing.md, preprocessing.json, preprocessing.png.

    Raises
    ------
    ChisepError
        If a session cannot be simulated, processed or written.
    """
    make_directory(config.out)
    names = [name for name in SESSIONS if not config.only or name in config.only]
    rows = {}
    for done, name in enumerate(names):
        if progress is not None:
            progress(f"session {name}", done, len(names))
        scan = simulation(config, name)
        simulate(scan)
        (result,) = run(
            RunConfig(scan.out, config.out / name / "derivatives", method=_METHOD, r2=SESSIONS[name].r2)
        )
        if result.error is not None:
            raise result.error
        rows[name] = measured(scan, config.out / name / "derivatives") | {"warnings": list(result.warnings)}
    if progress is not None:
        progress("sessions", len(names), len(names))
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": "packaged MNI152 head" if config.labels is None else config.labels.name,
        "Method": _METHOD,
        "Sessions": {
            name: json.loads(json.dumps(asdict(simulation(config, name)) | {"out": None}, default=str))
            for name in names
        },
        "TargetOfCostPercent": _TARGET_PERCENT,
        "Rows": rows,
    }
    return [
        write_text(config.out / "preprocessing.md", page(rows)),
        write_json(config.out / "preprocessing.json", found),
        write_bytes(config.out / "preprocessing.png", figures.png(_figure(rows))),
    ]


def measured(scan: SimulateConfig, derivatives: Path) -> dict[str, Any]:
    """Compare the results of the pipeline with the truth.

    Parameters
    ----------
    scan
        Its simulation.
    derivatives
        Maps of the pipeline and of the truth.

    Returns
    -------
    dict
        Overlap of brain masks; r and NRMSE of the local field where it is known; median relative error of
        R2* and R2 and NRMSE of R2' in the brain; largest displacement that registration left in the brain;
        NRMSE of χ_pos and χ_neg against the truth, and their cost: the distance from what the same method
        makes of the true field, R2' and brain mask, relative to the latter; the part of it that each input
        has alone, the other being the true one.
    """
    read = MapReader(scan.out / TRUTH, derivatives)
    true_brain, brain = read.true_mask("desc-brain_mask"), read.mask("desc-brain_mask")
    known = read.mask("desc-eroded_mask") & true_brain
    field, true_field = read.made(_FIELD), read.true(_FIELD)
    rates = {name: (read.made(name), read.true(name)) for name in ("R2starmap", "R2map", _R2PRIME)}
    ideal = _on_true_inputs(scan, read, true_brain)
    alone = {part: _with_one_input_made(scan, read, part) for part in ("field", "r2prime")}
    found: dict[str, Any] = {
        "mask_dice": 2 * np.count_nonzero(brain & true_brain) / (np.count_nonzero(brain) + true_brain.sum()),
        "known_percent": 100 * np.count_nonzero(known) / true_brain.sum(),
        # A field is determined up to a constant.
        "field_r": metrics.pearson_r(field, true_field, known),
        "field_nrmse_percent": metrics.nrmse_demeaned_percent(field, true_field, known),
        "r2star_percent": _median_error_percent(*rates["R2starmap"], known),
        "r2_percent": _median_error_percent(*rates["R2map"], known),
        "r2prime_nrmse_percent": metrics.nrmse_percent(*rates[_R2PRIME], known),
        "motion_mm": _motion_left_mm(read, true_brain),
    }
    for name, desc in (("chi_pos", "paramagnetic"), ("chi_neg", "diamagnetic")):
        made, true = read.made(f"desc-{desc}_Chimap"), read.true(f"desc-{desc}_Chimap")
        found[f"{name}_nrmse_percent"] = metrics.nrmse_percent(made, true, known)
        found[f"{name}_cost_percent"] = metrics.nrmse_percent(made, ideal[name], known)
        found[f"{name}_true_inputs_nrmse_percent"] = metrics.nrmse_percent(ideal[name], true, known)
        for part, sources in alone.items():
            found[f"{name}_cost_of_{part}_percent"] = metrics.nrmse_percent(sources[name], ideal[name], known)
    return {key: float(value) if math.isfinite(value) else None for key, value in found.items()}


def _median_error_percent(made: NDArray[Any], true: NDArray[Any], inside: NDArray[np.bool_]) -> float:
    here = inside & (true > 0)
    return 100 * float(np.median(np.abs(made[here] / true[here] - 1)))


def _motion_left_mm(read: MapReader, brain: NDArray[np.bool_]) -> float:
    """Largest registration error of the spin echo in the brain, in mm."""
    points = np.c_[np.argwhere(brain), np.ones(np.count_nonzero(brain))] @ read.affine.T
    matrices = [
        np.asarray(read.sidecar(root, name)["MegreToMeseWorldMm"])
        for root, name in ((read.truth, "desc-motion_xfm"), (read.derivatives, TRANSFORM))
    ]
    true, found = (points @ matrix.T for matrix in matrices)
    return float(np.linalg.norm(true - found, axis=1).max())


def _on_true_inputs(
    scan: SimulateConfig, read: MapReader, brain: NDArray[np.bool_]
) -> dict[str, NDArray[np.float32]]:
    """χ-separation of the true field, R2' and brain mask."""
    return _separated(
        scan,
        read,
        field_ppm=torch.from_numpy(read.true(_FIELD)),
        r2prime_hz=torch.from_numpy(read.true(_R2PRIME)),
        mask=torch.from_numpy(brain),
    )


def _with_one_input_made(
    scan: SimulateConfig, read: MapReader, made: Literal["field", "r2prime"]
) -> dict[str, NDArray[np.float32]]:
    """χ-separation with one input of the pipeline, with its noise map, and the true other one."""
    brain = torch.from_numpy(read.mask("desc-brain_mask") & read.true_mask("desc-brain_mask"))
    if made == "field":
        return _separated(
            scan,
            read,
            field_ppm=torch.from_numpy(read.made(_FIELD)),
            field_sigma_ppm=torch.from_numpy(read.made(_FIELD_SIGMA)),
            r2prime_hz=torch.from_numpy(read.true(_R2PRIME)),
            mask=torch.from_numpy(read.mask("desc-eroded_mask")) & brain,
            support=brain,
        )
    sigma = torch.from_numpy(read.made(_R2PRIME_SIGMA))
    return _separated(
        scan,
        read,
        field_ppm=torch.from_numpy(read.true(_FIELD)),
        r2prime_hz=torch.from_numpy(read.made(_R2PRIME)),
        r2prime_sigma_hz=sigma,
        mask=brain & (sigma > 0),
    )


def _separated(
    scan: SimulateConfig,
    read: MapReader,
    **maps: Any,  # noqa: ANN401
) -> dict[str, NDArray[np.float32]]:
    sources = methods.separate(
        Maps(**maps, grid=read.grid, relaxivity=default_relaxivity(scan.b0_t)),
        _METHOD,
    )
    return {"chi_pos": sources.chi_pos_ppm.numpy(), "chi_neg": sources.chi_neg_ppm.numpy()}


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = [
        [SESSIONS[name].title, *(plus_minus(row[key], None, digits) for key, (_, digits) in _COLUMNS.items())]
        for name, row in rows.items()
    ]
    table = markdown(["session", *(title for title, _ in _COLUMNS.values())], lines)
    return (
        "# From raw echoes to maps\n\nOne digital phantom, simulated with the full scanner (coils, imperfect "
        "pulses, dephasing, background field) and processed by `chisep run` with its defaults. Rates: median "
        f"relative error in the brain. Cost: distance of the maps from those that the method {_METHOD} makes "
        f"of the true field, R2' and mask; {_TARGET_PERCENT:g} % at most is the target at SNR 100.\n\n{table}"
    )


def _figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    titles = [SESSIONS[name].title for name in rows]
    shown: Sequence[tuple[str, Mapping[str, str]]] = (
        ("NRMSE of the local field (%)", {"local field": "field_nrmse_percent"}),
        ("Error of rates (%)", {"R2*": "r2star_percent", "R2": "r2_percent"}),
        ("Cost of preprocessing (%)", {"χ_pos": "chi_pos_cost_percent", "χ_neg": "chi_neg_cost_percent"}),
    )
    panels = []
    for title, series in shown:
        values = {name: [number(row[key]) for row in rows.values()] for name, key in series.items()}
        panels.append(figures.Bars(title, titles, values, {name: [0.0] * len(titles) for name in series}))
    return figures.bars(panels)
