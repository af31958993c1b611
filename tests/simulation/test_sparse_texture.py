from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.simulation import labelmap
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.sparse_texture import factor_of, sparse_texture
from chisep.simulation.tissue import TissueConfig, make_tissue

VOXEL_MM = (1.0, 1.0, 1.0)
SPARSE = TissueConfig(person_sd=0.0, layered=False, refine_mm=float("inf"), texture="sparse")


def white(shape: tuple[int, int, int] = (72, 72, 72)) -> np.ndarray:
    return np.full(shape, 2, dtype=np.int16)


def kurtosis_of_bands(volume: torch.Tensor) -> list[float]:
    """Kurtosis between Gaussian filters of 1, 2 and 4 voxels."""
    smooth = [ndimage.gaussian_filter(volume.numpy(), sigma) for sigma in (1, 2, 4)]
    bands = [fine - coarse for fine, coarse in pairwise(smooth)]
    return [float((band**4).mean() / (band**2).mean() ** 2) for band in bands]


def of(
    seed: int, sds: tuple[float, float], directions=None, labels=None
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return sparse_texture(white() if labels is None else labels, VOXEL_MM, directions, sds, rng)


def test_texture_is_sparse_where_gaussian_fields_are_not():
    shared, exchanged = of(0, (0.55, 0.22))
    for factor in (factor_of(shared), factor_of(exchanged)):
        assert min(kurtosis_of_bands(factor)) > 10
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((72, 72, 72)).astype(np.float32))
    assert max(kurtosis_of_bands(noise)) < 4


def test_most_of_the_ground_is_flat():
    _, exchanged = of(0, (0.55, 0.22))
    assert float((exchanged == 0).float().mean()) > 0.9
    assert float(exchanged.max()) > 0.5
    assert float(exchanged.min()) < -0.5


def test_the_spread_is_about_that_asked_for():
    for sd in (0.2, 0.55):
        spreads = [float(of(seed, (sd, 0.0))[0].std()) for seed in range(4)]
        assert np.mean(spreads) == pytest.approx(sd, rel=0.3)
    assert all(float(field.abs().max()) == 0 for field in of(0, (0.0, 0.0)))


def test_bundles_are_strong_along_the_fibres():
    directions = torch.zeros(3, 72, 72, 72)
    directions[1] = 1.0
    bundles = of(0, (0.55, 0.0), directions)[0] - of(0, (0.55, 0.0))[0]
    along, across = (float((bundles.roll(4, axis) - bundles).square().mean()) for axis in (1, 0))
    assert along < 0.4 * across
    assert float(bundles.min()) > -1e-6


def test_fluid_and_blood_are_uniform_and_nuclei_nearly_so():
    labels = white()
    for start, label in ((0, labelmap.CSF), (10, labelmap.VEIN), (20, 4), (30, labelmap.PINEAL)):
        labels[start : start + 10] = label
    labels[40:56] = labelmap.PALLIDUM[0]
    for field in of(3, (0.55, 0.22), None, labels):
        assert float(field[:40].abs().max()) == 0
    shared, _ = of(3, (0.55, 0.22), None, labels)
    assert float(shared[40:56].std()) < 0.6 * float(shared[56:].std())


def test_structures_that_overlap_stay_bounded():
    assert float(factor_of(torch.tensor([0.0, 5.0, -5.0])).max()) < 8
    assert float(factor_of(torch.tensor(0.0))) == 1


def test_equal_seeds_give_equal_texture_and_regional_means_stay():
    labels = white((40, 40, 40))
    labels[:4] = labels[-4:] = labels[:, :4] = labels[:, -4:] = labels[:, :, :4] = labels[:, :, -4:] = 0
    labels[4:14, 4:-4, 4:-4] = 3
    head = LabelMap(labels, np.eye(4), "slab")

    def made(config: TissueConfig):
        return make_tissue(head, np.random.default_rng(5), config, voxel_mm=VOXEL_MM, b0_t=3.0)

    first, again, flat = made(SPARSE), made(SPARSE), made(replace(SPARSE, texture_sd=0.0, opposed_sd=0.0))
    torch.testing.assert_close(first.chi_neg_ppm, again.chi_neg_ppm, rtol=0, atol=0)
    gaussian = made(replace(SPARSE, texture="gaussian"))
    assert float((gaussian.chi_neg_ppm - first.chi_neg_ppm).abs().max()) > 0.005
    for label in (2, 3):
        here = torch.from_numpy(labels == label) & first.mask
        for name in ("chi_pos_ppm", "chi_neg_ppm"):
            mean, expected = (float(getattr(t, name)[here].mean()) for t in (first, flat))
            assert mean == pytest.approx(expected, rel=1e-4)
