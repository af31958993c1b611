"""Violations of the physics: each against a formula of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.errors import InputError
from chisep.physics.dipole import Dipole
from chisep.physics.signal import hz_per_ppm
from chisep.simulation import labelmap
from chisep.simulation.acquisition_errors import (
    breathing,
    correlated,
    flow_phase,
    g_factor,
    with_breathing,
)
from chisep.simulation.anatomy import LabelMap, with_structures
from chisep.simulation.coils import Coils
from chisep.simulation.fields import local_field
from chisep.simulation.labelmap import Veins
from chisep.simulation.measured import measured_maps
from chisep.simulation.scanner import ScannerConfig, scan_gre
from chisep.simulation.tensor_field import COMPONENTS, across_b0, along_b0, tensor_field
from chisep.simulation.tissue import TissueConfig, make_tissue
from chisep.simulation.tissue_properties import REGIONS
from chisep.simulation.variants import VariantConfig, varied
from chisep.simulation.vessels import vein_flow, vein_fraction
from chisep.types import Grid

B0 = (0.2, -0.5, 0.84)
PLAIN = TissueConfig(person_sd=0.0, texture_sd=0.0, opposed_sd=0.0, layered=False, refine_mm=math.inf)
EDGES = (4.0, 4.0, 4.0)


def tensor_of(matrix: np.ndarray, where: torch.Tensor) -> torch.Tensor:
    return torch.stack([float(matrix[a, b]) * where.float() for a, b in COMPONENTS])


@pytest.fixture(scope="module")
def head(coarse: LabelMap) -> LabelMap:
    return with_structures(coarse, np.random.default_rng(1))


def made(head: LabelMap, config: TissueConfig, seed: int = 0):
    return make_tissue(head, np.random.default_rng(seed), config, voxel_mm=EDGES, b0_t=3.0)


def test_an_isotropic_tensor_has_the_field_of_a_scalar():
    grid = Grid((12, 14, 10), (1.0, 1.2, 0.8), B0)
    chi = torch.from_numpy(np.random.default_rng(0).standard_normal(grid.shape).astype(np.float32))
    field = tensor_field(torch.stack([chi, chi, chi, 0 * chi, 0 * chi, 0 * chi]), grid)
    torch.testing.assert_close(field, Dipole(grid).apply(chi), atol=2e-6, rtol=1e-4)


def test_a_ball_of_a_tensor_has_the_field_of_its_dipole_moment():
    n, radius = 48, 6.0
    grid = Grid((n, n, n), (1.0, 1.0, 1.0), B0)
    b0 = np.array(grid.b0_direction)
    at = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2,) * 3, indexing="ij"))
    r = np.linalg.norm(at, axis=0)
    matrix = np.array([[0.3, 0.1, -0.2], [0.1, -0.1, 0.25], [-0.2, 0.25, 0.4]])
    # A soft surface, whose field does not ring; the moment is that of a hard one.
    inside = torch.from_numpy(ndimage.gaussian_filter((r < radius).astype(np.float32), 1.5))
    field = tensor_field(tensor_of(matrix, inside), grid).numpy()
    # χb̂ is the moment per volume; its field along b̂ is (3 (r̂·m)(r̂·b̂) − m·b̂) V / 4πr³.
    moment, unit = matrix @ b0, at / r
    volume = float(inside.sum())
    expected = (
        volume
        / (4 * np.pi * r**3)
        * (3 * np.tensordot(moment, unit, 1) * np.tensordot(b0, unit, 1) - moment @ b0)
    )
    far = (r > radius + 5) & (r < 18)
    assert np.abs(field - expected)[far].max() < 0.05 * np.abs(expected[far]).max()
    # The scalar shortcut has another field, with the moment along B0 alone.
    shortcut = Dipole(grid).apply(float(b0 @ matrix @ b0) * inside.float()).numpy()
    assert np.corrcoef(shortcut[far], field[far])[0, 1] < 0.9


def test_parts_of_a_tensor_along_and_across_b0():
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), B0)
    fibre, b0 = np.array([0.6, 0.0, 0.8]), np.array(grid.b0_direction)
    components = tensor_of(np.outer(fibre, fibre), torch.ones(1, 1, 1))
    cosine2 = float(fibre @ b0) ** 2
    assert float(along_b0(components, grid)) == pytest.approx(cosine2, rel=1e-5)
    assert float(across_b0(components, grid)) == pytest.approx(1 - cosine2, rel=1e-5)


def test_microstructure_shifts_white_matter_by_sin2_of_the_fibre_angle(head):
    plain = made(head, PLAIN)
    shifted = made(head, replace(PLAIN, microstructure_ppb=6.0))
    torch.testing.assert_close(shifted.chi_ppm, plain.chi_ppm)
    added = local_field(shifted) - local_field(plain)
    white = torch.from_numpy(np.isin(plain.labels.numpy(), labelmap.WHITE_MATTER)) & plain.mask
    expected = -0.006 * torch.sin(plain.fibre_angle_rad).square()
    assert float((added - expected)[white].abs().median()) < 1e-5
    fluid = torch.from_numpy(np.isin(plain.labels.numpy(), labelmap.LATERAL_VENTRICLE)) & plain.mask
    assert float(added[fluid].abs().max()) < 1e-6


def test_anisotropy_adds_the_field_of_the_tensor_and_not_of_a_scalar(head):
    tissue = made(head, replace(PLAIN, anisotropy_ppb=16.0))
    isotropic = Dipole(tissue.grid).apply(tissue.chi_pos_ppm - tissue.chi_neg_ppm)
    added = (local_field(tissue) - isotropic)[tissue.mask]
    exact = tensor_field(tissue.anisotropy_ppm, tissue.grid)[tissue.mask]
    torch.testing.assert_close(added, exact, atol=1e-7, rtol=0)
    shortcut = Dipole(tissue.grid).apply(along_b0(tissue.anisotropy_ppm, tissue.grid))[tissue.mask]
    assert float(torch.corrcoef(torch.stack([exact, shortcut]))[0, 1]) < 0.95


def test_relaxivity_varies_as_asked_and_sources_do_not(head):
    plain, sd = made(head, PLAIN), 0.2
    white = torch.from_numpy(plain.labels.numpy() == 2) & plain.mask
    values = next(region for region in REGIONS if 2 in region.labels)
    ratios = []
    for seed in range(6):
        varying = made(head, replace(PLAIN, dr_variation=sd), seed=seed)
        torch.testing.assert_close(varying.chi_neg_ppm, plain.chi_neg_ppm)
        ratios.append((varying.r2prime_hz / plain.r2prime_hz)[white])
    # Two independent factors of SD 0.2, weighted by the sources; the mean over few seeds is loose.
    pos, neg = values.chi_pos_ppb, values.chi_neg_ppb
    expected = sd * math.hypot(pos, neg) / (pos + neg)
    assert float(torch.cat(ratios).std()) == pytest.approx(expected, rel=0.5)
    # Half of the variance is within a tissue.
    within = float(torch.stack([ratio.std() for ratio in ratios]).mean())
    assert within == pytest.approx(expected / math.sqrt(2), rel=0.35)
    assert float(torch.cat(ratios).mean()) == pytest.approx(1, abs=0.2)


def test_flow_runs_along_a_vein_with_its_velocity():
    n = 60
    at = np.stack([np.full(n, 10.0), np.full(n, 10.0), np.linspace(2, 17, n)], axis=-1)
    towards = np.tile([0.0, 0.0, -1.0], (n, 1))
    veins = Veins(at, np.full(n, 0.5), np.full(n, 15 / n), towards)
    grid = ((20, 20, 20), (1.0, 1.0, 1.0), (0, 0, 0), (1, 1, 1))
    flow, blood = vein_flow(veins, *grid), vein_fraction(veins, *grid)
    assert np.abs(flow[:2]).max() == 0
    np.testing.assert_allclose(flow[2], -0.5 * blood, atol=1e-6)
    with pytest.raises(ValueError, match="direction"):
        vein_flow(replace(veins, towards=None), *grid)


def test_flow_adds_up_echo_by_echo_to_a_shift_of_the_field(head):
    te_s = (0.004, 0.010, 0.016)
    config = ScannerConfig(te_gre_s=te_s, snr=math.inf, simple=True)
    tissue = made(head, PLAIN)
    clean = measured_maps(tissue, config, np.random.default_rng(0))
    flow = torch.zeros(3, *tissue.grid.shape)
    flow[config.read_axis][tissue.mask] = 0.3
    flow[0][tissue.mask] = 9.0
    moving = measured_maps(replace(tissue, flow_rad=flow), config, np.random.default_rng(0))
    # 0.3 rad more per echo, 6 ms apart.
    expected = 0.3 / (2 * math.pi * 0.006 * hz_per_ppm(3.0))
    change = (moving.local_ppm - clean.local_ppm)[tissue.mask]
    assert float(change.median()) == pytest.approx(expected, rel=1e-3)
    coils = Coils(torch.ones(tissue.grid.shape), torch.ones(tissue.grid.shape, dtype=torch.complex64))
    zeros = torch.zeros(tissue.grid.shape)
    scans = [
        scan_gre(t, zeros, coils, config, np.random.default_rng(0))
        for t in (replace(tissue, flow_rad=flow), tissue)
    ]
    phase = (scans[0] * scans[1].conj()).angle()[:, tissue.mask].median(dim=1).values
    torch.testing.assert_close(phase, torch.tensor([0.3, 0.6, 0.9]), atol=1e-4, rtol=0)
    assert float(flow_phase(zeros + 0.3, 2)[0, 0, 0].angle()) == pytest.approx(0.9, rel=1e-5)


def test_breathing_has_its_period_and_spread_and_makes_ghosts():
    offset = breathing(20_000, 0.03, 1.5, np.random.default_rng(0))
    assert offset.std() == pytest.approx(1.5, rel=0.05)
    power = np.abs(np.fft.rfft(offset)) ** 2
    frequency = np.fft.rfftfreq(len(offset), 0.03)
    assert 0.2 < frequency[power.argmax()] < 0.3
    image = torch.zeros(8, 16, 12, dtype=torch.complex64)
    image[2:5, 6:10, 4:7] = 1.0
    # A constant offset is a constant phase, and one that grows line by line a shift of the image.
    lines = 8 * 12
    constant = with_breathing(image, np.full(lines, 5.0), 0.02, 1)
    torch.testing.assert_close(constant, image * complex(np.exp(2j * np.pi * 0.1)), atol=1e-5, rtol=0)
    step = np.tile(np.arange(8) - 4, 12) / 8
    shifted = with_breathing(image, step, 1.0, 1)
    torch.testing.assert_close(shifted.abs(), image.abs().roll(-1, 0), atol=1e-4, rtol=0)
    # Energy is kept: what leaves the object is a ghost.
    ghosted = with_breathing(image, breathing(lines, 1.0, 5.0, np.random.default_rng(1)), 0.03, 1)
    assert float(ghosted.abs().square().sum()) == pytest.approx(float(image.abs().square().sum()), rel=1e-4)
    assert float(ghosted[:, :, 0].abs().max()) > 0.01


def test_breathing_changes_maps_of_both_simulations(head):
    tissue = made(head, PLAIN)
    config = ScannerConfig(snr=math.inf, dephasing=False)
    shaky = replace(config, breathing_hz=2.0)
    still, moving = (measured_maps(tissue, c, np.random.default_rng(0)) for c in (config, shaky))
    error = (moving.local_ppm - still.local_ppm)[tissue.mask]
    # 2 Hz are 16 ppb at 3 T; of lines at random phases of the breath most cancels.
    assert 1e-4 < float(error.std()) < 0.016
    coils = Coils(torch.ones(tissue.grid.shape), torch.ones(tissue.grid.shape, dtype=torch.complex64))
    zeros = torch.zeros(tissue.grid.shape)
    scan, same = (scan_gre(tissue, zeros, coils, c, np.random.default_rng(0)) for c in (config, shaky))
    change = (same - scan).abs()[:, tissue.mask].mean(1)
    assert torch.all(change.diff() > 0) or float(change[-1]) > float(change[0])


def test_correlated_noise_keeps_its_spread_and_is_shared_as_said():
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((48, 48, 48)).astype(np.float32))
    aliased = correlated(noise, 2, 1.0, 1)
    assert float(aliased.std()) == pytest.approx(1, abs=0.02)
    # 2·0.4/(1 + 0.4²): of two voxels that alias, half the volume apart.
    assert float((aliased * aliased.roll(24, 0)).mean()) == pytest.approx(0.8 / 1.16, abs=0.03)
    assert abs(float((aliased * aliased.roll(1, 0)).mean())) < 0.03
    smooth = correlated(noise, 1, 2.0, 1)
    assert float(smooth.std()) == pytest.approx(1, abs=0.05)
    # A box over half of k-space: neighbours correlate by sin(x)/x at π/2.
    assert float((smooth * smooth.roll(1, 2)).mean()) == pytest.approx(2 / math.pi, abs=0.06)
    assert torch.equal(correlated(noise, 1, 1.0, 1), noise)
    g = g_factor((9, 9, 9), 3)
    assert float(g[4, 4, 4]) == pytest.approx(1.7)
    assert float(g.min()) < 1.05
    assert torch.all(g_factor((4, 4, 4), 1) == 1)


def test_parallel_imaging_is_in_the_noise_maps_and_in_scans(head):
    tissue = made(head, PLAIN)
    config = ScannerConfig(snr=50, simple=True)
    fast = ScannerConfig(snr=50, simple=True)
    object.__setattr__(fast, "acceleration", 3)
    sigmas = [measured_maps(tissue, c, np.random.default_rng(0)).field_sigma_ppm for c in (config, fast)]
    ratio = (sigmas[1] / sigmas[0])[tissue.mask]
    torch.testing.assert_close(ratio, g_factor(tissue.grid.shape, 3)[tissue.mask])
    for name, value in (("acceleration", 0), ("acceleration", 9), ("noise_interpolation", 0.5)):
        with pytest.raises(InputError, match=name):
            ScannerConfig(**{name: value})


def test_meninges_calcify(head):
    config = VariantConfig(calcified_falx=12, calcified_dura=12)
    changed = varied(head, config, np.random.default_rng(0))
    falx = np.argwhere(changed.labels == labelmap.FALX_CALCIFIED)
    dura = changed.labels == labelmap.DURA_CALCIFIED
    assert len(falx)
    assert dura.any()
    x = labelmap.apply_affine(changed.to_mni, falx)[:, 0]
    assert np.abs(x).max() < 5
    tissue = made(changed, PLAIN)
    # A vein may run through a plate: at most a few per cent of it are blood.
    here = torch.from_numpy(changed.labels == labelmap.FALX_CALCIFIED) & tissue.mask
    assert float((tissue.chi_neg_ppm[here] - 0.7).abs().max()) < 0.1
    outside = torch.from_numpy(dura) & ~tissue.mask
    assert outside.any()
    assert float((tissue.chi_outside_ppm[outside] + 0.7).abs().median()) < 0.1
    assert varied(head, VariantConfig(), np.random.default_rng(0)) is head


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("callosum", (251, 253, 255)),
        ("caudate", labelmap.CAUDATE),
        ("hippocampus", (17, 53)),
        ("frontal-lobe", (2, 3, 41, 42)),
    ],
)
def test_missing_structures_lose_voxels_to_fluid(head, name, numbers):
    changed = varied(head, VariantConfig(missing=(name,)), np.random.default_rng(0))
    before, after = (int(np.isin(h.labels, numbers).sum()) for h in (head, changed))
    assert after < before
    moved = changed.labels != head.labels
    assert set(np.unique(changed.labels[moved])) <= {labelmap.CSF, *labelmap.LATERAL_VENTRICLE}
    again = varied(head, VariantConfig(missing=(name,)), np.random.default_rng(0))
    np.testing.assert_array_equal(again.labels, changed.labels)


def test_no_septum_joins_the_ventricles():
    labels = np.full((24, 24, 24), 2, dtype=np.int16)
    labels[6:11, 4:20, 8:16], labels[13:18, 4:20, 8:16] = 4, 43
    to_mni = np.eye(4)
    to_mni[:3, 3] = (-11.5, -12.0, 0.0)
    head = LabelMap(labels, np.eye(4), "toy", to_mni=to_mni)
    changed = varied(head, VariantConfig(missing=("septum",)), np.random.default_rng(0)).labels
    assert np.isin(changed[11:13, 6:18, 9:15], (4, 43)).all()
    assert np.isin(changed[11:13, :, 23], 2).all()


def test_variants_out_of_range_are_refused():
    with pytest.raises(InputError, match="calcified_falx"):
        VariantConfig(calcified_falx=-1)
