from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.simulation.texture import layers, random_field, texture, with_mean_one


def slab() -> np.ndarray:
    """Planes along the first axis: CSF, 6 mm of cortex, white matter."""
    labels = np.full((40, 12, 12), 24, dtype=np.int16)
    labels[10:16] = 3
    labels[16:] = 2
    return labels


def test_iron_and_myelin_grow_from_the_pia_to_the_white_matter():
    pos, neg = layers(slab(), (1.0, 1.0, 1.0), None)
    for factor in (pos, neg):
        profile = factor[10:16, 6, 6]
        assert profile[-1] > 1.5 * profile[0]
        # The stripe at half depth rises above the straight line between its neighbours.
        assert profile[3] > 0.5 * (profile[1] + profile[5]) - 1e-3


def test_superficial_white_matter_has_more_iron_than_deep():
    pos, neg = layers(slab(), (1.0, 1.0, 1.0), None)
    for factor in (pos, neg):
        below = factor[16:, 6, 6]
        assert torch.all(below.diff() <= 0)
        assert below[0] > 1.2 * below[10]


def test_factors_are_one_in_the_mean_of_every_label():
    labels = slab()
    factor = with_mean_one(torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) + 0.1, labels)
    for label in (2, 3, 24):
        assert float(factor[torch.from_numpy(labels == label)].mean()) == pytest.approx(1, rel=1e-5)


def test_a_random_field_has_the_asked_smoothness():
    field = random_field((64, 64, 64), (1.0, 1.0, 1.0), [(2.0, 2.0, 6.0)], (1.0,), np.random.default_rng(0))
    assert float(field.std()) == pytest.approx(1, rel=1e-5)
    # The autocorrelation of noise smoothed by σ is exp(−d²/4σ²).
    for axis, sigma in ((0, 2.0), (2, 6.0)):
        moved = field.roll(3, axis)
        assert float((field * moved).mean()) == pytest.approx(np.exp(-9 / (4 * sigma**2)), abs=0.06)


def test_bundles_run_along_the_fibres():
    labels = np.full((48, 48, 48), 2, dtype=np.int16)
    directions = torch.zeros(3, 48, 48, 48)
    directions[1] = 1.0
    field = texture(labels, (1.0, 1.0, 1.0), directions, np.random.default_rng(0))
    assert float(field.std()) == pytest.approx(1, abs=0.15)
    along, across = (float((field.roll(4, axis) - field).var()) for axis in (1, 0))
    assert along < 0.9 * across
