"""Linear operators: apply, adjoint, gram, composition and stacking.

An operator acts on the trailing axes of a tensor; every axis before them is a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class LinearOperator(ABC):
    """A linear map A between tensors, with its adjoint Aᴴ."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Compute A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Compute Aᴴ y."""

    def gram(self, x: Tensor) -> Tensor:
        """Compute AᴴA x; operators with a cheaper closed form override this."""
        return self.adjoint(self.apply(x))

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Compose: (A @ B) x = A (B x)."""
        return Composed(self, other)


class Composed(LinearOperator):
    """The product A B of two operators."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner

    def apply(self, x: Tensor) -> Tensor:
        """Compute A (B x)."""
        return self.outer.apply(self.inner.apply(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Compute Bᴴ (Aᴴ y)."""
        return self.inner.adjoint(self.outer.adjoint(y))


class Stacked(LinearOperator):
    """Operators on one domain, their results side by side in a new channel axis before the volume.

    Each operator maps (..., i, j, k) or (..., c, i, j, k) to (..., i, j, k); the stack maps to
    (..., n, i, j, k).

    Parameters
    ----------
    operators
        The n rows, all with the same domain.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        self.operators = tuple(operators)

    def apply(self, x: Tensor) -> Tensor:
        """Apply every row."""
        return torch.stack([op.apply(x) for op in self.operators], dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Sum the adjoints of all rows."""
        parts = [op.adjoint(row) for op, row in zip(self.operators, y.unbind(-4), strict=True)]
        return torch.stack(parts).sum(0)


class Combination(LinearOperator):
    """A fixed linear combination of channels: (..., c, i, j, k) → (..., i, j, k).

    Parameters
    ----------
    coefficients
        One a channel: a number, or one number a volume, of shape (..., 1, 1, 1).
    """

    def __init__(self, coefficients: Sequence[float | Tensor]) -> None:
        self.coefficients = tuple(coefficients)

    def apply(self, x: Tensor) -> Tensor:
        """Sum the channels with their coefficients."""
        first, *others = (c * channel for c, channel in zip(self.coefficients, x.unbind(-4), strict=True))
        return sum(others, start=first)

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread a volume over the channels with the same coefficients."""
        return torch.stack([c * y for c in self.coefficients], dim=-4)


class Gradient(LinearOperator):
    """Forward differences along the three voxel axes, periodic: (..., i, j, k) → (..., 3, i, j, k).

    Parameters
    ----------
    voxel_mm
        Voxel edges; differences are divided by the edge relative to the shortest edge, so that an
        isotropic grid has plain differences.
    """

    def __init__(self, voxel_mm: Sequence[float]) -> None:
        shortest = min(voxel_mm)
        self.scale = tuple(shortest / edge for edge in voxel_mm)

    def apply(self, x: Tensor) -> Tensor:
        """Differences to the next voxel along each axis."""
        differences = torch.stack((x, x, x), dim=-4).neg_()
        for number, s in enumerate(self.scale):
            row = differences.select(-4, number)
            _add_rolled(row, x, number - 3, forth=True)
            if s != 1:
                row.mul_(s)
        return differences

    def adjoint(self, y: Tensor) -> Tensor:
        """Negative divergence."""
        total = torch.zeros_like(y.select(-4, 0))
        for row, axis, s in zip(y.unbind(-4), (-3, -2, -1), self.scale, strict=True):
            total.sub_(row, alpha=s)
            _add_rolled(total, row, axis, forth=False, factor=s)
        return total

    def symbol(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Return the gram in k-space, shape (i, j, k//2 + 1): the eigenvalues of the Laplacian."""
        total = torch.zeros((), dtype=dtype, device=device)
        last = len(shape) - 1
        for axis, (n, s) in enumerate(zip(shape, self.scale, strict=True)):
            freq = (
                torch.fft.rfftfreq(n, device=device) if axis == last else torch.fft.fftfreq(n, device=device)
            )
            value = (2 * s * torch.sin(torch.pi * freq.to(dtype))) ** 2
            total = total + value.reshape([-1 if a == axis else 1 for a in range(3)])
        return total


def _add_rolled(total: Tensor, x: Tensor, axis: int, *, forth: bool, factor: float = 1.0) -> None:
    """Add to each voxel, in place, the next one of x along an axis, or the one before."""
    n = x.shape[axis]
    here, there = ((0, 1) if forth else (1, 0)), (n - 1, 0) if forth else (0, n - 1)
    total.narrow(axis, here[0], n - 1).add_(x.narrow(axis, here[1], n - 1), alpha=factor)
    total.narrow(axis, there[0], 1).add_(x.narrow(axis, there[1], 1), alpha=factor)
