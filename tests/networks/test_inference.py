"""Networks on whole volumes, whatever their shape and axes, and their methods."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chisep import methods
from chisep.errors import InputError
from chisep.io.weights import load_weights, save_weights
from chisep.methods import METHODS
from chisep.networks.brain_box import BrainBox
from chisep.networks.config import MEASURED_ROWS, NOISE, PHI_ROWS, SOURCES, NetworkConfig, build
from chisep.networks.inference import (
    NetworkOptions,
    has_fast_bfloat16,
    intermediate_estimates,
    measured_channels,
)
from chisep.networks.refinement import refined_chi as refined_chi_of
from chisep.networks.refinement import refined_sources
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.networks.weights import find_weights, fuse, load, without_norms
from chisep.physics.dipole import Dipole
from chisep.physics.separation import Separation
from chisep.types import Grid, Relaxivity
from tests.solvers.head import make_head

UNET = UNetConfig((2, 3))
STATISTICS = {
    "field": (0.0, 0.01),
    "qsm": (0.002, 0.04),
    "r2prime": (0.05, 0.03),
    "r2star": (0.2, 0.1),
    "chi": (-0.001, 0.05),
    "chi_pos": (0.03, 0.03),
    "chi_neg": (0.025, 0.02),
}
CONFIGS = {
    "qsmnet": NetworkConfig(("field",), ("chi",), UNET),
    "r2s": NetworkConfig(("r2star",), ("r2prime",), UNET),
    "chi-sepnet-r2p": NetworkConfig(PHI_ROWS, SOURCES, UNET),
    "chi-sepnet-r2s-direct": NetworkConfig(("qsm", "r2star", "field"), SOURCES, UNET),
    "unrolled-thesis": NetworkConfig(PHI_ROWS, SOURCES, UNET, UnrolledGradientConfig(3, 0.4)),
    "unrolled": NetworkConfig(
        (*MEASURED_ROWS, *NOISE.values()), SOURCES, UNET, proximal=UnrolledProximalConfig(passes=2)
    ),
    "unrolled-qsm": NetworkConfig(
        ("field", "field_sigma"), ("chi",), UNET, proximal=UnrolledProximalConfig(passes=2)
    ),
}
ITERATES = {"unrolled-thesis": 3, "unrolled": 3, "unrolled-qsm": 3}
FACTORS = {"chi_pos": [[0.01, 1.5], [0.02, 3.0]], "chi_neg": 1.25, "chi": 2.0}
"""From scales to standard deviations."""
OF_METHOD = {**{name: name for name in CONFIGS if name != "r2s"}, "chi-sepnet-r2s": "chi-sepnet-r2p"}
"""Weights of every network method."""
MAPS = make_head((15, 18, 13)).maps(Relaxivity(114.0, 91.2), field_noise_ppm=1e-3)
MAPS = replace(MAPS, r2star_hz=(MAPS.r2prime_hz + 15.0) * MAPS.mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights of every kind of network, random but different."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        network = build(config, STATISTICS)
        with torch.no_grad():
            for part, tensor in network.state_dict().items():
                if "running_mean" in part:
                    tensor.uniform_(-0.1, 0.1)
                elif "running_var" in part:
                    tensor.uniform_(0.02, 0.1)
        header = {"name": name, "network": asdict(config), "statistics": STATISTICS, "sigma_factors": FACTORS}
        save_weights(folder / f"{name}.safetensors", network.state_dict(), header)
    return folder


def options(folder: Path, name: str, **changes) -> NetworkOptions:
    return NetworkOptions(
        weights=str(folder / f"{OF_METHOD[name]}.safetensors"),
        chi_weights=str(folder / "qsmnet.safetensors"),
        rate_weights=str(folder / "r2s.safetensors"),
        **{"precision": "single", "refinement": 0, **changes},
    )


def channels(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: mean + sd * torch.randn(MAPS.mask.shape, generator=generator)
        for name, (mean, sd) in STATISTICS.items()
    }
    sigmas = {
        name: 0.002 + 0.001 * torch.rand(MAPS.mask.shape, generator=generator) for name in NOISE.values()
    }
    return found | sigmas


class TestIterates:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_is_the_network_on_the_box_of_the_brain(self, folder, name):
        """Cut by hand; Φ pads it, and knows the mask and the ratio of D_r."""
        trained = load(folder / f"{name}.safetensors")
        inside = MAPS.mask.nonzero()
        (i0, j0, k0), (i1, j1, k1) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        box = (slice(i0, i1), slice(j0, j1), slice(k0, k1))
        mask = MAPS.mask[box]
        assert mask.shape != MAPS.mask.shape
        y = torch.stack([channels()[c][box] * mask for c in trained.config.inputs])
        dipole = Dipole(MAPS.grid.reshaped(mask.shape), padding=trained.config.padding(whole=True))
        phi = Separation(dipole, 0.8, mask[None])
        with torch.no_grad():
            expected = trained.network.intermediate_estimates(y[None], mask[None, None], phi)
        found = intermediate_estimates(
            trained, channels(), MAPS.mask, MAPS.grid, ratio=0.8, precision="single"
        )
        assert len(found) == len(expected) == ITERATES.get(name, 1)
        for x, part in zip(found, expected, strict=True):
            assert x.shape == (part.shape[1], *MAPS.mask.shape)
            torch.testing.assert_close(x[:, *box], part[0])
            assert not x[:, ~MAPS.mask].any()

    def test_last_only_is_the_last(self, folder):
        trained = load(folder / "unrolled-thesis.safetensors")
        arguments = (trained, channels(), MAPS.mask, MAPS.grid)
        (last,) = intermediate_estimates(*arguments, last_only=True)
        assert torch.equal(last, intermediate_estimates(*arguments)[-1])

    @pytest.mark.parametrize("name", ["chi-sepnet-r2p", "unrolled-thesis"])
    @given(
        size=st.tuples(*[st.integers(1, 12)] * 3),
        rims=st.tuples(*[st.integers(0, 3)] * 6),
    )
    @settings(max_examples=15, deadline=None)
    def test_any_shape_and_any_rim(self, folder, name, size, rims):
        """Zeros around a brain change nothing but their own place."""
        trained = load(folder / f"{name}.safetensors")
        mask = torch.ones(size, dtype=torch.bool)
        maps = {c: volume[:1, :1, :1].expand(size).contiguous() for c, volume in channels().items()}
        grid = Grid(size, (1.0, 1.0, 1.2), (0.0, 0.6, 0.8))
        before, after = rims[::2], rims[1::2]

        def wide(volume: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(
                volume, [n for axis in (2, 1, 0) for n in (before[axis], after[axis])]
            )

        plain = intermediate_estimates(trained, maps, mask, grid, precision="single")[-1]
        big, placed = wide(mask), grid.reshaped(wide(mask).shape)
        wider = {c: wide(v) for c, v in maps.items()}
        rimmed = intermediate_estimates(trained, wider, big, placed, precision="single")[-1]
        assert torch.isfinite(plain).all()
        # Where in memory a volume lies decides on the last digits of convolutions, and nothing else.
        expected = torch.stack([wide(volume) for volume in plain])
        torch.testing.assert_close(rimmed, expected, rtol=1e-5, atol=1e-7)

    def test_axes_of_the_file_do_not_matter(self, folder):
        """Maps stored with another order and direction of axes give the same result, stored so."""
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        grid = replace(MAPS.grid, affine=affine, b0_direction=(0.1, 0.3, 0.9))
        for name in ("chi-sepnet-r2p", "unrolled-thesis"):
            trained = load(folder / f"{name}.safetensors")
            plain = intermediate_estimates(trained, channels(), MAPS.mask, grid, precision="single")[-1]
            assert (plain - plain.flip(-1) * MAPS.mask).abs().max() > 1e-3
            for order, signs in list(zip(permutations(range(3)), product((1, -1), repeat=3), strict=False)):
                flips = [axis for axis in range(3) if signs[axis] < 0]

                def stored(volume, order=order, flips=flips):
                    return volume.permute(order).flip(flips).contiguous()

                turn = np.zeros((4, 4))
                turn[3, 3] = 1.0
                for axis, source in enumerate(order):
                    turn[source, axis] = signs[axis]
                b0 = tuple(signs[a] * grid.b0_direction[order[a]] for a in range(3))
                shape = tuple(MAPS.mask.shape[axis] for axis in order)
                turned = Grid(shape, (2.0, 2.0, 2.0), b0, affine @ turn)
                maps = {c: stored(volume) for c, volume in channels().items()}
                found = intermediate_estimates(trained, maps, stored(MAPS.mask), turned, precision="single")[
                    -1
                ]
                expected = torch.stack([stored(volume) for volume in plain])
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    def test_precision(self, folder):
        """bfloat16 is close to single precision, and auto is one of the two."""
        trained = load(folder / "chi-sepnet-r2p.safetensors")
        single, low, auto = (
            intermediate_estimates(trained, channels(), MAPS.mask, MAPS.grid, precision=p)[-1]
            for p in ("single", "bfloat16", "auto")
        )
        assert low.dtype == single.dtype == torch.float32
        error = (low - single).norm() / single.norm()
        assert 0 < error < 0.02
        assert torch.equal(auto, low if has_fast_bfloat16("cpu") else single)


class TestMethods:
    @pytest.mark.parametrize("name", OF_METHOD)
    def test_every_network_method(self, folder, name):
        """Sources are ≥ 0, all is float32 and 0 outside the mask, and progress is reported to the end."""
        seen = []
        arguments = (MAPS, name, options(folder, name))
        if METHODS[name].target == "chi":
            volumes = [methods.invert(*arguments, progress=lambda *step: seen.append(step)).chi_ppm]
        else:
            made = methods.separate(*arguments, progress=lambda *step: seen.append(step))
            volumes = [made.chi_pos_ppm, made.chi_neg_ppm]
            assert min(float(volume.min()) for volume in volumes) >= 0
        for volume in volumes:
            assert volume.dtype == torch.float32
            assert volume.shape == MAPS.mask.shape
            assert volume[MAPS.mask].any()
            assert not volume[~MAPS.mask].any()
        assert seen[-1][1] == seen[-1][2]

    def test_there_are_no_others(self):
        assert {name for name, method in METHODS.items() if method.source == "trained"} == set(OF_METHOD)

    @pytest.mark.parametrize("name", ["chi-sepnet-r2p", "unrolled-thesis"])
    def test_separation_is_the_final_estimate_without_negative_sources(self, folder, name):
        chi = 0.02 * torch.randn(MAPS.mask.shape, generator=torch.Generator().manual_seed(0)) * MAPS.mask
        maps = replace(MAPS, chi_ppm=chi)
        made = methods.separate(maps, name, options(folder, name))
        inputs = {"field": maps.field_ppm, "qsm": chi, "r2prime": maps.r2prime_hz / 114.0}
        trained = load(folder / f"{name}.safetensors")
        fuse(trained.network)
        pos, neg = intermediate_estimates(
            trained, inputs, maps.mask, maps.grid, ratio=0.8, precision="single"
        )[-1]
        assert min(float(pos.min()), float(neg.min())) < 0
        assert torch.equal(made.chi_pos_ppm, pos.clamp(min=0))
        assert torch.equal(made.chi_neg_ppm, neg.clamp(min=0))

    def test_unrolled_is_its_last_pass_with_what_it_says_of_its_error(self, folder):
        noisy = replace(MAPS, field_sigma_ppm=1e-3, r2prime_sigma_hz=1.0 + MAPS.r2prime_hz / 20)
        trained = load(folder / "unrolled.safetensors")
        fuse(trained.network)
        made = methods.separate(noisy, "unrolled", options(folder, "unrolled"))
        inputs = {
            "field": noisy.field_ppm,
            "r2prime": noisy.r2prime_hz / 114.0,
            "field_sigma": 1e-3 * noisy.mask,
            "r2prime_sigma": noisy.r2prime_sigma_hz / 114.0,
        }
        last = intermediate_estimates(trained, inputs, noisy.mask, noisy.grid, ratio=0.8, precision="single")[
            -1
        ]
        assert torch.equal(made.chi_pos_ppm, last[0].clamp(min=0))
        assert torch.equal(made.chi_neg_ppm, last[1].clamp(min=0))
        level = float(inputs["r2prime_sigma"][noisy.mask].median())
        assert 0.01 < level < 0.02
        torch.testing.assert_close(made.chi_pos_sigma_ppm, (1.5 + 1.5 * math.log2(level / 0.01)) * last[2])
        torch.testing.assert_close(made.chi_neg_sigma_ppm, 1.25 * last[3])
        assert (made.chi_pos_sigma_ppm[noisy.mask] > 0).all()
        chi = methods.invert(noisy, "unrolled-qsm", options(folder, "unrolled-qsm"))
        assert (chi.chi_sigma_ppm[noisy.mask] > 0).all()

    def test_the_estimate_is_the_prior_of_a_solver(self, folder):
        """A magnitude and a χ map, which the network does not read, have no part in it."""
        torch.manual_seed(0)
        field_sigma = 1e-3 * MAPS.mask
        rate_sigma = (1.0 + MAPS.r2prime_hz / 20) * MAPS.mask
        rate = MAPS.r2prime_hz + rate_sigma * torch.randn(rate_sigma.shape)
        noisy = replace(MAPS, r2prime_hz=rate, field_sigma_ppm=field_sigma, r2prime_sigma_hz=rate_sigma)
        more = replace(noisy, magnitude=noisy.r2star_hz, chi_ppm=noisy.field_ppm)
        estimate = methods.separate(noisy, "unrolled", options(folder, "unrolled"))
        refined = methods.separate(more, "unrolled", options(folder, "unrolled", refinement=3))
        box = BrainBox(noisy.mask, noisy.grid)
        inner = box.cut_record(noisy)
        wanted = box.restore_record(refined_sources(inner, box.cut_record(estimate), 3, None))
        assert torch.equal(refined.chi_pos_ppm, wanted.chi_pos_ppm)
        assert not torch.equal(refined.chi_pos_ppm, estimate.chi_pos_ppm)
        assert torch.equal(refined.chi_neg_sigma_ppm, wanted.chi_neg_sigma_ppm)
        assert not refined.convergence.warnings
        chi = methods.invert(noisy, "unrolled-qsm", options(folder, "unrolled-qsm"))
        refined_chi = methods.invert(more, "unrolled-qsm", options(folder, "unrolled-qsm", refinement=3))
        wanted_chi = box.restore_record(refined_chi_of(inner, box.cut_record(chi), 3, None)).chi_ppm
        assert torch.equal(refined_chi.chi_ppm, wanted_chi)
        assert torch.equal(refined_chi.chi_sigma_ppm, chi.chi_sigma_ppm)
        with pytest.raises(InputError, match="refinement: found -1"):
            NetworkOptions(refinement=-1)

    def test_unrolled_takes_sources_where_the_field_is_lost(self, folder):
        inner = torch.zeros_like(MAPS.mask)
        inner[4:-4, 4:-4, 4:-4] = MAPS.mask[4:-4, 4:-4, 4:-4]
        rimmed = replace(MAPS, mask=inner, support=MAPS.mask)
        made = methods.separate(rimmed, "unrolled", options(folder, "unrolled"))
        assert made.chi_pos_ppm[MAPS.mask & ~inner].any()
        assert not made.chi_pos_ppm[~MAPS.mask].any()
        # A field that is not known does not matter.
        lost = replace(rimmed, field_ppm=torch.where(inner, MAPS.field_ppm, 9.0), field_sigma_ppm=1e-3)
        known = replace(lost, field_ppm=MAPS.field_ppm)
        same = [methods.separate(maps, "unrolled", options(folder, "unrolled")) for maps in (lost, known)]
        assert torch.equal(same[0].chi_neg_ppm, same[1].chi_neg_ppm)

    def test_unrolled_estimates_missing_noise_maps(self, folder):
        channels = measured_channels(MAPS, ("field_sigma", "r2prime_sigma", "r2prime"), NetworkOptions())
        for name in NOISE.values():
            values = channels[name][MAPS.mask]
            assert (values > 0).all()
            assert (values == values[0]).all()
            assert not channels[name][~MAPS.mask].any()

    def test_chi_is_made_where_it_is_not_given(self, folder):
        chi = methods.invert(MAPS, "qsmnet", options(folder, "qsmnet")).chi_ppm
        chosen = options(folder, "chi-sepnet-r2p")
        alone = methods.separate(MAPS, "chi-sepnet-r2p", chosen)
        given_it = methods.separate(replace(MAPS, chi_ppm=chi), "chi-sepnet-r2p", chosen)
        other = methods.separate(replace(MAPS, chi_ppm=0.5 * chi), "chi-sepnet-r2p", chosen)
        assert torch.equal(alone.chi_pos_ppm, given_it.chi_pos_ppm)
        assert not torch.equal(alone.chi_pos_ppm, other.chi_pos_ppm)

    def test_r2prime_is_made_of_r2star_where_it_is_not_given(self, folder):
        """χ-sepnet-R2*: two networks, one after the other; R2' is not negative."""
        only = replace(MAPS, r2prime_hz=None)
        chosen = options(folder, "chi-sepnet-r2s")
        trained = load(folder / "r2s.safetensors")
        rate = intermediate_estimates(
            trained, {"r2star": only.r2star_hz / 114.0}, only.mask, only.grid, precision="single"
        )[-1][0].clamp(min=0)
        made = methods.separate(only, "chi-sepnet-r2s", chosen)
        by_hand = methods.separate(replace(only, r2prime_hz=114.0 * rate), "chi-sepnet-r2p", chosen)
        torch.testing.assert_close(made.chi_pos_ppm, by_hand.chi_pos_ppm, rtol=0, atol=1e-6)
        torch.testing.assert_close(made.chi_neg_ppm, by_hand.chi_neg_ppm, rtol=0, atol=1e-6)

    def test_r2prime_below_0_is_noise_to_networks_that_know_the_noise_only(self):
        """The others were trained on R2' that was clipped at 0."""
        noisy = replace(MAPS, r2prime_hz=MAPS.r2prime_hz - 3.0)
        assert (noisy.r2prime_hz < 0).any()
        plain, *known = (
            measured_channels(noisy, inputs, NetworkOptions())["r2prime"]
            for inputs in (MEASURED_ROWS, (*MEASURED_ROWS, *NOISE.values()))
        )
        torch.testing.assert_close(plain, (noisy.r2prime_hz / 114.0).clamp_min(0))
        torch.testing.assert_close(known[0], noisy.r2prime_hz / 114.0)

    def test_direct_networks_take_r2star_over_d_r(self, folder):
        only = replace(MAPS, r2prime_hz=None)
        chosen = options(folder, "chi-sepnet-r2s-direct")
        made = methods.separate(only, "chi-sepnet-r2s-direct", chosen)
        doubled = replace(only, r2star_hz=2 * only.r2star_hz, relaxivity=Relaxivity(228.0, 182.4))
        same = methods.separate(doubled, "chi-sepnet-r2s-direct", chosen)
        torch.testing.assert_close(made.chi_pos_ppm, same.chi_pos_ppm)
        louder = methods.separate(
            replace(doubled, relaxivity=only.relaxivity), "chi-sepnet-r2s-direct", chosen
        )
        assert not torch.allclose(made.chi_pos_ppm, louder.chi_pos_ppm)

    def test_maps_of_another_field_strength_look_the_same_to_networks(self, folder):
        """At 7 T, D_r and R2' are 7/3 of those at 3 T."""
        high = replace(MAPS, r2prime_hz=7 / 3 * MAPS.r2prime_hz, relaxivity=Relaxivity(266.0, 212.8))
        found = measured_channels(high, ("r2prime",), NetworkOptions())["r2prime"]
        torch.testing.assert_close(found, MAPS.r2prime_hz / 114.0)

    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("chi-sepnet-r2p", "r2prime_hz"),
            ("unrolled-thesis", "r2prime_hz"),
            ("chi-sepnet-r2s", "r2star_hz"),
            ("chi-sepnet-r2s-direct", "r2star_hz"),
            ("chi-sepnet-r2p", "relaxivity"),
            ("chi-sepnet-r2s", "relaxivity"),
            ("unrolled-thesis", "relaxivity"),
        ],
    )
    def test_missing_maps_are_named(self, folder, name, missing):
        word = "D_r" if missing == "relaxivity" else missing.removesuffix("_hz")
        with pytest.raises(InputError, match=word):
            methods.separate(replace(MAPS, **{missing: None}), name, options(folder, name))

    def test_weights_of_another_kind_are_refused(self, folder):
        qsm, sources = folder / "qsmnet.safetensors", folder / "chi-sepnet-r2p.safetensors"
        with pytest.raises(InputError, match="from field to chi; expected one to chi_pos, chi_neg"):
            methods.separate(MAPS, "chi-sepnet-r2p", NetworkOptions(weights=str(qsm)))
        with pytest.raises(InputError, match="expected one to chi"):
            methods.invert(MAPS, "qsmnet", NetworkOptions(weights=str(sources)))
        wrong = NetworkOptions(weights=str(sources), chi_weights=str(sources))
        with pytest.raises(InputError, match="expected one to chi"):
            methods.separate(MAPS, "chi-sepnet-r2p", wrong)


