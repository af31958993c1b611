"""What a run is asked to do: data, methods, assumptions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from chisep import methods
from chisep.errors import InputError
from chisep.networks.inference import NetworkOptions
from chisep.preprocessing.background import BackgroundConfig
from chisep.preprocessing.field import FieldConfig
from chisep.preprocessing.mask import MaskConfig, QualityConfig
from chisep.preprocessing.registration import RegistrationConfig
from chisep.preprocessing.relaxometry import R2Config, R2starConfig


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
