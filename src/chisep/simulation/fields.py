"""Magnetic field of a digital phantom, and dephasing by its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import pad

from chisep.physics.dipole import Dipole
from chisep.physics.signal import hz_per_ppm
from chisep.simulation.motion import Point, brain_centre_mm, rotation
from chisep.simulation.tensor_field import across_b0, tensor_field
from chisep.simulation.tissue import Tissue
from chisep.simulation.tissue_properties import AIR_PPM
from chisep.types import Grid, MaskVolume, Volume

IMPLANT_PPM = 191.0
"""χ of titanium relative to tissue (Schenck 1996, 10.1118/1.597854)."""
IMPLANT_RADIUS_MM = 3.3
"""Radius of the sphere that has the volume of a tooth's implant, 4 mm wide and 12 mm long."""

Points = Float[np.ndarray, "n 3"]
"""World coordinates in mm."""

_RESIDUE_SMOOTH_MM = 5.0
_NECK_MM = 80.0
_CUT_FRACTION = 0.2
_SHIM_UNIT_MM = 100.0


@dataclass(frozen=True, eq=False)
class Fields:
    """Field in ppm of the sources in the brain mask, and of all else after shimming; shapes (i, j, k)."""

    local_ppm: Volume
    background_ppm: Volume

    @property
    def total_ppm(self) -> Volume:
        """Total field after shimming."""
        return self.local_ppm + self.background_ppm


def total_field(tissue: Tissue, implants_mm: Points | None = None) -> Fields:
    """Field of a head in air.

    Parameters
    ----------
    tissue
        Sources in the brain and χ outside of it.
    implants_mm
        World coordinates of dental implants; they may lie beyond the volume.

    Returns
    -------
    Fields
        Local field, and background field less what shims of second order take off in the brain.

    Notes
    -----
    Beyond the volume is air. Where the volume cuts through tissue (the neck), its last slice is continued
    first, else the cut would look like a surface in air.
    """
    # Relative to air, what surrounds the volume is 0, as the zero-padding of the convolution assumes.
    chi = tissue.chi_outside_ppm - AIR_PPM
    before, after = _cut_faces(tissue)
    widths = [width for pair in zip(before[::-1], after[::-1], strict=True) for width in pair]
    chi = pad(chi[None, None], widths, mode="replicate")[0, 0]
    dipole = Dipole(tissue.grid.reshaped(chi.shape), points=True)
    i, j, k = (slice(b, b + n) for b, n in zip(before, tissue.grid.shape, strict=True))
    background = dipole.apply(chi)[i, j, k].contiguous()
    del dipole
    for place_mm in () if implants_mm is None else implants_mm:
        background += _sphere_field(tissue, place_mm)
    return Fields(local_field(tissue), background - _shim(background, tissue.mask, tissue.grid))


def local_field(tissue: Tissue) -> Volume:
    """Local field in ppm: of the isotropic sources, of their anisotropy, and the shift by microstructure.

    Parameters
    ----------
    tissue
        Sources in the brain.
    """
    local = Dipole(tissue.grid).apply(tissue.chi_pos_ppm - tissue.chi_neg_ppm).contiguous()
    if tissue.anisotropy_ppm is not None:
        local += tensor_field(tissue.anisotropy_ppm, tissue.grid)
    if tissue.microstructure_ppm is not None:
        local -= across_b0(tissue.microstructure_ppm, tissue.grid)
    return local


def residual_background(tissue: Tissue, sd_ppb: float, rng: np.random.Generator) -> Volume:
    """Residual background field in ppm: of random sources just outside the brain.

    Parameters
    ----------
    tissue
        Whose brain it is for.
    sd_ppb
        Standard deviation in the brain.
    rng
        Draws the sources.

    Returns
    -------
    Volume
        Harmonic in the brain, largest near its surface, 0 outside of it.
    """
    field = torch.zeros(tissue.grid.shape)
    if not sd_ppb:
        return field
    noise = rng.standard_normal(tissue.grid.shape, dtype=np.float32)
    smooth = [_RESIDUE_SMOOTH_MM / edge for edge in tissue.grid.voxel_mm]
    sources = torch.from_numpy(ndimage.gaussian_filter(noise, smooth)) * ~tissue.mask
    field = Dipole(tissue.grid).apply(sources) * tissue.mask
    return field * (1e-3 * sd_ppb / float(field[tissue.mask].std()))