class TestLoad:
    def test_comes_back_as_it_was(self, folder):
        for name, config in CONFIGS.items():
            trained = load(folder / f"{name}.safetensors")
            assert trained.config == config
            assert trained.header["name"] == name
            assert not trained.network.training
            tensors, _ = load_weights(folder / f"{name}.safetensors")
            loaded = trained.network.state_dict()
            assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())

    def test_names_that_are_neither_files_nor_shipped(self, tmp_path):
        for wrong in ("no-such-network", str(tmp_path / "missing.safetensors"), str(tmp_path)):
            with pytest.raises(InputError, match="chisep weights"):
                find_weights(wrong)

    @pytest.mark.parametrize(
        "change",
        [
            {"network": None},
            {"network": {}},
            {"statistics": None},
            {"statistics": {}},
            {"statistics": {"field": [0.0]}},
            {"statistics": {"field": [0.0, 0.0], "chi": [0.0, 1.0]}},
            {"statistics": {"field": ["a", "b"], "chi": [0.0, 1.0]}},
            {"inputs": ["filed"]},
            {"inputs": []},
            {"inputs": ["field", "qsm"]},
            {"outputs": ["chi_pos", "chi_neg"]},
            {"unet": {"widths": [2, 4], "norm": "batch"}},
            {"unet": {"widths": [2, 3], "norm": "none"}},
            {"unet": {"widths": [2, 3], "norm": "layer"}},
            {"unet": {"widths": [], "norm": "batch"}},
            {"unet": {"widths": ["a"], "norm": "batch"}},
            {"unet": {"widths": [2, 3], "norm": "batch", "depth": 4}},
            {"unet": None},
            {"unrolled": {"iterations": 3}},
            {"unrolled": 3},
            {"proximal": {"passes": 2}},
            {"proximal": 3},
        ],
    )
    def test_headers_that_do_not_fit_are_refused_with_the_file(self, folder, tmp_path, change):
        tensors, header = load_weights(folder / "qsmnet.safetensors")
        if set(change) <= {"network", "statistics"}:
            header |= change
        else:
            header["network"] |= change
        path = save_weights(tmp_path / "changed.safetensors", tensors, header)
        with pytest.raises(InputError, match=r"changed\.safetensors"):
            load(path)

    def test_tensors_that_do_not_fit_are_named(self, folder, tmp_path):
        tensors, header = load_weights(folder / "qsmnet.safetensors")
        missing = {key: tensor for key, tensor in tensors.items() if key != "unet.head.bias"}
        path = save_weights(tmp_path / "fewer.safetensors", missing, header)
        with pytest.raises(InputError, match=r"fewer\.safetensors.*unet\.head\.bias"):
            load(path)

    def test_headers_hold_what_json_holds(self, folder):
        _, header = load_weights(folder / "unrolled-thesis.safetensors")
        assert json.loads(json.dumps(header)) == header


@pytest.mark.parametrize("name", ["chi-sepnet-r2p", "unrolled"])
def test_without_norms_the_same_comes_out(folder, name):
    trained = load(folder / f"{name}.safetensors")
    generator = torch.Generator().manual_seed(0)
    for module in trained.network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    y = 0.05 * torch.rand((1, len(trained.config.inputs), 12, 12, 12), generator=generator)
    mask = torch.ones((1, 1, 12, 12, 12), dtype=torch.bool)
    phi = Separation(Dipole(Grid((12, 12, 12), (1.0, 1.0, 1.0))), 0.8, mask[:, 0])
    expected = trained.network.intermediate_estimates(y, mask, phi)[-1]
    plain = without_norms(trained)
    assert plain.config.unet.norm == "none"
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in plain.network.modules())
    torch.testing.assert_close(
        plain.network.intermediate_estimates(y, mask, phi)[-1], expected, rtol=1e-4, atol=1e-7
    )


def test_norms_of_each_pass_cannot_be_left_out(folder):
    with pytest.raises(InputError, match="norms of each cascade"):
        without_norms(load(folder / "unrolled-thesis.safetensors"))
