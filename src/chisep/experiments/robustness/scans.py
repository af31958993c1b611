"""Heads under protocols, the methods that are applied to them, and how each result is judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.errors import InputError
from chisep.experiments.thesis.data import arrays, finite, scores
from chisep.experiments.thesis.patients import GRADED, LesionsConfig
from chisep.experiments.thesis.qsm import chi_scores, read_chi
from chisep.experiments.thesis.rows import PRECISION
from chisep.io.files import checksum
from chisep.networks import inference
from chisep.networks.config import SOURCES
from chisep.networks.inference import NetworkOptions
from chisep.physics.dipole import Dipole
from chisep.preprocessing.relaxometry import Rate, pseudo_r2prime
from chisep.simulation.dataset import SimulateConfig, healthy_tissue
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.placement import add_lesions
from chisep.simulation.measured import measured_maps
from chisep.simulation.tissue import Tissue, TissueConfig
from chisep.training.conformal import SIGMAS
from chisep.types import Maps, MaskVolume, Relaxivity, Sources, Volume

_NOISE_STREAM, _LESION_STREAM = 61, 62
_CONE = 0.1
"""|D| below which the field says little of χ."""
_SOURCE_OF: Mapping[str, str] = {str(kind): source for kind, source in GRADED.items()}
_FEWEST_VOXELS = 50
"""Of a region whose mean is read."""
UNROLLED = "unrolled"


@dataclass(frozen=True)
class Row:
    """A method as it is compared.

    Parameters
    ----------
    title
        As tables have it.
    method
        Name in `chisep methods`.
    weights
        Name of its weights; empty for a solver.
    qsm
        What makes the χ map that it is given; none if empty.
    """

    title: str
    method: str
    weights: str = ""
    qsm: str = ""

    @property
    def target(self) -> methods.Target:
        """What it makes."""
        return methods.METHODS[self.method].target


ROWS: Mapping[str, Row] = {
    "closed-form": Row("closed form", "closed-form", qsm="tikhonov"),
    "iterative": Row("iterative χ-separation", "iterative"),
    "chi-sepnet-r2p": Row("χ-sepnet-R2', healthy heads", "chi-sepnet-r2p", "chi-sepnet-r2p", "qsmnet"),
    "unrolled-thesis": Row(
        "unrolled χ-sepnet-R2' (Eq. 2.5), healthy heads", "unrolled-thesis", "unrolled-thesis", "qsmnet"
    ),
    "chi-sepnet-r2s": Row(
        "χ-sepnet-R2* (no spin echo), healthy heads", "chi-sepnet-r2s", "chi-sepnet-r2p", "qsmnet"
    ),
    "chi-sepnet-r2p-lesions": Row(
        "χ-sepnet-R2', heads with lesions", "chi-sepnet-r2p", "unrolled-baseline", "tikhonov"
    ),
    "chi-sepnet-r2p-compute": Row(
        "the same, trained for as long as unrolled", "chi-sepnet-r2p", "unrolled-baseline-long", "tikhonov"
    ),
    "unrolled-thesis-lesions": Row(
        "unrolled χ-sepnet-R2' (Eq. 2.5), heads with lesions",
        "unrolled-thesis",
        "unrolled-gradient",
        "tikhonov",
    ),
    "unrolled-first": Row("unrolled, first part of its training", "unrolled", "unrolled-first"),
    UNROLLED: Row("unrolled", "unrolled", "unrolled"),
    "tikhonov": Row("Tikhonov", "tikhonov"),
    "tv": Row("total variation", "tv"),
    "qsmnet": Row("QSMnet, healthy heads", "qsmnet", "qsmnet"),
    "unrolled-qsm": Row("unrolled QSM", "unrolled-qsm", "unrolled-qsm"),
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
"""Methods that are measured under every protocol: `unrolled`, its baselines, solvers that take no minutes."""


@dataclass(frozen=True)
class Condition:
    """A protocol.

    Parameters
    ----------
    title
        As tables have it.
    options
        Options of the simulation other than the standard.
    dr_hz_per_ppm
        D_r of both sources; that of the field strength if None.
    stated
        D_r that methods are told over the true one.
    gre_only
        Whether there is no spin echo, so that R2' is R2* minus one R2 for all tissue.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dr_hz_per_ppm: float | None = None
    stated: float = 1.0
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
    "misstated": Condition("D_r told 20 % too high", stated=1.2),
    "snr25": Condition("SNR 25", {"snr": 25.0}),
    "gre-only": Condition("no spin echo", gre_only=True),
}
"""Protocols by name: each is the first with one thing changed."""


