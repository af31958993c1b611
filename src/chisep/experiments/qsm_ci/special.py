"""Rows beside methods: null methods, the default with perfect inputs in turn, TV tuned on the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from chisep import methods
from chisep.api.qsm_ci.dephasing import dephasing_of, equivalent_r2prime
from chisep.api.qsm_ci.inputs import Inputs
from chisep.experiments.qsm_ci.definitions import WHITE
from chisep.io import nifti
from chisep.methods.given_chi import with_chi
from chisep.methods.r2prime_of_r2star import r2prime_of_r2star
from chisep.methods.scan_relaxivity import relaxivity_from
from chisep.preprocessing.relaxometry import pseudo_r2prime, r2star
from chisep.solvers import tv
from chisep.types import Maps, Relaxivity, Volume

NULL, LABEL_NULL = "null (closed form)", "null, D_r by labels"
BOTH_EVERYWHERE = "default, both sources dephase everywhere"
TRUE_DR = "default, true D_r as two numbers"
TRUE_WHITE = "default, true white matter"
TRUE_ANGLE = "default, true fibre angle"
TRUE_MAP = "default, true D_r of every voxel"
BUDGET = (BOTH_EVERYWHERE, TRUE_DR, TRUE_WHITE, TRUE_ANGLE, TRUE_MAP)
"""What the default would have if it knew more of D_r; the first one knows less."""
TUNED_TV = "tv, tuned on the truth"
_NULL_POS_3T, _NULL_RATIO = 137.0, 133.77 / 107.84
_TV_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def special(world: Path, stage: str, method: str, inputs: Inputs) -> dict[str, Volume]:
    """Compute the outputs of a row that no registered method makes.

    Parameters
    ----------
    world
        Folder of the world, whose truth a row may read.
    stage, method
        Of the row.
    inputs
        Of the stage.
    """
    if method == TUNED_TV:
        return {"chimap": _tuned_tv(world, inputs)}
    if stage == "r2prime-generation":
        rate = r2star(inputs.echoes("magnitude"), inputs.te_s, inputs.mask)
        if method != NULL:
            found = r2prime_of_r2star(rate, inputs.mask, inputs.grid, inputs.parameters.B0)
            return {"r2prime": found.rate_hz}
        return {"r2prime": pseudo_r2prime(rate, inputs.parameters.B0).rate_hz}
    if method in BUDGET:
        return _with_true_relaxivity(world, method, inputs)
    chi, r2prime, mask = inputs.volume("chimap"), inputs.volume("r2prime"), inputs.mask
    if method == NULL:
        pos_dr = torch.full_like(chi, _NULL_POS_3T * inputs.parameters.B0 / 3)
        neg_dr = _NULL_RATIO * pos_dr
    else:
        pos_dr, neg_dr = _true_maps(world)
    # χ_pos − χ_neg = χ and D_r,pos χ_pos + D_r,neg χ_neg = R2'.
    pos = (neg_dr * chi + r2prime) / (pos_dr + neg_dr).clamp_min(1e-6)
    return {"chi-para": pos.clamp_min(0) * mask, "chi-dia": (pos - chi).clamp_min(0) * mask}


def _with_true_relaxivity(world: Path, method: str, inputs: Inputs) -> dict[str, Volume]:
    """Separate by the default with the χ map and true knowledge of D_r."""
    mask, chi = inputs.mask, inputs.volume("chimap")
    maps = input_maps(inputs, with_chi_map=True)
    found = dephasing_of(maps, inputs.parameters.B0, chi_is_true=True)
    true = true_relaxivity(world)
    if method == BOTH_EVERYWHERE:
        d_r = relaxivity_from(maps, inputs.parameters.B0, chi_is_true=True).relaxivity
        maps = replace(maps, relaxivity=d_r)
    else:
        pos, neg = (torch.full_like(chi, x) for x in (true.pos_hz_per_ppm, true.neg_hz_per_ppm))
        white = torch.from_numpy(truth_of(world, "dseg")) == WHITE
        true_pos, true_neg = _true_maps(world)
        of_tissue = found.neg_in_diamagnetic_only and method in (TRUE_DR, TRUE_ANGLE)
        if of_tissue:
            neg = torch.where(chi > 0, 0.0, neg)
        if method == TRUE_WHITE:
            neg = torch.where(white, neg, true_neg)
        elif method == TRUE_ANGLE:
            neg = torch.where(white & (chi <= 0 if of_tissue else white), true_neg, neg)
        elif method == TRUE_MAP:
            pos, neg = true_pos, true_neg
        rate = equivalent_r2prime(inputs.volume("r2prime"), chi, (pos, neg), true)
        maps = replace(maps, relaxivity=true, r2prime_hz=rate)
    made = with_chi(methods.separate(maps, methods.DEFAULTS["sources"]), chi, mask)
    return {"chi-para": made.chi_pos_ppm, "chi-dia": made.chi_neg_ppm}


def input_maps(inputs: Inputs, *, with_chi_map: bool) -> Maps:
    """Gather the inputs of χ-separation, without D_r."""
    mask = inputs.mask
    return Maps(
        inputs.volume("localfield") * mask,
        mask,
        inputs.grid,
        r2prime_hz=inputs.volume("r2prime") * mask,
        chi_ppm=inputs.volume("chimap") * mask if with_chi_map else None,
        magnitude=inputs.combined_magnitude(),
        b0_t=inputs.parameters.B0,
    )


def _tuned_tv(world: Path, inputs: Inputs) -> Volume:
    """Total variation with the weight of the smallest error against the truth."""
    maps = Maps(inputs.volume("localfield"), inputs.mask, inputs.grid, magnitude=inputs.combined_magnitude())
    truth = torch.from_numpy(truth_of(world, "chimap"))
    made = [methods.invert(maps, "tv", tv.TvConfig(tv_weight=weight)).chi_ppm for weight in _TV_WEIGHTS]
    return min(made, key=lambda chi: float((chi - truth)[inputs.mask].std()))


def truth_of(world: Path, name: str) -> NDArray[np.float32]:
    """Read a map of the truth of a world."""
    return nifti.load(world / "groundtruth" / f"{name}.nii.gz").data


def _true_maps(world: Path) -> tuple[Volume, Volume]:
    pos, neg = (torch.from_numpy(truth_of(world, f"dr_{name}")) for name in ("pos", "neg"))
    return pos, neg


def true_relaxivity(world: Path) -> Relaxivity:
    """Means of the true D_r maps, weighted by the sources."""
    pos, neg = (np.asarray(truth_of(world, f"dr_{name}"), np.float64) for name in ("pos", "neg"))
    chi_pos, chi_neg = (np.asarray(truth_of(world, f"chi-{name}"), np.float64) for name in ("para", "dia"))
    # A source without R2' states no D_r.
    of_pos, of_neg = chi_pos * (pos > 0), chi_neg * (neg > 0)
    return Relaxivity(float((pos * of_pos).sum() / of_pos.sum()), float((neg * of_neg).sum() / of_neg.sum()))
