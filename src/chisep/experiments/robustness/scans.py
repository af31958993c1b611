"""Simulated scans of digital phantoms under protocols, and evaluation of every method on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

import chisep
from chisep import methods
from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.common.lesions import GRADED, read_chi
from chisep.experiments.common.networks import PRECISION, estimates_of
from chisep.experiments.common.scores import arrays, chi_scores, finite, scores
from chisep.experiments.common.true_maps import maps_in_the_brain
from chisep.experiments.robustness.protocols import (
    CONDITIONS,
    ROWS,
    UNROLLED,
    BeyondConfig,
    simulation,
    weights_of,
)
from chisep.io.files import checksum
from chisep.networks.config import SOURCES
from chisep.networks.inference import NetworkOptions
from chisep.physics.dipole import Dipole
from chisep.preprocessing.relaxometry import Rate, pseudo_r2prime
from chisep.simulation.dataset import healthy_tissue
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.placement import add_lesions
from chisep.simulation.measured import measured_maps
from chisep.simulation.tissue import Tissue
from chisep.training.conformal import SIGMAS
from chisep.types import Maps, MaskVolume, Relaxivity, Sources, Volume

_NOISE_STREAM, _LESION_STREAM = 61, 62
_CONE = 0.1
"""|D| below which the field has little information on χ."""
_SOURCE_OF: Mapping[str, str] = {str(kind): source for kind, source in GRADED.items()}
_FEWEST_VOXELS = 50
"""Smallest region whose mean is evaluated."""


class SimulatedScan:
    """Scan of a head under a protocol, simulated on first use."""

    def __init__(self, config: BeyondConfig, condition: str, index: int, *, lesions: bool) -> None:
        self.config, self.condition, self.index, self.lesions = config, condition, index, lesions

    def key(self, row: str) -> dict[str, Any]:
        """Everything that a result depends on."""
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
        """Head with lesions; None for a healthy one."""
        if not self.lesions:
            return None
        rng = np.random.default_rng([self.config.seed, self.index, _LESION_STREAM])
        configs = [self.config.lesion(kind, s) for s in self.config.strengths_ppb for kind in GRADED]
        return add_lesions(self._healthy, configs, rng, separation_mm=self.config.separation_mm)

    @cached_property
    def _healthy(self) -> Tissue:
        return healthy_tissue(simulation(self.config, self.condition), self.index)

    @cached_property
    def tissue(self) -> Tissue:
        """Tissue of the head."""
        return self.patient.tissue if self.patient else self._healthy

    @cached_property
    def truth(self) -> Sources:
        """True sources."""
        mask = self.tissue.mask
        return Sources(self.tissue.chi_pos_ppm * mask, self.tissue.chi_neg_ppm * mask)

    @cached_property
    def maps(self) -> Maps:
        """Measured maps with noise maps, and the assumed D_r."""
        how = simulation(self.config, self.condition)
        rng = np.random.default_rng([self.config.seed, self.index, _NOISE_STREAM])
        measured, tissue = measured_maps(self.tissue, how, rng), self.tissue
        condition, true = CONDITIONS[self.condition], tissue.relaxivity
        ratio = condition.assumed_ratio
        maps = replace(
            maps_in_the_brain(tissue, measured),
            relaxivity=Relaxivity(ratio * true.pos_hz_per_ppm, ratio * true.neg_hz_per_ppm),
        )
        if not condition.gre_only:
            return maps
        r2prime = pseudo_r2prime(Rate(measured.r2star_hz, measured.r2star_sigma_hz), tissue.b0_t)
        return replace(
            maps,
            r2prime_hz=r2prime.rate_hz * tissue.mask,
            r2prime_sigma_hz=r2prime.sigma_hz * tissue.mask,
        )

    def evaluated(self, name: str) -> dict[str, Any]:
        """Apply a method and evaluate its result."""
        row, mask = ROWS[name], self.maps.mask
        known = {"condition": self.condition, "head": self.index + 1, "row": name}
        if row.target == "chi":
            return known | self._evaluated_chi(row)
        made = self._made(row)
        result: dict[str, Any] = known | {
            "scores": scores(made, self.truth, mask),
            "coverage": {source: finite(value) for source, value in self._coverage(made, mask).items()},
        }
        if self.patient is None:
            return result | {
                "budget_ppb": error_budget(made, self.truth, self.maps),
                "regions_ppb": self._regions(made),
            }
        estimates = []
        if name == UNROLLED:
            estimates = estimates_of(weights_of(self.config, row) or "", self.maps)
        return result | {"lesions": self._lesions(made, estimates)}

    def _made(self, row: ComparedMethod) -> Sources:
        maps = self.maps
        if row.qsm:
            options = NetworkOptions(precision=PRECISION) if row.qsm == "qsmnet" else None
            maps = replace(maps, chi_ppm=methods.invert(maps, row.qsm, options).chi_ppm)
        return methods.separate(maps, row.method, self._options(row))

    def _options(self, row: ComparedMethod) -> NetworkOptions | None:
        path = weights_of(self.config, row)
        return None if path is None else NetworkOptions(weights=str(path), precision=PRECISION)

    def _evaluated_chi(self, row: ComparedMethod) -> dict[str, Any]:
        made = methods.invert(self.maps, row.method, self._options(row))
        mask, true = self.maps.mask, self.truth.chi_ppm
        scored = chi_scores(made.chi_ppm.numpy(), true.numpy(), mask.numpy())
        result: dict[str, Any] = {"scores": {"chi": scored}, "coverage": {}}
        if made.chi_sigma_ppm is not None:
            # The mean of χ is not determined by a field.
            error = made.chi_ppm - true
            error = error - error[mask].mean()
            result["coverage"] = {"chi": _coverage_of(error, made.chi_sigma_ppm, mask)}
        if self.patient is not None:
            result["lesions"] = read_chi(self.patient, true, made.chi_ppm)
        return result

    def _coverage(self, made: Sources, inside: MaskVolume) -> dict[str, float]:
        """Coverage of the prediction intervals; empty for a method without predicted uncertainty."""
        if made.chi_pos_sigma_ppm is None or made.chi_neg_sigma_ppm is None:
            return {}
        pairs = {
            "chi_pos": (made.chi_pos_ppm - self.truth.chi_pos_ppm, made.chi_pos_sigma_ppm),
            "chi_neg": (made.chi_neg_ppm - self.truth.chi_neg_ppm, made.chi_neg_sigma_ppm),
        }
        return {source: _coverage_of(error, sigma, inside) for source, (error, sigma) in pairs.items()}

    def _regions(self, made: Sources) -> dict[str, float | int]:
        """RMS error in ppb of the means of regions with 50 voxels or more, and their number."""
        inside = self.maps.mask.numpy()
        numbers = np.asarray(self.tissue.labels)[inside]
        sizes = np.bincount(numbers)
        large = sizes >= _FEWEST_VOXELS
        result: dict[str, float | int] = {"count": int(large.sum())}
        values, true = arrays(made), arrays(self.truth)
        for source in SOURCES:
            errors = np.bincount(numbers, (values[source] - true[source])[inside])
            result[source] = 1000 * float(np.sqrt(np.mean((errors[large] / sizes[large]) ** 2)))
        return result

    def _lesions(self, made: Sources, intermediate_estimates: Sequence[Sources]) -> list[dict[str, Any]]:
        if self.patient is None:
            raise ValueError("a head without lesions")
        labels = self.patient.labels
        true, values, cascades = arrays(self.truth), arrays(made), [arrays(x) for x in intermediate_estimates]
        result = []
        for lesion in self.patient.lesions:
            inside = (labels == lesion.label).numpy()
            own = _SOURCE_OF[lesion.kind]
            other = next(source for source in SOURCES if source != own)
            coverage = self._coverage(made, torch.from_numpy(inside))

            def mean(x: Mapping[str, Any], source: str, inside: Any = inside) -> float:  # noqa: ANN401
                return 1000 * float(x[source][inside].mean(dtype=np.float64))

            result.append(
                {
                    "kind": lesion.kind,
                    "assigned_ppb": mean(true, own),
                    "predicted_ppb": finite(mean(values, own)),
                    "leak_ppb": finite(mean(values, other) - mean(true, other)),
                    "coverage": coverage.get(own),
                    "coverage_other": coverage.get(other),
                    "cascades_ppb": [finite(mean(x, own)) for x in cascades],
                }
            )
        return result


def _coverage_of(error: Volume, sigma: Volume, inside: MaskVolume) -> float:
    return float((error.abs() <= SIGMAS * sigma)[inside].float().mean())


def error_budget(made: Sources, truth: Sources, maps: Maps) -> dict[str, float]:
    """Error budget: RMS errors in ppb of sum (from R2') and difference (from the field) of the sources.

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
        `difference_in_cone` its component where |D| < 0.1 and the field has little information.
    """
    inside = maps.mask
    pos, neg = made.chi_pos_ppm - truth.chi_pos_ppm, made.chi_neg_ppm - truth.chi_neg_ppm
    dipole = Dipole(maps.grid, pad=False)
    spectrum = dipole.spectrum((pos - neg) * inside)
    in_cone = dipole.volume(spectrum * (dipole.kernel.abs() < _CONE))

    def rms_ppb(x: Volume) -> float:
        return 1000 * float(x[inside].square().mean().sqrt())

    result = {
        "sum": rms_ppb(pos + neg),
        "difference": rms_ppb(pos - neg),
        "difference_in_cone": rms_ppb(in_cone),
    }
    if maps.r2prime_hz is not None and maps.relaxivity is not None:
        known = truth.chi_pos_ppm + maps.relaxivity.ratio * truth.chi_neg_ppm
        result["noise_of_sum"] = rms_ppb(maps.r2prime_hz / maps.relaxivity.pos_hz_per_ppm - known)
    return result
