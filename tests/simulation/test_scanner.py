from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.physics.signal import hz_per_ppm
from chisep.simulation.coils import Coils
from chisep.simulation.fields import Fields, dephasing, total_field
from chisep.simulation.kspace import block_mean
from chisep.simulation.motion import moved, rigid
from chisep.simulation.scanner import ScannerConfig, scan_gre, scan_se, session_coils, stored_phase
from chisep.simulation.tissue import Tissue, TissueConfig, make_tissue

SILENT = ScannerConfig(simple=True, snr=math.inf)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def fields(tissue: Tissue) -> Fields:
    return total_field(tissue)


@pytest.fixture(scope="module")
def even(tissue: Tissue) -> Coils:
    """Coils that change nothing."""
    shape = tissue.grid.shape
    return Coils(torch.ones(shape), torch.ones(shape, dtype=torch.complex64))


def test_phase_grows_with_the_total_field(tissue, fields, even):
    echoes = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    step = (echoes[1] * echoes[0].conj()).angle()
    turns = hz_per_ppm(3.0) * fields.total_ppm * (SILENT.te_gre_s[1] - SILENT.te_gre_s[0])
    expected = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).angle()
    bright = tissue.mask & (echoes[0].abs() > 1e-3)
    difference = torch.remainder(step - expected + torch.pi, 2 * torch.pi) - torch.pi
    assert float(difference[bright].abs().max()) < 1e-3


