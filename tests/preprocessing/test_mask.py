"""Brain mask: a whole head, a crop inside the brain, images without a brain."""

from __future__ import annotations

import pytest
import torch

from chisep.errors import InputError
from chisep.preprocessing.mask import MaskConfig, brain_mask
from chisep.types import Grid


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


def test_scale_of_the_magnitude_does_not_matter(head):
    magnitude = head.gre().abs()
    torch.testing.assert_close(brain_mask(magnitude * 2.0**-20, head.grid), brain_mask(magnitude, head.grid))


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


def test_an_image_without_anything_deep_is_refused():
    magnitude = torch.zeros(2, 24, 24, 24)
    magnitude[:, 4:20, 4:20, 12] = 1.0
    with pytest.raises(InputError, match="no voxel left"):
        brain_mask(magnitude, Grid((24, 24, 24), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("name", ["erosion_mm", "closing_mm", "low_signal"])
def test_options_are_checked(name):
    with pytest.raises(InputError, match=name):
        MaskConfig(**{name: -1.0})
