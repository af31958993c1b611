"""EPG dictionary matching of spin-echo trains: a dictionary over R2 and B1, and a smooth B1 map.

Refocusing pulses that are not 180° everywhere make stimulated echoes, which decay with T1 part of the time:
an exponential fit then underestimates R2. Extended phase graphs (EPG) include stimulated echoes (Lebel and
Wilman 2010, 10.1002/mrm.22487; Ben-Eliezer 2015, 10.1002/mrm.25156).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from chisep.physics.epg import SliceProfile, mese_signal
from chisep.types import MaskVolume, Volume

Trains = Float[Tensor, "echo voxel"]
"""Echoes of the voxels of a mask."""
Values = Float[Tensor, "voxel"]
"""One value for each of these voxels."""
DecayModel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Indices of some of the voxels, and their rates → echoes at an amplitude of 1 and their derivatives by the
rate, both (echo, voxel)."""

LEAST_R2_HZ, MOST_R2_HZ = 0.2, 200.0
LEAST_B1, MOST_B1 = 0.3, 1.7
_RATES = 128
_B1_STEPS = 141
# Every n-th entry in the search for B1.
_COARSE_RATES, _COARSE_B1 = 4, 5
_MOST_VOXELS = 400_000
_BLOCK_MM = 4.0
_CHUNK = 1 << 14
_LEAST_MISFIT = 1e-8
_START_FWHM_MM = 16.0
_SWEEPS = 4
_B1_ROUGHNESS = 0.05
_PULL = 1e-2
_LEAST_TERM = 1e-2
_NEWTON_STEPS = 40
_GAIN_TOLERANCE = 1e-2
_FWHM = 2 * math.sqrt(2 * math.log(2))


