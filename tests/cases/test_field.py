"""Phase as scanners and exports leave it: the field is that of the sound scan, or the scan is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.preprocessing.checks import Check, judge
from chisep.preprocessing.field import total_field
from chisep.preprocessing.field_map import FieldConfig, FieldMap
from chisep.preprocessing.phase_scale import phase_in_radians
from chisep.preprocessing.unwrapping import residual_jumps, wrap


def difference(found: FieldMap, expected: FieldMap) -> float:
    """Relative difference of two fields where both are reliable, whatever their constants.

    One voxel in two hundred is left out: at cavities a wrap more or less is a matter of chance.
    """
    both = found.reliable & expected.reliable
    assert both.sum() > 0.9 * expected.reliable.sum()
    a, b = (field.total_field_ppm[both] for field in (found, expected))
    a, b = a - a.median(), b - b.median()
    usual = (a - b).abs() <= (a - b).abs().quantile(0.995)
    return float((a - b)[usual].norm() / b.norm())


def levels(found: FieldMap) -> dict[str, str]:
    return {check.name: check.level for check in found.checks}


def worst(found: FieldMap) -> str:
    """Text of the refusal, if any."""
    with pytest.raises(InputError) as raised:
        judge(found.checks, "field", accept_poor=False, option="--field-map.accept-poor")
    return str(raised.value)


@pytest.fixture(scope="module")
def sound(even) -> FieldMap:
    return even.field()


def test_a_sound_scan_raises_no_doubt(sound, uneven, bipolar):
    for found in (sound, uneven.field(), bipolar.field()):
        assert set(levels(found).values()) == {"green"}
    assert not sound.warnings


@pytest.mark.parametrize("fit", ["linear", "nonlinear"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_second_slice_has_the_opposite_sign(even, axis, fit):
    """As reconstructions of GE scanners leave it."""
    phase = even.phase_rad.clone()
    phase.movedim(axis + 1, 0)[1::2] += math.pi
    config = FieldConfig(fit=fit)
    found = even.field(phase_rad=wrap(phase), config=config)
    assert difference(found, even.field(config=config)) < 0.01
    assert f"axis {axis + 1}" in found.warnings[0]


def test_slabs_with_offsets_of_their_own(even, sound):
    phase = even.phase_rad.clone()
    n = phase.shape[-1]
    phase[..., n // 3 : 2 * n // 3] += 2.0
    phase[..., 2 * n // 3 :] -= 1.3
    assert difference(even.field(phase_rad=wrap(phase)), sound) < 0.01


def test_slices_with_any_offset(even, sound):
    offsets = 2 * math.pi * torch.rand(even.phase_rad.shape[-1], generator=torch.Generator().manual_seed(0))
    assert difference(even.field(phase_rad=wrap(even.phase_rad + offsets)), sound) < 0.01


@pytest.mark.parametrize("hz", [-200.0, 60.0, 150.0, 300.0])
@pytest.mark.parametrize("name", ["even", "uneven"])
def test_a_constant_frequency_changes_nothing(name, hz, request):
    """Whole wraps in the first interval: evenly spaced echoes agree with any number, others with one."""
    scan = request.getfixturevalue(name)
    te = torch.tensor(scan.te_s)[:, None, None, None]
    found = scan.field(phase_rad=wrap(scan.phase_rad + 2 * math.pi * hz * te))
    assert difference(found, scan.field()) < 0.01
    assert set(levels(found).values()) == {"green"}


@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_a_bipolar_scan_without_one_echo(bipolar, dropped):
    """The direction of a read-out follows from the number of the echo, not from its place in the list."""
    echoes = tuple(echo for echo in range(6) if echo != dropped)
    found = bipolar.field(echoes=echoes, numbers=tuple(echo + 1 for echo in echoes))
    assert difference(found, bipolar.field()) < 0.02
    assert set(levels(found).values()) == {"green"}


@pytest.mark.parametrize("dropped", [2, 3])
def test_a_bipolar_scan_without_one_echo_whose_others_were_numbered_anew(bipolar, dropped):
    """The gap in the echo times tells which read-outs have which direction."""
    found = bipolar.field(echoes=tuple(echo for echo in range(6) if echo != dropped))
    assert difference(found, bipolar.field()) < 0.02
    assert "follow from the echo times" in found.warnings[0]


@pytest.mark.parametrize("echoes", [(0, 2, 3), (0, 1, 3), (0, 3, 5)])
def test_three_bipolar_echoes_whose_others_were_numbered_anew(bipolar, echoes):
    """Their phase fits any directions, so only the gaps tell."""
    found = bipolar.field(echoes=echoes)
    numbered = bipolar.field(echoes=echoes, numbers=tuple(echo + 1 for echo in echoes))
    assert difference(found, numbered) < 0.01
    assert difference(found, bipolar.field()) < 0.1
    assert "follow from the echo times" in found.warnings[0]


def test_bipolar_echoes_of_one_direction_need_no_correction(bipolar):
    found = bipolar.field(echoes=(0, 2, 4), numbers=(1, 3, 5))
    assert not found.bipolar_rad.any()
    assert difference(found, bipolar.field()) < 0.02


def test_directions_that_do_not_fit_are_refused(bipolar):
    assert "residual" in worst(bipolar.field(echoes=(0, 1, 3, 4, 5), config=FieldConfig(bipolar=False)))


@pytest.mark.parametrize("echo", [0, 1, 2, 4])
def test_an_echo_with_an_offset_is_named(even, echo):
    phase = even.phase_rad.clone()
    phase[echo] += 2.0
    assert f"Echo {echo + 1} does not fit the other echoes" in worst(even.field(phase_rad=wrap(phase)))


def test_an_echo_of_noise_is_named(even):
    phase = even.phase_rad.clone()
    phase[4] = (torch.rand(phase[4].shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 2 * math.pi
    assert "Echo 5 does not fit the other echoes" in worst(even.field(phase_rad=phase))


def test_echoes_in_the_wrong_order_are_doubted(even):
    found = even.field(phase_rad=even.phase_rad[[0, 2, 1, 3, 4]])
    assert levels(found)["CoherentResidualRad"] != "green"
    assert "wrong echo times" in judge(found.checks, "field", accept_poor=True, option="")[0]


def filtered(even, part: float) -> torch.Tensor:
    """High-pass filter of every echo, as for SWI: a Hann window of a part of k-space is divided out."""
    phase = []
    for magnitude, angle in zip(even.magnitude, even.phase_rad, strict=True):
        signal = (magnitude * torch.exp(1j * angle)).numpy()
        window = np.ones(signal.shape)
        for axis, n in enumerate(signal.shape):
            k = np.abs(np.fft.fftfreq(n)) * 2 / part
            shape = [1, 1, 1]
            shape[axis] = n
            window = window * np.where(k < 1, (1 + np.cos(np.pi * k)) / 2, 0).reshape(shape)
        smooth = np.fft.ifftn(np.fft.fftn(signal) * window)
        phase.append(torch.from_numpy(np.angle(signal * smooth.conj())).float())
    return torch.stack(phase)


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_filtered_phase_is_refused(even, part):
    assert "high-pass filtered" in worst(even.field(phase_rad=filtered(even, part)))


@pytest.mark.parametrize("part", [0.125, 0.25])
def test_weakly_filtered_phase_is_doubted(even, part):
    """It has its low frequencies still, but does not grow in proportion to the echo time."""
    found = even.field(phase_rad=filtered(even, part))
    assert "filtered" in judge(found.checks, "field", accept_poor=True, option="")[0]


@pytest.mark.parametrize("echo", [0, 2, 3])
def test_a_wrong_echo_time_is_doubted(even, echo):
    te_s = [te + 0.002 * (number == echo) for number, te in enumerate(even.te_s)]
    found = total_field(even.magnitude, even.phase_rad, te_s, 3.0, even.mask, even.grid)
    assert levels(found)["CoherentResidualRad"] != "green"


class TestScale:
    """Stored numbers that are not plain radians."""

    def test_unwrapped_radians_are_believed(self, even, sound):
        unwrapped = torch.where(even.mask, sound.unwrapped_rad, 0)
        phase, note = phase_in_radians(unwrapped, "phase.nii", "rad")
        assert note is None
        assert float(phase.nan_to_num().abs().max()) > 2 * math.pi
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    def test_unwrapped_radians_without_units_are_recognised(self, even, sound):
        phase, note = phase_in_radians(sound.unwrapped_rad, "phase.nii")
        assert "unwrapped radians" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    @pytest.mark.parametrize("fill", [-32768.0, 9999.0])
    def test_a_fill_value_outside_the_head(self, even, sound, fill):
        stored = (even.phase_rad * 1000).round()
        stored[:, even.magnitude[0] < 0.1 * even.magnitude[0].max()] = fill
        phase, _ = phase_in_radians(stored, "phase.nii")
        assert phase.isnan().any()
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    def test_phase_is_unknown_where_all_echoes_have_one_value(self, even):
        """As outside the mask of an export."""
        stored = even.phase_rad.clone()
        stored[:, ~even.mask] = 0.0
        phase, note = phase_in_radians(stored, "phase.nii", "rad")
        assert note is None
        assert torch.equal(phase.isfinite().all(0), even.mask)

    @pytest.mark.parametrize("units", [None, "rad", "arbitrary"])
    def test_a_stray_voxel(self, even, sound, units):
        stored = even.phase_rad.clone()
        stored[1, 0, 0, 0] = 1e4
        phase, note = phase_in_radians(stored, "phase.nii", units)
        assert "the phase of 1 voxels" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    @pytest.mark.parametrize("units", [None, "rad"])
    @pytest.mark.parametrize("largest", [0.5, 1.0, math.pi / 2])
    def test_wraps_tell_a_narrow_scale_from_radians(self, even, sound, largest, units):
        """Cycles, half turns: radians wrap at π only."""
        stored = even.phase_rad / math.pi * largest
        phase, note = phase_in_radians(stored, "phase.nii", units)
        assert "linear scale" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    @pytest.mark.parametrize("echo", [0, 3])
    def test_one_echo_of_half_scale(self, even, sound, echo):
        stored = even.phase_rad.clone()
        stored[echo] /= 2
        phase, note = phase_in_radians(stored, "phase.nii", "rad")
        assert f"echo {echo + 1}" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    @pytest.mark.parametrize("factor", [1000.0, 180 / math.pi])
    @pytest.mark.parametrize("units", [None, "rad", "arbitrary"])
    def test_unwrapped_phase_of_another_unit_is_refused(self, even, sound, factor, units):
        stored = (factor * torch.where(even.mask, sound.unwrapped_rad, 0)).round()
        with pytest.raises(InputError, match=r"without wraps, in no known unit.*Units"):
            phase_in_radians(stored, "phase.nii", units)

    def test_unwrapped_radians_of_arbitrary_units_and_whole_wraps_of_each_echo(self, even, sound):
        wraps = torch.tensor([0, 1, -1, 2, 5])[:, None, None, None]
        stored = sound.unwrapped_rad + 2 * math.pi * wraps
        stored[1, 0, 0, :8] = 1e6
        phase, note = phase_in_radians(stored, "phase.nii", "arbitrary")
        assert "unwrapped radians" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    def test_magnitude_in_place_of_phase(self, even):
        """Masked, so that no noise of air shows, and smoothed, as neighbours of a finer image are."""
        smooth = torch.nn.functional.avg_pool3d(even.magnitude, 3, stride=1, padding=1)
        with pytest.raises(InputError, match="Check that it is phase, not magnitude"):
            phase_in_radians(smooth * even.mask / smooth.max() * 300, "phase.nii")

    def test_echoes_of_different_scales(self, even, sound):
        stored = even.phase_rad.clone()
        stored[1] = (stored[1] / math.pi * 4096).round().clamp(-4096, 4095)
        stored[3] = torch.rad2deg(stored[3])
        phase, note = phase_in_radians(stored, "phase.nii")
        assert "echo 2" in note
        assert "echo 4" in note
        assert difference(even.field(phase_rad=phase), sound) < 0.01

    def test_an_early_echo_without_air_has_the_scale_of_the_others(self, even, sound):
        """Its phase does not reach the ends of its scale."""
        stored = (even.phase_rad / math.pi * 4096).round().clamp(-4096, 4095)
        expected = 0.1 * sound.unwrapped_rad[0]
        stored[0] = (expected / math.pi * 4096).round()
        phase, note = phase_in_radians(stored, "phase.nii")
        torch.testing.assert_close(phase[0], expected, atol=2e-3, rtol=0)
        assert "echo 1" not in note

    def test_a_scale_is_not_read_into_an_image_that_contradicts_its_sidecar(self, even):
        stored = (even.phase_rad / math.pi * 4096).round().clamp(-4096, 4095)
        phase, note = phase_in_radians(stored, "phase.nii", "rad")
        torch.testing.assert_close(phase, even.phase_rad, atol=2e-3, rtol=0)
        assert "though its sidecar says radians" in note


def test_one_echo_gives_a_field(even, sound):
    """The receiver's phase stays in it, and the record says so."""
    found = even.field(echoes=(2,))
    assert difference(found, sound) < 0.12
    assert set(levels(found).values()) == {"green"}
    assert "one echo" in found.warnings[0]
    assert float(found.sigma_ppm[found.reliable].min()) > 0


