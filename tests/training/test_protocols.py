"""Crops under random protocols: what physics says of them, and that they are drawn from the ranges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from chisep.errors import InputError
from chisep.networks.config import MEASURED_ROWS, NOISE, PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.physics.dipole import Dipole
from chisep.physics.relaxation import PSEUDO_R2_SD, pseudo_r2_hz
from chisep.training.data import TrainingScan, statistics_of_crops
from chisep.training.protocols import ProtocolConfig, ProtocolCrops, load_heads
from chisep.training.random_contrast import ContrastConfig
from chisep.types import Grid

NETWORK = NetworkConfig((*MEASURED_ROWS, *NOISE.values()), SOURCES, proximal=UnrolledProximalConfig())
EXACT = ProtocolConfig(
    snr=(1e7, 1e7),
    dr_error=0.0,
    erosion_mm=0.0,
    holes=0,
    background_ppb=0.0,
    unexplained_ppb=0.0,
    shift_voxels=0.0,
    r2_error=0.0,
    gre_only_share=0.0,
    standard_share=0.0,
)
SIZE = 16


def ball(radius: float = 17.0) -> TrainingScan:
    """A head of 1 mm with smooth sources, positive everywhere."""
    shape = (40, 44, 42)
    axes = [torch.arange(n) - n / 2 for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = x**2 + y**2 + z**2 < radius**2
    wave = torch.cos(x / 4) * torch.cos(y / 5 + 1)
    channels = {
        "chi_pos": (0.05 + 0.03 * wave) * mask,
        "chi_neg": (0.04 + 0.02 * torch.cos(z / 4)) * mask,
        "r2": (14 + 3 * wave) * mask,
    }
    return TrainingScan("ball", Grid(shape, (1.0, 1.0, 1.0)), mask, channels)


def crops(config: ProtocolConfig, network: NetworkConfig = NETWORK, seed: int = 0) -> ProtocolCrops:
    return ProtocolCrops([ball()], network, config, SIZE, 40, seed)


def test_without_errors_field_and_r2prime_are_those_of_the_sources():
    for number in range(12):
        example = crops(EXACT)[number]
        r2prime, field, *_ = example.inputs
        pos, neg = example.targets
        grid = Grid((SIZE,) * 3, tuple(example.voxel_mm.tolist()), tuple(example.b0_direction.tolist()))
        inside = example.mask[0]
        torch.testing.assert_close(field, Dipole(grid).apply(pos - neg) * inside, rtol=1e-3, atol=2e-6)
        torch.testing.assert_close(r2prime, pos + example.ratio * neg, rtol=1e-3, atol=1e-5)


def test_good_r2prime_is_off_by_its_noise_alone():
    config = ProtocolConfig(gre_only_share=0.0, dr_error=0.0, snr=(50.0, 150.0))
    off = {}
    for name, protocol in (("drawn", config), ("good", config.with_good_r2prime())):
        made = [crops(protocol)[number] for number in range(12)]
        off[name] = torch.cat(
            [((e.inputs[0] - e.targets[0] - e.ratio * e.targets[1]) / e.inputs[2])[e.mask[0]] for e in made]
        )
    assert float(off["good"].square().mean()) == pytest.approx(1, abs=0.05)
    assert float(off["drawn"].square().mean()) > 1.2


def test_the_same_number_is_the_same_crop_and_others_are_not():
    one, same, other = crops(ProtocolConfig())[3], crops(ProtocolConfig())[3], crops(ProtocolConfig())[4]
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.inputs, other.inputs)
    assert not torch.equal(one.inputs, crops(ProtocolConfig(), seed=1)[3].inputs)
    with pytest.raises(IndexError):
        crops(ProtocolConfig())[40]


def test_ranges_are_kept():
    config = ProtocolConfig(standard_share=0.0)
    made = [crops(config)[number] for number in range(40)]
    for example in made:
        tilt = math.degrees(math.acos(min(1.0, float(example.b0_direction[2]))))
        assert 0 <= tilt <= config.tilt_deg + 1e-3
        assert float(example.b0_direction.norm()) == pytest.approx(1, abs=1e-5)
        edges = sorted(example.voxel_mm.tolist())
        assert 0.6 - 1e-6 <= edges[0] <= 2.0
        assert edges[2] <= max(edges[0], 3.2) + 1e-6
        assert edges[2] / edges[0] <= 3 + 1e-5
        assert 0.3 * 0.85 / 1.15 <= float(example.ratio) <= 1.3 * 1.15 / 0.85
        assert (example.inputs[2:] >= 0).all()
        assert (example.targets >= 0).all()
        outside = ~example.mask.expand_as(example.targets)
        assert not example.targets[outside].any()
    assert len({example.voxel_mm for example in made}) > 1
    assert max(float(e.b0_direction[2]) for e in made) > 0.97
    assert min(float(e.b0_direction[2]) for e in made) < 0.85


def test_slices_may_lie_across_the_long_axis():
    def thick_axes(share: float | None) -> set[int]:
        made = crops(ProtocolConfig(standard_share=0.0, axial_share=share))
        return {int(made[number].voxel_mm.argmax()) for number in range(20)}

    assert thick_axes(1.0) == {2}
    assert thick_axes(0.0) == thick_axes(None) == {0, 1, 2}


def test_standard_protocols_are_3_t_1_mm_along_b0():
    for number in range(5):
        example = crops(ProtocolConfig(standard_share=1.0))[number]
        assert example.voxel_mm.tolist() == [1.0, 1.0, 1.0]
        assert example.b0_direction.tolist() == [0.0, 0.0, 1.0]
        assert float(example.ratio) == 1.0


def test_where_the_field_is_lost_its_noise_is_said_to_be_0():
    config = replace(EXACT, erosion_mm=3.0, holes=2)
    lost = 0
    for number in range(12):
        example = crops(config)[number]
        field, sigma = example.inputs[1], example.inputs[3]
        unknown = example.mask[0] & (sigma == 0)
        lost += int(unknown.sum())
        assert not field[unknown].any()
        assert (example.inputs[2][example.mask[0]] > 0).all(), "R2' is known there"
    assert lost > 100


def test_noise_is_what_the_maps_of_it_say():
    """Errors over their stated SD have SD 1; R2' is clipped, so only voxels far above its noise count."""
    config = replace(EXACT, snr=(60.0, 60.0), standard_share=1.0)
    errors = {"field": [], "r2prime": []}
    for number in range(12):
        noisy = crops(config)[number]
        clean = crops(replace(EXACT, standard_share=1.0))[number]
        inside = noisy.mask[0] & (clean.inputs[0] > 4 * noisy.inputs[2])
        for row, name in enumerate(("r2prime", "field")):
            ratio = (noisy.inputs[row] - clean.inputs[row]) / noisy.inputs[row + 2]
            errors[name].append(ratio[inside])
    for name, some in errors.items():
        values = torch.cat(some)
        assert values.numel() > 2000
        assert float(values.std()) == pytest.approx(1.0, rel=0.1), name


