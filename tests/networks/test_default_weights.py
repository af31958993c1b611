"""The shipped weights of the default methods: accurate on a phantom, and given maps in the right units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chisep import methods
from chisep.io import nifti
from chisep.io.weights import load_weights, save_weights
from chisep.metrics import nrmse_demeaned_percent, nrmse_percent
from chisep.networks.inference import NetworkOptions
from chisep.networks.weights import shipped
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.dataset import SimulateConfig, first_maps
from chisep.types import Maps, Sources, Volume

MOST = {"unrolled": {"χ_pos": 23.7, "χ_neg": 26.0}, "unrolled-qsm": {"χ": 49.4}}
"""Highest NRMSE in percent, a tenth above that of the shipped weights."""
SLOPES = {"unrolled": {"χ": 0.786, "χ_pos + χ_neg": 0.793}, "unrolled-qsm": {"χ": 0.691}}
"""Slope of the shipped weights' result against the truth, which regularisation makes less than 1.

A field that is a third too strong lowers the NRMSE, since it makes up for regularisation; the slope tells.
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> tuple[Maps, Sources]:
    """Maps of the packaged head at 4 mm with the noise of a scan of SNR 50, and the true sources."""
    folder = tmp_path_factory.mktemp("phantom")
    whole = packaged_labels()
    affine = whole.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
    head = nifti.save(folder / "fourth_dseg.nii.gz", whole.labels[::4, ::4, ::4], affine, dtype=np.int16)
    config = SimulateConfig(
        out=folder / "none",
        labels=(head,),
        voxel_mm=4.0,
        snr=50.0,
        maps_only=True,
        dephasing=False,  # voxels so large would have no signal near air
    )
    tissue, measured = first_maps(config, 0)
    mask = tissue.mask
    maps = Maps(
        field_ppm=measured.local_ppm * mask,
        mask=mask,
        grid=tissue.grid,
        relaxivity=tissue.relaxivity,
        r2prime_hz=measured.r2prime_hz * mask,
        field_sigma_ppm=measured.field_sigma_ppm * mask,
        r2prime_sigma_hz=measured.r2prime_sigma_hz * mask,
    )
    return maps, Sources(tissue.chi_pos_ppm * mask, tissue.chi_neg_ppm * mask)


def apply(name: str, maps: Maps, weights: str | None = None) -> dict[str, Volume]:
    """Make the maps of a method; those of a network are its own estimate."""
    own = NetworkOptions(weights=weights or "", refinement=0)
    options = own if methods.METHODS[name].is_network else None
    if methods.METHODS[name].target == "chi":
        return {"χ": methods.invert(maps, name, options).chi_ppm}
    return volumes(methods.separate(maps, name, options))


def volumes(sources: Sources) -> dict[str, Volume]:
    pos, neg = sources.chi_pos_ppm, sources.chi_neg_ppm
    return {"χ_pos": pos, "χ_neg": neg, "χ": pos - neg, "χ_pos + χ_neg": pos + neg}


def error_percent(symbol: str, made: Volume, true: Volume, mask: Volume) -> float:
    score = nrmse_demeaned_percent if symbol == "χ" else nrmse_percent
    return score(made.numpy(), true.numpy(), mask.numpy())


def faults(name: str, phantom: tuple[Maps, Sources], made: dict[str, Volume]) -> list[str]:
    """What is outside its limits."""
    maps, truth = phantom[0], volumes(phantom[1])
    found = []
    for symbol, most in MOST[name].items():
        error = error_percent(symbol, made[symbol], truth[symbol], maps.mask)
        if error > most:
            found.append(f"NRMSE of {symbol}: {error:.2f} %")
    for symbol, expected in SLOPES[name].items():
        slope = np.polyfit(truth[symbol][maps.mask].numpy(), made[symbol][maps.mask].numpy(), 1)[0]
        if slope != pytest.approx(expected, rel=0.05):
            found.append(f"slope of {symbol}: {slope:.3f}")
    return found


@pytest.mark.parametrize(("name", "closed"), [("unrolled", "closed-form"), ("unrolled-qsm", "tikhonov")])
def test_errors_and_slopes_are_those_of_the_shipped_weights(phantom, name, closed):
    maps, truth = phantom[0], volumes(phantom[1])
    made = apply(name, maps)
    assert not faults(name, phantom, made)
    simple = apply(closed, maps)
    for symbol in MOST[name]:
        own, other = (error_percent(symbol, m[symbol], truth[symbol], maps.mask) for m in (made, simple))
        assert own < other


@pytest.mark.parametrize("name", MOST)
def test_the_default_is_better_than_the_network_alone(phantom, name):
    maps, truth = phantom[0], volumes(phantom[1])
    alone = apply(name, maps)
    separated = methods.METHODS[name].target == "sources"
    made = volumes(methods.separate(maps, name)) if separated else {"χ": methods.invert(maps, name).chi_ppm}
    for symbol in MOST[name]:
        of_network, of_default = (
            error_percent(symbol, m[symbol], truth[symbol], maps.mask) for m in (alone, made)
        )
        assert of_default < 0.95 * of_network


@pytest.mark.parametrize(
    ("name", "field", "factor"),
    [
        ("unrolled", "field_ppm", 1.3),
        ("unrolled", "field_ppm", 0.77),
        ("unrolled", "r2prime_hz", 1.3),
        ("unrolled-qsm", "field_ppm", 1.3),
    ],
)
def test_a_map_in_other_units_is_noticed(phantom, name, field, factor):
    """These limits tell a wrong scale: otherwise they would prove nothing."""
    maps = phantom[0]
    wrong = replace(maps, **{field: factor * getattr(maps, field)})
    assert faults(name, phantom, apply(name, wrong))


@pytest.mark.parametrize("name", MOST)
def test_disturbed_weights_are_noticed(phantom, name, tmp_path):
    """By a tenth of each number."""
    tensors, header = load_weights(Path(shipped()[name]))
    rng = torch.Generator().manual_seed(0)
    disturbed = {
        key: (value * (1 + 0.1 * torch.randn(value.shape, generator=rng))).to(value.dtype)
        for key, value in tensors.items()
    }
    path = save_weights(tmp_path / f"{name}.safetensors", disturbed, header)
    assert faults(name, phantom, apply(name, phantom[0], str(path)))
