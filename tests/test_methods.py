"""What every method must do, and how the registry answers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from chisep import methods
from chisep.errors import InputError
from chisep.methods import METHODS
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.solvers import tikhonov, tkd
from tests.solvers.head import make_head, nrmse_percent
from tests.untrained import DATA, LICENCE, options_of

SOURCES = [name for name, method in METHODS.items() if method.target == "sources"]
NETWORKS = [name for name, method in METHODS.items() if method.is_network]
SOLVERS = [name for name in METHODS if name not in NETWORKS]
LINEAR = {"tikhonov": tikhonov.TikhonovConfig(alpha=0.01), "tkd": tkd.TkdConfig(threshold=0.15)}
"""Methods that are linear in the field where their weight is given."""


@pytest.fixture(scope="module")
def head():
    return make_head((26, 28, 24))


@pytest.fixture(scope="module")
def maps(head):
    made = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2)
    return replace(made, r2star_hz=made.r2prime_hz + 14 * head.mask)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, NetworkOptions]:
    """Random weights for the networks."""
    return options_of(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def solve(options):
    """Volumes that a method makes: χ_pos, χ_neg and χ, or χ alone."""

    def solve(name, maps, progress=None):
        if METHODS[name].target == "sources":
            made = methods.separate(maps, name, options.get(name), progress=progress)
            return {"pos": made.chi_pos_ppm, "neg": made.chi_neg_ppm, "chi": made.chi_ppm}
        return {"chi": methods.invert(maps, name, options.get(name), progress=progress).chi_ppm}

    return solve


@pytest.mark.parametrize("name", METHODS)
def test_makes_float32_maps_that_are_zero_outside_the_mask(name, solve, head, maps):
    for volume in solve(name, maps.to("cpu", torch.float64)).values():
        assert volume.shape == head.grid.shape
        assert volume.dtype == torch.float32
        assert torch.isfinite(volume).all()
        assert volume[head.mask].any()
        assert not volume[~head.mask].any()


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_not_negative(name, solve, maps):
    made = solve(name, maps)
    assert min(made["pos"].min(), made["neg"].min()) >= 0


@pytest.mark.parametrize("name", [name for name in SOURCES if name in SOLVERS])
def test_sources_are_near_the_truth(name, solve, head, maps):
    made = solve(name, maps)
    for source, truth in (("pos", head.chi_pos_ppm), ("neg", head.chi_neg_ppm)):
        assert nrmse_percent(made[source], truth, head.mask) < 50


@pytest.mark.parametrize("name", METHODS)
def test_leaves_its_inputs_alone(name, solve, maps):
    before = {n: v.clone() for n, v in vars(maps).items() if isinstance(v, torch.Tensor)}
    solve(name, maps)
    for key, value in before.items():
        assert torch.equal(getattr(maps, key), value), key


@pytest.mark.parametrize("name", SOLVERS)
def test_twice_the_maps_are_twice_the_susceptibility(name, solve, maps, head):
    doubled = replace(maps, field_ppm=2 * maps.field_ppm, r2prime_hz=2 * maps.r2prime_hz)
    once, twice = solve(name, maps)["chi"], solve(name, doubled)["chi"]
    assert nrmse_percent(twice, 2 * once, head.mask) < (0.01 if name in LINEAR else 0.5)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_methods_add_up(name, maps, head):
    other = replace(maps, field_ppm=maps.field_ppm.flip(0) * head.mask)
    both = replace(maps, field_ppm=maps.field_ppm + other.field_ppm)
    first, second, together = (methods.invert(m, name, LINEAR[name]).chi_ppm for m in (maps, other, both))
    torch.testing.assert_close(first + second, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_rotating_volume_and_b0_together_rotates_the_result(name, solve, maps, head):
    """A quarter turn about the first axis takes B0 from the third axis to the second."""

    def turn(volume):
        return torch.rot90(volume, 1, (1, 2)).contiguous()

    i, j, k = head.grid.shape
    turned = replace(
        maps,
        field_ppm=turn(maps.field_ppm),
        r2prime_hz=turn(maps.r2prime_hz),
        r2star_hz=None,
        mask=turn(maps.mask),
        grid=replace(head.grid, shape=(i, k, j), b0_direction=(0.0, 1.0, 0.0)),
    )
    straight = turn(solve(name, maps)["chi"])
    # Forward differences become backward ones: regularised methods turn almost exactly, not to the bit.
    assert nrmse_percent(solve(name, turned)["chi"], straight, turned.mask) < (0.3 if name in LINEAR else 5)
    wrong = replace(turned, grid=replace(turned.grid, b0_direction=(0.0, 0.0, 1.0)))
    assert nrmse_percent(solve(name, wrong)["chi"], straight, turned.mask) > 20


@pytest.mark.parametrize("name", METHODS)
def test_reports_progress_to_the_end(name, solve, maps):
    seen = []
    solve(name, maps, progress=lambda _what, done, most: seen.append((done, most)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] <= seen[-1][1]


@pytest.mark.parametrize("name", METHODS)
def test_default_settings_are_a_documented_frozen_dataclass(name):
    config = METHODS[name].load()[1]()
    assert is_dataclass(config)
    with pytest.raises(AttributeError):
        setattr(config, fields(config)[0].name, 1)


@pytest.mark.parametrize(
    ("name", "missing"),
    [(name, missing) for name in SOURCES for missing in (*METHODS[name].needs[1:], "D_r")],
)
def test_missing_inputs_are_named(name, missing, solve, maps):
    attribute = {"r2prime": "r2prime_hz", "r2star": "r2star_hz", "D_r": "relaxivity"}[missing]
    with pytest.raises(InputError, match=missing):
        solve(name, replace(maps, **{attribute: None}))


class TestNetworks:
    def test_what_takes_r2star_does_not_read_r2prime(self, solve, maps):
        """Without a spin echo R2' is made of an assumption, which would get in by the back door."""
        for name in ("chi-sepnet-r2s", "chi-sepnet-r2s-direct"):
            with_it, without = solve(name, maps), solve(name, replace(maps, r2prime_hz=None))
            assert torch.equal(with_it["pos"], without["pos"])
        both_ways = solve("chi-sepnet-r2s", maps)["pos"], solve("chi-sepnet-r2p", maps)["pos"]
        assert not torch.equal(*both_ways)

    def test_weights_used(self, options):
        def names(method, **given):
            return [used["Name"] for used in methods.weights_used(method, options[method], **given)]

        assert names("qsmnet", chi_given=False) == ["qsmnet"]
        assert names("chi-sepnet-r2p", chi_given=True) == ["chi-sepnet-r2p"]
        assert names("chi-sepnet-r2p", chi_given=False) == ["chi-sepnet-r2p", "qsmnet"]
        assert names("chi-sepnet-r2s", chi_given=True) == ["chi-sepnet-r2p", "r2s"]
        assert names("chi-sepnet-r2s", chi_given=False) == ["chi-sepnet-r2p", "r2s", "qsmnet"]
        assert names("chi-sepnet-r2s-direct", chi_given=True) == ["chi-sepnet-r2s-direct"]

    def test_record_of_weights(self, options):
        chosen = options["unrolled-thesis"]
        (used,) = methods.weights_used("unrolled-thesis", chosen, chi_given=True)
        assert used["SHA256"] == hashlib.sha256(Path(chosen.weights).read_bytes()).hexdigest()
        assert (used["TrainingData"], used["LicenceOfTrainingData"]) == (DATA, LICENCE)

    def test_solvers_take_no_weights(self, options):
        assert methods.config_for("iterative", NetworkOptions()) is None
        assert methods.weights_used("iterative", NetworkOptions(), chi_given=False) == []
        with pytest.raises(InputError, match=r"which is no network.*chi-sepnet-r2p"):
            methods.config_for("iterative", options["chi-sepnet-r2p"])

    @pytest.mark.parametrize("name", METHODS)
    def test_the_list_says_which_weights_are_not_shipped(self, name):
        method, known = METHODS[name], network_weights.shipped()
        assert method.missing_weights == tuple(w for w in method.weights if w not in known)
        assert ("not shipped" in method.row()["source"]) == bool(method.missing_weights)
        assert all(weights in method.row()["source"] for weights in method.missing_weights)

    def test_weights_that_are_nowhere(self, maps):
        with pytest.raises(InputError, match="no-such-weights"):
            methods.invert(maps, "qsmnet", NetworkOptions(weights="no-such-weights"))


