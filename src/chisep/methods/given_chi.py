"""Separation with a χ map that made the field: does a χ map agree with the field, and sources with that χ."""

from __future__ import annotations

from dataclasses import replace

import torch

from chisep.physics.dipole import Dipole
from chisep.solvers.noise import noise_sigma
from chisep.types import Maps, MaskVolume, Sources, Volume

LARGEST_MISFIT = 0.1
"""Largest SD of local field minus dipole field of χ, relative to that of the local field, beyond noise."""


def field_misfit(maps: Maps) -> float:
    """SD in the mask of local field minus dipole field of the χ map, beyond noise, relative to the field.

    Parameters
    ----------
    maps
        Local field, χ map, mask, grid.

    Notes
    -----
    A constant of the field does not count. The noise is estimated from the field itself.
    """
    if maps.chi_ppm is None:
        raise ValueError("no χ map")
    mask = maps.mask
    made = Dipole(maps.grid).apply(maps.chi_ppm * maps.sources_mask)
    residual, field = (maps.field_ppm - made)[mask], maps.field_ppm[mask]
    beyond = residual.var() - noise_sigma(maps.field_ppm, mask) ** 2
    return float((beyond.clamp_min(0) / field.var().clamp_min(torch.finfo(field.dtype).tiny)).sqrt())


def agrees_with_field(maps: Maps) -> bool:
    """Whether the dipole field of the χ map is the local field: its misfit is at most `LARGEST_MISFIT`.

    χ maps of dipole inversions leave more of the field than that.
    """
    return field_misfit(maps) <= LARGEST_MISFIT


def with_chi(sources: Sources, chi_ppm: Volume, mask: MaskVolume) -> Sources:
    """Project sources onto χ_pos − χ_neg = χ, weighted by their predicted variances.

    Parameters
    ----------
    sources
        Of a separation, shape (i, j, k).
    chi_ppm
        χ in ppm, shape (i, j, k).
    mask
        Where χ holds, shape (i, j, k).

    Returns
    -------
    Sources
        The nearest sources with χ_pos − χ_neg = χ and both ≥ 0, in units of their standard deviations; equal
        shares for methods that predict none.
    """
    pos, neg = sources.chi_pos_ppm, sources.chi_neg_ppm
    if sources.chi_pos_sigma_ppm is None or sources.chi_neg_sigma_ppm is None:
        share = torch.full_like(pos, 0.5)
    else:
        of_pos, of_neg = sources.chi_pos_sigma_ppm.square(), sources.chi_neg_sigma_ppm.square()
        share = of_pos / (of_pos + of_neg).clamp_min(torch.finfo(of_pos.dtype).tiny)
    new_pos = pos + share * (chi_ppm - (pos - neg))
    # On the line χ_pos − χ_neg = χ, neither source is negative from χ_pos = max(χ, 0) on.
    new_pos = torch.maximum(new_pos, chi_ppm.clamp_min(0))
    return replace(
        sources,
        chi_pos_ppm=torch.where(mask, new_pos, pos),
        chi_neg_ppm=torch.where(mask, new_pos - chi_ppm, neg),
    )
