"""Compared methods, acquisition protocols, and options of the robustness experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from chisep.errors import InputError
from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.common.lesions import LesionsConfig
from chisep.networks import weights as network_weights
from chisep.simulation.dataset import SimulateConfig
from chisep.simulation.tissue import TissueConfig

UNROLLED = "unrolled"


ROWS: Mapping[str, ComparedMethod] = {
    "closed-form": ComparedMethod("closed form", "closed-form", qsm="tikhonov"),
    "iterative": ComparedMethod("iterative χ-separation", "iterative"),
    "chi-sepnet-r2p": ComparedMethod(
        "χ-sepnet-R2', healthy phantoms", "chi-sepnet-r2p", "chi-sepnet-r2p", "qsmnet"
    ),
    "unrolled-thesis": ComparedMethod(
        "unrolled χ-sepnet-R2' (Eq. 2.5), healthy phantoms", "unrolled-thesis", "unrolled-thesis", "qsmnet"
    ),
    "chi-sepnet-r2s": ComparedMethod(
        "χ-sepnet-R2* (no spin echo), healthy phantoms", "chi-sepnet-r2s", "chi-sepnet-r2p", "qsmnet"
    ),
    "chi-sepnet-r2p-lesions": ComparedMethod(
        "χ-sepnet-R2', phantoms with lesions", "chi-sepnet-r2p", "unrolled-baseline", "tikhonov"
    ),
    "chi-sepnet-r2p-compute": ComparedMethod(
        "the same, trained for as long as unrolled", "chi-sepnet-r2p", "unrolled-baseline-long", "tikhonov"
    ),
    "unrolled-thesis-lesions": ComparedMethod(
        "unrolled χ-sepnet-R2' (Eq. 2.5), phantoms with lesions",
        "unrolled-thesis",
        "unrolled-gradient",
        "tikhonov",
    ),
    "unrolled-first": ComparedMethod("unrolled, first part of its training", "unrolled", "unrolled-first"),
    UNROLLED: ComparedMethod("unrolled", "unrolled", "unrolled"),
    "tikhonov": ComparedMethod("Tikhonov", "tikhonov"),
    "tv": ComparedMethod("total variation", "tv"),
    "qsmnet": ComparedMethod("QSMnet, healthy phantoms", "qsmnet", "qsmnet"),
    "unrolled-qsm": ComparedMethod("unrolled QSM", "unrolled-qsm", "unrolled-qsm"),
}
"""Methods by name, in the order of tables; those of χ alone last."""
PROTOCOL_ROWS = (
    "closed-form",
    "chi-sepnet-r2p-lesions",
    "chi-sepnet-r2p-compute",
    UNROLLED,
    "tikhonov",
    "unrolled-qsm",
)
"""Methods that are evaluated under every protocol: `unrolled`, its baselines, fast solvers."""


@dataclass(frozen=True)
class Condition:
    """A protocol.

    Parameters
    ----------
    title
        Name in tables.
    options
        Options of the simulation other than the standard.
    dr_hz_per_ppm
        D_r of both sources; that of the field strength if None.
    assumed_ratio
        Assumed D_r over the true one.
    gre_only
        Whether there is no spin echo, so that methods get a pseudo-R2' (R2* minus a constant R2).
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dr_hz_per_ppm: float | None = None
    assumed_ratio: float = 1.0
    gre_only: bool = False


