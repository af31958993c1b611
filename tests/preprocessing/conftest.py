"""A head in a few lines: ellipsoid brain, dark shell, bright scalp, an air cavity below the forehead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from chisep.physics.dipole import Dipole
from chisep.physics.signal import gre_signal, se_signal
from chisep.types import Grid


@dataclass(frozen=True)
class ToyHead:
    grid: Grid
    brain: Tensor
    local_ppm: Tensor
    total_ppm: Tensor
    r2star_hz: Tensor
    r2_hz: Tensor
    m0: Tensor
    offset_rad: Tensor
    te_s: tuple[float, ...] = (0.005, 0.011, 0.017, 0.023, 0.029)
    te_se_s: tuple[float, ...] = (0.015, 0.030, 0.045, 0.060, 0.075, 0.090)
    b0_t: float = 3.0

    def _noise(self, seed: int, snr: float) -> tuple[torch.Generator, float]:
        return torch.Generator().manual_seed(seed), float(self.m0[self.brain].mean()) / snr

    def gre(self, snr: float = 100.0, seed: int = 0) -> Tensor:
        clean = gre_signal(self.m0, self.r2star_hz, self.total_ppm, self.te_s, self.b0_t, self.offset_rad)
        rng, sigma = self._noise(seed, snr)
        return clean + 2**0.5 * sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)

    def se(self, snr: float = 100.0, seed: int = 1) -> Tensor:
        clean = se_signal(self.m0, self.r2_hz, self.te_se_s).to(torch.complex64)
        rng, sigma = self._noise(seed, snr)
        return (clean + 2**0.5 * sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)).abs()


def make_toy_head(voxel_mm: tuple[float, float, float] = (2.0, 2.0, 2.0), seed: int = 3) -> ToyHead:
    shape = tuple(round(mm / v) for mm, v in zip((176, 208, 176), voxel_mm, strict=True))
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(
        *[(np.arange(n) - n / 2) * v for n, v in zip(shape, voxel_mm, strict=True)], indexing="ij"
    )

    def share(cx: float, cy: float, cz: float, ax: float, ay: float, az: float) -> np.ndarray:
        """Part of each voxel inside an ellipsoid, so that surfaces are not stairs."""
        radius = np.sqrt(((x - cx) / ax) ** 2 + ((y - cy) / ay) ** 2 + ((z - cz) / az) ** 2)
        return np.clip((1 - radius) * min(ax, ay, az) / max(voxel_mm) + 0.5, 0, 1)

    def ball(*ellipsoid: float) -> np.ndarray:
        return share(*ellipsoid) >= 0.5

    air = share(0, 74, -52, 14, 12, 10)
    brain_share = share(0, 0, 0, 64, 78, 60)
    bone = (share(0, 0, 0, 72, 86, 68) - share(0, 0, 0, 66, 80, 62)) * (1 - air)
    outer_air = np.maximum(1 - share(0, 0, 0, 79, 93, 75), air)
    near_air = ball(0, 74, -52, 18, 16, 14)
    brain = (brain_share >= 0.5) & ~near_air
    scalp = ball(0, 0, 0, 79, 93, 75) & ~ball(0, 0, 0, 72, 86, 68) & (air < 0.5)
    skull = ball(0, 0, 0, 72, 86, 68) & ~brain & (air < 0.5)

    def texture(scale_mm: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), [scale_mm / v for v in voxel_mm])
        return noise / noise.std()

    fine, coarse = texture(2.5), texture(8)
    white = coarse > 0.2
    pos = np.where(white, 0.015, 0.035) + 0.010 * np.abs(fine)
    neg = np.where(white, 0.030, 0.018) + 0.006 * np.abs(texture(2.5))
    nuclei = np.zeros(shape, dtype=bool)
    for side in (-1, 1):
        for cx, cy, cz, a, chi in (
            (18, 5, 2, 6, 0.13),
            (25, 12, 4, 9, 0.075),
            (10, 20, 8, 6, 0.05),
            (6, -14, -18, 5, 0.115),
        ):
            here = ball(side * cx, cy, cz, a, 1.4 * a, a)
            pos[here] += chi - 0.03
            nuclei |= here
    csf = ball(0, 0, 12, 12, 26, 8)
    pos[csf], neg[csf] = 0.0, 0.0
    veins = (np.abs(fine) > 3.3) & ~csf
    pos[veins] = 0.19
    # A brain of mean 0: a uniform part makes a field that is harmonic inside, and so counts as background.
    neg *= pos[brain].mean() / neg[brain].mean()
    pos, neg = pos * brain, neg * brain
    outside = 9.4 * outer_air - 2.0 * bone
    grid = Grid(shape, voxel_mm)
    tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).float()  # noqa: E731
    inside = tensor(brain).bool()
    dipole = Dipole(grid)
    local = dipole.apply(tensor(pos - neg))
    background = Dipole(grid, dtype=torch.float64).apply(tensor(outside).double() - 9.4).float()
    background -= background[inside].mean()
    linear = torch.stack([tensor(a).masked_select(inside) for a in (np.ones(shape), x, y, z)], 1)
    shim = torch.linalg.lstsq(linear, background[inside][:, None]).solution[:, 0]
    background -= sum(c * tensor(a) for c, a in zip(shim, (np.ones(shape), x, y, z), strict=True))
    r2prime = 114 * (pos + neg)
    r2 = np.where(white, 14.0, 12.0) + 60 * pos
    r2[csf] = 0.8
    r2[~brain] = 15
    coil = 0.6 + 0.8 * ((x / 90) ** 2 + ((y - 10) / 100) ** 2 + (z / 90) ** 2) / 1.5
    m0 = np.where(white, 0.85, 1.0)
    m0[csf] = 0.6
    m0 = (m0 * brain + 0.06 * skull + 1.6 * scalp) * coil
    offset = 0.8 + 1.2 * np.sin(x / 60) + 1.5 * (y / 80) ** 2 - 0.9 * z / 60
    return ToyHead(
        grid, inside, local, local + background, tensor(r2 + r2prime), tensor(r2), tensor(m0), tensor(offset)
    )


@pytest.fixture(scope="session")
def head() -> ToyHead:
    return make_toy_head()
