"""One subject from raw scans to maps and report, stage by stage, each stage resumable.

A stage reads files and writes files; nothing else passes between stages, so a run that was killed and
started again works on the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.errors import ChisepError, ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import make_directory
from chisep.networks import NetworkOptions
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing import background, mask, registration, relaxometry
from chisep.preprocessing import field as field_mapping
from chisep.report.session import SessionImages, panels, region_rows
from chisep.report.subject import SubjectReport, write_report
from chisep.stages import Ledger, Stage
from chisep.types import Convergence, Grid, Maps, Relaxivity

log = logging.getLogger("chisep")

_MISSING_SPIN_ECHO = 0.01

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class RunConfig:
    """Which data, which methods, which assumptions."""

    bids: Positional[Path]
    """BIDS raw dataset with MEGRE and, if there are any, MESE images."""
    out: Positional[Path]
    """Derivatives dataset to write; what is there and still holds is kept."""
    level: Positional[Literal["participant"]] = "participant"
    """Level of analysis."""
    participant_label: tuple[str, ...] = ()
    """Participants, with or without `sub-`; all if left out."""
    method: str = "iterative"
    """Separation method; `chisep methods` lists them."""
    qsm: str = ""
    """Method of the ordinary susceptibility map (QSM); left out: tv, or qsmnet for a network."""
    dr: tuple[float, ...] = ()
    """D_r in 1/s/ppm at the field strength of the scan: one, or two (χ_pos, χ_neg). Default 114·B0/3."""
    phase_sign: Literal[1, -1] = 1
    """1 if phase grows with the field (iron bright in the field map), -1 for the opposite convention."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, …"""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """For methods that are networks."""

    def __post_init__(self) -> None:
        method = methods.find(self.method, "sources")
        object.__setattr__(self, "qsm", self.qsm or ("qsmnet" if method.is_network else "tv"))
        methods.find(self.qsm, "chi")
        methods.config_for(self.method, self.network)
        if len(self.dr) > 2:
            raise InputError(
                "--dr",
                found=f"{len(self.dr)} numbers",
                wanted="one, or two for χ_pos and χ_neg",
                remedy="Give D_r in 1/s/ppm.",
            )
        if self.out.absolute() == self.bids.absolute():
            raise InputError(
                "OUT",
                found="the raw dataset itself",
                wanted="another folder",
                remedy="Choose e.g. BIDS/derivatives/chisep.",
            )

    @property
    def qsm_network(self) -> NetworkOptions:
        """Options of the network that makes the QSM, should that be one."""
        if not methods.METHODS[self.qsm].is_network:
            return NetworkOptions()
        return replace(self.network, weights=self.network.chi_weights)

    def weights(self) -> dict[str, list[dict[str, str]]]:
        """Say which weights the stages `qsm` and `separation` compute with.

        Raises
        ------
        InputError
            If weights cannot be found or read.
        """
        return {
            "qsm": methods.weights_used(self.qsm, self.qsm_network, chi_given=False),
            "separation": methods.weights_used(self.method, self.network, chi_given=True),
        }


def relaxivity(dr: Sequence[float], b0_t: float) -> Relaxivity:
    """D_r from what the user said: nothing (the default of the field strength), one number, or two."""
    if not dr:
        return default_relaxivity(b0_t)
    return Relaxivity(dr[0], dr[-1])


@dataclass(frozen=True)
class SessionResult:
    """How one session ended.

    Parameters
    ----------
    name
        Of the session.
    report
        Its page; None if it failed.
    error
        What stopped it.
    warnings
        What the user should know, each with its stage.
    skipped
        Stages whose results still held.
    """

    name: str
    report: Path | None = None
    error: ChisepError | None = None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def run(config: RunConfig, progress: Progress | None = None) -> list[SessionResult]:
    """Process every session of the participants asked for.

    Parameters
    ----------
    config
        What to do.
    progress
        Told about every stage.

    Returns
    -------
    list of SessionResult
        One a session; a session that fails does not stop the others.

    Raises
    ------
    InputError
        If the dataset as a whole or the weights of a network cannot be used, or OUT not be written.
    """
    sessions = bids.find_sessions(config.bids, config.participant_label)
    methods.check_device(config.device)
    config.weights()
    make_directory(config.out)
    if not (config.out / "dataset_description.json").exists():
        bids.write_dataset_description(config.out, "chisep derivatives", derivative=True)
    results = []
    for session in sessions:
        try:
            results.append(SessionRun(config, session).process(progress))
        except ChisepError as error:
            log.error("%s: %s", session.name, error)
            results.append(SessionResult(session.name, error=error))
    return results