def test_without_spin_echo_one_r2_is_taken_from_r2star():
    config = replace(EXACT, gre_only_share=1.0, standard_share=1.0)
    example = crops(config)[0]
    pos, neg = example.targets
    inside = example.mask[0]
    added = example.inputs[0] * 114 - 114 * (pos + neg)
    pseudo = pseudo_r2_hz(3.0)
    assert float((added[inside] + pseudo).mean()) == pytest.approx(14.0, abs=2.0)
    expected = torch.full_like(added[inside], PSEUDO_R2_SD * pseudo / 114)
    torch.testing.assert_close(example.inputs[2][inside], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("weights", ["", "unrolled-qsm"])
def test_a_chi_map_is_made_for_networks_that_take_one(weights):
    network = NetworkConfig(PHI_ROWS, SOURCES)
    example = crops(replace(EXACT, standard_share=1.0, chi_weights=weights), network)[0]
    (qsm, *_), (pos, neg) = example.inputs, example.targets
    assert torch.corrcoef(torch.stack(((pos - neg).flatten(), qsm.flatten())))[0, 1] > 0.5


def test_coarse_voxels_average_the_head():
    """Crops of 32 mm hold nearly all of a ball of 34 mm, and its mean."""
    config = replace(EXACT, voxel_mm=(2.0, 2.0), slice_ratio=1.0)
    made = [crops(config)[number] for number in range(8)]
    head = ball()
    for channel, name in enumerate(SOURCES):
        mean = torch.cat([example.targets[channel][example.mask[0]] for example in made]).mean()
        assert float(mean) == pytest.approx(float(head.channels[name][head.mask].mean()), rel=0.1)


def test_statistics_are_of_the_brain():
    found = statistics_of_crops(crops(EXACT), NETWORK, 8)
    assert set(found) == {*NETWORK.inputs, *NETWORK.outputs}
    assert found["chi_pos"][0] == pytest.approx(0.05, abs=0.02)
    assert found["field_sigma"][0] > 0


def test_heads_are_read_from_the_truth(dataset, folders):
    truth = replace(folders, labels="truth")
    (head,) = load_heads(truth, ("01",))
    assert set(head.channels) == {"chi_pos", "chi_neg", "r2"}
    assert (head.channels["r2"][head.mask] > 0).all()
    with pytest.raises(InputError, match="R2map"):
        load_heads(folders, ("01",))


def test_bad_ranges_are_refused():
    for options in (
        {"snr": (0.0, 5.0)},
        {"voxel_mm": (2.0, 1.0)},
        {"gre_only_share": 1.5},
        {"axial_share": -1.0},
    ):
        with pytest.raises(InputError, match="ranges from low to high"):
            ProtocolConfig(**options)


def test_random_contrasts_keep_the_law_of_r2prime():
    for number in range(6):
        example = crops(replace(EXACT, contrast=ContrastConfig(share=1.0)))[number]
        pos, neg = example.targets
        torch.testing.assert_close(example.inputs[0], pos + example.ratio * neg, rtol=1e-3, atol=1e-5)


def test_a_share_of_crops_is_painted_by_the_label_map():
    scan = ball()
    scan.channels["labels"] = torch.full(scan.grid.shape, 2.0)
    config = replace(EXACT, standard_share=1.0, contrast=ContrastConfig(labels_share=1.0))
    example = ProtocolCrops([scan], NETWORK, config, SIZE, 4, 0)[1]
    pos, neg = (source[example.mask[0]] for source in example.targets)
    assert len(pos.unique()) == len(neg.unique()) == 1
    r2prime = example.inputs[0][example.mask[0]]
    torch.testing.assert_close(r2prime, pos + example.ratio * neg, rtol=1e-3, atol=1e-5)


def test_clean_crops_have_the_errors_of_their_noise_maps_alone():
    config = ProtocolConfig(
        clean_share=1.0,
        clean_snr=400.0,
        snr=(100.0, 150.0),
        gre_only_share=0.0,
        rim_ppb=8.0,
        structured_ppb=8.0,
        violated_share=1.0,
        sigma_error=0.3,
        clipped_share=0.0,
    )
    for number in range(6):
        example = crops(config)[number]
        grid = Grid((SIZE,) * 3, tuple(example.voxel_mm.tolist()), tuple(example.b0_direction.tolist()))
        pos, neg = example.targets
        r2prime, field, r2prime_sigma, field_sigma = example.inputs
        valid = field_sigma > 0
        for error, sigma, inside in (
            (r2prime - pos - example.ratio * neg, r2prime_sigma, example.mask[0]),
            (field - Dipole(grid).apply(pos - neg), field_sigma, valid),
        ):
            if inside.sum() > 300:
                assert float((error / sigma)[inside].square().mean()) == pytest.approx(1, abs=0.25)


def test_noise_maps_state_errors_in_their_share_of_crops():
    config = ProtocolConfig(
        standard_share=1.0,
        snr=(100.0, 100.0),
        gre_only_share=0.0,
        structured_ppb=8.0,
        structured_share=1.0,
        rim_ppb=8.0,
        holes=0,
        erosion_share=0.0,
    )
    squares = {}
    for share in (0.0, 1.0):
        examples = [crops(replace(config, stated_share=share))[number] for number in range(10)]
        squares[share] = []
        for example in examples:
            pos, neg = example.targets
            grid = Grid((SIZE,) * 3, tuple(example.voxel_mm.tolist()), tuple(example.b0_direction.tolist()))
            inside = example.mask[0]
            off = (example.inputs[1] - Dipole(grid).apply(pos - neg))[inside] / example.inputs[3][inside]
            squares[share].append(float(off.square().mean()))
    assert sum(squares[1.0]) / 10 == pytest.approx(1, abs=0.5)
    assert sum(squares[0.0]) > 5 * sum(squares[1.0])
