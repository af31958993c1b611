"""Error of a given field and weights of solvers: the numbers of docs/decisions/0016-noise-of-given-maps.md.

python benchmarks/field_error.py LABELS.nii.gz --error 6 --crop --methods tikhonov tkd tv iterative
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from chisep import methods
from chisep.physics.dipole import Dipole
from chisep.physics.signal import se_signal
from chisep.simulation.config import SimulateConfig
from chisep.simulation.heads import first_maps
from chisep.simulation.scanner import steady_state
from chisep.solvers import closed_form, iterative, tikhonov, tkd, tv
from chisep.solvers.field_error import field_error
from chisep.solvers.noise import noise_sigma
from chisep.types import Grid, Maps

_WIDTHS = (1, 2, 4, 8, 16)
_SHARES = (4.2, 1.2, 1.3, 1.3, 1.0, 0.3)
_CROP = 52


def main() -> None:
    """Print σ of the error, true and estimated, and NRMSE of the methods with former and present weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--voxel-mm", type=float, default=2.0)
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--error", type=float, default=0.0, help="SD of the error in bands, ppb")
    parser.add_argument("--thermal", type=float, default=0.0, help="thermal noise, relative to that of --snr")
    parser.add_argument("--crop", action="store_true", help="a ball of 25 voxels")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    maps, pos, neg = _scan(options)
    mask = maps.mask
    found, before = field_error(maps), noise_sigma(maps.field_ppm, mask)
    true = Dipole(maps.grid).apply(pos - neg)
    sigma = torch.as_tensor(found.sigma_ppm).expand(mask.shape)
    print(f"σ estimated {_rms_ppb(sigma, mask):.2f} ppb, before {1000 * before:.2f}", end="; ")
    print(f"misfit of the true χ {_rms_ppb(maps.field_ppm - true, mask):.2f}")
    for name in options.methods:
        for when, (given, config) in {"before": _former(name, maps, before), "now": (maps, None)}.items():
            start = time.perf_counter()
            if methods.METHODS[name].target == "chi":
                chi = methods.invert(given, name, config).chi_ppm
                errors = [_nrmse(chi, pos - neg, mask)]
            else:
                made = methods.separate(given, name, config)
                errors = [_nrmse(made.chi_pos_ppm, pos, mask), _nrmse(made.chi_neg_ppm, neg, mask)]
            numbers = " / ".join(f"{error:.1f}" for error in errors)
            print(f"{name} {when}: {numbers} % ({time.perf_counter() - start:.0f} s)", flush=True)


def _former(name: str, maps: Maps, white_ppm: float) -> tuple[Maps, object]:
    """Weights before the decision."""
    white = replace(maps, field_sigma_ppm=max(white_ppm, 1e-7))
    if name == "iterative":
        assert maps.relaxivity is not None
        assert maps.r2prime_hz is not None
        of_rate = noise_sigma(maps.r2prime_hz, maps.mask, nonnegative=True) / maps.relaxivity.pos_hz_per_ppm
        capped = replace(maps, field_sigma_ppm=max(min(white_ppm, of_rate / 7), 1e-9))
        return capped, iterative.IterativeConfig(tv_weight=0.6)
    return {
        "tikhonov": (maps, tikhonov.TikhonovConfig(0.01)),
        "tkd": (maps, tkd.TkdConfig(0.15)),
        "closed-form": (maps, closed_form.ClosedFormConfig(0.01)),
        "tv": (white, tv.TvConfig(tv_weight=0.05)),
    }[name]


def _scan(options: argparse.Namespace) -> tuple[Maps, Tensor, Tensor]:
    """Simulate maps with the chosen error; also return χ_pos and χ_neg."""
    config = SimulateConfig(
        out=Path("unused"),
        labels=(options.labels,),
        voxel_mm=options.voxel_mm,
        snr=options.snr,
        seed=1,
        maps_only=True,
    )
    tissue, measured = first_maps(config, 0)
    steady = steady_state(tissue, config, torch.ones(tissue.grid.shape))
    echoes = se_signal(steady, tissue.r2_hz + tissue.r2prime_hz, config.te_gre_s)
    volumes = {
        "pos": tissue.chi_pos_ppm,
        "neg": tissue.chi_neg_ppm,
        "local": measured.fields.local_ppm,
        "noise": measured.local_ppm - measured.fields.local_ppm,
        "r2prime": tissue.r2prime_hz,
        "r2prime_sigma": measured.r2prime_sigma_hz,
        "magnitude": echoes.square().sum(0).sqrt(),
    }
    mask, grid = tissue.mask, tissue.grid
    if options.crop:
        centre = [int(c) for c in mask.nonzero().float().mean(0).round()]
        box = tuple(slice(c - _CROP // 2, c + _CROP // 2) for c in centre)
        place = torch.arange(_CROP) - (_CROP - 1) / 2
        inside = torch.stack(torch.meshgrid(place, place, place, indexing="ij")).norm(dim=0) < _CROP / 2 - 1
        mask, grid = mask[box] & inside, Grid((_CROP,) * 3, grid.voxel_mm, grid.b0_direction)
        volumes = {name: volume[box] * mask for name, volume in volumes.items()}
        volumes["local"] = Dipole(grid).apply(volumes["pos"] - volumes["neg"])
    volumes = {name: volume * mask for name, volume in volumes.items()}
    error = _in_bands(mask, options.error, options.seed) + options.thermal * volumes["noise"]
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    of_rate = options.thermal or float(options.error > 0)
    maps = Maps(
        field_ppm=volumes["local"] + error,
        mask=mask,
        grid=grid,
        relaxivity=tissue.relaxivity,
        r2prime_hz=(volumes["r2prime"] + of_rate * volumes["r2prime_sigma"] * noise).clamp(min=0) * mask,
        magnitude=volumes["magnitude"],
    )
    print(f"{options.labels.name}: {int(mask.sum())} voxels, error {_rms_ppb(error, mask):.2f} ppb", end=", ")
    return maps, volumes["pos"], volumes["neg"]


def _in_bands(mask: Tensor, sigma_ppb: float, seed: int) -> Tensor:
    """Gaussian error in bands, whose SD in the mask is given, shape (i, j, k)."""
    rng, margin = np.random.default_rng(seed), 16
    total = np.zeros([n + 2 * margin for n in mask.shape], np.float32)
    for share, low, high in zip(_SHARES, (0, *_WIDTHS), (*_WIDTHS, 0), strict=True):
        noise = rng.standard_normal(total.shape).astype(np.float32)
        band = gaussian_filter(noise, low, mode="wrap") if low else noise
        if high:
            band = band - gaussian_filter(noise, high, mode="wrap")
        total += share * band / band.std()
    inner = (slice(margin, -margin),) * 3
    error = torch.from_numpy(total[inner].copy()) * mask
    return error * (sigma_ppb / _rms_ppb(error, mask))


def _rms_ppb(volume: Tensor, mask: Tensor) -> float:
    return 1000 * float(volume[mask].square().mean().sqrt())


def _nrmse(made: Tensor, truth: Tensor, mask: Tensor) -> float:
    return float(100 * (made - truth)[mask].norm() / truth[mask].norm())


if __name__ == "__main__":
    main()
