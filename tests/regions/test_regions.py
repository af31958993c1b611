"""Regions: labels keep their place on every grid, tables say what the maps hold, names cannot do harm."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.tsv import clean_text, slug
from chisep.regions.atlas import _packaged, labels_on_scan, packaged_atlas, registration
from chisep.regions.freesurfer import freesurfer_names
from chisep.regions.labels import LabelImage, load_labels, read_names, resampled_labels
from chisep.regions.statistics import (
    COLUMNS,
    RegionMap,
    read_values,
    region_values,
    values_dictionary,
    write_values,
)
from chisep.types import Grid

FORMULA = ("=", "+", "-", "@")


def grid_of(affine: np.ndarray, shape: tuple[int, int, int]) -> Grid:
    i, j, k = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return Grid(shape, (i, j, k), affine=affine)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (6, 7, 8)).astype(np.int32)


class TestNames:
    @given(st.text(max_size=200))
    def test_a_cleaned_text_is_one_harmless_cell(self, text):
        cleaned = clean_text(text)
        assert not cleaned.startswith(FORMULA)
        assert not set("\t\r\n\0") & set(cleaned)
        assert len(cleaned) <= 80
        assert clean_text(cleaned) == cleaned

    @given(st.text(max_size=50))
    def test_a_slug_is_a_plain_word(self, text):
        assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
        assert "__" not in slug(text)

    def test_freesurfer(self):
        names = freesurfer_names()
        known = {12: "Left-Putamen", 51: "Right-Putamen", 16: "Brain-Stem"}
        known |= {1001: "ctx-lh-bankssts", 1005: "ctx-lh-cuneus", 2024: "ctx-rh-precentral"}
        known |= {1035: "ctx-lh-insula"}
        assert {number: names[number] for number in known} == known
        assert slug(names[12]) == "left_putamen"

    def test_table(self, tmp_path):
        table = tmp_path / "dseg.tsv"
        table.write_text("index\tname\tcolor\n7\t=cmd|'/c calc'!A1\t#fff\n8\t\t\n9\tred  nucleus\t\n")
        assert read_names(table) == {7: "cmd|'/c calc'!A1", 8: "label 8", 9: "red nucleus"}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"name\tindex\n",
            b"a\tb\n1\t2\n",
            b"index\tname\nx\ty\n",
            b"index\tname\n1\n",
            b"\xff\xfe\0index",
        ],
    )
    def test_no_table(self, tmp_path, content):
        table = tmp_path / "dseg.tsv"
        table.write_bytes(content)
        if content in (b"", b"name\tindex\n"):
            assert read_names(table) == {}
        else:
            with pytest.raises(InputError, match="label table"):
                read_names(table)


class TestLabels:
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 1)])
    def test_any_orientation_of_one_grid_gives_the_same_labels(self, labels, order, flips):
        affine = np.diag([1.1, 0.9, 1.3, 1.0])
        affine[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() @ affine[:3, :3]
        affine[:3, 3] = 5.0, -7.0, 3.0
        image = nib.Nifti1Image(labels, affine)
        turned = image.as_reoriented([(order.index(axis), -1 if flips[axis] else 1) for axis in range(3)])
        other = LabelImage(np.asarray(turned.dataobj).astype(np.int32), turned.affine, {}, "turned")
        made = resampled_labels(other, grid_of(affine, labels.shape))
        assert np.array_equal(made, labels)

    @settings(max_examples=30, deadline=None)
    @given(st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.floats(0.4, 3)] * 3), st.floats(-5, 5))
    def test_no_label_is_made_up(self, angles, edges, shift):
        rng = np.random.default_rng(1)
        labels = rng.choice(np.array([0, 3, 1000, 20001], dtype=np.int32), (6, 7, 8))
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(edges)
        affine[:3, 3] = shift
        made = resampled_labels(LabelImage(labels, np.eye(4), {}, "x"), grid_of(affine, (5, 6, 7)))
        assert set(np.unique(made)) <= {0, 3, 1000, 20001}

    def test_a_transform_moves_labels_back(self, labels):
        move = np.eye(4)
        move[:3, :3] = Rotation.from_euler("z", 7, degrees=True).as_matrix()
        move[:3, 3] = 2.0, -1.0, 4.0
        moved = LabelImage(labels, move @ np.eye(4), {}, "moved")
        made = resampled_labels(moved, grid_of(np.eye(4), labels.shape), move)
        assert np.array_equal(made, labels)

    def test_freesurfer_volume(self, tmp_path):
        numbers = np.zeros((5, 6, 7), dtype=np.int32)
        numbers[1:3, 2, 3], numbers[4] = 12, 51
        affine = np.array([[-1.0, 0, 0, 3], [0, 0, 1, -2], [0, -1, 0, 4], [0, 0, 0, 1]])
        path = tmp_path / "aseg.mgz"
        nib.save(nib.freesurfer.MGHImage(numbers, affine), path)
        image = load_labels(path)
        assert np.array_equal(image.labels, numbers)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        assert image.name(12) == "Left-Putamen"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"aseg\.mgz"):
            load_labels(path)

    @pytest.mark.parametrize("value", [0.5, -1.0, 3e9])
    def test_what_is_no_label_map(self, tmp_path, value):
        data = np.ones((3, 3, 3), dtype=np.float32)
        data[0, 0, 0] = value
        path = nifti.save(tmp_path / "dseg.nii.gz", data, np.eye(4))
        with pytest.raises(InputError, match="whole numbers"):
            load_labels(path)

    def test_numbers_without_meaning_get_no_freesurfer_names(self, tmp_path):
        path = nifti.save(tmp_path / "x.nii.gz", np.full((2, 2, 2), 7001.0), np.eye(4))
        assert load_labels(path).name(7001) == "label 7001"


@pytest.fixture(scope="module")
def case(labels):
    rng = np.random.default_rng(2)
    values = rng.normal(size=labels.shape).astype(np.float32)
    sigma = rng.uniform(1, 2, labels.shape).astype(np.float32)
    known = (rng.uniform(size=labels.shape) > 0.4) & (labels != 3)
    maps = [RegionMap("a_ppb", values, known, sigma), RegionMap("b_hz", 2 * values, known | True)]
    reliable = np.cumsum(np.ones(labels.shape), axis=0) > 2
    rows = region_values(
        labels, {1: "one"}, maps, (1.0, 2.0, 3.0), reliable, np.ones(labels.shape, dtype=bool)
    )
    return values, sigma, known, rows, reliable


class TestValues:
    def test_against_numpy(self, labels, case):
        values, sigma, known, rows, reliable = case
        assert [(row.index, row.map) for row in rows] == [
            (n, m) for n in (1, 2, 3, 4) for m in ("a_ppb", "b_hz")
        ]
        assert [row.name for row in rows[:4:2]] == ["one", "label 2"]
        for row in rows:
            here = (labels == row.index) & (known if row.map == "a_ppb" else True)
            assert row.voxels == here.sum()
            assert row.volume_ml == pytest.approx((labels == row.index).sum() * 0.006)
            assert row.reliable_part == pytest.approx(reliable[labels == row.index].mean())
            if row.voxels:
                inside = values[here].astype(np.float64) * (1 if row.map == "a_ppb" else 2)
                found = (row.mean, row.sd, row.median)
                assert found == pytest.approx((inside.mean(), inside.std(), np.median(inside)))
        assert rows[0].sigma == pytest.approx(sigma[(labels == 1) & known].mean())
        assert rows[1].sigma is None

    def test_a_region_without_values_is_told(self, case, tmp_path):
        (row,) = (row for row in case[3] if row.index == 3 and row.map == "a_ppb")
        assert (row.voxels, row.mean, row.sigma) == (0, None, None)
        text = write_values(tmp_path / "x.tsv", [row]).read_text()
        assert "\tn/a\tn/a\tn/a\tn/a\t" in text.splitlines()[1]

    def test_round_trip(self, case, tmp_path):
        rows = case[3]
        again = read_values(write_values(tmp_path / "x.tsv", rows))
        assert [(row.index, row.name, row.map, row.voxels) for row in again] == [
            (row.index, row.name, row.map, row.voxels) for row in rows
        ]
        for made, expected in zip(again, rows, strict=True):
            assert (made.mean is None) == (expected.mean is None)
            if expected.mean is not None:
                assert made.mean == pytest.approx(expected.mean, rel=1e-5)

    def test_a_table_of_a_version_without_the_reliable_part(self, case, tmp_path):
        path = write_values(tmp_path / "x.tsv", case[3])
        kept = COLUMNS.index("reliable_part")
        lines = ["\t".join(line.split("\t")[:kept]) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
        assert {(row.reliable_part, row.coverage, row.rim_part) for row in read_values(path)} == {(None,) * 3}

    def test_dictionary_has_every_column(self):
        content = values_dictionary({"a_ppb": "A"})
        assert tuple(content) == COLUMNS
        assert json.dumps(content)

    @pytest.mark.parametrize("content", [b"index\tname\n1\tx\n", b"\xff", b"index\n"])
    def test_another_table_is_refused(self, tmp_path, content):
        path = tmp_path / "x.tsv"
        path.write_bytes(content)
        if content == b"index\n":
            assert read_values(path) == []
        else:
            with pytest.raises(InputError, match="region values"):
                read_values(path)


class TestAtlas:
    def test_numbers_and_names(self):
        atlas = packaged_atlas()
        present = set(np.unique(atlas.labels).tolist()) - {0}
        assert present <= set(freesurfer_names())
        assert {10, 11, 12, 13, 49, 50, 51, 52, 16, 2, 41, 1024, 2024} <= present
        left = nib.affines.apply_affine(atlas.affine, np.argwhere(atlas.labels == 12).mean(0))
        assert -35 < left[0] < -15

    def test_a_turned_and_stretched_head_gets_its_labels(self):
        """The atlas' own contrast, moved: nuclei are found again, and twice the same with other threads."""
        atlas, (_, contrast) = packaged_atlas(), _packaged(with_r2star=True)
        move = np.eye(4)
        move[:3, :3] = Rotation.from_euler("xz", [20, -8], degrees=True).as_matrix() @ np.diag(
            [1.06, 0.95, 1.0]
        )
        move[:3, 3] = 12.0, -20.0, 15.0
        affine = move @ contrast.affine
        grid = grid_of(affine, contrast.image.shape)
        # The contrast is that of R2* relative to its median, with χ in the brain's median everywhere.
        rate = (20 * contrast.image).astype(np.float32)
        arguments = (rate, np.zeros_like(rate), contrast.brain, contrast.brain, grid)
        found = registration(*arguments)
        labels = labels_on_scan(atlas, found, contrast.brain, grid)
        expected = resampled_labels(atlas, grid_of(contrast.affine, contrast.image.shape))
        assert found.overlap > 0.93
        for nucleus in (10, 11, 12, 13, 49, 50, 51, 52):
            made, true = labels == nucleus, expected == nucleus
            assert 2 * (made & true).sum() / (made.sum() + true.sum()) > 0.7, nucleus
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            again = labels_on_scan(atlas, registration(*arguments), contrast.brain, grid)
            assert np.array_equal(again, labels)
        finally:
            torch.set_num_threads(threads)

    def test_an_empty_mask_is_refused(self):
        grid = Grid((4, 4, 4), (2.0, 2.0, 2.0))
        empty, volume = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=np.float32)
        with pytest.raises(InputError, match="empty mask"):
            registration(volume, volume, empty, empty, grid)
