"""Partial volumes: tissue values painted on fine labels and averaged over the voxels of a grid."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from chisep.simulation import labelmap
from chisep.simulation.labelmap import LabelMap, Veins
from chisep.simulation.refine import NewVolume, overlaps, pool, refined, upsampled
from chisep.simulation.vessels import vein_flow, vein_fraction
from chisep.types import Grid, Volume

VectorVolume = Float[Tensor, "3 i j k"]
"""One vector per voxel, in voxel axes."""
_VeinsOnGrid = tuple[Veins, tuple[int, ...], list[float], list[int], list[int]]

_MOST_FINE = 4
"""Largest number of parts that an edge of a label voxel is divided into; more add no detail."""


class Painter:
    """Paint tissue values on labels and average them over the voxels of a grid.

    The box of the brain is painted on fine labels, the rest of the head on those of the label map.
    """

    def __init__(
        self,
        head: LabelMap,
        grid: Grid,
        inside: labelmap.Mask,
        tables: dict[str, NDArray[np.float32]],
        refine_mm: float,
    ) -> None:
        box = tuple(
            slice(max(part.start - 1, 0), part.stop + 1)
            for part in ndimage.find_objects(inside.astype(np.int8))[0]
        )
        edges = list(zip(head.labels.shape, head.voxel_mm, grid.shape, grid.voxel_mm, strict=True))
        fine_mm = max(refine_mm, min(grid.voxel_mm) / 4)
        self.factors = [min(max(math.ceil(edge / fine_mm - 1e-6), 1), _MOST_FINE) for edge in head.voxel_mm]
        self.whole = [overlaps(*edge) for edge in edges]
        self._head_map = head
        self._head, self._tables, self._box = torch.from_numpy(head.labels).int(), tables, box
        self.labels = np.ascontiguousarray(head.labels[box])
        fine = refined(self.labels, self.factors)
        self._fine = torch.from_numpy(fine).int()
        self._coarse_boxed, self._boxed = (
            [
                overlaps(n * f, edge / f, n_new, edge_new, start_mm=part.start * edge)
                for n, part, f, (_, edge, n_new, edge_new) in zip(
                    self.labels.shape, box, division, edges, strict=True
                )
            ]
            for division in ((1, 1, 1), self.factors)
        )
        self.mask = pool(torch.from_numpy(inside).float(), self.whole) > 0.5
        self.to_mni = None
        if head.to_mni is not None:
            self.to_mni = head.to_mni.copy()
            self.to_mni[:3, 3] += head.to_mni[:3, :3] @ [part.start for part in box]
        self._blood = None
        if head.veins is not None:
            blood = vein_fraction(*self._veins_on(fine.shape, head))
            blood[np.isin(fine, (0, *labelmap.OUTSIDE))] = 0.0
            self._blood = torch.from_numpy(blood)

    def flow(self, rad: float) -> VectorVolume | None:
        """Phase of flow along each voxel axis averaged over the grid; None for a head without veins."""
        veins = self._head_map.veins
        if veins is None or veins.towards is None:
            return None
        moving = vein_flow(*self._veins_on(tuple(self._fine.shape), self._head_map))
        # Veins are only in tissue and fluid of the head, as in `paint`.
        moving *= ~np.isin(self._fine.numpy(), (0, *labelmap.OUTSIDE))
        return rad * torch.stack([pool(torch.from_numpy(part), self._boxed) for part in moving])

    def _veins_on(self, shape: tuple[int, ...], head: LabelMap) -> _VeinsOnGrid:
        """Arguments of `vein_fraction` for the fine voxels of the box."""
        if head.veins is None:
            raise ValueError("a head without veins")
        edges = [edge / f for edge, f in zip(head.voxel_mm, self.factors, strict=True)]
        return head.veins, shape, edges, [part.start for part in self._box], self.factors

    def paint(self, column: str, factor: Tensor | None = None) -> Volume:
        """Average the values of a table over the grid; a factor belongs to the voxels of the brain's box."""
        table = torch.from_numpy(self._tables[column])
        around = table[self._head]
        around[self._box] = 0.0
        brain = table[self._fine]
        if factor is not None:
            brain *= upsampled(factor, self.factors)
        if self._blood is not None:
            brain += (table[labelmap.VEIN] - brain) * self._blood
        return pool(around, self.whole) + pool(brain, self._boxed)

    def average(self, volume: Volume) -> NewVolume:
        """Average a map of the brain's box over the grid, 0 outside."""
        return pool(volume, self._coarse_boxed)
