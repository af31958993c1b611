"""One subject from raw scans to maps and report, stage by stage, each stage resumable.

A stage reads files and writes files; nothing else passes between stages, so a run that was killed and
started again works on the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d
from tyro.conf import OmitArgPrefixes, Positional

import chisep
from chisep import methods
from chisep.errors import ChisepError, ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import Lock, locked, write_json
from chisep.io.paths import require_inside
from chisep.networks.inference import NetworkOptions
from chisep.physics.signal import default_relaxivity
from chisep.pipeline.engine import Stage, StageCache
from chisep.pipeline.files import Segmentation, SessionFiles
from chisep.preprocessing.background import BackgroundConfig, remove_background
from chisep.preprocessing.field import FieldConfig, phase_in_radians, total_field
from chisep.preprocessing.mask import MaskConfig, QualityConfig, brain_mask, checked_mask, quality_mask
from chisep.preprocessing.registration import RegistrationConfig, coverage, register, resample_to
from chisep.preprocessing.relaxivity import calibrate_relaxivity
from chisep.preprocessing.relaxometry import R2Config, R2starConfig, Rate, pseudo_r2_hz, r2, r2prime, r2star
from chisep.progress import Progress
from chisep.regions import atlas as regions
from chisep.report.session import SessionImages, panels, region_rows
from chisep.report.subject import SubjectReport, write_report
from chisep.types import Convergence, Maps, Relaxivity

log = logging.getLogger("chisep")

_MISSING_SPIN_ECHO = 0.01
_CALIBRATION_SEED = 0
_POOR_OVERLAP = 0.5
_POOR_ATLAS, _LEAST_ATLAS = 0.85, 0.6
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
"""Errors of file systems on a network that another attempt may not meet."""


@dataclass(frozen=True)
class RunConfig:
    """Which data, which methods, which assumptions."""

    bids: Positional[Path]
    """BIDS raw dataset with MEGRE and, if there are any, MESE images."""
    out: Positional[Path]
    """Derivatives dataset to write; what is there and still holds is kept."""
    level: Positional[Literal["participant", "group"]] = "participant"
    """Level of analysis: `participant` makes maps and a report of every session, `group` tables and a page of
    all sessions that were made."""
    participant_label: tuple[str, ...] = ()
    """Participants, with or without `sub-`; all if left out."""
    method: str = methods.DEFAULTS["sources"]
    """Separation method; `chisep methods` lists them."""
    qsm: str = ""
    """Method of the ordinary susceptibility map (QSM); left out: unrolled-qsm, or qsmnet for a network that
    takes χ in."""
    dr: tuple[float, ...] = ()
    """D_r in 1/s/ppm at the field strength of the scan: one, or two (χ_pos, χ_neg). Default 114·B0/3."""
    calibrate_dr: bool = False
    """Take D_r from each person's own deep grey matter; needs a segmentation with FreeSurfer's numbers in a
    derivatives dataset."""
    masks: Path | None = None
    """Derivatives dataset with brain masks of your own (…_desc-brain_mask.nii.gz) on the grid of the gradient
    echo; the brain is extracted if left out."""
    regions: Path | None = None
    """Where regions come from: a derivatives dataset with segmentations (…_dseg.nii.gz, any grid), a
    FreeSurfer subjects directory, or an atlas in MNI152 space (NIfTI, its table index/name beside it as
    .tsv). Left out: a segmentation in BIDS/derivatives, else the packaged atlas."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """How the brain is extracted."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Where phase is too poor for background removal."""
    field_map: FieldConfig = field(default_factory=FieldConfig)
    """How phase becomes a field."""
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    """How the field of sources outside the brain is removed."""
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    """How motion between gradient echo and spin echo is estimated."""
    r2star: R2starConfig = field(default_factory=R2starConfig)
    """How R2* is fitted."""
    r2: R2Config = field(default_factory=R2Config)
    """How R2 is fitted."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, …"""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    """For methods that are networks."""

    def __post_init__(self) -> None:
        method = methods.find(self.method, "sources")
        object.__setattr__(self, "qsm", self.qsm or _default_qsm(method))
        methods.find(self.qsm, "chi")
        methods.config_for(self.method, self.network)
        if self.dr and self.calibrate_dr:
            raise InputError(
                "--calibrate-dr",
                found="--dr as well",
                expected="one of them",
                fix="Leave --dr out to have D_r measured.",
            )
        if len(self.dr) > 2:
            raise InputError(
                "--dr",
                found=f"{len(self.dr)} numbers",
                expected="one, or two for χ_pos and χ_neg",
                fix="Give D_r in 1/s/ppm.",
            )
        if self.regions is not None and not self.regions.exists():
            raise InputError(
                self.regions,
                found="no such file or folder",
                expected="segmentations or an atlas, as --regions says",
                fix="Check the path.",
            )
        if self.out.absolute() == self.bids.absolute():
            raise InputError(
                "OUT",
                found="the raw dataset itself",
                expected="another folder",
                fix="Choose e.g. BIDS/derivatives/chisep.",
            )

    @property
    def qsm_network(self) -> NetworkOptions:
        """Options of the network that makes the QSM, should that be one."""
        if not methods.METHODS[self.qsm].is_network:
            return NetworkOptions()
        chosen = self.network.chi_weights
        return replace(self.network, weights="" if chosen == NetworkOptions().chi_weights else chosen)

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


