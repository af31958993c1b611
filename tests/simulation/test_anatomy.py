from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.simulation import anatomy
from chisep.simulation.anatomy import LabelMap, brain_mask, load_labels, tilted, with_structures
from chisep.simulation.tissue_properties import BRAIN_LABELS


def centre_mm(head: LabelMap, *labels: int) -> np.ndarray:
    return head.affine[:3, :3] @ np.argwhere(np.isin(head.labels, labels)).mean(0) + head.affine[:3, 3]


def volume_ml(head: LabelMap, *labels: int) -> float:
    return float(np.isin(head.labels, labels).sum() * np.prod(head.voxel_mm) / 1000)


@pytest.fixture(scope="module")
def structured(packaged: LabelMap) -> LabelMap:
    return with_structures(packaged, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("labels", "low_ml", "high_ml"),
    [
        ((2, 41), 450, 700),
        ((3, 42), 450, 800),
        ((8, 47), 90, 150),
        ((10, 49), 12, 22),
        ((11, 50), 6, 12),
        ((12, 51), 8, 14),
        ((13, 52), 3, 6),
        ((16,), 18, 32),
        ((17, 53), 6, 14),
    ],
)
def test_structures_of_the_packaged_head_have_volumes_of_adults(packaged, labels, low_ml, high_ml):
    assert low_ml < volume_ml(packaged, *labels) < high_ml


@pytest.mark.parametrize("pair", [(2, 41), (3, 42), (8, 47), (10, 49), (12, 51), (17, 53)])
def test_left_is_left(packaged, pair):
    left, right = (centre_mm(packaged, label) for label in pair)
    assert left[0] < -8 < 8 < right[0]
    np.testing.assert_allclose(left * [-1, 1, 1], right, atol=2.5)


def test_cerebellum_lies_below_and_behind_the_cerebrum(packaged):
    cerebellum, cerebrum = centre_mm(packaged, 7, 8, 46, 47), centre_mm(packaged, 2, 3, 41, 42)
    assert cerebellum[1] < cerebrum[1] - 30
    assert cerebellum[2] < cerebrum[2] - 40
    parts, _ = ndimage.label(np.isin(packaged.labels, anatomy.CEREBELLUM))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.98 * sizes.sum()


def test_brain_is_wrapped_and_has_air_spaces_near_it(packaged):
    brain = np.isin(packaged.labels, BRAIN_LABELS)
    air = packaged.labels == 0
    assert not (ndimage.binary_dilation(brain, iterations=3) & air).any()
    spaces, count = ndimage.label(air)
    outer = spaces[0, 0, -1]
    enclosed = air & (spaces != outer)
    assert count >= 3
    assert enclosed.sum() > 20_000
    assert (ndimage.binary_dilation(brain, iterations=10) & enclosed).any()


@pytest.mark.parametrize(
    ("labels", "place_mm", "low_ml", "high_ml"),
    [
        (anatomy.NIGRA, (10, -18, -11), 0.4, 1.2),
        (anatomy.RED_NUCLEUS, (5, -20, -9), 0.3, 0.8),
        (anatomy.SUBTHALAMIC, (11, -13, -7), 0.1, 0.5),
        (anatomy.DENTATE, (16, -58, -34), 1.0, 3.5),
        (anatomy.PULVINAR, (14, -28, 6), 2.0, 5.0),
    ],
)
def test_small_nuclei_are_where_the_atlases_have_them(structured, labels, place_mm, low_ml, high_ml):
    left, right = (centre_mm(structured, label) for label in labels)
    np.testing.assert_allclose(right, place_mm, atol=4)
    np.testing.assert_allclose(left * [-1, 1, 1], place_mm, atol=4)
    assert low_ml < volume_ml(structured, *labels) < high_ml


