"""Initial estimate of unrolled proximal networks: a classical solver with total variation, stopped early.

Two U-nets and DC steps do not find what a hundred iterations find near the cone where the dipole kernel is 0.
Total variation finds it where tissue is flat; the network corrects it where tissue is not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chisep.networks.config import INITIAL, SOURCES, Channel
from chisep.solvers import iterative, tv
from chisep.types import Grid, Maps, MaskVolume, Relaxivity, Volume

ITERATIONS = 20
"""Weights of networks depend on this number. In a phantom at SNR 50 (docs/decisions/0019-random-contrasts.md)
the error of χ_pos is 21.9 % after one iteration, 13.1 % after 10, 11.0 % after 20 and 9.7 % after 120."""


def initial_estimate(
    channels: Mapping[Channel, Volume],
    mask: MaskVolume,
    support: MaskVolume,
    grid: Grid,
    ratio: float,
    outputs: tuple[Channel, ...],
) -> dict[Channel, Volume]:
    """Estimate χ_pos and χ_neg by iterative χ-separation, or χ by total variation, in few iterations.

    Parameters
    ----------
    channels
        Field and R2'/D_r,pos with their noise maps, or the field with its noise map, in ppm, shape (i, j, k).
    mask
        Where the field is known, shape (i, j, k).
    support
        Brain, shape (i, j, k).
    grid
        Voxel size and B0 direction.
    ratio
        D_r,neg / D_r,pos.
    outputs
        Output channels of the network: the sources, or χ.

    Returns
    -------
    dict
        The initial channel of each output in ppm, shape (i, j, k); 0 throughout if no field is known.
    """
    if not bool(mask.any()):
        return {INITIAL[name]: torch.zeros_like(channels["field"]) for name in outputs}
    maps = Maps(
        field_ppm=channels["field"],
        mask=mask,
        grid=grid,
        # R2' is in ppm already.
        relaxivity=Relaxivity(1.0, ratio),
        r2prime_hz=channels.get("r2prime"),
        field_sigma_ppm=channels["field_sigma"],
        r2prime_sigma_hz=channels.get("r2prime_sigma"),
        support=support,
    )
    if outputs != SOURCES:
        return {"initial_chi": tv.solve(maps, tv.TvConfig(iterations=ITERATIONS)).chi_ppm}
    made = iterative.solve(maps, iterative.IterativeConfig(iterations=ITERATIONS))
    return {"initial_chi_pos": made.chi_pos_ppm, "initial_chi_neg": made.chi_neg_ppm}
