"""Methods of the independent bench, and the maps of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chisep import methods
from chisep.errors import InputError
from chisep.experiments.common.networks import PRECISION
from chisep.experiments.independent.conditions import Condition, Measured
from chisep.experiments.independent.forward import B0_DIRECTION
from chisep.experiments.independent.worlds import Phantom, World
from chisep.io.files import checksum
from chisep.networks import weights as network_weights
from chisep.networks.config import SOURCES
from chisep.networks.inference import NetworkOptions
from chisep.types import Grid, Maps, Relaxivity, Sources, Susceptibility


@dataclass(frozen=True)
class Row:
    """A method of the comparison.

    Parameters
    ----------
    title
        Name in tables.
    method
        Name in `chisep methods`.
    weights
        Weights file of a network, or the name of packaged weights; empty for a solver.
    qsm
        QSM method for its input χ map; none if empty.
    """

    title: str
    method: str
    weights: str = ""
    qsm: str = ""

    @property
    def target(self) -> methods.Target:
        """Output of the method: χ or sources."""
        return methods.METHODS[self.method].target

    def key(self) -> dict[str, Any]:
        """Everything that its results depend on."""
        file = checksum(network_weights.find_weights(self.weights)) if self.weights else None
        return {"method": self.method, "qsm": self.qsm, "weights": file}


ROWS: Mapping[str, Row] = {
    "closed-form": Row("closed form, χ of Tikhonov", "closed-form", qsm="tikhonov"),
    "iterative": Row("iterative χ-separation", "iterative"),
    "chi-sepnet-r2p": Row("χ-sepnet-R2'", "chi-sepnet-r2p", "chi-sepnet-r2p", "qsmnet"),
    "unrolled-thesis": Row("unrolled χ-sepnet-R2' (Eq. 2.5)", "unrolled-thesis", "unrolled-thesis", "qsmnet"),
    "unrolled": Row("unrolled", "unrolled", "unrolled"),
    "tikhonov": Row("Tikhonov", "tikhonov"),
    "tv": Row("total variation", "tv"),
    "qsmnet": Row("QSMnet", "qsmnet", "qsmnet"),
    "unrolled-qsm": Row("unrolled QSM", "unrolled-qsm", "unrolled-qsm"),
}
"""Methods by name, in the order of tables; those of χ alone last."""


def row_of_weights(name: str, file: Path) -> Row:
    """Row of a weights file; its method follows from its header.

    Raises
    ------
    InputError
        If the file cannot be read, or is a network that no method of the bench uses.
    """
    config = network_weights.description_of(file).config
    if config.outputs == ("chi",):
        return Row(name, "unrolled-qsm" if config.proximal else "qsmnet", str(file))
    if config.outputs == SOURCES and "r2star" not in config.inputs:
        if config.proximal:
            return Row(name, "unrolled", str(file))
        method = "unrolled-thesis" if config.unrolled else "chi-sepnet-r2p"
        return Row(name, method, str(file), "qsmnet")
    raise InputError(
        str(file),
        found=f"a network from {', '.join(config.inputs)} to {', '.join(config.outputs)}",
        expected="one from field and R2' to sources, or from the field to χ",
        fix="Choose other weights.",
    )


def input_maps(phantom: Phantom, world: World, condition: Condition, measured: Measured) -> Maps:
    """Convert the maps of the bench to those that methods of chisep read."""
    shape = tuple(int(n) for n in phantom.mask.shape)
    maps = Maps(
        field_ppm=torch.from_numpy(measured.field_ppm),
        mask=torch.from_numpy(phantom.mask),
        grid=Grid((shape[0], shape[1], shape[2]), (1.0, 1.0, 1.0), B0_DIRECTION),
        relaxivity=Relaxivity(measured.dr_pos_hz_per_ppm, measured.dr_neg_hz_per_ppm),
        r2prime_hz=torch.from_numpy(measured.r2prime_hz),
        b0_t=world.b0_t,
    )
    if not condition.sigma_given:
        return maps
    return replace(
        maps,
        field_sigma_ppm=torch.from_numpy(measured.field_sigma_ppm),
        r2prime_sigma_hz=torch.from_numpy(measured.r2prime_sigma_hz),
    )


def apply(row: Row, maps: Maps) -> Sources | Susceptibility:
    """Apply a method to the maps of a scan."""
    options = NetworkOptions(weights=row.weights, precision=PRECISION) if row.weights else None
    if row.target == "chi":
        return methods.invert(maps, row.method, options)
    if row.qsm:
        qsm_options = NetworkOptions(precision=PRECISION) if methods.METHODS[row.qsm].is_network else None
        maps = replace(maps, chi_ppm=methods.invert(maps, row.qsm, qsm_options).chi_ppm)
    return methods.separate(maps, row.method, options)
