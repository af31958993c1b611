"""Maps of the map-level simulation as methods read them: field and R2' known in the whole brain."""

from __future__ import annotations

from chisep.simulation.measured import MeasuredMaps
from chisep.simulation.tissue import Tissue
from chisep.types import Maps


def maps_in_the_brain(tissue: Tissue, measured: MeasuredMaps) -> Maps:
    """Input maps of a method, with noise maps and the true D_r.

    Parameters
    ----------
    tissue
        The head.
    measured
        Its map-level simulation.
    """
    mask = tissue.mask
    return Maps(
        field_ppm=measured.local_ppm * mask,
        mask=mask,
        grid=tissue.grid,
        relaxivity=tissue.relaxivity,
        r2prime_hz=measured.r2prime_hz * mask,
        r2star_hz=measured.r2star_hz * mask,
        field_sigma_ppm=measured.field_sigma_ppm * mask,
        r2prime_sigma_hz=measured.r2prime_sigma_hz * mask,
    )
