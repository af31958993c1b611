"""Config of a simulated dataset: people, scanner, lesions and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from chisep.errors import InputError
from chisep.simulation.lesions.kinds import PatientConfig
from chisep.simulation.scanner import ScannerConfig
from chisep.simulation.tissue import TissueConfig
from chisep.simulation.variants import VariantConfig
from chisep.simulation.warps import WarpConfig


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(ScannerConfig):
    """Simulated scan sessions of digital phantoms."""

    out: tyro.conf.Positional[Path]
    """Folder of the BIDS dataset to write."""
    subjects: int = 1
    """Number of subjects."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers, one for each subject, reused in turn; MNI152 head if none."""
    seed: int = 0
    """Seed of all random numbers; a subject does not depend on the number of subjects."""
    megre_only: bool = False
    """Leave out the spin-echo scan."""
    maps: bool = False
    """Also write fields and R2' with noise to derivatives/maps, as ideal processing would compute them."""
    maps_only: bool = False
    """Map-level simulation: write these maps and no scans (fast, for training)."""
    jobs: int = 1
    """Number of subjects that are simulated in parallel, each in its own process."""
    warp: WarpConfig = field(default_factory=WarpConfig)
    """Anatomical variation of the head."""
    variant: VariantConfig = field(default_factory=VariantConfig)
    """Calcified meninges and missing structures."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """Variation of tissue between subjects and voxels."""
    patient: PatientConfig = field(default_factory=PatientConfig)
    """Lesions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("subjects", "jobs"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(name, found=f"{value}", expected="1 or more", fix="Correct the option.")
        if self.seed < 0:
            raise InputError("seed", found=f"{self.seed}", expected="0 or more", fix="Correct the option.")
        self.tissue.relaxivity(self.b0_t)
        if self.maps_only and self.raw_orientations:
            raise InputError(
                "raw_orientations",
                found="maps_only as well, which writes no scans",
                expected="one of them",
                fix="Leave one of them out.",
            )
        if self.maps_only:
            object.__setattr__(self, "maps", True)