class EpgTable:
    """Dictionary of echo trains over R2 and B1, relative to an ideal decay, for linear interpolation.

    Parameters
    ----------
    te_s
        Echo times in s: TE, 2 TE, 3 TE, …
    like
        Tensor whose device and precision the table has.
    excitation_deg, refocusing_deg
        Nominal flip angles in degrees.
    profile
        Flip angles across the slice; None for ideal pulses.
    t1_s
        T1 of all tissue in s; stimulated echoes hardly depend on it.

    Raises
    ------
    InputError
        If the echo times are not evenly spaced from 0.
    """

    def __init__(
        self,
        te_s: Sequence[float],
        like: Tensor,
        *,
        excitation_deg: float,
        refocusing_deg: float,
        profile: SliceProfile | None,
        t1_s: float,
    ) -> None:
        span = math.log(LEAST_R2_HZ), math.log(MOST_R2_HZ)
        log_rate = torch.linspace(*span, _RATES, dtype=torch.float64, device=like.device)
        b1 = torch.linspace(LEAST_B1, MOST_B1, _B1_STEPS, dtype=torch.float64, device=like.device)
        te = torch.tensor(list(te_s), dtype=torch.float64, device=like.device)
        rate = torch.exp(log_rate)[:, None]
        trains = mese_signal(
            rate,
            torch.full_like(rate, 1 / t1_s),
            b1[None],
            te_s,
            excitation_deg=excitation_deg,
            refocusing_deg=refocusing_deg,
            profile=profile,
        ).abs()
        self.te = te.to(like.dtype)
        self.b1 = b1.to(like.dtype)
        self._first, self._step = span[0], float(log_rate[1] - log_rate[0])
        self._trains = trains.to(like.dtype)
        gain = trains * torch.exp(te[:, None, None] * rate)
        # One row of echoes for each pair of R2 and B1, B1 fastest: a look-up reads whole rows.
        self._gain = gain.to(like.dtype).permute(1, 2, 0).reshape(-1, len(te)).contiguous()

    def model(self, b1: Values) -> DecayModel:
        """Return the decay model of voxels with known B1."""
        place = ((b1 - LEAST_B1) / (MOST_B1 - LEAST_B1) * (_B1_STEPS - 1)).clamp(0, _B1_STEPS - 1)
        low_b1 = place.floor().clamp_max(_B1_STEPS - 2)
        share_b1 = (place - low_b1)[:, None]
        low_b1 = low_b1.long()

        def decay(voxels: Tensor, rate_hz: Tensor) -> tuple[Tensor, Tensor]:
            bounded = rate_hz.clamp(LEAST_R2_HZ, MOST_R2_HZ)
            place = (torch.log(bounded) - self._first) / self._step
            low = place.floor().clamp(0, _RATES - 2)
            share = (place - low)[:, None]
            row = low.long().mul_(_B1_STEPS).add_(low_b1.index_select(0, voxels))
            right = share_b1.index_select(0, voxels)
            corners = [self._gain.index_select(0, row + n) for n in (0, 1, _B1_STEPS, _B1_STEPS + 1)]
            below = torch.lerp(corners[0], corners[1], right)
            above = torch.lerp(corners[2], corners[3], right)
            gain = torch.lerp(below, above, share)
            inside = (bounded == rate_hz)[:, None]
            gain_slope = torch.where(inside, (above - below) / (self._step * bounded)[:, None], 0)
            ideal = torch.exp(-rate_hz[:, None] * self.te)
            return (ideal * gain).T, (ideal * (gain_slope - self.te * gain)).T

        return decay

    def misfit(self, trains: Trains) -> tuple[Tensor, Tensor]:
        """Residual fraction of each train's energy after the best R2, at every B1 of a coarse grid.

        The amplitude of a train is free, so the best R2 has the largest inner product with a normalised
        entry. The derivative of that entry is projected out as well, which reaches R2 between entries: the
        misfits that depend on B1 are small, and discrete steps of R2 would hide them.

        Parameters
        ----------
        trains
            Echoes without their noise floor.

        Returns
        -------
        tuple of Tensor
            The grid of B1, and the unexplained part of Σ|y|², shape (B1, voxel).
        """
        tiny = torch.finfo(trains.dtype).tiny
        shown = self._trains[:, :, ::_COARSE_B1]
        (slopes,) = torch.gradient(shown, dim=1)
        entries = functional.normalize(shown[:, ::_COARSE_RATES].permute(2, 1, 0), dim=-1)
        slopes = slopes[:, ::_COARSE_RATES].permute(2, 1, 0)
        slopes = functional.normalize(slopes - (slopes * entries).sum(-1, keepdim=True) * entries, dim=-1)
        unit = trains / trains.norm(dim=0).clamp_min(tiny)
        left = unit.new_empty((len(entries), unit.shape[1]))
        for first in range(0, unit.shape[1], _CHUNK):
            chunk = unit[:, first : first + _CHUNK].contiguous()
            for row, entry, slope in zip(left, entries, slopes, strict=True):
                explained, index = (entry @ chunk).max(dim=0)
                further = (slope[index].T * chunk).sum(0)
                row[first : first + _CHUNK] = 1 - explained**2 - further**2
        return self.b1[::_COARSE_B1], left.clamp_(min=0)


