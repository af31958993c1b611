"""Shared types: grids, input maps and separated sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from chisep.errors import InputError

Volume = Float[Tensor, "i j k"]
"""One real map on a grid, NIfTI axis order."""
MaskVolume = Bool[Tensor, "i j k"]
"""True inside the brain."""
Echoes = Float[Tensor, "echo i j k"]
"""One real volume per echo, echoes in order of their echo time."""
ComplexEchoes = Complex[Tensor, "echo i j k"]
"""One complex volume per echo."""
Affine = Float[np.ndarray, "4 4"]
"""NIfTI affine: voxel index to scanner millimetres (RAS+)."""

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid and B0 direction.

    Parameters
    ----------
    shape
        Number of voxels along each voxel axis.
    voxel_mm
        Edge lengths of a voxel in mm.
    b0_direction
        Unit vector along B0 in voxel axes.
    affine
        Voxel index to scanner mm, shape (4, 4); None means axis-aligned with the origin at voxel 0.

    Raises
    ------
    InputError
        If a voxel edge is not positive, or the B0 direction has no length.
    """

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    b0_direction: tuple[float, float, float] = (0.0, 0.0, 1.0)
    affine: Affine | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(
                "grid",
                found=f"shape {self.shape}",
                expected="three positive sizes",
                fix="Give a 3-D volume.",
            )
        if len(self.voxel_mm) != 3 or not all(math.isfinite(v) and v > 0 for v in self.voxel_mm):
            raise InputError(
                "grid",
                found=f"voxel size {self.voxel_mm} mm",
                expected="three positive sizes",
                fix="Correct the voxel size in the image header.",
            )
        length = math.hypot(*self.b0_direction)
        if not math.isfinite(length) or length < _UNIT_TOLERANCE:
            raise InputError(
                "B0 direction",
                found=f"{self.b0_direction}",
                expected="a vector with a length",
                fix="Give three numbers in voxel axes, for example 0 0 1.",
            )
        object.__setattr__(self, "b0_direction", tuple(float(b) / length for b in self.b0_direction))

    def matrix(self) -> Affine:
        """Affine of the grid, shape (4, 4); from the voxel size if none was given."""
        return np.diag([*self.voxel_mm, 1.0]) if self.affine is None else self.affine

    def reshaped(self, shape: Sequence[int]) -> Grid:
        """Return a grid with the same voxel size and B0 direction with another number of voxels."""
        i, j, k = shape
        return replace(self, shape=(int(i), int(j), int(k)))


@dataclass(frozen=True)
class Relaxivity:
    """Relaxivity D_r of both sources: R2' per susceptibility, in 1/s per ppm.

    Parameters
    ----------
    pos_hz_per_ppm
        D_r of paramagnetic sources.
    neg_hz_per_ppm
        D_r of diamagnetic sources (per ppm of magnitude).

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    pos_hz_per_ppm: float
    neg_hz_per_ppm: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(d) and d > 0 for d in (self.pos_hz_per_ppm, self.neg_hz_per_ppm)):
            raise InputError(
                "D_r",
                found=f"{self.pos_hz_per_ppm}, {self.neg_hz_per_ppm}",
                expected="positive numbers in 1/s/ppm",
                fix="Typical is 114 at 3 T; it scales with B0.",
            )

    @property
    def ratio(self) -> float:
        """D_r,neg / D_r,pos."""
        return self.neg_hz_per_ppm / self.pos_hz_per_ppm


@dataclass(frozen=True, eq=False)
class Maps:
    """Input maps of a separation or dipole inversion: one subject, one grid.

    Parameters
    ----------
    field_ppm
        Local field, shape (i, j, k).
    mask
        True where the field is known, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    relaxivity
        D_r of both sources at the field strength of the scan; required by every method that reads R2'.
    r2prime_hz, r2star_hz
        R2' and R2* in 1/s, shape (i, j, k).
    chi_ppm
        Susceptibility map (QSM), shape (i, j, k).
    magnitude
        Image with anatomical edges, arbitrary scale, shape (i, j, k).
    field_sigma_ppm, r2prime_sigma_hz
        Standard deviation of the noise: one number, or a map, 0 where nothing was measured; estimated from
        the field or R2' if None.
    support
        Where sources may be and R2' is known, at least `mask`, shape (i, j, k); `mask` if None. Background
        removal loses the field in a rim of the brain, but sources of the rim act on the field inside.
    b0_t
        Field strength, if known.
    """

    field_ppm: Volume
    mask: MaskVolume
    grid: Grid
    relaxivity: Relaxivity | None = None
    r2prime_hz: Volume | None = None
    chi_ppm: Volume | None = None
    magnitude: Volume | None = None
    field_sigma_ppm: Volume | float | None = None
    r2prime_sigma_hz: Volume | float | None = None
    support: MaskVolume | None = None
    r2star_hz: Volume | None = None
    b0_t: float | None = None

    @property
    def sources_mask(self) -> MaskVolume:
        """Where sources may be."""
        return self.mask if self.support is None else self.support | self.mask

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Maps:
        """Return the same maps on another device and in another precision."""
        moved: dict[str, Any] = {
            name: value.to(device, None if value.dtype == torch.bool else dtype)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Convergence:
    """Convergence of an iterative solver, and warnings of any method.

    Parameters
    ----------
    iterations
        Number of iterations; 0 for a closed form.
    converged
        Whether the relative change fell below the tolerance.
    change
        Relative change of the solution at every iteration.
    warnings
        Warnings for the user: no convergence, or a scan outside the range of a network's training.
    chosen
        Settings that the method chose by the error of the field, since they were not given.
    """

    iterations: int = 0
    converged: bool = True
    change: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    chosen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Susceptibility:
    """Susceptibility map χ in ppm, shape (i, j, k), 0 outside the mask, and its convergence.

    `chi_sigma_ppm` is its predicted uncertainty (standard deviation), for methods that predict it.
    """

    chi_ppm: Volume
    convergence: Convergence = field(default_factory=Convergence)
    chi_sigma_ppm: Volume | None = None


@dataclass(frozen=True, eq=False)
class Sources:
    """χ_pos and χ_neg in ppm, both ≥ 0, shape (i, j, k), 0 outside the mask; χ = χ_pos − χ_neg.

    The `sigma` maps are their predicted uncertainty and that of χ (standard deviations), for methods that
    predict it.
    """

    chi_pos_ppm: Volume
    chi_neg_ppm: Volume
    convergence: Convergence = field(default_factory=Convergence)
    chi_pos_sigma_ppm: Volume | None = None
    chi_neg_sigma_ppm: Volume | None = None
    chi_sigma_ppm: Volume | None = None

    @property
    def chi_ppm(self) -> Volume:
        """Total susceptibility χ_pos − χ_neg in ppm."""
        return self.chi_pos_ppm - self.chi_neg_ppm


def required(volume: Volume | None, name: str) -> Volume:
    """Return a map that a solver requires.

    Raises
    ------
    InputError
        If it is None.
    """
    if volume is None:
        raise InputError(
            name,
            found="no such map",
            expected=f"a {name} map on the grid of the field",
            fix="Give the map, or choose a method that does not need it.",
        )
    return volume


def required_relaxivity(relaxivity: Relaxivity | None) -> Relaxivity:
    """Return the D_r that every method reading R2' needs.

    Raises
    ------
    InputError
        If it is None.
    """
    if relaxivity is None:
        raise InputError(
            "D_r",
            found="no relaxivity",
            expected="D_r of both sources in 1/s/ppm",
            fix="Give D_r (114 at 3 T, growing with B0).",
        )
    return relaxivity
