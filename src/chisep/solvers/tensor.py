"""Susceptibility tensor imaging of six or more head orientations (Liu 2010, 10.1002/mrm.22482).

    f_n = ⅓ b̂ᵀ χ b̂ − (k·b̂) (kᵀ χ b̂) / k²    at every point of k-space, b̂ along B0 in orientation n

Head orientations within 30° do not determine all six components. What fields do not determine follows
from a small penalty on the anisotropic part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from chisep.errors import InputError
from chisep.physics.cg import CgState, cg
from chisep.physics.operators import LinearOperator
from chisep.progress import Progress
from chisep.solvers._common import check, ended
from chisep.solvers.cosmos import Fields, MaskedDipoles, Masks, weighted_dipoles
from chisep.types import Convergence, Grid, MaskVolume, Volume

Components = Float[Tensor, "6 i j k"]
"""Components of a symmetric tensor in voxel axes: xx, yy, zz, xy, xz, yz."""

FEWEST_ORIENTATIONS = 6
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)


@dataclass(frozen=True)
class TensorConfig:
    """Settings of susceptibility tensor imaging."""

    iterations: int = 25
    """Maximum number of iterations."""
    tolerance: float = 5e-3
    """Relative change of the tensor at which the iteration stops."""
    tikhonov: float = 1e-4
    """Weight of the squared tensor, relative to one orientation's field term."""
    anisotropy: float = 0.05
    """Weight of its squared anisotropic part."""

    def __post_init__(self) -> None:
        check("iterations", self.iterations, low=0)
        check("tolerance", self.tolerance, low=0.0, high=1.0)
        check("tikhonov", self.tikhonov, low=0.0)
        check("anisotropy", self.anisotropy, low=0.0)


@dataclass(frozen=True, eq=False)
class ApparentTensor:
    """Apparent susceptibility tensor in ppm, shape (6, i, j, k), 0 outside the support."""

    components_ppm: Components
    convergence: Convergence

    @property
    def mean_ppm(self) -> Volume:
        """Mean susceptibility: a third of the trace."""
        return self.components_ppm[:3].mean(0)

    def along(self, direction: Sequence[float]) -> Volume:
        """Susceptibility along a unit vector in voxel axes: χ33 where it is B0 of the reference."""
        total = torch.zeros_like(self.components_ppm[0])
        for (a, b), weight, component in zip(_PAIRS, _WEIGHTS, self.components_ppm, strict=True):
            total += weight * direction[a] * direction[b] * component
        return total


def tensor(
    fields_ppm: Fields,
    masks: Masks,
    b0_directions: Sequence[Sequence[float]],
    grid: Grid,
    config: TensorConfig,
    *,
    chi_ppm: Volume,
    sigmas_ppm: Fields | None = None,
    support: MaskVolume | None = None,
    progress: Progress | None = None,
) -> ApparentTensor:
    """Susceptibility tensor imaging of six or more head orientations.

    Parameters
    ----------
    fields_ppm, masks, b0_directions, grid, config, sigmas_ppm, support, progress
        As of `chisep.solvers.cosmos.cosmos`.
    chi_ppm
        χ by COSMOS, shape (i, j, k): the isotropic tensor from which the iteration starts.

    Returns
    -------
    ApparentTensor
        Components in voxel axes.

    Raises
    ------
    InputError
        If there are fewer than six orientations, or as `cosmos`.
    """
    if len(fields_ppm) < FEWEST_ORIENTATIONS:
        raise InputError(
            "susceptibility tensor",
            found=f"fields of {len(fields_ppm)} head orientations",
            expected=f"at least {FEWEST_ORIENTATIONS}",
            fix="Use COSMOS.",
        )
    padded, dipoles = weighted_dipoles(fields_ppm, masks, b0_directions, grid, sigmas_ppm, support)
    operator = TensorFields(dipoles, padded.box_grid)
    change: list[float] = []

    def record(state: CgState) -> bool:
        size = float(torch.linalg.vector_norm(state.solution))
        moved = abs(state.step) * float(torch.linalg.vector_norm(state.direction))
        change.append(moved / size if size > 0 else 0.0)
        if progress is not None:
            progress("iterations", state.iteration, config.iterations)
        return change[-1] < config.tolerance

    first = padded.cut(chi_ppm) * dipoles.support
    isotropic = torch.stack((first, first, first, *(torch.zeros_like(first),) * 3))
    found = cg(
        lambda x: operator.gram(x) + _penalty(x, config),
        operator.adjoint(dipoles.weighted([padded.cut(field) for field in fields_ppm])),
        iterations=config.iterations,
        initial=isotropic,
        callback=record,
    )
    components = torch.stack([padded.restore(component) for component in found])
    return ApparentTensor(components, ended(change or [0.0], config.tolerance, "susceptibility tensor"))


