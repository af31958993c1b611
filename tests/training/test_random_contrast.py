"""Random contrasts: shapes stay, values vary, equal seeds give equal crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.training.random_contrast import ContrastConfig, _flattened, label_contrast, random_contrast
from chisep.types import Grid

GRID = Grid((24, 20, 22), (1.0, 1.0, 1.5))
ALWAYS = ContrastConfig(share=1.0)


def two_tissues() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = torch.zeros(GRID.shape, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    half = (torch.arange(24) < 12).reshape(-1, 1, 1)
    return torch.where(half, 0.09, 0.03) * mask, torch.where(half, 0.01, 0.04) * mask, mask


def drawn(seed: int, config: ContrastConfig = ALWAYS) -> tuple[torch.Tensor, torch.Tensor]:
    return random_contrast(*two_tissues(), GRID, config, np.random.default_rng(seed))


def test_sources_stay_positive_finite_and_within_the_mask():
    mask = two_tissues()[2]
    for seed in range(20):
        for source in drawn(seed):
            assert source.isfinite().all()
            assert (source >= 0).all()
            assert not source[~mask].any()


def test_equal_seeds_are_equal_and_others_are_not():
    assert all(torch.equal(a, b) for a, b in zip(drawn(3), drawn(3), strict=True))
    assert not torch.equal(drawn(3)[0], drawn(4)[0])


def test_share_zero_changes_nothing():
    pos, neg, _ = two_tissues()
    assert all(torch.equal(a, b) for a, b in zip(drawn(0, ContrastConfig()), (pos, neg), strict=True))


def test_levels_have_their_spread():
    plain = ContrastConfig(
        share=1.0, power=(1.0, 1.0), exchange_share=0, floor_ppb=0, flat_share=0, cells_share=0, tubes=0,
        geometry_share=0,
    )  # fmt: skip
    pos, neg, mask = two_tissues()
    logs = []
    for seed in range(60):
        for source, own in zip(drawn(seed, plain), (pos, neg), strict=True):
            ratio = source[mask] / own[mask]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # the contrast stays
            logs.append(float(ratio[0].log()))
    assert np.std(logs) == pytest.approx(0.35, rel=0.25)


def test_flattening_removes_grain_and_keeps_edges():
    pos, _, mask = two_tissues()
    noisy = pos + 0.01 * torch.randn(pos.shape, generator=torch.Generator().manual_seed(0)) * mask
    flat = _flattened(noisy, mask, GRID)
    inside = torch.zeros_like(mask)
    inside[5:-5, 5:-5, 5:-5] = True
    assert float((flat - pos)[inside].std()) < 0.5 * 0.01
    step = flat[11, 8:12, 8:12].mean() - flat[12, 8:12, 8:12].mean()
    assert float(step) == pytest.approx(0.06, abs=0.01)


def test_unusable_ranges_are_refused():
    for options in ({"share": 1.5}, {"power": (2.0, 1.0)}, {"tube_ppb": -1.0}):
        with pytest.raises(InputError, match="contrast"):
            ContrastConfig(**options)


def test_label_maps_are_painted_with_one_level_a_structure_and_lesions_stay():
    pos, neg, mask = two_tissues()
    labels = torch.where((torch.arange(24) < 8).reshape(-1, 1, 1), 2.0, 41.0) * mask
    pos = pos.clone()
    pos[15, 10, 10] = 0.5
    painted = label_contrast(labels, pos, neg, np.random.default_rng(0))
    assert painted[0][15, 10, 10] == 0.5
    kept = torch.ones_like(mask)
    kept[15, 10, 10] = False
    for source in painted:
        values = [source[(labels == value) & kept].unique() for value in (2.0, 41.0)]
        assert [len(v) for v in values] == [1, 1]
        assert values[0] != values[1]
        assert min(values) > 0
