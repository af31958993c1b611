"""Dilation and erosion: voxels by their distance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from chisep.preprocessing import morphology
from chisep.preprocessing.morphology import closing, dilated, distance_inside, eroded
from chisep.types import Grid

RADII_MM = (0.0, 0.4, 1.0, 2.0, 3.7, 100.0)


def masks(shape):
    rng = np.random.default_rng(0)
    sparse = rng.random(shape) < 0.02
    blob = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0
    return {"sparse": sparse, "blob": blob, "nothing": blob & False, "all": blob | True, "holes": ~sparse}


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.5, 0.9, 2.0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", masks((1, 1, 1)))
def test_distances_decide(name, order, voxel_mm):
    shape = (21, 18, 15)
    mask, grid = np.asarray(masks(shape)[name], order=order), Grid(shape, voxel_mm)
    before = mask.copy()
    for radius_mm in RADII_MM:
        near = distance_inside(~mask, grid) <= radius_mm
        np.testing.assert_array_equal(dilated(mask, radius_mm, grid), near)
        np.testing.assert_array_equal(eroded(mask, radius_mm, grid), distance_inside(mask, grid) > radius_mm)
        closed = mask | (distance_inside(near, grid) > radius_mm)
        np.testing.assert_array_equal(closing(mask, radius_mm, grid), closed)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("reach", [1, 30])
def test_both_ways_agree(monkeypatch, reach):
    shape = (30, 30, 30)
    mask, grid = masks(shape)["sparse"], Grid(shape, (1.0, 1.2, 1.0))
    expected = distance_inside(~mask, grid) <= 8.3
    monkeypatch.setattr(morphology, "_LARGEST_REACH", reach)
    np.testing.assert_array_equal(dilated(mask, 8.3, grid), expected)
