"""Phase scales come back to radians; wrapped phase of a known field gives that field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from chisep.errors import InputError
from chisep.io import nifti
from chisep.physics.dipole import Dipole
from chisep.physics.signal import gre_signal, hz_per_ppm
from chisep.preprocessing.background import vsharp
from chisep.preprocessing.field import total_field
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.phase_scale import phase_in_radians
from chisep.preprocessing.unwrapping import residual_jumps
from chisep.simulation.anatomy import LabelMap, packaged_labels, tilted
from chisep.simulation.fields import total_field as true_field
from chisep.simulation.scanner import ScannerConfig, scan_gre, session_coils
from chisep.simulation.tissue import TissueConfig, make_tissue
from chisep.types import Grid

TE_S = (0.005, 0.011, 0.017, 0.023, 0.029)
GRID = Grid((40, 40, 40), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def radians():
    rng = torch.Generator().manual_seed(0)
    phase = (torch.rand(3, 16, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1) * math.pi
    phase[0, 0, 0, :2] = torch.tensor([-math.pi, math.pi], dtype=torch.float64)
    return phase


STORED = {
    "12 bit": (lambda p: ((p / math.pi + 1) * 2048).round().clamp(0, 4095), 4e-3),
    "−4096…4095": (lambda p: (p / math.pi * 4096).round().clamp(-4096, 4095), 2e-3),
    "degrees": (torch.rad2deg, 1e-9),
    "tiny": (lambda p: p * 0.00367437 / math.pi, 1e-9),
    "milliradians": (lambda p: (p * 1000).round(), 1e-3),
    "12 bit around 0": (lambda p: (p / math.pi * 2048).round().clamp(-2048, 2047), 4e-3),
}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("units", [None, "arbitrary"])
def test_stored_scales_come_back_to_radians_and_are_told(radians, name, units):
    store, error = STORED[name]
    phase, note = phase_in_radians(store(radians), "phase.nii", units)
    torch.testing.assert_close(phase, radians, atol=error, rtol=0)
    assert note is not None
    assert "phase.nii" in note
    assert "radians" in note


def test_degrees_from_0_to_360_differ_by_whole_turns_only(radians):
    phase, note = phase_in_radians(torch.rad2deg(radians) % 360, "phase.nii")
    torch.testing.assert_close(
        torch.polar(torch.ones_like(phase), phase), torch.polar(torch.ones_like(phase), radians)
    )
    assert "degrees" in note


@pytest.mark.parametrize("shift", [0.0, math.pi, -math.pi])
@pytest.mark.parametrize("units", [None, "rad"])
def test_radians_stay_as_they_are(radians, shift, units):
    phase, note = phase_in_radians(radians + shift, "phase.nii", units)
    assert note is None
    torch.testing.assert_close(phase, radians + shift)


def test_small_phase_is_believed_only_where_the_sidecar_says_radians(radians):
    """Without wraps; phase that jumps by nearly its whole range wraps there."""
    smooth = radians.sort(dim=1).values * 0.05
    assert phase_in_radians(smooth, "phase.nii", "rad")[1] is None
    with pytest.raises(InputError, match="without wraps"):
        phase_in_radians(smooth, "phase.nii")
    assert phase_in_radians(radians * 0.05, "phase.nii", "rad")[1] is not None


def test_a_sidecar_that_contradicts_its_image_is_told(radians):
    phase, note = phase_in_radians(torch.rad2deg(radians), "phase.nii", "rad")
    torch.testing.assert_close(phase, radians)
    assert "though its sidecar says radians" in note


def test_a_constant_echo_is_refused(radians):
    phase = radians.clone()
    phase[1] = 0
    with pytest.raises(InputError, match=r"phase\.nii.*one value"):
        phase_in_radians(phase, "phase.nii")


def scan(te_s, b0_t=3.0, sigma=0.0, slope_ppm_per_mm=0.06):
    """A ball with a steep, curved field and a receiver offset: echoes, field, offset, mask."""
    x, y, z = torch.meshgrid(*[torch.linspace(-20, 20, 40, dtype=torch.float64)] * 3, indexing="ij")
    field = slope_ppm_per_mm * y + 0.8 * torch.exp(-((x - 5) ** 2 + y**2 + (z + 6) ** 2) / 60) + 0.002 * x * z
    offset = 1.5 + 0.05 * x - 0.03 * z + 0.003 * y**2 + 0.5 * torch.sin((x + z) / 20)
    signal = gre_signal(1 + 0.02 * x, 20 + 0 * x, field, te_s, b0_t, offset)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(5), dtype=signal.dtype)
    return signal + sigma * math.sqrt(2) * noise, field, offset, (x**2 + y**2 + z**2) < 18**2


def centred(values):
    return values - values.median()


@pytest.mark.parametrize(
    "te_s", [TE_S, (0.005, 0.011), (0.004, 0.009, 0.016, 0.027)], ids=["uniform", "two", "uneven"]
)
def test_a_known_field_comes_back(te_s):
    signal, field, _, mask = scan(te_s)
    config = FieldConfig(bipolar=False if len(te_s) == 2 else None)
    result = total_field(signal.abs(), signal.angle(), te_s, 3.0, mask, GRID, config)
    assert centred((result.total_field_ppm - field)[mask]).abs().max() < 0.01
    assert centred((result.total_field_ppm - field)[mask]).std() < 0.001
    assert (result.total_field_ppm[~mask] == 0).all()
    assert (result.reliable == mask).all()


def test_echoes_are_wrapped_phase_plus_whole_turns_without_jumps():
    signal, field, _, mask = scan(TE_S, sigma=0.01)
    wraps = [int((phase.diff(dim=1).abs() > math.pi).sum()) for phase in signal.angle() * mask]
    assert min(wraps) > 100
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    turns = (result.unwrapped_rad - signal.angle())[:, mask] / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-6, rtol=0)
    for te, phase in zip(TE_S, result.unwrapped_rad, strict=True):
        expected = 2 * math.pi * hz_per_ppm(3.0) * te * field
        assert centred((phase - expected)[mask]).abs().max() < math.pi
        assert residual_jumps(phase, mask) == 0


def test_the_receiver_offset_is_found():
    signal, _, offset, mask = scan(TE_S, sigma=0.005)
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    difference = torch.polar(torch.ones_like(offset), result.phase_offset_rad - offset)[mask]
    # A field that is off by one turn per step shifts the offset by one constant.
    difference = (difference / difference.mean()).angle()
    assert difference.abs().max() < 0.1
    assert difference.std() < 0.02


def bipolar(signal, slope_rad, constant_rad, axis):
    """Echoes read to and fro: a phase of alternating sign, linear along one axis."""
    shape = [-1 if a == axis else 1 for a in range(3)]
    ramp = (constant_rad + slope_rad * (torch.arange(40, dtype=torch.float64) - 19.5)).reshape(shape)
    sign = torch.tensor([(-1) ** e for e in range(len(signal))]).reshape(-1, 1, 1, 1)
    return signal * torch.polar(torch.ones_like(sign * ramp), sign * ramp), ramp


@pytest.mark.parametrize(
    "te_s",
    [TE_S, TE_S[:3], (0.004, 0.009, 0.016, 0.027), (0.003, 0.011, 0.014)],
    ids=["five", "three", "uneven", "uneven three"],
)
@pytest.mark.parametrize(("axis", "slope_rad"), [(0, 0.06), (1, -0.03), (2, 0.15)])
def test_the_phase_of_bipolar_readouts_is_found_and_removed(te_s, axis, slope_rad):
    signal, field, _, mask = scan(te_s, sigma=0.002)
    signal, ramp = bipolar(signal, slope_rad, 0.3, axis)
    result = total_field(signal.abs(), signal.angle(), te_s, 3.0, mask, GRID)
    assert float((result.bipolar_rad - ramp)[mask].std()) < 0.02
    error = centred((result.total_field_ppm - field)[mask])
    assert error.std() < 0.0015
    assert error.abs().max() < 0.02
    ignored = total_field(signal.abs(), signal.angle(), te_s, 3.0, mask, GRID, FieldConfig(bipolar=False))
    assert centred((ignored.total_field_ppm - field)[mask]).std() > 10 * error.std()
    assert ignored.bipolar_rad.abs().max() == 0


def test_readouts_in_one_direction_are_left_alone():
    signal, field, _, mask = scan(TE_S, sigma=0.03)
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    assert result.bipolar_rad.abs().max() == 0
    told = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID, FieldConfig(bipolar=True))
    assert told.bipolar_rad.abs().max() < 0.05
    assert centred((told.total_field_ppm - field)[mask]).std() < 0.005


def test_two_echoes_cannot_tell_bipolar_readouts():
    signal, _, _, mask = scan(TE_S[:2])
    for told in (None, True):
        config = FieldConfig(bipolar=told)
        found = total_field(signal.abs(), signal.angle(), TE_S[:2], 3.0, mask, GRID, config)
        assert "bipolar" in found.warnings[0]


def test_the_nonlinear_fit_is_that_of_scipy():
    signal, field, _, mask = scan(TE_S, sigma=0.05)
    config = FieldConfig(fit="nonlinear")
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID, config)
    assert (result.reliable == mask).all()
    te, scale = np.array(TE_S), 2 * math.pi * hz_per_ppm(3.0)
    # The field is known up to one constant, a turn per step: so is SciPy's start.
    shift = float((result.total_field_ppm - field)[mask].median())
    for voxel in [(20, 20, 20), (10, 14, 22), (30, 25, 11), (12, 30, 19)]:
        measured = signal[(slice(None), *voxel)].numpy()

        def residuals(x, measured=measured):
            left = measured - np.abs(measured) * np.exp(1j * (x[0] + scale * x[1] * te))
            return np.concatenate([left.real, left.imag])

        field_ppm = float(field[voxel]) + shift
        first = np.angle(np.sum(measured * np.exp(-1j * scale * field_ppm * te)))
        wanted = least_squares(residuals, (first, field_ppm), xtol=1e-12).x[1]
        assert float(result.total_field_ppm[voxel]) == pytest.approx(wanted, abs=1e-5)


def test_the_nonlinear_fit_does_not_need_a_smooth_offset():
    signal, field, _, mask = scan(TE_S)
    x, y, z = torch.meshgrid(*[torch.arange(40)] * 3, indexing="ij")
    signal = signal * torch.polar(
        torch.ones_like(field), 0.3 * (((x // 2) + (y // 2) + (z // 2)) % 2).double()
    )
    error = {}
    for fit in ("linear", "nonlinear"):
        config = FieldConfig(fit=fit)
        result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID, config)
        error[fit] = float(centred((result.total_field_ppm - field)[mask]).std())
    assert error["linear"] > 5e-3
    assert error["nonlinear"] < 1e-5


@pytest.mark.parametrize("fit", ["linear", "nonlinear"])
@pytest.mark.parametrize("snr", [30.0, 50.0, 100.0])
def test_errors_are_as_large_as_their_sigma_says(head, fit, snr):
    signal, config = head.gre(snr, seed=int(snr)), FieldConfig(fit=fit)
    result = total_field(signal.abs(), signal.angle(), head.te_s, head.b0_t, head.brain, head.grid, config)
    known = result.reliable
    assert known.sum() > 0.99 * head.brain.sum()
    error = (result.total_field_ppm - head.total_ppm)[known]
    assert 0.9 < float(((error - error.mean()) / result.sigma_ppm[known]).std()) < 1.1
    assert (result.sigma_ppm[~head.brain] == 0).all()


def test_sigma_grows_where_echoes_do_not_fit_one_line():
    signal, _, _, mask = scan(TE_S, sigma=0.01)
    clean = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    strange = torch.zeros_like(mask)
    strange[18:20, 18:20, 18:20] = True
    signal[2:4, strange] *= torch.polar(torch.tensor(1.0).double(), torch.tensor(0.4).double())
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    assert (result.sigma_ppm[strange] > 5 * clean.sigma_ppm[strange]).all()
    torch.testing.assert_close(result.sigma_ppm[:10], clean.sigma_ppm[:10], rtol=0.02, atol=0)


def test_quality_is_a_share_and_tells_noise():
    signal, _, _, mask = scan(TE_S, sigma=0.01)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(2), dtype=signal.dtype)
    signal[..., 30:] = noise[..., 30:]
    quality = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID).quality
    assert quality.min() >= 0
    assert quality.max() <= 1
    assert quality[..., 31:][mask[..., 31:]].median() < 0.2 < 0.4 < quality[..., :29][mask[..., :29]].median()
    assert (quality[~mask] == 0).all()


def test_the_field_of_an_oblique_scan_is_right(tmp_path):
    """B0 is read from the affine of the files; the dipole field along it is in the total field."""
    labels = packaged_labels()
    coarse = LabelMap(
        np.ascontiguousarray(labels.labels[::4, ::4, ::4]), labels.affine @ np.diag([4, 4, 4, 1.0]), "coarse"
    )
    rng = np.random.default_rng(0)
    turned = tilted(coarse, (20.0, -12.0, 5.0))
    tissue = make_tissue(turned, rng, TissueConfig(), voxel_mm=(4.0, 4.0, 4.0), b0_t=3.0)
    fields = true_field(tissue)
    config = ScannerConfig(voxel_mm=4.0, te_gre_s=TE_S, dephasing=False)
    signal = scan_gre(tissue, fields.total_ppm, session_coils(tissue, config, rng), config, rng)
    phase_file = nifti.save(tmp_path / "phase.nii.gz", signal[0].angle().numpy(), tissue.grid.matrix())
    grid = nifti.grid_of(nifti.load(phase_file))
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, tissue.mask, grid)
    known = result.reliable
    assert known.sum() > 0.95 * tissue.mask.sum()
    made = (result.total_field_ppm - fields.background_ppm)[known]

    def agreement(grid):
        return float(torch.corrcoef(torch.stack([made, Dipole(grid).apply(tissue.chi_ppm)[known]]))[0, 1])

    assert agreement(grid) > 0.99
    assert agreement(Grid(grid.shape, grid.voxel_mm)) < 0.97


def test_the_median_field_is_within_half_a_turn_per_step():
    signal, _, _, mask = scan(TE_S)
    shift = torch.polar(torch.ones(5, dtype=torch.float64), 2 * math.pi * 400.0 * torch.tensor(TE_S).double())
    result = total_field(signal.abs(), (signal * shift[:, None, None, None]).angle(), TE_S, 3.0, mask, GRID)
    assert abs(float(result.total_field_ppm[mask].median())) * hz_per_ppm(3.0) * 0.006 <= 0.5


def test_noise_is_that_of_the_weighted_combination():
    """The error follows from the inverse variances of the echoes, as if the offset were known."""
    sigma = 0.02
    signal, field, _, mask = scan(TE_S, sigma=sigma)
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    magnitude, te = scan(TE_S)[0].abs()[:, mask], torch.tensor(TE_S, dtype=torch.float64)[:, None]
    expected = sigma / ((magnitude * te) ** 2).sum(0).sqrt() / (2 * math.pi * hz_per_ppm(3.0))
    error = centred((result.total_field_ppm - field)[mask])
    assert float((error / expected).std()) == pytest.approx(1.0, abs=0.15)


def test_the_sign_of_the_phase_can_be_turned():
    signal, field, _, mask = scan(TE_S)
    result = total_field(signal.abs(), -signal.angle(), TE_S, 3.0, mask, GRID, FieldConfig(phase_sign=-1))
    assert centred((result.total_field_ppm - field)[mask]).abs().max() < 0.01


def test_scale_of_the_magnitude_and_precision_do_not_matter():
    signal, _, _, mask = scan(TE_S, sigma=0.01)
    magnitude, phase = signal.abs(), signal.angle()
    wanted = total_field(magnitude, phase, TE_S, 3.0, mask, GRID).total_field_ppm
    tiny = total_field(magnitude * 1e-9, phase, TE_S, 3.0, mask, GRID).total_field_ppm
    single = total_field(magnitude.float(), phase.float(), TE_S, 3.0, mask, GRID).total_field_ppm
    assert single.dtype == torch.float32
    torch.testing.assert_close(tiny, wanted)
    torch.testing.assert_close(single.double(), wanted, atol=1e-5, rtol=1e-4)


def test_parts_of_the_mask_apart_do_not_drift_by_turns():
    signal, field, _, mask = scan(TE_S, slope_ppm_per_mm=0.01)
    mask = mask & ((torch.arange(40) < 18) | (torch.arange(40) > 21))[:, None, None]
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    assert centred((result.total_field_ppm - field)[mask]).abs().max() < 0.02


def test_voxels_of_noise_at_the_edge_are_not_reliable():
    signal, _, _, mask = scan(TE_S, sigma=0.01)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(2), dtype=signal.dtype)
    signal[..., 30:] = noise[..., 30:]
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    assert result.reliable[..., 31:][mask[..., 31:]].double().mean() < 0.3
    assert result.reliable[..., :29][mask[..., :29]].double().mean() > 0.99
    assert result.residual_rad[..., 31:][mask[..., 31:]].median() > 0.6


def test_fields_too_steep_to_be_sampled_are_not_reliable():
    signal, _, _, mask = scan(TE_S, slope_ppm_per_mm=0.62)
    result = total_field(signal.abs(), signal.angle(), TE_S, 3.0, mask, GRID)
    assert result.reliable.sum() < 0.01 * mask.sum()


def test_a_simulated_head_has_no_jumps_and_the_right_local_field(head):
    signal = head.gre(snr=100)
    result = total_field(signal.abs(), signal.angle(), head.te_s, head.b0_t, head.brain, head.grid)
    error = centred((result.total_field_ppm - head.total_ppm)[head.brain])
    assert error.abs().max() < 0.1 / hz_per_ppm(head.b0_t) / 0.006
    assert error.std() < 0.001
    # V-SHARP cannot tell a local field that is harmonic inside from background: it is judged by what it
    # makes of the true local field alone.
    measured = vsharp(result.total_field_ppm, result.reliable, head.grid)
    ideal = vsharp(head.local_ppm, result.reliable, head.grid)
    both = torch.stack([measured.local_field_ppm[measured.mask], ideal.local_field_ppm[measured.mask]])
    assert torch.corrcoef(both)[0, 1] > 0.97


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"te_s": (0.005,)}, "2 magnitudes, 2 phases and 1 echo times"),
        ({"te_s": (0.005, 0.011, 0.017)}, "2 magnitudes, 2 phases and 3 echo times"),
        ({"te_s": (0.011, 0.005)}, "0.011, 0.005"),
        ({"b0_t": 0.0}, "0.0 T"),
        ({"mask": torch.zeros(40, 40, 40, dtype=torch.bool)}, "empty mask"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, said):
    signal, _, _, mask = scan((0.005, 0.011))
    inputs = {"te_s": (0.005, 0.011), "b0_t": 3.0, "mask": mask, **change}
    with pytest.raises(InputError, match=said):
        total_field(signal.abs(), signal.angle(), inputs["te_s"], inputs["b0_t"], inputs["mask"], GRID)


@pytest.mark.parametrize(
    "options",
    [{"phase_sign": 0}, {"offset_smoothing_mm": 0.0}, {"max_residual_rad": -1.0}],
)
def test_options_are_checked(options):
    with pytest.raises(InputError, match=r"phase sign|field option"):
        FieldConfig(**options)
