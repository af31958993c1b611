from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from chisep.simulation import labelmap
from chisep.simulation.anatomy import LabelMap, with_structures
from chisep.simulation.labelmap import Veins
from chisep.simulation.vessels import vein_fraction


@pytest.fixture(scope="module")
def grown(coarse: LabelMap) -> LabelMap:
    return with_structures(coarse, np.random.default_rng(1))


def volume_mm3(veins: Veins) -> float:
    return float((np.pi * veins.radius_mm**2 * veins.length_mm).sum())


def line(radius_mm: float, tilt: float, n: int = 400) -> Veins:
    t = np.linspace(-15, 15, n)[:, None]
    at = 20 + t * np.array([np.sin(tilt), 0.3 * np.sin(tilt), np.cos(tilt)])
    length = float(np.linalg.norm(at[-1] - at[0])) / (n - 1)
    return Veins(at, np.full(n, radius_mm), np.full(n, length))


@pytest.mark.parametrize("radius_mm", [0.1, 0.6, 2.0])
@pytest.mark.parametrize("tilt", [0.0, 0.7])
@pytest.mark.parametrize("factor", [1, 2])
def test_blood_of_a_tube_is_its_volume_at_every_resolution(radius_mm, tilt, factor):
    tube = line(radius_mm, tilt)
    shape = (40 * factor,) * 3
    filled = vein_fraction(tube, shape, (1 / factor,) * 3, (0, 0, 0), (factor,) * 3)
    assert filled.max() <= 1
    assert filled.sum() / factor**3 == pytest.approx(volume_mm3(tube), rel=0.12)


def test_blood_lies_along_the_tube():
    tube = line(1.0, 0.4)
    filled = vein_fraction(tube, (40, 40, 40), (1.0, 1.0, 1.0), (0, 0, 0), (1, 1, 1))
    at = np.argwhere(filled > 0)
    apart = np.linalg.norm(at[:, None] - tube.at_voxel[None], axis=-1).min(1)
    assert apart.max() < 1.0 + np.sqrt(3) / 2


def test_a_part_of_the_grid_holds_the_same_blood():
    tube = line(0.8, 0.3)
    whole = vein_fraction(tube, (80, 80, 80), (0.5,) * 3, (0, 0, 0), (2, 2, 2))
    part = vein_fraction(tube, (20, 40, 50), (0.5,) * 3, (15, 10, 5), (2, 2, 2))
    np.testing.assert_array_equal(part, whole[30:50, 20:60, 10:60])


def test_trees_are_connected_and_reach_a_sinus(grown, packaged):
    veins = grown.veins
    # Labels of a sinus and 4 mm around every piece: pieces are 0.2 mm long, edges at most 12 mm.
    shape = np.array(grown.labels.shape)
    filled = np.zeros(shape, dtype=np.bool_)
    index = np.rint(veins.at_voxel).astype(int)
    filled[tuple(index[np.all((index >= 0) & (index < shape), axis=1)].T)] = True
    sinus = grown.labels == labelmap.VEIN
    parts, _ = ndimage.label(filled | sinus, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.97 * sizes.sum()
    assert (sinus & (parts == sizes.argmax() + 1)).any()


def test_calibers_follow_murrays_law(grown):
    radius = np.unique(grown.veins.radius_mm.round(6))
    thin = [radius[radius < 0.3].min(), grown.veins.radius_mm.max()]
    assert 0.05 < thin[0] < 0.15
    assert 0.8 < thin[1] < 2.5
    # Leaves 1, 2 and 3 of the deep tree: r is the cube root of how many leaves drain through it.
    np.testing.assert_allclose(radius[:3] ** 3 / radius[0] ** 3, (1, 2, 3), rtol=1e-4)


def test_thin_veins_are_many_and_thick_ones_few(grown):
    veins = grown.veins
    lengths = [
        veins.length_mm[(veins.radius_mm >= a) & (veins.radius_mm < b)].sum() for a, b in ((0, 0.2), (0.6, 3))
    ]
    assert lengths[0] > 5 * lengths[1] > 0
    assert 2_000 < volume_mm3(veins) < 30_000


def test_veins_do_not_move_with_the_scanner(coarse):
    from chisep.simulation.anatomy import tilted

    grown = with_structures(coarse, np.random.default_rng(1))
    assert tilted(grown, (10.0, 0.0, 0.0)).veins is grown.veins
