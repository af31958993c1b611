"""Magnitudes that are not those of one scan: refused with the file's name, or warned of."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import nifti
from chisep.pipeline.config import RunConfig
from chisep.preprocessing.magnitude_checks import check_decay, check_magnitudes
from tests.pipeline.stages import run_up_to

NAMES = [f"echo-{number}" for number in range(1, 6)]


def test_sound_magnitudes_raise_no_doubt(even, uneven, bipolar):
    for scan in (even, uneven, bipolar):
        names = [*NAMES, "echo-6"][: len(scan.te_s)]
        check_magnitudes(scan.magnitude, names)
        assert check_decay(scan.magnitude, scan.te_s, names) == []


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.5, 10.0])
@pytest.mark.parametrize("echo", range(5))
def test_an_echo_of_another_scale_is_named(even, echo, factor):
    """R2* would be wrong, and the weights of the field."""
    magnitude = even.magnitude.clone()
    magnitude[echo] *= factor
    with pytest.raises(InputError, match=rf"the magnitude of echo-{echo + 1} is typically.*one scale"):
        check_decay(magnitude, even.te_s, NAMES)


def test_a_small_difference_of_scale_is_a_warning(even):
    magnitude = even.magnitude.clone()
    magnitude[2] *= 1.15
    (text,) = check_decay(magnitude, even.te_s, NAMES)
    assert "the magnitude of echo-3 is typically 1.1" in text


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("count", [2, 3])
def test_of_few_echoes_none_can_be_named(even, count, factor):
    magnitude = even.magnitude[:count].clone()
    magnitude[1] *= factor
    with pytest.raises(InputError, match="Export all magnitudes with one scale"):
        check_decay(magnitude, even.te_s[:count], NAMES)


def test_echoes_that_were_scaled_to_their_own_maximum(even):
    magnitude = even.magnitude / even.magnitude.amax((1, 2, 3), keepdim=True)
    assert any("decay by typically" in text for text in check_decay(magnitude, even.te_s, NAMES))


@pytest.mark.parametrize("echo", range(5))
def test_phase_in_place_of_one_magnitude(even, echo):
    magnitude = even.magnitude.clone()
    magnitude[echo] = even.phase_rad[echo]
    with pytest.raises(InputError, match=rf"echo-{echo + 1}.*looks like phase.*swapped"):
        check_magnitudes(magnitude, NAMES)


@pytest.mark.parametrize("echo", range(5))
def test_masked_phase_in_place_of_one_magnitude(even, echo):
    """Integers from 0 to 4095, and 0 in air: their correlation with the head is high."""
    head = even.magnitude[0] > 0.1 * even.magnitude[0].max()
    magnitude = even.magnitude * 3000 / even.magnitude.max()
    magnitude[echo] = (even.phase_rad[echo] / math.pi * 2048 + 2048).round() * head
    with pytest.raises(InputError, match=rf"echo-{echo + 1}.*swapped"):
        check_decay(magnitude, even.te_s, NAMES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data * 10, "typically .* times as bright"),
        (np.zeros_like, "one value everywhere"),
        (lambda data: np.random.default_rng(0).rayleigh(1, data.shape), "looks like phase|little in common"),
        (lambda data: data[:, :, 5:6], "1 slice along the third axis"),
    ],
    ids=["scale", "empty", "noise", "one slice"],
)
def test_a_spin_echo_that_cannot_be_used_is_named(raw_session, tmp_path, change, words):
    """R2 would be wrong, and with it R2' and the sources."""
    root = tmp_path / "bids"
    shutil.copytree(raw_session, root)
    paths = sorted(root.glob("sub-*/anat/*_MESE.nii.gz"))
    for path in paths if "slice" in words else paths[1:2]:
        image = nifti.load(path)
        nifti.save(path, change(image.data), image.affine)
    config = RunConfig(root, tmp_path / "out", method="closed-form", qsm="tkd")
    with pytest.raises(InputError, match=words) as raised:
        run_up_to("registration", config)
    assert "MESE" in str(raised.value)
