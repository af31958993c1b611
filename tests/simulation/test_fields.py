from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.physics.dipole import Dipole
from chisep.physics.signal import hz_per_ppm
from chisep.simulation.fields import (
    IMPLANT_PPM,
    IMPLANT_RADIUS_MM,
    Fields,
    dental_implants,
    dephasing,
    residual_background,
    total_field,
)
from chisep.simulation.motion import brain_centre_mm, rotation
from chisep.simulation.tissue import Tissue
from chisep.simulation.tissue_properties import AIR_PPM
from chisep.types import Grid


@pytest.fixture(scope="module")
def fields(tissue: Tissue) -> Fields:
    return total_field(tissue)


def test_local_field_is_the_dipole_field_of_the_sources(tissue, fields):
    expected = Dipole(tissue.grid).apply(tissue.chi_pos_ppm - tissue.chi_neg_ppm)
    torch.testing.assert_close(fields.local_ppm, expected)
    spread = 1000 * float(fields.local_ppm[tissue.mask].std())
    assert 3 < spread < 15


def test_residual_background_is_harmonic_in_the_brain_and_has_the_stated_spread(tissue):
    field = residual_background(tissue, 3.0, np.random.default_rng(0))
    assert 1000 * float(field[tissue.mask].std()) == pytest.approx(3, rel=1e-4)
    assert not field[~tissue.mask].any()
    deep = torch.from_numpy(ndimage.binary_erosion(tissue.mask.numpy(), iterations=4))
    edges = [1 / edge**2 for edge in tissue.grid.voxel_mm]

    def laplacian(volume: torch.Tensor) -> float:
        parts = (volume.roll(1, axis) + volume.roll(-1, axis) - 2 * volume for axis in range(3))
        return float(
            sum(part * e for part, e in zip(parts, edges, strict=True))[deep].std() / volume[deep].std()
        )

    # The local field, whose sources are inside, is far from harmonic.
    assert laplacian(field) < 0.1 * laplacian(total_field(tissue).local_ppm)
    assert not residual_background(tissue, 0.0, np.random.default_rng(0)).any()


