"""Masks: heads with scalp, neck and fluid, crops, poor phase, masks of the user's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.errors import InputError
from chisep.preprocessing.mask import (
    MaskConfig,
    QualityConfig,
    brain_mask,
    checked_mask,
    quality_mask,
)
from chisep.preprocessing.morphology import depth_mm
from chisep.types import Grid
from tests.preprocessing.test_vsharp import ball


def dice(a, b):
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


@pytest.mark.parametrize("snr", [100.0, 20.0])
def test_brain_of_a_head_with_scalp_and_coil_shading(head, snr):
    mask = brain_mask(head.gre(snr).abs(), head.grid)
    assert mask.dtype == torch.bool
    assert dice(mask, head.brain) >= 0.97


def test_scalp_joined_to_the_brain_by_bridges_is_cut_off(head):
    magnitude = head.gre().abs()
    i, j, _ = (n // 2 for n in head.grid.shape)
    magnitude[:, i - 1 : i + 2, j - 1 : j + 2, :] = magnitude[:, head.brain].mean()
    mask = brain_mask(magnitude, head.grid)
    assert dice(mask, head.brain) >= 0.97


@pytest.mark.parametrize("method", ["bet", "threshold"])
def test_scale_of_the_magnitude_does_not_matter(head, method):
    magnitude, config = head.gre().abs(), MaskConfig(method)
    small, large = (brain_mask(magnitude * scale, head.grid, config) for scale in (2.0**-20, 1.0))
    torch.testing.assert_close(small, large)
    assert dice(large, head.brain) >= 0.97


def with_tissue(head, where, m0, r2star_hz):
    """Magnitudes of the head with other tissue in places outside the brain."""
    where = where & ~head.brain
    other = replace(
        head,
        m0=torch.where(where, m0, head.m0),
        r2star_hz=torch.where(where, r2star_hz, head.r2star_hz),
    )
    return other.gre(snr=30.0).abs()


def around(head, mm):
    distance = ndimage.distance_transform_edt(~head.brain.numpy(), sampling=head.grid.voxel_mm)
    return torch.from_numpy(distance <= mm)


def test_a_neck_larger_than_the_brain_is_left_out(head):
    """Muscle as bright as the brain in the first echo, below all of it and joined to it at the spine."""
    x, y, z = np.ogrid[tuple(slice(0, n) for n in head.grid.shape)]
    muscle = torch.from_numpy((z < 44) & ((x - 44) ** 2 + (y - 52) ** 2 < 50**2)) & ~around(head, 4.0)
    spine = torch.from_numpy((z < 20) & ((x - 44) ** 2 + (y - 44) ** 2 < 5**2))
    magnitude = with_tissue(head, muscle | spine, 1.2, 45.0)
    assert dice(brain_mask(magnitude, head.grid), head.brain) >= 0.95


def test_fluid_on_the_brain_is_left_out_on_request_only(head):
    fluid = around(head, 4.0) & ~head.brain
    magnitude = with_tissue(head, fluid, 0.6, 1.0)
    tight, wide = (brain_mask(magnitude, head.grid, MaskConfig(fluid_decay=d)) for d in (0.5, 0.0))
    assert dice(tight, head.brain) >= 0.97
    assert int((wide & fluid).sum()) > 0.8 * int(fluid.sum())


def test_brain_dephased_in_the_last_echo_is_kept_at_the_edge(head):
    """Steep fields of bone and air take the cortex off the last echo, not off the first."""
    depth = depth_mm(head.brain, head.grid)
    near = ball(head.grid, 25.0, (60.0, 0.0, 0.0))
    cortex = near & head.brain & (depth <= 2.0)
    magnitude = head.gre().abs()
    for echo, left in zip(magnitude, (1.0, 0.8, 0.5, 0.3, 0.15), strict=True):
        echo[cortex] *= left
    mask = brain_mask(magnitude, head.grid)
    assert float((mask & cortex).sum() / cortex.sum()) > 0.9
    assert dice(mask, head.brain) >= 0.97


def test_axes_may_lie_in_any_order_and_direction(head):
    magnitude = head.gre().abs()
    wanted = brain_mask(magnitude, head.grid)
    turned = magnitude.permute(0, 3, 1, 2).flip(1).contiguous()
    affine = head.grid.matrix()[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1])
    mask = brain_mask(turned, Grid(tuple(turned.shape[1:]), head.grid.voxel_mm, affine=affine))
    assert dice(mask.flip(0).permute(1, 2, 0), wanted) >= 0.98


def test_a_slab_through_the_brain(head):
    slab = slice(36, 60)
    grid = head.grid.reshaped((*head.grid.shape[:2], 24))
    assert dice(brain_mask(head.gre().abs()[..., slab], grid), head.brain[..., slab]) >= 0.95


def test_a_crop_inside_the_brain_is_kept_but_for_voxels_without_signal():
    rng = torch.Generator().manual_seed(0)
    grid = Grid((51, 51, 41), (0.47, 0.47, 1.0))
    magnitude = 3e-4 * (1 + 0.25 * torch.randn((3, *grid.shape), generator=rng)).clamp_min(0.3)
    magnitude[:, 20:24, :, 20] = 1.2e-4
    magnitude[:, :6, :6, :6] = 1e-6
    mask = brain_mask(magnitude, grid)
    assert not mask[:6, :6, :6].any()
    mask[:6, :6, :6] = True
    assert mask.all()


def test_a_brain_without_skull_is_found_whole(head):
    stripped = head.gre().abs() * head.brain
    assert dice(brain_mask(stripped, head.grid), head.brain) >= 0.98


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_image_is_refused(value):
    with pytest.raises(InputError, match="constant image"):
        brain_mask(torch.full((2, 8, 8, 8), value), Grid((8, 8, 8), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("method", ["bet", "threshold"])
def test_an_image_without_anything_deep_is_refused(method):
    magnitude = torch.zeros(2, 124, 124, 24)
    magnitude[:, 4:120, 4:120, 12] = 1.0
    with pytest.raises(InputError, match="no voxel left"):
        brain_mask(magnitude, Grid((124, 124, 24), (1.0, 1.0, 1.0)), MaskConfig(method))


@pytest.mark.parametrize("name", ["erosion_mm", "closing_mm", "low_signal", "fluid_decay", "fraction"])
def test_options_are_checked(name):
    with pytest.raises(InputError, match=name):
        MaskConfig(**{name: -1.0})


# ---- phase quality -----------------------------------------------------------------------------------------

GRID = Grid((60, 56, 30), (1.0, 1.0, 2.0))


def quality_with(*poor):
    quality = torch.full(GRID.shape, 0.9)
    for where in poor:
        quality[where] = 0.1
    return quality


def test_good_phase_leaves_the_mask_as_it_is():
    mask = ball(GRID, 25)
    assert torch.equal(quality_mask(quality_with(), mask, GRID), mask)


def test_poor_voxels_are_cut_at_the_edge_and_kept_where_they_are_few():
    mask = ball(GRID, 25)
    sinus = ball(GRID, 9, (0.0, 24.0, 0.0))
    speck = ball(GRID, 2, (8.0, -8.0, 0.0))
    vein = torch.zeros_like(mask)
    vein[28:31, :26, 15] = True
    small = ball(GRID, 5, (-10.0, 0.0, 0.0))
    kept = quality_mask(quality_with(sinus, speck, vein, small), mask, GRID)
    assert not (kept & ball(GRID, 6, (0.0, 24.0, 0.0))).any()
    # Where a vein opens to the surface, its mouth is cut.
    assert (kept | sinus)[ball(GRID, 23)].all()


def test_a_large_hole_is_cut_and_its_size_is_an_option():
    mask, hole = ball(GRID, 25), ball(GRID, 9)
    assert not (quality_mask(quality_with(hole), mask, GRID) & ball(GRID, 6)).any()
    assert quality_mask(quality_with(hole), mask, GRID, QualityConfig(hole_ml=4.0))[mask].all()


def test_what_poor_phase_cuts_off_is_left_out():
    mask = ball(GRID, 25)
    wall = torch.zeros_like(mask)
    wall[36:46] = True
    kept = quality_mask(quality_with(wall), mask, GRID)
    assert not kept[36:].any()
    assert torch.equal(kept[:34], mask[:34])


def test_a_brain_without_any_good_phase_is_refused():
    with pytest.raises(InputError, match="no voxel of the brain mask"):
        quality_mask(torch.zeros(GRID.shape), ball(GRID, 20), GRID)


@pytest.mark.parametrize("name", ["least_quality", "vein_mm", "hole_ml"])
def test_quality_options_are_checked(name):
    with pytest.raises(InputError, match=name):
        QualityConfig(**{name: -1.0})


# ---- masks of the user's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [1, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_mask_of_any_type_is_taken(inside, dtype):
    mask = ball(GRID, 20)
    assert torch.equal(checked_mask((mask * inside).to(dtype), GRID, "mine.nii.gz"), mask)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(GRID.shape), "0 ml"),
        (ball(GRID, 3), "0.1.* ml"),
        (torch.ones(60, 56, 31), r"shape \(60, 56, 31\)"),
        (torch.ones(60, 56, 30, 2), r"shape \(60, 56, 30, 2\)"),
        (ball(GRID, 20).float() + ball(GRID, 10), "3 different values from 0 to 2"),
        (torch.where(ball(GRID, 20), torch.nan, 0.0), ".* different values"),
        (ball(GRID, 20).float() - 0.5, "2 different values from -0.5 to 0.5"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused(mask, said):
    with pytest.raises(InputError, match=f"mine.nii.gz: found {said}"):
        checked_mask(mask, GRID, "mine.nii.gz")


def test_depth_is_in_mm_and_the_edge_of_the_volume_is_outside():
    depth = depth_mm(torch.ones(7, 9, 5, dtype=torch.bool), Grid((7, 9, 5), (1.0, 1.0, 2.0)))
    assert float(depth[3, 4, 2]) == 4.0
    assert float(depth[0, 4, 2]) == 1.0
    assert float(depth[3, 4, 0]) == 2.0
