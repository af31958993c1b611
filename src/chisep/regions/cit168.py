"""CIT168: probabilistic atlas of subcortical nuclei in MNI152 space (Pauli 2018, 10.1038/sdata.2018.63)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from chisep.io import nifti
from chisep.types import Affine

DATA = Path(__file__).parent / "data"
"""Folder of the packaged atlas."""
ATLAS_FILE, NAMES_FILE = "cit168.nii.gz", "cit168.tsv"
FIRST_LABEL = 21000
"""Label of a nucleus on a scan less its number in CIT168: FreeSurfer has no numbers for them."""

Probability = Float[np.ndarray, "x y z"]
"""Probability of a structure in every voxel of the atlas."""


@dataclass(frozen=True)
class Nucleus:
    """A nucleus on both sides.

    Parameters
    ----------
    name
        In plain words.
    numbers
        Numbers in CIT168, left and right.
    """

    name: str
    numbers: tuple[int, int]

    def names(self) -> dict[int, str]:
        """Label on a scan → name, side first."""
        sides = zip(self.numbers, ("left", "right"), strict=True)
        return {FIRST_LABEL + number: f"{side} {self.name}" for number, side in sides}


NUCLEI = (
    Nucleus("globus pallidus externus", (9, 10)),
    Nucleus("globus pallidus internus", (11, 12)),
    Nucleus("substantia nigra pars compacta", (13, 14)),
    Nucleus("red nucleus", (15, 16)),
    Nucleus("substantia nigra pars reticulata", (17, 18)),
    Nucleus("subthalamic nucleus", (31, 32)),
)
"""Iron-rich nuclei that are reported."""
PUTAMEN, CAUDATE = (1, 2), (3, 4)
"""Numbers of nuclei that the packaged atlas has as well; they help the registration."""


def nucleus_names() -> dict[int, str]:
    """Label on a scan → name, of every nucleus that is reported."""
    return {label: name for nucleus in NUCLEI for label, name in nucleus.names().items()}


@cache
def _atlas() -> nifti.Image:
    return nifti.load(DATA / ATLAS_FILE, ndim=4)


def atlas_affine() -> Affine:
    """Voxel index of the atlas to MNI mm, shape (4, 4)."""
    return _atlas().affine


def probability(number: int) -> Probability:
    """Probability of a structure, 0 to 1.

    Parameters
    ----------
    number
        Its number in CIT168.
    """
    first, second, p_first, p_second = np.moveaxis(_atlas().data, -1, 0)
    both = np.where(first == number, p_first, 0) + np.where(second == number, p_second, 0)
    return np.asarray(both / 255, dtype=np.float32)
