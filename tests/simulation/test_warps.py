from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.simulation.labelmap import LabelMap
from chisep.simulation.texture import random_field
from chisep.simulation.warps import WarpConfig, flow, jacobian, warped


def nested(n: int = 56) -> LabelMap:
    """Balls in one another: ventricle, white matter, cortex, CSF, air."""
    at = np.arange(n) - (n - 1) / 2
    distance = np.sqrt(at[:, None, None] ** 2 + at[:, None] ** 2 + at**2)
    labels = np.zeros((n, n, n), dtype=np.int16)
    for radius, label in ((25, 24), (23, 3), (19, 2), (7, 4)):
        labels[distance < radius] = label
    return LabelMap(labels, np.eye(4), "balls")


def volume(head: LabelMap, label: int) -> int:
    return int((head.labels == label).sum())


def radius(voxels: int) -> float:
    return (voxels * 3 / 4 / np.pi) ** (1 / 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_largest_warp_allowed_does_not_fold(seed):
    rng = np.random.default_rng(seed)
    smooth = [(12.0,) * 3]
    velocity = torch.stack(
        [4.0 * random_field((48, 48, 48), (2.0,) * 3, smooth, (1.0,), rng) for _ in range(3)]
    )
    determinant = jacobian(flow(velocity, (2.0, 2.0, 2.0)), (2.0, 2.0, 2.0))
    assert determinant.min() > 0
    assert determinant.std() > 0.1


def test_a_flow_is_undone_by_the_opposite_flow():
    rng = np.random.default_rng(0)
    velocity = torch.stack(
        [3.0 * random_field((40, 40, 40), (2.0,) * 3, [(14.0,) * 3], (1.0,), rng) for _ in range(3)]
    )
    there, back = flow(velocity, (2.0,) * 3), flow(-velocity, (2.0,) * 3)
    at = torch.stack(torch.meshgrid(*(2.0 * torch.arange(40.0),) * 3, indexing="ij"))
    index = ((at + there) / 2).round().long().clamp(0, 39)
    undone = there + back[:, index[0], index[1], index[2]]
    inner = (slice(None), *(slice(8, -8),) * 3)
    assert float(undone[inner].abs().mean()) < 0.15 * float(there[inner].abs().mean())


def test_a_uniform_velocity_is_a_shift():
    velocity = torch.zeros(3, 12, 12, 12)
    velocity[1] = 2.5
    torch.testing.assert_close(flow(velocity, (1.0, 1.0, 1.0)), velocity)


@pytest.mark.parametrize("amount_mm", [-1.5, 2.0])
def test_ventricles_grow_by_the_asked_millimetres(amount_mm):
    head = nested()
    other = warped(head, WarpConfig(ventricle_mm=amount_mm), np.random.default_rng(0))
    change = radius(volume(other, 4)) - radius(volume(head, 4))
    assert change == pytest.approx(amount_mm, rel=0.5)
    assert volume(other, 3) == pytest.approx(volume(head, 3), rel=0.05)


@pytest.mark.parametrize("amount_mm", [-0.8, 0.8])
def test_cortex_grows_into_white_matter_by_the_asked_millimetres(amount_mm):
    head = nested()
    other = warped(head, WarpConfig(cortex_mm=amount_mm), np.random.default_rng(0))
    inner = [radius(volume(each, 2) + volume(each, 4)) for each in (head, other)]
    assert inner[0] - inner[1] == pytest.approx(amount_mm, rel=0.35)
    assert volume(other, 0) == pytest.approx(volume(head, 0), rel=0.01)


def test_people_differ_and_equal_seeds_do_not():
    head, config = nested(), WarpConfig(warp_mm=3.0)
    one, again, other = (warped(head, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels, again.labels)
    assert (one.labels != other.labels).mean() > 0.02
    assert set(np.unique(one.labels)) == set(np.unique(head.labels))


def test_no_change_is_asked_for_and_none_is_made():
    head = nested(16)
    assert warped(head, WarpConfig(), np.random.default_rng(0)) is head


@pytest.mark.parametrize(
    "values",
    [{"warp_mm": -1.0}, {"ventricle_mm": 9.0}, {"cortex_mm": 2.0}, {"smoothness_mm": 1.0}],
)
def test_impossible_warps_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        replace(WarpConfig(), **values)


def test_a_warp_that_would_fold_is_refused():
    with pytest.raises(InputError, match="a third"):
        WarpConfig(warp_mm=5.0, smoothness_mm=12.0)
