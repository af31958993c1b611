"""Checks of results before they are written: finite, in a plausible range, no empty mask."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chisep.errors import ResultError
from chisep.pipeline.outputs import OUTPUTS

_STRAY_PART = 0.01
"""Part of the voxels that may be beyond the limits: voxels without signal, at vessels and at the rim."""
_FAR = 20.0
"""Widths of the allowed range beyond its limits at which a single voxel is too much."""


_MAY_BE_EMPTY = "reliable_mask"
"""Of a very noisy scan no voxel may be reliable."""


def check_result(key: str, values: NDArray[Any], made_by: str, *, any_size: bool = False) -> None:
    """Refuse a map that cannot be right.

    Parameters
    ----------
    key
        Of the map, in the catalogue of outputs.
    values
        The map, of any shape.
    made_by
        The step that computed it, for the message.
    any_size
        Do not compare with the limits of the catalogue: the user insists on inputs that no brain has.

    Raises
    ------
    ResultError
        If a value is NaN or infinite, more than 1 % of the values that are not 0 are beyond the limits of
        the catalogue, one is far beyond, or a mask is empty that must not be.
    """
    output = OUTPUTS[key]
    if output.suffix == "mask":
        if not values.any() and key != _MAY_BE_EMPTY:
            raise _error(key, made_by, "no voxel", "at least one voxel")
        return
    lowest, highest = float(values.min()), float(values.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        count = int(values.size - np.isfinite(values).sum())
        raise _error(key, made_by, f"{count} values that are NaN or infinite", "finite numbers everywhere")
    if output.limits is None or any_size:
        return
    low, high = output.limits
    beyond = max(low - lowest, highest - high)
    if beyond <= 0:
        return
    part = float(((values < low) | (values > high)).sum() / (values != 0).sum())
    if part > _STRAY_PART or beyond > _FAR * (high - low):
        raise _error(
            key,
            made_by,
            f"values from {lowest:.3g} to {highest:.3g} {output.unit}, {100 * part:.2g} % of them beyond the "
            "limits",
            f"values {_within(low, high)} {output.unit}",
        )


def _within(low: float, high: float) -> str:
    return f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or more"


def _error(key: str, made_by: str, found: str, expected: str) -> ResultError:
    return ResultError(
        made_by,
        found=f"{found} in its result ({OUTPUTS[key].description})",
        expected=expected,
        fix="Nothing of it was written. Check its settings, its weights if they are your own, and the maps "
        "that it reads. If they are sound, please report this.",
    )