@pytest.mark.parametrize("bad", ["shape", "empty mask", "nan", "device"])
def test_unusable_inputs_are_refused(bad, maps):
    options = {}
    if bad == "shape":
        maps = replace(maps, grid=maps.grid.reshaped((26, 28, 25)))
    elif bad == "empty mask":
        maps = replace(maps, mask=torch.zeros_like(maps.mask))
    elif bad == "nan":
        maps = replace(maps, field_ppm=maps.field_ppm.clone().index_fill_(0, torch.tensor([4]), torch.nan))
    else:
        options["device"] = "no-such-device"
    with pytest.raises(InputError):
        methods.separate(maps, "closed-form", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_a_gpu_that_is_not_there(maps):
    with pytest.raises(InputError, match="cuda"):
        methods.invert(maps, "tkd", device="cuda")


def test_unknown_methods_get_the_list_and_a_guess():
    with pytest.raises(InputError, match=r"closed-form, iterative.*Did you mean iterative"):
        methods.find("iterativ", "sources")
    with pytest.raises(InputError, match="tikhonov, tkd, tv"):
        methods.find("closed-form", "chi")
    assert methods.find("tv", "chi") is METHODS["tv"]


def test_listing_methods_imports_no_solver():
    code = "import sys, chisep.methods; sys.exit(any(m.startswith('chisep.solvers') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
