"""Shared by the solvers: the padded bounding box, the edge (TV weighting) mask, and convergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.operators import Gradient
from chisep.types import Convergence, Grid, MaskVolume, Volume

LEAST_PRIOR_SIGMA_PPM = 1e-3
_LEAST_RELATIVE_NOISE, _LEAST_NOISE_PPM = 1e-3, 1e-6


class PaddedBox:
    """The bounding box of the mask, and a periodic grid around it whose sizes are fast for real FFTs.

    The box has one empty layer after each axis, so that periodic differences do not wrap
    around into it.

    Parameters
    ----------
    mask
        True inside, not empty, shape (i, j, k).
    grid
        Grid of the mask.
    padding
        Zeros after each axis of the periodic grid, as a fraction of the box but never fewer than 16
        voxels; with 1 the dipole does not wrap around.
    """

    def __init__(self, mask: MaskVolume, grid: Grid, padding: float) -> None:
        inside = mask.nonzero()
        first, last = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        self._shape = grid.shape
        self._source = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        self._target = tuple(slice(0, b - a) for a, b in zip(first, last, strict=True))
        size = [b - a + 1 for a, b in zip(first, last, strict=True)]
        self.box_grid = grid.reshaped(size)
        # real=True on every axis: then the sizes do not depend on how the volume lies in its axes.
        padded = [next_fast_len(n + max(16, math.ceil(padding * n)), real=True) for n in size]
        self.periodic_grid = grid.reshaped(padded)

    def cut(self, volume: Tensor) -> Tensor:
        """Part of a volume that is in the box: (i, j, k) → shape of `box_grid`."""
        box = volume.new_zeros(self.box_grid.shape)
        box[self._target] = volume[self._source]
        return box

    def cut_noise(self, sigma: Tensor | float) -> Tensor | float:
        """Part of a noise map that is in the box; one number holds there as well."""
        return self.cut(sigma) if isinstance(sigma, Tensor) else sigma

    def box(self, periodic: Tensor) -> Tensor:
        """View of the box in a tensor on the periodic grid: (..., *periodic_grid) → (..., *box_grid)."""
        i, j, k = self.box_grid.shape
        return periodic[..., :i, :j, :k]

    def restore(self, box: Tensor) -> Volume:
        """Put the box back into a volume of zeros: shape of `box_grid` → (i, j, k)."""
        volume = box.new_zeros(self._shape)
        volume[self._source] = box[self._target]
        return volume


def edge_mask(mask: MaskVolume, gradient: Gradient, magnitude: Volume | None, edge_fraction: float) -> Tensor:
    """Edge (TV weighting) mask: True where total variation acts.

    TV acts inside the mask and, if a magnitude is given, not on its edges. Differences across the border of
    the mask contain no anatomy. Edges are the voxels with the steepest magnitude (MEDI: Liu 2011,
    10.1002/mrm.22816).

    Parameters
    ----------
    mask
        Shape (i, j, k).
    gradient
        The difference operator of the regulariser.
    magnitude
        Image with anatomical edges, shape (i, j, k).
    edge_fraction
        Share of the voxels in the mask that count as edges, 0 to 1.

    Returns
    -------
    Tensor
        Bool, shape (3, i, j, k).
    """
    edges = torch.stack([mask & mask.roll(-1, axis) for axis in (-3, -2, -1)])
    if magnitude is None:
        return edges
    steepness = gradient.apply(magnitude).mul_(edges).square_().sum(0)
    inside = steepness[mask]
    flat = max(1, int((1 - edge_fraction) * inside.numel()))
    return edges & (steepness <= inside.kthvalue(flat).values)


def relative_change(new: Tensor, old: Tensor) -> float:
    """Compute ‖new − old‖ / ‖new‖; 0 where new is 0 throughout."""
    size = float(torch.linalg.vector_norm(new))
    return float(torch.linalg.vector_norm(new - old)) / size if size > 0 else 0.0


def ended(change: Sequence[float], tolerance: float, method: str) -> Convergence:
    """Convergence of an iteration, with a warning if the last change is above ten times the tolerance."""
    far = change[-1] > 10 * tolerance
    text = (
        f"{method} stopped after {len(change)} iterations with a relative change of {change[-1]:.1e}, "
        f"far above the tolerance {tolerance:.1e}; allow more iterations"
    )
    return Convergence(len(change), change[-1] < tolerance, tuple(change), (text,) if far else ())


def least_noise_ppm(volume_ppm: Tensor, mask: Tensor) -> float:
    """Lower bound of the noise of a map: a thousandth of its root mean square.

    Maps without noise still need weights, and results must scale with the maps.
    """
    return max(_LEAST_RELATIVE_NOISE * float(volume_ppm[mask].square().mean().sqrt()), _LEAST_NOISE_PPM)


def check(name: str, value: float | int, *, low: float | int, high: float | int = math.inf) -> None:
    """Check a number of a config: low < value ≤ high.

    Raises
    ------
    InputError
        If it is outside, or not finite.
    """
    if not (math.isfinite(value) and low < value <= high):
        limit = "" if math.isinf(high) else f", at most {high:g}"
        raise InputError(
            name,
            found=f"{value}",
            expected=f"a number above {low:g}{limit}",
            fix="Correct the option or leave it at its default.",
        )