def _penalty(x: Components, config: TensorConfig) -> Components:
    anisotropic = x.clone()
    anisotropic[:3] -= x[:3].mean(0)
    scale = x.new_tensor(_WEIGHTS).reshape(-1, 1, 1, 1)
    return scale * (config.tikhonov * x + config.anisotropy * anisotropic)


class TensorFields(LinearOperator):
    """Weighted fields of a symmetric tensor in several orientations: (6, i, j, k) → (n, i, j, k).

    Parameters
    ----------
    dipoles
        Weights, support and transforms of the orientations.
    grid
        Grid of the volumes.
    """

    def __init__(self, dipoles: MaskedDipoles, grid: Grid) -> None:
        self.dipoles = dipoles
        self._fft = dipoles.dipoles[0]
        self._directions = dipoles.b0_directions
        self._products = _products(self._fft.padded_shape, grid.voxel_mm, self._fft.kernel)

    def _kernels(self, b0: Sequence[float]) -> list[Tensor]:
        """Kernel of each component: ⅓ b_a b_b − (k·b)(k_a b_b + k_b b_a)/(2k²), twice for a ≠ b."""
        along = [sum((b0[c] * self._product(a, c) for c in range(3)), torch.zeros(())) for a in range(3)]
        kernels = []
        for (a, b), weight in zip(_PAIRS, _WEIGHTS, strict=True):
            kernel = (b0[a] * b0[b] / 3 - (along[a] * b0[b] + along[b] * b0[a]) / 2) * weight
            kernel[0, 0, 0] = 0.0
            kernels.append(kernel)
        return kernels

    def _product(self, a: int, b: int) -> Tensor:
        return self._products[_PAIRS.index((min(a, b), max(a, b)))]

    def apply(self, x: Tensor) -> Tensor:
        """Fields of the tensor."""
        spectra = [self._fft.spectrum(component * self.dipoles.support) for component in x.unbind(-4)]
        fields = []
        for b0, weight in zip(self._directions, self.dipoles.known, strict=True):
            total = sum((s * k for s, k in zip(spectra, self._kernels(b0), strict=True)), torch.zeros(()))
            fields.append(self._fft.volume(total) * weight)
        return torch.stack(fields, dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection of all fields."""
        precision = torch.complex64 if y.dtype == torch.float32 else torch.complex128
        totals = [torch.zeros((), dtype=precision) for _ in _PAIRS]
        for b0, weight, field in zip(self._directions, self.dipoles.known, y.unbind(-4), strict=True):
            spectrum = self._fft.spectrum(field * weight)
            totals = [
                total + spectrum * kernel for total, kernel in zip(totals, self._kernels(b0), strict=True)
            ]
        return torch.stack([self._fft.volume(total) * self.dipoles.support for total in totals], dim=-4)


def _products(shape: Sequence[int], voxel_mm: Sequence[float], like: Tensor) -> list[Tensor]:
    """k_a k_b / k² on the half spectrum; cross terms at a Nyquist frequency are 0, as in `dipole_kernel`."""
    k, odd = [], []
    for axis, (n, edge) in enumerate(zip(shape, voxel_mm, strict=True)):
        frequency = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        along = frequency(n, d=edge, dtype=torch.float64)
        without = along.clone()
        if n % 2 == 0:
            without[n // 2] = 0.0
        view = [-1 if a == axis else 1 for a in range(3)]
        k.append(along.reshape(view).to(like))
        odd.append(without.reshape(view).to(like))
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1.0
    return [(k[a] ** 2 if a == b else odd[a] * odd[b]) / square for a, b in _PAIRS]
