"""Unwrapping: exact where phase is sampled well enough along a tree, local errors where it is not."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.restoration import unwrap_phase

from chisep.errors import InputError
from chisep.preprocessing.unwrapping import residual_jumps, unwrap

TURN = 2 * math.pi


def coordinates(shape):
    return torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape], indexing="ij")


def smooth(shape, seed, steepest_rad):
    """Random smooth phase whose largest step between neighbours is given."""
    rng = np.random.default_rng(seed)
    phase = ndimage.gaussian_filter(rng.standard_normal(shape), 3.0)
    steepest = max(float(np.abs(np.diff(phase, axis=a)).max()) for a in range(3) if shape[a] > 1)
    return torch.from_numpy(phase * steepest_rad / steepest)


def wrap(phase):
    return torch.polar(torch.ones_like(phase), phase).angle()


def wrong(unwrapped, truth, mask):
    """Voxels that are off by a turn or more, against the most usual one."""
    turns = ((unwrapped - truth)[mask] / TURN).round()
    return int((turns != turns.mode().values).sum())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(20, 22, 18), (1, 24, 24), (13, 1, 9), (30, 4, 5)]),
    steepest_rad=st.floats(0.5, 3.1),
    holes=st.booleans(),
)
def test_phase_sampled_well_enough_comes_back_everywhere(seed, shape, steepest_rad, holes):
    truth = smooth(shape, seed, steepest_rad)
    mask = torch.ones(shape, dtype=torch.bool)
    if holes:
        rng = torch.Generator().manual_seed(seed)
        parts, _ = ndimage.label(torch.rand(shape, generator=rng) > 0.35)
        mask = torch.from_numpy(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    echoes = torch.stack([truth, 0.4 * truth, 1.7 * truth])
    result = unwrap(wrap(echoes), torch.ones_like(echoes), (1.0, 0.4, 1.7), mask)
    offset = (result.phase_rad[0] - truth)[mask]
    torch.testing.assert_close(offset, offset.median().expand_as(offset))
    assert float(result.phase_rad[0][mask].median().abs()) <= math.pi
    assert (result.phase_rad[:, ~mask] == 0).all()


def test_echoes_agree_in_time_around_the_template():
    truth = smooth((16, 16, 16), 3, 1.0)
    te_s = (0.002, 0.004, 0.009, 0.02)
    echoes = torch.stack([truth * te / 0.004 for te in te_s])
    mask = torch.ones(truth.shape, dtype=torch.bool)
    for template in range(2):
        result = unwrap(wrap(echoes), torch.ones_like(echoes), te_s, mask, template=template)
        torch.testing.assert_close(result.phase_rad, echoes)


def test_noise_changes_nothing_but_itself():
    truth = smooth((24, 24, 24), 1, 1.2)
    noise = 0.25 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
    mask = torch.ones(truth.shape, dtype=torch.bool)
    result = unwrap(wrap(truth + noise)[None], torch.ones(1, *truth.shape), (1.0,), mask)
    assert wrong(result.phase_rad[0], truth + noise, mask) == 0
    reference = torch.from_numpy(unwrap_phase(wrap(truth + noise).numpy()))
    difference = result.phase_rad[0] - reference
    torch.testing.assert_close(difference, difference.median().expand_as(difference))


def region_grown(phase, quality, mask):
    """Grow along the best edge from a corner, one voxel after the other, as the algorithm is published."""
    result, done = phase.copy(), np.zeros(mask.shape, dtype=bool)
    seed = tuple(int(i) for i in np.argwhere(mask)[0])
    queue = [(0.0, seed, seed)]
    while queue:
        _, here, source = heapq.heappop(queue)
        if done[here]:
            continue
        done[here] = True
        result[here] = phase[here] + TURN * np.round((result[source] - phase[here]) / TURN)
        for axis in range(3):
            for way in (-1, 1):
                there = tuple(i + way * (a == axis) for a, i in enumerate(here))
                if all(0 <= i < n for i, n in zip(there, mask.shape, strict=True)) and mask[there]:
                    heapq.heappush(queue, (-quality(here, there), there, here))
    return result


def test_the_tree_is_that_of_growing_along_the_best_edge():
    """With so much noise that the way matters; even magnitude of one echo leaves two weights."""
    rng = np.random.default_rng(4)
    phase = wrap(torch.from_numpy(np.cumsum(rng.normal(0, 1.3, (9, 10, 8)), axis=1))).numpy()
    mask = np.ones(phase.shape, dtype=bool)

    def turned(x):
        return x - TURN * np.round(x / TURN)

    def quality(here, there):
        a, b = sorted((here, there))
        along = np.subtract(b, a)
        value = 1 - abs(turned(phase[b] - phase[a])) / math.pi
        for first, middle, last in ((tuple(a - along), a, b), (a, b, tuple(b + along))):
            if min(first) >= 0 and all(np.less(last, phase.shape)):
                bent = abs(turned(phase[first] - 2 * phase[middle] + phase[last]))
                value *= max(0.01, 1 - bent / 2)
        return value

    expected = region_grown(phase, quality, mask)
    found = unwrap(torch.from_numpy(phase)[None], torch.ones(1, *phase.shape), (1.0,), torch.from_numpy(mask))
    turns = (found.phase_rad[0].numpy() - expected) / TURN
    np.testing.assert_allclose(turns, turns[0, 0, 0], atol=1e-6)
    assert abs(np.diff(expected, axis=1)).max() > math.pi  # or every way would give the same


def test_the_way_leads_around_a_dark_wall_of_unsampled_phase():
    """The phase on both sides of a wall differs by several turns, and joins smoothly beyond its end."""
    x, y, _ = coordinates((40, 40, 8))
    truth = torch.where(y > 0, 1.0, -1.0) * 6 * torch.clamp((x + 18) / 20, min=0) ** 1.5
    magnitude = torch.where((y.abs() < 2) & (x > -18), 0.05, 1.0)
    mask = torch.ones(truth.shape, dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    truth = truth + 0.1 / magnitude * torch.randn(truth.shape, generator=rng)
    result = unwrap(wrap(truth)[None], magnitude[None], (1.0,), mask)
    assert wrong(result.phase_rad[0], truth, magnitude == 1) == 0


def test_errors_at_poles_stay_local():
    """An open-ended fringe line: phase that winds around two poles, with no right answer between them."""
    x, y, z = coordinates((40, 40, 12))
    winding = torch.atan2(y, x - 4.3) - torch.atan2(y, x + 4.3)
    truth = 0.9 * y + 0.2 * x
    near = (x.abs() < 7) & (y.abs() < 4)
    result = unwrap(wrap(truth + winding)[None], torch.where(near, 0.3, 1.0)[None], (1.0,), z < 99)
    error = result.phase_rad[0] - truth
    turns = ((error - error[~near].median()) / TURN).round()
    far = (x.abs() > 8) | (y.abs() > 8)
    assert (turns[far] == 0).all()
    assert residual_jumps(result.phase_rad[0], z < 99) > 0


def test_parts_of_the_mask_apart_keep_their_distance():
    x, y, z = coordinates((36, 20, 20))
    truth = 0.35 * x + 0.5 * y
    mask = (x.abs() > 2) & ((y + z).abs() < 12)
    mask[:3, :3, :3] = True  # a third, small part
    mask[3:6, :6, :6] = False
    mask[:6, 3:6, :6] = False
    mask[:6, :6, 3:6] = False
    assert ndimage.label(mask)[1] == 3
    result = unwrap(wrap(truth)[None], torch.ones(1, *truth.shape), (1.0,), mask)
    assert wrong(result.phase_rad[0], truth, mask) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_and_precision(dtype):
    truth = smooth((16, 16, 16), 5, 2.0).to(dtype)
    magnitude = torch.rand(1, *truth.shape, generator=torch.Generator().manual_seed(1)).to(dtype) + 0.5
    mask = torch.ones(truth.shape, dtype=torch.bool)
    one = unwrap(wrap(truth)[None], magnitude, (1.0,), mask)
    tiny = unwrap(wrap(truth)[None], magnitude * 1e-12, (1.0,), mask)
    assert one.phase_rad.dtype == one.quality.dtype == dtype
    torch.testing.assert_close(one.phase_rad, tiny.phase_rad)
    torch.testing.assert_close(one.quality, tiny.quality)


def test_quality_tells_noise_from_signal():
    truth = smooth((24, 24, 24), 2, 0.6)
    rng = torch.Generator().manual_seed(0)
    truth[:12] = 10 * torch.rand(12, 24, 24, generator=rng, dtype=truth.dtype)
    mask = torch.ones(truth.shape, dtype=torch.bool)
    mask[-1, -1, -1] = False
    mask[-2, -2, -2] = False
    quality = unwrap(wrap(truth)[None], torch.ones(1, *truth.shape), (1.0,), mask).quality
    assert quality.min() >= 0
    assert quality.max() <= 1
    assert quality[~mask].abs().max() == 0
    assert quality[:11].median() < 0.3
    assert quality[13:].median() > 0.6


def test_voxels_without_signal_do_no_harm():
    truth = smooth((20, 20, 20), 7, 2.0)
    magnitude = torch.ones(1, *truth.shape)
    mask = torch.ones(truth.shape, dtype=torch.bool)
    dark = torch.zeros_like(mask)
    dark[8:12, 5:9, 3:9] = True
    magnitude[0][dark] = 0
    rng = torch.Generator().manual_seed(0)
    wrapped = torch.where(dark, TURN * torch.rand(truth.shape, generator=rng, dtype=truth.dtype), truth)
    result = unwrap(wrap(wrapped)[None], magnitude, (1.0,), mask)
    assert wrong(result.phase_rad[0], truth, ~dark) == 0
    alone = unwrap(wrap(truth)[None], 0 * magnitude, (1.0,), mask)
    assert wrong(alone.phase_rad[0], truth, mask) == 0


def test_one_voxel_is_a_mask():
    mask = torch.zeros(3, 3, 3, dtype=torch.bool)
    mask[1, 1, 1] = True
    result = unwrap(torch.full((1, 3, 3, 3), 2.0), torch.ones(1, 3, 3, 3), (1.0,), mask)
    assert result.phase_rad[0, 1, 1, 1] == 2.0
    assert result.quality.sum() == 0


def test_jumps_are_counted_and_slopes_are_not():
    shape = (12, 10, 8)
    x, _, _ = coordinates(shape)
    mask = torch.ones(shape, dtype=torch.bool)
    assert residual_jumps(4.0 * x, mask) == 0
    assert residual_jumps(smooth(shape, 0, 3.1), mask) == 0
    slab = 0.3 * x + TURN * (x > 0)
    assert residual_jumps(slab, mask) == 10 * 8
    assert residual_jumps(1.0 * x - 2 * TURN * (x > 0), mask) == 10 * 8
    mask[:, :5] = False
    assert residual_jumps(slab, mask) == 5 * 8
    block = torch.zeros(shape)
    block[4:7, 4:7, 3:5] = TURN
    # On lines of two voxels the steps beside a jump are jumps too.
    assert residual_jumps(block, torch.ones(shape, dtype=torch.bool)) >= 2 * 2 * (3 * 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"te_s": (1.0, 2.0)}, "1 magnitudes, 1 phases and 2 echo times"),
        ({"template": 1}, "template echo 1 of 1"),
        ({"te_s": (0.0,)}, "echo times 0 s"),
        ({"mask": torch.zeros(4, 4, 4, dtype=torch.bool)}, "empty mask"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, said):
    inputs = {"te_s": (1.0,), "mask": torch.ones(4, 4, 4, dtype=torch.bool), "template": 0, **change}
    with pytest.raises(InputError, match=said):
        unwrap(
            torch.zeros(1, 4, 4, 4),
            torch.ones(1, 4, 4, 4),
            inputs["te_s"],
            inputs["mask"],
            template=inputs["template"],
        )