# Long because the docstring states the whole contract.
def transmit_field(
    table: EpgTable,
    trains: Trains,
    sigma: float,
    mask: MaskVolume,
    voxel_mm: tuple[float, float, float],
    order: int,
) -> Volume:
    """Estimate B1 relative to nominal from spin-echo trains alone.

    The train of one voxel depends little on B1: near 180° echoes hardly change with it, and flip angles above
    and below 180° give nearly equal trains. But B1 is smooth. It is modelled as a polynomial in space, by
    maximum likelihood over all voxels. The start is the maximum-likelihood B1 of each neighbourhood, with a
    prior toward the mean around it, which selects the same side of 180° where trains do not decide.

    Parameters
    ----------
    table
        Dictionary of the sequence.
    trains
        Echoes of the voxels in `mask`, without their noise floor.
    sigma
        Standard deviation of their noise.
    mask
        Shape (i, j, k).
    voxel_mm
        Edges of a voxel in mm.
    order
        Order of the polynomial.

    Returns
    -------
    Volume
        Shape (i, j, k), 0 outside the mask.

    Notes
    -----
    The likelihood of a voxel assumes noise of unknown variance, so that voxels whose trains fit at no B1
    (mixed tissue, flow) have little weight.
    """
    block = [max(1, min(n, round(_BLOCK_MM / v))) for n, v in zip(mask.shape, voxel_mm, strict=True)]
    blocks = [math.ceil(n / b) for n, b in zip(mask.shape, block, strict=True)]
    places = mask.nonzero()
    # Neighbours have the same B1: in large volumes every n-th voxel is enough.
    every = math.ceil(trains.shape[1] / _MOST_VOXELS)
    sample = trains[:, ::every]
    grid, left = table.misfit(sample)
    power = (sample**2).sum(0).clamp_min(torch.finfo(sample.dtype).tiny)
    surprise = torch.log(left + len(sample) * sigma**2 / power + _LEAST_MISFIT).mul_(len(sample) / 2)
    surprise -= surprise.amin(0)
    where = places[::every] // torch.tensor(block, device=mask.device)
    flat = (where[:, 0] * blocks[1] + where[:, 1]) * blocks[2] + where[:, 2]
    cost = surprise.new_zeros((len(grid), math.prod(blocks))).index_add_(1, flat, surprise)
    count = surprise.new_zeros(math.prod(blocks)).index_add_(0, flat, torch.ones_like(power))
    sigmas = [_START_FWHM_MM / _FWHM / (b * v) for b, v in zip(block, voxel_mm, strict=True)]
    start = _neighbourhood_b1(cost.reshape(len(grid), *blocks), count.reshape(blocks), grid, sigmas)

    filled = count > 0
    centre = [
        (torch.arange(n, device=mask.device) + 0.5) * b - 0.5 for n, b in zip(blocks, block, strict=True)
    ]
    centres = torch.cartesian_prod(*centre)[filled].to(sample.dtype)
    low, high = places.amin(0).to(sample.dtype), places.amax(0).to(sample.dtype)

    def terms(points: Tensor) -> Tensor:
        return _polynomials(2 * (points - low) / (high - low).clamp_min(1) - 1, order)

    coefficients = _likeliest(terms(centres), cost[:, filled], grid, start.flatten()[filled], count[filled])
    b1 = trains.new_zeros(mask.shape)
    values = [
        terms(places[first : first + _CHUNK].to(sample.dtype)) @ coefficients
        for first in range(0, len(places), _CHUNK)
    ]
    b1[mask] = torch.cat(values).clamp(LEAST_B1, MOST_B1)
    return b1


def _neighbourhood_b1(cost: Tensor, count: Tensor, grid: Tensor, sigmas: Sequence[float]) -> Tensor:
    """B1 of minimum cost (B1, i, j, k) in a Gaussian neighbourhood of each block, near the mean around it."""
    summed = _gaussian_sum(cost[:, None], sigmas)[:, 0]
    b1 = grid[cost.sum((1, 2, 3)).argmin()].expand(count.shape)
    near = _gaussian_sum(count[None, None], sigmas)[0, 0]
    for _ in range(_SWEEPS):
        around = _gaussian_sum((count * b1)[None, None], sigmas)[0, 0] / near.clamp_min(1e-6)
        around = torch.where(near > 0, around, b1)
        b1 = _least(summed + (grid[:, None, None, None] - around) ** 2 / (2 * _B1_ROUGHNESS**2), grid)
    return b1


def _polynomials(points: Tensor, order: int) -> Tensor:
    """Chebyshev polynomials in three dimensions up to a total order; points (n, 3) within ±1 → (n, terms)."""
    angle = torch.arccos(points.clamp(-1, 1))
    lines = [torch.cos(n * angle) for n in range(order + 1)]
    return torch.stack(
        [
            lines[i][:, 0] * lines[j][:, 1] * lines[k][:, 2]
            for i in range(order + 1)
            for j in range(order + 1 - i)
            for k in range(order + 1 - i - j)
        ],
        dim=1,
    )


