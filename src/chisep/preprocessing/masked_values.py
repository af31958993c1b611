"""Values inside a mask, and volumes of them."""

from __future__ import annotations

from torch import Tensor


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Smallest box around a mask."""
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))


def volume_of(values: Tensor, mask: Tensor) -> Tensor:
    """Values inside the mask as a volume, 0 outside."""
    volume = values.new_zeros(mask.shape)
    volume[mask] = values
    return volume
