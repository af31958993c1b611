"""The packaged label maps are bit-equal to what the atlases gave when chisep still read them at run time."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from chisep.regions.atlas import packaged_atlas
from chisep.simulation.labelmap import CEREBRAL_CORTEX, apply_affine, coarsened
from chisep.simulation.packaged import DATA, package_versions, packaged_parcels

SHA256 = {
    "labels": "473b875f11a148945a6cb62e10b9f1a8988d3ae898366d1f6fd53bde028ad7f0",
    "affine": "2de74a86e0bc99b02e9fd5769d2792f8ed57e0d7019a26404cf01e65093b08de",
    "atlas": "c45509ddafd5f6f6fd391592696ff0a97f5160a68ff93ab6fb820f333e8e6472",
}


def sha256(array: np.ndarray) -> str:
    head = str((array.dtype, array.shape)).encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["labels", "affine"])
def test_the_packaged_subject_is_bit_equal(packaged, name):
    assert sha256(getattr(packaged, name)) == SHA256[name]


def test_the_packaged_atlas_is_bit_equal(packaged):
    """It is cropped to the brain: nothing is lost beyond, and nothing moves."""
    atlas = packaged_atlas()
    first = np.rint(apply_affine(np.linalg.inv(packaged.affine), atlas.affine[:3, 3])).astype(int)
    whole = np.zeros(packaged.labels.shape, atlas.labels.dtype)
    whole[tuple(slice(a, a + n) for a, n in zip(first, atlas.labels.shape, strict=True))] = atlas.labels
    assert sha256(whole) == SHA256["atlas"]
    assert np.array_equal(atlas.affine[:3, :3], packaged.affine[:3, :3])


def test_parcels_lie_in_the_cortex(packaged):
    parcels = packaged_parcels()
    assert np.isin(packaged.labels[parcels > 0], CEREBRAL_CORTEX).all()
    assert set(np.unique(parcels)) <= {0, *range(1001, 1036), *range(2001, 2036)}


def test_the_sources_are_named():
    notice = (DATA / "NOTICE").read_text(encoding="utf-8")
    for package, version in package_versions().items():
        assert f"{package} {version}" in notice
    assert "McConnell Brain Imaging Centre" in notice


def test_coarser_labels_cover_the_same_head(packaged):
    coarse = coarsened(packaged, 3.0)
    assert coarse.voxel_mm == (3.0, 3.0, 3.0)
    corner = np.full(3, -0.5)
    np.testing.assert_allclose(apply_affine(coarse.affine, corner), apply_affine(packaged.affine, corner))
    at = np.array([20, 40, 30])
    middle = np.rint(apply_affine(np.linalg.inv(packaged.affine), apply_affine(coarse.affine, at))).astype(
        int
    )
    assert coarse.labels[tuple(at)] == packaged.labels[tuple(middle)]
    assert coarsened(packaged, 1.9) is packaged
