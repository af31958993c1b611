"""Conjugate gradients for Hermitian positive definite operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""A linear map from a tensor to a new tensor of the same shape."""


@dataclass(frozen=True)
class CgState:
    """State after one iteration. The tensors are views of the solver's own: copy them to keep them.

    Parameters
    ----------
    iteration
        Number of iterations done, from 1.
    solution
        x after this iteration.
    direction, step
        This iteration added step · direction to x.
    """

    iteration: int
    solution: Tensor
    direction: Tensor
    step: float


# Long because the docstring states the whole contract.
def cg(
    operator: Operator,
    rhs: Tensor,
    *,
    iterations: int,
    tolerance: float = 0.0,
    initial: Tensor | None = None,
    preconditioner: Operator | None = None,
    callback: Callable[[CgState], bool | None] | None = None,
) -> Tensor:
    """Solve A x = b by preconditioned conjugate gradients (Hestenes and Stiefel 1952).

    Parameters
    ----------
    operator
        A, Hermitian and positive (semi-)definite. It must not return its argument.
    rhs
        b, real or complex, of any shape; all elements form one vector.
    iterations
        Maximum number of iterations.
    tolerance
        Stop where ‖b − A x‖ ≤ tolerance · ‖b‖; 0 for all iterations.
    initial
        First x; 0 if None. It is not changed.
    preconditioner
        Approximate inverse of A, Hermitian and positive definite; the identity if None. It must not
        return its argument.
    callback
        Called after each iteration; True stops the solver.

    Returns
    -------
    Tensor
        x, of the shape of `rhs`. Inner products are sums in double precision: they do not depend on the
        number of threads.
    """
    if initial is None:
        x, residual = torch.zeros_like(rhs), rhs.clone()
    else:
        x = initial.clone()
        residual = rhs - operator(x)
    goal = tolerance**2 * _inner(rhs, rhs) if tolerance else 0.0
    if initial is not None and _inner(residual, residual) <= goal:
        return x
    direction = torch.zeros_like(rhs)
    before = float("inf")
    for iteration in range(1, iterations + 1):
        preconditioned = residual.clone() if preconditioner is None else preconditioner(residual)
        now = _inner(residual, preconditioned)
        if now <= 0:  # solved exactly, or the preconditioner is no longer positive definite after rounding
            break
        direction = preconditioned.add_(direction, alpha=now / before)
        image = operator(direction)
        curvature = _inner(direction, image)
        if curvature <= 0:  # the rest lies in the null space of the operator
            break
        step = now / curvature
        x.add_(direction, alpha=step)
        if callback is not None and callback(CgState(iteration, x, direction, step)):
            break
        residual.sub_(image, alpha=step)
        before = now
        if tolerance and _inner(residual, residual) <= goal:
            break
    return x


def _inner(a: Tensor, b: Tensor) -> float:
    """Real part of aᴴb, summed in double precision."""
    if a.is_complex():
        return _inner(torch.view_as_real(a), torch.view_as_real(b))
    return float((a * b).sum(dtype=torch.float64))
