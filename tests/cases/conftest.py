"""A sound scan, from which each case makes a scan with one oddity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from chisep.io import bids, nifti
from chisep.io.discovery import find_sessions
from chisep.preprocessing.field import total_field
from chisep.preprocessing.field_map import FieldConfig, FieldMap
from chisep.simulation.dataset import SimulateConfig, simulate
from chisep.types import Echoes, Grid, MaskVolume


@dataclass(frozen=True, eq=False)
class Scan:
    """A multi-echo gradient echo in memory."""

    magnitude: Echoes
    phase_rad: Echoes
    te_s: tuple[float, ...]
    mask: MaskVolume
    grid: Grid

    def field(
        self,
        *,
        phase_rad: Echoes | None = None,
        echoes: tuple[int, ...] | None = None,
        numbers: tuple[int, ...] | None = None,
        config: FieldConfig | None = None,
    ) -> FieldMap:
        """Field map of some of its echoes, with another phase if one is given."""
        chosen = list(echoes if echoes is not None else range(len(self.te_s)))
        phase = self.phase_rad if phase_rad is None else phase_rad
        te_s = [self.te_s[echo] for echo in chosen]
        mask = self.mask & phase[chosen].isfinite().all(0)  # NaN: phase is unknown
        return total_field(self.magnitude[chosen], phase[chosen], te_s, 3.0, mask, self.grid, config, numbers)


def load_scan(root: Path) -> Scan:
    """Read a simulated scan with its true brain mask."""
    series = find_sessions(root)[0].megre
    images = [[nifti.load(path) for path in paths] for paths in (series.magnitude, series.phase)]
    magnitude, phase = (torch.from_numpy(np.stack([image.data for image in part])) for part in images)
    brain = nifti.load(bids.derivative_path(root / "derivatives" / "truth", "01", "mask", desc="brain"))
    mask = torch.from_numpy(brain.data > 0.5)
    return Scan(magnitude, phase, series.te_s, mask, nifti.grid_of(images[0][0]))


def simulated(make_once, name: str, te_s: tuple[float, ...], **config) -> Scan:
    """Simulate a coarse head once in a test run."""

    def write(root: Path) -> None:
        wanted = SimulateConfig(out=root, voxel_mm=5.0, megre_only=True, snr=100.0, te_gre_s=te_s, **config)
        simulate(wanted, paint_mm=4.0)

    return load_scan(make_once(f"case-{name}", write))


@pytest.fixture(scope="session")
def even(make_once) -> Scan:
    """Five evenly spaced echoes."""
    return simulated(make_once, "even", (0.005, 0.010, 0.015, 0.020, 0.025))


@pytest.fixture(scope="session")
def uneven(make_once) -> Scan:
    """Five echoes whose intervals differ by a few percent."""
    return simulated(make_once, "uneven", (0.0050, 0.0101, 0.0155, 0.0208, 0.0261))


@pytest.fixture(scope="session")
def bipolar(make_once) -> Scan:
    """Six echoes that are read in alternating directions."""
    return simulated(make_once, "bipolar", (0.004, 0.009, 0.014, 0.019, 0.024, 0.029), bipolar=True)
