"""Errors of crops beyond thermal noise: the size that is stated is the size of the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.physics.dipole import Dipole
from chisep.training import crop_errors
from chisep.types import Grid

SHAPE = (24, 26, 28)
GRID = Grid(SHAPE, (1.0, 1.0, 1.5), (0.0, 0.6, 0.8))


def brain() -> torch.Tensor:
    i, j, k = torch.meshgrid(*(torch.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    return (i / 10) ** 2 + (j / 11) ** 2 + (k / 12) ** 2 < 1


def depths(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels within two of the edge, and those deeper than six."""
    deep, shallow = mask.clone(), mask.clone()
    for number in range(6):
        for axis in range(3):
            deep = deep & deep.roll(1, axis) & deep.roll(-1, axis)
        if number == 1:
            shallow = mask & ~deep
    return shallow, deep


def test_field_errors_are_as_large_as_stated():
    mask, dipole = brain(), Dipole(GRID)
    shallow, deep = depths(mask)
    parts = (mask, shallow, deep)
    for sizes, expected in (((2.0, 3.0, 0.0), 1 / 0.7), ((0.0, 0.0, 8.0), 1.0)):
        rng = np.random.default_rng(1)
        squares = []
        for _ in range(60):
            error, sigma = crop_errors.field_errors(mask, GRID, dipole, sizes, rng)
            squares.append([float((error[part] / sigma[part]).square().mean()) for part in parts])
        ratio = np.sqrt(np.mean(squares, axis=0))
        assert ratio[0] == pytest.approx(expected, rel=0.15)
        if not sizes[0]:
            assert ratio[1:] == pytest.approx([1, 1], rel=0.3)


def test_errors_of_the_rim_decrease_with_depth():
    mask = brain()
    shallow, deep = depths(mask)
    _, sigma = crop_errors.field_errors(mask, GRID, Dipole(GRID), (0.0, 0.0, 8.0), np.random.default_rng(2))
    assert sigma[shallow].mean() > 1.5 * sigma[deep].mean()


def test_without_a_brain_there_is_no_error():
    error, sigma = crop_errors.field_errors(
        torch.zeros(SHAPE, dtype=torch.bool), GRID, Dipole(GRID), (4.0, 3.0, 8.0), np.random.default_rng(0)
    )
    assert not error.any()
    assert not sigma.any()


def test_registration_error_is_as_large_as_stated():
    rng = np.random.default_rng(3)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SHAPE), indexing="ij")
    r2 = 14 + 4 * torch.cos(axes[0] / 3) * torch.cos(axes[1] / 4) + torch.sin(axes[2] / 3)
    inner = (slice(2, -2),) * 3
    squares = []
    for _ in range(200):
        moved, sigma = crop_errors.misregistered(r2, 0.5, rng)
        squares.append([float((moved - r2)[inner].square().mean()), float(sigma[inner].square().mean())])
    found, stated = np.sqrt(np.mean(squares, axis=0))
    assert found == pytest.approx(stated, rel=0.15)


def test_denoising_halves_the_noise_of_flat_tissue_and_keeps_an_edge():
    rng = np.random.default_rng(4)
    truth = torch.full(SHAPE, 5.0)
    truth[12:] = 40.0
    sigma = torch.full(SHAPE, 2.0)
    noisy = truth + sigma * crop_errors.noise(rng, SHAPE)
    made, stated = crop_errors.denoised(noisy, sigma, torch.ones(SHAPE, dtype=torch.bool))
    flat = (slice(2, 8), slice(4, -4), slice(4, -4))
    assert (made - truth)[flat].std() < 1.0
    # What is stated allows for detail that noise may hide.
    error = float((made - truth)[flat].square().mean().sqrt())
    assert 0.3 < error / float(stated[flat].square().mean().sqrt()) < 1.1
    assert float(made[12].mean() - made[11].mean()) == pytest.approx(35, abs=2)


def test_physics_is_violated_by_one_kind_at_a_time():
    pos = torch.full(SHAPE, 0.03)
    neg = torch.where(torch.arange(SHAPE[0]).reshape(-1, 1, 1) < 12, 0.04, 0.005).expand(SHAPE)
    kinds = set()
    for seed in range(40):
        of_pos, of_neg, shift = crop_errors.violated_physics(pos, neg, GRID, np.random.default_rng(seed))
        varies = [bool((f != 1).any()) for f in (of_pos, of_neg)] + [bool(shift.any())]
        kinds.add(tuple(varies))
        assert min(of_pos.min(), of_neg.min()) >= 0
        if not varies[0]:
            assert (of_neg[12:] == 1).all()
            assert of_neg.max() <= 1.5
            assert shift.abs().max() <= 8e-3
    assert kinds == {(True, True, False), (False, True, False), (False, True, True)}
