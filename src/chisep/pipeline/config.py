"""Options of a run: data, methods, assumptions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from chisep import methods
from chisep.errors import InputError
from chisep.io.discovery import DiscoveredSession, Selection, discover
from chisep.io.filters import read_filters
from chisep.networks.inference import NetworkOptions
from chisep.preprocessing.background import BackgroundConfig
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.mask import MaskConfig, QualityConfig
from chisep.preprocessing.registration import RegistrationConfig
from chisep.preprocessing.relaxivity import AUTO, DrOption, check_dr
from chisep.preprocessing.relaxometry import R2Config, R2starConfig

FROM_SOURCES = "separation"
"""QSM method: χ_pos − χ_neg of the separation."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Which scans are used, and options of the stages of each scan, from raw data to field and rates."""

    participant_label: tuple[str, ...] = ()
    """Participants, with or without `sub-`; if unset: all."""
    session_label: tuple[str, ...] = ()
    """Sessions, with or without `ses-`; if unset: all. Participants without any of them are left out,
    unless --participant-label names them."""
    bids_filter_file: Path | None = None
    """JSON file with the images to use, in the format of fMRIPrep and pybids: {"MEGRE": {"reconstruction":
    "norm"}, "MESE": {"run": 1}}. Keys are entities (session, acquisition, ceagent, reconstruction, direction,
    run, part, echo); values are a label, a list of labels, null (entity absent) or "*" (any label)."""
    masks: Path | None = None
    """Derivatives dataset with your own brain masks (…_desc-brain_mask.nii.gz) on the grid of the gradient
    echo; if unset: brain extraction."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Brain extraction."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Phase-quality mask for background removal."""
    field_map: FieldConfig = field(default_factory=FieldConfig)
    """Field mapping: phase unwrapping and echo combination."""
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    """Background field removal."""
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    """Rigid registration of spin echo and gradient echo."""
    r2star: R2starConfig = field(default_factory=R2starConfig)
    """How R2* is fitted."""
    r2: R2Config = field(default_factory=R2Config)
    """How R2 is fitted."""
    denoise: Literal["lmmse", "none"] = "lmmse"
    """Denoising of R2': local linear minimum mean square error (LMMSE) estimate from the amplitudes, R2* and
    R2 of a voxel and its neighbours, or none."""
    device: str = "cpu"
    """Device of the computation: cpu, cuda, cuda:1, …"""