def dental_implants(
    tissue: Tissue, count: int, rng: np.random.Generator, tilt_deg: Sequence[float] = (0.0, 0.0, 0.0)
) -> Points:
    """Place implants at random along the dental arches.

    Parameters
    ----------
    tissue
        Its brain mask determines the position of the dental arches of an average head.
    count
        Number of implants.
    rng
        Draws the positions.
    tilt_deg
        Rotation of the head in the scanner.
    """
    along, jaw = rng.uniform(-math.pi / 2, math.pi / 2, count), rng.choice([-70.0, -80.0], count)
    arch = np.stack([25 * np.sin(along), 50 + 36 * np.cos(along), jaw], axis=1)
    return np.asarray(arch @ rotation(tilt_deg).T + brain_centre_mm(tissue))


def dephasing(field_ppm: Volume, te_s: float, b0_t: float) -> Volume:
    """Attenuation of a gradient echo by a linear field gradient across each voxel.

    Parameters
    ----------
    field_ppm
        Total field in ppm.
    te_s
        Echo time in seconds.
    b0_t
        Field strength in tesla.

    Returns
    -------
    Volume
        Π sin(πg)/(πg) over the three axes, g the 2π wraps of phase across the voxel (Fernandez-Seara and
        Wehrli 2000, Magnetic Resonance in Medicine 44:358).
    """
    left = torch.ones_like(field_ppm)
    for axis in range(field_ppm.ndim):
        if field_ppm.shape[axis] > 1:
            (gradient,) = torch.gradient(field_ppm, dim=axis)
            left *= torch.sinc(gradient * (hz_per_ppm(b0_t) * te_s))
    return left


def _sphere_field(tissue: Tissue, centre_mm: Point) -> Volume:
    """Field in ppm of an implant: a dipole beyond its surface, 0 within."""
    affine = tissue.grid.matrix()
    b0 = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) @ np.asarray(tissue.grid.b0_direction)
    along: Tensor = torch.zeros(1)
    square: Tensor = torch.zeros(1)
    for row, centre, direction in zip(affine[:3], centre_mm, b0, strict=True):
        coordinate: Tensor = torch.full((1, 1, 1), float(row[3] - centre))
        for axis, n in enumerate(tissue.grid.shape):
            line = torch.arange(n) * float(row[axis])
            coordinate = coordinate + line.reshape([-1 if a == axis else 1 for a in range(3)])
        along = along + coordinate * float(direction)
        square = square + coordinate**2
    inside = square < IMPLANT_RADIUS_MM**2
    square = square.clamp_min(IMPLANT_RADIUS_MM**2)
    field = IMPLANT_PPM / 3 * (IMPLANT_RADIUS_MM**2 / square) ** 1.5 * (3 * along**2 / square - 1)
    return field.masked_fill_(inside, 0.0)


def _cut_faces(tissue: Tissue) -> tuple[list[int], list[int]]:
    """Voxels by which to continue the head at each face of the volume that cuts through it."""
    tissue_here = tissue.chi_outside_ppm < AIR_PPM / 2
    before, after = [], []
    for axis, edge in enumerate(tissue.grid.voxel_mm):
        width = math.ceil(_NECK_MM / edge)
        first, last = (tissue_here.select(axis, face).float().mean() > _CUT_FRACTION for face in (0, -1))
        before.append(width if first else 0)
        after.append(width if last else 0)
    return before, after


def _harmonics(grid: Grid) -> Iterator[Tensor]:
    """Yield the fields of shim coils: solid harmonics up to second order, broadcastable to the grid.

    Only harmonic fields arise from outside of the head; any other would be a field that no background
    removal could take off.
    """
    x, y, z = (
        ((torch.arange(n) - (n - 1) / 2) * edge / _SHIM_UNIT_MM).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        for axis, (n, edge) in enumerate(zip(grid.shape, grid.voxel_mm, strict=True))
    )
    yield from (torch.ones(1, 1, 1), x, y, z, x * y, y * z, x * z, x * x - y * y, 2 * z * z - x * x - y * y)


def _shim(field_ppm: Volume, mask: MaskVolume, grid: Grid) -> Volume:
    """Least-squares fit of shim fields to a field in the mask."""
    columns = torch.stack([term.expand(grid.shape)[mask] for term in _harmonics(grid)]).double()
    right = columns @ field_ppm[mask].double()
    weights = torch.linalg.lstsq(columns @ columns.T, right).solution
    fitted = torch.zeros_like(field_ppm)
    for weight, term in zip(weights.tolist(), _harmonics(grid), strict=True):
        fitted += weight * term
    return fitted