def _default_qsm(method: methods.Method) -> str:
    """Networks that take a χ map get the one that they were trained on; elsewhere it is only looked at."""
    return "qsmnet" if method.is_network and not method.has_field_term else methods.DEFAULTS["chi"]


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
    may_pass
        Whether what stopped it may pass by itself, as trouble of a network's file system does.
    """

    name: str
    report: Path | None = None
    error: ChisepError | None = None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    may_pass: bool = False


def discover(config: RunConfig) -> list[bids.DiscoveredSession]:
    """Find the sessions to process and check what they share, before anything is written.

    Raises
    ------
    InputError
        If the dataset as a whole, the device or the weights of a network cannot be used.
    """
    found = bids.discover(config.bids, config.participant_label)
    methods.check_device(config.device)
    config.weights()
    return found


@contextlib.contextmanager
def opened(config: RunConfig) -> Iterator[Lock]:
    """Make OUT a derivatives dataset that no other run writes to meanwhile.

    Raises
    ------
    InputError
        If another run writes to it, or its description is no JSON object.
    OutputError
        If it cannot be written.
    """
    with locked(config.out) as lock:
        if (config.out / bids.DESCRIPTION).exists():
            bids.renew_link(config.out, config.bids)
        else:
            bids.write_dataset_description(config.out, "chisep derivatives", derivative=True, raw=config.bids)
        yield lock


def run(config: RunConfig, progress: Progress | None = None) -> list[SessionResult]:
    """Process every session of the participants asked for, one after the other in this process.

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
        If the dataset as a whole or the weights of a network cannot be used, or another run is at work.
    OutputError
        If OUT cannot be written.
    """
    found = discover(config)
    with opened(config) as lock:
        return [run_session(config, one, lock, progress) for one in found]


def run_session(
    config: RunConfig, one: bids.DiscoveredSession, lock: Lock, progress: Progress | None = None
) -> SessionResult:
    """Process one session; what stops it is part of the result, so that it does not stop the others.

    Parameters
    ----------
    config
        What to do.
    one
        The session, or why it cannot be used.
    lock
        On OUT; checked before every stage.
    progress
        Told about every stage.
    """

    def step(what: str, done: int, total: int) -> None:
        lock.check()
        if progress:
            progress(what, done, total)

    try:
        if one.session is None:
            raise one.error or ValueError("neither a session nor an error")
        result = SessionRun(config, one.session).process(step)
    except Exception as error:
        trouble = trouble_of(one.name, error)
        log.error("%s: %s", one.name, trouble, exc_info=isinstance(trouble, _UnexpectedError))
        cause = error if isinstance(error, OSError) else error.__cause__
        may_pass = isinstance(cause, OSError) and cause.errno in _PASSING
        result = SessionResult(one.name, error=trouble, may_pass=may_pass)
    note_ending(config.out, result, lock)
    return result


def note_ending(out: Path, result: SessionResult, lock: Lock) -> None:
    """Leave beside a session's records what stopped it, for the group level; remove it where nothing did."""
    with contextlib.suppress(ChisepError, OSError):  # a full disk is told by the result already
        path = require_inside(out, out / ".chisep" / result.name / "error.json")
        lock.check()
        if result.error is not None:
            write_json(path, {"Error": str(result.error)})
        else:
            path.unlink(missing_ok=True)


class _UnexpectedError(InputError):
    """A fault of chisep."""


