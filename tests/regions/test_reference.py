"""References of a susceptibility map."""

from __future__ import annotations

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.regions.reference import defined, reference_of, referenced, ventricles


def test_mean_and_standard_error_of_independent_voxels():
    rng = np.random.default_rng(0)
    region = np.zeros((40, 40, 40), dtype=bool)
    region[5:35, 5:35, 5:35] = True
    chi = rng.normal(0.02, 0.005, region.shape).astype(np.float32)
    found = reference_of(chi, region, "test")
    assert found.value_ppm == pytest.approx(chi[region].mean(), abs=1e-8)
    assert found.sigma_ppm == pytest.approx(0.005 / np.sqrt(region.sum()), rel=0.3)
    assert found.sd_ppm == pytest.approx(0.005, rel=0.05)
    assert found.voxels == 27000
    facts = found.facts()
    assert facts["ReferencePpb"] == round(1000 * found.value_ppm, 3)
    assert facts["ReferenceRegion"] == "test"


def test_errors_that_neighbours_share_count():
    """Each block of 5 × 5 × 5 voxels has one error: there are 216 of them, not 27000."""
    rng = np.random.default_rng(1)
    chi = np.kron(rng.normal(0, 0.005, (6, 6, 6)), np.ones((5, 5, 5))).astype(np.float32)
    found = reference_of(chi, np.ones(chi.shape, dtype=bool), "test")
    assert found.sigma_ppm == pytest.approx(0.005 / np.sqrt(216), rel=0.2)


def test_too_few_voxels():
    region = np.zeros((5, 5, 5), dtype=bool)
    region[0, 0, :4] = True
    with pytest.raises(InputError, match="4 voxels of the region"):
        reference_of(np.ones((5, 5, 5), dtype=np.float32), region, "test")


def test_ventricles_are_eroded_together_and_known():
    labels = np.full((9, 9, 9), 2, dtype=np.int32)
    labels[2:7, 2:7, 2:7] = 4
    labels[2:7, 2:7, 4:7] = 14  # no edge between two ventricles
    known = np.ones(labels.shape, dtype=bool)
    known[4, 4, 4] = False
    found = ventricles(labels, known)
    expected = np.zeros(labels.shape, dtype=bool)
    expected[3:6, 3:6, 3:6] = True
    expected[4, 4, 4] = False
    assert np.array_equal(found, expected)


def test_a_map_is_shifted_inside_and_stays_0_outside():
    chi = np.zeros((7, 7, 7), dtype=np.float32)
    chi[1:6, 1:6, 1:6] = 0.03
    chi[3, 3, 3] = 0  # both sources are 0 there
    made = referenced(chi, 0.01, defined(chi))
    assert made.dtype == np.float32
    assert made[3, 3, 3] == np.float32(-0.01)
    assert made[2, 2, 2] == pytest.approx(0.02)
    assert not made[chi.shape[0] - 1].any()