class SessionRun:
    """The stages of one session.

    Parameters
    ----------
    config
        What to do.
    session
        Raw series to work on.
    """

    def __init__(self, config: RunConfig, session: bids.Session) -> None:
        if session.megre.b0_t is None:
            raise ValueError("a gradient-echo series without field strength")
        self.config, self.session, self.b0_t = config, session, session.megre.b0_t
        self.relaxivity = relaxivity(config.dr, self.b0_t)
        self.weights = config.weights()
        self.reads_r2prime = "r2prime" in methods.METHODS[config.method].needs
        self.report = config.out / f"{session.name}.html"
        self.mask = self._path("mask", desc="brain")
        self.unwrapped = self._path("MEGRE", part="phase", desc="unwrapped")
        self.total_field = self._path("fieldmap", desc="total")
        self.reliable_mask = self._path("mask", desc="reliable")
        self.local_field = self._path("fieldmap", desc="local")
        self.eroded_mask = self._path("mask", desc="eroded")
        self.r2star, self.r2, self.r2prime = (self._path(s) for s in ("R2starmap", "R2map", "R2primemap"))
        self.qsm = self._path("Chimap", desc="qsm")
        self.chi_pos, self.chi_neg, self.chi = (
            self._path("Chimap", desc=desc) for desc in ("paramagnetic", "diamagnetic", "total")
        )

    def _path(self, suffix: str, **entities: str) -> Path:
        return self.session.output(self.config.out, suffix, **entities)

    def process(self, progress: Progress | None = None) -> SessionResult:
        """Run what is missing or stale, the report last.

        Raises
        ------
        ChisepError
            If an input cannot be used or an output not be written; finished stages stay.
        """
        ledger = Ledger(self.config.bids, self.config.out, self.session.name)
        stages = self._map_stages()
        for done, stage in enumerate(stages):
            if progress:
                progress(f"{self.session.name}: {stage.name}", done, len(stages) + 1)
            ledger.do(stage)
        if progress:
            progress(f"{self.session.name}: report", len(stages), len(stages) + 1)
        ledger.do(self._report_stage(stages, ledger))
        said = tuple(f"{name}: {text}" for name, record in ledger.records.items() for text in record.warnings)
        return SessionResult(self.session.name, self.report, warnings=said, skipped=tuple(ledger.skipped))

    def _map_stages(self) -> list[Stage]:
        config, megre, mese = self.config, self.session.megre, self.session.mese
        echoes = {"EchoTime": list(megre.te_s), "MagneticFieldStrength": self.b0_t}
        b0 = {"B0Direction": list(self._grid.b0_direction)}
        if mese is None:
            r2: Mapping[str, Any] = {"PseudoR2": relaxometry.pseudo_r2_hz(self.b0_t)}
        else:
            r2 = {"SpinEchoTime": list(mese.te_s)}
        return [
            Stage(
                "mask",
                "brain mask from the gradient-echo magnitude",
                megre.magnitude,
                [self.mask],
                asdict(mask.MaskConfig()),
                self._make_mask,
            ),
            Stage(
                "field",
                "unwrapped phase without receiver offset, the total field, and the mask where it is reliable",
                [*megre.files, self.mask],
                [self.unwrapped, self.total_field, self.reliable_mask],
                echoes | asdict(self._field_config) | {"PhaseUnits": megre.phase_units},
                self._make_field,
            ),
            Stage(
                "background",
                "local field after background removal, and the mask in which it is known",
                [self.total_field, self.reliable_mask],
                [self.local_field, self.eroded_mask],
                asdict(background.VsharpConfig()) | b0,
                self._make_local_field,
            ),
            Stage(
                "relaxometry",
                "relaxation rate",
                [*megre.magnitude, *(mese.magnitude if mese else ()), self.mask],
                [self.r2star, self.r2prime, *([self.r2] if mese else [])],
                {**echoes, **r2},
                self._make_rates,
            ),
            Stage(
                "qsm",
                "magnetic susceptibility from dipole inversion of the local field",
                [self.local_field, self.eroded_mask, self.mask, *megre.magnitude],
                [self.qsm],
                {"Method": config.qsm, **self._with_weights("qsm"), **b0},
                self._make_qsm,
            ),
            Stage(
                "separation",
                "separated susceptibility: paramagnetic, diamagnetic (as a positive magnitude), total",
                [
                    *(self.local_field, self.qsm, self.eroded_mask, self.mask, *megre.magnitude),
                    *self._rates_to_separate_by,
                ],
                [self.chi_pos, self.chi_neg, self.chi],
                {
                    "Method": config.method,
                    **self._with_weights("separation"),
                    "D_r_pos": self.relaxivity.pos_hz_per_ppm,
                    "D_r_neg": self.relaxivity.neg_hz_per_ppm,
                    **b0,
                },
                self._make_sources,
            ),
        ]

    @property
    def _rates_to_separate_by(self) -> list[Path]:
        if not self.reads_r2prime:
            return [self.r2star]
        return [self.r2prime, *([self.r2] if self.session.mese else [])]

    def _with_weights(self, stage: str) -> dict[str, Any]:
        if not self.weights[stage]:
            return {}
        return {"Weights": self.weights[stage], "Precision": self.config.network.precision}

    # Reading and writing -----------------------------------------------------------------------------

    @cached_property
    def _first(self) -> nifti.Image:
        """First gradient echo: its grid is that of every output."""
        return nifti.load(self.session.megre.magnitude[0])

    @cached_property
    def _grid(self) -> Grid:
        return nifti.grid_of(self._first, self.session.megre.b0_direction)

    def _array(self, path: Path) -> NDArray[np.float32]:
        image = nifti.load(path)
        nifti.require_same_grid(self._first, image)
        return image.data

    def _load(self, path: Path) -> Tensor:
        return torch.from_numpy(self._array(path)).to(self.config.device)

    def _load_mask(self, path: Path) -> Tensor:
        return self._load(path) > 0

    def _echoes(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self._load(path) for path in paths])

    def _save(self, path: Path, volume: Tensor) -> None:
        dtype = np.uint8 if volume.dtype == torch.bool else np.float32
        nifti.save(path, volume.cpu().numpy(), self._first.affine, dtype=dtype)

    # What the stages do ------------------------------------------------------------------------------

    def _make_mask(self) -> dict[str, Any]:
        magnitude = self._echoes(self.session.megre.magnitude)
        self._save(self.mask, mask.brain_mask(magnitude, self._grid, mask.MaskConfig()))
        return {}

    @property
    def _field_config(self) -> field_mapping.FieldConfig:
        return field_mapping.FieldConfig(phase_sign=self.config.phase_sign)

    def _make_field(self) -> dict[str, Any]:
        megre = self.session.megre
        stored = self._echoes(megre.phase)
        phase, note = field_mapping.phase_in_radians(stored, str(megre.phase[0]), megre.phase_units)
        if note:
            warnings.warn(note, ChisepWarning, stacklevel=1)
        result = field_mapping.total_field(
            self._echoes(megre.magnitude),
            phase,
            megre.te_s,
            self.b0_t,
            self._load_mask(self.mask),
            self._grid,
            self._field_config,
        )
        self._save(self.unwrapped, result.unwrapped_rad.movedim(0, -1))
        self._save(self.total_field, result.total_field_ppm)
        self._save(self.reliable_mask, result.reliable)
        return {}

    def _make_local_field(self) -> dict[str, Any]:
        total, known = self._load(self.total_field), self._load_mask(self.reliable_mask)
        local = background.vsharp(total, known, self._grid, background.VsharpConfig())
        self._save(self.local_field, local.local_field_ppm)
        self._save(self.eroded_mask, local.mask)
        return {}

    def _make_rates(self) -> dict[str, Any]:
        megre, mese = self.session.megre, self.session.mese
        brain = self._load_mask(self.mask)
        r2star = relaxometry.r2star(self._echoes(megre.magnitude), megre.te_s, brain)
        if mese is None:
            pseudo = relaxometry.pseudo_r2_hz(self.b0_t)
            warnings.warn(
                f"no spin-echo (MESE) images: R2' is R2* minus a pseudo-R2 of {pseudo:.1f} 1/s everywhere, "
                "an assumption",
                ChisepWarning,
                stacklevel=1,
            )
            r2prime = relaxometry.r2prime(r2star, torch.where(brain, pseudo, 0.0))
        else:
            spin_echoes = self._spin_echoes(mese)
            covered = spin_echoes[0] > 0
            missing = float((brain & ~covered).sum() / brain.sum())
            if missing > _MISSING_SPIN_ECHO:
                warnings.warn(
                    f"the spin echo has no signal in {100 * missing:.0f} % of the brain; sources are not "
                    "separated there",
                    ChisepWarning,
                    stacklevel=1,
                )
            r2 = relaxometry.r2(spin_echoes, mese.te_s, brain & covered)
            self._save(self.r2, r2)
            r2prime = torch.where(covered, relaxometry.r2prime(r2star, r2), 0.0)
        self._save(self.r2star, r2star)
        self._save(self.r2prime, r2prime)
        return {}

    def _spin_echoes(self, mese: bids.Series) -> Tensor:
        """Spin echoes on the grid of the gradient echo."""
        images = [nifti.load(path) for path in mese.magnitude]
        for image in images[1:]:
            nifti.require_same_grid(images[0], image)
        data = torch.from_numpy(np.stack([image.data for image in images])).to(self.config.device)
        if nifti.is_same_grid(self._first, images[0]):
            return data
        warnings.warn(
            "spin echo and gradient echo have different grids: the spin echo was resampled through the "
            "scanner coordinates of the headers; motion between the scans is not corrected",
            ChisepWarning,
            stacklevel=1,
        )
        return registration.resample_to(data, images[0].affine, self._grid, source=images[0].source)

    def _maps(self) -> Maps:
        return Maps(
            field_ppm=self._load(self.local_field),
            mask=self._load_mask(self.eroded_mask),
            support=self._load_mask(self.mask),
            grid=self._grid,
            magnitude=self._echoes(self.session.megre.magnitude).square().sum(0).sqrt(),
        )

    def _make_qsm(self) -> dict[str, Any]:
        config = self.config
        options = methods.config_for(config.qsm, config.qsm_network)
        result = methods.invert(self._maps(), config.qsm, options, device=config.device)
        self._save(self.qsm, result.chi_ppm)
        return _convergence_facts(result.convergence)

    def _make_sources(self) -> dict[str, Any]:
        config = self.config
        maps = replace(self._maps(), relaxivity=self.relaxivity, chi_ppm=self._load(self.qsm))
        if not self.reads_r2prime:
            maps = replace(maps, r2star_hz=self._load(self.r2star))
        else:
            maps = replace(maps, r2prime_hz=self._load(self.r2prime))
            if self.session.mese:  # without R2 there is nothing to separate by
                covered = self._load(self.r2) + self._load(self.r2prime) > 0
                maps = replace(maps, mask=maps.mask & covered, support=maps.sources_mask & covered)
            else:
                warnings.warn(
                    f"χ_pos and χ_neg depend on the pseudo-R2: {config.method} reads R2', and there are no "
                    "spin-echo (MESE) images; methods that take R2* do not need it",
                    ChisepWarning,
                    stacklevel=1,
                )
        options = methods.config_for(config.method, config.network)
        result = methods.separate(maps, config.method, options, device=config.device)
        self._save(self.chi_pos, result.chi_pos_ppm)
        self._save(self.chi_neg, result.chi_neg_ppm)
        self._save(self.chi, result.chi_ppm)
        return _convergence_facts(result.convergence)

    # Report ------------------------------------------------------------------------------------------

    def _report_stage(self, stages: Sequence[Stage], ledger: Ledger) -> Stage:
        """Stage of the report; made when all others are done, since it shows what they noted."""
        labels = self._label_map()
        records = ledger.records
        convergence = {
            name: record.facts["Convergence"]
            for name, record in records.items()
            if "Convergence" in record.facts
        }
        said = [f"{name}: {text}" for name, record in records.items() for text in record.warnings]
        parameters = {stage.name: dict(stage.parameters) for stage in stages}

        def work() -> dict[str, Any]:
            images = self._images()
            report = SubjectReport(
                title=f"chisep: {self.session.name}",
                subject=self.session.subject,
                session=self.session.entities.get("ses"),
                summary=self._summary(images),
                warnings=said,
                panels=panels(images, convergence),
                regions=region_rows(images, *self._regions(labels)) if labels else [],
                parameters=parameters,
                versions={"chisep": chisep.__version__},
            )
            write_report(self.report, report)
            return {}

        return Stage(
            "report",
            "report",
            [*(path for stage in stages for path in stage.outputs), *([labels] if labels else [])],
            [self.report],
            {"Warnings": said, "Convergence": convergence, "Parameters": parameters},
            work,
        )

    def _images(self) -> SessionImages:
        megre = self.session.megre
        return SessionImages(
            affine=self._first.affine,
            te_s=megre.te_s,
            magnitude=np.stack([self._array(path) for path in megre.magnitude]),
            unwrapped_rad=np.moveaxis(nifti.load(self.unwrapped, ndim=4).data, -1, 0),
            mask=self._array(self.mask) > 0,
            eroded_mask=self._array(self.eroded_mask) > 0,
            total_field_ppm=self._array(self.total_field),
            local_field_ppm=self._array(self.local_field),
            r2star_hz=self._array(self.r2star),
            r2_hz=self._array(self.r2) if self.session.mese else None,
            r2prime_hz=self._array(self.r2prime),
            qsm_ppm=self._array(self.qsm),
            chi_pos_ppm=self._array(self.chi_pos),
            chi_neg_ppm=self._array(self.chi_neg),
            chi_ppm=self._array(self.chi),
        )

    def _summary(self, images: SessionImages) -> list[tuple[str, str]]:
        inside = images.eroded_mask
        millilitre = inside.sum() * np.prod(self._grid.voxel_mm) / 1000
        d_r = self.relaxivity
        rate = "R2′" if self.reads_r2prime else "R2*"
        return [
            ("Field strength", f"{self.b0_t:g} T"),
            ("Voxel", " × ".join(f"{edge:.3g}" for edge in self._grid.voxel_mm) + " mm"),
            ("B0 direction (voxel axes)", ", ".join(f"{b:.3f}" for b in self._grid.b0_direction)),
            ("Gradient echoes", ", ".join(f"{1000 * t:.3g}" for t in self.session.megre.te_s) + " ms"),
            ("R2", "from spin echo" if self.session.mese else "none measured: pseudo-R2 in R2'"),
            ("Method", f"{self.config.method} from {rate}, QSM by {self.config.qsm}"),
            *(
                ("Weights", f"{used['Name']}, trained on: {used['TrainingData']}")
                for stage in self.weights.values()
                for used in stage
            ),
            ("D_r", f"{d_r.pos_hz_per_ppm:.4g} (χ_pos), {d_r.neg_hz_per_ppm:.4g} (χ_neg) 1/s/ppm"),
            ("Brain within the eroded mask", f"{millilitre:.0f} ml"),
            ("Mean χ_pos", f"{1000 * images.chi_pos_ppm[inside].mean():.1f} ppb"),
            ("Mean χ_neg", f"{1000 * images.chi_neg_ppm[inside].mean():.1f} ppb"),
        ]

    def _label_map(self) -> Path | None:
        """First segmentation of the session in a derivatives dataset, if there is one on this grid."""
        root = self.config.bids / "derivatives"
        for path in sorted(root.glob(f"*/{self.session.folder}/sub-{self.session.subject}*_dseg.nii.gz")):
            if nifti.is_same_grid(self._first, nifti.load(path)):
                return path
        return None

    def _regions(self, path: Path) -> tuple[NDArray[np.int32], dict[int, str]]:
        """Labels of a segmentation, and their names where a look-up table lies beside it or above."""
        labels = np.rint(self._array(path)).astype(np.int32)
        for folder in path.relative_to(self.config.bids / "derivatives").parents:
            for table in sorted((self.config.bids / "derivatives" / folder).glob("*dseg.tsv")):
                with table.open(encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file, delimiter="\t"))
                return labels, {int(row["index"]): row["name"] for row in rows}
        return labels, {}


def _convergence_facts(convergence: Convergence) -> dict[str, Any]:
    """Say how an iteration ended, for the sidecar; nothing for a closed form."""
    if not convergence.iterations:
        return {}
    return {
        "Convergence": {
            "Iterations": convergence.iterations,
            "Converged": convergence.converged,
            "Change": list(convergence.change),
        }
    }
