from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.signal import hz_per_ppm
from chisep.simulation.scanner import AIR_PPM, ScannerConfig, scan_gre, scan_se, stored_phase, total_field
from chisep.simulation.tissue import Tissue

SILENT = ScannerConfig(snr=math.inf, receiver_phase=False)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def fields(tissue: Tissue):
    return total_field(tissue)


def test_local_field_is_the_dipole_field_of_the_sources(tissue, fields):
    expected = Dipole(tissue.grid).apply(tissue.chi_pos_ppm - tissue.chi_neg_ppm)
    torch.testing.assert_close(fields.local_ppm, expected)
    spread = 1000 * float(fields.local_ppm[tissue.mask].std())
    assert 3 < spread < 15


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


def test_shim_leaves_no_second_order_polynomial(tissue, fields):
    axes = torch.meshgrid(
        *(torch.linspace(-1, 1, n, dtype=torch.float64) for n in tissue.grid.shape), indexing="ij"
    )
    left = fields.background_ppm[tissue.mask].double()
    for term in (torch.ones_like(axes[0]), *axes, axes[0] ** 2, axes[1] * axes[2]):
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
    # An endless cylinder along B0 has a uniform field inside, which the shim removes.
    endless = float(total_field(head).background_ppm[centre].std())
    cut = replace(head, chi_outside_ppm=torch.where(cylinder, 0.0, AIR_PPM))
    cut.chi_outside_ppm[:, :, :4] = cut.chi_outside_ppm[:, :, -4:] = AIR_PPM
    ended = float(total_field(cut).background_ppm[centre].std())
    assert endless < 2e-3
    assert ended > 5 * endless


def test_phase_grows_with_the_total_field(tissue, fields):
    echoes = scan_gre(tissue, fields.total_ppm, SILENT, rng())
    step = (echoes[1] * echoes[0].conj()).angle()
    turns = hz_per_ppm(3.0) * fields.total_ppm * (SILENT.te_gre_s[1] - SILENT.te_gre_s[0])
    expected = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).angle()
    bright = tissue.mask & (echoes[0].abs() > 1e-3)
    difference = torch.remainder(step - expected + torch.pi, 2 * torch.pi) - torch.pi
    assert float(difference[bright].abs().max()) < 1e-3


def test_magnitudes_decay_with_r2star_and_r2(tissue, fields):
    gre = scan_gre(tissue, fields.total_ppm, SILENT, rng()).abs()
    se = scan_se(tissue, SILENT, rng())
    r2star = torch.log(gre[0] / gre[4]) / (SILENT.te_gre_s[4] - SILENT.te_gre_s[0])
    r2 = torch.log(se[0] / se[5]) / (SILENT.te_se_s[5] - SILENT.te_se_s[0])
    mask = tissue.mask
    torch.testing.assert_close(r2star[mask], (tissue.r2_hz + tissue.r2prime_hz)[mask], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(r2[mask], tissue.r2_hz[mask], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("snr", [20.0, 100.0])
def test_noise_has_the_asked_snr_in_both_channels(tissue, fields, snr):
    clean = scan_gre(tissue, fields.total_ppm, SILENT, rng())
    noisy = scan_gre(tissue, fields.total_ppm, replace(SILENT, snr=snr), rng())
    sigma = float(clean[0].abs()[tissue.mask].mean()) / snr
    for echo in noisy - clean:
        for channel in (echo.real, echo.imag):
            assert float(channel.std()) == pytest.approx(sigma, rel=0.02)
            assert float(channel.mean()) == pytest.approx(0, abs=0.02 * sigma)


def test_spin_echo_noise_is_rician(tissue):
    clean, noisy = scan_se(tissue, SILENT, rng()), scan_se(tissue, replace(SILENT, snr=50.0), rng())
    sigma = float(clean[0][tissue.mask].mean()) / 50
    assert noisy.min() >= 0
    assert float((noisy - clean)[0][tissue.mask].std()) == pytest.approx(sigma, rel=0.05)
    air = clean[0] == 0
    assert float(noisy[0][air].mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)


def test_stored_phase_is_wrapped_and_both_scales_agree(tissue, fields):
    echoes = scan_gre(tissue, fields.total_ppm, ScannerConfig(), rng())
    radians, stored = (stored_phase(echoes, units) for units in ("rad", "arbitrary"))
    assert float(radians.abs().max()) <= math.pi + 1e-6
    assert float(stored.min()) >= 0
    assert float(stored.max()) <= 4095
    torch.testing.assert_close(stored, stored.round())
    apart = (
        torch.remainder(stored / 4096 * 2 * torch.pi - torch.pi - radians + torch.pi, 2 * torch.pi) - torch.pi
    )
    assert float(apart.abs().max()) <= math.pi / 4096 + 1e-5


def test_receiver_phase_is_smooth_and_the_same_in_all_echoes(tissue, fields):
    plain = scan_gre(tissue, fields.total_ppm, SILENT, rng())
    offset = scan_gre(tissue, fields.total_ppm, replace(SILENT, receiver_phase=True), rng())
    turn = (offset * plain.conj())[:, tissue.mask]
    turn = turn / turn.abs()
    assert float((turn - turn[0]).abs().max()) < 1e-3
    assert float(turn.mean(1).abs().max()) < 0.999


def test_one_voxel_edge_stands_for_three():
    assert ScannerConfig(voxel_mm=2.0).voxel_edges_mm == (2.0, 2.0, 2.0)
    assert ScannerConfig(voxel_mm=(1.0, 2.0, 3.0)).voxel_edges_mm == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "values",
    [
        {"voxel_mm": 0.0},
        {"voxel_mm": (1.0, -1.0, 1.0)},
        {"snr": 0.0},
        {"b0_t": math.nan},
        {"te_gre_s": ()},
        {"te_gre_s": (5.0, 11.0)},
        {"te_gre_s": (0.02, 0.01)},
        {"te_se_s": (0.015, 0.015)},
    ],
)
def test_impossible_scans_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        ScannerConfig(**values)