def test_structures_replace_only_what_they_lie_in(packaged, structured):
    changed = packaged.labels != structured.labels
    assert set(np.unique(packaged.labels[changed & np.isin(structured.labels, anatomy.NIGRA)])) <= {
        16,
        28,
        60,
    }
    assert set(np.unique(packaged.labels[changed & np.isin(structured.labels, anatomy.PULVINAR)])) == {10, 49}
    tracts = (
        *anatomy.CAPSULE_POSTERIOR,
        *anatomy.LONGITUDINAL,
        anatomy.CALLOSUM_GENU,
        anatomy.CALLOSUM_SPLENIUM,
    )
    assert set(np.unique(packaged.labels[np.isin(structured.labels, tracts)])) == {2, 41}
    assert not np.isin(packaged.labels[changed], anatomy.OUTSIDE).any()


def test_the_inner_pallidum_lies_medial_of_the_outer(structured):
    for side, sign in ((0, -1), (1, 1)):
        outer, inner = (centre_mm(structured, pair[side]) for pair in ((13, 52), anatomy.PALLIDUM_INTERNUM))
        assert sign * outer[0] > sign * inner[0] + 1


def test_the_dentate_is_a_folded_sheet(structured):
    nucleus = structured.labels == anatomy.DENTATE[0]
    part = ndimage.find_objects(nucleus.astype(np.int8))[0]
    assert nucleus[part].mean() < 0.4
    assert not ndimage.binary_erosion(nucleus, iterations=2).any()


def test_the_pineal_gland_is_a_small_thing_on_the_midline(structured):
    np.testing.assert_allclose(centre_mm(structured, anatomy.PINEAL), (0, -32, 0), atol=3)
    assert 0.002 < volume_ml(structured, anatomy.PINEAL) < 0.1


def test_callosum_runs_from_genu_to_splenium(structured):
    genu, body, splenium = (
        centre_mm(structured, label)
        for label in (anatomy.CALLOSUM_GENU, anatomy.CALLOSUM_BODY, anatomy.CALLOSUM_SPLENIUM)
    )
    assert genu[1] > 15 > body[1] > -29 > splenium[1]
    assert body[2] > max(genu[2], splenium[2])


def test_people_differ_and_equal_seeds_do_not(packaged, structured):
    again = with_structures(packaged, np.random.default_rng(1))
    other = with_structures(packaged, np.random.default_rng(2))
    np.testing.assert_array_equal(again.labels, structured.labels)
    assert (other.labels != structured.labels).sum() > 1000


def test_placing_does_not_depend_on_the_orientation_of_the_voxels(coarse):
    turned = LabelMap(
        np.ascontiguousarray(coarse.labels.transpose(0, 2, 1)[::-1]),
        coarse.affine[:, [0, 2, 1, 3]] @ np.array([[-1, 0, 0, coarse.labels.shape[0] - 1.0], *np.eye(4)[1:]]),
        "turned",
    )
    straight = with_structures(coarse, np.random.default_rng(3)).labels
    back = with_structures(turned, np.random.default_rng(3)).labels[::-1].transpose(0, 2, 1)
    assert (straight != coarse.labels).mean() > 0.01
    assert (straight != back).mean() < 1e-4


def test_a_head_without_nuclei_is_returned_with_a_warning():
    labels = np.zeros((12, 12, 12), dtype=np.int16)
    labels[3:9, 3:9, 3:9] = 3
    head = LabelMap(labels, np.eye(4), "cube")
    with pytest.warns(ChisepWarning, match="cube"):
        assert with_structures(head, np.random.default_rng(0)) is head


def test_tilt_turns_b0_and_keeps_centre_and_size(coarse):
    turned = tilted(coarse, (20.0, 0.0, 0.0))
    np.testing.assert_allclose(turned.voxel_mm, coarse.voxel_mm)
    direction = nifti.b0_direction_of(turned.affine)
    np.testing.assert_allclose(direction, (0, np.sin(np.deg2rad(20)), np.cos(np.deg2rad(20))), atol=1e-9)
    centre = np.array([*(np.array(coarse.labels.shape) - 1) / 2, 1.0])
    np.testing.assert_allclose(turned.affine @ centre, coarse.affine @ centre, atol=1e-9)


