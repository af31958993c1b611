"""The unit dipole: from a susceptibility distribution to its field.

Δf = D * χ with D(k) = 1/3 − (k·b̂)²/|k|², D(0) = 0 (Salomir 2003, 10.1002/cmr.b.10083;
Marques and Bowtell 2005, 10.1002/cmr.b.20034). Fields and susceptibilities in ppm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from chisep.physics.operators import LinearOperator
from chisep.types import Grid

_AXES = (-3, -2, -1)


def dipole_kernel(
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    b0_direction: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample the unit dipole in k-space on the half spectrum of a real FFT.

    Parameters
    ----------
    shape
        Number of voxels (i, j, k) of the periodic grid.
    voxel_mm
        Voxel edges in mm.
    b0_direction
        Unit vector along B0 in voxel axes.
    dtype, device
        Of the result.

    Returns
    -------
    Tensor
        Shape (i, j, k // 2 + 1), real, between −2/3 and 1/3.

    Notes
    -----
    At a Nyquist frequency k and −k fall on one sample, where the cross terms of (k·b̂)² have both signs:
    their mean, 0, is taken, which keeps the kernel even and the operator exactly self-adjoint for
    every B0 direction.
    """
    last = len(shape) - 1
    k: list[Tensor] = []
    cross: list[Tensor] = []
    for axis, (n, edge, b) in enumerate(zip(shape, voxel_mm, b0_direction, strict=True)):
        frequency = torch.fft.rfftfreq if axis == last else torch.fft.fftfreq
        k_axis = frequency(n, d=edge, dtype=torch.float64)
        odd_part = k_axis.clone()
        if n % 2 == 0:
            odd_part[n // 2] = 0.0
        view = [-1 if a == axis else 1 for a in range(3)]
        k.append(k_axis.reshape(view).to(device, dtype))
        cross.append(odd_part.mul(b).reshape(view).to(device, dtype))
    square = (k[0] ** 2 + k[1] ** 2) + k[2] ** 2
    square[0, 0, 0] = 1.0
    x, y, z = ((ka * b) ** 2 for ka, b in zip(k, b0_direction, strict=True))
    kernel = cross[2] * (cross[0] + cross[1])
    kernel.add_(cross[0] * cross[1]).mul_(2).add_(x + y).add_(z)  # (k·b̂)²
    kernel.div_(square).neg_().add_(1.0 / 3.0)
    kernel[0, 0, 0] = 0.0
    return kernel


def point_dipole_kernel(
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    b0_direction: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Transform the field of a point dipole, (3 cos²θ − 1)/(4π r³) per volume, sampled at the voxels.

    Cutting the spectrum of `dipole_kernel` off at the Nyquist frequency makes its field ring by the voxel,
    most of all where B0 is oblique. That of points is harmonic wherever there is no source, as background
    fields are.

    Parameters
    ----------
    shape, voxel_mm, b0_direction, dtype, device
        As of `dipole_kernel`.

    Returns
    -------
    Tensor
        Shape (i, j, k // 2 + 1), real; a voxel's own field is such that the field inside a uniform ball is 0.
    """
    square = torch.zeros(tuple(shape), dtype=dtype, device=device)
    along = torch.zeros_like(square)
    for axis, (n, edge, b) in enumerate(zip(shape, voxel_mm, b0_direction, strict=True)):
        position = torch.fft.fftfreq(n, d=1 / (n * edge), dtype=dtype, device=device)
        position = position.reshape([-1 if a == axis else 1 for a in range(3)])
        square += position**2
        along += b * position
    square[0, 0, 0] = 1.0
    field = along.square_().mul_(3).div_(square).sub_(1).div_(square.pow_(1.5))
    field.mul_(math.prod(voxel_mm) / (4 * math.pi))
    field[0, 0, 0] = 0.0
    largest_mm = min(n * edge for n, edge in zip(shape, voxel_mm, strict=True)) / 2
    # By now `square` is r³.
    field[0, 0, 0] = -field[square <= largest_mm**3].sum()
    return half_spectrum(field, shape).real.contiguous()


def half_spectrum(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Transform x, padded with zeros to a shape, axis by axis to its half spectrum, (..., i, j, k // 2 + 1).

    One transform of all axes is up to six times faster on a CPU, but its last digits depend on the number of
    threads.
    """
    i, j, k = shape
    spectrum: Tensor = torch.fft.fft(torch.fft.fft(torch.fft.rfft(x, n=k, dim=-1), n=j, dim=-2), n=i, dim=-3)
    return spectrum


def of_half_spectrum(spectrum: Tensor, shape: Sequence[int], cropped: Sequence[int]) -> Tensor:
    """Transform a half spectrum of volumes of a shape back, cropped to the first voxels of each axis."""
    i, j, k = cropped
    along_k = torch.fft.ifft(torch.fft.ifft(spectrum, dim=-3)[..., :i, :, :], dim=-2)[..., :j, :]
    x: Tensor = torch.fft.irfft(along_k, n=shape[2], dim=-1)[..., :k]
    return x


class Dipole(LinearOperator):
    """Convolution with the unit dipole: χ in ppm → field in ppm, shapes (..., i, j, k).

    Parameters
    ----------
    grid
        Shape, voxel size and B0 direction.
    pad
        Whether to surround the volume with zeros before the FFT, so that sources at one edge do not act on
        the other; one bool, or one per axis. Without padding the operator is diagonal in k-space, which
        closed forms need.
    padding
        Size of what is padded over that of the volume.
    points
        Whether each voxel is a point dipole (`point_dipole_kernel`): for the field of sources that lie
        elsewhere.
    dtype, device
        Precision and place of the kernel; inputs must have the same.

    Notes
    -----
    Zeros of the padding are never transformed along the axes that come later, and voxels that the crop would
    drop are never transformed back (`half_spectrum`, `of_half_spectrum`).
    """

    def __init__(
        self,
        grid: Grid,
        *,
        pad: bool | tuple[bool, bool, bool] = True,
        padding: float = 2.0,
        points: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        pads = (pad,) * 3 if isinstance(pad, bool) else pad
        self.shape = grid.shape
        self.padded_shape = tuple(
            next_fast_len(math.ceil(padding * n), real=True) if wide else n
            for n, wide in zip(grid.shape, pads, strict=True)
        )
        make = point_dipole_kernel if points else dipole_kernel
        self.kernel = make(self.padded_shape, grid.voxel_mm, grid.b0_direction, dtype=dtype, device=device)

    @classmethod
    def of_batch(
        cls,
        grids: Sequence[Grid],
        *,
        padding: float = 2.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Dipole:
        """One operator for volumes of equal shape, each with its own voxel size and B0 direction, padded.

        Parameters
        ----------
        grids
            One per volume; the operator then acts on (volume, i, j, k).
        padding, dtype, device
            As of the constructor.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        if len({grid.shape for grid in grids}) != 1:
            raise ValueError(f"grids of one shape are expected, not {[grid.shape for grid in grids]}")
        dipole = cls(grids[0], padding=padding, dtype=dtype, device=device)
        if len({(grid.voxel_mm, grid.b0_direction) for grid in grids}) > 1:
            kernels = [
                dipole_kernel(
                    dipole.padded_shape, grid.voxel_mm, grid.b0_direction, dtype=dtype, device=device
                )
                for grid in grids[1:]
            ]
            dipole.kernel = torch.stack([dipole.kernel, *kernels])
        return dipole

    @property
    def is_diagonal(self) -> bool:
        """Whether the operator is a plain product in k-space (no padding)."""
        return self.padded_shape == self.shape

    def spectrum(self, x: Tensor) -> Tensor:
        """Half spectrum of x on the (padded) grid, shape (..., *kernel.shape)."""
        return half_spectrum(x, self.padded_shape)

    def volume(self, spectrum: Tensor) -> Tensor:
        """Inverse of `spectrum`, cropped to the grid, shape (..., i, j, k)."""
        return of_half_spectrum(spectrum, self.padded_shape, self.shape)

    def apply(self, x: Tensor) -> Tensor:
        """Field of the sources x."""
        return self.volume(self.spectrum(x).mul_(self.kernel))

    def adjoint(self, y: Tensor) -> Tensor:
        """Do the same as `apply`: the kernel is real and even, and cropping is the adjoint of padding."""
        return self.apply(y)

    def gram(self, x: Tensor) -> Tensor:
        """D² as one product in k-space where the operator is diagonal, else D twice."""
        if not self.is_diagonal:
            return super().gram(x)
        return self.volume(self.spectrum(x).mul_(self.kernel**2))
