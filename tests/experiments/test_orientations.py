"""Parts of `reproduce orientations`: losses of interpolation, and adaptation of a network without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.api.left_out_orientation import Scans
from chisep.experiments.orientations.adaptation import AdaptationConfig, adapted_errors
from chisep.experiments.orientations.interpolation import METHODS, interpolation_losses
from chisep.physics.dipole import Dipole
from chisep.types import Grid, Maps, Relaxivity
from tests.solvers.head import make_head


def test_finer_interpolation_keeps_more_of_the_fine_detail():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((20, 18, 22)).astype(np.float32)
    found = interpolation_losses({"noise": image}, np.ones(image.shape, bool))
    gain = {method: found["Gain"][method]["noise"] for method in METHODS}
    finest = [gain[method][-1] for method in ("linear", "cubic splines", "splines of order 5", "Fourier")]
    assert finest == sorted(finest)
    assert finest[0] < 0.7
    assert gain["windowed sinc"][-1] > gain["cubic splines"][-1]
    for method in METHODS:
        assert gain[method][0] == pytest.approx(1, abs=0.05)
    assert gain["Fourier"] == pytest.approx([1] * 4, abs=0.05)


@pytest.mark.slow
def test_adaptation_fits_the_fields_that_it_sees():
    small = make_head((18, 20, 16))
    chi = small.chi_ppm.float()
    maps = [
        Maps(
            field_ppm=Dipole(Grid(small.grid.shape, small.grid.voxel_mm, b0)).apply(chi),
            mask=small.mask,
            grid=Grid(small.grid.shape, small.grid.voxel_mm, b0),
            relaxivity=Relaxivity(114.0, 114.0),
            r2prime_hz=(small.chi_pos_ppm + small.chi_neg_ppm).float() * 114,
            r2prime_sigma_hz=torch.where(small.mask, 1.0, 0.0),
            field_sigma_ppm=torch.where(small.mask, 0.001, 0.0),
            support=small.mask,
            b0_t=3.0,
        )
        for b0 in ((0.0, 0.0, 1.0), (0.0, 0.5, 0.87), (0.5, 0.0, 0.87))
    ]
    true = {"chi_pos": small.chi_pos_ppm.float(), "chi_neg": small.chi_neg_ppm.float()}
    scans = Scans(["a", "b", "c"], maps, small.mask)
    found = adapted_errors(scans, true, AdaptationConfig(adaptation_steps=5, adaptation_left_out=2))
    assert [row["LeftOut"] for row in found["Orientations"]] == ["c", "b"]
    for row in found["Orientations"]:
        assert row["Loss"][-1] < row["Loss"][0]
        assert row["FieldAfter"] < row["FieldBefore"]
    change = found["Change"]["field"]
    assert change["low"] < change["mean"] < change["high"]
    assert change["mean"] < 0
    again = adapted_errors(Scans(["a", "b"], maps[:2], small.mask), true, AdaptationConfig())
    assert again["Orientations"][0]["FieldBefore"] == again["Orientations"][0]["FieldAfter"]
    assert again["Change"]["field"] == {"mean": 0, "low": None, "high": None}
