"""Venous sinuses in a brain mask: found by χ without R2', and nothing else is."""

from __future__ import annotations

import pytest
import torch

from chisep.physics.dipole import Dipole
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.background import remove_background
from chisep.preprocessing.sinuses import FIT_ITERATIONS, venous_sinuses
from chisep.preprocessing.vsharp import VsharpConfig, fitted_sources
from chisep.types import Grid
from tests.preprocessing.test_vsharp import ball

GRID = Grid((48, 52, 44), (2.0, 2.0, 2.0), (0.0, 0.6, 0.8))
BRAIN = ball(GRID, 40.0)
BLOOD_PPM, TISSUE_HZ, B0_T = 0.3, 18.0, 3.0
AT_THE_SURFACE, DEEP = (0.0, 0.0, 37.0), (0.0, 0.0, 8.0)


def scan(centre, r2star_hz, chi_ppm=BLOOD_PPM):
    """Field of one ball in weak texture, R2*, and the ball."""
    spot = ball(GRID, 6.0, centre) & BRAIN
    texture = 0.01 * torch.randn(GRID.shape, generator=torch.Generator().manual_seed(0)) * BRAIN
    chi = torch.where(spot, chi_ppm, texture)
    rate = torch.where(spot, r2star_hz, TISSUE_HZ) * BRAIN
    return Dipole(GRID).apply(chi), rate, spot


def found_blood(field, rate, b0_t):
    config = VsharpConfig(iterations=FIT_ITERATIONS)
    return venous_sinuses(fitted_sources(field, BRAIN, GRID, config).chi_ppm, BRAIN, GRID, rate, b0_t)


def test_blood_at_the_surface_is_found():
    field, rate, spot = scan(AT_THE_SURFACE, 28.0)
    found = found_blood(field, rate, B0_T)
    assert float((found & spot).sum() / spot.sum()) > 0.6
    assert float((found & ~spot).sum() / spot.sum()) < 0.5


@pytest.mark.parametrize(
    ("centre", "r2star_hz", "chi_ppm"),
    [
        pytest.param(AT_THE_SURFACE, TISSUE_HZ + 114 * BLOOD_PPM, BLOOD_PPM, id="old blood of a haemorrhage"),
        pytest.param(DEEP, 28.0, BLOOD_PPM, id="a vein that does not reach the surface"),
        pytest.param(AT_THE_SURFACE, 28.0, -BLOOD_PPM, id="calcification"),
        pytest.param(AT_THE_SURFACE, 28.0, 0.0, id="no susceptibility"),
        pytest.param(AT_THE_SURFACE, 2.0, BLOOD_PPM, id="fluid"),
        pytest.param(AT_THE_SURFACE, 0.0, BLOOD_PPM, id="no R2*"),
    ],
)
def test_other_things_stay_in_the_mask(centre, r2star_hz, chi_ppm):
    field, rate, _ = scan(centre, r2star_hz, chi_ppm)
    assert not found_blood(field, rate, B0_T).any()


def test_tissue_has_an_r2_prime_by_field_strength():
    """The same rate is that of blood at 7 T, where tissue of this χ would decay much faster."""
    rate_hz = TISSUE_HZ + default_relaxivity(B0_T).pos_hz_per_ppm * BLOOD_PPM
    field, rate, _ = scan(AT_THE_SURFACE, rate_hz)
    assert not found_blood(field, rate, B0_T).any()
    assert found_blood(field, rate, 7.0).any()


def test_without_r2star_nothing_is_found():
    field, _, _ = scan(AT_THE_SURFACE, 28.0)
    assert not found_blood(field, torch.zeros(GRID.shape), B0_T).any()


def test_the_local_field_is_nearer_to_that_of_the_brain():
    field, rate, spot = scan(AT_THE_SURFACE, 28.0)
    brain = BRAIN & ~spot
    true = field - Dipole(GRID).apply(BLOOD_PPM * spot)
    error = {}
    for name, mask in {
        "kept": BRAIN,
        "left out": BRAIN & ~found_blood(field, rate, B0_T),
    }.items():
        local = remove_background(field, mask, GRID)
        known = local.mask & brain
        difference = (local.local_field_ppm - true)[known]
        error[name] = float((difference - difference.mean()).square().mean().sqrt())
    assert error["left out"] < 0.6 * error["kept"]