def test_fields_of_two_halves_add_up(tissue, fields):
    left = torch.zeros_like(tissue.chi_pos_ppm)
    left[: left.shape[0] // 2] = 1.0
    halves = [
        total_field(
            replace(tissue, chi_pos_ppm=tissue.chi_pos_ppm * part, chi_neg_ppm=tissue.chi_neg_ppm * part)
        )
        for part in (left, 1 - left)
    ]
    torch.testing.assert_close(
        halves[0].local_ppm + halves[1].local_ppm, fields.local_ppm, atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(halves[0].background_ppm, fields.background_ppm)


def test_total_field_is_local_plus_background(fields):
    torch.testing.assert_close(fields.total_ppm, fields.local_ppm + fields.background_ppm)


def test_air_and_bone_make_a_background_larger_than_the_local_field(tissue, fields):
    assert float(fields.background_ppm[tissue.mask].std()) > 3 * float(fields.local_ppm[tissue.mask].std())


def test_shim_leaves_no_second_order_harmonic(tissue, fields):
    """And takes off nothing else: a field that is not harmonic could not come from outside of the head."""
    x, y, z = torch.meshgrid(
        *(
            (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * edge / 100
            for n, edge in zip(tissue.grid.shape, tissue.grid.voxel_mm, strict=True)
        ),
        indexing="ij",
    )
    left = fields.background_ppm[tissue.mask].double()
    for term in (torch.ones_like(x), x, y, z, x * y, y * z, x * z, x**2 - y**2, 2 * z**2 - x**2 - y**2):
        column = term[tissue.mask]
        assert abs(float((column @ left) / column.norm() / left.norm())) < 1e-3


def test_a_cut_neck_makes_no_field(tissue):
    n = 40
    i, j = torch.meshgrid(torch.arange(n) - 20.0, torch.arange(n) - 20.0, indexing="ij")
    cylinder = ((i**2 + j**2) < 15**2)[:, :, None].expand(n, n, n)
    grid = replace(tissue.grid.reshaped((n, n, n)), voxel_mm=(4.0, 4.0, 4.0), affine=None)
    zeros = torch.zeros(n, n, n)
    centre = ((i**2 + j**2) < 10**2)[:, :, None].expand(n, n, n).clone()
    centre[:, :, :10] = centre[:, :, -10:] = False
    head = replace(
        tissue,
        grid=grid,
        chi_pos_ppm=zeros,
        chi_neg_ppm=zeros,
        r2_hz=zeros,
        r2prime_hz=zeros,
        t1_s=zeros + 1,
        m0=zeros + 1,
        mask=centre,
        labels=torch.zeros(n, n, n, dtype=torch.int16),
        chi_outside_ppm=torch.where(cylinder, 0.0, AIR_PPM),
    )
    # An endless cylinder along B0 has a uniform field inside, which the shim removes; 80 mm are not endless.
    endless = float(total_field(head).background_ppm[centre].std())
    cut = replace(head, chi_outside_ppm=torch.where(cylinder, 0.0, AIR_PPM))
    cut.chi_outside_ppm[:, :, :4] = cut.chi_outside_ppm[:, :, -4:] = AIR_PPM
    ended = float(total_field(cut).background_ppm[centre].std())
    assert endless < 2.5e-3
    assert ended > 5 * endless


def test_doubling_the_sources_doubles_their_field(tissue, fields):
    twice = replace(tissue, chi_pos_ppm=2 * tissue.chi_pos_ppm, chi_neg_ppm=2 * tissue.chi_neg_ppm)
    torch.testing.assert_close(total_field(twice).local_ppm, 2 * fields.local_ppm)


def empty(tissue: Tissue, n: int = 32, edge_mm: float = 2.0, b0: tuple = (0.0, 0.0, 1.0)) -> Tissue:
    """A tissue-filled box without any source."""
    zeros = torch.zeros(n, n, n)
    inside = torch.zeros(n, n, n, dtype=torch.bool)
    inside[4:-4, 4:-4, 4:-4] = True
    affine = np.diag([edge_mm] * 3 + [1.0])
    return replace(
        tissue,
        grid=Grid((n, n, n), (edge_mm,) * 3, b0, affine),
        chi_pos_ppm=zeros,
        chi_neg_ppm=zeros,
        r2_hz=zeros + 15,
        r2prime_hz=zeros,
        t1_s=zeros + 1,
        m0=zeros + 1,
        mask=inside,
        labels=torch.zeros(n, n, n, dtype=torch.int16),
        chi_outside_ppm=zeros,
    )


@pytest.mark.parametrize("b0", [(0.0, 0.0, 1.0), (0.0, 0.6, 0.8)])
def test_an_implant_has_the_field_of_a_sphere(tissue, b0):
    box = empty(tissue, b0=b0)
    place_mm = np.array([[30.0, 30.0, 30.0]])
    before = total_field(box).background_ppm
    made = total_field(box, place_mm).background_ppm - before
    # What the shim took away is a polynomial of second order: third differences do not see it.
    index = torch.arange(32) * 2.0
    i, j, k = torch.meshgrid(index, index, index, indexing="ij")
    offset = torch.stack((i - 30, j - 30, k - 30))
    distance = offset.norm(dim=0)
    cosine = torch.einsum("c,cijk->ijk", torch.tensor(b0), offset) / distance.clamp_min(1)
    sphere = IMPLANT_PPM / 3 * (IMPLANT_RADIUS_MM / distance.clamp_min(1)) ** 3 * (3 * cosine**2 - 1)
    sphere[distance < IMPLANT_RADIUS_MM] = 0
    for axis in range(3):
        got, expected = (torch.diff(field.double(), n=3, dim=axis) for field in (made, sphere))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_implants_lie_in_front_of_and_below_the_brain_and_turn_with_the_head(tissue):
    places = dental_implants(tissue, 40, np.random.default_rng(0)) - brain_centre_mm(tissue)
    assert places.shape == (40, 3)
    assert (abs(places[:, 0]) <= 25).all()
    assert (places[:, 1] >= 50).all()
    assert (places[:, 2] <= -70).all()
    tilt_deg = (20.0, 0.0, 0.0)
    turned = dental_implants(tissue, 40, np.random.default_rng(0), tilt_deg) - brain_centre_mm(tissue)
    np.testing.assert_allclose(turned, places @ rotation(tilt_deg).T, atol=1e-9)


def test_implants_disturb_the_background_only(tissue, fields):
    places = dental_implants(tissue, 3, np.random.default_rng(0))
    disturbed = total_field(tissue, places)
    torch.testing.assert_close(disturbed.local_ppm, fields.local_ppm)
    change = (disturbed.background_ppm - fields.background_ppm)[tissue.mask]
    assert 1e-4 < float(change.abs().max()) < 0.5


@pytest.mark.parametrize("gradient_ppm_per_mm", [(0.1, 0.0, 0.0), (0.02, -0.05, 0.08)])
def test_dephasing_in_a_linear_field_is_the_mean_over_the_voxel(gradient_ppm_per_mm):
    edges_mm, te_s, b0_t = (1.0, 2.0, 1.5), 0.02, 3.0
    steps = [edge * g for edge, g in zip(edges_mm, gradient_ppm_per_mm, strict=True)]
    i, j, k = torch.meshgrid(*(torch.arange(5, dtype=torch.float32),) * 3, indexing="ij")
    left = dephasing(i * steps[0] + j * steps[1] + k * steps[2], te_s, b0_t)
    # Oracle: the mean of the phase factor over spins that fill the voxel.
    spins = (np.arange(400) + 0.5) / 400 - 0.5
    expected = 1.0
    for step in steps:
        expected *= np.exp(2j * np.pi * hz_per_ppm(b0_t) * te_s * step * spins).mean().real
    assert abs(expected) < 0.9
    np.testing.assert_allclose(left.numpy(), expected, atol=2e-4)


def test_an_even_field_does_not_dephase():
    torch.testing.assert_close(dephasing(torch.full((3, 4, 1), 0.7), 0.03, 7.0), torch.ones(3, 4, 1))
