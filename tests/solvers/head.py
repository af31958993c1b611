"""A small head of ellipsoids with smooth inhomogeneity, and maps of it with and without noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chisep.physics.dipole import Dipole
from chisep.physics.signal import r2prime_of_sources
from chisep.types import Grid, Maps, Relaxivity

# Centre and half axes as fractions of the volume, then χ_pos and χ_neg in ppb.
_BODIES = (
    ((0.50, 0.50, 0.50), (0.42, 0.42, 0.42), 39, 19),
    ((0.50, 0.50, 0.50), (0.33, 0.34, 0.33), 17, 30),
    ((0.41, 0.45, 0.52), (0.05, 0.16, 0.07), 3, 2),
    ((0.59, 0.45, 0.52), (0.05, 0.16, 0.07), 3, 2),
    ((0.34, 0.58, 0.47), (0.06, 0.11, 0.09), 77, 10),
    ((0.66, 0.58, 0.47), (0.06, 0.11, 0.09), 132, 13),
    ((0.50, 0.60, 0.38), (0.15, 0.06, 0.05), 16, 44),
)


@dataclass(frozen=True)
class Head:
    chi_pos_ppm: Tensor
    chi_neg_ppm: Tensor
    mask: Tensor
    grid: Grid

    @property
    def chi_ppm(self) -> Tensor:
        return self.chi_pos_ppm - self.chi_neg_ppm

    def maps(
        self,
        relaxivity: Relaxivity | None = None,
        *,
        field_noise_ppm: float = 0.0,
        r2prime_noise_ppm: float = 0.0,
        seed: int = 0,
    ) -> Maps:
        """Maps of the head; noise of R2' in ppm of R2'/D_r,pos."""
        relaxivity = relaxivity or Relaxivity(114.0, 114.0)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((2, *self.grid.shape), generator=generator).to(self.chi_ppm)
        field = Dipole(self.grid, dtype=self.chi_ppm.dtype).apply(self.chi_ppm) + field_noise_ppm * noise[0]
        r2prime = r2prime_of_sources(self.chi_pos_ppm, self.chi_neg_ppm, relaxivity)
        r2prime = r2prime + relaxivity.pos_hz_per_ppm * r2prime_noise_ppm * noise[1]
        return Maps(
            field_ppm=field * self.mask,
            mask=self.mask,
            grid=self.grid,
            relaxivity=relaxivity,
            r2prime_hz=r2prime.clamp(min=0) * self.mask,
        )


def make_head(
    shape: tuple[int, int, int] = (40, 44, 36),
    voxel_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
    b0_direction: tuple[float, float, float] = (0.0, 0.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> Head:
    axes = [(torch.arange(n, dtype=dtype) + 0.5) / n for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    pos, neg = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    for centre, half, pos_ppb, neg_ppb in _BODIES:
        c, h = (torch.tensor(v, dtype=dtype)[:, None, None, None] for v in (centre, half))
        # Edges of about a voxel, as partial volume makes them.
        share = torch.sigmoid((1 - ((place - c) / h).norm(dim=0)) * 0.1 * min(shape) * 3)
        pos, neg = pos + share * (pos_ppb / 1e3 - pos), neg + share * (neg_ppb / 1e3 - neg)
    mask = ((place - 0.5).norm(dim=0) < 0.42).contiguous()
    x, y, z = place
    pos = pos * (1 + 0.1 * torch.sin(9 * x + 5 * y)) * mask
    neg = neg * (1 + 0.1 * torch.cos(7 * y - 6 * z)) * mask
    return Head(pos, neg, mask, Grid(shape, voxel_mm, b0_direction))


def nrmse_percent(made: Tensor, truth: Tensor, mask: Tensor) -> float:
    return float(100 * (made - truth)[mask].norm() / truth[mask].norm())