def trouble_of(name: str, error: Exception) -> ChisepError:
    """Say what stopped a session in terms of a user."""
    if isinstance(error, ChisepError):
        return error
    if isinstance(error, OSError):
        return InputError(
            error.filename or name,
            found=f"a file or folder that could not be read or written ({error.strerror or error})",
            expected="data that stay in reach while they are worked on",
            fix="Check the disk or the network; the same command goes on from there.",
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return InputError(
            name,
            found="too little memory",
            expected="about 4 GB for a session at 1 mm, more for finer voxels",
            fix="Process fewer sessions at a time (--workers), or take a machine with more memory.",
        )
    return _UnexpectedError(
        name,
        found=f"{type(error).__name__}: {error}",
        expected="no such error, whatever the data",
        fix="This is a fault of chisep: please report it with the log.",
    )


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
        self.weights = config.weights()
        self.reads_r2prime = "r2prime" in methods.METHODS[config.method].needs
        self.has_field_term = methods.METHODS[config.method].has_field_term
        self.uses_noise_maps = methods.METHODS[config.method].uses_noise_maps
        self.files = SessionFiles(session, config.bids, config.out, config.device)
        given = config.regions
        self.atlas = given if given is not None and given.is_file() else None
        self.segmentation = None if self.atlas else self.files.segmentation(given)

    @property
    def _has_b1(self) -> bool:
        """Whether the transmit field is fitted with R2."""
        return self.session.mese is not None and self.config.r2.method == "epg"

    @property
    def relaxivity(self) -> Relaxivity:
        """D_r as given, or as calibrated by the stage of that name."""
        if not self.config.calibrate_dr:
            return relaxivity(self.config.dr, self.b0_t)
        found = json.loads(self.files.calibration.read_text(encoding="utf-8"))["hz_per_ppm"]
        return Relaxivity(found, found)

    def process(self, progress: Progress | None = None, cache: StageCache | None = None) -> SessionResult:
        """Run what is missing or stale, the report last.

        Parameters
        ----------
        progress
            Told about every stage.
        cache
            Another that is to do the stages, such as a forecast.

        Raises
        ------
        ChisepError
            If an input cannot be used or an output not be written; finished stages stay.
        """
        cache = cache or StageCache(self.config.bids, self.config.out, self.session.name)
        stages = self._map_stages()
        for done, stage in enumerate(stages):
            if progress:
                progress(f"{self.session.name}: {stage.name}", done, len(stages) + 1)
            cache.do(stage)
        if progress:
            progress(f"{self.session.name}: report", len(stages), len(stages) + 1)
        cache.do(self._report_stage(stages, cache))
        said = tuple(f"{name}: {text}" for name, record in cache.records.items() for text in record.warnings)
        return SessionResult(
            self.session.name, self.files.report, warnings=said, skipped=tuple(cache.skipped)
        )

    def _map_stages(self) -> list[Stage]:
        config, megre, mese = self.config, self.session.megre, self.session.mese
        echoes = {"EchoTime": list(megre.te_s), "MagneticFieldStrength": self.b0_t}
        b0 = {"B0Direction": list(self.files.grid.b0_direction)}
        spin_echoes = mese.magnitude if mese else ()
        if mese is None:
            r2_parameters: Mapping[str, Any] = {"PseudoR2": pseudo_r2_hz(self.b0_t)}
        else:
            r2_parameters = {"SpinEchoTime": list(mese.te_s), "R2": asdict(config.r2)}
        stages = [
            self._mask_stage(),
            Stage(
                "field",
                "unwrapped phase without receiver offset, the total field with its noise, and how far the "
                "phase is to be trusted",
                [*megre.files, self.files.mask],
                [
                    *(self.files.unwrapped, self.files.residual, self.files.quality),
                    *(self.files.total_field, self.files.field_sigma, self.files.reliable_mask),
                ],
                echoes
                | asdict(config.field_map)
                | {"PhaseUnits": megre.phase_units, "Quality": asdict(config.quality)},
                self._make_field,
            ),
            Stage(
                "background",
                "local field after background removal, and the mask in which it is known",
                [self.files.total_field, self.files.field_sigma, self.files.reliable_mask],
                [self.files.local_field, self.files.eroded_mask],
                {"Method": config.background.method}
                | asdict(getattr(config.background, config.background.method))
                | b0,
                self._make_local_field,
            ),
        ]
        if mese is not None:
            stages.append(
                Stage(
                    "registration",
                    "where the head lay in the spin echo, and the spin echo brought to the gradient echo",
                    [*mese.magnitude, *megre.magnitude, self.files.mask],
                    [self.files.transform, self.files.spin_echo],
                    asdict(config.registration),
                    self._make_transform,
                )
            )
        rates = [self.files.r2star, self.files.r2star_sigma, self.files.r2prime, self.files.r2prime_sigma]
        if mese is not None:
            rates += [
                self.files.r2,
                self.files.r2_sigma,
                *([self.files.b1] if config.r2.method == "epg" else []),
            ]
        stages += [
            Stage(
                "relaxometry",
                "relaxation rate, or its standard deviation",
                [
                    *(*megre.magnitude, *spin_echoes, self.files.mask, self.files.total_field),
                    *([self.files.transform] if mese else []),
                ],
                rates,
                {**echoes, "R2star": asdict(config.r2star), **r2_parameters},
                self._make_rates,
            ),
            Stage(
                "qsm",
                "magnetic susceptibility from dipole inversion of the local field",
                [
                    self.files.local_field,
                    self.files.field_sigma,
                    self.files.eroded_mask,
                    self.files.mask,
                    *megre.magnitude,
                ],
                [self.files.qsm, *([self.files.qsm_sigma] if self._qsm_tells_sigma else [])],
                {"Method": config.qsm, **methods.settings(config.qsm), **self._with_weights("qsm"), **b0},
                self._make_qsm,
            ),
        ]
        stages.append(self._labels_stage())
        if config.calibrate_dr:
            stages.append(
                Stage(
                    "calibration",
                    "D_r from deep grey matter",
                    [self.files.r2prime, self.files.qsm, self.files.eroded_mask, self._required_labels()],
                    [self.files.calibration],
                    {},
                    self._make_calibration,
                )
            )
            d_r: Mapping[str, Any] = {"D_r": "calibrated"}
        else:
            known = self.relaxivity
            d_r = {"D_r_pos": known.pos_hz_per_ppm, "D_r_neg": known.neg_hz_per_ppm}
        stages.append(
            Stage(
                "separation",
                "separated susceptibility: paramagnetic, diamagnetic (as a positive magnitude), total",
                [
                    *(
                        self.files.local_field,
                        self.files.field_sigma,
                        *(() if self.has_field_term else (self.files.qsm,)),
                        self.files.eroded_mask,
                        self.files.mask,
                    ),
                    *(*megre.magnitude, *self._rates_to_separate_by),
                    *([self.files.calibration] if config.calibrate_dr else []),
                ],
                [self.files.chi_pos, self.files.chi_neg, self.files.chi, *self._source_sigmas],
                {
                    "Method": config.method,
                    **methods.settings(config.method),
                    **self._with_weights("separation"),
                    **d_r,
                    **b0,
                },
                self._make_sources,
            )
        )
        stages.append(self._regions_stage(stages))
        return stages

    def _mask_stage(self) -> Stage:
        if self.config.masks is None:
            return Stage(
                "mask",
                "brain mask from the gradient-echo magnitude",
                self.session.megre.magnitude,
                [self.files.mask],
                asdict(self.config.mask),
                self._make_mask,
            )
        given = self.session.output(self.config.masks, "mask", desc="brain")
        if not given.is_file():
            raise InputError(
                given,
                found="no such file",
                expected="a brain mask of this session, as --masks says",
                fix="Add it, or leave --masks out to have the brain extracted.",
            )
        return Stage(
            "mask",
            "brain mask that was given",
            [given],
            [self.files.mask],
            {},
            lambda: self._copy_mask(given),
        )

    def _labels_stage(self) -> Stage:
        """Stage of the label map: a segmentation that is resampled, or an atlas that is registered."""
        outputs = [self.files.labels, self.files.label_names]
        found = self.segmentation
        if found is not None:
            return Stage(
                "labels",
                "regions, from a segmentation",
                [*found.files, self.files.mask, *(self.session.megre.magnitude if found.anatomy else ())],
                outputs,
                {"Registration": asdict(self.config.registration)} if found.anatomy else {},
                lambda: self._resample_labels(found),
            )
        atlas = () if self.atlas is None else (self.atlas, *self._atlas_table)
        return Stage(
            "labels",
            "regions, from an atlas registered to R2* and susceptibility",
            [*atlas, self.files.r2star, self.files.qsm, self.files.mask, self.files.eroded_mask],
            outputs,
            {"Atlas": self.atlas.name if self.atlas else regions.packaged_atlas_facts()},
            self._register_atlas,
        )

    @property
    def _atlas_table(self) -> list[Path]:
        """Label table beside the atlas that was given, if there is one."""
        if self.atlas is None:
            return []
        table = bids.sidecar_of(self.atlas).with_suffix(".tsv")
        return [table] if table.is_file() else []

    def _required_labels(self) -> Path:
        if self.segmentation is None:
            raise InputError(
                self.config.bids / "derivatives",
                found=f"no segmentation of {self.session.name}",
                expected="…_dseg.nii.gz or aseg.mgz with FreeSurfer's numbers, for --calibrate-dr",
                fix="Add one, or give D_r by --dr.",
            )
        return self.files.labels

    @property
    def _maps_read(self) -> dict[str, tuple[Path, str]]:
        """Maps whose values are read in regions: name with unit → file, what it is."""
        files, mese = self.files, self.session.mese
        return {
            "chi_pos_ppb": (files.chi_pos, "Paramagnetic susceptibility"),
            "chi_neg_ppb": (files.chi_neg, "Diamagnetic susceptibility, as a positive magnitude"),
            "chi_total_ppb": (files.chi, "Total susceptibility of the separation"),
            "qsm_ppb": (files.qsm, "Susceptibility from dipole inversion of the local field"),
            "r2star_hz": (files.r2star, "R2*, 1/s"),
            **({"r2_hz": (files.r2, "R2, 1/s")} if mese else {}),
            "r2prime_hz": (files.r2prime, "R2', 1/s" + ("" if mese else "; its R2 is an assumption")),
        }

    def _regions_stage(self, stages: Sequence[Stage]) -> Stage:
        """Stage of the table of region values; noise maps are those that the stages before it make."""
        made = [path for stage in stages for path in stage.outputs]
        sigmas = {name: _sigma_of(path, made) for name, (path, _) in self._maps_read.items()}
        read = [path for path, _ in self._maps_read.values()]
        noise = [path for path in sigmas.values() if path is not None]
        covered = [self.files.r2prime_sigma]
        return Stage(
            "regions",
            "values of maps in regions",
            [
                *dict.fromkeys(
                    (
                        *(self.files.labels, self.files.label_names, self.files.mask, self.files.eroded_mask),
                        *(*read, *noise, *covered),
                    )
                )
            ],
            [self.files.region_values, self.files.region_columns],
            {},
            lambda: self._make_region_values(sigmas),
        )

    @property
    def _rates_to_separate_by(self) -> list[Path]:
        if not self.reads_r2prime:
            return [self.files.r2star]
        if self.session.mese:
            return [self.files.r2prime, self.files.r2, self.files.r2prime_sigma]
        return [self.files.r2prime, *([self.files.r2prime_sigma] if self.uses_noise_maps else [])]

    @property
    def _source_sigmas(self) -> list[Path]:
        """Maps of the noise of χ_pos and χ_neg, if the method makes them."""
        tells = methods.tells_sigma(self.config.method, self.config.network)
        return [self.files.chi_pos_sigma, self.files.chi_neg_sigma] if tells else []

    @property
    def _qsm_tells_sigma(self) -> bool:
        return methods.tells_sigma(self.config.qsm, self.config.qsm_network)

    def _with_weights(self, stage: str) -> dict[str, Any]:
        if not self.weights[stage]:
            return {}
        return {"Weights": self.weights[stage], "Precision": self.config.network.precision}

    # What the stages do ------------------------------------------------------------------------------

    def _make_mask(self) -> dict[str, Any]:
        magnitude = self.files.echoes(self.session.megre.magnitude)
        return self._save_mask(brain_mask(magnitude, self.files.grid, self.config.mask))

    def _copy_mask(self, given: Path) -> dict[str, Any]:
        return self._save_mask(checked_mask(self.files.load(given), self.files.grid, str(given)))

    def _save_mask(self, brain: Tensor) -> dict[str, Any]:
        self.files.save(self.files.mask, brain)
        millilitre = float(brain.sum()) * float(np.prod(self.files.grid.voxel_mm)) / 1000
        return {"BrainVolumeMl": round(millilitre, 1)}

    def _make_field(self) -> dict[str, Any]:
        megre, brain = self.session.megre, self.files.load_mask(self.files.mask)
        # A layer of voxels beyond the brain tells R2* the field's gradient at its surface.
        around = max_pool3d(brain[None].float(), 3, stride=1, padding=1)[0] > 0
        stored = self.files.echoes(megre.phase)
        phase, note = phase_in_radians(stored, str(megre.phase[0]), megre.phase_units)
        if note:
            warnings.warn(note, ChisepWarning, stacklevel=1)
        result = total_field(
            self.files.echoes(megre.magnitude),
            phase,
            megre.te_s,
            self.b0_t,
            around,
            self.files.grid,
            self.config.field_map,
        )
        reliable = quality_mask(result.quality, result.reliable & brain, self.files.grid, self.config.quality)
        self.files.save(self.files.unwrapped, result.unwrapped_rad.movedim(0, -1))
        self.files.save(self.files.residual, result.residual_rad)
        self.files.save(self.files.quality, result.quality)
        self.files.save(self.files.total_field, result.total_field_ppm)
        self.files.save(self.files.field_sigma, result.sigma_ppm)
        self.files.save(self.files.reliable_mask, reliable)
        return {
            "BipolarReadout": bool(result.bipolar_rad.any()),
            "MedianResidualPhaseRad": round(float(result.residual_rad[reliable].median()), 4),
            "MedianFieldNoisePpb": round(1000 * float(result.sigma_ppm[reliable].median()), 3),
            "ReliablePartOfBrain": round(float(reliable.sum() / brain.sum()), 4),
        }

    def _make_local_field(self) -> dict[str, Any]:
        total, known = self.files.load(self.files.total_field), self.files.load_mask(self.files.reliable_mask)
        sigma = self.files.load(self.files.field_sigma)
        local = remove_background(total, known, self.files.grid, self.config.background, sigma_ppm=sigma)
        self.files.save(self.files.local_field, local.local_field_ppm)
        self.files.save(self.files.eroded_mask, local.mask)
        return {"ErosionMm": round(local.erosion_mm, 2), "ErosionMl": round(local.erosion_ml, 1)}

    def _make_transform(self) -> dict[str, Any]:
        spin_echoes, image = self._spin_echoes()
        found = register(
            spin_echoes,
            image.affine,
            self.files.echoes(self.session.megre.magnitude),
            self.files.first.affine,
            mask=self.files.load_mask(self.files.mask),
            config=self.config.registration,
        )
        facts = {
            "MovedMm": round(found.displacement_mm, 3),
            "RotationDeg": round(found.rotation_deg, 3),
            "Agreement": round(found.agreement, 4),
            "AgreementByHeaders": round(found.agreement_before, 4),
        }
        content = {
            "Description": "Where points of the head in the MEGRE lie in the MESE, in world mm",
            "MegreToMeseWorldMm": found.fixed_to_moving_mm.tolist(),
            **facts,
        }
        write_json(self.files.transform, content)
        together = spin_echoes.square().sum(0, keepdim=True).sqrt()
        self.files.save(self.files.spin_echo, self._resampled(together, image)[0])
        return facts

    def _make_rates(self) -> dict[str, Any]:
        megre, config = self.session.megre, self.config
        brain, total = self.files.load_mask(self.files.mask), self.files.load(self.files.total_field)
        of_gre = r2star(
            self.files.echoes(megre.magnitude),
            megre.te_s,
            brain,
            config.r2star,
            total_field_ppm=total,
            field_known=total != 0,
            b0_t=self.b0_t,
        )
        of_difference, facts = self._r2prime(of_gre, brain)
        noise = of_difference.sigma_hz[of_difference.sigma_hz > 0]
        if noise.numel():
            facts |= {"MedianR2primeNoiseHz": round(float(noise.median()), 3)}
        for path, volume in (
            (self.files.r2star, of_gre.rate_hz),
            (self.files.r2star_sigma, of_gre.sigma_hz),
            (self.files.r2prime, of_difference.rate_hz),
            (self.files.r2prime_sigma, of_difference.sigma_hz),
        ):
            self.files.save(path, volume)
        return facts

    def _r2prime(self, of_gre: Rate, brain: Tensor) -> tuple[Rate, dict[str, Any]]:
        """R2' by the spin echo, whose own maps are saved, or by an assumed R2; 0 where there is none."""
        mese = self.session.mese
        if mese is None:
            pseudo = pseudo_r2_hz(self.b0_t)
            warnings.warn(
                f"no spin-echo (MESE) images: R2' is R2* minus a pseudo-R2 of {pseudo:.1f} 1/s everywhere, "
                "an assumption",
                ChisepWarning,
                stacklevel=1,
            )
            return r2prime(of_gre, pseudo), {}
        spin_echoes, image = self._spin_echoes()
        i, j, k = spin_echoes.shape[1:]
        covered = coverage((i, j, k), image.affine, self.files.grid, transform=self._transform()).to(
            brain.device
        )
        missing = float((brain & ~covered).sum() / brain.sum())
        if missing > _MISSING_SPIN_ECHO:
            warnings.warn(
                f"the spin echo does not reach {100 * missing:.0f} % of the brain; sources are not "
                "separated there",
                ChisepWarning,
                stacklevel=1,
            )
        known = brain & covered
        of_se = r2(
            self._resampled(spin_echoes, image),
            mese.te_s,
            known,
            self.config.r2,
            voxel_mm=self.files.grid.voxel_mm,
        )
        self.files.save(self.files.r2, of_se.rate_hz)
        self.files.save(self.files.r2_sigma, of_se.sigma_hz)
        if self._has_b1:
            self.files.save(self.files.b1, torch.zeros_like(of_se.rate_hz) if of_se.b1 is None else of_se.b1)
        difference = r2prime(of_gre, of_se)
        return Rate(difference.rate_hz * known, difference.sigma_hz * known), {
            "SpinEchoCoverage": round(1 - missing, 4)
        }

    def _transform(self) -> NDArray[np.float64]:
        content = json.loads(self.files.transform.read_text(encoding="utf-8"))
        return np.asarray(content["MegreToMeseWorldMm"], dtype=np.float64)

    def _spin_echoes(self) -> tuple[Tensor, nifti.Image]:
        """Spin echoes on their own grid, and the first image for its place."""
        if self.session.mese is None:
            raise ValueError("a session without spin echo")
        images = [nifti.load(path) for path in self.session.mese.magnitude]
        for image in images[1:]:
            nifti.require_same_grid(images[0], image)
        data = torch.from_numpy(np.stack([image.data for image in images])).to(self.config.device)
        return data, images[0]

    def _resampled(self, spin_echoes: Tensor, image: nifti.Image) -> Tensor:
        return resample_to(
            spin_echoes, image.affine, self.files.grid, transform=self._transform(), source=image.source
        )

    def _resample_labels(self, found: Segmentation) -> dict[str, Any]:
        image = regions.load_labels(found.labels, found.table)
        brain = self.files.load_mask(self.files.mask)
        facts: dict[str, Any] = {}
        transform = None
        same = nifti.Image(image.labels, image.affine, image.source)
        if found.anatomy is not None and not nifti.is_same_grid(self.files.first, same):
            anatomy = regions.read_volume(found.anatomy)
            moved = register(
                torch.from_numpy(anatomy.data.astype(np.float32))[None],
                anatomy.affine,
                self.files.echoes(self.session.megre.magnitude),
                self.files.first.affine,
                mask=brain,
                config=self.config.registration,
            )
            transform = moved.fixed_to_moving_mm
            facts = {"MovedMm": round(moved.displacement_mm, 3), "Agreement": _rounded(moved.agreement)}
        labels = regions.resampled_labels(image, self.files.grid, transform)
        inside = labels * brain.cpu().numpy()
        self._save_labels(inside, image)
        brain_share = float((inside > 0).sum() / brain.sum())
        share = float((inside > 0).sum() / max(int((labels > 0).sum()), 1))
        if max(share, brain_share) < _POOR_OVERLAP:
            warnings.warn(
                f"the segmentation {found.labels.name} covers {100 * brain_share:.0f} % of the brain mask, "
                f"and {100 * share:.0f} % of it lie in the mask: check that it is of this head, in "
                "scanner coordinates",
                ChisepWarning,
                stacklevel=1,
            )
        return facts | {"LabelledPartOfBrain": round(brain_share, 4)}

    def _register_atlas(self) -> dict[str, Any]:
        files = self.files
        if self.atlas is None:
            atlas = regions.packaged_atlas()
        else:
            atlas = regions.load_labels(self.atlas, next(iter(self._atlas_table), None))
        brain = files.array(files.mask) > 0
        inner = files.array(files.eroded_mask) > 0
        found = regions.atlas_on_scan(
            atlas, files.array(files.r2star), files.array(files.qsm), brain, inner, files.grid
        )
        poor = found.overlap < _LEAST_ATLAS
        self._save_labels(np.zeros_like(found.labels) if poor else found.labels, atlas)
        if found.overlap < _POOR_ATLAS:
            warnings.warn(
                f"the registration of the atlas is poor: its brain and the brain mask overlap by "
                f"{found.overlap:.2f} (Dice) only; "
                + (
                    "there are no region values, give a segmentation (--regions)"
                    if poor
                    else "look at the report's figure of regions before their values are used"
                ),
                ChisepWarning,
                stacklevel=1,
            )
        return {"AtlasOverlapDice": round(found.overlap, 4)}

    def _save_labels(self, labels: regions.LabelArray, image: regions.LabelImage) -> None:
        nifti.save(self.files.labels, labels, self.files.first.affine, dtype=np.int32)
        regions.write_names(self.files.label_names, labels, image)

    def _make_region_values(self, sigmas: Mapping[str, Path | None]) -> dict[str, Any]:
        files = self.files
        brain, inner = (files.array(path) > 0 for path in (files.mask, files.eroded_mask))
        if self.session.mese and self.reads_r2prime:  # elsewhere sources are not separated
            separated = inner & (files.array(files.r2prime_sigma) > 0)
        else:
            separated = inner

        def maps() -> Iterator[regions.RegionMap]:
            for name, (path, _) in self._maps_read.items():
                sigma_file, scale = sigmas[name], np.float32(1000 if name.endswith("_ppb") else 1)
                sigma = None if sigma_file is None else scale * files.array(sigma_file)
                if name.startswith("chi_"):
                    known = separated
                elif sigma is None or name.endswith("_ppb"):
                    known = inner
                else:
                    known = brain & (sigma > 0)
                yield regions.RegionMap(name, scale * files.array(path), known, sigma)

        names = regions.read_names(files.label_names)
        values = regions.region_values(files.label_array(), names, maps(), files.grid.voxel_mm)
        regions.write_values(files.region_values, values)
        what = {name: text for name, (_, text) in self._maps_read.items()}
        write_json(files.region_columns, regions.values_dictionary(what))
        return {}

    def _make_calibration(self) -> dict[str, Any]:
        labels = torch.from_numpy(self.files.label_array())
        found = calibrate_relaxivity(
            self.files.load(self.files.r2prime),
            self.files.load(self.files.qsm),
            labels,
            self.files.load_mask(self.files.eroded_mask),
            np.random.default_rng(_CALIBRATION_SEED),
        )
        write_json(self.files.calibration, asdict(found))
        low, high = found.interval95
        warnings.warn(
            f"D_r is {found.hz_per_ppm:.0f} 1/s/ppm by this person's own deep grey matter (95 % interval "
            f"{low:.0f} to {high:.0f}), in place of {default_relaxivity(self.b0_t).pos_hz_per_ppm:.0f}",
            ChisepWarning,
            stacklevel=1,
        )
        return {}

    def _maps(self) -> Maps:
        return Maps(
            field_ppm=self.files.load(self.files.local_field),
            mask=self.files.load_mask(self.files.eroded_mask),
            support=self.files.load_mask(self.files.mask),
            grid=self.files.grid,
            magnitude=self.files.echoes(self.session.megre.magnitude).square().sum(0).sqrt(),
            field_sigma_ppm=self.files.load(self.files.field_sigma),
        )

    def _make_qsm(self) -> dict[str, Any]:
        config = self.config
        options = methods.config_for(config.qsm, config.qsm_network)
        result = methods.invert(self._maps(), config.qsm, options, device=config.device)
        self.files.save(self.files.qsm, result.chi_ppm)
        if result.chi_sigma_ppm is not None:
            self.files.save(self.files.qsm_sigma, result.chi_sigma_ppm)
        return _convergence_facts(result.convergence)

    def _make_sources(self) -> dict[str, Any]:
        config = self.config
        maps = replace(self._maps(), relaxivity=self.relaxivity)
        if not self.has_field_term:
            maps = replace(maps, chi_ppm=self.files.load(self.files.qsm))
        if not self.reads_r2prime:
            maps = replace(maps, r2star_hz=self.files.load(self.files.r2star))
        else:
            maps = replace(maps, r2prime_hz=self.files.load(self.files.r2prime))
            if self.session.mese:  # without R2 there is nothing to separate by
                sigma = self.files.load(self.files.r2prime_sigma)
                covered = sigma > 0
                maps = replace(
                    maps,
                    mask=maps.mask & covered,
                    support=maps.sources_mask & covered,
                    r2prime_sigma_hz=sigma,
                )
            else:
                if self.uses_noise_maps:
                    maps = replace(maps, r2prime_sigma_hz=self.files.load(self.files.r2prime_sigma))
                warnings.warn(
                    f"χ_pos and χ_neg depend on the pseudo-R2: {config.method} reads R2', and there are no "
                    "spin-echo (MESE) images; methods that take R2* do not need it",
                    ChisepWarning,
                    stacklevel=1,
                )
        options = methods.config_for(config.method, config.network)
        result = methods.separate(maps, config.method, options, device=config.device)
        self.files.save(self.files.chi_pos, result.chi_pos_ppm)
        self.files.save(self.files.chi_neg, result.chi_neg_ppm)
        self.files.save(self.files.chi, result.chi_ppm)
        for path, told in (
            (self.files.chi_pos_sigma, result.chi_pos_sigma_ppm),
            (self.files.chi_neg_sigma, result.chi_neg_sigma_ppm),
        ):
            if told is not None:
                self.files.save(path, told)
        return _convergence_facts(result.convergence)

    # Report ------------------------------------------------------------------------------------------

    def _report_stage(self, stages: Sequence[Stage], cache: StageCache) -> Stage:
        """Stage of the report; made when all others are done, since it shows what they noted."""
        records = cache.records
        convergence = {
            name: record.facts["Convergence"]
            for name, record in records.items()
            if "Convergence" in record.facts
        }
        said = [f"{name}: {text}" for name, record in records.items() for text in record.warnings]
        parameters = {stage.name: dict(stage.parameters) for stage in stages}

        def work() -> dict[str, Any]:
            images = self.files.images(has_b1=self._has_b1, chi_sigmas=self._source_sigmas)
            report = SubjectReport(
                title=f"chisep: {self.session.name}",
                subject=self.session.subject,
                session=self.session.entities.get("ses"),
                summary=self._summary(images),
                warnings=said,
                panels=panels(images, convergence),
                regions=region_rows(regions.read_values(self.files.region_values)),
                parameters=parameters,
                versions={"chisep": chisep.__version__},
            )
            write_report(self.files.report, report)
            return {}

        return Stage(
            "report",
            "report",
            [path for stage in stages for path in stage.outputs],
            [self.files.report],
            {"Warnings": said, "Convergence": convergence, "Parameters": parameters},
            work,
        )

    def _summary(self, images: SessionImages) -> list[tuple[str, str]]:
        inside = images.eroded_mask
        millilitre = inside.sum() * np.prod(self.files.grid.voxel_mm) / 1000
        d_r = self.relaxivity
        rate = "R2′" if self.reads_r2prime else "R2*"
        return [
            ("Field strength", f"{self.b0_t:g} T"),
            ("Voxel", " × ".join(f"{edge:.3g}" for edge in self.files.grid.voxel_mm) + " mm"),
            ("B0 direction (voxel axes)", ", ".join(f"{b:.3f}" for b in self.files.grid.b0_direction)),
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


def _rounded(agreement: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(agreement, 4) if math.isfinite(agreement) else None


def _sigma_of(image: Path, made: Sequence[Path]) -> Path | None:
    """Find the map of an image's noise: its name with stat-std besides."""
    wanted = sorted([*image.name.split("_"), "stat-std"])
    return next(
        (path for path in made if path.parent == image.parent and sorted(path.name.split("_")) == wanted),
        None,
    )
