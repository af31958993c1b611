"""Methods of the independent bench, and the maps of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from chisep import methods
from chisep.errors import InputError
from chisep.experiments.common.compared import ComparedMethod
from chisep.experiments.common.networks import PRECISION
from chisep.experiments.independent.conditions import Condition, Measured
from chisep.experiments.independent.forward import B0_DIRECTION
from chisep.experiments.independent.worlds import Phantom, World
from chisep.networks import weights as network_weights
from chisep.networks.config import SOURCES
from chisep.networks.inference import NetworkOptions
from chisep.types import Grid, Maps, Relaxivity, Sources, Susceptibility

ROWS: Mapping[str, ComparedMethod] = {
    "closed-form": ComparedMethod("closed form, χ of Tikhonov", "closed-form", qsm="tikhonov"),
    "iterative": ComparedMethod("iterative χ-separation", "iterative"),
    "chi-sepnet-r2p": ComparedMethod("χ-sepnet-R2'", "chi-sepnet-r2p", "chi-sepnet-r2p", "qsmnet"),
    "unrolled-thesis": ComparedMethod(
        "unrolled χ-sepnet-R2' (Eq. 2.5)", "unrolled-thesis", "unrolled-thesis", "qsmnet"
    ),
    "unrolled": ComparedMethod("unrolled", "unrolled", "unrolled"),
    "tikhonov": ComparedMethod("Tikhonov", "tikhonov"),
    "tv": ComparedMethod("total variation", "tv"),
    "qsmnet": ComparedMethod("QSMnet", "qsmnet", "qsmnet"),
    "unrolled-qsm": ComparedMethod("unrolled QSM", "unrolled-qsm", "unrolled-qsm"),
}
"""Methods by name, in the order of tables; those of χ alone last."""


def row_of_weights(name: str, file: Path) -> ComparedMethod:
    """ComparedMethod of a weights file; its method follows from its header.

    Raises
    ------
    InputError
        If the file cannot be read, or is a network that no method of the bench uses.
    """
    description = network_weights.description_of(file)
    config = description.config
    if config.outputs == ("chi",):
        return ComparedMethod(name, "unrolled-qsm" if config.proximal else "qsmnet", str(file))
    if config.outputs == SOURCES and "r2star" not in config.inputs:
        if config.proximal:
            return ComparedMethod(name, "unrolled", str(file))
        method = "unrolled-thesis" if config.unrolled else "chi-sepnet-r2p"
        # Networks of random protocols were trained with the χ map of packaged weights, named as their method.
        chi = (description.header.get("recipe", {}).get("protocol") or {}).get("chi_weights")
        return ComparedMethod(name, method, str(file), chi if chi in methods.METHODS else "qsmnet")
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


def apply(row: ComparedMethod, maps: Maps) -> Sources | Susceptibility:
    """Apply a method to the maps of a scan."""
    usual = NetworkOptions(precision=PRECISION)
    if not row.refined:
        usual = replace(usual, refinement=0)
    options = replace(usual, weights=row.weights) if row.weights else None
    if row.target == "chi":
        return methods.invert(maps, row.method, options)
    if row.qsm:
        qsm_options = usual if methods.METHODS[row.qsm].is_network else None
        maps = replace(maps, chi_ppm=methods.invert(maps, row.qsm, qsm_options).chi_ppm)
    return methods.separate(maps, row.method, options)
