"""Sparse texture: flat tissue with few strong structures that have edges.

In a COSMOS map of one volunteer, bands of Gaussian filters have a kurtosis of 20 to 25: most tissue is flat,
and few structures are strong. A Gaussian random field has a kurtosis of 3. Here such a field decides where
structures are (where it exceeds a threshold), and saturates inside of them: plateaus with edges on a flat
ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chisep.simulation import labelmap
from chisep.simulation.labelmap import Labels
from chisep.simulation.texture import random_field
from chisep.types import Volume


@dataclass(frozen=True)
class _Structures:
    """Plateaus of a Gaussian random field: its smoothness, threshold in SD, steepness, and height."""

    sigma_mm: tuple[float, float, float]
    threshold: float
    steepness: float
    height: float
    both_signs: bool = True

    def draw(self, shape: Sequence[int], voxel_mm: Sequence[float], rng: np.random.Generator) -> Volume:
        """Draw structures on a ground of 0, shape (i, j, k)."""
        field = random_field(shape, voxel_mm, [self.sigma_mm], (1.0,), rng)
        sign = torch.sign(field) if self.both_signs else (field > 0).float()
        # tanh: few structures reach the height of the plateau, so that they differ.
        above = field.abs_().sub_(self.threshold).clamp_(min=0).mul_(self.steepness).tanh_()
        return above.mul_(sign).mul_(self.height)


_LOBES_MM, _LOBES_SD = 20.0, 0.55
"""Gradual variation over a lobe: its smoothness, and its SD relative to that of all texture."""
_AREAS = _Structures((8.0, 8.0, 8.0), 0.3, 8.0, 1.0)
"""Wide areas with more or less of both sources, with a border."""
_DENSE = _Structures((4.5, 4.5, 4.5), 2.1, 4.0, 3.3, both_signs=False)
"""Small structures that are dense in both sources."""
_BUNDLES = (
    _Structures((12.0, 2.0, 2.0), 2.0, 4.0, 3.3, both_signs=False),
    _Structures((2.0, 12.0, 2.0), 2.0, 4.0, 3.3, both_signs=False),
    _Structures((2.0, 2.0, 12.0), 2.0, 4.0, 3.3, both_signs=False),
)
"""Dense bundles along each axis; white matter has those along its fibres."""
_EXCHANGED = _Structures((4.0, 4.0, 4.0), 2.35, 4.0, 9.0)
"""Small structures that have more of one source and less of the other."""
_MOST = 2.0
"""Largest logarithm of a factor, so that the sum of structures stays within what tissue has."""
_SHARED_GAIN, _EXCHANGED_GAIN = (0.25, 0.7), (0.2, 0.9)
"""Strength in nuclei and in cortex, relative to white matter's."""
_FLAT = (
    *(0, labelmap.CSF, labelmap.VEIN, *labelmap.OUTSIDE),
    *(labelmap.PINEAL, labelmap.FALX_CALCIFIED, labelmap.DURA_CALCIFIED),
    *(*labelmap.LATERAL_VENTRICLE, 5, 44, labelmap.THIRD_VENTRICLE, 15, 72),
    *(*labelmap.CHOROID_PLEXUS, 136, 137, 163, 164, 30, 62),
)
"""Fluid, blood, plexus and calcification have no texture."""


def sparse_texture(
    labels: Labels,
    voxel_mm: Sequence[float],
    directions: Tensor | None,
    sds: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Volume, Volume]:
    """Draw sparse texture: areas, dense structures, bundles along fibres, exchange between the sources.

    Parameters
    ----------
    labels
        Labels.
    voxel_mm
        Voxel edges.
    directions
        Fibre direction of each voxel in voxel axes, shape (3, i, j, k); without it there are no bundles.
    sds
        Strength of what both sources share (about the SD of its logarithm in white matter), and of what is
        opposed in them (between small structures 0).
    rng
        Draws all of it.

    Returns
    -------
    tuple
        Two logarithms of factors: shared by both sources, and opposed in them. 0 in fluid and blood.
    """
    shape = labels.shape
    shared_rng, bundle_rng, exchanged_rng = rng.spawn(3)
    shared, exchanged = torch.zeros(shape), torch.zeros(shape)
    if sds[0]:
        shared += _LOBES_SD * random_field(shape, voxel_mm, [(_LOBES_MM,) * 3], (1.0,), shared_rng)
        for structures in (_AREAS, _DENSE):
            shared += structures.draw(shape, voxel_mm, shared_rng)
        if directions is not None:
            shared += _bundles(labels, voxel_mm, directions, bundle_rng)
        shared *= torch.from_numpy(_gain(labels, *_SHARED_GAIN)).mul_(sds[0])
    if sds[1]:
        exchanged = _EXCHANGED.draw(shape, voxel_mm, exchanged_rng)
        exchanged *= torch.from_numpy(_gain(labels, *_EXCHANGED_GAIN)).mul_(sds[1])
    return shared, exchanged


def factor_of(logarithm: Volume) -> Volume:
    """Factor of a source from its logarithm, bounded: where structures overlap, they do not multiply."""
    return torch.exp(logarithm.clamp(max=_MOST))


def _bundles(
    labels: Labels, voxel_mm: Sequence[float], directions: Tensor, rng: np.random.Generator
) -> Volume:
    bundles = torch.zeros(labels.shape)
    for along, structures in zip(directions, _BUNDLES, strict=True):
        # High powers: along the nearest axis alone, else bundles cross where fibres run oblique.
        bundles += along**4 * structures.draw(labels.shape, voxel_mm, rng)
    return bundles * torch.from_numpy(np.isin(labels, labelmap.WHITE_MATTER))


def _gain(labels: Labels, nuclei: float, cortex: float) -> NDArray[np.float32]:
    """Strength of texture in each voxel: 1 in white matter, 0 in fluid and blood."""
    gain = np.ones(labels.shape, dtype=np.float32)
    gain[np.isin(labels, labelmap.DEEP_GREY)] = nuclei
    gain[np.isin(labels, (*labelmap.CEREBRAL_CORTEX, *labelmap.CEREBELLAR_CORTEX))] = cortex
    gain[np.isin(labels, _FLAT)] = 0.0
    return gain