class TestJudge:
    """A check is green, amber or red; red is refused unless it is accepted."""

    @staticmethod
    def check(value: float, amber: float = 1.0, red: float = 2.0) -> Check:
        return Check("NoiseRad", "noise", value, amber, red, "Low signal.", "rad")

    def test_levels(self):
        assert [self.check(value).level for value in (0.5, 1.0, 1.5, 2.0, math.nan)] == [
            "green",
            "amber",
            "amber",
            "red",
            "red",
        ]
        assert [self.check(value, 2.0, 1.0).level for value in (2.5, 2.0, 1.0)] == ["green", "amber", "red"]

    def test_amber_is_a_warning_with_value_limits_and_cause(self):
        (text,) = judge([self.check(0.5), self.check(1.5)], "field", accept_poor=False, option="--x")
        assert text == "noise: 1.5 rad (good: below 1 rad, usable: below 2 rad). Low signal."

    def test_red_is_refused_unless_accepted(self):
        with pytest.raises(InputError, match=r"noise: 3 rad.*add --x"):
            judge([self.check(3.0)], "field", accept_poor=False, option="--x")
        assert len(judge([self.check(3.0)], "field", accept_poor=True, option="--x")) == 1


def test_a_receiver_phase_near_pi_leaves_no_steps_in_the_unwrapped_phase(even, sound):
    """An offset is known within ±π: where it crosses ±π, steps of 2π are no unwrapping errors."""
    moved = even.field(
        phase_rad=wrap(even.phase_rad + math.pi - float(sound.phase_offset_rad[even.mask].median()))
    )
    for found in (sound, moved):
        jumps = [residual_jumps(echo, found.reliable) for echo in found.unwrapped_rad]
        assert max(jumps) < 100, jumps
    assert difference(moved, sound) < 0.01
