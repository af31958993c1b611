"""Phase that is stored with the opposite sign: iron would be diamagnetic."""

from __future__ import annotations

import numpy as np
import pytest

from chisep.preprocessing.phase_sign import iron_contrast_ppb, phase_sign_warnings

SHAPE = (20, 20, 20)


@pytest.fixture
def maps():
    """χ and R2* of a brain with iron in a nucleus, its mask, and the nucleus."""
    rng = np.random.default_rng(0)
    nucleus = np.zeros(SHAPE, bool)
    nucleus[8:12, 8:12, 8:12] = True
    chi = rng.normal(0, 0.015, SHAPE) + 0.08 * nucleus
    r2star = 20 + rng.normal(0, 2, SHAPE) + 20 * nucleus
    return chi, r2star, np.ones(SHAPE, bool), nucleus


@pytest.mark.parametrize("labelled", [True, False])
def test_iron_is_paramagnetic(maps, labelled):
    chi, r2star, mask, nucleus = maps
    deep_grey = nucleus if labelled else np.zeros(SHAPE, bool)
    contrast = iron_contrast_ppb(chi, r2star, mask, deep_grey)
    assert contrast > 25
    assert phase_sign_warnings(contrast) == []
    opposite = iron_contrast_ppb(-chi, r2star, mask, deep_grey)
    assert opposite == pytest.approx(-contrast)
    assert "--field-map.phase-sign -1" in phase_sign_warnings(opposite)[0]


def test_noise_alone_says_nothing(maps):
    _, r2star, mask, _ = maps
    chi = np.random.default_rng(1).normal(0, 0.015, SHAPE)
    none = np.zeros(SHAPE, bool)
    assert phase_sign_warnings(iron_contrast_ppb(chi, r2star, mask, none)) == []
    assert iron_contrast_ppb(chi, r2star, mask & (np.arange(20) < 1), none) is None
