"""Images: any header, any stream."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisep.errors import InputError
from chisep.io import nifti
from tests.hostile import images
from tests.hostile.conftest import cases
from tests.hostile.limits import CASES, ends_well, nothing_half_written


def read(path, target, honest_bytes=20_000):
    """Read a file in all ways there are; what comes back can be computed with."""
    CASES[target] += 1
    header = ends_well(lambda: nifti.read_header(path))
    assert ends_well(lambda: nifti.number_of_axes(path)) in range(8)
    for ndim in (3, 4):
        image = ends_well(lambda n=ndim: nifti.load(path, ndim=n), honest_bytes=honest_bytes)
        if isinstance(image, InputError):
            continue
        assert not isinstance(header, InputError)
        assert image.data.dtype == np.float32
        assert image.data.ndim == ndim
        assert np.isfinite(image.data).all()
        assert np.isfinite(nifti.b0_direction_of(image.affine)).all()
        grid = ends_well(lambda image=image: nifti.grid_of(image))
        assert isinstance(grid, InputError) or grid.shape == image.data.shape[:3]
        assert nifti.grid_of(image, (0, 0, 1)).shape == image.data.shape[:3]
        # What was accepted can be written and comes back.
        again = nifti.load(nifti.save(path.with_name("again.nii.gz"), image.data, image.affine), ndim=ndim)
        np.testing.assert_array_equal(again.data, image.data)
    nothing_half_written(path.parent)


@cases(150, 1200)
@given(content=images.headers(), zipped=st.booleans())
def test_headers(tmp_path, content, zipped):
    path = tmp_path / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    read(path, "NIfTI headers")


@cases(80, 600)
@given(content=images.bent(images.whole()))
def test_bent_files(tmp_path, content):
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    read(path, "NIfTI bytes")


@cases(80, 600)
@given(content=images.bent(gzip.compress(images.whole(), mtime=0)))
def test_bent_streams(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    read(path, "gzip streams")


@cases(20, 100)
@given(content=st.binary(max_size=600), name=st.sampled_from(["a.nii", "a.nii.gz", "a.txt", "a"]))
def test_anything(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    read(path, "any bytes as NIfTI")


def test_a_stream_of_several_members_is_one_image(tmp_path):
    content = images.whole()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    np.testing.assert_array_equal(nifti.load(path).data.ravel(), np.arange(60).reshape(3, 4, 5).ravel())


def declared(shape, dtype=2):
    """A header that declares a shape, and no voxels."""
    content = bytearray(images.whole())
    block = np.frombuffer(content, "<i2", count=8, offset=40)
    block[: len(shape) + 1] = (len(shape), *shape)
    np.frombuffer(content, "<i2", count=2, offset=70)[:] = (dtype, {2: 8, 64: 64}[dtype])
    return bytes(content[:352])


BOMBS = {
    "more than any machine has": (declared((32767, 32767, 32767)), 0, "at most"),
    "much declared, nothing there": (declared((1500, 1000, 1000)), 0, "declares 1500000000"),
    "a gigabyte after the image": (images.whole(), 64, "much more"),
    "a stream that ends early": (declared((1024, 1024, 600)), 4, "declares 629145600"),
}
"""What precedes a stream of zeros, how many times 16 MiB of these there are, and what is said of it."""


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_are_checked_before_memory_is_taken(tmp_path, name):
    CASES["gzip bombs"] += 1
    start, times, said = BOMBS[name]
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(images.members(start, times, 2**24))
    assert path.stat().st_size < 2e6
    held = times * 2**24 if "early" in name else 0
    found = ends_well(lambda: nifti.load(path), honest_bytes=held, factor=3)
    assert isinstance(found, InputError)
    assert said in str(found)


def test_a_file_with_holes_is_not_read_for_its_length(tmp_path):
    """A terabyte by its length, a few kilobytes on the disk."""
    CASES["gzip bombs"] += 1
    path = tmp_path / "sparse.nii"
    with path.open("wb") as file:
        file.write(images.whole())
        file.truncate(2**40)
    assert isinstance(ends_well(lambda: nifti.load(path)), InputError)
