"""Config of a simulated dataset: people, scanner, lesions and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from chisep.errors import InputError
from chisep.simulation.lesions.kinds import PatientConfig
from chisep.simulation.scanner import ScannerConfig
from chisep.simulation.tissue import TissueConfig
from chisep.simulation.warps import WarpConfig


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(ScannerConfig):
    """Simulated scan sessions, and the scanner that makes them."""

    out: tyro.conf.Positional[Path]
    """Folder of the BIDS dataset to write."""
    subjects: int = 1
    """Number of people."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers, one a subject, used again when they run out; none: MNI head."""
    seed: int = 0
    """Seed of all that is random; a subject does not depend on how many there are."""
    megre_only: bool = False
    """Leave out the spin-echo scan."""
    maps: bool = False
    """Write fields and R2' with their noise too, in derivatives/maps, as perfect processing would give."""
    maps_only: bool = False
    """Write these maps and no scans (fast, for training)."""
    jobs: int = 1
    """Subjects made at the same time, each in a process of its own."""
    warp: WarpConfig = field(default_factory=WarpConfig)
    """How the head differs from its label map."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """How people and voxels differ."""
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
        if self.maps_only:
            object.__setattr__(self, "maps", True)
