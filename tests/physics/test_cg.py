"""Conjugate gradients against dense solutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chisep.physics.cg import CgState, cg

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPE = (3, 4, 2)
SIZE = 24


def positive(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return a Hermitian positive definite matrix with a condition number below 100."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(SIZE, SIZE, dtype=dtype, generator=generator)
    return root @ root.mH / SIZE + torch.eye(SIZE, dtype=dtype)


def vector(dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def applied(matrix: Tensor):
    return lambda x: (matrix @ x.flatten()).reshape(SHAPE)


def precision(dtype: torch.dtype) -> float:
    return 100 * torch.finfo(dtype).eps


def error(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("jacobi", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_equals_the_dense_solution(dtype, jacobi, start):
    matrix, rhs = positive(dtype), vector(dtype)
    diagonal = matrix.diagonal().real.reshape(SHAPE)
    found = cg(
        applied(matrix),
        rhs,
        iterations=4 * SIZE,
        tolerance=torch.finfo(dtype).eps,
        initial=vector(dtype, 2) if start else None,
        preconditioner=(lambda r: r / diagonal) if jacobi else None,
    )
    expected = torch.linalg.solve(matrix, rhs.flatten()).reshape(SHAPE)
    assert found.dtype == dtype
    assert error(found, expected) < precision(dtype)


def test_exact_after_as_many_iterations_as_there_are_eigenvalues():
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(SIZE // 3).reshape(SHAPE)
    rhs = vector(torch.float64)
    assert error(cg(lambda x: values * x, rhs, iterations=3), rhs / values) < 1e-12
    assert error(cg(lambda x: values * x, rhs, iterations=2), rhs / values) > 1e-6


def test_one_iteration_with_the_exact_inverse_as_preconditioner():
    matrix, rhs = positive(torch.complex128), vector(torch.complex128)
    inverse = torch.linalg.inv(matrix)
    found = cg(applied(matrix), rhs, iterations=1, preconditioner=applied(inverse))
    assert error(found, applied(inverse)(rhs)) < 1e-12


def test_the_error_in_the_norm_of_the_operator_falls_with_every_iteration():
    matrix, rhs = positive(torch.float64), vector(torch.float64)
    exact = torch.linalg.solve(matrix, rhs.flatten())
    errors: list[float] = []

    def measure(state: CgState) -> None:
        rest = state.solution.flatten() - exact
        errors.append(float(rest @ matrix @ rest))

    cg(applied(matrix), rhs, iterations=12, callback=measure)
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 12


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_right_hand_side_gives_zero_without_an_iteration(dtype):
    seen: list[int] = []
    found = cg(
        applied(positive(dtype)),
        torch.zeros(SHAPE, dtype=dtype),
        iterations=5,
        callback=lambda state: seen.append(state.iteration),
    )
    assert not found.any()
    assert not seen


def test_an_exact_start_is_returned():
    values = torch.full(SHAPE, 2.0)
    start = vector(torch.float32)
    found = cg(lambda x: values * x, 2 * start, iterations=3, tolerance=1e-6, initial=start)
    assert torch.equal(found, start)


def test_arguments_are_not_changed():
    matrix, rhs, start = positive(torch.float64), vector(torch.float64), vector(torch.float64, 2)
    copies = rhs.clone(), start.clone()
    cg(applied(matrix), rhs, iterations=5, initial=start)
    assert torch.equal(rhs, copies[0])
    assert torch.equal(start, copies[1])


def test_callback_sees_each_iteration_and_can_stop():
    matrix, rhs = positive(torch.float64), vector(torch.float64)
    numbers: list[int] = []
    solution = torch.zeros_like(rhs)

    def watch(state: CgState) -> bool:
        numbers.append(state.iteration)
        solution.add_(state.direction, alpha=state.step)
        assert torch.allclose(solution, state.solution, rtol=1e-12, atol=0)
        return state.iteration == 4

    found = cg(applied(matrix), rhs, iterations=9, callback=watch)
    assert numbers == [1, 2, 3, 4]
    assert torch.equal(found, cg(applied(matrix), rhs, iterations=4))


def test_the_tolerance_bounds_the_residual():
    matrix, rhs = positive(torch.float64), vector(torch.float64)
    iterations: list[int] = []
    found = cg(
        applied(matrix),
        rhs,
        iterations=SIZE,
        tolerance=1e-3,
        callback=lambda state: iterations.append(state.iteration),
    )
    assert error(applied(matrix)(found), rhs) <= 1e-3
    assert len(iterations) < SIZE
    before = cg(applied(matrix), rhs, iterations=len(iterations) - 1)
    assert error(applied(matrix)(before), rhs) > 1e-3


def test_a_semidefinite_operator_is_solved_where_it_acts():
    keeps = torch.zeros(SHAPE, dtype=torch.float64)
    keeps[0] = 1
    rhs = vector(torch.float64)
    found = cg(lambda x: keeps * x, rhs * keeps, iterations=9)
    assert torch.allclose(found, rhs * keeps)