@dataclass(frozen=True, kw_only=True)
class BeyondConfig(LesionsConfig):
    """Heads that no network was trained on, under several protocols; fields and R2' without their echoes."""

    out: Positional[Path]
    """Folder for the results; what is there from equal weights and options is kept."""
    labels: tuple[Path, ...]
    """Label maps of the heads."""
    weights_folder: Path | None = None
    """Folder with NAME/weights.safetensors, as `chisep train --out` leaves them; else the shipped ones."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Methods, by name."""
    rows_of_conditions: tuple[str, ...] = PROTOCOL_ROWS
    """Those of them that are applied under protocols other than the standard."""
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    """Protocols, by name."""
    heads_of_conditions: int = 2
    """Heads under protocols other than the standard; the first ones."""
    strengths_ppb: tuple[float, ...] = (50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 850.0, 1000.0)
    """χ_pos of each hemorrhage, χ_neg of each calcification in a head, in ppb."""
    voxel_mm: float = 1.0
    """Voxel edge of the standard protocol in mm."""
    seed: int = 11
    """Seed of heads, lesions and noise."""

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
    """How heads are scanned under a protocol."""
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


def weights_of(config: BeyondConfig, row: Row) -> Path | None:
    """Find the weights of a method; None for a solver.

    Raises
    ------
    InputError
        If they are not there.
    """
    if not row.weights:
        return None
    own = config.weights_folder and config.weights_folder / row.weights / "weights.safetensors"
    return own if own and own.is_file() else inference.find_weights(row.weights)


