"""Resampling through scanner coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from chisep.errors import InputError
from chisep.preprocessing.registration import resample_to
from chisep.types import Grid


def affine_of(voxel_mm, origin_mm, angles_deg=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() @ np.diag(voxel_mm)
    affine[:3, 3] = origin_mm
    return affine


def scanner_mm(shape, affine):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def ramps(shape, affine):
    """Two volumes that are linear in scanner mm, which linear interpolation reproduces exactly."""
    x, y, z = np.moveaxis(scanner_mm(shape, affine), -1, 0)
    return np.stack([2 * x - y + 3 * z + 50, 0.5 * x + y - z + 9])


def test_the_same_grid_gives_the_same_values():
    affine = affine_of((0.9, 0.9, 2.2), (-31.7, 12.3, 5.1), (10, -20, 30))
    data = torch.rand(2, 9, 10, 11)
    moved = resample_to(data, affine, Grid((9, 10, 11), (0.9, 0.9, 2.2), affine=affine))
    torch.testing.assert_close(moved, data, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_image_is_found_at_its_place_on_an_oblique_grid(dtype):
    source = affine_of((2.0, 2.0, 3.0), (-40.0, -42.0, -45.0))
    target = affine_of((1.1, 0.9, 1.3), (-10.0, -8.0, -12.0), (12, -7, 25))
    data = torch.from_numpy(ramps((40, 42, 30), source)).to(dtype)
    grid = Grid((14, 16, 12), (1.1, 0.9, 1.3), affine=target)
    moved = resample_to(data, source, grid)
    assert moved.dtype == dtype
    wanted = torch.from_numpy(ramps(grid.shape, target)).to(dtype)
    torch.testing.assert_close(moved, wanted, atol=1e-3, rtol=1e-5)


def test_zero_where_the_source_has_no_voxel():
    data = torch.ones(1, 4, 4, 4)
    moved = resample_to(data, affine_of((1, 1, 1), (0, 0, 2)), Grid((4, 4, 4), (1.0, 1.0, 1.0)))
    assert (moved[..., :2] == 0).all()
    assert (moved[..., 2:] == 1).all()


def test_volumes_apart_are_refused():
    with pytest.raises(InputError, match=r"spin echo.*does not overlap"):
        resample_to(
            torch.ones(1, 4, 4, 4),
            affine_of((1, 1, 1), (100, 0, 0)),
            Grid((4, 4, 4), (1.0, 1.0, 1.0)),
            source="spin echo",
        )
