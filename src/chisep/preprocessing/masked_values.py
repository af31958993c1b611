"""Values inside a mask, and volumes of them."""

from __future__ import annotations

import torch
from torch import Tensor


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Smallest box around a mask."""
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))


def volume_of(values: Tensor, mask: Tensor) -> Tensor:
    """Values inside the mask as a volume, 0 outside: (..., voxel) → (..., i, j, k)."""
    return MaskedVoxels(mask).volume(values)


class MaskedVoxels:
    """Voxels of a mask in memory order: values from volumes, volumes from values, and neighbours.

    The numbers of the voxels are looked up once, which is much faster than a Boolean mask in every step.

    Parameters
    ----------
    mask
        Shape (i, j, k).
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._flat = mask.flatten().nonzero()[:, 0]

    def values(self, volume: Tensor) -> Tensor:
        """Values inside the mask: (..., i, j, k) → (..., voxel)."""
        return volume.flatten(-3).index_select(-1, self._flat)

    def volume(self, values: Tensor) -> Tensor:
        """Volume of values, 0 outside the mask: (..., voxel) → (..., i, j, k)."""
        volume = values.new_zeros((*values.shape[:-1], self.mask.numel()))
        volume[..., self._flat] = values
        return volume.reshape(*values.shape[:-1], *self.mask.shape)

    def positions(self) -> tuple[Tensor, ...]:
        """Index of each voxel along each axis."""
        return self.mask.nonzero(as_tuple=True)

    def neighbours(self, axis: int, distance: int = 1) -> tuple[Tensor, Tensor]:
        """Pairs of voxels of the mask at a distance along an axis, as places in the list of values."""
        number = torch.full((self.mask.numel(),), -1, dtype=torch.int32, device=self.mask.device)
        number[self._flat] = torch.arange(len(self._flat), dtype=torch.int32, device=self.mask.device)
        number = number.reshape(self.mask.shape)
        n = max(self.mask.shape[axis] - distance, 0)
        # The last layers have no such neighbour.
        after = torch.full_like(number, -1)
        after.narrow(axis, 0, n).copy_(number.narrow(axis, self.mask.shape[axis] - n, n))
        second = self.values(after)
        first = (second >= 0).nonzero()[:, 0]
        return first, second.index_select(0, first).long()