class Scan:
    """A head under a protocol, which is made when the first method asks."""

    def __init__(self, config: BeyondConfig, condition: str, index: int, *, lesions: bool) -> None:
        self.config, self.condition, self.index, self.lesions = config, condition, index, lesions

    def key(self, row: str) -> dict[str, Any]:
        """All that a result depends on."""
        path, how = weights_of(self.config, ROWS[row]), simulation(self.config, self.condition)
        options = asdict(how) | {"out": None, "labels": [checksum(label) for label in self.config.labels]}
        return {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Row": asdict(ROWS[row]),
            "Weights": None if path is None else checksum(path),
            "Condition": asdict(CONDITIONS[self.condition]),
            "Simulation": json.loads(json.dumps(options, default=str)),
            "Lesions": [*self.config.strengths_ppb, self.config.size_mm] if self.lesions else [],
        }

    @cached_property
    def patient(self) -> Patient | None:
        """Lesions, of a head that has some."""
        if not self.lesions:
            return None
        rng = np.random.default_rng([self.config.seed, self.index, _LESION_STREAM])
        wanted = [self.config.lesion(kind, s) for s in self.config.strengths_ppb for kind in GRADED]
        return add_lesions(self._healthy, wanted, rng, separation_mm=self.config.separation_mm)

    @cached_property
    def _healthy(self) -> Tissue:
        return healthy_tissue(simulation(self.config, self.condition), self.index)

    @cached_property
    def tissue(self) -> Tissue:
        """The head."""
        return self.patient.tissue if self.patient else self._healthy

    @cached_property
    def truth(self) -> Sources:
        """What should come out."""
        mask = self.tissue.mask
        return Sources(self.tissue.chi_pos_ppm * mask, self.tissue.chi_neg_ppm * mask)

    @cached_property
    def maps(self) -> Maps:
        """What is measured, with its noise and the D_r that is told."""
        how = simulation(self.config, self.condition)
        rng = np.random.default_rng([self.config.seed, self.index, _NOISE_STREAM])
        measured, tissue = measured_maps(self.tissue, how, rng), self.tissue
        condition, true = CONDITIONS[self.condition], tissue.relaxivity
        told = condition.stated
        found = Rate(measured.r2prime_hz, measured.r2prime_sigma_hz)
        if condition.gre_only:
            of_gre = Rate(measured.r2star_hz, measured.r2star_sigma_hz)
            found = pseudo_r2prime(of_gre, tissue.b0_t)
        return Maps(
            field_ppm=measured.local_ppm * tissue.mask,
            mask=tissue.mask,
            grid=tissue.grid,
            relaxivity=Relaxivity(told * true.pos_hz_per_ppm, told * true.neg_hz_per_ppm),
            r2prime_hz=found.rate_hz * tissue.mask,
            r2star_hz=measured.r2star_hz * tissue.mask,
            field_sigma_ppm=measured.field_sigma_ppm * tissue.mask,
            r2prime_sigma_hz=found.sigma_hz * tissue.mask,
        )

    def judged(self, name: str) -> dict[str, Any]:
        """Apply a method and measure what it makes."""
        row, mask = ROWS[name], self.maps.mask
        known = {"condition": self.condition, "head": self.index + 1, "row": name}
        if row.target == "chi":
            return known | self._judged_chi(row)
        made = self._made(row)
        found: dict[str, Any] = known | {
            "scores": scores(made, self.truth, mask),
            "held": {source: finite(value) for source, value in self._held(made, mask).items()},
        }
        if self.patient is None:
            return found | {
                "budget_ppb": error_budget(made, self.truth, self.maps),
                "regions_ppb": self._regions(made),
            }
        intermediate_estimates = self._iterates(row) if name == UNROLLED else []
        return found | {"lesions": self._lesions(made, intermediate_estimates)}

    def _made(self, row: Row) -> Sources:
        maps = self.maps
        if row.qsm:
            options = NetworkOptions(precision=PRECISION) if row.qsm == "qsmnet" else None
            maps = replace(maps, chi_ppm=methods.invert(maps, row.qsm, options).chi_ppm)
        return methods.separate(maps, row.method, self._options(row))

    def _options(self, row: Row) -> NetworkOptions | None:
        path = weights_of(self.config, row)
        return None if path is None else NetworkOptions(weights=str(path), precision=PRECISION)

    def _judged_chi(self, row: Row) -> dict[str, Any]:
        made = methods.invert(self.maps, row.method, self._options(row))
        mask, true = self.maps.mask, self.truth.chi_ppm
        scored = chi_scores(made.chi_ppm.numpy(), true.numpy(), mask.numpy())
        found: dict[str, Any] = {"scores": {"chi": scored}, "held": {}}
        if made.chi_sigma_ppm is not None:
            # A field does not tell the mean of χ.
            error = made.chi_ppm - true
            error = error - error[mask].mean()
            found["held"] = {"chi": _share_held(error, made.chi_sigma_ppm, mask)}
        if self.patient is not None:
            found["lesions"] = read_chi(self.patient, true, made.chi_ppm)
        return found

    def _iterates(self, row: Row) -> list[Sources]:
        trained = inference.load(weights_of(self.config, row) or "")
        channels = inference.measured_channels(self.maps, trained.config.inputs, NetworkOptions())
        ratio = 1.0 if self.maps.relaxivity is None else self.maps.relaxivity.ratio
        found = inference.intermediate_estimates(
            trained, channels, self.maps.mask, self.maps.grid, ratio=ratio, precision=PRECISION
        )
        return [Sources(*x[:2].clamp_min(0)) for x in found]

    def _held(self, made: Sources, inside: MaskVolume) -> dict[str, float]:
        """Share of voxels whose truth lies in the interval that the method tells; empty if it tells none."""
        if made.chi_pos_sigma_ppm is None or made.chi_neg_sigma_ppm is None:
            return {}
        pairs = {
            "chi_pos": (made.chi_pos_ppm - self.truth.chi_pos_ppm, made.chi_pos_sigma_ppm),
            "chi_neg": (made.chi_neg_ppm - self.truth.chi_neg_ppm, made.chi_neg_sigma_ppm),
        }
        return {source: _share_held(error, sigma, inside) for source, (error, sigma) in pairs.items()}

    def _regions(self, made: Sources) -> dict[str, float | int]:
        """RMS error in ppb of the means of regions with 50 voxels or more, and how many these are."""
        inside = self.maps.mask.numpy()
        numbers = np.asarray(self.tissue.labels)[inside]
        sizes = np.bincount(numbers)
        large = sizes >= _FEWEST_VOXELS
        found: dict[str, float | int] = {"count": int(large.sum())}
        values, true = arrays(made), arrays(self.truth)
        for source in SOURCES:
            errors = np.bincount(numbers, (values[source] - true[source])[inside])
            found[source] = 1000 * float(np.sqrt(np.mean((errors[large] / sizes[large]) ** 2)))
        return found

    def _lesions(self, made: Sources, intermediate_estimates: Sequence[Sources]) -> list[dict[str, Any]]:
        if self.patient is None:
            raise ValueError("a head without lesions")
        labels = self.patient.labels
        true, values, passes = arrays(self.truth), arrays(made), [arrays(x) for x in intermediate_estimates]
        found = []
        for lesion in self.patient.lesions:
            inside = (labels == lesion.label).numpy()
            own = _SOURCE_OF[lesion.kind]
            other = next(source for source in SOURCES if source != own)
            held = self._held(made, torch.from_numpy(inside))

            def mean(x: Mapping[str, Any], source: str, inside: Any = inside) -> float:  # noqa: ANN401
                return 1000 * float(x[source][inside].mean(dtype=np.float64))

            found.append(
                {
                    "kind": lesion.kind,
                    "assigned_ppb": mean(true, own),
                    "predicted_ppb": finite(mean(values, own)),
                    "leak_ppb": finite(mean(values, other) - mean(true, other)),
                    "held": held.get(own),
                    "held_other": held.get(other),
                    "passes_ppb": [finite(mean(x, own)) for x in passes],
                }
            )
        return found


