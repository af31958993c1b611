"""Zero of χ in cerebrospinal fluid (CSF), for what fields of any head orientation leave open.

Fields whose background was removed do not determine χ = a + b·x + c|x|²: its field is harmonic in the brain
for every direction of B0. CSF has one χ wherever it is, in the ventricles and around the brain, and is found
by its small R2* (MEDI+0 uses the ventricles so: Liu 2018, 10.1002/mrm.26946).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chisep.physics.robust import MAD_TO_SD
from chisep.solvers._common import check
from chisep.types import Grid, MaskVolume, Volume

_LEAST_ML = 1.0
_ILL_CONDITIONED = 30.0
_REWEIGHTINGS = 10


@dataclass(frozen=True)
class CsfConfig:
    """Settings of the zero of χ in CSF."""

    order: int = 2
    """What CSF determines: 2 a constant, a slope along each axis and a multiple of |x|²; 0 a constant;
    −1 nothing."""
    max_r2star_hz: float = 4.0
    """Largest R2* of CSF in 1/s. With 5, voxels that are brain in part come in."""

    def __post_init__(self) -> None:
        check("order", self.order, low=-2, high=2)
        check("max_r2star_hz", self.max_r2star_hz, low=0.0)


@dataclass(frozen=True, eq=False)
class CsfReference:
    """χ relative to CSF.

    Parameters
    ----------
    chi_ppm
        χ in ppm, 0 outside the support, shape (i, j, k).
    csf
        Voxels of CSF that were found, shape (i, j, k).
    order
        2 or 0, as of `CsfConfig`; −1 if nothing was subtracted.
    removed_ppm
        What was subtracted, 0 outside the support, shape (i, j, k).
    warnings
        Why less was determined than was asked for.
    """

    chi_ppm: Volume
    csf: MaskVolume
    order: int
    removed_ppm: Volume
    warnings: tuple[str, ...] = ()


def relative_to_csf(
    chi_ppm: Volume,
    r2star_hz: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: CsfConfig,
    *,
    support: MaskVolume,
) -> CsfReference:
    """Subtract from χ the polynomial a + b·x + c|x|² that χ has in CSF (zero reference in CSF).

    Parameters
    ----------
    chi_ppm
        χ in ppm, shape (i, j, k).
    r2star_hz
        R2* in 1/s, 0 where it is not known, shape (i, j, k).
    mask
        Where χ is known well, shape (i, j, k).
    grid
        Voxel size.
    config
        Settings.
    support
        Where the polynomial is subtracted, shape (i, j, k).

    Returns
    -------
    CsfReference
        χ relative to CSF. With less than 1 ml of CSF nothing is subtracted; where CSF lies in one place, a
        constant.

    Notes
    -----
    Least squares over the voxels of CSF, reweighted (Cauchy), since veins and brain in part are among them.
    """
    csf = mask & (r2star_hz > 0) & (r2star_hz < config.max_r2star_hz)
    ml = float(csf.sum()) * math.prod(grid.voxel_mm) / 1000
    order, warnings = config.order, list[str]()
    if order >= 0 and ml < _LEAST_ML:
        order = -1
        warnings.append(
            f"{ml:.2g} ml of CSF (R2* below {config.max_r2star_hz:g} 1/s), expected {_LEAST_ML:g} or more: "
            "the zero of χ is not set"
        )
    removed = torch.zeros_like(chi_ppm)
    if order < 0:
        return CsfReference(chi_ppm, csf, order, removed, tuple(warnings))
    terms = _terms(support, grid)
    in_csf = terms[csf[support]]
    if order > 0 and float(torch.linalg.cond(in_csf)) > _ILL_CONDITIONED:
        order = 0
        warnings.append("CSF was found in one part of the brain only: it sets the zero of χ, no slow change")
    columns = terms.shape[1] if order else 1
    factors = _robust_fit(in_csf[:, :columns], chi_ppm[csf].double())
    removed[support] = (terms[:, :columns] @ factors).to(chi_ppm)
    return CsfReference((chi_ppm - removed) * support, csf, order, removed, tuple(warnings))


def _terms(support: MaskVolume, grid: Grid) -> Tensor:
    """1, x, y, z and |x|² at the voxels of the support, shape (voxel, 5), each of an RMS of 1 there."""
    position = support.nonzero().double() * torch.tensor(
        grid.voxel_mm, dtype=torch.float64, device=support.device
    )
    position -= position.mean(0)
    position /= position.square().mean(0).sqrt().max().clamp_min(1.0)
    square = position.square().sum(1, keepdim=True)
    square = (square - square.mean()) / square.std().clamp_min(1e-6)
    return torch.cat((torch.ones_like(square), position, square), dim=1)


def _robust_fit(terms: Tensor, values: Tensor) -> Tensor:
    """Least squares with Cauchy weights, whose scale is the median residual."""
    weight = torch.ones_like(values)
    factors = torch.zeros(terms.shape[1], dtype=terms.dtype, device=terms.device)
    for _ in range(_REWEIGHTINGS):
        factors = torch.linalg.lstsq(terms * weight[:, None], (values * weight)[:, None]).solution[:, 0]
        residual = (values - terms @ factors).abs()
        scale = MAD_TO_SD * float(residual.median())
        if scale == 0:
            break
        weight = (1 + (residual / scale).square()).rsqrt()
    return factors
