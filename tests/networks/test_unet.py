from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from chisep.errors import InputError
from chisep.networks import unet
from chisep.networks.unet import REFERENCE_WIDTHS, CascadeBatchNorm, Scale, UNet, UNetConfig
from chisep.training.recipes import SMALL_WIDTHS

NORMS = ["batch", "instance", "none"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(inputs: int = 3, outputs: int = 2, widths=(2, 3, 4), norm="batch") -> UNet:
    torch.manual_seed(0)
    net = UNet(inputs, outputs, UNetConfig(widths, norm)).double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            # What training would leave there, so that evaluation is not the identity.
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@pytest.mark.parametrize("norm", NORMS)
@given(size=st.tuples(*[st.integers(1, 11)] * 3), batch=st.integers(1, 2))
@settings(max_examples=15, deadline=None)
def test_any_size_goes_in_and_comes_out(norm, size, batch):
    made = make(norm=norm)(random(batch, 3, *size))
    assert made.shape == (batch, 2, *size)
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("widths", [(3,), (2, 3), (2, 2, 2, 2, 2)])
def test_any_depth(widths):
    assert make(widths=widths)(random(1, 3, 5, 6, 7)).shape == (1, 2, 5, 6, 7)


@given(size=st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=15, deadline=None)
def test_odd_sizes_are_zeros_at_the_far_ends(size):
    """The result is the crop of that on a volume filled up with zeros to a multiple of 4."""
    net, x = make(), random(1, 3, *size)
    i, j, k = size
    whole = torch.zeros(1, 3, *[-(-n // 4) * 4 for n in size], dtype=x.dtype)
    whole[..., :i, :j, :k] = x
    torch.testing.assert_close(net(x), net(whole)[..., :i, :j, :k])


def test_is_the_published_architecture_written_out():
    """Two levels, by functional calls with the network's own weights."""
    net, x = make(widths=(2, 3)), random(2, 3, 6, 4, 8)

    def level(weights, x):
        for conv, norm in ((weights[0], weights[1]), (weights[3], weights[4])):
            x = functional.conv3d(x, conv.weight, padding=1)
            column = [v[:, None, None, None] for v in (norm.running_mean, norm.running_var)]
            x = (x - column[0]) / (column[1] + norm.eps).sqrt()
            x = x * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]
            x = x.clamp(min=0)
        return x

    fine = level(net.down[0], x)
    coarse = level(net.down[1], functional.max_pool3d(fine, 2))
    enlarged = functional.conv_transpose3d(coarse, net.enlarge[0].weight, net.enlarge[0].bias, stride=2)
    joined = level(net.up[0], torch.cat((fine, enlarged), 1))
    expected = functional.conv3d(joined, net.head.weight, net.head.bias)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(("widths", "millions"), [(REFERENCE_WIDTHS, 22.6), (SMALL_WIDTHS, 0.351)])
def test_number_of_parameters(widths, millions):
    with torch.device("meta"):
        net = UNet(3, 2, UNetConfig(widths))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_only_networks_without_norm_have_biases(norm):
    convolutions = [m for m in make(norm=norm).down.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all((conv.bias is not None) == (norm == "none") for conv in convolutions)


@pytest.mark.parametrize("norm", NORMS)
def test_fused_it_computes_the_same(norm):
    net, x = make(norm=norm), random(2, 3, 8, 8, 8)
    expected = net(x)
    net.fuse()
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in net.modules())
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("norm", ["batch", "none"])
@given(size=st.tuples(st.integers(1, 23), st.integers(1, 9), st.integers(1, 9)), voxels=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_in_slabs_it_computes_the_same(norm, size, voxels):
    net, x = make(norm=norm), random(2, 3, *size)
    whole = net(x)  # what learns is never cut
    with torch.no_grad(), mock.patch.object(unet, "_SLAB_VOXELS", voxels):
        torch.testing.assert_close(net(x), whole)


def test_a_large_volume_is_cut_into_slabs(monkeypatch):
    """And what is learned from is not: its norms want the whole."""
    monkeypatch.setattr(unet, "_SLAB_VOXELS", 64)
    net, x = make(), random(1, 3, 12, 8, 8)
    sizes: list[int] = []
    net.down[0].register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2]))
    with torch.no_grad():
        net(x)
        assert sizes == [4, 6, 6, 6, 6, 4]
        sizes.clear()
        net.train()(x)
    assert sizes == [12]


def test_instance_norm_knows_no_neighbours_in_the_batch_and_batch_norm_does():
    x = random(2, 3, 8, 8, 8)
    for norm, equal in (("instance", True), ("none", True), ("batch", False)):
        net = make(norm=norm).train()
        assert torch.allclose(net(x)[:1], net(x[:1])) == equal


class TestCascadeBatchNorm:
    def test_each_pass_is_a_batch_norm_of_its_own(self):
        """In training and in evaluation, with shared weight and bias."""
        norm = CascadeBatchNorm(3, 2).double()
        oracles = [torch.nn.BatchNorm3d(3).double() for _ in range(2)]
        for module in (norm, *oracles):
            module.weight.data, module.bias.data = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
        for seed in range(6):
            norm.number = seed % 2
            x = (1 + norm.number) * random(2, 3, 4, 4, 4, seed=seed) + 5 * norm.number
            torch.testing.assert_close(norm(x), oracles[norm.number](x))
        for number, oracle in enumerate(oracles):
            torch.testing.assert_close(norm.running_mean[number], oracle.running_mean)
            torch.testing.assert_close(norm.running_var[number], oracle.running_var)
            norm.eval().number = number
            x = random(1, 3, 4, 4, 4, seed=9)
            torch.testing.assert_close(norm(x), oracle.eval()(x))
        assert not torch.allclose(norm.running_mean[0], norm.running_mean[1])

    def test_is_loaded_from_plain_tensors(self):
        """As weights on disk have no versions beside them."""
        net, other = (UNet(3, 2, UNetConfig((2, 3)), cascades=4) for _ in range(2))
        other.load_state_dict(dict(net.state_dict()))
        assert torch.equal(other.state_dict()["down.0.1.running_var"], torch.ones(4, 2))

    def test_unet_uses_the_norm_of_the_given_cascade(self):
        torch.manual_seed(0)
        net, x = UNet(3, 2, UNetConfig((2, 3)), cascades=2).double(), random(2, 3, 12, 12, 12)
        for module in net.modules():
            if isinstance(module, CascadeBatchNorm):
                module.momentum = 1.0
        inputs = [x, 5 + 3 * x.abs()]
        trained = [net(x, number) for number, x in enumerate(inputs)]
        net.eval()
        for number, x in enumerate(inputs):
            # But for the variance, which is divided by n in training and by n − 1 in running statistics.
            torch.testing.assert_close(net(x, number), trained[number], rtol=0, atol=0.01)
            assert (net(x, 1 - number) - trained[number]).abs().max() > 0.2

    def test_one_pass_is_plain_batch_norm(self):
        kinds = {type(m) for m in UNet(3, 2, UNetConfig((2, 3))).modules()}
        assert CascadeBatchNorm not in kinds
        assert torch.nn.BatchNorm3d in kinds


@pytest.mark.parametrize("widths", [(), (4, 0), (-1,)])
def test_widths_are_checked(widths):
    with pytest.raises(InputError, match="32 64 128 256 512"):
        UNetConfig(widths)


class TestScale:
    scale = Scale((0.01, -0.02), (0.03, 0.5)).double()
    mask = random(2, 1, 3, 4, 5, seed=1) > 0

    def test_is_undone(self):
        x = random(2, 2, 3, 4, 5)
        torch.testing.assert_close(self.scale.undo(self.scale(x, self.mask), self.mask), x * self.mask)

    def test_makes_z_scores(self):
        inside = torch.ones(1, 1, 40, 40, 40, dtype=torch.bool)
        x = torch.stack((0.01 + 0.03 * random(40, 40, 40), -0.02 + 0.5 * random(40, 40, 40, seed=2)))
        z = self.scale(x[None], inside)[0].flatten(1)
        assert z.mean(1).abs().max() < 0.02
        assert (z.std(1) - 1).abs().max() < 0.02

    def test_is_0_outside_both_ways(self):
        outside = ~self.mask.expand(-1, 2, -1, -1, -1)
        assert not self.scale(random(2, 2, 3, 4, 5), self.mask)[outside].any()
        assert not self.scale.undo(random(2, 2, 3, 4, 5), self.mask)[outside].any()

    def test_comes_back_in_single_precision(self):
        single = Scale((0.0,), (1.0,))
        z = torch.ones(1, 1, 2, 2, 2, dtype=torch.bfloat16)
        assert single.undo(z, torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)).dtype == torch.float32

    def test_is_kept_with_the_weights(self):
        assert set(self.scale.state_dict()) == {"mean", "sd"}
