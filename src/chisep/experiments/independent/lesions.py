"""Lesions of the independent bench: ellipsoids and irregular blobs of either source, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from chisep.experiments.independent.forward import Array, Bool, smooth_noise

_STRENGTHS_PPB = (100.0, 150.0, 200.0, 300.0, 400.0, 500.0, 650.0, 800.0)
_RADII_VOXEL = (2.0, 5.5)
_GAP_VOXEL = 9.0
_ROUGHNESS = 0.45


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion.

    Parameters
    ----------
    source
        chi_pos or chi_neg.
    shape
        Ellipsoid or blob.
    assigned_ppb
        Its source, mean over the lesion.
    inside
        Its voxels.
    """

    source: str
    shape: str
    assigned_ppb: float
    inside: Bool


def add_lesions(
    pos_ppm: Array, neg_ppm: Array, tissue: Bool, rng: np.random.Generator
) -> tuple[Array, Array, tuple[Lesion, ...]]:
    """Add a lesion of each strength, source and shape; the other source is halved in it.

    Parameters
    ----------
    pos_ppm, neg_ppm
        Sources of the healthy head.
    tissue
        Where centres of lesions may be, far from the edge.
    rng
        Draws places, radii and shapes.

    Returns
    -------
    tuple
        Both sources, and the lesions that found a place.
    """
    sources = {"chi_pos": pos_ppm.copy(), "chi_neg": neg_ppm.copy()}
    free = ndimage.distance_transform_edt(tissue) > 3.0
    axes = np.indices(tissue.shape, dtype=np.float32)
    rough = smooth_noise(tissue.shape, 1.8, rng)
    found = []
    for strength_ppb in sorted(_STRENGTHS_PPB, reverse=True):
        for source, other in (("chi_pos", "chi_neg"), ("chi_neg", "chi_pos")):
            for shape in ("ellipsoid", "blob"):
                places = np.argwhere(free)
                if not len(places):
                    continue
                centre = places[rng.integers(len(places))]
                turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
                radii = rng.uniform(*_RADII_VOXEL, 3)
                offset = np.tensordot(turn, axes - centre[:, None, None, None], 1)
                distance = np.sqrt(((offset / radii[:, None, None, None]) ** 2).sum(0))
                if shape == "blob":
                    distance = distance + _ROUGHNESS * rough
                near = ((axes - centre[:, None, None, None]) ** 2).sum(0)
                inside = (distance <= 1) & (near <= (2 * radii.max()) ** 2) & tissue
                free &= near > (2 * _GAP_VOXEL) ** 2
                if inside.sum() < 20:
                    continue
                # A soft edge of about a voxel, as partial volume makes.
                share = ndimage.gaussian_filter(inside.astype(np.float32), 0.5) * tissue
                sources[source] += share * (strength_ppb / 1000 - sources[source])
                sources[other] *= 1 - 0.5 * share
                assigned = 1000 * float(sources[source][inside].mean())
                found.append(Lesion(source, shape, assigned, inside))
    return sources["chi_pos"], sources["chi_neg"], tuple(found)