def test_magnitudes_decay_with_r2star_and_r2(tissue, fields, even):
    gre = scan_gre(tissue, fields.total_ppm, even, SILENT, rng()).abs()
    se = scan_se(tissue, even, SILENT, rng())
    r2star = torch.log(gre[0] / gre[4]) / (SILENT.te_gre_s[4] - SILENT.te_gre_s[0])
    r2 = torch.log(se[0] / se[5]) / (SILENT.te_se_s[5] - SILENT.te_se_s[0])
    mask = tissue.mask
    torch.testing.assert_close(r2star[mask], (tissue.r2_hz + tissue.r2prime_hz)[mask], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(r2[mask], tissue.r2_hz[mask], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("b1", [0.7, 1.0, 1.2])
def test_gradient_echo_starts_from_the_steady_state_of_many_pulses(tissue, fields, even, b1):
    config = replace(SILENT, te_gre_s=(1e-6, 0.01))
    first = scan_gre(tissue, fields.total_ppm, replace(even, b1=even.b1 * b1), config, rng())[0].abs()
    flip = math.radians(config.flip_deg) * b1
    # Oracle: pulse by pulse, transverse magnetisation spoiled, until nothing changes.
    along = torch.ones_like(tissue.t1_s)
    for _ in range(600):
        across = along * math.sin(flip)
        along = 1 + (along * math.cos(flip) - 1) * torch.exp(-config.tr_gre_s / tissue.t1_s)
    torch.testing.assert_close(first[tissue.mask], (tissue.m0 * across)[tissue.mask], rtol=1e-3, atol=1e-5)


def test_stimulated_echoes_vanish_with_ideal_refocusing(tissue, even):
    imperfect = replace(SILENT, simple=False, stimulated_echoes=True, pulse="ideal")
    torch.testing.assert_close(
        scan_se(tissue, even, imperfect, rng()), scan_se(tissue, even, SILENT, rng()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("changes", [{"refocusing_deg": 150.0}, {"pulse": "sinc"}])
def test_imperfect_refocusing_prolongs_the_decay(tissue, even, changes):
    real = replace(SILENT, simple=False, stimulated_echoes=True, pulse="ideal", refocusing_width=1.2)
    imperfect = scan_se(tissue, even, replace(real, **changes), rng())
    ideal = scan_se(tissue, even, SILENT, rng())
    inside = tissue.mask & (tissue.r2_hz > 8)
    late, late_ideal = ((echoes[5] / echoes[1])[inside] for echoes in (imperfect, ideal))
    assert float((late / late_ideal).median()) > 1.01
    assert float((imperfect[0] / ideal[0])[inside].max()) < 0.97


def test_coils_weight_both_scans_alike(tissue, fields, even):
    coils = session_coils(tissue, ScannerConfig(b1_spread=0.0), rng())
    for scan in (
        lambda c: scan_gre(tissue, fields.total_ppm, c, SILENT, rng()).abs(),
        lambda c: scan_se(tissue, c, SILENT, rng()),
    ):
        weighted, plain = scan(coils), scan(even)
        torch.testing.assert_close(weighted, plain * coils.receive.abs(), rtol=1e-4, atol=1e-6)


def test_receiver_phase_is_the_same_in_all_echoes_and_can_be_left_out(tissue, fields, even):
    plain = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    for count in (0, 8):
        config = ScannerConfig(coils=count, b1_spread=0.0)
        coils = session_coils(tissue, config, rng())
        turn = (scan_gre(tissue, fields.total_ppm, coils, SILENT, rng()) * plain.conj())[:, tissue.mask]
        turn = turn / turn.abs()
        assert float((turn - turn[0]).abs().max()) < 1e-3
        assert float(turn.mean(1).abs().max()) < 0.999
        silent = session_coils(tissue, replace(config, receiver_phase=False), rng())
        assert float(silent.receive.imag.abs().max()) == 0
        torch.testing.assert_close(silent.receive.real, coils.receive.abs())


def test_coils_come_from_streams_of_their_own(tissue):
    both = session_coils(tissue, ScannerConfig(), rng())
    no_b1 = session_coils(tissue, ScannerConfig(b1_spread=0.0), rng())
    fewer = session_coils(tissue, ScannerConfig(coils=4), rng())
    torch.testing.assert_close(no_b1.receive, both.receive)
    torch.testing.assert_close(fewer.b1, both.b1)
    assert float((no_b1.b1 - 1).abs().max()) == 0


def test_voxels_dephase_in_the_gradient_of_the_field(tissue, fields, even):
    plain = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    weak = scan_gre(tissue, fields.total_ppm, even, replace(SILENT, simple=False, dephasing=True), rng())
    for number in (0, 4):
        factor = dephasing(fields.total_ppm, SILENT.te_gre_s[number], 3.0)
        torch.testing.assert_close(weak[number], plain[number] * factor, rtol=1e-4, atol=1e-6)
    assert float(weak[4].abs()[tissue.mask].sum()) < 0.99 * float(plain[4].abs()[tissue.mask].sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_bipolar_phase_alternates_is_linear_along_the_read_axis_and_cancels(tissue, fields, even, axis):
    bipolar = replace(SILENT, simple=False, dephasing=False, bipolar=True, read_axis=axis)
    plain = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    read = scan_gre(tissue, fields.total_ppm, even, bipolar, rng())
    turn = (read * plain.conj())[:, tissue.m0 > 0.5]
    turn = turn / turn.abs()
    torch.testing.assert_close(turn[0], turn[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(turn[1], turn[3], atol=1e-3, rtol=0)
    # Odd and even echoes turn by opposite angles: their product, the mean phase, is not turned at all.
    torch.testing.assert_close(turn[0] * turn[1], torch.ones_like(turn[0]), atol=1e-3, rtol=0)
    angle = (read * plain.conj())[0].angle()
    index = (tissue.m0 > 0.5).nonzero()
    x = torch.stack((index[:, axis].double(), torch.ones(len(index), dtype=torch.float64)), dim=1)
    y = angle[tissue.m0 > 0.5].double()
    fitted = x @ torch.linalg.lstsq(x, y[:, None]).solution
    assert float((fitted[:, 0] - y).abs().max()) < 1e-3
    assert float(y.max() - y.min()) > 0.5


def test_a_moved_spin_echo_is_the_scan_of_a_moved_head(tissue, even):
    transform = rigid((5.0, -3.0, 2.0), (3.0, -4.0, 5.0), (0.0, 0.0, 0.0))
    still, shifted = (scan_se(tissue, even, SILENT, rng(), transform=t) for t in (None, transform))
    affine = tissue.grid.matrix()
    torch.testing.assert_close(shifted[0], moved(still[0], affine, transform).abs(), atol=1e-6, rtol=0)
    back = moved(shifted[0], affine, np.linalg.inv(transform))
    inner = tissue.mask
    error, before = (float((volume - still[0])[inner].std()) for volume in (back, shifted[0]))
    assert error < 0.3 * before


def test_a_misregistered_gradient_echo_moves_in_magnitude_and_phase(tissue, fields, even):
    transform = rigid((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    still = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    shifted = scan_gre(tissue, fields.total_ppm, even, SILENT, rng(), transform=transform)
    affine = tissue.grid.matrix()
    torch.testing.assert_close(shifted[2].real, moved(still[2].real, affine, transform))
    torch.testing.assert_close(shifted[2].imag, moved(still[2].imag, affine, transform))


def test_oversampled_scans_have_the_voxels_and_the_mean_of_plain_ones(coarse):
    def made(edge_mm: float) -> Tissue:
        return make_tissue(coarse, rng(), TissueConfig(), voxel_mm=(edge_mm,) * 3, b0_t=3.0)

    coarse, fine = made(8.0), made(4.0)
    config = replace(SILENT, simple=False, dephasing=False, voxel_mm=8.0, oversampling=2)
    assert config.fine_voxel_edges_mm == (4.0, 4.0, 4.0)
    coils = session_coils(fine, replace(config, coils=0, b1_spread=0.0, receiver_phase=False), rng())
    flat = torch.zeros_like(fine.m0)
    gre = scan_gre(fine, flat, coils, replace(config, kspace_window="tukey"), rng())
    se = scan_se(fine, coils, replace(config, stimulated_echoes=False), rng())
    assert gre.shape[1:] == se.shape[1:] == coarse.grid.shape
    plain = scan_gre(fine, flat, coils, replace(config, oversampling=1), rng())
    torch.testing.assert_close(gre.sum((1, 2, 3)) * 8, plain.sum((1, 2, 3)), rtol=1e-4, atol=1.0)
    # The image is in place: it looks most like the mean over each voxel when it is not shifted.
    blocks = block_mean(
        scan_se(fine, coils, replace(config, stimulated_echoes=False, oversampling=1), rng())[0], 2
    )
    likeness = [
        float(torch.corrcoef(torch.stack((se[0].roll(shift, 0).flatten(), blocks.flatten())))[0, 1])
        for shift in (-1, 0, 1)
    ]
    assert likeness[1] > 0.95
    assert likeness[1] > max(likeness[0], likeness[2]) + 0.05


@pytest.mark.parametrize("snr", [20.0, 100.0])
def test_noise_has_the_asked_snr_in_both_channels(tissue, fields, even, snr):
    clean = scan_gre(tissue, fields.total_ppm, even, SILENT, rng())
    noisy = scan_gre(tissue, fields.total_ppm, even, replace(SILENT, snr=snr), rng())
    sigma = float(clean[0].abs()[tissue.mask].mean()) / snr
    for echo in noisy - clean:
        for channel in (echo.real, echo.imag):
            assert float(channel.std()) == pytest.approx(sigma, rel=0.02)
            assert float(channel.mean()) == pytest.approx(0, abs=0.02 * sigma)


def test_spin_echo_noise_is_rician_and_higher_for_a_sum_of_squares(tissue, even):
    clean = scan_se(tissue, even, SILENT, rng())
    noisy = scan_se(tissue, even, replace(SILENT, snr=50.0), rng())
    sigma = float(clean[0][tissue.mask].mean()) / 50
    assert noisy.min() >= 0
    assert float((noisy - clean)[0][tissue.mask].std()) == pytest.approx(sigma, rel=0.05)
    air = clean[0] == 0
    assert float(noisy[0][air].mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    many = replace(
        SILENT, simple=False, stimulated_echoes=False, coils=8, combination="sum-of-squares", snr=50.0
    )
    squares = scan_se(tissue, even, many, rng())[0][air].square().mean()
    assert float(squares) == pytest.approx(2 * 8 * sigma**2, rel=0.02)


@pytest.mark.parametrize("b0_t", [1.5, 7.0])
def test_equal_seeds_give_equal_scans_at_any_field_strength(coarse, b0_t):
    tissue = make_tissue(coarse, rng(), TissueConfig(), voxel_mm=(8.0, 10.0, 12.0), b0_t=b0_t)
    config = ScannerConfig(b0_t=b0_t, snr=50.0)
    field = total_field(tissue).total_ppm

    def scans(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        coils = session_coils(tissue, config, rng(seed))
        return scan_gre(tissue, field, coils, config, rng(seed)), scan_se(tissue, coils, config, rng(seed))

    for one, same, other in zip(scans(0), scans(0), scans(1), strict=True):
        assert torch.isfinite(one.abs()).all()
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_stored_phase_is_wrapped_and_both_scales_agree(tissue, fields, even):
    echoes = scan_gre(tissue, fields.total_ppm, even, ScannerConfig(), rng())
    radians, stored = (stored_phase(echoes, units) for units in ("rad", "arbitrary"))
    assert float(radians.abs().max()) <= math.pi + 1e-6
    assert float(stored.min()) >= 0
    assert float(stored.max()) <= 4095
    torch.testing.assert_close(stored, stored.round())
    apart = (
        torch.remainder(stored / 4096 * 2 * torch.pi - torch.pi - radians + torch.pi, 2 * torch.pi) - torch.pi
    )
    assert float(apart.abs().max()) <= math.pi / 4096 + 1e-5


def test_simple_leaves_out_what_real_scanners_add():
    simple = ScannerConfig(simple=True, coils=32, bipolar=True, motion_mm=3.0, oversampling=2)
    assert simple == ScannerConfig(simple=True)
    assert (simple.coils, simple.bipolar, simple.motion_mm, simple.oversampling) == (0, False, 0.0, 1)
    assert (simple.stimulated_echoes, simple.dephasing, simple.b1_spread) == (False, False, 0.0)


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
        {"te_se_s": (0.010, 0.030)},
        {"te_se_s": (0.010, 0.020, 0.031)},
        {"coils": -1},
        {"b1_spread": math.inf},
        {"motion_mm": -1.0},
        {"oversampling": 0},
        {"orientations": 0},
        {"orientations": 7},
    ],
)
def test_impossible_scans_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        ScannerConfig(**values)