def _likeliest(terms: Tensor, cost: Tensor, grid: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Coefficients of the B1 of minimum total cost; cost (B1, block), all else (block).

    Newton's method with Levenberg damping, in an orthonormal basis of the terms at these blocks. The cost
    between grid points is a parabola through the nearest three. A weak penalty on the distance to the start
    determines what the data do not.
    """
    terms, cost, grid, start = terms.double(), cost.double(), grid.double(), start.double()
    basis, sizes, mixing = torch.linalg.svd(terms, full_matrices=False)
    determined = sizes > _LEAST_TERM * sizes[0]
    basis, mixing = basis[:, determined], mixing[determined].T / sizes[determined]
    pull = _PULL * count.double()
    coefficients: Tensor = torch.linalg.solve((basis.T * pull) @ basis, basis.T @ (pull * start))

    def state(coefficients: Tensor) -> tuple[float, Tensor, Tensor]:
        b1: Tensor = basis @ coefficients
        value, slope, bend = _parabola(cost, grid, b1)
        away = b1 - start
        total = float((value + pull / 2 * away**2).sum())
        return total, slope + pull * away, bend.clamp_min(0) + pull

    total, slope, bend = state(coefficients)
    damping = 1e-2
    for _ in range(_NEWTON_STEPS):
        hessian = (basis.T * bend) @ basis
        hessian += damping * torch.diag(hessian.diagonal())
        trial = coefficients - torch.linalg.solve(hessian, basis.T @ slope)
        new_total, new_slope, new_bend = state(trial)
        if new_total <= total:
            gained = total - new_total
            coefficients, total, slope, bend = trial, new_total, new_slope, new_bend
            damping /= 10
            if gained < _GAIN_TOLERANCE:
                break
        else:
            damping *= 10
    combined: Tensor = mixing @ coefficients
    return combined.to(count.dtype)


def _parabola(cost: Tensor, grid: Tensor, b1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of the cost (B1, block) at a B1 of each block; flat off the grid."""
    step = grid[1] - grid[0]
    inside = b1.clamp(float(grid[0]), float(grid[-1]))
    index = ((inside - grid[0]) / step).round().long().clamp(1, len(grid) - 2)
    before, at, after = (cost.gather(0, (index + n)[None])[0] for n in (-1, 0, 1))
    on = inside == b1
    bend = (before + after - 2 * at) / step**2
    slope = (after - before) / (2 * step)
    shift = inside - grid[index]
    return at + slope * shift + bend / 2 * shift**2, (slope + bend * shift) * on, bend * on


def _least(cost: Tensor, grid: Tensor) -> Tensor:
    """Position of the minimum of the cost (B1, ...), between grid points by a parabola."""
    index = cost.argmin(0, keepdim=True).clamp(1, len(grid) - 2)
    before, at, after = (cost.gather(0, index + n)[0] for n in (-1, 0, 1))
    bend = (before + after - 2 * at).clamp_min(torch.finfo(at.dtype).tiny)
    shift = ((before - after) / (2 * bend)).clamp(-1, 1)
    return grid[index[0]] + shift * (grid[1] - grid[0])


def _gaussian_sum(volumes: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Sum over a Gaussian neighbourhood whose centre has weight 1; volumes (n, 1, i, j, k)."""
    for axis, sigma in enumerate(sigmas):
        reach = math.ceil(3 * sigma)
        offset = torch.arange(-reach, reach + 1, dtype=volumes.dtype, device=volumes.device)
        kernel = torch.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2)
        shape = [1] * 5
        shape[axis + 2] = -1
        padding = [reach if a == axis else 0 for a in range(3)]
        volumes = functional.conv3d(volumes, kernel.reshape(shape), padding=padding)
    return volumes
