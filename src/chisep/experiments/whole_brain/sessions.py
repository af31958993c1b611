"""Simulated sessions: raw scans, the whole chain with every method, and methods on maps without rim."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.errors import InputError
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.session_maps import MapReader
from chisep.experiments.common.true_maps import maps_in_the_brain
from chisep.experiments.whole_brain.measures import (
    BRAIN,
    FIELD,
    MAPS,
    R2PRIME,
    SIGMAS_OF,
    VALID,
    VALID_FIELD,
    MapArray,
    MaskArray,
    Truth,
    error_by_depth,
    error_over_sigma,
    errors_of,
    interval_coverage,
    read_truth,
    rounded,
)
from chisep.io.files import checksum
from chisep.pipeline.config import FROM_SOURCES, RunConfig
from chisep.pipeline.run import run
from chisep.preprocessing.background import BackgroundConfig, remove_background
from chisep.simulation.dataset import TRUTH, SimulateConfig, healthy_tissue, simulate
from chisep.simulation.measured import measured_maps
from chisep.simulation.tissue import TissueConfig
from chisep.types import Maps, Volume

CHAIN, TRUE_MAPS, SCAN, BACKGROUND = "chain", "true-maps", "scan", "background"
CHOSEN = "chain"
"""Name of the local field of the pipeline beside those of background-removal methods."""
_BACKGROUND_METHODS: tuple[Literal["vsharp", "pdf", "lbv"], ...] = ("vsharp", "pdf", "lbv")
_LOCAL_SIGMA, _THERMAL_SIGMA = "desc-local_stat-std_fieldmap", "stat-std_fieldmap"
_R2PRIME_SIGMA = "stat-std_R2primemap"
_TOTAL_FIELD = "desc-total_fieldmap"
_NOISE_STREAM = 71
_PPB = 1000.0


@dataclass(frozen=True, kw_only=True)
class WholeBrainConfig:
    """Raw scans of digital phantoms, processed by `chisep run`, against the truth of the whole brain."""

    out: Positional[Path]
    """Folder for scans, maps and results; finished sessions are kept. A session that an older version of the
    code finished is kept too: remove its folder after a change of the code."""
    labels: tuple[Path, ...]
    """Label maps of the heads."""
    snrs: tuple[float, ...] = (50.0, 100.0)
    """SNR of the scans; background-removal methods are compared at the first."""
    methods: tuple[str, ...] = ("unrolled", "iterative", "closed-form")
    """Separation methods, by name; the figure shows the first."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 1
    """Seed of heads and noise."""
    residual_background_ppb: float = 3.5
    """Residual background field of the maps without rim, as in `reproduce beyond`."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """Variation of tissue between subjects and voxels."""
    before: Path | None = None
    """whole-brain.json of an earlier version, to show beside the results."""

    def __post_init__(self) -> None:
        if not self.labels or not self.snrs or not self.methods:
            raise InputError(
                "labels, snrs, methods",
                found="none of one of them",
                expected="one or more of each",
                fix="Correct the options.",
            )
        for name in self.methods:
            methods.find(name, "sources")
        if len({label.name for label in self.labels}) < len(self.labels):
            raise InputError(
                "labels",
                found="two files of one name",
                expected="another name for each, since folders are named after them",
                fix="Rename one.",
            )


class SimulatedSession:
    """Scan session of a head at an SNR.

    Parameters
    ----------
    config
        Options of the experiment.
    labels
        Label map of the head.
    snr
        SNR of the scans.
    """

    def __init__(self, config: WholeBrainConfig, labels: Path, snr: float) -> None:
        self.config, self.labels, self.snr = config, labels, snr
        self.head = labels.name.split("_")[0].split(".")[0]
        self.name = f"{self.head}-snr{snr:g}"
        self.folder = config.out / "sessions" / self.name
        self.scan = SimulateConfig(
            out=self.folder / "bids",
            labels=(labels,),
            snr=snr,
            voxel_mm=config.voxel_mm,
            seed=config.seed,
            tissue=config.tissue,
        )

    def simulate(self) -> None:
        """Simulate the raw scans; existing ones of the same options are kept."""
        simulate(self.scan)

    def processed(self, method: str) -> list[str]:
        """Process the scans with a method, and return the warnings; stages that are up to date are kept.

        Stages that do not depend on the method are copied from the first method's derivatives.
        """
        out, first = self._derivatives(method), self._derivatives(self.config.methods[0])
        if out != first and first.is_dir() and not out.exists():
            shutil.copytree(first, out)
        (result,) = run(self._run_config(method))
        if result.error is not None:
            raise result.error
        return list(result.warnings)

    def _derivatives(self, method: str) -> Path:
        return self.folder / method

    def _run_config(self, method: str) -> RunConfig:
        return RunConfig(self.scan.out, self._derivatives(method), method=method)

    def _read(self, method: str) -> MapReader:
        return MapReader(self.scan.out / TRUTH, self._derivatives(method))

    @cached_property
    def truth(self) -> Truth:
        """Truth of the session."""
        return read_truth(self._read(self.config.methods[0]))

    def cell(self, what: str, method: str = "") -> dict[str, Any]:
        """Evaluate one part of the experiment; a result is kept until something that it depends on changes.

        Parameters
        ----------
        what
            `SCAN` (field, R2' and masks of the pipeline), `BACKGROUND` (methods of background removal),
            `CHAIN` or `TRUE_MAPS` (sources of the whole chain, or of maps without rim).
        method
            Separation method of the last two.
        """
        read = self._read(method or self.config.methods[0])
        make = {
            SCAN: partial(self._scan, read),
            BACKGROUND: partial(self._backgrounds, read),
            CHAIN: partial(self._chain, read),
            TRUE_MAPS: partial(self._on_true_maps, method),
        }
        known = {"session": self.name, "head": self.head, "snr": self.snr, "what": what, "method": method}
        path = self.config.out / "cells" / f"{self.name}_{what}{'_' * bool(method)}{method}.json"
        return cached_result(path, self._key(read, what, method), lambda: known | make[what]())

    def _key(self, read: MapReader, what: str, method: str) -> dict[str, Any]:
        """Everything that a result depends on."""
        options = asdict(self.scan) | {"out": None, "labels": checksum(self.labels)}
        key: dict[str, Any] = {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Simulation": json.loads(json.dumps(options, default=str)),
        }
        if what == TRUE_MAPS:
            settings = {name: methods.settings(name) for name in (method, self._run_config(method).inversion)}
            return key | {
                "ResidualBackgroundPpb": self.config.residual_background_ppb,
                "Methods": settings,
                "Weights": self._run_config(method).weights(),
            }
        names = {
            SCAN: (BRAIN, VALID_FIELD, FIELD, _LOCAL_SIGMA, _THERMAL_SIGMA, R2PRIME, _R2PRIME_SIGMA),
            BACKGROUND: (_TOTAL_FIELD, _THERMAL_SIGMA, FIELD, VALID_FIELD),
            CHAIN: (VALID_FIELD, *MAPS.values(), *SIGMAS_OF.values()),
        }[what]
        files = {name: checksum(read.path(read.derivatives, name)) for name in names if read.has(name)}
        return key | {"Maps": files}

    def _scan(self, read: MapReader) -> dict[str, Any]:
        """Compare masks, local field and R2' of the pipeline with the truth."""
        truth, brain, valid = self.truth, read.mask(BRAIN), read.mask(VALID_FIELD)
        error = self._field_error(read.made(FIELD), valid)
        name = _LOCAL_SIGMA if read.has(_LOCAL_SIGMA) else _THERMAL_SIGMA
        found: dict[str, Any] = {
            "zones": truth.facts(),
            "covered_percent": {
                "brain mask": _percent(brain, truth.brain),
                "valid-field mask": _percent(valid, truth.brain),
            },
            "outside_percent": rounded(100 * np.count_nonzero(brain & ~truth.brain) / truth.brain.sum()),
            "field_sigma": name,
            "field_ppb": error_over_sigma(error, _PPB * read.made(name), valid, truth),
        }
        if not read.has(_R2PRIME_SIGMA):
            return found
        sigma, rate = read.made(_R2PRIME_SIGMA), read.made(R2PRIME)
        return found | {"r2prime_hz": error_over_sigma(rate - truth.maps[R2PRIME], sigma, sigma > 0, truth)}

    def _field_error(self, field_ppm: MapArray, known: MaskArray) -> MapArray:
        """Error of a local field in ppb, without its constant, which a field does not determine."""
        error: MapArray = _PPB * (field_ppm - self.truth.maps[FIELD])
        inside = known & self.truth.brain
        return error - (error[inside].mean() if inside.any() else 0.0)

    def _backgrounds(self, read: MapReader) -> dict[str, Any]:
        """RMS error in ppb by zone of the local field of each method, and of the pipeline."""
        chosen, valid = read.made(FIELD), read.mask(VALID_FIELD)
        found = {CHOSEN: self._field_rms(chosen, valid)}
        total = torch.from_numpy(read.made(_TOTAL_FIELD))
        mask = torch.from_numpy(valid)  # no rim is left out
        sigma = torch.from_numpy(read.made(_THERMAL_SIGMA))
        for name in _BACKGROUND_METHODS:
            local = remove_background(total, mask, read.grid, BackgroundConfig(method=name), sigma_ppm=sigma)
            found[name] = self._field_rms(local.local_field_ppm.numpy(), local.mask.numpy())
        return {"field_ppb": found}

    def _field_rms(self, field_ppm: MapArray, known: MaskArray) -> dict[str, float | None]:
        return error_by_depth(self._field_error(field_ppm, known), known, self.truth)

    def _chain(self, read: MapReader) -> dict[str, Any]:
        """Compare the maps of the whole chain with the truth."""
        made = {name: read.made(file) for name, file in MAPS.items()}
        sigmas = {name: read.made(file) for name, file in SIGMAS_OF.items() if read.has(file)}
        # Both sources of fluid may be 0, their σ is not.
        with_value = np.logical_or.reduce([values != 0 for values in (*made.values(), *sigmas.values())])
        covered = {"χ maps": _percent(with_value, self.truth.brain)}
        zones = {**self.truth.zones, VALID: read.mask(VALID_FIELD) & self.truth.brain}
        return {"covered_percent": covered, **self._evaluated(made, sigmas, zones)}

    def _on_true_maps(self, method: str) -> dict[str, Any]:
        """Compare a method's maps of a field and R2' that are known in the whole brain with the truth."""
        maps, how, chi = self._true_maps, self._run_config(method), None
        if how.qsm != FROM_SOURCES:
            network = methods.config_for(how.inversion, how.inversion_network)
            chi = methods.invert(maps, how.inversion, network)
            maps = replace(maps, chi_ppm=chi.chi_ppm)
        sources = methods.separate(maps, method, methods.config_for(method, how.network))
        made = {
            "chi_pos": sources.chi_pos_ppm,
            "chi_neg": sources.chi_neg_ppm,
            "chi": sources.chi_ppm,
            "qsm": sources.chi_ppm if chi is None else chi.chi_ppm,
        }
        sigmas = {
            "chi_pos": sources.chi_pos_sigma_ppm,
            "chi_neg": sources.chi_neg_sigma_ppm,
            "qsm": None if chi is None else chi.chi_sigma_ppm,
        }
        return self._evaluated(_arrays(made), _arrays(sigmas), self.truth.zones)

    def _evaluated(
        self, made: Mapping[str, MapArray], sigmas: Mapping[str, MapArray], zones: Mapping[str, MaskArray]
    ) -> dict[str, Any]:
        return {
            "nrmse_percent": errors_of(made, self.truth, zones),
            "interval_coverage_percent": interval_coverage(made, sigmas, self.truth, zones),
        }

    @cached_property
    def _true_maps(self) -> Maps:
        tissue = healthy_tissue(self.scan, 0)
        scan = replace(self.scan, maps_only=True, residual_background_ppb=self.config.residual_background_ppb)
        rng = np.random.default_rng([self.config.seed, round(self.snr), _NOISE_STREAM])
        return maps_in_the_brain(tissue, measured_maps(tissue, scan, rng))


def _arrays(volumes: Mapping[str, Volume | None]) -> dict[str, MapArray]:
    return {name: volume.numpy() for name, volume in volumes.items() if volume is not None}


def _percent(mask: MaskArray, brain: MaskArray) -> float | None:
    return rounded(100 * np.count_nonzero(mask & brain) / np.count_nonzero(brain))