CONDITIONS: Mapping[str, Condition] = {
    "standard": Condition("standard: 3 T, 1 mm, SNR 50"),
    "7t": Condition(
        "7 T",
        {
            "b0_t": 7.0,
            "te_gre_s": (0.004, 0.008, 0.012, 0.016, 0.020),
            "te_se_s": (0.010, 0.020, 0.030, 0.040, 0.050, 0.060),
        },
    ),
    "1.5t": Condition(
        "1.5 T", {"b0_t": 1.5, "te_gre_s": (0.005, 0.013, 0.021, 0.029, 0.037), "tr_gre_s": 0.045}
    ),
    "oblique": Condition("oblique by 30°", {"tilt_deg": (30.0, 0.0, 0.0)}),
    "slices": Condition("1 × 1 × 3 mm", {"voxel_mm": (1.0, 1.0, 3.0)}),
    "fine": Condition("0.7 mm", {"voxel_mm": 0.7}),
    "dr90": Condition("D_r 90", dr_hz_per_ppm=90.0),
    "dr300": Condition("D_r 300", dr_hz_per_ppm=300.0),
    "misspecified": Condition("assumed D_r 20 % too high", assumed_ratio=1.2),
    "snr25": Condition("SNR 25", {"snr": 25.0}),
    "gre-only": Condition("no spin echo", gre_only=True),
}
"""Protocols by name: each is the first with one thing changed."""


@dataclass(frozen=True, kw_only=True)
class BeyondConfig(LesionsConfig):
    """Phantoms that no network was trained on, under several protocols (map-level simulation)."""

    out: Positional[Path]
    """Folder for the results; existing results of the same weights and options are reused."""
    labels: tuple[Path, ...]
    """Label maps of the phantoms."""
    weights_folder: Path | None = None
    """Folder with NAME/weights.safetensors, as `chisep train --out` leaves them; else the packaged ones."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Methods, by name."""
    rows_of_conditions: tuple[str, ...] = PROTOCOL_ROWS
    """Those of them that are applied under protocols other than the standard."""
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    """Protocols, by name."""
    heads_of_conditions: int = 2
    """Number of phantoms under protocols other than the standard; the first ones."""
    strengths_ppb: tuple[float, ...] = (50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 850.0, 1000.0)
    """χ_pos of each hemorrhage, χ_neg of each calcification in a phantom, in ppb."""
    voxel_mm: float = 1.0
    """Voxel edge of the standard protocol in mm."""
    seed: int = 11
    """Seed of phantoms, lesions and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, given, known in (
            ("rows", self.rows, ROWS),
            ("rows_of_conditions", self.rows_of_conditions, ROWS),
            ("conditions", self.conditions, CONDITIONS),
        ):
            if unknown := [name for name in given if name not in known]:
                raise InputError(
                    option,
                    found=", ".join(unknown),
                    expected=f"some of: {', '.join(known)}",
                    fix="Correct the names.",
                )
        if self.heads_of_conditions < 1:
            raise InputError(
                "heads_of_conditions",
                found=f"{self.heads_of_conditions}",
                expected="1 or more",
                fix="Correct the option, or leave --conditions at standard.",
            )

    def rows_under(self, condition: str) -> list[str]:
        """Methods that are applied under a protocol, in the order of tables."""
        return [row for row in self.rows if condition == "standard" or row in self.rows_of_conditions]


def simulation(config: BeyondConfig, name: str) -> SimulateConfig:
    """Return the settings of the simulation under a protocol."""
    condition = CONDITIONS[name]
    tissue = TissueConfig(
        anisotropy_ppb=16.0,
        dr_pos_hz_per_ppm=condition.dr_hz_per_ppm,
        dr_neg_hz_per_ppm=condition.dr_hz_per_ppm,
    )
    options: dict[str, Any] = {"voxel_mm": config.voxel_mm, "snr": 50.0, **condition.options}
    return SimulateConfig(
        out=config.out / "unused",
        labels=config.labels,
        subjects=len(config.labels),
        seed=config.seed,
        maps_only=True,
        residual_background_ppb=3.5,
        tissue=tissue,
        **options,
    )


def weights_of(config: BeyondConfig, row: ComparedMethod) -> Path | None:
    """Find the weights of a method; None for a solver.

    Raises
    ------
    InputError
        If they are not there.
    """
    if not row.weights:
        return None
    own = config.weights_folder and config.weights_folder / row.weights / "weights.safetensors"
    return own if own and own.is_file() else network_weights.find_weights(row.weights)
