from __future__ import annotations

import numpy as np
import pytest

from chisep.simulation import labelmap
from chisep.simulation.anatomy import LabelMap, tilted, with_structures
from chisep.simulation.tissue import TissueConfig, make_tissue
from chisep.simulation.tracts import fibre_directions


@pytest.fixture(scope="module")
def structured(coarse: LabelMap) -> LabelMap:
    return with_structures(coarse, np.random.default_rng(0))


@pytest.fixture(scope="module")
def world(structured: LabelMap) -> np.ndarray:
    """Fibre directions in world axes; those of the packaged head's voxels are the world's."""
    return fibre_directions(
        structured.labels, structured.to_mni, structured.voxel_mm, np.random.default_rng(0)
    )


@pytest.mark.parametrize(
    ("labels", "axis"),
    [
        ((labelmap.CALLOSUM_BODY, labelmap.CALLOSUM_GENU, labelmap.CALLOSUM_SPLENIUM), 0),
        (labelmap.LONGITUDINAL, 1),
        (labelmap.CAPSULE_POSTERIOR, 2),
        (labelmap.PEDUNCLE, 2),
        (labelmap.CORTICOSPINAL, 2),
    ],
)
def test_fibres_run_as_anatomy_has_them(structured, world, labels, axis):
    here = np.isin(structured.labels, labels)
    assert here.sum() > 3
    assert (world[axis, here] ** 2).mean() > 0.6


def test_directions_are_unit_vectors(world):
    np.testing.assert_allclose(np.linalg.norm(world, axis=0), 1, atol=1e-5)


def test_fibres_turn_with_the_head_and_the_effect_follows(structured):
    config = TissueConfig(
        person_sd=0.0, texture_sd=0.0, opposed_sd=0.0, layered=False, refine_mm=4.0, orientation_effect=True
    )
    options = {"voxel_mm": (4.0, 4.0, 4.0), "b0_t": 3.0}
    upright = make_tissue(structured, np.random.default_rng(0), config, **options)
    lying = make_tissue(tilted(structured, (0.0, 90.0, 0.0)), np.random.default_rng(0), config, **options)
    callosum = upright.labels == labelmap.CALLOSUM_BODY
    assert float(upright.fibre_angle_rad[callosum].mean()) > 1.1
    assert float(lying.fibre_angle_rad[callosum].mean()) < 0.7
    assert (lying.r2prime_hz / upright.r2prime_hz)[callosum].mean() < 0.6
    # Sources are the same; only how fast they make the signal decay depends on B0.
    assert float((upright.chi_neg_ppm - lying.chi_neg_ppm).abs().max()) < 1e-6


def test_without_the_effect_r2prime_does_not_know_of_fibres(structured):
    config = TissueConfig(refine_mm=4.0)
    tissue = make_tissue(structured, np.random.default_rng(0), config, voxel_mm=(4.0,) * 3, b0_t=3.0)
    d_r = tissue.relaxivity
    expected = d_r.pos_hz_per_ppm * tissue.chi_pos_ppm + d_r.neg_hz_per_ppm * tissue.chi_neg_ppm
    np.testing.assert_allclose(tissue.r2prime_hz, expected, rtol=1e-5, atol=1e-6)
    assert 0 <= float(tissue.fibre_angle_rad.min()) <= float(tissue.fibre_angle_rad.max()) <= np.pi / 2 + 1e-6
