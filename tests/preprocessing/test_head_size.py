from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chisep.preprocessing.background import BackgroundConfig, remove_background
from chisep.preprocessing.head_size import adult_affine, adult_grid, adult_lengths, length_scale, small_head
from chisep.preprocessing.mask import MaskConfig, brain_mask
from chisep.preprocessing.registration import RegistrationConfig
from chisep.types import Grid


def ellipsoid(shape: tuple[int, int, int], share: float = 0.9) -> torch.Tensor:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return torch.from_numpy(x**2 + y**2 + z**2 < share**2)


@pytest.mark.parametrize(
    ("edge_mm", "expected"), [(5.0, 1.0), (3.0, 1.0), (1.2, 0.2), (0.5, 0.1), (0.38, 0.075)]
)
def test_scale_follows_the_voxel_size(edge_mm, expected):
    mask = ellipsoid((28, 34, 26))
    assert length_scale(mask, Grid(mask.shape, (edge_mm,) * 3)) == expected


def test_a_slab_and_a_crop_of_a_human_are_human():
    grid = Grid((140, 170, 6), (1.0, 1.0, 2.0))
    assert length_scale(torch.ones(grid.shape, dtype=torch.bool), grid) == 1
    across = ellipsoid((140, 170, 120))[:, :, 57:63]
    assert length_scale(across, grid) == 1
    crop = Grid((40, 40, 30), (0.8, 0.8, 0.8))
    assert length_scale(torch.ones(crop.shape, dtype=torch.bool), crop) == 1
    assert length_scale(torch.zeros(crop.shape, dtype=torch.bool), crop) == 1


def test_a_small_slab_of_a_mouse_is_a_mouse():
    grid = Grid((80, 100, 12), (0.15, 0.15, 0.5))
    mask = ellipsoid((80, 100, 30))[:, :, 9:21]
    assert length_scale(mask, grid) == 0.075
    assert "0.075 times" in small_head(0.075)[0]
    assert small_head(1.0) == []


def test_lengths_that_were_chosen_are_those_of_the_scan():
    assert adult_lengths(MaskConfig(), 0.1) == MaskConfig()
    assert adult_lengths(MaskConfig(closing_mm=0.5), 0.1) == MaskConfig(closing_mm=5.0)
    assert adult_lengths(MaskConfig(closing_mm=0.5), 1) == MaskConfig(closing_mm=0.5)
    chosen = RegistrationConfig(smoothing_mm=(0.4, 0.2))
    assert adult_lengths(chosen, 0.1).smoothing_mm == pytest.approx((4.0, 2.0))
    usual = BackgroundConfig()
    chosen = replace(usual, vsharp=replace(usual.vsharp, rim_mm=0.3))
    assert adult_lengths(chosen, 0.1).vsharp.rim_mm == pytest.approx(3.0)


def test_affine_is_that_of_the_enlarged_head():
    affine = np.array([[0.0, 0.1, 0, -3], [0.2, 0, 0, 4], [0, 0, 0.3, 5], [0, 0, 0, 1]])
    enlarged = adult_affine(affine, 0.1)
    np.testing.assert_allclose(enlarged[:3], 10 * affine[:3])
    grid = Grid((3, 4, 5), (0.2, 0.1, 0.3), affine=affine)
    np.testing.assert_allclose(adult_grid(grid, 0.1).matrix(), enlarged)
    assert adult_grid(grid, 0.1).voxel_mm == pytest.approx((2.0, 1.0, 3.0))
    assert adult_grid(grid, 1.0) is grid


def test_mask_and_local_field_of_a_mouse_are_those_of_the_enlarged_head(head):
    """Lengths scale with the head, so all edges a tenth as long give the same maps."""
    small = replace(head.grid, voxel_mm=tuple(0.1 * edge for edge in head.grid.voxel_mm))
    brain, of_mouse = (brain_mask(head.gre().abs(), grid) for grid in (head.grid, small))
    assert 2 * (brain & of_mouse).sum() > 0.99 * (brain.sum() + of_mouse.sum())
    scale = length_scale(head.brain, small)
    assert scale == 0.1
    usual = remove_background(head.total_ppm, head.brain, head.grid)
    scaled = remove_background(head.total_ppm, head.brain, adult_grid(small, scale))
    assert torch.equal(usual.mask, scaled.mask)
    torch.testing.assert_close(usual.local_field_ppm, scaled.local_field_ppm, atol=1e-6, rtol=1e-3)
