"""One subject from raw scans to maps and report, stage by stage, each stage resumable.

A stage reads files and writes files; nothing else passes between stages, so a run that was killed and
started again works on the same bytes as one that was not. When a stage is done it leaves a record of a
key (version, parameters, checksums of its inputs) and the checksums of its outputs; a later run skips
the stage as long as both still hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.errors import ChisepError, ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_json
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing import background, mask, registration, relaxometry
from chisep.preprocessing import field as field_mapping
from chisep.types import Grid, Maps, Relaxivity

log = logging.getLogger("chisep")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

PPM, RATE = "ppm", "1/s"


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
    qsm: str = "tv"
    """Method of the ordinary susceptibility map (QSM)."""
    dr: tuple[float, ...] = ()
    """D_r in 1/s/ppm at the field strength of the scan: one, or two (χ_pos, χ_neg). Default 114·B0/3."""
    phase_sign: Literal[1, -1] = 1
    """1 if phase grows with the field (iron bright in the field map), -1 for the opposite convention."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        methods.find(self.method, "sources")
        methods.find(self.qsm, "chi")
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


def relaxivity(dr: Sequence[float], b0_t: float) -> Relaxivity:
    """D_r from what the user said: nothing (the default of the field strength), one number, or two."""
    if not dr:
        return default_relaxivity(b0_t)
    return Relaxivity(dr[0], dr[-1])


@dataclass(frozen=True)
class Stage:
    """A step from files to files.

    Parameters
    ----------
    name
        Of the record and in messages.
    inputs
        Files it reads.
    outputs
        Files it writes, sidecars left out.
    parameters
        All that changes its result besides its inputs.
    work
        Writes the outputs.
    """

    name: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    parameters: Mapping[str, Any]
    work: Callable[[], None]


