"""3-D U-net of all networks (Ronneberger 2015; in 3-D as in QSMnet and χ-sepnet)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from chisep.errors import InputError

Norm = Literal["batch", "instance", "none"]
_SLAB_VOXELS = 400_000
"""Of a slab, at most but for its overlaps: 26 MB for 32 channels in half precision."""
_REACH = 2
"""Reach in voxels of two convolutions of 3 × 3 × 3; even, so that slabs
also divide the next level."""
REFERENCE_WIDTHS = (32, 64, 128, 256, 512)
"""Channels of QSMnet and χ-sepnet as published: 22.6 million parameters."""


@dataclass(frozen=True)
class UNetConfig:
    """Channels per level and normalisation of a U-net."""

    widths: tuple[int, ...] = REFERENCE_WIDTHS
    """Channels per level, from full resolution down."""
    norm: Norm = "batch"
    """Normalisation after each convolution."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise InputError(
                "widths",
                found=f"{self.widths}",
                expected="one or more positive numbers of channels",
                fix="The published ones are 32 64 128 256 512.",
            )


class UNet(nn.Module):
    """A 3-D U-net: two convolutions a level, max-pooling, transposed convolutions, a linear 1×1×1 head.

    Parameters
    ----------
    inputs, outputs
        Number of input and output channels.
    config
        Width, depth, normalisation.
    cascades
        Number of cascades that share this U-net: batch norm has running statistics for each.
    """

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, cascades: int = 1) -> None:
        super().__init__()
        widths = config.widths
        self.down = nn.ModuleList(
            [_level(before, after, config, cascades) for before, after in pairwise((inputs, *widths))]
        )
        steps = list(pairwise(reversed(widths)))
        self.enlarge = nn.ModuleList(
            [nn.ConvTranspose3d(deep, shallow, kernel_size=2, stride=2) for deep, shallow in steps]
        )
        self.up = nn.ModuleList([_level(2 * shallow, shallow, config, cascades) for _, shallow in steps])
        self.head = nn.Conv3d(widths[0], outputs, kernel_size=1)
        self.divisor = 2 ** len(steps)
        self.norm = config.norm
        self._norms = [module for module in self.modules() if isinstance(module, CascadeBatchNorm)]

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        """Map (batch, inputs, i, j, k) to (batch, outputs, i, j, k), of any size: zeros fill up inside.

        Parameters
        ----------
        x
            Of any precision.
        number
            Index of the cascade.
        """
        for norm in self._norms:
            norm.number = number
        whole = x.shape[-3:]
        # Zeros at the far ends, which the crop below takes away again.
        missing = [-size % self.divisor for size in whole]
        if self.norm == "instance" and max(whole) <= self.divisor:
            # The coarsest level would be one voxel, which has no variance.
            missing[-1] += self.divisor
        if any(missing):
            x = functional.pad(x, [n for zeros in reversed(missing) for n in (0, zeros)])
        shapes = [[size // 2**level for size in x.shape[-3:]] for level in range(len(self.down))]
        passed = [self._in_slabs(self.down[0], shapes.pop(0), x)]
        for level in self.down[1:]:
            passed.append(self._in_slabs(partial(_shrunk, level), shapes.pop(0), passed[-1]))
        x = passed.pop()
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            shallow = passed.pop()
            x = self._in_slabs(partial(_enlarged, enlarge, level), shallow.shape[-3:], shallow, x)
        i, j, k = whole
        return self.head(x)[..., :i, :j, :k]  # type: ignore[no-any-return]

    def _in_slabs(self, level: Callable[..., Tensor], shape: Sequence[int], *inputs: Tensor) -> Tensor:
        """Apply a level that makes a volume of a shape, in slabs if that is large and nothing is learned.

        The memory that a layer of a large volume asks for is new to the process each time, and getting it
        takes longer than convolutions do; that of slabs is used again. They overlap by what is reached.
        """
        size, area = shape[0], shape[1] * shape[2]
        thickness = 2 * math.ceil(_SLAB_VOXELS / (2 * area))
        learning = self.training or torch.is_grad_enabled()
        if thickness >= size or learning or self.norm == "instance":
            return level(*map(_channels_last, inputs))
        output = inputs[0]
        for start in range(0, size, thickness):
            end = min(start + thickness, size)
            first, last = max(start - _REACH, 0), min(end + _REACH, size)
            # Inputs may have twice or half the resolution of the output.
            slabs = [x[:, :, first * x.shape[2] // size : last * x.shape[2] // size] for x in inputs]
            made = level(*map(_channels_last, slabs))
            if start == 0:
                output = torch.empty(
                    (*made.shape[:2], *shape),
                    dtype=made.dtype,
                    device=made.device,
                    memory_format=torch.channels_last_3d,
                )
            output[:, :, start:end] = made[:, :, start - first : end - first]
        return output

    def fuse(self) -> None:
        """Fold batch norms into the convolutions before them: the same, faster, for evaluation only."""
        for level in (*self.down, *self.up):
            for number, (layer, norm) in enumerate(pairwise(list(level))):
                if isinstance(norm, nn.BatchNorm3d):
                    level[number] = fuse_conv_bn_eval(layer, norm)
                    level[number + 1] = nn.Identity()


def _channels_last(x: Tensor) -> Tensor:
    # oneDNN's convolutions are up to twice as fast with channels last.
    return x.contiguous(memory_format=torch.channels_last_3d)


def _shrunk(level: nn.Module, fine: Tensor) -> Tensor:
    return level(functional.max_pool3d(fine, 2))  # type: ignore[no-any-return]


def _enlarged(enlarge: nn.Module, level: nn.Module, shallow: Tensor, deep: Tensor) -> Tensor:
    return level(torch.cat((shallow, enlarge(deep)), dim=1))  # type: ignore[no-any-return]


class CascadeBatchNorm(nn.Module):
    """Batch norm of a U-net that several cascades share, with running statistics for each.

    What goes into the first pass has not the distribution of what goes into the last. In training each pass
    is normalised by its own batch; one set of running statistics for all would be another function (as
    Cooijmans 2017, arXiv 1603.09025, found for recurrent networks).

    Parameters
    ----------
    channels
        Of the input.
    cascades
        Number of cascades.

    Attributes
    ----------
    number
        Pass that comes next, from 0.
    momentum
        Share of a new batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, cascades: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(cascades, channels))
        self.register_buffer("running_var", torch.ones(cascades, channels))
        self.momentum = 0.1
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channel, i, j, k)."""
        return functional.batch_norm(
            x,
            self.running_mean[self.number],
            self.running_var[self.number],
            self.weight,
            self.bias,
            self.training,
            self.momentum,
        )


def _level(before: int, after: int, config: UNetConfig, cascades: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (before, after):
        # A norm takes the mean off, and with it any bias.
        layers.append(nn.Conv3d(inputs, after, kernel_size=3, padding=1, bias=config.norm == "none"))
        if config.norm == "batch":
            layers.append(nn.BatchNorm3d(after) if cascades == 1 else CascadeBatchNorm(after, cascades))
        elif config.norm == "instance":
            layers.append(nn.InstanceNorm3d(after, affine=True))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Scale(nn.Module):
    """z-scores of channels by statistics of the training data, and back; 0 outside the mask.

    Parameters
    ----------
    mean_ppm, sd_ppm
        One number a channel.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean_ppm: Sequence[float], sd_ppm: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean_ppm), ("sd", sd_ppm)):
            self.register_buffer(name, torch.tensor([float(v) for v in values]).reshape(-1, 1, 1, 1))

    def forward(self, x_ppm: Tensor, mask: Tensor) -> Tensor:
        """From ppm to z-scores, (batch, channel, i, j, k); mask (batch, 1, i, j, k)."""
        # Outside the brain and in the zeros that convolutions pad with, every channel is at its mean.
        return (x_ppm - self.mean) / self.sd * mask

    def undo(self, z: Tensor, mask: Tensor) -> Tensor:
        """From z-scores to ppm, in single precision whatever precision the network ran in."""
        return (z.to(self.mean.dtype) * self.sd + self.mean) * mask
