from __future__ import annotations

import gzip
import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisep.errors import InputError, OutputError
from chisep.io import nifti

AFFINE = np.array([[1.0, 0, 0, -5], [0, 0.8, 0, 3], [0, 0, 2, 7], [0, 0, 0, 1]])


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def raw(path, data, affine=AFFINE, **scaling):
    image = nib.Nifti1Image(data, affine)
    if scaling:
        image.header.set_slope_inter(**scaling)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_round_trip(tmp_path, volume, name):
    image = nifti.load(nifti.save(tmp_path / name, volume, AFFINE))
    np.testing.assert_array_equal(image.data, volume)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.voxel_mm == pytest.approx((1.0, 0.8, 2.0))


def test_equal_data_give_equal_bytes(tmp_path, volume):
    first, second = (nifti.save(tmp_path / n, volume, AFFINE).read_bytes() for n in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[:10] == bytes.fromhex("1f8b08000000000000ff"), "no name and no time in the stream's header"


def test_nothing_else_is_left(tmp_path, volume):
    nifti.save(tmp_path / "a.nii.gz", volume, AFFINE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float64])
def test_number_types_and_header_scale(tmp_path, dtype):
    data = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    path = raw(tmp_path / "a.nii", data, slope=0.5, inter=-1.0)
    np.testing.assert_allclose(nifti.load(path).data, data * 0.5 - 1)


def test_half_floats_in_memory(volume):
    """NIfTI has no 16-bit floats; arrays may have."""
    image = nib.Nifti1Image(volume, AFFINE)
    half = nib.spatialimages.SpatialImage(volume.astype(np.float16), AFFINE)
    np.testing.assert_allclose(nifti.from_nibabel(half).data, nifti.from_nibabel(image).data, atol=2e-3)
    assert nifti.from_nibabel(half).data.dtype == np.float32


def test_trailing_axis_of_one_is_dropped(tmp_path, volume):
    assert nifti.load(raw(tmp_path / "a.nii", volume[..., None])).data.shape == volume.shape


class TestRefuses:
    """One clear message: the file, what was found, what was wanted."""

    def check(self, path, *words):
        with pytest.raises(InputError) as caught:
            nifti.load(path)
        for word in (str(path), "expected", *words):
            assert word in str(caught.value)

    def test_missing(self, tmp_path):
        self.check(tmp_path / "none.nii.gz", "no such file")

    def test_series(self, tmp_path, volume):
        self.check(raw(tmp_path / "a.nii", np.stack([volume] * 3, -1)), "4-D", "3-D")

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, tmp_path, volume, value):
        volume[0, 0, :2] = value
        self.check(raw(tmp_path / "a.nii.gz", volume), "2 of 210 values are NaN or infinite")

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
    def test_truncated(self, tmp_path, volume, name, keep):
        path = raw(tmp_path / name, volume)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        self.check(path, "cannot be read")

    @pytest.mark.parametrize(("end", "said"), [(b"", "end-of-stream"), (bytes(8), "CRC")])
    def test_checksum_of_the_stream(self, tmp_path, volume, end, said):
        path = raw(tmp_path / "a.nii.gz", volume)
        path.write_bytes(path.read_bytes()[:-8] + end)
        self.check(path, said)

    def test_damaged_stream(self, tmp_path, volume):
        path = raw(tmp_path / "a.nii.gz", volume)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        self.check(path, "cannot be read")

    def test_other_format(self, tmp_path):
        (tmp_path / "a.nii").write_text("not an image")
        self.check(tmp_path / "a.nii", "cannot be read")
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not an image"))
        self.check(tmp_path / "a.nii.gz", "cannot be read")

    def test_flat_affine(self, volume):
        with pytest.raises(InputError, match="affine without an inverse"):
            nifti.from_nibabel(nib.spatialimages.SpatialImage(volume, np.diag([1.0, 1.0, 0.0, 1.0])))

    def test_empty_mask(self, tmp_path):
        with pytest.raises(InputError, match="without any voxel inside"):
            nifti.load_mask(raw(tmp_path / "m.nii", np.zeros((3, 3, 3), np.uint8)))

    def test_other_grid(self, volume):
        here = nifti.Image(volume, AFFINE, "here.nii")
        for other in (
            nifti.Image(volume[1:], AFFINE, "other.nii"),
            nifti.Image(volume, AFFINE + 0.5, "other.nii"),
        ):
            with pytest.raises(InputError, match=r"other\.nii.*here\.nii"):
                nifti.require_same_grid(here, other)

    def test_place_that_cannot_be_written(self, tmp_path, volume):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            nifti.save(tmp_path / "file" / "a.nii.gz", volume, AFFINE)


@given(
    st.floats(-60, 60),
    st.sampled_from([(0, 1, 2), (1, 2, 0), (2, 0, 1)]),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)
def test_b0_direction_of_oblique_flipped_and_permuted_axes(degrees, order, signs):
    """The direction in voxel axes, carried to the scanner by the affine, is the scanner's z."""
    angle = math.radians(degrees)
    turn = np.array(
        [[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]]
    )
    axes = turn @ np.eye(3)[:, order] @ np.diag(signs)
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag([0.5, 1.0, 3.0])
    direction = np.array(nifti.b0_direction_of(affine))
    np.testing.assert_allclose(axes @ direction, [0, 0, 1], atol=1e-12)
