"""Field strength of maps that are given by hand: as the user or a sidecar states it, never assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chisep.errors import InputError
from chisep.io import bids

_KEY = "MagneticFieldStrength"


def field_strength(stated: float | None, maps: Sequence[object]) -> float:
    """Field strength in tesla.

    Parameters
    ----------
    stated
        As the user gives it; None to read sidecars.
    maps
        What the maps are: of those that are paths, sidecars are read.

    Raises
    ------
    InputError
        If neither the user nor a sidecar states it, or sidecars differ.
    """
    found = stated or stated_field_strength(maps)
    if found is None:
        raise InputError(
            "--b0",
            found="no field strength, neither as an option nor in a sidecar of the maps",
            expected="tesla, e.g. --b0 3: D_r and the usual relaxation rates follow from it",
            fix=f"Give --b0, or {_KEY} in the sidecar of the field map.",
        )
    return found


def stated_field_strength(maps: Sequence[object]) -> float | None:
    """Field strength in tesla that the sidecars of maps state; None where they state none.

    Raises
    ------
    InputError
        If a sidecar states what is none, or two state different ones.
    """
    stated = {}
    for one in maps:
        sidecar = bids.sidecar_of(Path(one)) if isinstance(one, str | Path) else None
        if sidecar is not None and sidecar.is_file():
            value = _of_sidecar(sidecar)
            if value is not None:
                stated[value] = sidecar
    if len(stated) > 1:
        (one_t, first), (other_t, second), *_ = stated.items()
        raise InputError(
            second,
            found=f"{_KEY} {other_t:g}",
            expected=f"{one_t:g}, as in {first}",
            fix="Give maps of one scan, or --b0.",
        )
    return next(iter(stated), None)


def _of_sidecar(sidecar: Path) -> float | None:
    content = bids.read_json(sidecar)
    # Sidecars that chisep wrote keep it among the parameters of their stage.
    parameters = content.get("Parameters")
    value = content.get(_KEY, parameters.get(_KEY) if isinstance(parameters, Mapping) else None)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and bids.LOWEST_B0_T <= value <= bids.HIGHEST_B0_T):
        raise InputError(
            sidecar, found=f"{_KEY} {value!r:.80}", expected="tesla, e.g. 3", fix="Correct the sidecar."
        )
    return float(value)
