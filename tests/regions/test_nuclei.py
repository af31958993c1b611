"""Nuclei of CIT168: the packaged atlas, and its registration to scans that look like its template."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from chisep.regions import nuclei
from chisep.regions.cit168 import (
    DATA,
    FIRST_LABEL,
    NAMES_FILE,
    NUCLEI,
    atlas_affine,
    nucleus_names,
    probability,
)
from chisep.regions.labels import read_names
from chisep.regions.nuclei import NucleiConfig, nuclei_on_scan
from chisep.types import Grid

IDENTITY = SimpleITK.AffineTransform(3)


class TestAtlas:
    def test_every_nucleus_is_on_its_side(self):
        for nucleus in NUCLEI:
            for number, side in zip(nucleus.numbers, (-1, 1), strict=True):
                p = probability(number)
                assert 0.9 < p.max() <= 1
                x = (np.argwhere(p > 0.5) @ atlas_affine()[:3, :3].T + atlas_affine()[:3, 3])[:, 0]
                assert (side * x > 0).all()

    def test_probabilities_add_up_to_one_at_most(self):
        total = sum(probability(number) for number in range(1, 33))
        assert total.max() <= 1 + 1e-6

    def test_names_are_those_of_the_packaged_table(self):
        table = read_names(DATA / NAMES_FILE)
        spelled = {"externus": "externa", "internus": "interna"}
        for label, name in nucleus_names().items():
            words = {spelled.get(word, word) for word in name.lower().split()}
            assert words <= set(table[label - FIRST_LABEL].lower().split()), name

    def test_notice(self):
        notice = (DATA / "NOTICE").read_text()
        assert re.search(r"Pauli.*CC BY 4\.0.*Changes:", notice, re.DOTALL)


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray, Grid]:
    """R2*, χ and brain of the template itself, around the nuclei, with noise."""
    template = nuclei._template()
    rng = np.random.default_rng(0)
    chi, rate = template.contrasts
    noise = rng.standard_normal((2, *chi.shape)).astype(np.float32)
    brain = np.any(template.contrasts != 0, axis=0)
    grid = Grid(chi.shape, (1.0, 1.0, 1.0), affine=template.affine)
    # In the units of maps; what is subtracted or divided by comes out again.
    return (20 * rate + noise[0]) * brain, (40 * chi + 5 * noise[1]) * brain / 1000, brain, grid


def dice(made: np.ndarray, true: np.ndarray) -> float:
    return 2 * (made & true).sum() / (made.sum() + true.sum())


def true_labels(grid: Grid) -> np.ndarray:
    every = {
        number: nuclei._pulled(probability(number), atlas_affine(), IDENTITY, grid.shape, grid.matrix())
        for nucleus in NUCLEI
        for number in nucleus.numbers
    }
    labels = np.zeros(grid.shape, dtype=np.int32)
    for number, p in every.items():
        labels[p > 0.5] = FIRST_LABEL + number
    return labels


@pytest.mark.slow
@pytest.mark.parametrize("with_rates", [True, False])
def test_nuclei_of_the_template_itself(scan, with_rates):
    rate, chi, brain, grid = scan
    made = nuclei_on_scan(rate if with_rates else None, chi, brain, brain, grid, IDENTITY)
    true = true_labels(grid)
    assert set(np.unique(made)) <= {0, *nucleus_names()}
    for label in nucleus_names():
        assert dice(made == label, true == label) > 0.75, label
    if with_rates:
        again = nuclei_on_scan(rate, chi, brain, brain, grid, IDENTITY)
        assert np.array_equal(made, again)


@pytest.mark.slow
def test_a_registration_of_the_brain_that_is_two_millimetres_off(scan):
    rate, chi, brain, grid = scan
    off = SimpleITK.TranslationTransform(3, (1.2, 1.2, 1.0))
    made = nuclei_on_scan(rate, chi, brain, brain, grid, off)
    true = true_labels(grid)
    shifted = ndimage.shift(true, (1.2, 1.2, 1.0), order=0)
    for nucleus in NUCLEI:
        labels = [FIRST_LABEL + number for number in nucleus.numbers]
        found, inside = np.isin(made, labels), np.isin(true, labels)
        assert dice(found, inside) > max(0.6, dice(np.isin(shifted, labels), inside)), nucleus.name


@pytest.mark.slow
def test_no_contrast_keeps_the_atlas(scan):
    """A scan of one value: no border can be moved, and nuclei are where the registration has them."""
    _, chi, brain, grid = scan
    flat = np.where(brain, 20.0, 0.0).astype(np.float32)
    rng = np.random.default_rng(1)
    noise = 0.01 * rng.standard_normal(chi.shape).astype(np.float32)
    config = NucleiConfig(demons=((1, 1.0, 1),))
    made = nuclei_on_scan(flat, noise * brain, brain, brain, grid, IDENTITY, config)
    true = true_labels(grid)
    assert dice(made > 0, true > 0) > 0.8


def test_a_scan_without_the_nuclei(scan):
    rate, chi, brain, grid = scan
    away = SimpleITK.TranslationTransform(3, (300.0, 0.0, 0.0))
    assert not nuclei_on_scan(rate, chi, brain, brain, grid, away).any()