@dataclass(frozen=True)
class SessionResult:
    """How one session ended: its report, or what stopped it."""

    name: str
    report: Path | None = None
    error: ChisepError | None = None
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = field(default=())


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
        If the dataset as a whole cannot be used, or OUT not be written.
    """
    sessions = bids.find_sessions(config.bids, config.participant_label)
    methods.check_device(config.device)
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
        self.config, self.session = config, session
        b0_t = session.megre.b0_t
        if b0_t is None:  # find_sessions promises it
            raise ValueError("a gradient-echo series without field strength")
        self.b0_t = b0_t
        self.relaxivity = relaxivity(config.dr, b0_t)
        self.records = config.out / ".chisep" / session.name
        self.report = config.out / f"{session.name}.html"
        self.mask = self._path("mask", desc="brain")
        self.unwrapped = self._path("MEGRE", part="phase", desc="unwrapped")
        self.total_field = self._path("fieldmap", desc="total")
        self.local_field = self._path("fieldmap", desc="local")
        self.eroded_mask = self._path("mask", desc="eroded")
        self.r2star, self.r2, self.r2prime = (self._path(s) for s in ("R2starmap", "R2map", "R2primemap"))
        self.qsm = self._path("Chimap", desc="qsm")
        self.chi_pos, self.chi_neg, self.chi = (
            self._path("Chimap", desc=desc) for desc in ("paramagnetic", "diamagnetic", "total")
        )

    def _path(self, suffix: str, *, ext: str = ".nii.gz", **entities: str) -> Path:
        return self.session.output(self.config.out, suffix, ext=ext, **entities)

    def stages(self) -> list[Stage]:
        """All stages in order."""
        config, megre, mese = self.config, self.session.megre, self.session.mese
        d_r = {"D_r_pos": self.relaxivity.pos_hz_per_ppm, "D_r_neg": self.relaxivity.neg_hz_per_ppm}
        echoes = {"EchoTime": list(megre.te_s), "MagneticFieldStrength": self.b0_t}
        rates = (self.r2star, self.r2prime) if mese is None else (self.r2star, self.r2, self.r2prime)
        spin_echo = (
            {"SpinEchoTime": list(mese.te_s)} if mese else {"PseudoR2": relaxometry.pseudo_r2_hz(self.b0_t)}
        )
        return [
            Stage("mask", megre.magnitude, (self.mask,), asdict(mask.MaskConfig()), self._make_mask),
            Stage(
                "field",
                (*megre.files, self.mask),
                (self.unwrapped, self.total_field),
                echoes | asdict(self._field_config) | {"PhaseUnits": megre.phase_units},
                self._make_field,
            ),
            Stage(
                "background",
                (self.total_field, self.mask),
                (self.local_field, self.eroded_mask),
                asdict(background.VsharpConfig()),
                self._make_local_field,
            ),
            Stage(
                "relaxometry",
                (*megre.magnitude, *(mese.magnitude if mese else ()), self.mask),
                rates,
                echoes | spin_echo,
                self._make_rates,
            ),
            Stage(
                "qsm",
                (self.local_field, self.eroded_mask, *megre.magnitude),
                (self.qsm,),
                {"Method": config.qsm},
                self._make_qsm,
            ),
            Stage(
                "separation",
                (self.local_field, self.r2prime, self.qsm, self.eroded_mask, *megre.magnitude),
                (self.chi_pos, self.chi_neg, self.chi),
                {"Method": config.method} | d_r,
                self._make_sources,
            ),
        ]

    def process(self, progress: Progress | None = None) -> SessionResult:
        """Run what is missing or stale, then write the report.

        Raises
        ------
        ChisepError
            If an input cannot be used or an output not be written; finished stages stay.
        """
        self._remove_leftovers()
        stages = self.stages()
        said: list[str] = []
        skipped: list[str] = []
        for number, stage in enumerate(stages):
            if progress:
                progress(f"{self.session.name}: {stage.name}", number, len(stages) + 1)
            record = self._fresh_record(stage)
            if record is None:
                record = self._execute(stage)
            else:
                skipped.append(stage.name)
            said += record["warnings"]
        if progress:
            progress(f"{self.session.name}: report", len(stages), len(stages) + 1)
        self._write_report(stages, said)
        return SessionResult(self.session.name, self.report, warnings=tuple(said), skipped=tuple(skipped))

    # Records -----------------------------------------------------------------------------------------

    def _record_path(self, stage: Stage) -> Path:
        return self.records / f"{stage.name}.json"

    def _key(self, stage: Stage) -> str:
        facts = {
            "version": chisep.__version__,
            "stage": stage.name,
            "parameters": stage.parameters,
            "inputs": [_checksum(path) for path in stage.inputs],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _fresh_record(self, stage: Stage) -> dict[str, Any] | None:
        """Record of a stage that need not run again, else None."""
        try:
            record: dict[str, Any] = json.loads(self._record_path(stage).read_text())
            if record["key"] != self._key(stage):
                return None
            whole = all(
                _checksum(self.config.out / path) == checksum for path, checksum in record["outputs"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        return record if whole else None

    def _execute(self, stage: Stage) -> dict[str, Any]:
        log.info("%s: %s", self.session.name, stage.name)
        with _collected_warnings() as said:
            stage.work()
        for message in said:
            log.warning("%s: %s: %s", self.session.name, stage.name, message)
        for path in stage.outputs:
            self._write_sidecar(path, stage, said)
        files = [*stage.outputs, *(bids.sidecar_of(path) for path in stage.outputs)]
        record = {
            "key": self._key(stage),
            "outputs": {str(path.relative_to(self.config.out)): _checksum(path) for path in files},
            "warnings": said,
        }
        write_json(self._record_path(stage), record)
        return record

    def _write_sidecar(self, path: Path, stage: Stage, said: Sequence[str]) -> None:
        units = {"Chimap": PPM, "fieldmap": PPM, "MEGRE": "rad"}
        suffix = path.name.split(".")[0].rsplit("_", 1)[-1]
        facts: dict[str, Any] = {"Description": _DESCRIPTIONS[stage.name]}
        if suffix != "mask":
            facts["Units"] = units.get(suffix, RATE)
        facts |= {"Sources": [self._uri(source) for source in stage.inputs], "Stage": stage.name}
        facts |= {
            "Parameters": dict(stage.parameters),
            "Warnings": list(said),
            "SoftwareVersion": f"chisep {chisep.__version__}",
        }
        write_json(bids.sidecar_of(path), facts)

    def _uri(self, path: Path) -> str:
        """BIDS URI of a file: this dataset's, or the raw one's."""
        if path.is_relative_to(self.config.out):
            return f"bids::{path.relative_to(self.config.out)}"
        return f"bids:raw:{path.relative_to(self.config.bids)}"

    def _remove_leftovers(self) -> None:
        """Delete what killed writers of this session left under temporary names."""
        for folder in (self._path("mask").parent, self.records):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    # Stages ------------------------------------------------------------------------------------------

    @property
    def _field_config(self) -> field_mapping.FieldConfig:
        return field_mapping.FieldConfig(phase_sign=self.config.phase_sign)

    @cached_property
    def _first(self) -> nifti.Image:
        """First gradient echo: its grid is that of every output."""
        return nifti.load(self.session.megre.magnitude[0])

    @cached_property
    def _grid(self) -> Grid:
        return nifti.grid_of(self._first)

    def _load(self, path: Path) -> Tensor:
        image = nifti.load(path)
        nifti.require_same_grid(self._first, image)
        return torch.from_numpy(image.data).to(self.config.device)

    def _load_mask(self, path: Path) -> Tensor:
        return self._load(path) > 0

    def _echoes(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self._load(path) for path in paths])

    def _save(self, path: Path, volume: Tensor) -> None:
        dtype = np.uint8 if volume.dtype == torch.bool else np.float32
        nifti.save(path, volume.cpu().numpy(), self._first.affine, dtype=dtype)

    def _make_mask(self) -> None:
        self._save(
            self.mask,
            mask.brain_mask(self._echoes(self.session.megre.magnitude), self._grid, mask.MaskConfig()),
        )

    def _make_field(self) -> None:
        megre = self.session.megre
        phase, note = field_mapping.phase_in_radians(
            self._echoes(megre.phase), megre.phase[0].name, megre.phase_units
        )
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

    def _make_local_field(self) -> None:
        local = background.vsharp(
            self._load(self.total_field), self._load_mask(self.mask), self._grid, background.VsharpConfig()
        )
        self._save(self.local_field, local.local_field_ppm)
        self._save(self.eroded_mask, local.mask)

    def _make_rates(self) -> None:
        megre, mese = self.session.megre, self.session.mese
        brain = self._load_mask(self.mask)
        r2star = relaxometry.r2star(self._echoes(megre.magnitude), megre.te_s, brain)
        if mese is None:
            pseudo = relaxometry.pseudo_r2_hz(self.b0_t)
            warnings.warn(
                f"no spin-echo (MESE) images: R2' is R2* minus a pseudo-R2 of {pseudo:.1f} 1/s everywhere, "
                "which is an assumption that χ_pos and χ_neg depend on",
                ChisepWarning,
                stacklevel=1,
            )
            r2 = torch.where(brain, pseudo, 0.0)
        else:
            r2 = relaxometry.r2(self._spin_echoes(mese), mese.te_s, brain)
            self._save(self.r2, r2)
        self._save(self.r2star, r2star)
        self._save(self.r2prime, relaxometry.r2prime(r2star, r2))

    def _spin_echoes(self, mese: bids.Series) -> Tensor:
        """Spin echoes on the grid of the gradient echo."""
        images = [nifti.load(path) for path in mese.magnitude]
        for image in images[1:]:
            nifti.require_same_grid(images[0], image)
        data = torch.from_numpy(np.stack([image.data for image in images])).to(self.config.device)
        same = images[0].data.shape == self._first.data.shape and np.allclose(
            images[0].affine, self._first.affine, atol=1e-2
        )
        if same:
            return data
        warnings.warn(
            "spin echo and gradient echo have different grids: the spin echo was resampled through the "
            "scanner coordinates of the headers; motion between the scans is not corrected",
            ChisepWarning,
            stacklevel=1,
        )
        return registration.resample_to(data, images[0].affine, self._grid)

    def _maps(self, *, r2prime: bool, qsm: bool) -> Maps:
        return Maps(
            field_ppm=self._load(self.local_field),
            mask=self._load_mask(self.eroded_mask),
            grid=self._grid,
            relaxivity=self.relaxivity,
            r2prime_hz=self._load(self.r2prime) if r2prime else None,
            chi_ppm=self._load(self.qsm) if qsm else None,
            magnitude=self._echoes(self.session.megre.magnitude).square().sum(0).sqrt(),
        )

    def _make_qsm(self) -> None:
        result = methods.invert(
            self._maps(r2prime=False, qsm=False), self.config.qsm, device=self.config.device
        )
        self._save(self.qsm, result.chi_ppm)

    def _make_sources(self) -> None:
        result = methods.separate(
            self._maps(r2prime=True, qsm=True), self.config.method, device=self.config.device
        )
        self._save(self.chi_pos, result.chi_pos_ppm)
        self._save(self.chi_neg, result.chi_neg_ppm)
        self._save(self.chi, result.chi_ppm)


_DESCRIPTIONS = {
    "mask": "brain mask from the gradient-echo magnitude",
    "field": "total field from unwrapped phase, and the unwrapped phase",
    "background": "local field after background removal, and the mask in which it is known",
    "relaxometry": "relaxation rates",
    "qsm": "magnetic susceptibility from dipole inversion",
    "separation": "separated susceptibility: paramagnetic, diamagnetic (as a positive magnitude), total",
}


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what chisep warns of, in order and once each; other warnings pass."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChisepWarning)
        yield said
    for warning in caught:
        if not issubclass(warning.category, ChisepWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in said:
            said.append(str(warning.message))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