@dataclass(frozen=True)
class RunConfig(ScanOptions):
    """Data, methods and assumptions of a run."""

    bids: Positional[Path]
    """BIDS raw dataset with MEGRE images, and optional MESE images."""
    out: Positional[Path]
    """Derivatives dataset to write; results that are still up to date are kept."""
    level: Positional[Literal["participant", "group"]] = "participant"
    """Level of analysis: `participant` computes maps and a report of every session; `group` summarises all
    finished sessions in a table and on a page."""
    method: str = methods.DEFAULTS["sources"]
    """Separation method; `chisep methods` lists them."""
    qsm: str = ""
    """Method of the susceptibility map (QSM): a dipole inversion, or `separation` (χ_pos − χ_neg). If unset:
    separation; with a separation method that reads χ: unrolled-qsm, or qsmnet for networks; for scans of one
    echo: unrolled-qsm."""
    reference: Literal["none", "csf", "brain"] | Path = "none"
    """Region whose mean is subtracted from the QSM: csf (ventricles of the label map), brain, or a mask on
    the grid of the gradient echo (NIfTI); χ_pos and χ_neg are magnitudes and have no reference."""
    dr: DrOption = ()
    """D_r in 1/s/ppm at this field strength: one number, or two (χ_pos, χ_neg); auto: estimated from R2' and
    the field of each session, which needs spin echoes; if unset: 114·B0/3."""
    calibrate_dr: bool = False
    """Calibrate D_r in the deep grey matter of each session; needs a segmentation with FreeSurfer numbers in
    a derivatives dataset."""
    regions: Path | None = None
    """Source of the regions: a derivatives dataset with segmentations (…_dseg.nii.gz, any grid), a FreeSurfer
    subjects directory, or an atlas in MNI152 space (NIfTI, with its label table beside it as .tsv); if
    unset: a segmentation in BIDS/derivatives, else the packaged atlas."""
    nuclei: bool = True
    """Outline substantia nigra, red and subthalamic nucleus and both segments of the pallidum by the atlas
    CIT168, in voxels of up to 2 mm."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the gradient echo, for images whose affine is not the scanner's; if
    unset: as the sidecar states it (B0DirectionVoxelAxes), else scanner z, from the affine."""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    """For methods that are networks."""

    def __post_init__(self) -> None:
        method = methods.find(self.method, "sources")
        object.__setattr__(self, "qsm", self.qsm or default_qsm(method))
        _check_qsm(self.qsm, method)
        _check_reference(self.reference, self.regions)
        methods.config_for(self.method, self.network)
        if self.dr and self.calibrate_dr:
            raise InputError(
                "--calibrate-dr",
                found="--dr as well",
                expected="one of them",
                fix="Leave --dr out to have D_r measured.",
            )
        check_dr(self.dr)
        if self.regions is not None and not self.regions.exists():
            raise InputError(
                self.regions,
                found="no such file or folder",
                expected="segmentations or an atlas, for --regions",
                fix="Check the path.",
            )
        out, raw = (Path(os.path.realpath(path)) for path in (self.out, self.bids))
        if out != raw and out.is_relative_to(raw) and out.relative_to(raw).parts[0].startswith("sub-"):
            raise InputError(
                "OUT",
                found=f"{self.out}, a folder of a participant's raw data",
                expected="a folder outside of the participants' folders (sub-…) of the raw dataset",
                fix="Choose e.g. BIDS/derivatives/chisep.",
            )
        if out == raw:
            raise InputError(
                "OUT",
                found="the raw dataset itself",
                expected="another folder",
                fix="Choose e.g. BIDS/derivatives/chisep.",
            )

    @property
    def makes_sources(self) -> bool:
        """Whether sessions go on to sources and a report, or end with field and relaxation rates."""
        return True

    def discovered(self) -> list[DiscoveredSession]:
        """Sessions to process.

        Raises
        ------
        InputError
            If the dataset as a whole cannot be used.
        """
        return discover(self.bids, self.selection)

    @property
    def measures_dr(self) -> bool:
        """Whether D_r is calibrated or estimated in each session."""
        return self.calibrate_dr or self.dr == AUTO

    @property
    def selection(self) -> Selection:
        """What of the raw dataset is to be used.

        Raises
        ------
        InputError
            If the filter file cannot be used.
        """
        return Selection(self.participant_label, self.session_label, read_filters(self.bids_filter_file))

    @property
    def inversion(self) -> str:
        """Method of dipole inversion, for sessions that need one."""
        return methods.DEFAULTS["chi"] if self.qsm == FROM_SOURCES else self.qsm

    @property
    def inversion_network(self) -> NetworkOptions:
        """Options of the network of the dipole inversion, should that be one."""
        if not methods.METHODS[self.inversion].is_network:
            return NetworkOptions()
        chosen = self.network.chi_weights
        return replace(self.network, weights="" if chosen == NetworkOptions().chi_weights else chosen)

    def weights(self) -> dict[str, list[dict[str, str]]]:
        """Weights of the dipole inversion and of the separation.

        Raises
        ------
        InputError
            If weights cannot be found or read.
        """
        return {
            "qsm": methods.weights_used(self.inversion, self.inversion_network, chi_given=False),
            "separation": methods.weights_used(self.method, self.network, chi_given=True),
        }


def default_qsm(method: methods.Method) -> str:
    """QSM of a separation method: its own χ, or, if it reads a χ map, the one that it was trained on."""
    if method.has_field_term:
        return FROM_SOURCES
    return "qsmnet" if method.is_network else methods.DEFAULTS["chi"]


def _check_qsm(name: str, method: methods.Method) -> None:
    if name != FROM_SOURCES:
        methods.find(name, "chi")
    elif not method.has_field_term:
        raise InputError(
            "--qsm",
            found=f"{FROM_SOURCES} with the method {method.name}, which reads a χ map",
            expected="a method of dipole inversion",
            fix="Leave --qsm out, or choose one that `chisep methods` lists for χ.",
        )


def _check_reference(reference: str | Path, regions: Path | None) -> None:
    if isinstance(reference, Path) and not reference.is_file():
        raise InputError(
            "--reference",
            found=f"{reference}, which is no file",
            expected="none, csf, brain, or a mask (NIfTI) on the grid of the gradient echo",
            fix="Check the path.",
        )
    if reference == "csf" and regions is not None and regions.is_file():
        raise InputError(
            "--reference csf",
            found=f"the atlas {regions}, whose numbers have a meaning of their own",
            expected="a segmentation with FreeSurfer's numbers, or the packaged atlas",
            fix="Give the mask of the ventricles (--reference FILE), or leave --regions out.",
        )
