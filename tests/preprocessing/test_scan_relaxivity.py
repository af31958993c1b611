"""D_r from R2' and χ: known tissue gives its D_r, other tissue does not count, doubt gives the default."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.scan_relaxivity import (
    Estimate,
    ScanRelaxivity,
    choose_relaxivity,
    relaxivity_of_scan,
    source_text,
)
from chisep.types import Grid, Relaxivity

SHAPE = (48, 40, 32)
GRID = Grid(SHAPE, (2.0, 2.0, 2.0))
EQUAL = Relaxivity(114.0, 114.0)
BRAIN = np.zeros(SHAPE, dtype=bool)
BRAIN[2:-2, 2:-2, 2:-2] = True
NUCLEUS, TRACT, ELSEWHERE = np.s_[8:16, 8:30, 8:24], np.s_[24:36, 8:30, 8:24], np.s_[40:43, 8:30, 8:24]


def tissue(seed=0):
    """χ_pos, χ_neg and an estimated χ that is as much too small as that of the network."""
    random = np.random.default_rng(seed)
    pos, neg = np.full(SHAPE, 0.0), np.full(SHAPE, 0.0)
    # Uniform over blocks of 12 mm, so that smoothing changes nothing but edges.
    strength = np.kron(random.uniform(0.08, 0.14, (8, 7, 6)), np.ones((6, 6, 6)))[:48, :40, :32]
    pos[NUCLEUS], neg[NUCLEUS] = 1.07 * strength[NUCLEUS], 0.07 * strength[NUCLEUS]
    pos[TRACT], neg[TRACT] = 0.017, 0.017 + 0.4 * strength[TRACT]
    chi = pos - neg
    return pos, neg, np.where(chi > 0, chi / 1.058, chi / 1.23)


def found(pos, neg, chi, d_r=EQUAL, extra_hz=0.0):
    rates = d_r.pos_hz_per_ppm * pos + d_r.neg_hz_per_ppm * neg + extra_hz
    volumes = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in (rates, chi))
    return relaxivity_of_scan(*volumes, torch.from_numpy(BRAIN), GRID, np.random.default_rng(0))


@pytest.mark.parametrize("d_r", [(114.0, 114.0), (330.0, 120.0), (90.0, 117.0), (760.0, 760.0)])
def test_tissue_of_known_sources_gives_its_d_r(d_r):
    one = found(*tissue(), Relaxivity(*d_r))
    for estimate, true in ((one.pos, d_r[0]), (one.neg, d_r[1])):
        assert estimate.hz_per_ppm == pytest.approx(true, rel=0.1)
        low, high = estimate.interval90
        assert low < true < high
        assert estimate.is_usable


def test_d_r_scales_with_r2prime_and_not_with_the_seed():
    pos, neg, chi = tissue()
    once, twice = found(pos, neg, chi), found(2 * pos, 2 * neg, chi)
    assert twice.pos.hz_per_ppm == pytest.approx(2 * once.pos.hz_per_ppm, rel=1e-5)
    assert twice.neg.hz_per_ppm == pytest.approx(2 * once.neg.hz_per_ppm, rel=1e-5)
    assert found(pos, neg, chi) == once


def test_veins_and_lesions_do_not_count():
    pos, neg, chi = tissue()
    plain = found(pos, neg, chi)
    pos[ELSEWHERE][1, :, ::8] = chi[ELSEWHERE][1, :, ::8] = 0.25  # thin, and without R2' of their own below
    pos[36:39, 32:36, 24:28] = 0.0
    chi[36:39, 32:36, 24:28] = 1.0  # a haemorrhage whose R2' was lost
    other = found(pos, neg, chi)
    assert other.pos.hz_per_ppm == pytest.approx(plain.pos.hz_per_ppm, rel=0.01)
    assert other.pos.tissue_ml == pytest.approx(plain.pos.tissue_ml, rel=0.01)


def test_tissue_that_disagrees_widens_the_interval():
    pos, neg, chi = tissue()
    block = np.kron(np.random.default_rng(1).uniform(-8, 8, (16, 14, 11)), np.ones((3, 3, 3)))[:48, :40, :32]

    def width(one):
        low, high = one.pos.interval90
        return math.log(high / low)

    assert width(found(pos, neg, chi, extra_hz=block)) > 1.1 * width(found(pos, neg, chi))


def test_without_iron_there_is_no_estimate():
    pos, neg, chi = tissue()
    one = found(0.3 * pos, neg, np.minimum(chi, 0.04))
    assert math.isnan(one.pos.hz_per_ppm)
    assert not one.pos.is_usable
    chosen = choose_relaxivity(one, 7.0)
    assert chosen.relaxivity == default_relaxivity(7.0)
    assert "too uncertain" in chosen.warnings[0]
    assert source_text(chosen.facts) == "default; 90 % intervals: no estimate"


def test_without_diamagnetic_tissue_d_r_of_both_is_that_of_iron():
    pos, neg, chi = tissue()
    one = found(pos, neg, np.maximum(chi, 0))
    assert one.pos.hz_per_ppm == pytest.approx(114, rel=0.05)
    chosen = choose_relaxivity(one, 3.0)
    assert chosen.relaxivity == Relaxivity(one.pos.hz_per_ppm, one.pos.hz_per_ppm)
    assert "D_r,neg is too uncertain" in chosen.warnings[0]


def test_choice_states_values_intervals_and_source():
    known = ScanRelaxivity(Estimate(150.0, (140.0, 160.0), 2.0), Estimate(90.0, (75.0, 110.0), 20.0))
    chosen = choose_relaxivity(known, 3.0)
    assert chosen.relaxivity == Relaxivity(150.0, 90.0)
    assert chosen.facts["D_r_source"] == "scan"
    assert (chosen.facts["D_r_pos_low90"], chosen.facts["D_r_neg_high90"]) == (140.0, 110.0)
    assert "150 1/s/ppm (90 % interval 140 to 160)" in chosen.warnings[0]
    assert "in place of 114" in chosen.warnings[0]
    assert source_text(chosen.facts) == (
        "scan; 90 % intervals: χ_pos 140 to 160 1/s/ppm, χ_neg 75 to 110 1/s/ppm"
    )
    wide = ScanRelaxivity(Estimate(150.0, (90.0, 250.0), 2.0), known.neg)
    assert choose_relaxivity(wide, 3.0).relaxivity == default_relaxivity(3.0)
    assert "no measured R2'" in choose_relaxivity(None, 3.0).warnings[0]


@pytest.mark.parametrize("ratio", [0.3, 1.8])
def test_implausible_d_r_neg_is_that_of_static_dephasing(ratio):
    neg = Estimate(300.0 * ratio, (290.0 * ratio, 310.0 * ratio), 20.0)
    chosen = choose_relaxivity(ScanRelaxivity(Estimate(300.0, (290.0, 310.0), 2.0), neg), 7.0)
    used = chosen.relaxivity
    assert used.pos_hz_per_ppm == 300.0
    assert used.neg_hz_per_ppm == pytest.approx(300 * 2 / 3 * 133.77 / 107.84, rel=0.01)
    assert chosen.facts["D_r_source"] == "scan, D_r,neg by static dephasing"
    assert chosen.facts["D_r_neg_estimate"] == neg.hz_per_ppm
