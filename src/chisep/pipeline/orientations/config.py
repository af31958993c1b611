"""Options of a run over several head orientations."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from chisep.errors import InputError
from chisep.io.discovery import DiscoveredSession, Selection
from chisep.io.paths import require_label
from chisep.pipeline.config import RunConfig, ScanOptions
from chisep.preprocessing.head_orientation import PoseConfig
from chisep.preprocessing.relaxivity import check_dr
from chisep.solvers.cosmos import CosmosConfig
from chisep.solvers.csf_reference import CsfConfig
from chisep.solvers.filtered_cosmos import FilteredConfig
from chisep.solvers.multi_orientation import MultiOrientationConfig
from chisep.solvers.tensor import TensorConfig

By = Literal["acq", "ses", "run"]
"""Entity that tells one head orientation from another."""


@dataclass(frozen=True, kw_only=True)
class OrientationsConfig(ScanOptions):
    """Scans of several head orientations, and how they are processed."""

    bids: Positional[Path]
    """BIDS raw dataset with several MEGRE series of each participant, and optionally one MESE series."""
    out: Positional[Path]
    """Derivatives dataset to write, which `chisep train` reads; results that are up to date are kept."""
    by: By | None = None
    """Entity that tells the orientations apart; if unset: the one that has several labels."""
    reference: str = ""
    """Label of the orientation whose grid all maps get; if unset: that with a spin echo, else the first."""
    dr: tuple[float, ...] = ()
    """D_r in 1/s/ppm at this field strength: one number, or two (χ_pos, χ_neg); if unset: 114·B0/3."""
    pose: PoseConfig = field(default_factory=PoseConfig)
    """Rigid registration of one head orientation to another."""
    cosmos: CosmosConfig = field(default_factory=CosmosConfig)
    """COSMOS."""
    filtered: FilteredConfig = field(default_factory=FilteredConfig)
    """Refinement of COSMOS with fields that the spherical mean value filter has filtered."""
    csf: CsfConfig = field(default_factory=CsfConfig)
    """Zero of χ in CSF."""
    separation: MultiOrientationConfig = field(default_factory=MultiOrientationConfig)
    """Iterative χ-separation of all orientations."""
    tensor: TensorConfig = field(default_factory=TensorConfig)
    """Susceptibility tensor, of six orientations or more."""

    def __post_init__(self) -> None:
        check_dr(self.dr)
        if self.reference:
            require_label(self.reference, "--reference")
        self.of_scans()

    def of_scans(self) -> ScansConfig:
        """Options of the stages of each scan."""
        shared = {option.name: getattr(self, option.name) for option in fields(ScanOptions)}
        return ScansConfig(
            bids=self.bids, out=self.out, by=self.by, orientation_reference=self.reference, **shared
        )

    def absolute(self) -> OrientationsConfig:
        """Return the same options with absolute paths of both datasets."""
        return replace(self, bids=self.bids.absolute(), out=self.out.absolute())


@dataclass(frozen=True)
class ScansConfig(RunConfig):
    """A run that ends with field and relaxation rates of every orientation."""

    by: By | None = None
    """Entity that tells the orientations apart."""
    orientation_reference: str = ""
    """Label of the reference."""

    @property
    def selection(self) -> Selection:
        """What of the raw dataset is to be used; a labelled spin echo is that of its orientation only."""
        return replace(super().selection, shared_spin_echo=False)

    @property
    def makes_sources(self) -> bool:
        """Sources are of all orientations together."""
        return False

    def discovered(self) -> list[DiscoveredSession]:
        """Find the scans of all participants whose orientations can be used; errors as of `find_groups`."""
        from chisep.pipeline.orientations.groups import find_groups

        groups = find_groups(self)
        usable = [scan for group in groups if group.error is None for scan in group.scans]
        if not usable:
            raise next(group.error for group in groups if group.error is not None)
        return usable


def no_orientations(source: object, found: str, fix: str) -> InputError:
    """Say that a participant has no orientations to work on; the caller raises it."""
    return InputError(
        str(source),
        found=found,
        expected="two or more head orientations, each with its own acq-, ses- or run- (MEGRE)",
        fix=fix,
    )