def test_tilt_about_every_axis_is_a_rotation_about_that_axis(coarse):
    for axis in range(3):
        angles = [0.0, 0.0, 0.0]
        angles[axis] = 90.0
        turn = tilted(coarse, angles).affine[:3, :3] @ np.linalg.inv(coarse.affine[:3, :3])
        np.testing.assert_allclose(turn[:, axis], np.eye(3)[axis], atol=1e-12)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        np.testing.assert_allclose(turn[:, a], np.eye(3)[b], atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1.0)


def test_loading_keeps_labels_at_their_places_and_crops(coarse, coarse_file):
    head = load_labels(coarse_file)
    for label in (2, 8, 12, 53):
        np.testing.assert_allclose(centre_mm(head, label), centre_mm(coarse, label), atol=1e-3)
    assert head.source == str(coarse_file)


def test_margin_is_air_except_where_the_neck_is_cut(packaged):
    faces = [np.any(packaged.labels.take(face, axis)) for axis in range(3) for face in (0, -1)]
    assert faces == [False, False, False, False, True, False]


def test_a_brain_alone_gets_an_outside(coarse, tmp_path):
    brain = np.where(np.isin(coarse.labels, anatomy.OUTSIDE), 0, coarse.labels)
    head = load_labels(nifti.save(tmp_path / "aseg.nii.gz", brain, coarse.affine, dtype=np.int16))
    for label in (anatomy.SKULL, anatomy.SOFT_TISSUE):
        assert volume_ml(head, label) > 200
    assert not (ndimage.binary_dilation(np.isin(head.labels, BRAIN_LABELS)) & (head.labels == 0)).any()


def test_parcels_become_cortex_and_white_matter(coarse, tmp_path):
    parcelled = coarse.labels.copy()
    parcelled[parcelled == 3] = 1027
    parcelled[parcelled == 42] = 12145
    parcelled[parcelled == 41] = 4018
    head = load_labels(nifti.save(tmp_path / "wmparc.nii.gz", parcelled, coarse.affine, dtype=np.int16))
    for label in (2, 3, 41, 42):
        assert (head.labels == label).sum() == (coarse.labels == label).sum()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda labels: labels + np.float32(0.25), "fractions"),
        (lambda labels: labels - np.float32(1), "between -1"),
        (lambda labels: np.where(np.isin(labels, (2, 41)), 0, labels), "white matter"),
        (lambda labels: np.where(np.isin(labels, (3, 42)), 0, labels), "cortex"),
    ],
)
def test_other_images_are_refused(coarse, tmp_path, change, found):
    path = nifti.save(tmp_path / "wrong.nii.gz", change(coarse.labels), coarse.affine)
    with pytest.raises(InputError, match=found) as caught:
        load_labels(path)
    assert str(path) in str(caught.value)


def test_brain_mask_holds_all_brain_without_holes(coarse):
    mask = brain_mask(coarse, BRAIN_LABELS)
    assert mask[np.isin(coarse.labels, BRAIN_LABELS)].all()
    np.testing.assert_array_equal(mask, ndimage.binary_fill_holes(mask))
    shifted = replace(coarse, labels=np.roll(coarse.labels, 1, axis=0))
    np.testing.assert_array_equal(brain_mask(shifted, BRAIN_LABELS), np.roll(mask, 1, axis=0))


def test_a_real_head_gets_every_structure(shared_labels: Path):
    head = load_labels(shared_labels / "head-01_dseg.nii.gz")
    full = with_structures(head, np.random.default_rng(0))
    for labels in (
        anatomy.NIGRA,
        anatomy.RED_NUCLEUS,
        anatomy.DENTATE,
        anatomy.PULVINAR,
        anatomy.PALLIDUM_INTERNUM,
        anatomy.CAPSULE_POSTERIOR,
        anatomy.CINGULUM,
        anatomy.LONGITUDINAL,
    ):
        left, right = (volume_ml(full, label) for label in labels)
        assert min(left, right) > 0.1
        assert max(left, right) < 2 * min(left, right)
    assert full.veins is not None
    nigra, nucleus = centre_mm(full, *anatomy.NIGRA), centre_mm(full, *anatomy.RED_NUCLEUS)
    assert nigra[1] > nucleus[1], "substantia nigra lies in front of the red nucleus"
    assert volume_ml(full, anatomy.CALLOSUM_BODY) > 3
