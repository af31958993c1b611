"""Methods of the comparison, and the weights of their networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chisep import methods
from chisep.errors import InputError
from chisep.experiments.common.networks import PRECISION, described_weights, estimates_of
from chisep.io.files import checksum
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.training.export import WEIGHTS
from chisep.types import Maps, Sources, Volume

RECIPES: Mapping[str, str] = {
    "qsmnet": "qsmnet",
    "r2s": "r2s",
    "chi-sepnet-r2p": "thesis-baseline",
    "chi-sepnet-r2s-direct": "thesis-r2s-direct",
    "unrolled-thesis": "thesis-unrolled",
}
"""Networks by the name of their weights → recipe, in the order in which they are trained."""


@dataclass(frozen=True)
class ThesisMethod:
    """A method of the comparison.

    Parameters
    ----------
    title
        Name in tables.
    method
        Name in `chisep methods`.
    weights
        Names of the weights of its networks, its own first; empty for a solver.
    qsm
        Whether the χ map of QSMnet is an input.
    """

    title: str
    method: str
    weights: tuple[str, ...] = ()
    qsm: bool = True

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of all weights that its result depends on."""
        return (*self.weights, *(("qsmnet",) if self.qsm else ()))


UNROLLED = "unrolled-thesis"
ROWS: Mapping[str, ThesisMethod] = {
    "closed-form-qsmnet": ThesisMethod("closed form, χ of QSMnet", "closed-form"),
    "closed-form": ThesisMethod("closed form, χ of Tikhonov", "closed-form", qsm=False),
    "iterative": ThesisMethod("iterative χ-separation", "iterative", qsm=False),
    "chi-sepnet-r2s": ThesisMethod("χ-sepnet-R2*, two networks", "chi-sepnet-r2s", ("chi-sepnet-r2p", "r2s")),
    "chi-sepnet-r2s-direct": ThesisMethod(
        "χ-sepnet-R2*, direct", "chi-sepnet-r2s-direct", ("chi-sepnet-r2s-direct",)
    ),
    "chi-sepnet-r2p": ThesisMethod("χ-sepnet-R2'", "chi-sepnet-r2p", ("chi-sepnet-r2p",)),
    UNROLLED: ThesisMethod("unrolled χ-sepnet-R2'", "unrolled-thesis", (UNROLLED,)),
}
"""Methods by name, in the order of tables."""


def row_of(name: str) -> ThesisMethod:
    """Look up a method of the comparison.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in ROWS:
        raise InputError(
            "method", found=repr(name), expected=f"one of: {', '.join(ROWS)}", fix="Correct the name."
        )
    return ROWS[name]


def weights_path(name: str, folder: Path | None) -> Path:
    """Find weights.

    Parameters
    ----------
    name
        A key of `RECIPES`.
    folder
        Folder of `chisep reproduce networks`; the shipped weights if None.

    Raises
    ------
    InputError
        If they are not there.
    """
    if folder is None:
        return network_weights.find_weights(name)
    path = folder / RECIPES[name] / WEIGHTS
    if not path.is_file():
        raise InputError(
            path,
            found="no weights",
            expected=f"a trained {RECIPES[name]}",
            fix=f"`chisep reproduce networks {folder}` trains it.",
        )
    return path


def checksums(names: Sequence[str], folder: Path | None) -> dict[str, str]:
    """SHA-256 of weights by their name; arguments and errors as of `weights_path`."""
    return {name: checksum(weights_path(name, folder)) for name in names}


def described(names: Sequence[str], folder: Path | None) -> dict[str, dict[str, Any]]:
    """Checksum, validation loss and commit of weights by their name; errors as of `weights_path`."""
    return {name: described_weights(weights_path(name, folder)) for name in names}


def qsmnet_chi(maps: Maps, folder: Path | None) -> Volume:
    """χ of QSMnet in ppm, the input of networks; errors as of `weights_path`."""
    options = NetworkOptions(weights=str(weights_path("qsmnet", folder)), precision=PRECISION)
    return methods.invert(maps, "qsmnet", options).chi_ppm


def separated(row: ThesisMethod, maps: Maps, folder: Path | None) -> Sources:
    """Apply a method to a scan.

    Parameters
    ----------
    row
        The method.
    maps
        With R2', R2* and, for the methods that use it, χ of QSMnet.
    folder
        As of `weights_path`.

    Raises
    ------
    InputError
        If weights or maps are missing.
    """
    return methods.separate(_given(row, maps), row.method, _options(row, folder))


def intermediate_estimates(maps: Maps, folder: Path | None) -> list[Sources]:
    """Apply the unrolled network and return its estimate after each cascade.

    Parameters
    ----------
    maps, folder
        As of `separated`.
    """
    given = _given(ROWS[UNROLLED], maps)
    return estimates_of(weights_path(UNROLLED, folder), given)


def _given(row: ThesisMethod, maps: Maps) -> Maps:
    """Keep χ of QSMnet from a method that is compared without."""
    if row.qsm and maps.chi_ppm is None:
        raise ValueError(f"{row.title} wants maps with the χ of QSMnet")
    return maps if row.qsm else replace(maps, chi_ppm=None)


def _options(row: ThesisMethod, folder: Path | None) -> NetworkOptions | None:
    if not row.weights:
        return None
    own, *further = (str(weights_path(name, folder)) for name in row.weights)
    return NetworkOptions(weights=own, rate_weights=further[0] if further else "r2s", precision=PRECISION)
