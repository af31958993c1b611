"""Removal of the field made by sources outside the brain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.errors import InputError
from chisep.types import Grid, MaskVolume, Volume


@dataclass(frozen=True)
class VsharpConfig:
    """Radii and regularisation of V-SHARP."""

    max_radius_mm: float = 12.0
    """Radius of the largest sphere, used deep inside the brain."""
    min_radius_mm: float | None = None
    """Radius of the smallest sphere, used at the edge, and the depth of the rim that is lost; by default
    the longest voxel edge."""
    threshold: float = 0.05
    """Spatial frequencies that the largest sphere passes by less than this are left out."""

    def __post_init__(self) -> None:
        smallest = self.max_radius_mm if self.min_radius_mm is None else self.min_radius_mm
        if not (math.isfinite(self.max_radius_mm) and 0 < smallest <= self.max_radius_mm):
            raise InputError(
                "V-SHARP radii",
                found=f"{self.min_radius_mm} to {self.max_radius_mm} mm",
                wanted="0 < smallest ≤ largest",
                remedy="Usual is one voxel to 12 mm.",
            )
        if not 0 < self.threshold < 1:
            raise InputError(
                "V-SHARP threshold",
                found=f"{self.threshold}",
                wanted="between 0 and 1",
                remedy="Usual is 0.05.",
            )


@dataclass(frozen=True, eq=False)
class LocalField:
    """Field of the sources inside the brain.

    Parameters
    ----------
    local_field_ppm
        Shape (i, j, k), 0 outside `mask`.
    mask
        Where the local field is known: the brain mask less a rim, shape (i, j, k).
    """

    local_field_ppm: Volume
    mask: MaskVolume


def vsharp(
    total_field_ppm: Volume, mask: MaskVolume, grid: Grid, config: VsharpConfig | None = None
) -> LocalField:
    """Remove the background field by the spherical mean value property, with spheres of varying radius.

    The field of outside sources is harmonic in the brain, so it equals its mean over any sphere that
    fits in: what a voxel has beyond that mean comes from inside. Each voxel uses the largest sphere that
    fits; the filter is undone by truncated deconvolution with the largest sphere (Wu 2012,
    10.1002/mrm.23000; Schweser 2011, 10.1016/j.neuroimage.2010.10.070).

    Parameters
    ----------
    total_field_ppm
        Shape (i, j, k).
    mask
        Where it is known, shape (i, j, k).
    grid
        Voxel size.
    config
        Options; defaults where None.

    Returns
    -------
    LocalField
        Local field in ppm and the mask it is known in.

    Raises
    ------
    InputError
        If the smallest sphere fits nowhere in the mask.
    """
    config = config or VsharpConfig()
    edge = max(grid.voxel_mm)
    smallest = min(config.max_radius_mm, edge) if config.min_radius_mm is None else config.min_radius_mm
    depth = _depth_mm(mask, grid).to(total_field_ppm.device, total_field_ppm.dtype)
    known = depth > smallest
    if not bool(known.any()):
        raise InputError(
            "brain mask",
            found=f"no voxel deeper inside than {smallest:g} mm",
            wanted="a mask in which the smallest V-SHARP sphere fits",
            remedy="Check the mask, or choose a smaller radius.",
        )
    # A little border keeps the periodic deconvolution from wrapping around.
    border = [math.ceil(config.max_radius_mm / v) for v in grid.voxel_mm]
    shape = tuple(
        next_fast_len(n + b, real=a == 2) for a, (n, b) in enumerate(zip(mask.shape, border, strict=True))
    )
    # The filter removes constants anyway; without a large one less precision is lost.
    field = torch.where(mask, total_field_ppm - total_field_ppm[mask].mean(), 0)
    spectrum = torch.fft.rfftn(field, s=shape)

    deepest = float(depth[known].max())
    radii = [r for r in _radii_mm(smallest, config.max_radius_mm, edge) if r < deepest]
    filtered = torch.zeros_like(field)
    for radius in radii:
        kernel = 1 - _sphere_spectrum(radius, shape, grid, like=field)
        here = depth > radius
        filtered[here] = _cropped(spectrum * kernel, shape, mask.shape)[here]
    passed = kernel.abs() > config.threshold
    inverse = torch.where(passed, 1 / torch.where(passed, kernel, 1), 0)
    local = _cropped(torch.fft.rfftn(filtered, s=shape) * inverse, shape, mask.shape)
    return LocalField(torch.where(known, local, 0), known)


def _radii_mm(smallest: float, largest: float, step: float) -> list[float]:
    """Radii from the smallest to the largest, about `step` apart."""
    count = max(1, round((largest - smallest) / step)) + 1 if largest > smallest else 1
    return [float(r) for r in np.linspace(smallest, largest, count)]


def _depth_mm(mask: Tensor, grid: Grid) -> Tensor:
    """Distance to the nearest voxel where the field is unknown, beyond the edge of the volume included."""
    padded = np.pad(mask.cpu().numpy(), 1)
    depth = ndimage.distance_transform_edt(padded, sampling=grid.voxel_mm)
    return torch.from_numpy(depth[1:-1, 1:-1, 1:-1])


def _sphere_spectrum(radius_mm: float, shape: tuple[int, ...], grid: Grid, like: Tensor) -> Tensor:
    """Half spectrum of a sphere of sum 1 around voxel 0, real because the sphere is even."""
    square = torch.zeros((), dtype=like.dtype, device=like.device)
    for axis, (n, edge) in enumerate(zip(shape, grid.voxel_mm, strict=True)):
        position = torch.fft.fftfreq(n, d=1 / (n * edge), device=like.device, dtype=like.dtype)
        square = square + position.reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
    sphere = (square <= radius_mm**2 * (1 + 1e-6)).to(like.dtype)
    spectrum: Tensor = torch.fft.rfftn(sphere / sphere.sum())
    return spectrum.real


def _cropped(spectrum: Tensor, shape: tuple[int, ...], wanted: torch.Size) -> Tensor:
    i, j, k = wanted
    volume: Tensor = torch.fft.irfftn(spectrum, s=shape)
    return volume[:i, :j, :k]
