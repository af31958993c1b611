"""What every linear operator must pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from chisep.physics.operators import LinearOperator


def check(operator: LinearOperator, domain: Sequence[int], codomain: Sequence[int]) -> None:
    """Adjointness, linearity, gram = AᴴA, dense matrix, gradients; double precision, small grid."""
    generator = torch.Generator().manual_seed(0)
    x, x2 = (torch.randn(*domain, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.randn(*codomain, generator=generator, dtype=torch.float64)
    ax = operator.apply(x)
    assert ax.shape == tuple(codomain)
    assert operator.adjoint(y).shape == tuple(domain)

    torch.testing.assert_close((ax * y).sum(), (x * operator.adjoint(y)).sum())
    torch.testing.assert_close(operator.apply(2 * x - 3 * x2), 2 * ax - 3 * operator.apply(x2))
    torch.testing.assert_close(operator.gram(x), operator.adjoint(ax))

    dense = _matrix(operator.apply, domain)
    torch.testing.assert_close(dense @ x.flatten(), ax.flatten())
    torch.testing.assert_close(dense.T, _matrix(operator.adjoint, codomain))
    torch.testing.assert_close(dense.T @ dense, _matrix(operator.gram, domain))

    batch = torch.stack((x, x2))
    torch.testing.assert_close(operator.apply(batch), torch.stack((ax, operator.apply(x2))))
    assert torch.autograd.gradcheck(operator.apply, x.requires_grad_(), fast_mode=True)


def _matrix(function, domain: Sequence[int]) -> torch.Tensor:
    basis = torch.eye(math.prod(domain), dtype=torch.float64).reshape(-1, *domain)
    return torch.stack([function(b).flatten() for b in basis], dim=1)
