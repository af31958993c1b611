"""The box that networks see: nothing is lost by cutting, and turning keeps the physics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from chisep.networks.brain_box import BrainBox
from chisep.physics.dipole import Dipole
from chisep.types import Grid
from tests.solvers.head import make_head


@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    tilt=st.floats(-0.3, 0.3),
    whole=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_restores_what_it_cut_and_keeps_the_field(order, signs, tilt, whole, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 7, 8)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[1:5, 2:6, 1:7] = torch.rand(4, 4, 6, generator=generator) > 0.3
    if whole:
        mask[0, 0, 0] = mask[-1, -1, -1] = True
    turn = np.zeros((3, 3))
    turn[list(order), [0, 1, 2]] = signs
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ turn @ np.diag([1.0, 1.5, 0.8])
    b0 = (rotation @ turn).T @ [0.0, 0.0, 1.0]
    grid = Grid(shape, (1.0, 1.5, 0.8), tuple(b0.tolist()), affine)
    box = BrainBox(mask, grid)
    volume = torch.randn(shape, generator=generator) * mask
    cut = box.cut(volume)
    assert cut.shape == box.mask.shape == box.grid.shape
    assert torch.equal(box.restore(torch.stack((cut, 2 * cut))), torch.stack((volume, 2 * volume)))
    # B0 along scanner z is nearly along the third axis of the box, upwards.
    assert box.grid.b0_direction[2] == pytest.approx(np.cos(tilt), abs=1e-6)
    if whole:  # a smaller box would have the repetitions that an FFT makes of the sources nearer
        field = box.restore(Dipole(box.grid).apply(cut)[None] * box.mask)[0]
        torch.testing.assert_close(field, Dipole(grid).apply(volume) * mask, rtol=0, atol=1e-5)


def _maps():
    return make_head((12, 13, 11)).maps()


def test_is_tight_and_keeps_axes_without_an_affine():
    box = BrainBox(_maps().mask, _maps().grid)
    for axis in range(3):
        assert box.mask.movedim(axis, 0)[[0, -1]].flatten(1).any(1).all()
    assert box.mask.sum() == _maps().mask.sum()
    assert box.grid.b0_direction == _maps().grid.b0_direction
    assert torch.equal(box.restore(box.mask[None])[0], _maps().mask)


def test_a_head_near_upright_is_not_turned():
    mask = torch.ones((8, 9, 10), dtype=torch.bool)
    grid = Grid((8, 9, 10), (1.0, 1.0, 1.0), (0.0, 0.02, 1.0))
    upright, as_it_is = BrainBox(mask, grid, b0_along_z=True), BrainBox(mask, grid)
    assert upright.grid.b0_direction == as_it_is.grid.b0_direction
    assert torch.equal(upright.mask, as_it_is.mask)


@pytest.mark.parametrize("b0", [(0.0, 0.5, 0.87), (-0.3, 0.2, 0.93), (0.4, 0.0, -0.9)])
@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (1.0, 1.2, 1.5)])
def test_turned_sources_have_the_turned_field(b0, voxel_mm):
    """The field of the turned sources, with B0 along z, is the turned field of the sources."""
    shape = (40, 42, 36)
    rng = np.random.default_rng(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[8:32, 8:34, 8:28] = True
    chi = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2.0)) * mask
    chi = torch.from_numpy(ndimage.gaussian_filter(chi.numpy(), 1.0))
    grid = Grid(shape, voxel_mm, b0)
    everywhere = torch.ones(shape, dtype=torch.bool)
    box = BrainBox(everywhere, grid, b0_along_z=True)
    assert abs(box.grid.b0_direction[2]) == 1
    expected = Dipole(grid).apply(chi)
    inner = torch.zeros(shape, dtype=torch.bool)
    inner[12:-12, 12:-12, 12:-12] = True
    found = box.restore(Dipole(box.grid).apply(box.cut(chi))[None])[0]
    assert float((found - expected)[inner].norm() / expected[inner].norm()) < 0.06
    back = box.restore(box.cut(chi)[None])[0]
    assert float((back - chi)[inner].norm() / chi[inner].norm()) < 0.03


def test_turning_keeps_the_mask_and_what_is_not_negative():
    head = make_head((24, 26, 22))
    maps = head.maps()
    grid = Grid(maps.grid.shape, maps.grid.voxel_mm, (0.3, 0.3, 0.9))
    box = BrainBox(maps.mask, grid, b0_along_z=True)
    assert box.mask.dtype == torch.bool
    assert int(box.mask.sum()) == pytest.approx(int(maps.mask.sum()), rel=0.03)
    for axis in range(3):
        assert not box.mask.movedim(axis, 0)[[0, -1]].any(), "nothing is cut off"
    rate = maps.r2prime_hz
    assert rate is not None
    assert float(box.cut(rate * maps.mask).min()) >= 0
    assert not box.restore(torch.ones(1, *box.mask.shape))[0][~maps.mask].any()
