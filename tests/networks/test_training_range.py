"""The range of a training: scans within it are quiet, scans beyond it are named."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from chisep import methods
from chisep.api.maps import InversionOptions, qsm
from chisep.errors import ChisepWarning, InputError
from chisep.io.weights import load_header, load_weights, save_weights
from chisep.networks.inference import NetworkOptions
from chisep.networks.training_range import TrainingRange, beyond_training
from chisep.networks.weights import load, read_header, shipped
from chisep.physics.signal import default_relaxivity
from chisep.training.protocols import ProtocolConfig
from chisep.training.trained_range import range_of_protocols
from chisep.types import Grid, Maps, Relaxivity
from tests.untrained import save_untrained

SHAPE = (12, 12, 12)
INSIDE = torch.zeros(SHAPE, dtype=torch.bool)
INSIDE[2:-2, 2:-2, 2:-2] = True


def scan(
    voxel_mm=(1.0, 1.0, 1.0),
    b0=(0.0, 0.0, 1.0),
    b0_t=3.0,
    dr=None,
    field_ppb=0.5,
    r2prime_ppb=20.0,
    affine=None,
) -> Maps:
    d_r = dr or default_relaxivity(b0_t)
    return Maps(
        field_ppm=0.01 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * INSIDE,
        mask=INSIDE,
        grid=Grid(SHAPE, voxel_mm, b0, affine),
        relaxivity=d_r,
        r2prime_hz=5.0 * INSIDE,
        field_sigma_ppm=field_ppb / 1000 * INSIDE,
        r2prime_sigma_hz=r2prime_ppb / 1000 * d_r.pos_hz_per_ppm * INSIDE,
        b0_t=b0_t,
    )


def limits_of(name: str) -> TrainingRange:
    limits = read_header(load_header(shipped()[name])).training_range
    assert limits is not None
    return limits


def tilted(degrees: float) -> tuple[float, float, float]:
    return (0.0, math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))


SOUND = [
    scan(),
    *(scan((edge,) * 3) for edge in (0.6, 0.75, 1.5, 2.0, 3.0)),
    scan((1.0, 1.0, 3.0)),
    *(scan(b0_t=b0_t) for b0_t in (1.494, 2.89, 7.0)),
    scan(b0=tilted(40.0)),
    scan(b0=tilted(140.0)),
    scan(dr=Relaxivity(137.0, 137.0)),
    scan(dr=Relaxivity(321.0, 150.0)),
    scan(field_ppb=0.05, r2prime_ppb=0.5),
]


@pytest.mark.parametrize("name", ["unrolled", "unrolled-qsm"])
def test_no_warning_for_sound_scans_and_the_default_networks(name):
    for maps in SOUND:
        assert beyond_training(limits_of(name), maps) == []


BEYOND = {
    "field strength: 9.4 T (trained: 1.5–7 T)": scan(b0_t=9.4),
    "voxel edges: 0.4 mm (trained: 0.6–3.2 mm)": scan((0.4, 0.6, 1.0)),
    "voxel edges: 4 mm (trained: 0.6–3.2 mm)": scan((2.0, 2.0, 4.0)),
    "longest over shortest voxel edge: 4 (trained: up to 3)": scan((0.75, 0.75, 3.0)),
    "B0 to the head's axis: 60° (trained: up to 45°)": scan(b0=tilted(60.0)),
    "D_r at 3 T: 50 1/s/ppm": scan(dr=Relaxivity(50.0, 50.0)),
    "D_r,neg/D_r,pos: 3": scan(dr=Relaxivity(100.0, 300.0)),
    "noise of the field: 40 ppb": scan(field_ppb=40.0),
    "noise of R2'/D_r: 200 ppb": scan(r2prime_ppb=200.0),
}


@pytest.mark.parametrize("text", BEYOND)
def test_what_is_beyond_is_named_and_nothing_else(text):
    (found,) = beyond_training(limits_of("unrolled"), BEYOND[text])
    assert found.startswith(text)


def test_d_r_is_compared_at_3_t():
    assert beyond_training(limits_of("chi-sepnet-r2p"), scan(b0_t=2.89, r2prime_ppb=10.0)) == []
    assert (
        "D_r at 3 T: 228"
        in beyond_training(limits_of("unrolled-thesis"), scan(dr=Relaxivity(228.0, 228.0), r2prime_ppb=5.0))[
            0
        ]
    )


def test_what_is_not_given_is_not_compared():
    few = replace(scan(), relaxivity=None, r2prime_sigma_hz=None, field_sigma_ppm=None, b0_t=None)
    for name in shipped():
        assert beyond_training(limits_of(name), few) == []


def test_the_axes_of_the_file_do_not_matter():
    """A sagittal scan of a head that lies straight: B0 is along the second axis of its file."""
    affine = np.array([[0, 0, 1.0, 0], [-1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    assert beyond_training(limits_of("unrolled"), scan(b0=(0.0, 1.0, 0.0), affine=affine)) == []


def test_networks_of_one_protocol_name_their_voxel():
    (found,) = beyond_training(limits_of("qsmnet"), scan((2.0, 2.0, 2.0)))
    assert found == "voxel edges: 2 mm (trained: 1 mm)"
    assert beyond_training(limits_of("qsmnet"), scan((0.94, 0.94, 1.0), b0=tilted(80.0))) == []


def test_every_protocol_of_a_training_is_within_its_range():
    """By the draws themselves, of another seed."""
    from chisep.training.protocols import drawn

    config = ProtocolConfig(axial_share=0.7)
    limits, rng = limits_of("unrolled"), np.random.default_rng(5)
    for _ in range(300):
        protocol = drawn(rng, config, 12)
        maps = replace(scan(dr=protocol.assumed, b0_t=protocol.b0_t), grid=protocol.grid)
        assert beyond_training(limits, maps) == []


@pytest.mark.parametrize("name", ["unrolled", "unrolled-qsm"])
def test_the_range_of_shipped_weights_is_that_of_their_recipe(name):
    header = load_header(shipped()[name])
    config = msgspec.convert(header["recipe"]["protocol"], ProtocolConfig)
    assert range_of_protocols(config, load(name).config) == limits_of(name)


@pytest.mark.parametrize(
    "limits",
    [{"b0_t": [7.0, 1.5]}, {"b0_t": [0.0, 3.0]}, {"voxel_mm": 1.0}, {"tilt": 3.0}, {"tilt_deg": -1.0}, [1]],
)
def test_a_range_that_is_none_is_refused(tmp_path, limits):
    tensors, header = load_weights(save_untrained(tmp_path, "qsmnet"))
    path = save_weights(tmp_path / "w.safetensors", tensors, header | {"range": limits})
    with pytest.raises(InputError, match="do not fit their header"):
        load(path)


class TestMethods:
    """Weights of narrow range, in all places where networks compute."""

    @pytest.fixture
    def options(self, tmp_path) -> dict[str, str]:
        files = {}
        for name in ("qsmnet", "chi-sepnet-r2p", "r2s"):
            tensors, header = load_weights(save_untrained(tmp_path, name))
            files[name] = str(
                save_weights(
                    tmp_path / f"{name}-narrow.safetensors",
                    tensors,
                    header | {"range": {"voxel_mm": [5.0, 6.0]}},
                )
            )
        return files

    def test_sources_and_every_network_that_makes_their_inputs(self, options, tmp_path):
        network = NetworkOptions(
            options["chi-sepnet-r2p"], chi_weights=options["qsmnet"], rate_weights=options["r2s"]
        )
        maps = replace(scan(), r2star_hz=20.0 * INSIDE)
        said = methods.separate(maps, "chi-sepnet-r2s", network).convergence.warnings
        assert [text.split()[1] for text in said] == ["chi-sepnet-r2p", "r2s", "qsmnet"]
        assert all("voxel edges: 1 mm (trained: 5–6 mm)" in text for text in said)
        given = replace(maps, chi_ppm=0.01 * INSIDE)
        assert len(methods.separate(given, "chi-sepnet-r2p", network).convergence.warnings) == 1

    def test_weights_without_a_range_are_quiet(self, tmp_path):
        network = NetworkOptions(str(save_untrained(tmp_path, "qsmnet")))
        assert methods.invert(scan(), "qsmnet", network).convergence.warnings == ()

    def test_single_maps(self, options):
        with pytest.warns(ChisepWarning, match="network qsmnet was not trained on such scans: voxel edges"):
            qsm(
                scan().field_ppm.numpy(),
                INSIDE.numpy(),
                options=InversionOptions(method="qsmnet", weights=options["qsmnet"]),
                voxel_mm=(1, 1, 1),
            )