def _share_held(error: Volume, sigma: Volume, inside: MaskVolume) -> float:
    return float((error.abs() <= SIGMAS * sigma)[inside].float().mean())


def error_budget(made: Sources, truth: Sources, maps: Maps) -> dict[str, float]:
    """RMS errors in ppb of what R2' and field each tell.

    Parameters
    ----------
    made, truth
        Sources.
    maps
        Of the scan.

    Returns
    -------
    dict
        `sum` of χ_pos + χ_neg, `noise_of_sum` that of R2'/D_r; `difference` of χ_pos − χ_neg, and
        `difference_in_cone` the part of it where |D| < 0.1 and the field says little.
    """
    inside = maps.mask
    pos, neg = made.chi_pos_ppm - truth.chi_pos_ppm, made.chi_neg_ppm - truth.chi_neg_ppm
    dipole = Dipole(maps.grid, pad=False)
    spectrum = dipole.spectrum((pos - neg) * inside)
    in_cone = dipole.volume(spectrum * (dipole.kernel.abs() < _CONE))

    def rms_ppb(x: Volume) -> float:
        return 1000 * float(x[inside].square().mean().sqrt())

    found = {
        "sum": rms_ppb(pos + neg),
        "difference": rms_ppb(pos - neg),
        "difference_in_cone": rms_ppb(in_cone),
    }
    if maps.r2prime_hz is not None and maps.relaxivity is not None:
        known = truth.chi_pos_ppm + maps.relaxivity.ratio * truth.chi_neg_ppm
        found["noise_of_sum"] = rms_ppb(maps.r2prime_hz / maps.relaxivity.pos_hz_per_ppm - known)
    return found
